//! What lies under tuning/ agrees with the program: metrics page, dashboard, alerts, man page, example of Kubernetes.
//!
//! `PARHELION_BLESS=1 cargo test --test admin_tuning` writes the generated pages anew.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::path::{Path, PathBuf};

use clap::{CommandFactory, Parser};
use parhelion::cli::Cli;
use parhelion::config::{Input, parse};
use parhelion::metrics::{COMPAT_TABLE, Kind, Metric, TABLE};
use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::wait::free_port;

fn tuning(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("tuning")
        .join(name)
}

fn read(name: &str) -> String {
    std::fs::read_to_string(tuning(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The generated page is the one in the tree, or becomes it.
fn is_current(name: &str, generated: &str) {
    if std::env::var_os("PARHELION_BLESS").is_some() {
        std::fs::write(tuning(name), generated).unwrap();
    }
    assert!(
        read(name) == generated,
        "tuning/{name} is out of date: PARHELION_BLESS=1 cargo test --test admin_tuning"
    );
}

/// The names under which a metric's samples stand in the Prometheus text.
fn samples(metric: &Metric) -> Vec<String> {
    let with = |suffix: &str| format!("{}{suffix}", metric.name);
    match metric.kind {
        Kind::Counter => vec![with("_total")],
        Kind::Gauge => vec![with("")],
        Kind::Info => vec![with("_info")],
        Kind::Histogram => vec![with("_bucket"), with("_sum"), with("_count")],
    }
}

#[test]
fn the_metrics_page_is_made_from_the_table() {
    let mut page = String::from(
        "# Metrics\n\n\
         `GET /metrics` on the control port: Prometheus text, or OpenMetrics if the scraper accepts it. Counters begin at 0 with \
         the process. This page is made from the table in `src/metrics/table/`.\n",
    );
    for (title, table) in [
        ("Always", TABLE),
        (
            "With `compat_metrics = true`: the names of the proxy that Redis users come from",
            COMPAT_TABLE,
        ),
    ] {
        write!(
            page,
            "\n## {title}\n\n| name | type | labels | meaning |\n|---|---|---|---|\n"
        )
        .unwrap();
        for metric in table {
            let name = match metric.kind {
                Kind::Histogram => metric.name.to_owned(),
                _ => samples(metric).remove(0),
            };
            let kind = format!("{:?}", metric.kind).to_lowercase();
            let labels = metric.labels.join(", ");
            let help = metric.help.replace('|', "\\|");
            writeln!(page, "| `{name}` | {kind} | {labels} | {help} |").unwrap();
        }
    }
    is_current("metrics.md", &page);
}

/// A command of a command: its arguments behind its name, and what each means.
fn inner_command(outer: &str, inner: &clap::Command) -> String {
    let (mut line, mut lines) = (format!("{outer} {}", inner.get_name()), String::new());
    for argument in inner.get_arguments() {
        let value = argument.get_value_names().unwrap_or_default().first();
        let value = value.map_or_else(|| argument.get_id().to_string(), ToString::to_string);
        let name = match argument.get_long() {
            Some("help") => continue,
            Some(long) => format!("--{long} {value}"),
            None => value,
        };
        let open = if argument.is_required_set() {
            ["", ""]
        } else {
            ["[", "]"]
        };
        write!(line, " {}{name}{}", open[0], open[1]).unwrap();
        let help = argument
            .get_help()
            .map(ToString::to_string)
            .unwrap_or_default();
        writeln!(lines, ".br\n\\fI{name}\\fR: {help}").unwrap();
    }
    let about = inner
        .get_about()
        .map(ToString::to_string)
        .unwrap_or_default();
    // A line that begins with a quote is a command to the typesetter.
    let text = format!(".TP\n\\fB{line}\\fR\n{about}\n{lines}");
    text.replace('-', "\\-").replace("\n'", "\n\\&'")
}

#[test]
fn the_man_page_is_made_from_the_command_line() {
    let mut page = Vec::new();
    let command = Cli::command();
    clap_mangen::Man::new(command.clone())
        .render(&mut page)
        .unwrap();
    for sub in command.get_subcommands() {
        let name = sub.get_name().to_owned();
        page.extend(format!(".SH \"PARHELION {}\"\n", name.to_uppercase()).bytes());
        let sub = sub.clone().bin_name(format!("parhelion {name}"));
        let man = clap_mangen::Man::new(sub.clone());
        let mut part = Vec::new();
        man.render_description_section(&mut part).unwrap();
        man.render_options_section(&mut part).unwrap();
        if sub.has_subcommands() {
            for inner in sub.get_subcommands() {
                part.extend(inner_command(&name, inner).bytes());
            }
        }
        // A section of its own inside the page becomes a part of it.
        let part = String::from_utf8(part).unwrap().replace(".SH ", ".SS ");
        page.extend(part.bytes());
    }
    let page = String::from_utf8(page).unwrap();
    assert!(page.contains("exposure NAME EXPOSURE") && page.contains("PARHELION_TOKEN"));
    is_current("parhelion.1", &page);
}

/// Every `parhelion_…` name and, behind it, the label names in braces.
fn uses(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("parhelion_") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "_/-".contains(c)) {
            continue;
        }
        let rest = &text[at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let mut labels = Vec::new();
        if let Some(body) = rest[end..].strip_prefix('{') {
            let body = body.split('}').next().unwrap();
            let names = body
                .split(',')
                .filter_map(|part| part.split(['=', '!', '~']).next());
            labels = names
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
        }
        found.push((rest[..end].to_owned(), labels));
    }
    found
}

#[test]
fn dashboard_alerts_and_runbook_use_metrics_and_labels_that_exist() {
    for name in ["grafana.json", "alerts.yaml", "runbook.md"] {
        let text = read(name).replace("\\\"", "\"");
        let uses = uses(&text);
        assert!(!uses.is_empty(), "{name}");
        for (used, labels) in uses {
            let metric = TABLE.iter().find(|metric| {
                samples(metric).contains(&used) || metric.name == used && name == "runbook.md"
            });
            let Some(metric) = metric else {
                panic!("tuning/{name}: there is no metric {used}");
            };
            for label in labels {
                assert!(
                    metric.labels.contains(&label.as_str()),
                    "tuning/{name}: {used} has no label {label}"
                );
            }
        }
    }
    let grafana: serde_json::Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let ids: Vec<i64> = grafana["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["id"].as_i64().unwrap())
        .collect();
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "panel ids are unique"
    );
    for alert in [
        "ParhelionProductionAtRisk",
        "ParhelionMirrorLying",
        "ParhelionDivergence",
    ] {
        assert!(read("alerts.yaml").contains(alert));
    }
}

#[test]
fn the_config_of_the_kubernetes_manifest_is_valid() {
    let manifest = read("kubernetes/parhelion.yaml");
    let body = manifest.split_once("parhelion.toml: |\n").unwrap().1;
    let lines = body.lines().take_while(|line| line.starts_with("    "));
    // The secrets lie in the cluster; without its token the port may be on loopback only.
    let text: String = lines
        .filter(|line| !line.contains("_file = "))
        .map(|line| {
            format!(
                "{}\n",
                line.trim_start().replace("0.0.0.0:9191", "127.0.0.1:9191")
            )
        })
        .collect();
    let input = Input {
        file: Path::new("parhelion.toml"),
        text: &text,
        users: None,
        cpus: &[0, 1],
    };
    parse(&input).unwrap_or_else(|errors| panic!("{errors}"));
}

/// What allows io_uring, and who runs: the same in the image, the manifest and the unit.
#[test]
fn image_manifest_and_unit_agree() {
    let [image, manifest, unit] = [
        "Dockerfile",
        "kubernetes/parhelion.yaml",
        "parhelion.service",
    ]
    .map(read);
    let filter = unit
        .lines()
        .find(|line| line.starts_with("SystemCallFilter="));
    for call in ["io_uring_setup", "io_uring_enter", "io_uring_register"] {
        assert!(
            image.contains(&format!("\"{call}\"")),
            "{call} in the image's profile"
        );
        assert!(filter.unwrap().contains(call), "{call} in the unit");
    }
    let user = image
        .lines()
        .find_map(|line| line.strip_prefix("USER "))
        .unwrap();
    let (user, group) = user.split_once(':').unwrap();
    assert!(manifest.contains(&format!("runAsUser: {user}\n")));
    assert!(manifest.contains(&format!("fsGroup: {group}\n")));
    assert!(image.contains("parhelion-seccomp.json"));
    assert!(manifest.contains("localhostProfile: parhelion-seccomp.json"));
    assert!(manifest.contains("readOnlyRootFilesystem: true") && image.contains("--read-only"));
    let stop = "terminationGracePeriodSeconds: 45";
    assert!(manifest.contains(stop) && unit.contains("TimeoutStopSec=45s"));
}

#[test]
fn the_host_script_reports_and_names_its_reasons() {
    let script = tuning("host");
    let output = std::process::Command::new("bash")
        .arg(&script)
        .arg("--check")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(matches!(output.status.code(), Some(0 | 1)), "{text}");
    assert!(
        text.contains("io_uring_disabled") && text.contains("memlock"),
        "{text}"
    );
    let usage = std::process::Command::new("bash")
        .arg(&script)
        .output()
        .unwrap();
    assert_eq!(usage.status.code(), Some(2));
}

/// Runs a program of the machine, or says loudly that it is missing and nothing was checked.
fn tool(name: &str, args: &[&str]) -> Option<std::process::Output> {
    match std::process::Command::new(name).args(args).output() {
        Ok(output) => Some(output),
        Err(error) => {
            eprintln!("\n*** SKIPPED: {name} {}: {error} ***\n", args.join(" "));
            None
        }
    }
}

fn passes(name: &str, args: &[&str]) {
    let Some(output) = tool(name, args) else {
        return;
    };
    let text = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(output.status.success(), "{name} {args:?}\n{text}");
}

#[test]
fn promtool_accepts_the_alerts_and_what_they_do() {
    let rules = tuning("alerts.yaml");
    passes("promtool", &["check", "rules", rules.to_str().unwrap()]);
    let tests = tuning("alerts_test.yaml");
    passes("promtool", &["test", "rules", tests.to_str().unwrap()]);
}

#[test]
fn shellcheck_accepts_the_scripts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for script in ["tuning/host", "tests/run", "tests/setup", ".ci/run"] {
        passes("shellcheck", &[root.join(script).to_str().unwrap()]);
    }
}

#[test]
fn systemd_accepts_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    // It looks for the binary; any will do.
    let unit = read("parhelion.service").replace("/usr/local/bin/parhelion", "/bin/true");
    let path = folder.path().join("parhelion.service");
    std::fs::write(&path, unit).unwrap();
    passes("systemd-analyze", &["verify", path.to_str().unwrap()]);
}

