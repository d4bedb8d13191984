//! The report: one self-contained page and the same as JSON. What ran, for how long, and whether each candidate
//! is ready.
//!
//! The page is made from the JSON alone, so that `parhelion report` shows a remote process and a stored file alike.

use std::collections::BTreeMap;
use std::fmt::Write;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::{Map, Value, json};

use super::divergences::DivergenceFilter;
use super::report_svg::{Step, latency_svg, timeline_svg};
use super::state::ControlState;
use super::table::{bytes, count, duration, nanos, share};
use super::view;
use crate::metrics::DivergenceKind;

/// Examples shown per kind and mirror.
const EXAMPLES_PER_KIND: usize = 5;

const STYLE: &str = include_str!("report.css");

/// A report in both forms.
#[derive(Clone, Debug)]
pub struct Report {
    /// One page that loads nothing.
    pub html: String,
    /// The same for programs.
    pub json: Value,
}

/// Reports on the process as it is now.
pub fn report(state: &ControlState) -> Report {
    let json = report_json(state);
    Report {
        html: render(&json),
        json,
    }
}

fn report_json(state: &ControlState) -> Value {
    let now = SystemTime::now().duration_since(UNIX_EPOCH);
    let mut mirrors = view::mirrors(state);
    if let Some(list) = mirrors["mirrors"].as_array_mut() {
        for mirror in list {
            let name = text(&mirror["name"]).to_owned();
            mirror["distributions"] = view::latency(state, &name).unwrap_or(Value::Null);
            let pair = format!(
                "{}:{}",
                text(&mirror["source"]),
                text(&mirror["destination"])
            );
            mirror["examples"] = examples(state, &pair);
            let ends = (text(&mirror["source"]), text(&mirror["destination"]));
            mirror["timeline"] = state.timeline.of(ends.0, ends.1);
        }
    }
    let status = view::status(state);
    json!({
        "format": 1,
        "generated_unix": now.map_or(0.0, |d| d.as_secs_f64()),
        "version": status["version"],
        "started_unix": status["started_unix"],
        "uptime_seconds": status["uptime_seconds"],
        "cores": status["cores"],
        "process": status["process"],
        "totals": status["totals"],
        "databases": view::databases(state)["databases"],
        "mirrors": mirrors["mirrors"],
        "config": state.config(),
    })
}

fn examples(state: &ControlState, mirror: &str) -> Value {
    let mut kinds = Map::new();
    for kind in DivergenceKind::ALL {
        let (_, found) = state.divergences.query(&DivergenceFilter {
            kind: Some(kind.as_str().to_owned()),
            mirror: Some(mirror.to_owned()),
            limit: EXAMPLES_PER_KIND,
            ..DivergenceFilter::default()
        });
        if !found.is_empty() {
            kinds.insert(kind.as_str().to_owned(), json!(found));
        }
    }
    Value::Object(kinds)
}

/// The page for a report's JSON. Missing fields show as nothing or 0.
pub fn render(report: &Value) -> String {
    let mut html = String::with_capacity(64 * 1024);
    let version = escape(text(&report["version"]));
    put(
        &mut html,
        format_args!(
            "<!doctype html>\n<html lang=\"en\">\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width,initial-scale=1\">\n\
         <title>Parhelion report</title>\n<style>{STYLE}</style>\n<main>\n\
         <header><h1>Parhelion report</h1><p class=\"quiet\">version {version} · made {}</p></header>\n",
            date(report["generated_unix"].as_f64().unwrap_or(0.0)),
        ),
    );
    what_ran(&mut html, report);
    summary(&mut html, report);
    for mirror in items(&report["mirrors"]) {
        mirror_section(&mut html, mirror);
    }
    html.push_str("</main>\n</html>\n");
    html
}

fn what_ran(html: &mut String, report: &Value) {
    let totals = &report["totals"];
    let facts = [
        (
            "started",
            date(report["started_unix"].as_f64().unwrap_or(0.0)),
        ),
        (
            "ran for",
            duration(report["uptime_seconds"].as_f64().unwrap_or(0.0)),
        ),
        ("cores", items(&report["cores"]).len().to_string()),
        ("clients accepted", count(number(&totals["accepted"]))),
        ("requests", count(number(&totals["requests"]))),
        ("from clients", bytes(number(&totals["client_bytes_in"]))),
        ("to clients", bytes(number(&totals["client_bytes_out"]))),
        (
            "memory",
            bytes(number(&report["process"]["resident_bytes"])),
        ),
    ];
    html.push_str("<dl class=\"facts\">");
    for (name, value) in facts {
        put(
            html,
            format_args!("<div><dt>{name}</dt><dd>{}</dd></div>", escape(&value)),
        );
    }
    html.push_str("</dl>\n");
}

