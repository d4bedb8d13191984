//! The section of one mirror: verdict, ledger, drops over time, latency, commands, divergences.

use std::collections::BTreeMap;

use serde_json::Value;

use super::commands::commands_part;
use super::html::{anchor, escape, items, number, pairs, put, text, verdict_class};
use super::svg::{Step, latency_svg, timeline_svg};
use crate::control::table::{count, nanos, share};

pub(super) fn mirror_section(html: &mut String, mirror: &Value) {
    put(
        html,
        format_args!(
            "<section id=\"{}\"><h2>{}</h2><p class=\"quiet\">{} → {} · {} · exposure {:.1}&nbsp;%</p>\n",
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
            "<p class=\"verdict {}\">{}</p>",
            verdict_class(text(&mirror["verdict"])),
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
    commands_part(html, mirror);
    errors_table(html, mirror);
    divergences_part(html, mirror);
    html.push_str("</section>\n");
}

fn ledger_table(html: &mut String, ledger: &Value) {
    let observed = number(&ledger["observed"]);
    let offered = number(&ledger["offered"]);
    html.push_str("<h3>Ledger</h3><div class=\"wide\"><table class=\"narrow\"><tbody>");
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
    html.push_str(
        "<h3>Errors of the mirror</h3><div class=\"wide\"><table class=\"narrow\"><tbody>",
    );
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
