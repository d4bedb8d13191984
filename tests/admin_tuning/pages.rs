//! What the pages for people name is there: commands, other pages, plots.

use clap::{CommandFactory, Parser};
use parhelion::cli::Cli;

use super::{read, tuning};

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
