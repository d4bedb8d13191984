//! A primary, a mirror and the real proxy between them, configured as a PgDog user would.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::servers::{PostgresOptions, PostgresServer};
use parhelion::testing::wait::{eventually, free_port};
use serde_json::Value;

use super::pg::{PgClient, show};

/// Longest wait for anything that must happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The database on both servers.
pub const SHOP: &str = "shop";

/// What a test changes of the ordinary pair.
#[derive(Default)]
pub struct PairOptions {
    /// Lines of `[general]`.
    pub general: String,
    /// Lines of the first `[[mirroring]]`.
    pub mirroring: String,
    /// Lines of the mirror's `[[databases]]`.
    pub mirror_database: String,
    /// More sections; `{mirror}` stands for the mirror server's port.
    pub more: String,
    /// users.toml, instead of the superuser's entry.
    pub users: Option<String>,
    pub primary: PostgresOptions,
    pub mirror: PostgresOptions,
}

impl PairOptions {
    pub fn general(lines: &str) -> PairOptions {
        PairOptions {
            general: lines.into(),
            ..PairOptions::default()
        }
    }

    pub fn mirroring(lines: &str) -> PairOptions {
        PairOptions {
            mirroring: lines.into(),
            ..PairOptions::default()
        }
    }

    /// The mirror writes down every statement it gets.
    pub fn logged(mut self) -> PairOptions {
        self.mirror.log_statements = true;
        self
    }
}

pub struct Pair {
    pub primary: PostgresServer,
    pub mirror: PostgresServer,
    pub proxy: ProxyProcess,
    pub folder: tempfile::TempDir,
}

impl Pair {
    pub fn new() -> Pair {
        Pair::with(PairOptions::default())
    }

    pub fn with(options: PairOptions) -> Pair {
        let [primary, mirror] = [options.primary.clone(), options.mirror.clone()].map(|mut o| {
            o.databases.push(SHOP.into());
            PostgresServer::start(o).unwrap()
        });
        let folder = tempfile::tempdir().unwrap();
        let [listen, control] = [(); 2].map(|()| free_port().unwrap());
        let text = config(&options, listen, control, primary.port(), mirror.port());
        fs::write(folder.path().join("pgdog.toml"), text).unwrap();
        let users = options.users.unwrap_or_else(|| {
            "[[users]]\nname = \"postgres\"\ndatabase = \"staging_db\"\npassword = \"unasked\"\n"
                .into()
        });
        fs::write(folder.path().join("users.toml"), users).unwrap();
        let address = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
        let proxy = ProxyProcess::spawn(
            command(folder.path(), "run"),
            address(listen),
            address(control),
        )
        .unwrap();
        Pair {
            primary,
            mirror,
            proxy,
            folder,
        }
    }

    /// Runs SQL on both servers, past the proxy.
    pub fn both(&self, sql: &str) {
        self.primary.sql(SHOP, sql).unwrap();
        self.mirror.sql(SHOP, sql).unwrap();
    }

    pub fn client(&self) -> PgClient {
        self.client_with(&[])
    }

    /// A client of `prod` with more startup parameters.
    pub fn client_with(&self, more: &[(&str, &str)]) -> PgClient {
        let mut parameters = vec![("user", "postgres"), ("database", "prod")];
        for (name, value) in more {
            parameters.retain(|(known, _)| known != name);
            parameters.push((name, value));
        }
        PgClient::connect_with(self.proxy.address(), &parameters).0
    }

    /// Replaces a text in the config file.
    pub fn reconfigure(&self, from: &str, to: &str) {
        let path = self.folder.path().join("pgdog.toml");
        let text = fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        fs::write(path, text.replace(from, to)).unwrap();
    }

    /// What the API says of a mirror.
    pub fn api(&self, destination: &str) -> Value {
        let text = self.proxy.get("/api/mirrors").unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        let mut mirrors = value["mirrors"].as_array().unwrap().iter();
        let found = mirrors.find(|mirror| mirror["destination"] == destination);
        found.unwrap_or_else(|| panic!("{text}")).clone()
    }

    pub fn ledger(&self) -> Ledger {
        Ledger::of(&self.api("staging_db"))
    }

    /// Waits until nothing is on its way; the ledger then, which balances.
    pub fn settled(&self) -> Ledger {
        self.settled_at("staging_db")
    }

    pub fn settled_at(&self, destination: &str) -> Ledger {
        let ledger = eventually(PATIENCE, || {
            let ledger = Ledger::of(&self.api(destination));
            (ledger.in_flight == 0).then_some(ledger)
        });
        let Some(ledger) = ledger else {
            panic!(
                "never idle: {:?}\n{}",
                self.api(destination),
                self.proxy.log().join("\n")
            );
        };
        assert!(ledger.balances(), "{ledger:?}");
        ledger
    }

    /// As [`Pair::settled`], and every unit that was offered was delivered without an error.
    pub fn clean(&self) -> Ledger {
        let ledger = self.settled();
        let api = self.api("staging_db");
        assert_eq!(ledger.delivered, ledger.offered, "{api:#}");
        assert_eq!(
            api["errors_total"],
            0,
            "{api:#}\n{}",
            self.mirror.log().unwrap()
        );
        ledger
    }

    /// As [`Pair::clean`], but units may have been dropped.
    pub fn clean_but_dropped(&self) -> Ledger {
        let ledger = self.settled();
        let api = self.api("staging_db");
        assert_eq!(ledger.errored, 0, "{api:#}");
        assert_eq!(api["errors_total"], 0, "{api:#}");
        ledger
    }

