//! Writes the table of metrics as OpenMetrics 1.0 or as Prometheus text 0.0.4.
//!
//! The formats differ in what a scraper checks: OpenMetrics names a counter's family without `_total`, adds units
//! and an end mark. Label values are escaped here and nowhere else.

use std::fmt::Write;

use super::command::CommandTotal;
use super::histogram::LE_BUCKETS_NS;
use super::metric::{Kind, Metric, Scrape};
use super::table::TABLE;
use super::totals::Latency;

/// A text format for scrapers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TextFormat {
    /// OpenMetrics 1.0.
    OpenMetrics,
    /// Prometheus text 0.0.4.
    Prometheus,
}

impl TextFormat {
    /// The HTTP content type.
    pub const fn content_type(self) -> &'static str {
        match self {
            TextFormat::OpenMetrics => "application/openmetrics-text; version=1.0.0; charset=utf-8",
            TextFormat::Prometheus => "text/plain; version=0.0.4; charset=utf-8",
        }
    }

    /// What an HTTP `Accept` header asks for; Prometheus text unless OpenMetrics is named.
    pub fn negotiate(accept: &str) -> Self {
        let wanted = |part: &str| {
            let mut words = part.split(';').map(str::trim);
            words.next() == Some("application/openmetrics-text")
                && !words.any(|w| w.strip_prefix("q=").is_some_and(|q| q.parse() == Ok(0.0)))
        };
        if accept.split(',').any(wanted) {
            TextFormat::OpenMetrics
        } else {
            TextFormat::Prometheus
        }
    }
}

/// All metrics of [`TABLE`] as text.
pub fn encode(scrape: &Scrape, format: TextFormat) -> String {
    encode_tables(scrape, format, &[TABLE])
}

/// The metrics of these tables as text.
pub fn encode_tables(scrape: &Scrape, format: TextFormat, tables: &[&'static [Metric]]) -> String {
    // A scrape of 50 mirrors is about 200 KiB; smaller ones grow to less than this is worth.
    let mut text = String::with_capacity(64 * 1024);
    for metric in tables.iter().copied().flatten() {
        header(&mut text, metric, format);
        (metric.collect)(
            scrape,
            &mut Samples {
                text: &mut text,
                metric,
            },
        );
    }
    if format == TextFormat::OpenMetrics {
        text.push_str("# EOF\n");
    }
    text
}

fn header(text: &mut String, metric: &Metric, format: TextFormat) {
    let suffix = match (metric.kind, format) {
        (Kind::Counter, TextFormat::Prometheus) => "_total",
        (Kind::Info, TextFormat::Prometheus) => "_info",
        _ => "",
    };
    let kind = match (metric.kind, format) {
        (Kind::Counter, _) => "counter",
        (Kind::Histogram, _) => "histogram",
        (Kind::Info, TextFormat::OpenMetrics) => "info",
        (Kind::Gauge | Kind::Info, _) => "gauge",
    };
    let name = metric.name;
    push(
        text,
        format_args!("# HELP {name}{suffix} {}\n", metric.help),
    );
    push(text, format_args!("# TYPE {name}{suffix} {kind}\n"));
    if format == TextFormat::OpenMetrics && !metric.unit.is_empty() {
        push(text, format_args!("# UNIT {name} {}\n", metric.unit));
    }
}

/// Where a metric's values go.
pub struct Samples<'a> {
    text: &'a mut String,
    metric: &'static Metric,
}

impl Samples<'_> {
    /// One value; `labels` in the order of the table.
    pub fn int(&mut self, labels: &[&str], value: u64) {
        self.series(self.metric.kind.suffix(), labels, None);
        push(self.text, format_args!(" {value}\n"));
    }

    /// One value, left out while it is 0.
    pub fn int_if_any(&mut self, labels: &[&str], value: u64) {
        if value > 0 {
            self.int(labels, value);
        }
    }

    /// One value that is not whole.
    pub fn float(&mut self, labels: &[&str], value: f64) {
        self.series(self.metric.kind.suffix(), labels, None);
        push(self.text, format_args!(" {value}\n"));
    }

    /// Nanoseconds as seconds.
    pub fn seconds(&mut self, labels: &[&str], ns: u64) {
        self.float(labels, ns as f64 / 1e9);
    }

    /// One distribution.
    pub fn latency(&mut self, labels: &[&str], latency: &Latency) {
        let mut buckets = [0; LE_BUCKETS_NS.len() + 1];
        for cell in latency.histogram.iter_recorded() {
            let bucket = LE_BUCKETS_NS.partition_point(|le| *le < cell.value_iterated_to());
            buckets[bucket] += cell.count_at_value();
        }
        self.buckets(labels, &buckets, latency.sum_ns);
    }

    /// One command's distribution.
    pub fn command(&mut self, labels: &[&str], total: &CommandTotal) {
        self.buckets(labels, &total.buckets, total.sum_ns);
    }

    fn buckets(&mut self, labels: &[&str], buckets: &[u64], sum_ns: u64) {
        let mut count = 0;
        for (i, bucket) in buckets.iter().enumerate() {
            count += bucket;
            let le = LE_BUCKETS_NS
                .get(i)
                .map_or(f64::INFINITY, |ns| *ns as f64 / 1e9);
            self.series("_bucket", labels, Some(le));
            push(self.text, format_args!(" {count}\n"));
        }
        self.series("_count", labels, None);
        push(self.text, format_args!(" {count}\n"));
        self.series("_sum", labels, None);
        push(self.text, format_args!(" {}\n", sum_ns as f64 / 1e9));
    }

    fn series(&mut self, suffix: &str, labels: &[&str], le: Option<f64>) {
        debug_assert_eq!(
            labels.len(),
            self.metric.labels.len(),
            "{}",
            self.metric.name
        );
        self.text.push_str(self.metric.name);
        self.text.push_str(suffix);
        let mut separator = '{';
        for (name, value) in self.metric.labels.iter().zip(labels) {
            self.text.push(separator);
            separator = ',';
            self.text.push_str(name);
            self.text.push_str("=\"");
            escape(self.text, value);
            self.text.push('"');
        }
        if let Some(le) = le {
            self.text.push(separator);
            separator = ',';
            if le.is_infinite() {
                self.text.push_str("le=\"+Inf\"");
            } else {
                push(self.text, format_args!("le=\"{le:?}\""));
            }
        }
        if separator == ',' {
            self.text.push('}');
        }
    }
}

fn escape(text: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '\\' => text.push_str("\\\\"),
            '"' => text.push_str("\\\""),
            '\n' => text.push_str("\\n"),
            c => text.push(c),
        }
    }
}

fn push(text: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = text.write_fmt(args);
}
