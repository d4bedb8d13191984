//! A network namespace behind a cable that can be cut without a word to either end. Needs root.

use std::net::Ipv4Addr;
use std::process::{Command, Stdio};

/// The namespace and the cable to it; both go when this does.
pub struct Cable {
    name: String,
    subnet: u8,
}

impl Cable {
    /// `None` without the right to make namespaces, said loudly.
    pub fn lay() -> Option<Cable> {
        let pid = std::process::id();
        let cable = Cable {
            name: format!("ph{}", pid % 10_000),
            // Tests that run beside this one have cables of their own.
            subnet: (pid % 250) as u8,
        };
        let (near, far) = (format!("{}a", cable.name), format!("{}b", cable.name));
        let netns = &cable.name;
        let [near_at, far_at] = [cable.near(), cable.far()].map(|at| format!("{at}/30"));
        let done = ip(&["netns", "add", netns])
            && ip(&["link", "add", &near, "type", "veth", "peer", "name", &far])
            && ip(&["link", "set", &far, "netns", netns])
            && ip(&["addr", "add", &near_at, "dev", &near])
            && ip(&["link", "set", &near, "up"])
            && ip(&["-n", netns, "addr", "add", &far_at, "dev", &far])
            && ip(&["-n", netns, "link", "set", &far, "up"])
            && ip(&["-n", netns, "link", "set", "lo", "up"]);
        if !done {
            eprintln!("SKIPPED: no network namespaces without root; cut cables are not tested");
        }
        done.then_some(cable)
    }

    /// This end.
    pub fn near(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, 1)
    }

    /// The namespace's end.
    pub fn far(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 213, self.subnet, 2)
    }

    /// A program that runs in the namespace.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new("ip");
        command.args(["netns", "exec", &self.name, program]);
        command
    }

    /// From here on nothing arrives on either side. The far end goes down: the near one keeps its route, so that nobody gets
    /// an error to read.
    pub fn cut(&self) {
        self.set("down");
    }

    /// Joins it again.
    pub fn mend(&self) {
        self.set("up");
    }

    fn set(&self, state: &str) {
        let far = format!("{}b", self.name);
        assert!(ip(&["-n", &self.name, "link", "set", &far, state]));
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        ip(&["link", "del", &format!("{}a", self.name)]);
        ip(&["netns", "del", &self.name]);
    }
}

fn ip(args: &[&str]) -> bool {
    let mut command = Command::new("ip");
    command.args(args).stderr(Stdio::null());
    command.status().is_ok_and(|status| status.success())
}
