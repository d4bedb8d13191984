//! The house's rules about who may know what, held by reading the sources.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::fs;
use std::path::{Path, PathBuf};

/// Every Rust file below a folder of `src`, with its text without comments and test modules.
fn sources(folder: &str) -> Vec<(PathBuf, String)> {
    let mut open = vec![
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .join("src")
            .join(folder),
    ];
    let mut found = Vec::new();
    while let Some(path) = open.pop() {
        if path.is_dir() {
            open.extend(
                fs::read_dir(&path)
                    .unwrap()
                    .map(|entry| entry.unwrap().path()),
            );
        } else if path.extension().is_some_and(|end| end == "rs")
            && !path.file_stem().is_some_and(|stem| stem == "tests")
        {
            let text = fs::read_to_string(&path).unwrap();
            found.push((path, code_of(&text)));
        }
    }
    assert!(!found.is_empty(), "no sources below {folder}");
    found
}

/// The text up to its test module, without line comments.
fn code_of(text: &str) -> String {
    let code = text
        .split("#[cfg(test)]\nmod tests {")
        .next()
        .unwrap_or_default();
    let uncommented = code
        .lines()
        .map(|line| line.split("//").next().unwrap_or_default());
    uncommented.collect::<Vec<_>>().join("\n")
}

fn assert_absent(folder: &str, forbidden: &[&str], why: &str) {
    for (path, code) in sources(folder) {
        for word in forbidden {
            assert!(
                !code.contains(word),
                "{} uses {word:?}: {why}",
                path.display()
            );
        }
    }
}

const IO: &[&str] = &[
    "std::net",
    "std::fs",
    "std::thread",
    "TcpStream",
    "UnixStream",
    "Instant::now",
    "SystemTime",
    "thread_rng",
    "fastrand",
    "rand::",
    "glommio",
    "io_uring",
    "tokio",
    "libc",
];

#[test]
fn protocol_and_mirror_are_sans_io() {
    for folder in ["protocol", "mirror"] {
        assert_absent(
            folder,
            IO,
            "time, randomness and bytes come in as arguments",
        );
    }
}

#[test]
fn knowledge_flows_one_way() {
    let above = [
        "crate::proxy",
        "crate::runtime",
        "crate::control",
        "crate::ring",
    ];
    assert_absent("protocol", &above, "a protocol knows nobody above it");
    assert_absent(
        "protocol",
        &["crate::mirror", "crate::config"],
        "nor beside it",
    );
    assert_absent("mirror", &above, "the engine knows nobody above it");
    assert_absent(
        "mirror",
        &["crate::protocol", "crate::config"],
        "nor a protocol",
    );
    assert_absent(
        "ring",
        &["crate::proxy", "crate::protocol", "crate::mirror"],
        "it knows bytes",
    );
    assert_absent(
        "proxy",
        &["crate::runtime"],
        "the runtime starts it, not the other way round",
    );
}

#[test]
fn unsafe_code_lives_in_the_ring_only() {
    for (path, code) in sources("") {
        let in_ring = path.components().any(|part| part.as_os_str() == "ring");
        let unsafe_block = code.contains("unsafe {") || code.contains("unsafe fn");
        assert!(in_ring || !unsafe_block, "{} is unsafe", path.display());
        let allows = code.contains("allow(unsafe_code)");
        assert!(in_ring || !allows, "{} allows unsafe code", path.display());
    }
}

#[test]
fn executors_are_started_by_the_runtime_only() {
    for (path, code) in sources("") {
        let in_runtime = path.components().any(|part| part.as_os_str() == "runtime");
        assert!(
            in_runtime || !code.contains("LocalExecutorBuilder"),
            "{} starts an executor",
            path.display()
        );
    }
}

/// The proxy spawns through the queues: the driver must see which tasks are ready.
#[test]
fn sessions_spawn_through_the_queues_only() {
    let bypasses = [
        "glommio::spawn",
        "spawn_local",
        "tokio::spawn",
        "std::thread::spawn",
    ];
    assert_absent("proxy", &bypasses, "the driver cannot see such a task");
}
