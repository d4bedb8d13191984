//! What a metric is, and everything that one scrape shows.

use super::encode::Samples;
use super::process::ProcessSample;
use super::{CoreTotal, MirrorTotal, Registry, SourceTotal};

/// The type of a metric.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Only grows; its samples end in `_total`.
    Counter,
    /// Goes up and down.
    Gauge,
    /// Buckets, count and sum.
    Histogram,
    /// Always 1; the labels say it. Its sample ends in `_info`.
    Info,
}

impl Kind {
    pub(super) const fn suffix(self) -> &'static str {
        match self {
            Kind::Counter => "_total",
            Kind::Info => "_info",
            Kind::Gauge | Kind::Histogram => "",
        }
    }
}

/// One metric.
#[derive(Clone, Copy, Debug)]
pub struct Metric {
    /// The family's name, without `_total`.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// `seconds`, `bytes`, `ratio` or nothing; the name ends in it.
    pub unit: &'static str,
    /// Label names.
    pub labels: &'static [&'static str],
    /// One line for people.
    pub help: &'static str,
    pub(super) collect: Collect,
}

/// Where a metric's values come from.
pub(super) type Collect = fn(&Scrape, &mut Samples<'_>);

impl Metric {
    const fn new(
        kind: Kind,
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collect: Collect,
    ) -> Metric {
        Metric {
            name,
            kind,
            unit: "",
            labels,
            help,
            collect,
        }
    }

    pub(super) const fn counter(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collect: Collect,
    ) -> Metric {
        Metric::new(Kind::Counter, name, labels, help, collect)
    }

    pub(super) const fn gauge(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collect: Collect,
    ) -> Metric {
        Metric::new(Kind::Gauge, name, labels, help, collect)
    }

    pub(super) const fn info(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collect: Collect,
    ) -> Metric {
        Metric::new(Kind::Info, name, labels, help, collect)
    }

    /// A distribution of times, in seconds.
    pub(super) const fn histogram(
        name: &'static str,
        labels: &'static [&'static str],
        help: &'static str,
        collect: Collect,
    ) -> Metric {
        Metric::new(Kind::Histogram, name, labels, help, collect).in_units("seconds")
    }

    pub(super) const fn in_units(mut self, unit: &'static str) -> Metric {
        self.unit = unit;
        self
    }
}

/// Everything that one scrape shows, read once so that its metrics agree with each other.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// By core.
    pub cores: Vec<CoreTotal>,
    /// By source database.
    pub sources: Vec<SourceTotal>,
    /// By mirror.
    pub mirrors: Vec<MirrorTotal>,
    /// The process.
    pub process: ProcessSample,
    /// Version of the build.
    pub version: &'static str,
    /// Start of the process, seconds since 1970.
    pub started_unix: f64,
    /// Whether every core accepts.
    pub ready: bool,
}

impl Scrape {
    /// Reads all counters.
    pub fn take(
        registry: &Registry,
        version: &'static str,
        started_unix: f64,
        ready: bool,
    ) -> Self {
        Self {
            cores: registry.core_totals(),
            sources: registry.sources(),
            mirrors: registry.mirrors(),
            process: ProcessSample::take(),
            version,
            started_unix,
            ready,
        }
    }
}
