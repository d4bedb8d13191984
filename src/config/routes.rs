//! Reads `[[listeners]]`, `[[mirroring]]` and `[[dual_write]]`, and resolves the names in them.

use std::path::Path;
use std::time::Duration;

use super::address::ListenAddress;
use super::databases::{DatabaseEntry, read_path};
use super::general::{DAY, GeneralEntry, check_cpus};
use super::reader::{At, Faults, Section, nearest};
use super::rules::Place;
use super::types::{
    Blocking, Compare, Cores, DualWrite, Level, Listener, ListenerTls, Mirroring, Protocol,
    RedisMode, SampleBy,
};

const KIB: usize = 1 << 10;
const GIB: usize = 1 << 30;
const MS: Duration = Duration::from_millis(1);

/// What the readers of this file share.
pub(super) struct Scope<'a> {
    pub file: &'a str,
    pub base: &'a Path,
    pub cpus: &'a [usize],
    pub general: &'a GeneralEntry,
    pub databases: &'a [DatabaseEntry],
    /// Redis databases that nothing is copied to: where clients may go who name none.
    pub redis_sources: Vec<usize>,
    /// Every name in `[[mirroring]]` and `[[dual_write]]` was found, so that `redis_sources` is right.
    pub complete: bool,
}

impl Scope<'_> {
    /// Reads a key that names a database. Reports it when it is missing or names none.
    fn database(
        &self,
        s: &mut Section<'_, '_>,
        f: &mut Faults,
        key: &'static str,
    ) -> Option<At<usize>> {
        let Some(at) = s.text(f, key) else {
            if !s.has(key) || s.is_empty_string(key) {
                s.missing(f, key, "write the name of a [[databases]] entry");
            }
            return None;
        };
        let names: Vec<&str> = self
            .databases
            .iter()
            .map(|e| e.database.name.as_str())
            .collect();
        if let Some(value) = names.iter().position(|name| *name == at.value) {
            return Some(At {
                value,
                line: at.line,
            });
        }
        let way_out = match nearest(&at.value, &names) {
            Some(name) => format!("did you mean \"{name}\"?"),
            None => format!("[[databases]] has {}", names.join(", ")),
        };
        s.refuse(
            f,
            at.line,
            key,
            format!("there is no database {:?}", at.value),
            way_out,
        );
        None
    }

    fn place(&self, line: usize, key: &str) -> Place {
        Place {
            file: self.file.to_owned(),
            line: Some(line),
            key: key.to_owned(),
        }
    }
}

/// Reads one `[[listeners]]`.
pub(super) fn read_listener(
    mut s: Section<'_, '_>,
    f: &mut Faults,
    scope: &Scope<'_>,
) -> Option<(Listener, Place)> {
    let address = read_address(&mut s, f);
    let named = if s.has("database") {
        Some(scope.database(&mut s, f, "database"))
    } else {
        s.text(f, "database");
        None
    };
    let named_protocol = named
        .as_ref()
        .and_then(Option::as_ref)
        .map(|at| scope.databases[at.value].database.protocol);
    let protocol = s
        .word(f, "protocol", Protocol::WORDS, Protocol::from_word)
        .map_or(named_protocol.unwrap_or(Protocol::Postgres), |at| at.value);
    let database = match (named, protocol) {
        (Some(at), _) => at.map(|at| at.value),
        (None, Protocol::Postgres) => None,
        (None, Protocol::Redis) => only_redis_source(&s, f, scope),
    };
    let cores = read_listener_cores(&mut s, f, scope);
    let mut tls = read_tls(&mut s, f, scope.base);
    read_tls_required(&mut s, f, tls.as_mut());
    let line = s.line_of("address");
    s.finish(f, |_| None);
    let listener = Listener {
        address: address?,
        protocol,
        database,
        cores,
        tls,
    };
    Some((listener, scope.place(line, "listeners.address")))
}

fn read_address(s: &mut Section<'_, '_>, f: &mut Faults) -> Option<ListenAddress> {
    let way_out = "write e.g. \"0.0.0.0:6432\" or \"unix:/run/parhelion/.s.PGSQL.6432\"";
    let Some(at) = s.text(f, "address") else {
        s.missing(f, "address", way_out);
        return None;
    };
    match ListenAddress::parse(&at.value) {
        Ok(address) => Some(address),
        Err(problem) => {
            s.refuse(f, at.line, "address", problem, way_out);
            None
        }
    }
}

/// A Redis client names no database, so its listener must, unless there is no choice.
fn only_redis_source(s: &Section<'_, '_>, f: &mut Faults, scope: &Scope<'_>) -> Option<usize> {
    match scope.redis_sources.as_slice() {
        [only] => Some(*only),
        _ if !scope.complete => None,
        several => {
            let names: Vec<&str> = several
                .iter()
                .map(|i| scope.databases[*i].database.name.as_str())
                .collect();
            let way_out = if names.is_empty() {
                "add a [[databases]] entry with protocol = \"redis\" and name it".to_owned()
            } else {
                format!("write database = one of {}", names.join(", "))
            };
            s.missing(f, "database", way_out);
            None
        }
    }
}

fn read_listener_cores(
    s: &mut Section<'_, '_>,
    f: &mut Faults,
    scope: &Scope<'_>,
) -> Option<Vec<usize>> {
    let at = s.cpu_list(f, "cores")?;
    let list = at.value?;
    let serving = match &scope.general.general.cores {
        Cores::All => scope.cpus,
        Cores::List(list) => list,
    };
    check_cpus(s, f, at.line, &list, serving);
    Some(list)
}

