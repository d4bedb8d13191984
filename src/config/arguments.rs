//! The rules for a configuration that was made from arguments instead of files.

use std::path::Path;

use super::error::ConfigError;
use super::files;
use super::rules::{self, Place, Places};
use super::secret::Secret;
use super::types::{Config, Cores};

/// A fault of one argument.
pub(crate) fn fault(
    key: &str,
    problem: impl Into<String>,
    way_out: impl Into<String>,
) -> ConfigError {
    ConfigError {
        file: "command line".to_owned(),
        line: None,
        key: key.to_owned(),
        problem: problem.into(),
        way_out: way_out.into(),
    }
}

/// Reads a password file: the secret and a warning, or what is wrong.
pub(crate) fn read_secret(path: &Path) -> Result<(Secret, Option<String>), String> {
    match files::read_secret(path) {
        Ok(read) => {
            let warning = read
                .world_readable
                .then(|| format!("{} can be read by every user; chmod 600 it", path.display()));
            Ok((read.secret, warning))
        }
        Err(error) => Err(format!("cannot read {}: {error}", path.display())),
    }
}

/// What the rules say of it. `keys`: the argument of each database.
pub(crate) fn check(config: &Config, keys: &[&str], cpus: &[usize]) -> Vec<ConfigError> {
    let place = |key: &str| Place {
        file: "command line".to_owned(),
        line: None,
        key: key.to_owned(),
    };
    let of = |database: usize| place(keys.get(database).copied().unwrap_or("--primary"));
    let places = Places {
        control: Some(place("--control")),
        listeners: config.listeners.iter().map(|_| place("--listen")).collect(),
        databases: keys.iter().map(|key| place(key)).collect(),
        auth: Vec::new(),
        mirroring: config.mirroring.iter().map(|m| of(m.destination)).collect(),
        dual_write: config.dual_write.iter().map(|d| of(d.secondary)).collect(),
        users: Vec::new(),
    };
    let mut errors = rules::check(config, &places);
    if let Cores::List(list) = &config.general.cores {
        for (index, cpu) in list.iter().enumerate() {
            if list[..index].contains(cpu) {
                errors.push(fault(
                    "--cores",
                    format!("CPU {cpu} stands there twice"),
                    "name it once",
                ));
            } else if !cpus.contains(cpu) {
                let way_out = format!("choose among {cpus:?}");
                errors.push(fault(
                    "--cores",
                    format!("CPU {cpu} is not available"),
                    way_out,
                ));
            }
        }
    }
    errors
}
