//! Two real servers, the proxy in front of them with `[[dual_write]]`, and looks at all three.

use std::net::SocketAddr;
use std::time::Duration;

use parhelion::testing::redis::{RedisOptions, RedisServer};
use parhelion::testing::wait::eventually;

use super::proxy::{Proxy, ProxyOptions};
use super::resp::{RespClient, clip, encode};

/// Nothing in these tests takes longer to come to rest.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// A server that tells a digest of its data.
pub fn server() -> RedisServer {
    let extra = vec![("enable-debug-command".to_owned(), "yes".to_owned())];
    RedisServer::start(RedisOptions {
        extra,
        ..RedisOptions::default()
    })
    .unwrap()
}

pub struct Pair {
    pub primary: RedisServer,
    pub secondary: RedisServer,
    pub proxy: Proxy,
}

impl Pair {
    /// With lines of `[[dual_write]]`.
    pub fn new(lines: &str) -> Pair {
        Pair::with(lines, |options, _| options)
    }

    /// `more` gets the options and the secondary's address; the proxy finds the secondary there.
    pub fn with(lines: &str, more: impl FnOnce(ProxyOptions, SocketAddr) -> ProxyOptions) -> Pair {
        Pair::through(lines, |secondary| secondary, more)
    }

    /// `way` says where the proxy finds the secondary.
    pub fn through(
        lines: &str,
        way: impl FnOnce(SocketAddr) -> SocketAddr,
        more: impl FnOnce(ProxyOptions, SocketAddr) -> ProxyOptions,
    ) -> Pair {
        let (primary, secondary) = (server(), server());
        let at = way(secondary.address());
        let options = ProxyOptions::new("redis", primary.address()).section(&format!(
            "[[databases]]\nname = \"secondary\"\nprotocol = \"redis\"\nhost = \"{}\"\nport = {}\n\
             [[dual_write]]\nprimary = \"primary\"\nsecondary = \"secondary\"\n{lines}\n",
            at.ip(),
            at.port()
        ));
        let proxy = Proxy::start(&more(options, secondary.address()));
        Pair {
            primary,
            secondary,
            proxy,
        }
    }

    pub fn client(&self) -> RespClient {
        RespClient::connect(self.proxy.address())
    }

    /// Whether both servers come to hold the same data.
    pub fn becomes_same(&self) -> bool {
        let same = || {
            let digests = [&self.primary, &self.secondary].map(|at| ask(at, &["DEBUG", "DIGEST"]));
            (digests[0] == digests[1]).then_some(())
        };
        eventually(PATIENCE, same).is_some()
    }

    /// The sum of all samples of a metric whose line contains every word; 0 if there are none.
    pub fn metric(&mut self, name: &str, words: &[&str]) -> f64 {
        let text = self.proxy.real().get("/metrics").unwrap();
        text.lines()
            .filter(|line| {
                let end = line.find(['{', ' ']).unwrap_or(line.len());
                &line[..end] == name && words.iter().all(|word| line.contains(word))
            })
            .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
            .sum()
    }

    /// Waits until a metric fits.
    pub fn wait_metric(&mut self, name: &str, words: &[&str], fits: impl Fn(f64) -> bool) {
        let found = eventually(PATIENCE, || fits(self.metric(name, words)).then_some(()));
        assert!(
            found.is_some(),
            "{name} {words:?} is {}",
            self.metric(name, words)
        );
    }

    /// Divergences that were told, and those that turned out to be races.
    pub fn divergences(&mut self) -> (f64, f64) {
        // Mismatches of writes are told a moment later; and both numbers must come from one look.
        std::thread::sleep(Duration::from_millis(200));
        let text = self.proxy.real().get("/metrics").unwrap();
        let sum = |transient: bool| -> f64 {
            text.lines()
                .filter(|line| line.starts_with("parhelion_mirror_divergences_total{"))
                .filter(|line| line.contains("\"transient\"") == transient)
                .filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok())
                .sum()
        };
        (sum(false), sum(true))
    }

    /// Changes the mode as an operator does.
    pub fn set_mode(&mut self, mode: &str) {
        let url = format!("http://{}", self.proxy.real().control());
        let output = std::process::Command::new(env!("CARGO_BIN_EXE_parhelion"))
            .args(["ctl", "--url", &url, "mode", "primary", mode])
            .output()
            .unwrap();
        assert!(output.status.success(), "{mode}: {output:?}");
    }

    /// Changes the mode and waits until it is in force.
    pub fn enter_mode(&mut self, mode: &str) {
        self.set_mode(mode);
        let entered = eventually(PATIENCE, || (self.mode() == mode).then_some(()));
        assert!(
            entered.is_some(),
            "{mode} is wanted, {} in force",
            self.mode()
        );
    }

    /// The mode in force.
    pub fn mode(&mut self) -> String {
        let mirrors = self.proxy.real().get("/api/mirrors").unwrap();
        let mirrors: serde_json::Value = serde_json::from_str(&mirrors).unwrap();
        let first = &mirrors["mirrors"][0];
        first["mode"].as_str().unwrap_or_default().to_owned()
    }

    /// What the secondary is sent while `act` runs: MONITOR's lines behind the client's address, without our own.
    pub fn seen_by_secondary(&mut self, act: impl FnOnce(&mut Pair)) -> Vec<String> {
        let mut monitor = RespClient::connect(self.secondary.address());
        assert_eq!(monitor.call(&["MONITOR"]), b"+OK\r\n");
        act(self);
        let mark = "the end of what is looked at";
        assert_eq!(self.client().call(&["SET", mark, "1"]), b"+OK\r\n");
        let mut lines = Vec::new();
        loop {
            let line = String::from_utf8_lossy(&monitor.reply().unwrap()).into_owned();
            let words = line.split_once("] ").map_or("", |(_, words)| words).trim();
            if words.contains(mark) {
                return lines;
            }
            lines.push(words.to_owned());
        }
    }
}

/// One command on a server itself.
pub fn ask(server: &RedisServer, args: &[&str]) -> String {
    String::from_utf8_lossy(&RespClient::connect(server.address()).call(args)).into_owned()
}

/// Sends a command that must not fail.
pub fn ok(client: &mut RespClient, args: &[&str]) -> Vec<u8> {
    let reply = client.call(args);
    assert_ne!(reply[0], b'-', "{args:?}: {}", clip(&reply));
    reply
}

/// Reads every key once, in pipelines.
pub fn read_all(client: &mut RespClient, keys: usize) {
    for first in (0..keys).step_by(50) {
        let pipeline: Vec<u8> = (first..first + 50)
            .flat_map(|number| encode(&["GET", &format!("k:{number}")]))
            .collect();
        client.send(&pipeline);
        client.replies(50);
    }
}

/// Writes every key once, in pipelines.
pub fn fill(client: &mut RespClient, keys: usize) {
    for first in (0..keys).step_by(50) {
        let pipeline: Vec<u8> = (first..first + 50)
            .flat_map(|number| encode(&["SET", &format!("k:{number}"), &format!("value:{number}")]))
            .collect();
        client.send(&pipeline);
        client.replies(50);
    }
}
