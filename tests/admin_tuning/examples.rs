//! The example configurations are accepted and run.

use std::net::SocketAddr;
use std::path::Path;

use parhelion::config::{Input, parse};
use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::wait::free_port;

use super::{read, tuning};

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
