//! Who is compared: how each is started in front of the servers, and what it is expected to do with the candidate.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use rustix::process::Signal;
use serde_json::json;

use crate::process::{self, Process, Spawn, User, free_port};
use crate::servers::{Halted, Protocol, Servers};

/// A contender.
#[derive(Clone, Debug)]
pub struct Contender {
    /// The name in tables and for `--contenders`.
    pub name: String,
    kind: Kind,
    /// What the candidate is for.
    pub mirror: Mirror,
}

/// What a contender does with the candidate server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mirror {
    /// Nothing.
    Off,
    /// Everything is copied to it.
    On,
    /// The same while it is stopped.
    Stopped,
    /// The same while it runs a tenth of the time.
    Slow,
    /// The same while nobody listens where it should be.
    Refused,
    /// Redis: written to in order, read in the shadow, compared.
    DualWrite,
}

#[derive(Clone, Debug)]
enum Kind {
    Direct,
    Haproxy {
        threads: usize,
    },
    Pgbouncer,
    Floor,
    Envoy,
    Parhelion {
        cores: usize,
        mirrors: usize,
    },
    /// Parhelion built to count nothing.
    Uncounted {
        program: PathBuf,
    },
    Spike {
        program: PathBuf,
    },
}

/// Where things are on this machine.
pub struct Place {
    /// The proxy's CPUs; the first one is the only one but for contenders with several cores.
    pub proxy_cpus: Vec<usize>,
    /// The Parhelion binary.
    pub parhelion: PathBuf,
    /// The same, built to count nothing.
    pub uncounted: Option<PathBuf>,
    /// The spikes' binaries.
    pub spikes: Option<PathBuf>,
    /// How many file descriptors a process may have.
    pub descriptors: u64,
    /// Logs and config files.
    pub folder: PathBuf,
}

/// A contender at work; ends with the value.
pub struct Running {
    process: Option<Process>,
    _halted: Option<Halted>,
    /// Where clients connect.
    pub port: u16,
}

impl Running {
    /// The pid of the proxy; none for direct connections.
    pub fn pid(&self) -> Option<u32> {
        self.process.as_ref().map(Process::pid)
    }
}

/// The contenders for a protocol, in the order of the tables.
pub fn all(protocol: Protocol, place: &Place) -> Vec<Contender> {
    let one = |name: &str, kind: Kind, mirror: Mirror| Contender {
        name: name.to_owned(),
        kind,
        mirror,
    };
    let parhelion = |name: &str, mirror| {
        one(
            name,
            Kind::Parhelion {
                cores: 1,
                mirrors: 1,
            },
            mirror,
        )
    };
    let mut all = vec![
        one("direct", Kind::Direct, Mirror::Off),
        one("haproxy", Kind::Haproxy { threads: 1 }, Mirror::Off),
    ];
    if protocol == Protocol::Postgres {
        all.push(one("pgbouncer", Kind::Pgbouncer, Mirror::Off));
    }
    all.extend([
        one("floor", Kind::Floor, Mirror::Off),
        parhelion("parhelion", Mirror::Off),
        parhelion("parhelion-mirror", Mirror::On),
        parhelion("parhelion-stopped", Mirror::Stopped),
        parhelion("parhelion-slow", Mirror::Slow),
        parhelion("parhelion-refused", Mirror::Refused),
    ]);
    if protocol == Protocol::Redis {
        all.push(one("envoy", Kind::Envoy, Mirror::Off));
        all.push(one("envoy-mirror", Kind::Envoy, Mirror::On));
        all.push(parhelion("parhelion-dual", Mirror::DualWrite));
    }
    if place.proxy_cpus.len() > 1 {
        all.push(one(
            "parhelion-2cores",
            Kind::Parhelion {
                cores: 2,
                mirrors: 1,
            },
            Mirror::Off,
        ));
    }
    if let Some(program) = &place.uncounted {
        for (name, mirror) in [("uncounted", Mirror::Off), ("uncounted-mirror", Mirror::On)] {
            let program = program.clone();
            all.push(one(name, Kind::Uncounted { program }, mirror));
        }
    }
    if let Some(folder) = &place.spikes {
        let mut spike = |name: &str, program: &str, mirror| {
            let program = folder.join(program);
            if program.is_file() {
                all.push(one(name, Kind::Spike { program }, mirror));
            }
        };
        spike("spike-urf", "urf", Mirror::Off);
        spike("spike-hyb", "hyb", Mirror::Off);
        if protocol == Protocol::Redis {
            spike("spike-mux", "mux", Mirror::Off);
            spike("spike-mux-mirror", "mux", Mirror::On);
        }
    }
    all
}

