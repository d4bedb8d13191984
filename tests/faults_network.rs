//! Cables that are cut without a FIN, an RST or an error: to a client, to a mirror, to the primary. Needs root for a
//! network namespace; skipped loudly without.

// Helpers of tests are no tests to the lint.
#![allow(clippy::unwrap_used)]

mod support;

use std::net::SocketAddr;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use parhelion::testing::proxy::{ProxyOptions, ProxyProcess};
use parhelion::testing::wait::eventually;
use support::cable::Cable;
use support::faults::{
    Ledger, PATIENCE, clients, open_fds, open_fds_with_lane, postgres, redis, start,
};
use support::resp::{RespClient, encode};

/// A Redis at the far end of a cable.
struct Far {
    process: Child,
    address: SocketAddr,
}

impl Far {
    fn start(cable: &Cable) -> Far {
        // In a namespace of its own every port is free.
        let address = SocketAddr::from((cable.far(), 6379));
        let host = cable.far().to_string();
        let process = cable
            .command("redis-server")
            .args(["--bind", &host, "--port", "6379", "--save", ""])
            .args(["--protected-mode", "no", "--appendonly", "no"])
            .stdout(Stdio::null())
            .spawn()
            .unwrap();
        let far = Far { process, address };
        let up = eventually(PATIENCE, || {
            std::net::TcpStream::connect_timeout(&address, Duration::from_secs(1)).ok()
        });
        assert!(up.is_some(), "the far Redis does not come up");
        far
    }

