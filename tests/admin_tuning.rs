//! What lies under tuning/ agrees with the program: metrics page and man page here; dashboard and alerts, what deploys it, the
//! host's script, the example configurations and the other pages each in a file of their own.
//!
//! `PARHELION_BLESS=1 cargo test --test admin_tuning` writes the generated pages anew.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

#[path = "admin_tuning/deployment.rs"]
mod deployment;
#[path = "admin_tuning/examples.rs"]
mod examples;
#[path = "admin_tuning/host.rs"]
mod host;
#[path = "admin_tuning/monitoring.rs"]
mod monitoring;
#[path = "admin_tuning/pages.rs"]
mod pages;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use clap::CommandFactory;
use parhelion::cli::Cli;
use parhelion::metrics::{COMPAT_TABLE, Kind, Metric, TABLE};

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

#[test]
fn shellcheck_accepts_the_scripts() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    for script in ["tuning/host", "tests/run", "tests/setup", ".ci/run"] {
        passes("shellcheck", &[root.join(script).to_str().unwrap()]);
    }
}