/// What tuning/host says of a copy of /proc and /sys, and whether it is content.
fn tuned(root: &Path, mode: &str, cpus: &str) -> (String, bool) {
    let output = std::process::Command::new("bash")
        .arg(tuning("host"))
        .args([mode, "--cpus", cpus, "--nic", "eth0"])
        .env("TUNING_ROOT", root)
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    (text, output.status.success())
}

/// The interrupts of a virtio interface bear its device's name; so the device is asked, not /proc/interrupts.
#[test]
fn the_host_script_finds_the_interrupts_of_a_virtio_interface() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let write = |path: &str, text: &str| {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("sys/class/net/eth0/queues/rx-0/rps_cpus", "c");
    write("sys/devices/pci0/virtio2/uevent", "");
    for irq in ["38", "39"] {
        write(&format!("sys/devices/pci0/msi_irqs/{irq}"), "msix");
        write(&format!("proc/irq/{irq}/smp_affinity_list"), "0-3");
    }
    write("proc/interrupts", " 38: 1 2 PCI virtio2-input.0\n");
    let device = root.join("sys/class/net/eth0/device");
    std::os::unix::fs::symlink(root.join("sys/devices/pci0/virtio2"), device).unwrap();
    let (text, _) = tuned(root, "--apply", "2-3");
    for irq in ["38", "39"] {
        let path = format!("proc/irq/{irq}/smp_affinity_list");
        let now = std::fs::read_to_string(root.join(path)).unwrap();
        assert_eq!(now, "2-3", "{text}");
    }
}

