//! Reads `[general]`, `[ring]` and `[sentry]`.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::time::Duration;

use super::address::{parse_listen_ip, parse_socket_addr};
use super::databases::read_secret_file;
use super::files;
use super::pgdog;
use super::reader::{At, Faults, Section};
use super::types::{Cores, General, LogFormat, MirrorPoolMode, Pace, Redact, RingConfig, Sentry};

const KIB: usize = 1 << 10;
const MIB: usize = 1 << 20;
const GIB: usize = 1 << 30;
const MS: Duration = Duration::from_millis(1);
/// More clients than one process can have descriptors for.
const CONNECTIONS_MAX: u64 = 1 << 24;
pub(super) const DAY: Duration = Duration::from_secs(24 * 3600);

/// `[general]` and what of it other sections need.
pub(super) struct GeneralEntry {
    pub general: General,
    pub control_line: usize,
    /// PgDog's `host` and `port`: where to listen without `[[listeners]]`.
    pub listen: SocketAddr,
    /// The line of `host` or `port`, if either stands there.
    pub listen_line: Option<usize>,
    /// PgDog's `default_pool_size`.
    pub pool_size: usize,
}

impl Default for GeneralEntry {
    fn default() -> Self {
        Self {
            general: General::default(),
            control_line: 1,
            listen: SocketAddr::from((Ipv4Addr::UNSPECIFIED, 6432)),
            listen_line: None,
            pool_size: 10,
        }
    }
}

/// Reads `[general]`.
pub(super) fn read_general(
    mut s: Section<'_, '_>,
    faults: &mut Faults,
    base: &Path,
    cpus: &[usize],
) -> GeneralEntry {
    let d = GeneralEntry::default();
    let g = d.general;
    let f = faults;
    let idle_max = 30 * DAY;
    let idle = s.duration(
        f,
        "client_idle_timeout",
        Duration::ZERO,
        Duration::ZERO..=idle_max,
    );
    let general = General {
        cores: read_cores(&mut s, f, cpus),
        control: read_control(&mut s, f, g.control),
        mirror_queue: s
            .integer(f, "mirror_queue", 1..=1 << 20)
            .map_or(g.mirror_queue, |at| at.value as usize),
        mirror_queue_bytes: s.size(f, "mirror_queue_bytes", g.mirror_queue_bytes, 4 * KIB..=GIB),
        mirror_memory: s.size(f, "mirror_memory", g.mirror_memory, MIB..=1024 * GIB),
        mirror_exposure: s.share(f, "mirror_exposure").unwrap_or(g.mirror_exposure),
        pace: s
            .word(f, "pace", Pace::WORDS, Pace::from_word)
            .map_or(g.pace, |at| at.value),
        mirror_timeout: s.duration(f, "mirror_timeout", g.mirror_timeout, MS..=DAY),
        mirror_pool_mode: s
            .word(
                f,
                "mirror_pool_mode",
                MirrorPoolMode::WORDS,
                MirrorPoolMode::from_word,
            )
            .map_or(g.mirror_pool_mode, |at| at.value),
        connect_timeout: s.duration(f, "connect_timeout", g.connect_timeout, MS..=DAY),
        query_wait_timeout: s.duration(f, "query_wait_timeout", g.query_wait_timeout, MS..=DAY),
        client_idle_timeout: (!idle.is_zero()).then_some(idle),
        client_login_timeout: s.duration(
            f,
            "client_login_timeout",
            g.client_login_timeout,
            MS..=DAY,
        ),
        max_connections: read_cap(&mut s, f, "max_connections"),
        max_connections_per_address: read_cap(&mut s, f, "max_connections_per_address"),
        drain_timeout: s.duration(f, "drain_timeout", g.drain_timeout, Duration::ZERO..=DAY),
        log_format: s
            .word(f, "log_format", LogFormat::WORDS, LogFormat::from_word)
            .map_or(g.log_format, |at| at.value),
        control_token: read_secret_file(&mut s, f, "control_token_file", base),
        watch_config: s.boolean(f, "watch_config", g.watch_config),
        redact: s
            .word(f, "redact", Redact::WORDS, Redact::from_word)
            .map_or(g.redact, |at| at.value),
        divergence_log: s
            .text(f, "divergence_log")
            .map(|at| files::resolve(base, &at.value)),
        compat_metrics: s.boolean(f, "compat_metrics", g.compat_metrics),
    };
    if general.mirror_queue_bytes > general.mirror_memory {
        s.refuse(
            f,
            s.line_of("mirror_queue_bytes"),
            "mirror_queue_bytes",
            "is larger than general.mirror_memory, which all clients of a core share",
            "raise mirror_memory or lower mirror_queue_bytes",
        );
    }
    check_caps(&s, f, &general);
    let open_to_others = general.control.is_some_and(|at| !at.ip().is_loopback());
    if open_to_others && general.control_token.is_none() {
        s.refuse(
            f,
            s.line_of("control"),
            "control",
            "other hosts can reach it, and anybody there could steer this process",
            "set control_token_file, or listen on 127.0.0.1",
        );
    }
    let host = read_host(&mut s, f);
    let port = s.integer(f, "port", 1..=65_535);
    let listen = SocketAddr::new(
        host.as_ref().map_or(d.listen.ip(), |at| at.value),
        port.as_ref().map_or(d.listen.port(), |at| at.value as u16),
    );
    let pool_size = s
        .integer(f, "default_pool_size", 1..=10_000)
        .map_or(d.pool_size, |at| at.value as usize);
    let entry = GeneralEntry {
        general,
        control_line: s.line_of("control"),
        listen,
        listen_line: host.map(|at| at.line).or(port.map(|at| at.line)),
        pool_size,
    };
    s.finish(f, pgdog::general);
    entry
}

