//! The process, its cores and what clients do to them.

use super::super::metric::{Metric, Scrape};
use super::super::{CoreTotal, ListenerTotal, Protocol};

const CORE: &[&str] = &["core"];
const LISTENER: &[&str] = &["core", "protocol"];

/// The process, its rings and cores, its listeners.
pub(super) const METRICS: &[Metric] = &[
    Metric::info("parhelion_build", &["version"], "The build.", |s, out| {
        out.int(&[s.version], 1)
    }),
    Metric::gauge(
        "parhelion_start_time_seconds",
        &[],
        "Start of the process, seconds since 1970.",
        |s, out| out.float(&[], s.started_unix),
    )
    .in_units("seconds"),
    Metric::gauge(
        "parhelion_ready",
        &[],
        "1 once every core accepts, 0 before and while draining.",
        |s, out| out.int(&[], u64::from(s.ready)),
    ),
    Metric::gauge(
        "parhelion_process_resident_memory_bytes",
        &[],
        "Resident memory.",
        |s, out| out.int(&[], s.process.resident_bytes),
    )
    .in_units("bytes"),
    Metric::gauge(
        "parhelion_process_virtual_memory_bytes",
        &[],
        "Virtual memory.",
        |s, out| out.int(&[], s.process.virtual_bytes),
    )
    .in_units("bytes"),
    Metric::gauge(
        "parhelion_process_open_fds",
        &[],
        "Open file descriptors.",
        |s, out| out.int(&[], s.process.open_fds),
    ),
    Metric::gauge(
        "parhelion_process_max_fds",
        &[],
        "Limit on open file descriptors.",
        |s, out| out.int(&[], s.process.max_fds),
    ),
    Metric::gauge("parhelion_process_threads", &[], "Threads.", |s, out| {
        out.int(&[], s.process.threads)
    }),
    Metric::counter(
        "parhelion_process_cpu_seconds",
        &[],
        "Processor time, user and system.",
        |s, out| out.float(&[], s.process.cpu_seconds),
    )
    .in_units("seconds"),
    Metric::counter(
        "parhelion_ring_turns",
        CORE,
        "Turns of a core's driver.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_turns)),
    ),
    Metric::counter(
        "parhelion_ring_enters",
        CORE,
        "io_uring_enter system calls.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enters)),
    ),
    Metric::counter(
        "parhelion_ring_completions",
        CORE,
        "io_uring completions handled.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes)),
    ),
    Metric::counter(
        "parhelion_ring_submissions",
        CORE,
        "io_uring submissions made.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes)),
    ),
    Metric::gauge(
        "parhelion_ring_entries",
        CORE,
        "Length of a core's submission queue; what does not fit is submitted at once.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_entries)),
    ),
    Metric::gauge(
        "parhelion_ring_submissions_max",
        CORE,
        "Most submissions of one turn since the start: how deep the submission queue was.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_sqes_max)),
    ),
    Metric::gauge(
        "parhelion_ring_completions_max",
        CORE,
        "Most completions of one turn since the start: how deep the completion queue was.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_cqes_max)),
    ),
    Metric::counter(
        "parhelion_ring_buffer_misses",
        CORE,
        "Receives that ended because no receive buffer was free.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_enobufs)),
    ),
    Metric::counter(
        "parhelion_accept_errors",
        CORE,
        "Accepts that failed.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.ring_accept_errors)),
    ),
    Metric::counter(
        "parhelion_core_busy_seconds",
        CORE,
        "CPU time of a core, in user mode and in the kernel; with busy_poll, the time outside its wait.",
        |s, out| per_core(s, |core, id| out.seconds(&[id], core.busy_ns)),
    )
    .in_units("seconds"),
    Metric::counter(
        "parhelion_core_idle_seconds",
        CORE,
        "Time in which a core had nothing to do.",
        |s, out| per_core(s, |core, id| out.seconds(&[id], core.idle_ns)),
    )
    .in_units("seconds"),
    Metric::counter(
        "parhelion_session_panics",
        CORE,
        "Sessions that ended in a panic; the core went on.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.session_panics)),
    ),
    Metric::counter(
        "parhelion_event_drops",
        CORE,
        "Events for the control thread dropped because its channel was full.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.event_drops)),
    ),
    Metric::gauge(
        "parhelion_slabs_used",
        CORE,
        "Receive buffers in use.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_used)),
    ),
    Metric::gauge(
        "parhelion_slabs_capacity",
        CORE,
        "Receive buffers there are; with mirrors of Postgres a quarter more than configured, which are for them alone.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.slabs_capacity)),
    ),
    Metric::gauge(
        "parhelion_mirror_memory_used_bytes",
        CORE,
        "Bytes that all mirror rings of a core hold.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_used)),
    )
    .in_units("bytes"),
    Metric::gauge(
        "parhelion_mirror_memory_capacity_bytes",
        CORE,
        "Bound on those bytes.",
        |s, out| per_core(s, |core, id| out.int(&[id], core.mirror_memory_capacity)),
    )
    .in_units("bytes"),
    Metric::counter(
        "parhelion_connections_accepted",
        LISTENER,
        "Client connections accepted.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.accepted)),
    ),
    Metric::counter(
        "parhelion_connections_closed",
        LISTENER,
        "Client connections closed.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.closed)),
    ),
    Metric::counter(
        "parhelion_connections_refused",
        LISTENER,
        "Client connections turned away.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.refused)),
    ),
    Metric::gauge(
        "parhelion_active_connections",
        LISTENER,
        "Client connections open.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.active)),
    ),
    Metric::counter(
        "parhelion_client_received_bytes",
        LISTENER,
        "Bytes received from clients.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_in)),
    )
    .in_units("bytes"),
    Metric::counter(
        "parhelion_client_sent_bytes",
        LISTENER,
        "Bytes sent to clients.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.client_bytes_out)),
    )
    .in_units("bytes"),
    Metric::counter(
        "parhelion_primary_received_bytes",
        LISTENER,
        "Bytes received from primaries.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_in)),
    )
    .in_units("bytes"),
    Metric::counter(
        "parhelion_primary_sent_bytes",
        LISTENER,
        "Bytes sent to primaries.",
        |s, out| per_listener(s, |l, labels| out.int(&labels, l.primary_bytes_out)),
    )
    .in_units("bytes"),
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
