//! Small words for pages: JSON as text, text as HTML.

use std::fmt::Write;

use serde_json::Value;

pub(super) fn pairs(value: &Value) -> Vec<(u64, u64)> {
    let pair = |p: &Value| (number(&p[0]), number(&p[1]));
    items(value).iter().map(pair).collect()
}

/// An id without spaces or quotes.
pub(super) fn anchor(mirror: &Value) -> String {
    let name = text(&mirror["name"]);
    name.bytes()
        .fold("m-".to_owned(), |id, byte| format!("{id}{byte:02x}"))
}

/// Text as HTML, in elements and in quoted attributes.
pub(super) fn escape(text: &str) -> String {
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

pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn number(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

pub(super) fn text(value: &Value) -> &str {
    value.as_str().unwrap_or("")
}

pub(super) fn put(html: &mut String, args: std::fmt::Arguments<'_>) {
    // Writing to a String cannot fail.
    let _ = html.write_fmt(args);
}

/// The colour of a verdict.
pub(super) fn verdict_class(verdict: &str) -> &'static str {
    match verdict {
        "ready" => "good",
        "not ready" => "bad",
        _ => "open",
    }
}