/// Parhelion with so many mirrors (0 to all candidates) on so many cores.
pub fn parhelion_of(mirrors: usize, cores: usize) -> Contender {
    Contender {
        name: "parhelion".to_owned(),
        kind: Kind::Parhelion { cores, mirrors },
        mirror: if mirrors == 0 {
            Mirror::Off
        } else {
            Mirror::On
        },
    }
}

/// HAProxy with so many threads.
pub fn haproxy_of(threads: usize) -> Contender {
    Contender {
        name: "haproxy".to_owned(),
        kind: Kind::Haproxy { threads },
        mirror: Mirror::Off,
    }
}

impl Contender {
    /// Why it cannot run here, if so.
    pub fn missing(&self) -> Option<String> {
        let need = |program: &str| {
            process::find_program(program, &[])
                .is_none()
                .then(|| format!("{program} is not installed"))
        };
        match self.kind {
            Kind::Haproxy { .. } => need("haproxy"),
            Kind::Envoy => need("envoy"),
            Kind::Pgbouncer => need("pgbouncer"),
            _ => None,
        }
    }

    /// Starts it in front of the servers and waits until it accepts.
    pub fn start(&self, protocol: Protocol, servers: &Servers, place: &Place) -> Result<Running> {
        let halted = match self.mirror {
            Mirror::Stopped => Some(servers.candidate.stop()),
            Mirror::Slow => Some(servers.candidate.slow_down()),
            Mirror::Off | Mirror::On | Mirror::Refused | Mirror::DualWrite => None,
        };
        if matches!(self.kind, Kind::Direct) {
            return Ok(Running {
                process: None,
                _halted: halted,
                port: servers.primary.port,
            });
        }
        let port = free_port()?;
        let cores = match self.kind {
            Kind::Parhelion { cores, .. } => cores,
            Kind::Haproxy { threads } => threads,
            _ => 1,
        };
        let cpus: Vec<String> = place.proxy_cpus[..cores]
            .iter()
            .map(usize::to_string)
            .collect();
        let cpus = cpus.join(",");
        let mut process = Spawn {
            name: &self.name,
            command: self.command(protocol, servers, place, port, &cpus)?,
            cpus,
            user: match self.kind {
                Kind::Pgbouncer => User::unprivileged()?,
                _ => None,
            },
            end: Signal::KILL,
            folder: &place.folder,
        }
        .start()?;
        match self.kind {
            Kind::Parhelion { .. } | Kind::Uncounted { .. } => process.wait_for_line("ready")?,
            _ => process.wait_for_port(port)?,
        }
        Ok(Running {
            process: Some(process),
            _halted: halted,
            port,
        })
    }

    fn command(
        &self,
        protocol: Protocol,
        servers: &Servers,
        place: &Place,
        port: u16,
        cpus: &str,
    ) -> Result<Vec<String>> {
        let primary = format!("127.0.0.1:{}", servers.primary.port);
        let candidate = format!("127.0.0.1:{}", servers.candidate.port);
        let listen = format!("127.0.0.1:{port}");
        let text = |path: &Path| path.to_string_lossy().into_owned();
        Ok(match &self.kind {
            Kind::Direct => Vec::new(),
            Kind::Haproxy { threads } => {
                let file = place.folder.join(format!("haproxy-{port}.cfg"));
                fs::write(
                    &file,
                    haproxy_config(&listen, &primary, place.descriptors, *threads),
                )?;
                let program = process::find_program("haproxy", &[]).context("haproxy")?;
                vec![text(&program), "-db".into(), "-f".into(), text(&file)]
            }
            Kind::Pgbouncer => {
                let file = place.folder.join(format!("pgbouncer-{port}.ini"));
                let users = place.folder.join("users.txt");
                fs::write(&users, "\"postgres\" \"\"\n")?;
                fs::write(&file, pgbouncer_config(port, servers.primary.port, &users))?;
                let program = process::find_program("pgbouncer", &[]).context("pgbouncer")?;
                vec![text(&program), text(&file)]
            }
            Kind::Envoy => {
                let file = place.folder.join(format!("envoy-{port}.json"));
                let mirror = (self.mirror == Mirror::On).then_some(servers.candidate.port);
                fs::write(&file, envoy_config(port, servers.primary.port, mirror))?;
                let program = process::find_program("envoy", &[]).context("envoy")?;
                let words = [
                    "--concurrency",
                    "1",
                    "--use-dynamic-base-id",
                    "-l",
                    "error",
                    "-c",
                ];
                let mut command = vec![text(&program)];
                command.extend(words.map(str::to_owned));
                command.push(text(&file));
                command
            }
            Kind::Floor => {
                let own = std::env::current_exe()?;
                vec![text(&own), "--floor".into(), listen, primary]
            }
            Kind::Spike { program } => {
                let mut command = vec![text(program), listen, primary, cpus.to_owned()];
                if self.mirror == Mirror::On {
                    command.push(candidate);
                }
                command
            }
            Kind::Parhelion { mirrors, .. } => {
                self.parhelion(&place.parhelion, protocol, servers, &listen, cpus, *mirrors)?
            }
            Kind::Uncounted { program } => {
                self.parhelion(program, protocol, servers, &listen, cpus, 1)?
            }
        })
    }