fn summary(html: &mut String, report: &Value) {
    let mirrors = items(&report["mirrors"]);
    if mirrors.is_empty() {
        html.push_str("<p>No mirrors ran.</p>\n");
        return;
    }
    html.push_str(
        "<div class=\"wide\"><table><thead><tr><th>mirror<th>verdict<th class=n>delivered\
         <th class=n>not delivered<th class=n>compared<th class=n>diverged\
         <th class=n>p99<th class=n>primary p99</tr></thead><tbody>",
    );
    for mirror in mirrors {
        let ledger = &mirror["ledger"];
        let lost = number(&ledger["dropped_total"]) + number(&ledger["errored"]);
        put(
            html,
            format_args!(
                "<tr><td><a href=\"#{id}\">{name}</a><td>{}<td class=n>{}<td class=n>{} ({})\
             <td class=n>{}<td class=n>{}<td class=n>{}<td class=n>{}</tr>",
                escape(text(&mirror["verdict"])),
                count(number(&ledger["delivered"])),
                count(lost),
                share(lost, number(&ledger["offered"])),
                count(number(&mirror["compared"])),
                count(number(&mirror["divergences_total"])),
                nanos(number(&mirror["latency"]["mirror"]["p99_ns"])),
                nanos(number(&mirror["latency"]["primary"]["p99_ns"])),
                id = anchor(mirror),
                name = escape(text(&mirror["name"])),
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

fn mirror_section(html: &mut String, mirror: &Value) {
    put(
        html,
        format_args!(
            "<section id=\"{}\"><h2>{}</h2><p class=\"quiet\">{} → {} · {} · exposure {:.1} %</p>\n",
            anchor(mirror),
            escape(text(&mirror["name"])),
            escape(text(&mirror["source"])),
            escape(text(&mirror["destination"])),
            escape(text(&mirror["protocol"])),
            mirror["exposure"].as_f64().unwrap_or(0.0) * 100.0,
        ),
    );
    put(
        html,
        format_args!(
            "<p class=\"verdict\">{}</p>",
            escape(text(&mirror["verdict"]))
        ),
    );
    html.push_str("<ul>");
    for reason in items(&mirror["reasons"]) {
        put(html, format_args!("<li>{}</li>", escape(text(reason))));
    }
    html.push_str("</ul>\n");
    if !items(&mirror["rests_on"]).is_empty() {
        html.push_str("<p class=\"quiet\">It rests on:</p><ul class=\"quiet\">");
        for line in items(&mirror["rests_on"]) {
            put(html, format_args!("<li>{}</li>", escape(text(line))));
        }
        html.push_str("</ul>\n");
    }
    ledger_table(html, &mirror["ledger"]);
    timeline_part(html, mirror);
    latency_part(html, mirror);
    errors_table(html, mirror);
    divergences_part(html, mirror);
    html.push_str("</section>\n");
}

fn ledger_table(html: &mut String, ledger: &Value) {
    let observed = number(&ledger["observed"]);
    let offered = number(&ledger["offered"]);
    html.push_str("<h3>Ledger</h3><div class=\"wide\"><table><tbody>");
    let mut line = |class: &str, name: &str, value: u64, whole: u64| {
        put(
            html,
            format_args!(
                "<tr class=\"{class}\"><td>{}<td class=n>{}<td class=n>{}</tr>",
                escape(name),
                count(value),
                share(value, whole),
            ),
        );
    };
    line("sum", "observed", observed, observed);
    for name in ["excluded", "unexposed", "offered"] {
        line("part", name, number(&ledger[name]), observed);
    }
    line("sum", "offered", offered, offered);
    for name in ["delivered", "errored", "in_flight"] {
        line(
            "part",
            &name.replace('_', " "),
            number(&ledger[name]),
            offered,
        );
    }
    if let Some(reasons) = ledger["dropped"].as_object() {
        for (reason, value) in reasons.iter().filter(|(_, value)| number(value) > 0) {
            let name = format!("dropped: {}", reason.replace('_', " "));
            line("part", &name, number(value), offered);
        }
    }
    html.push_str("</tbody></table></div>\n");
}

fn timeline_part(html: &mut String, mirror: &Value) {
    let steps: Vec<Step> = items(&mirror["timeline"])
        .iter()
        .map(|step| Step {
            from: number(&step["from_seconds"]),
            to: number(&step["to_seconds"]),
            delivered: number(&step["delivered"]),
            lost: number(&step["dropped"]) + number(&step["errored"]),
        })
        .collect();
    if steps.len() > 1 {
        html.push_str("<h3>Over time</h3>");
        html.push_str(&timeline_svg(&steps));
    }
}

fn latency_part(html: &mut String, mirror: &Value) {
    html.push_str("<h3>Latency</h3>");
    if number(&mirror["latency"]["mirror"]["count"]) == 0 {
        html.push_str("<p class=\"quiet\">Nothing was delivered.</p>\n");
        return;
    }
    let distributions = &mirror["distributions"];
    html.push_str(&latency_svg(
        &pairs(&distributions["primary"]),
        &pairs(&distributions["mirror"]),
    ));
    html.push_str(
        "<div class=\"wide\"><table><thead><tr><th><th class=n>mean<th class=n>p50<th class=n>p90\
         <th class=n>p99<th class=n>p99.9<th class=n>max<th class=n>count</tr></thead><tbody>",
    );
    for (name, key) in [
        ("primary", "primary"),
        ("mirror", "mirror"),
        ("queue", "queue_delay"),
    ] {
        let latency = &mirror["latency"][key];
        put(html, format_args!("<tr><td>{name}"));
        for field in ["mean_ns", "p50_ns", "p90_ns", "p99_ns", "p999_ns", "max_ns"] {
            put(
                html,
                format_args!("<td class=n>{}", nanos(number(&latency[field]))),
            );
        }
        put(
            html,
            format_args!("<td class=n>{}</tr>", count(number(&latency["count"]))),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

fn errors_table(html: &mut String, mirror: &Value) {
    let errors: BTreeMap<&String, u64> = match mirror["errors"].as_object() {
        Some(errors) => errors.iter().map(|(class, n)| (class, number(n))).collect(),
        None => return,
    };
    if errors.is_empty() {
        return;
    }
    html.push_str("<h3>Errors of the mirror</h3><div class=\"wide\"><table><tbody>");
    for (class, n) in errors {
        put(
            html,
            format_args!("<tr><td>{}<td class=n>{}</tr>", escape(class), count(n)),
        );
    }
    html.push_str("</tbody></table></div>\n");
}

fn divergences_part(html: &mut String, mirror: &Value) {
    put(
        html,
        format_args!(
            "<h3>Divergences</h3><p class=\"quiet\">{} replies compared, {} not compared.</p>\n",
            count(number(&mirror["compared"])),
            count(number(&mirror["not_compared"])),
        ),
    );
    let Some(kinds) = mirror["divergences"].as_object() else {
        return;
    };
    for (kind, n) in kinds.iter().filter(|(_, n)| number(n) > 0) {
        let name = escape(&kind.replace('_', " "));
        put(
            html,
            format_args!(
                "<h4>{name} <span class=\"quiet\">{} ({} of the compared)</span></h4>",
                count(number(n)),
                share(number(n), number(&mirror["compared"])),
            ),
        );
        for example in items(&mirror["examples"][kind]) {
            put(
                html,
                format_args!(
                    "<div class=\"example\"><b>{} {}</b><div><i>primary</i><code>{}</code></div>\
                 <div><i>mirror</i><code>{}</code></div></div>",
                    escape(text(&example["command"])),
                    escape(text(&example["key"])),
                    escape(text(&example["primary"])),
                    escape(text(&example["mirror"])),
                ),
            );
        }
    }
}

fn pairs(value: &Value) -> Vec<(u64, u64)> {
    let pair = |p: &Value| (number(&p[0]), number(&p[1]));
    items(value).iter().map(pair).collect()
}

/// An id without spaces or quotes.
fn anchor(mirror: &Value) -> String {
    let name = text(&mirror["name"]);
    name.bytes()
        .fold("m-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// UTC, to the second.
fn date(unix: f64) -> String {
    let at = UNIX_EPOCH + std::time::Duration::from_secs(unix.max(0.0) as u64);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// Text as HTML, in elements and in quoted attributes.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            c => out.push(c),
        }
    }
    out
}

fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

fn put(html: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = html.write_fmt(args);
}
