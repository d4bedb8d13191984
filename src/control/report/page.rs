//! The page around the mirrors: what ran, and one line per mirror.

use serde_json::Value;

use super::html::{anchor, escape, items, number, put, text, verdict_class};
use super::mirror::mirror_section;
use crate::control::table::{bytes, count, date, duration, nanos, share};

const STYLE: &str = include_str!("style.css");

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
    changes(&mut html, report);
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

/// What was changed while it ran: a verdict rests on it.
fn changes(html: &mut String, report: &Value) {
    let changes = items(&report["changes"]);
    if changes.is_empty() {
        return;
    }
    html.push_str(
        "<section><h2>Changes</h2><p class=\"quiet\">What operators changed while it ran, newest first.</p>\
         <div class=\"wide\"><table><thead><tr><th>when<th>who<th>what<th>outcome<th>answer</tr></thead><tbody>",
    );
    for change in changes {
        let what = text(&change["operation"]).replace('_', " ");
        put(
            html,
            format_args!(
                "<tr><td>{}<td>{} {}<td>{} {}<td>{}<td class=answer>{}</tr>",
                date(number(&change["at_unix_ms"]) as f64 / 1e3),
                escape(text(&change["via"])),
                escape(text(&change["who"])),
                escape(&what),
                escape(text(&change["subject"])),
                escape(text(&change["outcome"])),
                escape(&answer(text(&change["answer"]))),
            ),
        );
    }
    html.push_str("</tbody></table></div></section>\n");
}

/// What is known from the line itself is left out of an answer.
fn answer(text: &str) -> String {
    let Ok(Value::Object(fields)) = serde_json::from_str(text) else {
        return text.to_owned();
    };
    let shown = fields.iter().filter(|(key, _)| *key != "mirror");
    let words = shown.map(|(key, value)| match value.as_str() {
        Some(value) => format!("{} {value}", key.replace('_', " ")),
        None => format!("{} {value}", key.replace('_', " ")),
    });
    words.collect::<Vec<_>>().join(", ")
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
                "<tr><td><a href=\"#{id}\">{name}</a><td><span class=\"pill {class}\">{}</span><td class=n>{}<td class=n>{} ({})\
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
                class = verdict_class(text(&mirror["verdict"])),
                name = escape(text(&mirror["name"])),
            ),
        );
    }
    html.push_str("</tbody></table></div>\n");
}
