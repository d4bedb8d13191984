//! The process, its cores and what clients do to them.

use super::super::metric::{Kind, Metric, Scrape};
use super::super::{CoreTotal, ListenerTotal, Protocol};

const CORE: &[&str] = &["core"];
const LISTENER: &[&str] = &["core", "protocol"];

/// The process, its rings and cores, its listeners.
pub(super) const METRICS: &[Metric] = &[
    Metric {
        name: "parhelion_build",
        kind: Kind::Info,
        unit: "",
        labels: &["version"],
        help: "The build.",
        collect: |s, out| out.int(&[s.version], 1),
    },
    Metric {
        name: "parhelion_start_time_seconds",
        kind: Kind::Gauge,
        unit: "seconds",
        labels: &[],
        help: "Start of the process, seconds since 1970.",
        collect: |s, out| out.float(&[], s.started_unix),
    },
    Metric {
        name: "parhelion_ready",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "1 once every core accepts, 0 before and while draining.",
        collect: |s, out| out.int(&[], u64::from(s.ready)),
    },
    Metric {
        name: "parhelion_process_resident_memory_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Resident memory.",
        collect: |s, out| out.int(&[], s.process.resident_bytes),
    },
    Metric {
        name: "parhelion_process_virtual_memory_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: &[],
        help: "Virtual memory.",
        collect: |s, out| out.int(&[], s.process.virtual_bytes),
    },
    Metric {
        name: "parhelion_process_open_fds",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Open file descriptors.",
        collect: |s, out| out.int(&[], s.process.open_fds),
    },
    Metric {
        name: "parhelion_process_max_fds",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Limit on open file descriptors.",
        collect: |s, out| out.int(&[], s.process.max_fds),
    },
    Metric {
        name: "parhelion_process_threads",
        kind: Kind::Gauge,
        unit: "",
        labels: &[],
        help: "Threads.",
        collect: |s, out| out.int(&[], s.process.threads),
    },
    Metric {
        name: "parhelion_process_cpu_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: &[],
        help: "Processor time, user and system.",
        collect: |s, out| out.float(&[], s.process.cpu_seconds),
    },
    Metric {
        name: "parhelion_ring_turns",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "Turns of a core's driver.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_turns)),
    },
    Metric {
        name: "parhelion_ring_enters",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "io_uring_enter system calls.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enters)),
    },
    Metric {
        name: "parhelion_ring_completions",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "io_uring completions handled.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes)),
    },
    Metric {
        name: "parhelion_ring_submissions",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "io_uring submissions made.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes)),
    },
    Metric {
        name: "parhelion_ring_entries",
        kind: Kind::Gauge,
        unit: "",
        labels: CORE,
        help: "Length of a core's submission queue; what does not fit is submitted at once.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_entries)),
    },
    Metric {
        name: "parhelion_ring_submissions_max",
        kind: Kind::Gauge,
        unit: "",
        labels: CORE,
        help: "Most submissions of one turn since the start: how deep the submission queue was.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes_max)),
    },
    Metric {
        name: "parhelion_ring_completions_max",
        kind: Kind::Gauge,
        unit: "",
        labels: CORE,
        help: "Most completions of one turn since the start: how deep the completion queue was.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes_max)),
    },
    Metric {
        name: "parhelion_ring_buffer_misses",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "Receives that ended because no receive buffer was free.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enobufs)),
    },
    Metric {
        name: "parhelion_accept_errors",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "Accepts that failed.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.ring_accept_errors)),
    },
    Metric {
        name: "parhelion_core_busy_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: CORE,
        help: "Time a core spent working.",
        collect: |s, out| per_core(s, |core, id| out.seconds(&[id], core.busy_ns)),
    },
    Metric {
        name: "parhelion_core_idle_seconds",
        kind: Kind::Counter,
        unit: "seconds",
        labels: CORE,
        help: "Time a core waited in its ring.",
        collect: |s, out| per_core(s, |core, id| out.seconds(&[id], core.idle_ns)),
    },
    Metric {
        name: "parhelion_session_panics",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "Sessions that ended in a panic; the core went on.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.session_panics)),
    },
    Metric {
        name: "parhelion_event_drops",
        kind: Kind::Counter,
        unit: "",
        labels: CORE,
        help: "Events for the control thread dropped because its channel was full.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.event_drops)),
    },
    Metric {
        name: "parhelion_slabs_used",
        kind: Kind::Gauge,
        unit: "",
        labels: CORE,
        help: "Receive buffers in use.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_used)),
    },
    Metric {
        name: "parhelion_slabs_capacity",
        kind: Kind::Gauge,
        unit: "",
        labels: CORE,
        help: "Receive buffers there are.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_capacity)),
    },
    Metric {
        name: "parhelion_mirror_memory_used_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: CORE,
        help: "Bytes that all mirror rings of a core hold.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_used)),
    },
    Metric {
        name: "parhelion_mirror_memory_capacity_bytes",
        kind: Kind::Gauge,
        unit: "bytes",
        labels: CORE,
        help: "Bound on those bytes.",
        collect: |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_capacity)),
    },
    Metric {
        name: "parhelion_connections_accepted",
        kind: Kind::Counter,
        unit: "",
        labels: LISTENER,
        help: "Client connections accepted.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.accepted)),
    },
    Metric {
        name: "parhelion_connections_closed",
        kind: Kind::Counter,
        unit: "",
        labels: LISTENER,
        help: "Client connections closed.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.closed)),
    },
    Metric {
        name: "parhelion_connections_refused",
        kind: Kind::Counter,
        unit: "",
        labels: LISTENER,
        help: "Client connections turned away.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.refused)),
    },
    Metric {
        name: "parhelion_active_connections",
        kind: Kind::Gauge,
        unit: "",
        labels: LISTENER,
        help: "Client connections open.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.active)),
    },
    Metric {
        name: "parhelion_client_received_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: LISTENER,
        help: "Bytes received from clients.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_in)),
    },
    Metric {
        name: "parhelion_client_sent_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: LISTENER,
        help: "Bytes sent to clients.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_out)),
    },
    Metric {
        name: "parhelion_primary_received_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: LISTENER,
        help: "Bytes received from primaries.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_in)),
    },
    Metric {
        name: "parhelion_primary_sent_bytes",
        kind: Kind::Counter,
        unit: "bytes",
        labels: LISTENER,
        help: "Bytes sent to primaries.",
        collect: |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_out)),
    },
];

fn per_core(scrape: &Scrape, mut each: impl FnMut(&CoreTotal, &str)) {
    for core in &scrape.cores {
        each(core, &core.core.to_string());
    }
}

fn per_listener(scrape: &Scrape, mut each: impl FnMut(&ListenerTotal, [&str; 2])) {
    for core in &scrape.cores {
        let id = core.core.to_string();
        for protocol in Protocol::ALL {
            each(&core.listeners[protocol as usize], [&id, protocol.as_str()]);
        }
    }
}