fn read_tls(s: &mut Section<'_, '_>, f: &mut Faults, base: &Path) -> Option<ListenerTls> {
    let mut s = s.table(f, "tls")?;
    let cert = read_path(&mut s, f, "cert", base);
    let key = read_path(&mut s, f, "key", base);
    for name in ["cert", "key"] {
        if !s.has(name) {
            s.missing(f, name, format!("write {name} = \"/path/of/{name}.pem\""));
        }
    }
    let client_ca = read_path(&mut s, f, "client_ca", base);
    if s.has("client_cert_required") && client_ca.is_none() {
        let line = s.line_of("client_cert_required");
        let problem = "has no effect without client_ca";
        s.refuse(
            f,
            line,
            "client_cert_required",
            problem,
            "write client_ca = \"/path/of/ca.pem\"",
        );
    }
    let client_cert_required = s.boolean(f, "client_cert_required", true);
    s.finish(f, |_| None);
    Some(ListenerTls {
        cert: cert?,
        key: key?,
        client_ca,
        client_cert_required,
        required: false,
    })
}

fn read_tls_required(s: &mut Section<'_, '_>, f: &mut Faults, tls: Option<&mut ListenerTls>) {
    let required = s.boolean(f, "tls_required", false);
    match tls {
        Some(tls) => tls.required = required,
        None if required && !s.has("tls") => {
            let way_out = "write tls = { cert = \"…\", key = \"…\" }";
            s.refuse(
                f,
                s.line_of("tls_required"),
                "tls_required",
                "needs tls",
                way_out,
            );
        }
        None => {}
    }
}

/// Reads one `[[mirroring]]`.
pub(super) fn read_mirroring(
    mut s: Section<'_, '_>,
    f: &mut Faults,
    scope: &Scope<'_>,
) -> Option<(Mirroring, Place)> {
    let source = scope.database(&mut s, f, "source_db");
    let destination = scope.database(&mut s, f, "destination_db");
    let mut entry = Mirroring::new(0, 0, &scope.general.general);
    if let Some(at) = s.integer(f, "queue_length", 1..=1 << 20) {
        entry.queue_length = at.value as usize;
        entry.queue_length_is_own = true;
    }
    if let Some(share) = s.share(f, "exposure") {
        entry.exposure = share;
        entry.exposure_is_own = true;
    }
    let level = s.word(f, "level", Level::WORDS, Level::from_word);
    let redis = source
        .as_ref()
        .is_some_and(|at| scope.databases[at.value].database.protocol == Protocol::Redis);
    if let Some(At {
        value: level @ (Level::Dml | Level::Ddl),
        line,
    }) = level
        && redis
    {
        let problem = format!("\"{level}\" is for Postgres only");
        s.refuse(
            f,
            line,
            "level",
            problem,
            "write \"all\", \"reads\" or \"writes\"",
        );
    }
    entry.level = level.map_or(entry.level, |at| at.value);
    entry.compare = s
        .word(f, "compare", Compare::WORDS, Compare::from_word)
        .map_or(entry.compare, |at| at.value);
    entry.control = s.boolean(f, "control", false);
    if entry.control && (redis || entry.compare == Compare::Off) {
        let problem = match redis {
            true => "a control is for Postgres only",
            false => "a control tells what is volatile by comparing",
        };
        let way_out = match redis {
            true => "remove it",
            false => "write compare = \"rows\" or \"status\", or remove it",
        };
        s.refuse(f, s.line_of("control"), "control", problem, way_out);
    }
    s.finish(f, |_| None);
    entry.source = source?.value;
    let destination = destination?;
    entry.destination = destination.value;
    Some((
        entry,
        scope.place(destination.line, "mirroring.destination_db"),
    ))
}

/// Reads one `[[dual_write]]`.
pub(super) fn read_dual_write(
    mut s: Section<'_, '_>,
    f: &mut Faults,
    scope: &Scope<'_>,
) -> Option<(DualWrite, Place)> {
    let primary = scope.database(&mut s, f, "primary");
    let secondary = scope.database(&mut s, f, "secondary");
    let d = DualWrite::new(0, 0);
    let entry = DualWrite {
        mode: s
            .word(f, "mode", RedisMode::WORDS, RedisMode::from_word)
            .map_or(d.mode, |at| at.value),
        secondary_timeout: s.duration(f, "secondary_timeout", d.secondary_timeout, MS..=DAY),
        script_timeout: s.duration(f, "script_timeout", d.script_timeout, MS..=DAY),
        shadow_timeout: s.duration(f, "shadow_timeout", d.shadow_timeout, MS..=DAY),
        exposure: s.share(f, "exposure").unwrap_or(d.exposure),
        sample_by: s
            .word(f, "sample_by", SampleBy::WORDS, SampleBy::from_word)
            .map_or(d.sample_by, |at| at.value),
        effects: s.boolean(f, "effects", d.effects),
        blocking: s
            .word(f, "blocking", Blocking::WORDS, Blocking::from_word)
            .map_or(d.blocking, |at| at.value),
        repair: s.boolean(f, "repair", d.repair),
        queue_length: s
            .integer(f, "queue_length", 1..=1 << 24)
            .map_or(d.queue_length, |at| at.value as usize),
        queue_bytes: s.size(f, "queue_bytes", d.queue_bytes, 64 * KIB..=64 * GIB),
        pubsub_compare_window: s.duration(
            f,
            "pubsub_compare_window",
            d.pubsub_compare_window,
            MS..=Duration::from_secs(600),
        ),
        ..d
    };
    s.finish(f, |_| None);
    let secondary = secondary?;
    let entry = DualWrite {
        primary: primary?.value,
        secondary: secondary.value,
        ..entry
    };
    Some((entry, scope.place(secondary.line, "dual_write.secondary")))
}
