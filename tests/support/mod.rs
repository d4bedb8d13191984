//! What the integration tests share: the proxy under test, raw clients, the command and query corpora.

// Each test binary uses its own part of this.
#![allow(dead_code)]

pub mod cable;
pub mod dual;
pub mod faults;
pub mod idle;
pub mod ingest;
pub mod pg;
pub mod pg_front;
pub mod pg_pair;
pub mod plot;
pub mod pool_script;
pub mod proxy;
pub mod redis_corpus;
pub mod resp;
pub mod tls;

use std::path::PathBuf;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use parhelion::testing::wait::eventually;

/// The Python of the virtual environment that `tests/setup` makes.
pub fn python() -> PathBuf {
    let python = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/venv/bin/python");
    assert!(
        python.exists(),
        "{} is missing: run tests/setup",
        python.display()
    );
    python
}

/// Runs a client program to its end; fails the test when it takes longer than `timeout`.
pub fn run(command: &mut Command, input: &[u8], timeout: Duration) -> Output {
    use std::io::{Read, Write};
    let mut child = command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap_or_else(|error| panic!("{command:?}: {error}: run tests/setup"));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&input));
    let mut pipes: [Box<dyn Read + Send>; 2] = [
        Box::new(child.stdout.take().unwrap()),
        Box::new(child.stderr.take().unwrap()),
    ];
    let readers = pipes.each_mut().map(|pipe| {
        let mut pipe = std::mem::replace(pipe, Box::new(std::io::empty()));
        std::thread::spawn(move || {
            let mut bytes = Vec::new();
            pipe.read_to_end(&mut bytes).map(|_| bytes)
        })
    });
    let status = eventually(timeout, || child.try_wait().unwrap());
    if status.is_none() {
        let _ = child.kill();
    }
    let [stdout, stderr] = readers.map(|reader| reader.join().unwrap().unwrap());
    let _ = writer.join().unwrap();
    let Some(status) = status else {
        panic!(
            "{command:?} took longer than {timeout:?}\n{}",
            String::from_utf8_lossy(&stderr)
        );
    };
    Output {
        status,
        stdout,
        stderr,
    }
}

/// Like [`run`], and the program must end well.
pub fn run_ok(command: &mut Command, input: &[u8], timeout: Duration) -> String {
    let output = run(command, input, timeout);
    let (stdout, stderr) = (
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr),
    );
    assert!(
        output.status.success(),
        "{command:?}: {}\n{stdout}\n{stderr}",
        output.status
    );
    stdout.into_owned()
}
