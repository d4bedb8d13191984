//! The admin console of the real proxy: psql, psycopg, ctl, signals and the file watch steer mirrors under load.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::servers::{PostgresOptions, PostgresServer};
use parhelion::testing::wait::{eventually, free_port};
use serde_json::Value;
use support::{python, run, run_ok};

const TIMEOUT: Duration = Duration::from_secs(60);
/// A change is in force on every core within this time.
const IN_FORCE: Duration = Duration::from_secs(1);

struct Scene {
    primary: PostgresServer,
    _mirror: PostgresServer,
    proxy: ProxyProcess,
    folder: tempfile::TempDir,
}

fn server() -> PostgresServer {
    PostgresServer::start(PostgresOptions {
        databases: vec!["shop".into()],
        ..PostgresOptions::default()
    })
    .unwrap()
}

fn config_text(
    general: &str,
    exposure: f64,
    ports: (u16, u16),
    listen: (SocketAddr, SocketAddr),
) -> String {
    let (address, control) = listen;
    let (primary, mirror) = ports;
    // Two where there are two: what is changed must reach every core.
    let known = core_affinity::get_core_ids().unwrap_or_default();
    let cores: Vec<usize> = known.iter().take(2).map(|core| core.id).collect();
    format!(
        "[general]\ncores = {cores:?}\ncontrol = \"{control}\"\n{general}\n\
         [[listeners]]\naddress = \"{address}\"\nprotocol = \"postgres\"\n\
         [[databases]]\nname = \"shop\"\nhost = \"127.0.0.1\"\nport = {primary}\n\
         [[databases]]\nname = \"next\"\nhost = \"127.0.0.1\"\nport = {mirror}\ndatabase_name = \"shop\"\nuser = \"postgres\"\n\
         [[mirroring]]\nsource_db = \"shop\"\ndestination_db = \"next\"\nexposure = {exposure}\nqueue_length = 100000\n"
    )
}

fn hang_up(proxy: &ProxyProcess) {
    let pid = rustix::process::Pid::from_raw(proxy.pid() as i32).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::HUP).unwrap();
}

impl Scene {
    fn start(general: &str) -> Scene {
        let (primary, mirror) = (server(), server());
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let (address, control) = (local(), local());
        let folder = tempfile::tempdir().unwrap();
        let text = config_text(
            general,
            1.0,
            (primary.port(), mirror.port()),
            (address, control),
        );
        std::fs::write(folder.path().join("p.toml"), text).unwrap();
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command
            .arg("run")
            .arg("--config")
            .arg(folder.path().join("p.toml"));
        let proxy = ProxyProcess::spawn(command, address, control).unwrap();
        Scene {
            primary,
            _mirror: mirror,
            proxy,
            folder,
        }
    }

    /// Rewrites the config file.
    fn edit(&self, from: &str, to: &str) {
        let path = self.folder.path().join("p.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{from} is not in {text}");
        std::fs::write(path, text.replace(from, to)).unwrap();
    }

    fn tool(&self, name: &str, database: &str) -> Command {
        let mut command = Command::new(self.primary.program(name));
        let port = self.proxy.address().port().to_string();
        command.args(["-h", "127.0.0.1", "-p", &port, "-U", "postgres"]);
        match name {
            "pgbench" => command.arg(database),
            _ => command.args(["-X", "-A", "-t", "-d", database]),
        };
        command
    }

    fn admin(&self, sql: &str) -> String {
        run_ok(self.tool("psql", "admin").args(["-c", sql]), b"", TIMEOUT)
    }

    fn ctl(&self, arguments: &[&str]) -> String {
        let mut command = Command::new(env!("CARGO_BIN_EXE_parhelion"));
        let url = format!("http://{}", self.proxy.control());
        run_ok(
            command.args(["ctl", "--url", &url]).args(arguments),
            b"",
            TIMEOUT,
        )
    }

