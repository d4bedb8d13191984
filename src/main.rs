//! The `parhelion` command line.

use parhelion::config;
use parhelion::runtime::{available_cpus, serve};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    tracing_subscriber::fmt().with_writer(std::io::stderr).init();
    let path = std::path::Path::new(&args[3]);
    let config = match config::load(path, None, &available_cpus()) {
        Ok(config) => config,
        Err(errors) => { eprintln!("{errors}"); std::process::exit(2) }
    };
    let files = serve::ConfigFiles { config: Some(path.to_owned()), users: None };
    if let Err(error) = serve::run(config, files) { eprintln!("{error}"); std::process::exit(1) }
}