    fn counter(&self, key: &str) -> u64 {
        let reply = RespClient::connect(self.address).call(&["GET", key]);
        let text = String::from_utf8(reply).unwrap();
        text.lines().nth(1).map_or(0, |line| line.parse().unwrap())
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        // `ip netns exec` becomes the program: this is the server itself.
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// Cuts the cable of the only client and waits until nothing of it is left, a second after the timeout of 3 s.
fn freed_after_the_cut(cable: &Cable, proxy: &ProxyProcess, mut client: Child, fds_before: usize) {
    assert_eq!(clients(proxy.control()), 1);
    cable.cut();
    let began = Instant::now();
    let freed = eventually(PATIENCE, || {
        (clients(proxy.control()) == 0 && open_fds(proxy.pid()) <= fds_before).then_some(())
    });
    let took = began.elapsed();
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(freed.is_some(), "never freed");
    println!("half-open client freed after {took:?} with a timeout of 3s");
    // The last sign of life was before the cut; a second for the precision of the test itself.
    assert!(took <= Duration::from_secs(5), "{took:?}");
}

#[test]
fn a_client_that_vanishes_without_a_fin_is_freed_a_second_after_the_timeout() {
    let Some(cable) = Cable::lay() else { return };
    let server = redis();
    let options = ProxyOptions::new("redis", server.address())
        .general("client_idle_timeout = \"3s\"")
        .listen(cable.near().into());
    let proxy = start(&options);
    let before = open_fds_with_lane(&proxy);
    // One waits for a reply that never comes: to the session it is busy, only the connection itself can tell.
    let port = proxy.address().port();
    let script = format!(
        "exec 3<>/dev/tcp/{}/{port}; printf 'BLPOP nothing 0\\r\\n' >&3; sleep 60",
        cable.near()
    );
    let client = cable.command("bash").args(["-c", &script]).spawn().unwrap();
    let came = eventually(PATIENCE, || {
        let info = server.command(&["INFO", "clients"]).unwrap();
        String::from_utf8_lossy(&info)
            .contains("blocked_clients:1")
            .then_some(())
    });
    assert!(came.is_some(), "the client never blocked");
    freed_after_the_cut(&cable, &proxy, client, before);
    let info = server.command(&["INFO", "clients"]).unwrap();
    assert!(String::from_utf8_lossy(&info).contains("blocked_clients:0"));
}

#[test]
fn a_postgres_client_that_vanishes_in_a_transaction_is_freed_with_its_locks() {
    let Some(cable) = Cable::lay() else { return };
    let server = postgres();
    let options = ProxyOptions::new("postgres", server.address())
        .general("client_idle_timeout = \"3s\"")
        .listen(cable.near().into());
    let proxy = start(&options);
    let before = open_fds(proxy.pid());
    server.sql("postgres", "CREATE TABLE held (n int)").unwrap();
    // Idle in a transaction, with a lock that others wait for.
    let conninfo = format!(
        "host={} port={} user=postgres dbname=postgres",
        cable.near(),
        proxy.address().port()
    );
    let client = cable
        .command("psql")
        .args(["-X", "-c", "BEGIN", "-c", "LOCK held", "-c", "\\! sleep 60"])
        .arg(&conninfo)
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let locks = || {
        let held = "SELECT count(*) FROM pg_locks WHERE relation = 'held'::regclass";
        server.sql("postgres", held).unwrap()
    };
    let came = eventually(PATIENCE, || (locks() == "1").then_some(()));
    assert!(came.is_some(), "the client never came");
    freed_after_the_cut(&cable, &proxy, client, before);
    let unlocked = eventually(PATIENCE, || (locks() == "0").then_some(()));
    assert!(unlocked.is_some(), "the lock outlives the client");
}

#[test]
fn a_mirror_behind_a_cut_cable_costs_clients_nothing_and_is_served_again() {
    let Some(cable) = Cable::lay() else { return };
    let (primary, mirror) = (redis(), Far::start(&cable));
    let options = ProxyOptions::new("redis", primary.address())
        .mirror(mirror.address)
        .general("mirror_timeout = \"1s\"")
        .general("connect_timeout = \"1s\"")
        .general("mirror_queue = 64");
    let proxy = start(&options);
    let mut client = RespClient::connect(proxy.address());
    let mut sent = 0_u64;
    let mut count = |client: &mut RespClient| {
        sent += 1;
        let reply = client.call(&["INCR", "n"]);
        assert_eq!(reply, format!(":{sent}\r\n").as_bytes());
        sent
    };
    for _ in 0..50 {
        count(&mut client);
    }
    assert_eq!(Ledger::settled(proxy.control()).delivered, 50);
    cable.cut();
    let lost = eventually(PATIENCE, || {
        let began = Instant::now();
        count(&mut client);
        assert!(began.elapsed() < Duration::from_secs(1), "a client waits");
        let books = Ledger::of(proxy.control());
        (books.errored > 0 && books.dropped > 0).then_some(())
    });
    assert!(lost.is_some(), "{:?}", Ledger::of(proxy.control()));
    cable.mend();
    let known = Ledger::of(proxy.control()).delivered;
    let again = eventually(PATIENCE, || {
        count(&mut client);
        (Ledger::of(proxy.control()).delivered > known + 50).then_some(())
    });
    assert!(again.is_some(), "{:?}", Ledger::of(proxy.control()));
    let sent = count(&mut client);
    let books = Ledger::settled(proxy.control());
    assert_eq!(books.offered, sent, "{books:?}");
    // What was on its way when the cable was cut may have been executed without an answer.
    let seen = mirror.counter("n");
    assert!(
        (books.delivered..=books.delivered + books.errored).contains(&seen),
        "the mirror executed {seen}: {books:?}"
    );
}

#[test]
fn a_primary_behind_a_cable_that_is_cut_and_mended_answers_everything_once() {
    let Some(cable) = Cable::lay() else { return };
    let primary = Far::start(&cable);
    let options = ProxyOptions::new("redis", primary.address).general("connect_timeout = \"1s\"");
    let proxy = start(&options);
    let mut inside = RespClient::connect(proxy.address());
    assert_eq!(inside.call(&["INCR", "n"]), b":1\r\n");
    cable.cut();
    // TCP repeats what is lost: so the client of a direct connection would wait too.
    inside.send(&encode(&["INCR", "n"]).repeat(100));
    let mut waiting = [0];
    let timeout = Some(Duration::from_millis(500));
    inside.stream.set_read_timeout(timeout).unwrap();
    assert!(inside.stream.peek(&mut waiting).is_err(), "an answer");
    inside.stream.set_read_timeout(Some(PATIENCE)).unwrap();
    cable.mend();
    for number in 2..=101 {
        let reply = inside.reply().unwrap();
        assert_eq!(reply, format!(":{number}\r\n").as_bytes());
    }
    assert_eq!(primary.counter("n"), 101);
    let mut late = RespClient::connect(proxy.address());
    assert_eq!(late.call(&["GET", "n"]), b"$3\r\n101\r\n");
}
