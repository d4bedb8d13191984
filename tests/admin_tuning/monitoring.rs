//! Dashboard, alerts and runbook ask for what the proxy measures, in queries that promtool can read.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use parhelion::metrics::TABLE;

use super::{passes, read, samples, tuning};

/// Every `parhelion_…` name and, behind it, the label names in braces.
fn uses(text: &str) -> Vec<(String, Vec<String>)> {
    let mut found = Vec::new();
    for (at, _) in text.match_indices("parhelion_") {
        let before = text[..at].chars().next_back();
        if before.is_some_and(|c| c.is_alphanumeric() || "_/-".contains(c)) {
            continue;
        }
        let rest = &text[at..];
        let end = rest
            .find(|c: char| !c.is_ascii_alphanumeric() && c != '_')
            .unwrap_or(rest.len());
        let mut labels = Vec::new();
        if let Some(body) = rest[end..].strip_prefix('{') {
            let body = body.split('}').next().unwrap();
            let names = body
                .split(',')
                .filter_map(|part| part.split(['=', '!', '~']).next());
            labels = names
                .map(|name| name.trim().to_owned())
                .filter(|name| !name.is_empty())
                .collect();
        }
        found.push((rest[..end].to_owned(), labels));
    }
    found
}

#[test]
fn dashboard_alerts_and_runbook_use_metrics_and_labels_that_exist() {
    for name in ["grafana.json", "alerts.yaml", "runbook.md"] {
        let text = read(name).replace("\\\"", "\"");
        let uses = uses(&text);
        assert!(!uses.is_empty(), "{name}");
        for (used, labels) in uses {
            let metric = TABLE.iter().find(|metric| {
                samples(metric).contains(&used) || metric.name == used && name == "runbook.md"
            });
            let Some(metric) = metric else {
                panic!("tuning/{name}: there is no metric {used}");
            };
            for label in labels {
                assert!(
                    metric.labels.contains(&label.as_str()),
                    "tuning/{name}: {used} has no label {label}"
                );
            }
        }
    }
    let grafana: serde_json::Value = serde_json::from_str(&read("grafana.json")).unwrap();
    let ids: Vec<i64> = grafana["panels"]
        .as_array()
        .unwrap()
        .iter()
        .map(|p| p["id"].as_i64().unwrap())
        .collect();
    assert_eq!(
        ids.iter().collect::<BTreeSet<_>>().len(),
        ids.len(),
        "panel ids are unique"
    );
    for alert in [
        "ParhelionProductionAtRisk",
        "ParhelionMirrorLying",
        "ParhelionDivergence",
    ] {
        assert!(read("alerts.yaml").contains(alert));
    }
}

#[test]
fn promtool_accepts_the_alerts_and_what_they_do() {
    let rules = tuning("alerts.yaml");
    passes("promtool", &["check", "rules", rules.to_str().unwrap()]);
    let tests = tuning("alerts_test.yaml");
    passes("promtool", &["test", "rules", tests.to_str().unwrap()]);
}

/// Each query of the dashboard as a rule of its own, which promtool can read.
#[test]
fn promtool_accepts_the_queries_of_the_dashboard() {
    fn queries(value: &serde_json::Value, found: &mut Vec<String>) {
        match value {
            serde_json::Value::Array(items) => items.iter().for_each(|item| queries(item, found)),
            serde_json::Value::Object(fields) => {
                let query = fields.get("expr").and_then(|query| query.as_str());
                found.extend(query.map(|query| query.replace("$__rate_interval", "5m")));
                fields.values().for_each(|field| queries(field, found));
            }
            _ => {}
        }
    }
    let mut found = Vec::new();
    queries(
        &serde_json::from_str(&read("grafana.json")).unwrap(),
        &mut found,
    );
    assert!(found.len() > 20, "{}", found.len());
    let mut rules = String::from("groups:\n  - name: dashboard\n    rules:\n");
    for (at, query) in found.iter().enumerate() {
        let query = serde_json::to_string(query).unwrap();
        writeln!(rules, "      - record: query:{at}\n        expr: {query}").unwrap();
    }
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("dashboard.yaml");
    std::fs::write(&path, rules).unwrap();
    passes("promtool", &["check", "rules", path.to_str().unwrap()]);
}
