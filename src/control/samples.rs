//! Every metric as JSON: what a scrape of `/metrics` has, for the surfaces that are not scraped.

use serde::Deserialize;
use serde_json::{Value, json};

use super::state::ControlState;
use crate::metrics::{COMPAT_TABLE, Metric, TABLE, TextFormat, encode_tables};

/// Which metrics to show.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct MetricFilter {
    /// Only those whose names begin so.
    pub name: Option<String>,
}

/// `/metrics` in one of its formats.
pub fn metrics_text(state: &ControlState, format: TextFormat) -> String {
    let both: [&'static [Metric]; 2] = [TABLE, COMPAT_TABLE];
    let tables = match state.compat_metrics() {
        true => &both[..],
        false => &both[..1],
    };
    encode_tables(&state.scrape(), format, tables)
}

/// `/api/metrics`: a sample each, in the order of a scrape. Made from the text, so that the two cannot differ.
pub fn metrics(state: &ControlState, filter: &MetricFilter) -> Value {
    let text = metrics_text(state, TextFormat::Prometheus);
    let begin = filter.name.as_deref().unwrap_or_default();
    let samples: Vec<Value> = text
        .lines()
        .filter(|line| !line.starts_with('#') && line.starts_with(begin))
        .filter_map(sample)
        .collect();
    json!({"metrics": samples})
}

/// `name{labels} value`; the value has no spaces, the labels may.
fn sample(line: &str) -> Option<Value> {
    let (series, value) = line.rsplit_once(' ')?;
    let (name, labels) = match series.split_once('{') {
        Some((name, labels)) => (name, labels.strip_suffix('}')?),
        None => (series, ""),
    };
    let value: Value = match value.parse::<u64>() {
        Ok(whole) => whole.into(),
        Err(_) => value.parse::<f64>().ok()?.into(),
    };
    Some(json!({"name": name, "labels": labels, "value": value}))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_a_name_labels_and_a_value() {
        assert_eq!(
            sample("a_total{x=\"b } c\",y=\"\"} 12"),
            Some(json!({"name": "a_total", "labels": "x=\"b } c\",y=\"\"", "value": 12}))
        );
        assert_eq!(
            sample("up 0.5"),
            Some(json!({"name": "up", "labels": "", "value": 0.5}))
        );
        assert_eq!(sample(""), None);
    }
}
