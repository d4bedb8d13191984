//! A host that withholds io_uring is named in one line, and one whose resolver hangs holds up nobody who needs no name.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::{SocketAddr, UdpSocket};
use std::process::Command;
use std::time::{Duration, Instant};

use parhelion::testing::proxy::ProxyProcess;
use parhelion::testing::servers::{RedisOptions, RedisServer};
use parhelion::testing::wait::{eventually, free_port};
use support::faults::{PATIENCE, status};
use support::resp::{RespClient, encode};
use support::run;

/// Runs a program for which `io_uring_setup` fails as a seccomp profile or the sysctl makes it fail: the error number, then
/// the program and its arguments.
const WITHOUT_IO_URING: &str = r"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
LOAD, EQUAL, RETURN, IO_URING_SETUP = 0x20, 0x15, 0x06, 425
code = [(LOAD, 0, 0, 0), (EQUAL, 0, 1, IO_URING_SETUP), (RETURN, 0, 0, 0x00050000 | int(sys.argv[1])), (RETURN, 0, 0, 0x7fff0000)]
filters = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *step) for step in code))
class Program(ctypes.Structure):
    _fields_ = [('length', ctypes.c_ushort), ('filters', ctypes.c_void_p)]
program = Program(len(code), ctypes.addressof(filters))
assert libc.prctl(38, 1, 0, 0, 0) == 0
assert libc.prctl(22, 2, ctypes.byref(program), 0, 0) == 0
os.execv(sys.argv[2], sys.argv[2:])
";

#[test]
fn a_kernel_that_withholds_io_uring_is_named_with_the_way_out() {
    // Docker's profile answers the one, those of Podman, containerd and systemd the other: neither is the kernel's fault.
    for (errno, said) in [(1, "seccomp filter"), (38, "seccomp filter")] {
        let mut command = Command::new(support::python());
        command
            .args(["-c", WITHOUT_IO_URING, &errno.to_string()])
            .arg(env!("CARGO_BIN_EXE_parhelion"))
            .args([
                "redis",
                "--listen",
                "127.0.0.1:0",
                "--primary",
                "127.0.0.1:1",
            ])
            .args(["--control", "off"]);
        let out = run(&mut command, b"", Duration::from_secs(20));
        let text = String::from_utf8_lossy(&out.stderr);
        assert_eq!(out.status.code(), Some(1), "{text}");
        assert!(text.contains("io_uring") && text.contains(said), "{text}");
        assert!(!text.contains("panicked"), "{text}");
    }
}

/// A proxy whose system resolver asks a name server that never answers; `None` without the right to mount.
fn with_a_dead_name_server(
    config: &str,
    address: SocketAddr,
    control: SocketAddr,
) -> Option<(ProxyProcess, UdpSocket, tempfile::TempDir)> {
    // On an address of its own: nobody else listens there, and what it is asked is its record.
    let silent = UdpSocket::bind("127.0.0.53:53")
        .or_else(|_| UdpSocket::bind("127.0.0.77:53"))
        .ok()?;
    silent.set_read_timeout(Some(PATIENCE)).unwrap();
    let folder = tempfile::tempdir().unwrap();
    let resolv = folder.path().join("resolv.conf");
    let server = silent.local_addr().unwrap().ip();
    std::fs::write(
        &resolv,
        format!("nameserver {server}\noptions timeout:5 attempts:2\n"),
    )
    .unwrap();
    let file = folder.path().join("parhelion.toml");
    std::fs::write(&file, config).unwrap();
    let script = format!(
        "mount --bind {} /etc/resolv.conf && exec \"$@\"",
        resolv.display()
    );
    let allowed = Command::new("unshare")
        .args(["--mount", "true"])
        .status()
        .is_ok_and(|status| status.success());
    if !allowed {
        return None;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", &script, "sh"])
        .arg(env!("CARGO_BIN_EXE_parhelion"))
        .args(["run", "--config"])
        .arg(&file);
    let proxy = ProxyProcess::spawn(command, address, control).unwrap();
    Some((proxy, silent, folder))
}

#[test]
fn a_name_server_that_never_answers_holds_up_only_who_needs_the_name() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let [address, other, control] =
        [(); 3].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())));
    let core = core_affinity::get_core_ids().unwrap()[0].id;
    let config = format!(
        "[general]\ncores = [{core}]\ncontrol = \"{control}\"\nconnect_timeout = \"1s\"\n\
         [[listeners]]\naddress = \"{address}\"\nprotocol = \"redis\"\ndatabase = \"here\"\n\
         [[listeners]]\naddress = \"{other}\"\nprotocol = \"redis\"\ndatabase = \"lost\"\n\
         [[databases]]\nname = \"here\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n\
         [[databases]]\nname = \"lost\"\nprotocol = \"redis\"\nhost = \"twin.example.com\"\nport = 6379\n\
         [[databases]]\nname = \"twin\"\nprotocol = \"redis\"\nhost = \"mirror.example.com\"\nport = 6379\n\
         [[mirroring]]\nsource_db = \"here\"\ndestination_db = \"twin\"\n",
        server.port()
    );
    let Some((proxy, silent, _folder)) = with_a_dead_name_server(&config, address, control) else {
        eprintln!(
            "SKIPPED: no mount namespace or port 53 without root; slow name servers are not tested"
        );
        return;
    };
    let mut settled = RespClient::connect(address);
    assert_eq!(settled.call(&["SET", "k", "v"]), b"+OK\r\n");
    let began = Instant::now();
    let mut lost = RespClient::connect(other);
    lost.send(&encode(&["PING"]));
    let asked = silent.recv_from(&mut [0; 512]);
    assert!(asked.is_ok(), "the name server was not asked");
    let (mut calls, mut slowest) = (0, Duration::ZERO);
    // New connections and old ones while names are being waited for.
    while began.elapsed() < Duration::from_secs(3) {
        let call = Instant::now();
        assert_eq!(settled.call(&["GET", "k"]), b"$1\r\nv\r\n");
        assert_eq!(RespClient::connect(address).call(&["PING"]), b"+PONG\r\n");
        slowest = slowest.max(call.elapsed());
        calls += 1;
    }
    println!("{calls} calls beside names that nobody resolves, slowest {slowest:?}");
    assert!(slowest < Duration::from_secs(1), "{slowest:?}");
    let answer = lost.rest().unwrap();
    assert!(
        answer.is_empty() || answer.starts_with(b"-"),
        "{}",
        answer.escape_ascii()
    );
    // It was given up after `connect_timeout`, not after the resolver's ten seconds.
    assert!(
        began.elapsed() < Duration::from_secs(9),
        "{:?}",
        began.elapsed()
    );
    let told = eventually(PATIENCE, || {
        let log = proxy.log().join("\n");
        log.contains("not resolved in time").then_some(())
    });
    assert!(told.is_some(), "{:?}", proxy.log());
    assert!(status(control)["totals"]["accepted"].as_u64().unwrap() > 2);
}