#[test]
fn what_the_host_script_sets_its_undo_takes_back() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path();
    let files = [
        ("proc/sys/net/core/somaxconn", "128", "4096"),
        ("proc/sys/vm/swappiness", "60", "1"),
        (
            "proc/sys/net/ipv4/ip_local_port_range",
            "32768\t60999",
            "10240 65535",
        ),
        ("sys/class/net/eth0/queues/rx-0/rps_cpus", "00", "0000000c"),
        // As wanted already: kernels write masks with and without the zeros in front.
        ("sys/class/net/eth0/queues/rx-1/rps_cpus", "c", "c"),
        (
            "sys/class/net/eth0/queues/tx-0/xps_cpus",
            "00000000,0000000c",
            "00000000,0000000c",
        ),
        ("proc/irq/24/smp_affinity_list", "0-3", "2-3"),
        ("proc/irq/25/smp_affinity_list", "0-3", "0-3"),
        ("proc/sys/fs/nr_open", "2000000", "2000000"),
    ];
    for (path, before, _) in files {
        let path = root.join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, before).unwrap();
    }
    let interrupts = " 24: 1 2 PCI eth0-TxRx-0\n 25: 1 2 PCI veth0\n";
    std::fs::write(root.join("proc/interrupts"), interrupts).unwrap();
    let host = |mode: &str| tuned(root, mode, "3,2").0;
    let holds = |which: fn(&(&'static str, &'static str, &'static str)) -> &'static str| {
        for file in &files {
            let now = std::fs::read_to_string(root.join(file.0)).unwrap();
            let words = |text: &str| text.split_whitespace().collect::<Vec<_>>().join(" ");
            assert_eq!(words(&now), words(which(file)), "{}", file.0);
        }
    };
    for mode in ["--check", "--dry-run"] {
        let text = host(mode);
        assert!(text.contains("somaxconn"), "{text}");
        holds(|file| file.1);
    }
    let (text, done) = tuned(root, "--apply", "3,2");
    // What only a unit file can set does not make it fail.
    assert!(done, "{text}");
    holds(|file| file.2);
    let again = host("--apply");
    assert!(
        !again.contains("\nset ") && !again.contains("undo"),
        "{again}"
    );
    let (_, undo) = text.split_once("# To undo it, as root:\n").unwrap();
    passes("bash", &["-c", undo]);
    holds(|file| file.1);
}

#[test]
fn every_example_configuration_is_accepted_without_a_warning() {
    let mut seen = Vec::new();
    for entry in std::fs::read_dir(tuning("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        // The users of PgDog's example have a test of their own.
        if !name.ends_with(".toml") || matches!(name.as_str(), "users.toml" | "pgdog.toml") {
            continue;
        }
        let text = read(&name);
        let input = Input {
            file: Path::new(&name),
            text: &text,
            users: None,
            cpus: &[0, 1],
        };
        let loaded = parse(&input).unwrap_or_else(|errors| panic!("{name}: {errors}"));
        assert!(loaded.warnings.is_empty(), "{name}: {:?}", loaded.warnings);
        assert!(text.starts_with("# "), "{name} says first what it is for");
        seen.push(name);
    }
    for wanted in ["one-core", "many-cores", "latency", "throughput"] {
        assert!(seen.contains(&format!("{wanted}.toml")), "{wanted}");
    }
}

/// With the ports, the host's CPUs and the databases of this machine: the rest is as it stands.
#[test]
fn every_example_configuration_starts_and_ends_well() {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(tuning("")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if !name.ends_with(".toml") || name == "users.toml" {
            continue;
        }
        let local = || SocketAddr::from(([127, 0, 0, 1], free_port().unwrap()));
        let (address, control) = (local(), local());
        let mut text = String::new();
        for line in read(&name).lines() {
            let line = match line.split(' ').next() {
                Some("cores") if line.contains('[') => "cores = [0]".to_owned(),
                Some("address") => format!("address = \"{address}\""),
                Some("port") if line == "port = 6432" => format!("port = {}", address.port()),
                Some("control") => String::new(),
                Some("[general]") => format!("[general]\ncontrol = \"{control}\""),
                _ => line.to_owned(),
            };
            text += &line;
            text.push('\n');
        }
        let file = folder.path().join(&name);
        std::fs::write(&file, text).unwrap();
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_parhelion"));
        command.arg("run").arg("--config").arg(&file);
        if name == "pgdog.toml" {
            command.arg("--users").arg(tuning("users.toml"));
        }
        let mut proxy = ProxyProcess::spawn(command, address, control)
            .unwrap_or_else(|error| panic!("{name}: {error}"));
        let ended = proxy.terminate();
        assert!(ended.is_some_and(|status| status.success()), "{name}");
    }
}

#[test]
fn the_readme_names_every_command_and_leads_to_every_page() {
    let readme = std::fs::read_to_string(tuning("../README.md")).unwrap();
    for command in Cli::command().get_subcommands() {
        let name = command.get_name();
        assert!(
            readme.contains(&format!("parhelion {name}")) || name == "demo",
            "{name}"
        );
    }
    assert!(readme.contains("-- demo"));
    for entry in std::fs::read_dir(tuning("")).unwrap() {
        let name = entry.unwrap().file_name().to_string_lossy().into_owned();
        // What tests the alerts, and pictures that their pages show.
        let is_inner = name == "alerts_test.yaml" || name == "plots";
        assert!(
            is_inner || readme.contains(&format!("tuning/{name}")),
            "{name}"
        );
    }
}

/// The commands that a page of ours shows: in blocks and in code spans.
fn shown_commands(page: &str) -> Vec<String> {
    let page = page.replace("\\\n", " ");
    let mut found = Vec::new();
    let mut is_block = false;
    for line in page.lines() {
        if line.trim_start().starts_with("```") {
            is_block = !is_block;
        } else if is_block {
            // A comment, not the '*' of a name.
            let line = line.split(" #").next().unwrap();
            found.extend(line.split(" && ").map(|part| part.trim().to_owned()));
        } else {
            found.extend(line.split('`').skip(1).step_by(2).map(str::to_owned));
        }
    }
    let is_ours = |text: &String| text.starts_with("parhelion ") || text.starts_with("ctl ");
    // "…" and capital words stand for something.
    found.retain(|text| is_ours(text) && !text.contains('…') && !text.contains("COMMAND"));
    found
}

#[test]
fn every_command_that_the_pages_show_is_one() {
    let mut seen = Vec::new();
    for page in [
        "../README.md",
        "../SECURITY.md",
        "runbook.md",
        "commands.md",
        "postgres.md",
        "benchmarks.md",
    ] {
        for shown in shown_commands(&read(page)) {
            let line = shown.strip_prefix("parhelion ").unwrap_or(&shown);
            let line = line.replace("$(pidof parhelion)", "1");
            let words = line.split_whitespace().map(|word| word.trim_matches('\''));
            let parsed = Cli::try_parse_from(std::iter::once("parhelion").chain(words));
            if let Err(error) = parsed {
                // `ctl exposure` alone names the command; `--help` is one.
                use clap::error::ErrorKind as Kind;
                let is_name = matches!(
                    error.kind(),
                    Kind::DisplayHelp
                        | Kind::DisplayHelpOnMissingArgumentOrSubcommand
                        | Kind::MissingRequiredArgument
                        | Kind::MissingSubcommand
                );
                assert!(is_name, "{page}: {shown}\n{error}");
            }
            seen.push(shown);
        }
    }
    for wanted in [
        "ctl exposure next 0.01",
        "ctl changes",
        "report --out soak.html",
    ] {
        let wanted = format!("parhelion {wanted}");
        assert!(seen.contains(&wanted), "{wanted}: {seen:?}");
    }
    assert!(seen.len() > 30, "{}: {seen:?}", seen.len());
}

/// Each query of the dashboard as a rule of its own, which promtool can read.
#[test]
fn promtool_accepts_the_queries_of_the_dashboard() {
    fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
            serde_json::Value::Object(fields) => {
                let query = fields.get("expr").and_then(|query| query.as_str());
                found.extend(query.map(|query| query.replace("$__rate_interval", "5m")));
                fields.values().for_each(|field| queries(field, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    queries(
        &serde_json::from_str(&read("grafana.json")).unwrap(),
        &mut found,
    );
    assert!(found.len() > 20, "{}", found.len());
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, query) in found.iter().enumerate() {
        let query = serde_json::to_string(query).unwrap();
        writeln!(rules, "      - record: query:{at}\n        expr: {query}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dashboard.yaml");
    std::fs::write(&path, rules).unwrap();
    passes("promtool", &["check", "rules", path.to_str().unwrap()]);
}

#[test]
fn the_schemas_of_kubernetes_accept_the_manifest() {
    let validator = tuning("../target/venv/bin/kubernetes-validate");
    let manifest = tuning("kubernetes/parhelion.yaml");
    passes(
        validator.to_str().unwrap(),
        &["--strict", manifest.to_str().unwrap()],
    );
}

#[test]
fn the_benchmarks_page_names_files_and_plots_that_exist_or_are_made() {
    let page = read("benchmarks.md");
    for name in ["one-core", "many-cores", "latency", "throughput"] {
        assert!(page.contains(&format!("{name}.toml")), "{name}");
    }
    for name in ["clients", "pipeline", "value-size", "mirrors", "cores"] {
        assert!(page.contains(&format!("scale-{name}.svg")), "{name}");
    }
}
