//! Image, manifest of Kubernetes and unit of systemd are valid and agree.

use std::path::Path;

use parhelion::config::{Input, parse};

use super::{passes, read, tuning};

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
fn systemd_accepts_the_unit() {
    let folder = tempfile::tempdir().unwrap();
    // It looks for the binary; any will do.
    let unit = read("parhelion.service").replace("/usr/local/bin/parhelion", "/bin/true");
    let path = folder.path().join("parhelion.service");
    std::fs::write(&path, unit).unwrap();
    passes("systemd-analyze", &["verify", path.to_str().unwrap()]);
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