/// As the systemd unit runs it: another user, no capabilities, no way to get any, nothing on disk to be written to.
const WITHOUT_RIGHTS: &str = r#"
mount --make-rprivate / && mount -o remount,bind,ro / || exit 77
for at in /tmp /var /dev/shm "$1"; do
    if mountpoint -q "$at"; then mount -o remount,bind,ro "$at" || exit 77; fi
done
shift
exec setpriv --reuid=65534 --regid=65534 --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all "$@"
"#;

#[test]
fn a_read_only_root_and_a_user_without_rights_are_enough() {
    let server = RedisServer::start(RedisOptions::default()).unwrap();
    let [address, control] =
        [(); 2].map(|()| SocketAddr::from(([127, 0, 0, 1], free_port().unwrap())));
    let folder = tempfile::tempdir().unwrap();
    let [binary, file] = ["parhelion", "parhelion.toml"].map(|name| folder.path().join(name));
    // Where anybody may read them, as in /usr/local/bin and /etc.
    std::fs::copy(env!("CARGO_BIN_EXE_parhelion"), &binary).unwrap();
    let core = core_affinity::get_core_ids().unwrap()[0].id;
    let config = format!(
        "[general]\ncores = [{core}]\ncontrol = \"{control}\"\n\
         [[listeners]]\naddress = \"{address}\"\nprotocol = \"redis\"\ndatabase = \"here\"\n\
         [[databases]]\nname = \"here\"\nprotocol = \"redis\"\nhost = \"127.0.0.1\"\nport = {}\n",
        server.port()
    );
    std::fs::write(&file, &config).unwrap();
    let readable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(folder.path(), readable).unwrap();
    let allowed = Command::new("unshare")
        .args([
            "--mount",
            "setpriv",
            "--reuid=65534",
            "--clear-groups",
            "true",
        ])
        .status()
        .is_ok_and(|status| status.success());
    if !allowed {
        eprintln!("SKIPPED: no mount namespace without root; a read-only root is not tested");
        return;
    }
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c"])
        .args([WITHOUT_RIGHTS, "sh"])
        .arg(folder.path())
        .arg(&binary)
        .args(["run", "--config"])
        .arg(&file);
    let mut proxy = ProxyProcess::spawn(command, address, control).unwrap();
    let proc = |name: &str| std::fs::read_to_string(format!("/proc/{}/{name}", proxy.pid()));
    let rights = proc("status").unwrap();
    for line in [
        "Uid:\t65534\t65534\t65534\t65534",
        "CapEff:\t0000000000000000",
        "CapBnd:\t0000000000000000",
        "NoNewPrivs:\t1",
    ] {
        assert!(rights.contains(line), "{line}: {rights}");
    }
    let mounts = proc("mounts").unwrap();
    let root = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(1) == Some("/"));
    let options = root.and_then(|line| line.split(' ').nth(3)).unwrap();
    assert!(options.split(',').any(|option| option == "ro"), "{options}");
    let mut client = RespClient::connect(address);
    assert_eq!(client.call(&["SET", "k", "v"]), b"+OK\r\n");
    assert_eq!(status(control)["totals"]["clients"], 1);
    // A reload reads again; the test, outside, may write.
    let known = proxy.log().len();
    std::fs::write(
        &file,
        config.replace("[general]\n", "[general]\nmax_connections = 7\n"),
    )
    .unwrap();
    proxy
        .process()
        .signal(rustix::process::Signal::HUP)
        .unwrap();
    let reloaded = eventually(PATIENCE, || {
        let log = proxy.log();
        log[known..]
            .iter()
            .any(|line| line.contains("max_connections"))
            .then_some(())
    });
    assert!(reloaded.is_some(), "{:?}", &proxy.log()[known..]);
    assert_eq!(client.call(&["GET", "k"]), b"$1\r\nv\r\n");
    drop(client);
    proxy
        .process()
        .signal(rustix::process::Signal::TERM)
        .unwrap();
    let ended = proxy.process().wait_exit(PATIENCE).expect("it ends");
    assert_eq!(ended.code(), Some(0));
    let log = proxy.log().join("\n");
    for refused in [
        "Read-only",
        "ermission denied",
        "not permitted",
        " ERROR ",
        "panicked",
    ] {
        assert!(!log.contains(refused), "{refused}: {log}");
    }
}
