//! `tuning/host`: reports, sets, and takes back what it has set.

use std::path::Path;

use super::{passes, tuning};

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