/// A number of connections; 0 means no cap.
fn read_cap(s: &mut Section<'_, '_>, faults: &mut Faults, key: &'static str) -> usize {
    s.integer(faults, key, 0..=CONNECTIONS_MAX)
        .map_or(0, |at| at.value as usize)
}

fn check_caps(s: &Section<'_, '_>, faults: &mut Faults, general: &General) {
    let (all, one) = (general.max_connections, general.max_connections_per_address);
    if all > 0 && one > all {
        let key = "max_connections_per_address";
        s.refuse(
            faults,
            s.line_of(key),
            key,
            "is more than general.max_connections and caps nothing",
            "lower it, or write 0 for no cap",
        );
    }
}

fn read_control(
    s: &mut Section<'_, '_>,
    faults: &mut Faults,
    default: Option<SocketAddr>,
) -> Option<SocketAddr> {
    let Some(at) = s.string(faults, "control") else {
        return default;
    };
    if at.value == "off" {
        return None;
    }
    match parse_socket_addr(&at.value) {
        Ok(address) => Some(address),
        Err(problem) => {
            let way_out = "write e.g. \"127.0.0.1:9191\" or \"off\"";
            s.refuse(faults, at.line, "control", problem, way_out);
            default
        }
    }
}

fn read_host(s: &mut Section<'_, '_>, faults: &mut Faults) -> Option<At<IpAddr>> {
    let at = s.text(faults, "host")?;
    match parse_listen_ip(&at.value) {
        Ok(ip) => Some(At {
            value: ip,
            line: at.line,
        }),
        Err(problem) => {
            s.refuse(faults, at.line, "host", problem, "write e.g. \"0.0.0.0\"");
            None
        }
    }
}

fn read_cores(s: &mut Section<'_, '_>, faults: &mut Faults, cpus: &[usize]) -> Cores {
    match s.cpu_list(faults, "cores") {
        None => Cores::All,
        Some(At { value: None, .. }) => Cores::All,
        Some(At {
            value: Some(list),
            line,
        }) => {
            check_cpus(s, faults, line, &list, cpus);
            Cores::List(list)
        }
    }
}

/// Refuses a list of CPU ids that is empty, repeats one, or names one that is not among `available`.
pub(super) fn check_cpus(
    s: &Section<'_, '_>,
    faults: &mut Faults,
    line: usize,
    list: &[usize],
    available: &[usize],
) {
    let way_out = format!("choose among {available:?}");
    if list.is_empty() {
        s.refuse(faults, line, "cores", "is an empty list", &way_out);
    }
    for (index, cpu) in list.iter().enumerate() {
        if list[..index].contains(cpu) {
            s.refuse(
                faults,
                line,
                "cores",
                format!("CPU {cpu} stands there twice"),
                "name it once",
            );
        } else if !available.contains(cpu) {
            s.refuse(
                faults,
                line,
                "cores",
                format!("CPU {cpu} is not available"),
                &way_out,
            );
        }
    }
}

/// Reads `[ring]`.
pub(super) fn read_ring(mut s: Section<'_, '_>, faults: &mut Faults) -> RingConfig {
    let d = RingConfig::default();
    // 32,768 is the kernel's bound for both a submission queue and a buffer ring.
    let entries = power_of_two(&mut s, faults, "entries", 64..=32_768).unwrap_or(4096);
    let slabs = power_of_two(&mut s, faults, "slabs", 16..=32_768).unwrap_or(2048);
    let slab_size = s.size(faults, "slab_size", d.slab_size, 4 * KIB..=MIB);
    if !slab_size.is_power_of_two() {
        let line = s.line_of("slab_size");
        let way_out = format!("write e.g. \"{}KiB\"", slab_size.next_power_of_two() / KIB);
        s.refuse(faults, line, "slab_size", "is not a power of two", way_out);
    }
    let spin_max = Duration::from_millis(100);
    let busy_poll = s.duration(faults, "busy_poll", d.busy_poll, Duration::ZERO..=spin_max);
    s.finish(faults, |_| None);
    RingConfig {
        entries: entries as u32,
        slabs: slabs as u16,
        slab_size,
        busy_poll,
    }
}

fn power_of_two(
    s: &mut Section<'_, '_>,
    faults: &mut Faults,
    key: &'static str,
    range: std::ops::RangeInclusive<u64>,
) -> Option<u64> {
    let at = s.integer(faults, key, range)?;
    if !at.value.is_power_of_two() {
        let problem = format!("{} is not a power of two", at.value);
        let way_out = format!("write e.g. {}", at.value.next_power_of_two());
        s.refuse(faults, at.line, key, problem, way_out);
    }
    Some(at.value)
}

/// Reads `[sentry]`.
pub(super) fn read_sentry(mut s: Section<'_, '_>, faults: &mut Faults) -> Sentry {
    let d = Sentry::default();
    let dsn = s.secret(faults, "dsn");
    if let Some(at) = &dsn {
        let text = at.value.expose();
        let address = text
            .strip_prefix("https://")
            .or_else(|| text.strip_prefix("http://"));
        if !address.is_some_and(|rest| rest.contains('@') && rest.contains('/')) {
            // The DSN holds a key: it is not shown.
            let way_out = "write https://KEY@HOST/PROJECT as Sentry shows it, or \"\" for none";
            s.refuse(faults, at.line, "dsn", "is not a DSN", way_out);
        }
    }
    let sentry = Sentry {
        dsn: dsn.map(|at| at.value),
        environment: s
            .text(faults, "environment")
            .map_or(d.environment, |at| at.value),
        sample_rate: s.share(faults, "sample_rate").unwrap_or(d.sample_rate),
    };
    s.finish(faults, |_| None);
    sentry
}