    fn parhelion(
        &self,
        program: &Path,
        protocol: Protocol,
        servers: &Servers,
        listen: &str,
        cpus: &str,
        mirrors: usize,
    ) -> Result<Vec<String>> {
        let (name, user) = match protocol {
            Protocol::Redis => ("redis", [].as_slice()),
            Protocol::Postgres => ("postgres", ["--user", "postgres"].as_slice()),
        };
        let address = |port: u16| format!("127.0.0.1:{port}");
        let mut command = vec![program.to_string_lossy().into_owned(), name.into()];
        command.extend(["--listen".into(), listen.into()]);
        command.extend(["--primary".into(), address(servers.primary.port)]);
        command.extend(["--control", "off", "--cores", cpus].map(str::to_owned));
        let ports = match self.mirror {
            Mirror::Off => return Ok(command),
            Mirror::DualWrite => {
                command.extend(["--secondary".into(), address(servers.candidate.port)]);
                command.extend(["--mode".into(), "dual-write-shadow".into()]);
                return Ok(command);
            }
            Mirror::Refused => vec![free_port()?],
            Mirror::On | Mirror::Stopped | Mirror::Slow => servers.candidate_ports(mirrors),
        };
        for port in ports {
            command.extend(["--mirror".into(), address(port)]);
        }
        // Only the mirror's own logins need a user.
        command.extend(user.iter().map(|&arg| arg.to_owned()));
        Ok(command)
    }
}

/// Envoy's redis proxy, with its request mirror policy at 100 % where a mirror is given. JSON, which Envoy takes too.
fn envoy_config(port: u16, primary: u16, mirror: Option<u16>) -> String {
    let address =
        |port: u16| json!({"socket_address": {"address": "127.0.0.1", "port_value": port}});
    let cluster = |name: &str, port: u16| {
        json!({
            "name": name,
            "type": "STATIC",
            "connect_timeout": "5s",
            "load_assignment": {
                "cluster_name": name,
                "endpoints": [{"lb_endpoints": [{"endpoint": {"address": address(port)}}]}],
            },
        })
    };
    let mut route = json!({"cluster": "primary"});
    let mut clusters = vec![cluster("primary", primary)];
    if let Some(mirror) = mirror {
        route["request_mirror_policy"] = json!([{"cluster": "mirror"}]);
        clusters.push(cluster("mirror", mirror));
    }
    let filter = json!({
        "name": "envoy.filters.network.redis_proxy",
        "typed_config": {
            "@type": "type.googleapis.com/envoy.extensions.filters.network.redis_proxy.v3.RedisProxy",
            "stat_prefix": "bench",
            "settings": {"op_timeout": "60s"},
            "prefix_routes": {"catch_all_route": route},
        },
    });
    let listener = json!({
        "name": "bench",
        "address": address(port),
        "filter_chains": [{"filters": [filter]}],
    });
    json!({"static_resources": {"listeners": [listener], "clusters": clusters}}).to_string()
}

fn haproxy_config(listen: &str, primary: &str, descriptors: u64, threads: usize) -> String {
    // It refuses to start when two descriptors per connection are beyond the limit.
    let most = descriptors.saturating_sub(100) / 2;
    format!(
        "global\n  nbthread {threads}\n  maxconn {most}\n\
         defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 1h\n  timeout server 1h\n  \
         option clitcpka\n  option srvtcpka\n\
         listen bench\n  bind {listen} backlog 4096\n  maxconn {most}\n  server primary {primary}\n"
    )
}

fn pgbouncer_config(port: u16, primary: u16, users: &Path) -> String {
    format!(
        "[databases]\npostgres = host=127.0.0.1 port={primary}\n\
         [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
         auth_type = trust\nauth_file = {}\npool_mode = session\nmax_client_conn = 1000\n\
         default_pool_size = 300\nlog_connections = 0\nlog_disconnections = 0\n\
         ignore_startup_parameters = extra_float_digits\n",
        users.display()
    )
}