    /// One number of the only mirror.
    fn count(&self, pointer: &str) -> u64 {
        let text = self.proxy.get("/api/mirrors").unwrap();
        let json: Value = serde_json::from_str(&text).unwrap();
        let found = json["mirrors"][0].pointer(pointer);
        found
            .and_then(Value::as_u64)
            .unwrap_or_else(|| panic!("{pointer} in {text}"))
    }

    /// The share of units that were offered, over units seen from now on.
    fn exposed_share(&self) -> f64 {
        // Both from one answer: between two the load goes on.
        let seen = || {
            let text = self.proxy.get("/api/mirrors").unwrap();
            let json: Value = serde_json::from_str(&text).unwrap();
            let ledger = &json["mirrors"][0]["ledger"];
            let count = |name: &str| ledger[name].as_u64().unwrap();
            (count("observed"), count("offered"))
        };
        let before = seen();
        let enough = eventually(TIMEOUT, || {
            let now = seen();
            (now.0 - before.0 > 600).then_some(now)
        });
        let now = enough.expect("pgbench makes no units");
        (now.1 - before.1) as f64 / (now.0 - before.0) as f64
    }
}

#[test]
fn exposure_changes_by_every_surface_within_a_second_under_load_and_counters_keep_their_values() {
    let scene = Scene::start("");
    let direct = scene.primary.port().to_string();
    let mut prepare = Command::new(scene.primary.program("pgbench"));
    run_ok(
        prepare.args([
            "-h",
            "127.0.0.1",
            "-p",
            &direct,
            "-U",
            "postgres",
            "-i",
            "-q",
            "shop",
        ]),
        b"",
        TIMEOUT,
    );
    let load = scene
        .tool("pgbench", "shop")
        .args(["-S", "-n", "-c", "16", "-T", "25", "-R", "1500"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert!(scene.exposed_share() > 0.99);
    let mut observed = scene.count("/ledger/observed");
    let mut step = |what: &str, range: std::ops::RangeInclusive<f64>| {
        let changed = Instant::now();
        let share = loop {
            // The last window begins when the change has to be in force, however long it takes then.
            let is_last = changed.elapsed() >= IN_FORCE;
            let share = scene.exposed_share();
            if is_last || range.contains(&share) {
                break share;
            }
        };
        assert!(range.contains(&share), "{what}: {share}");
        let now = scene.count("/ledger/observed");
        assert!(
            now >= observed,
            "{what}: counters went back from {observed} to {now}"
        );
        observed = now;
    };
    scene.admin("SET mirror_exposure = 0.0");
    step("admin", 0.0..=0.0);
    scene.ctl(&["exposure", "next", "0.5"]);
    step("ctl", 0.35..=0.65);
    scene.edit("exposure = 1\n", "exposure = 0.25\n");
    let answer = scene.ctl(&["reload"]);
    assert!(answer.contains("0.5 -> 0.25"), "{answer}");
    step("reload", 0.12..=0.38);
    scene.edit("exposure = 0.25\n", "exposure = 1.0\n");
    hang_up(&scene.proxy);
    step("SIGHUP", 0.99..=1.0);
    // The mirror leaves and comes back under the same connections.
    scene.edit("[[mirroring]]", "#[[mirroring]]\n[general_]");
    let refused = run(
        Command::new(env!("CARGO_BIN_EXE_parhelion")).args([
            "ctl",
            "--url",
            &format!("http://{}", scene.proxy.control()),
            "reload",
        ]),
        b"",
        TIMEOUT,
    );
    assert!(!refused.status.success());
    let text = String::from_utf8_lossy(&refused.stderr).into_owned();
    assert!(
        text.contains("the old config stays in force") && text.contains("general_"),
        "{text}"
    );
    step("a refused reload", 0.99..=1.0);

    let output = load.wait_with_output().unwrap();
    let (out, errors) = (
        String::from_utf8_lossy(&output.stdout).into_owned(),
        String::from_utf8_lossy(&output.stderr).into_owned(),
    );
    assert!(
        output.status.success() && !errors.contains("error"),
        "{out}\n{errors}"
    );
    assert!(out.contains("number of failed transactions: 0 "), "{out}");
    let status: Value = serde_json::from_str(&scene.proxy.get("/api/status").unwrap()).unwrap();
    let busy_ns = status["cores"][0]["busy_ns"].as_u64().unwrap();
    assert!(
        busy_ns > 10_000_000,
        "thousands of transactions took {busy_ns} ns of the core"
    );
    let log = scene.proxy.log().join("\n");
    for who in [
        "by=admin postgres@",
        "by=ctl 127.0.0.1:",
        "by=signal SIGHUP",
    ] {
        assert!(log.contains(who), "{who} is not in the log:\n{log}");
    }
}

#[test]
fn mirrors_come_and_go_under_open_sessions() {
    let scene = Scene::start("watch_config = true");
    let mut session = support::pg::PgClient::connect(scene.proxy.address(), "shop").0;
    session.query("SELECT 1");
    assert!(
        eventually(TIMEOUT, || (scene.count("/ledger/delivered") == 1)
            .then_some(()))
        .is_some()
    );
    scene.edit(
        "[[mirroring]]",
        "[[databases]]\nname = \"unused\"\nhost = \"127.0.0.1\"\nport = 1\n#",
    );
    scene.edit("source_db", "#source_db");
    scene.edit("destination_db", "#destination_db");
    scene.edit("exposure = 1", "#exposure = 1");
    scene.edit("queue_length", "#queue_length");
    let gone = || scene.admin("SHOW CONFIG").contains("unused").then_some(());
    assert!(
        eventually(TIMEOUT, gone).is_some(),
        "{:?}",
        scene.proxy.log()
    );
    session.query("SELECT 2");
    assert_eq!(
        scene.count("/ledger/observed"),
        1,
        "a mirror that is gone counts nothing"
    );
    for key in [
        "#source_db",
        "#destination_db",
        "#exposure = 1",
        "#queue_length",
    ] {
        scene.edit(key, &key[1..]);
    }
    scene.edit("port = 1\n#", "port = 1\n[[mirroring]]\n");
    let back = || {
        scene
            .admin("SHOW CONFIG")
            .contains("mirroring[shop -> next]")
            .then_some(())
    };
    assert!(
        eventually(TIMEOUT, back).is_some(),
        "{:?}",
        scene.proxy.log()
    );
    session.query("SELECT 3");
    let delivered = || (scene.count("/ledger/delivered") == 2).then_some(());
    assert!(
        eventually(TIMEOUT, delivered).is_some(),
        "{}",
        scene.ctl(&["mirrors"])
    );
    assert!(scene.proxy.log().join("\n").contains("by=file changed"));
}

#[test]
fn the_console_answers_psql_and_the_extended_protocol_of_psycopg() {
    let scene = Scene::start("");
    let mirrors = scene.admin("SHOW MIRRORS");
    assert!(mirrors.starts_with("next|shop|next|1"), "{mirrors}");
    assert!(
        scene
            .admin("SHOW VERSION; SHOW HELP")
            .contains("SHOW DIVERGENCES")
    );
    let session = support::pg::PgClient::connect(scene.proxy.address(), "shop").0;
    let clients = scene.admin("SHOW CLIENTS");
    assert!(
        clients.contains("|shop|postgres|postgres|127.0.0.1:"),
        "{clients}"
    );
    drop(session);
    for (sql, code) in [
        ("SET nothing = 1", "42704"),
        ("SELECT 1", "42601"),
        ("PAUSE nobody", "42704"),
    ] {
        let script = format!("\\set VERBOSITY verbose\n{sql};\n");
        let output = run(&mut scene.tool("psql", "admin"), script.as_bytes(), TIMEOUT);
        let errors = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(
            errors.contains(code) && errors.contains("HINT"),
            "{sql}: {errors}"
        );
    }
    let script = format!(
        "import psycopg\n\
         c = psycopg.connect(host='127.0.0.1', port={}, user='ops', dbname='admin', autocommit=True)\n\
         for binary in (False, True):\n\
         \x20   cur = c.cursor(binary=binary)\n\
         \x20   for _ in range(7):\n\
         \x20       cur.execute('SHOW MIRRORS', prepare=True)\n\
         \x20       row = cur.fetchone()\n\
         \x20       assert row[0] == 'next' and row[3] == 1.0 and row[4] is False and row[5] == 0, row\n\
         c.execute('SET mirror_queue = 77', prepare=True)\n\
         try:\n\
         \x20   c.execute('SHOW MIRRORS %s', ['x'])\n\
         except psycopg.Error as error:\n\
         \x20   print('refused', error.sqlstate)\n\
         print([r for r in c.execute('SHOW POOLS')][0][8])\n",
        scene.proxy.address().port()
    );
    let out = run_ok(Command::new(python()).arg("-c").arg(script), b"", TIMEOUT);
    assert!(
        out.contains("refused") && out.trim_end().ends_with("77"),
        "{out}"
    );
}

#[test]
fn an_admin_of_the_users_file_logs_in_with_a_password_and_nobody_else_does() {
    let scene = Scene::start("");
    // Before: this host is trusted.
    assert!(scene.admin("SHOW VERSION").contains("parhelion"));
    let login = |user: &str, password: &str| {
        let mut command = scene.tool("psql", "admin");
        command.args(["-U", user, "-c", "SHOW VERSION"]);
        run(command.env("PGPASSWORD", password), b"", TIMEOUT)
    };
    let users = "[[users]]\nname = \"ops\"\ndatabase = \"admin\"\npassword = \"pencil\"\n\
                 [[users]]\nname = \"app\"\ndatabase = \"shop\"\npassword = \"pencil\"\n";
    std::fs::write(scene.folder.path().join("users.toml"), users).unwrap();
    scene.admin("RELOAD");
    let welcome = login("ops", "pencil");
    assert!(
        welcome.status.success() && String::from_utf8_lossy(&welcome.stdout).contains("parhelion"),
        "{welcome:?}"
    );
    for (user, password) in [("ops", "wrong"), ("nobody", "pencil"), ("app", "pencil")] {
        let refused = login(user, password);
        let text = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(
            !refused.status.success() && text.contains("password authentication failed"),
            "{user}: {text}"
        );
    }
    assert!(!scene.proxy.log().join("\n").contains("pencil"));
}

#[test]
fn shutdown_over_sql_ends_the_process_well() {
    let mut scene = Scene::start("");
    let started = Instant::now();
    scene.admin("SHUTDOWN");
    let status = scene.proxy.process().wait_exit(TIMEOUT);
    assert!(
        status.is_some_and(|status| status.success()),
        "{:?}",
        scene.proxy.log()
    );
    assert!(started.elapsed() < TIMEOUT);
}

#[test]
fn a_control_token_is_asked_of_everybody() {
    let folder = tempfile::tempdir().unwrap();
    let token = folder.path().join("token");
    std::fs::write(&token, "canary-token\n").unwrap();
    let scene = Scene::start(&format!("control_token_file = {:?}", Path::new(&token)));
    assert!(scene.proxy.get("/api/mirrors").is_err());
    let url = format!("http://{}", scene.proxy.control());
    let mut with = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    let out = run_ok(
        with.args(["ctl", "--url", &url, "config"])
            .env("PARHELION_TOKEN", "canary-token"),
        b"",
        TIMEOUT,
    );
    assert!(
        out.contains("general.control_token") && !out.contains("canary"),
        "{out}"
    );
    assert!(!scene.proxy.log().join("\n").contains("canary"));
}