    /// A query's answer on the mirror, waited for.
    pub fn mirror_shows(&self, sql: &str, wanted: &str) {
        let mut last = String::new();
        let seen = eventually(PATIENCE, || {
            last = self.mirror.sql(SHOP, sql).unwrap();
            (last == wanted).then_some(())
        });
        assert!(seen.is_some(), "{sql}: {last}, not {wanted}");
    }

    pub fn resident_bytes(&self) -> u64 {
        let text = self.proxy.get("/api/status").unwrap();
        let value: Value = serde_json::from_str(&text).unwrap();
        value["process"]["resident_bytes"].as_u64().unwrap()
    }
}

/// `parhelion <command>` with the files of a folder.
pub fn command(folder: &Path, command: &str) -> Command {
    let mut parhelion = Command::new(env!("CARGO_BIN_EXE_parhelion"));
    parhelion.arg(command);
    parhelion.arg("--config").arg(folder.join("pgdog.toml"));
    parhelion
}

fn config(options: &PairOptions, listen: u16, control: u16, primary: u16, mirror: u16) -> String {
    let core = core_affinity::get_core_ids()
        .and_then(|cores| cores.first().map(|core| core.id))
        .unwrap_or(0);
    let more = options.more.replace("{mirror}", &mirror.to_string());
    let PairOptions {
        general,
        mirroring,
        mirror_database,
        ..
    } = options;
    let cores = match general.contains("cores") {
        true => String::new(),
        false => format!("cores = [{core}]"),
    };
    format!(
        r#"
[general]
host = "127.0.0.1"
port = {listen}
control = "127.0.0.1:{control}"
{cores}
{general}

[[databases]]
name = "prod"
host = "127.0.0.1"
port = {primary}
database_name = "{SHOP}"

[[databases]]
name = "staging_db"
host = "127.0.0.1"
port = {mirror}
database_name = "{SHOP}"
{mirror_database}

[[mirroring]]
source_db = "prod"
destination_db = "staging_db"
{mirroring}
{more}
"#
    )
}

/// The numbers of a mirror's ledger.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub observed: u64,
    pub excluded: u64,
    pub unexposed: u64,
    pub offered: u64,
    pub delivered: u64,
    pub errored: u64,
    pub in_flight: u64,
    pub dropped: u64,
    pub reasons: Value,
}

impl Ledger {
    pub fn of(mirror: &Value) -> Ledger {
        let ledger = &mirror["ledger"];
        let number = |name: &str| ledger[name].as_u64().unwrap();
        Ledger {
            observed: number("observed"),
            excluded: number("excluded"),
            unexposed: number("unexposed"),
            offered: number("offered"),
            delivered: number("delivered"),
            errored: number("errored"),
            in_flight: number("in_flight"),
            dropped: number("dropped_total"),
            reasons: ledger["dropped"].clone(),
        }
    }

    pub fn dropped_for(&self, reason: &str) -> u64 {
        self.reasons[reason].as_u64().unwrap()
    }

    pub fn balances(&self) -> bool {
        self.observed == self.excluded + self.unexposed + self.offered
            && self.offered == self.delivered + self.errored + self.dropped + self.in_flight
    }
}

/// Runs a query that must not fail; the first column of each row.
pub fn ok(client: &mut PgClient, sql: &str) -> Vec<String> {
    let answer = client.query(sql);
    let failed = answer.iter().any(|message| message[0] == b'E');
    assert!(!failed, "{sql}: {}", show(&answer));
    rows(&answer)
}

/// Runs a query that must fail; its SQLSTATE.
pub fn fails(client: &mut PgClient, sql: &str) -> String {
    let answer = client.query(sql);
    sqlstate(&answer).unwrap_or_else(|| panic!("{sql}: {}", show(&answer)))
}

/// The SQLSTATE of the first error in an answer.
pub fn sqlstate(answer: &[Vec<u8>]) -> Option<String> {
    let error = answer.iter().find(|message| message[0] == b'E')?;
    let mut fields = error[5..].split(|byte| *byte == 0);
    let code = fields.find(|field| field.first() == Some(&b'C'))?;
    Some(String::from_utf8_lossy(&code[1..]).into_owned())
}

/// The first column of every DataRow, as text.
pub fn rows(answer: &[Vec<u8>]) -> Vec<String> {
    let rows = answer.iter().filter(|message| message[0] == b'D');
    rows.map(|row| {
        let length = i32::from_be_bytes(row[7..11].try_into().unwrap());
        let length = usize::try_from(length).unwrap_or(0);
        String::from_utf8_lossy(&row[11..11 + length]).into_owned()
    })
    .collect()
}

/// COPY of these lines into `target`, in one piece.
pub fn copy_in(client: &mut PgClient, target: &str, lines: &str) {
    use super::pg::wire;
    client.send(&wire::query(&format!("COPY {target} FROM STDIN")));
    client.until(b'G');
    let mut bytes = wire::message(b'd', lines.as_bytes());
    bytes.extend(wire::message(b'c', b""));
    client.send(&bytes);
    let answer = client.until_ready();
    assert!(sqlstate(&answer).is_none(), "{}", show(&answer));
}

/// The statements in a server's log that contain `part`, in order.
pub fn logged_statements(server: &PostgresServer, part: &str) -> Vec<String> {
    let log = server.log().unwrap();
    let marks = ["statement: ", "execute "];
    let lines = log.lines().filter_map(|line| {
        let at = marks.iter().find_map(|mark| line.find(mark))?;
        Some(line[at..].to_owned())
    });
    lines.filter(|line| line.contains(part)).collect()
}
