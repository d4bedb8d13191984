//! Answers of the API as tables for people.

use std::io::{self, Write};

use serde_json::Value;

use crate::control::latency;
use crate::control::listing::{self, Column, ColumnType};
use crate::control::report::verdict_rows;
use crate::control::table::{Table, bytes, count, date, duration, nanos, printable, share};

/// Writes an answer for people.
pub(super) type Show = fn(&Value, &mut dyn Write) -> io::Result<()>;

pub(super) fn n(value: &Value) -> u64 {
    value.as_u64().unwrap_or(0)
}

pub(super) fn s(value: &Value) -> String {
    value.as_str().unwrap_or("").to_owned()
}

pub(super) fn items(value: &Value) -> &[Value] {
    value.as_array().map_or(&[], Vec::as_slice)
}

pub(super) fn status(status: &Value, out: &mut dyn Write) -> io::Result<()> {
    let totals = &status["totals"];
    let ledger = &totals["ledger"];
    let state = match (status["draining"] == true, status["ready"] == true) {
        (true, _) => "draining",
        (false, true) => "ready",
        (false, false) => "not ready",
    };
    let uptime = duration(status["uptime_seconds"].as_f64().unwrap_or(0.0));
    writeln!(
        out,
        "parhelion {} · {state} · up {uptime}",
        s(&status["version"])
    )?;
    writeln!(
        out,
        "clients {} · requests {} · primary errors {} · divergences {}",
        count(n(&totals["clients"])),
        count(n(&totals["requests"])),
        count(n(&totals["primary_errors"])),
        count(n(&totals["divergences"])),
    )?;
    writeln!(
        out,
        "mirrored: offered {} · delivered {} · dropped {} · errored {} · in flight {}",
        count(n(&ledger["offered"])),
        count(n(&ledger["delivered"])),
        count(n(&ledger["dropped_total"])),
        count(n(&ledger["errored"])),
        count(n(&ledger["in_flight"])),
    )?;
    writeln!(
        out,
        "memory {} · mirror rings {} of {} · files {} of {}\n",
        bytes(n(&status["process"]["resident_bytes"])),
        bytes(n(&totals["mirror_memory_used"])),
        bytes(n(&totals["mirror_memory_capacity"])),
        count(n(&status["process"]["open_fds"])),
        count(n(&status["process"]["max_fds"])),
    )?;
    let mut table = Table::new(&["core", "busy", "clients", "bytes in", "bytes out", "slabs"]);
    for core in items(&status["cores"]) {
        let sum = |key: &str| -> u64 {
            let listeners = core["listeners"].as_object();
            listeners.map_or(0, |l| l.values().map(|l| n(&l[key])).sum())
        };
        let busy = n(&core["busy_ns"]);
        table.row(vec![
            n(&core["core"]).to_string(),
            share(busy, busy + n(&core["idle_ns"])),
            count(sum("active")),
            bytes(sum("client_bytes_in")),
            bytes(sum("client_bytes_out")),
            format!(
                "{} of {}",
                n(&core["slabs"]["used"]),
                n(&core["slabs"]["capacity"])
            ),
        ]);
    }
    table.write(out)
}

pub(super) fn mirrors(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let mirrors = items(&answer["mirrors"]);
    if mirrors.is_empty() {
        return writeln!(out, "no mirrors");
    }
    let mut table = Table::new(&[
        "mirror",
        "source",
        "exposure",
        "offered",
        "delivered",
        "dropped",
        "errored",
        "in flight",
        "queued",
        "p50",
        "p99",
        "primary p99",
        "diverged",
        "verdict",
    ]);
    for mirror in mirrors {
        let ledger = &mirror["ledger"];
        let exposure = mirror["exposure"].as_f64().unwrap_or(0.0) * 100.0;
        let paused = if mirror["paused"] == true {
            " paused"
        } else {
            ""
        };
        table.row(vec![
            s(&mirror["name"]),
            s(&mirror["source"]),
            format!("{exposure:.1} %{paused}"),
            count(n(&ledger["offered"])),
            count(n(&ledger["delivered"])),
            count(n(&ledger["dropped_total"])),
            count(n(&ledger["errored"])),
            count(n(&ledger["in_flight"])),
            count(n(&mirror["queue"]["units"])),
            nanos(n(&mirror["latency"]["mirror"]["p50_ns"])),
            nanos(n(&mirror["latency"]["mirror"]["p99_ns"])),
            nanos(n(&mirror["latency"]["primary"]["p99_ns"])),
            count(n(&mirror["divergences_total"])),
            s(&mirror["verdict"]),
        ]);
    }
    table.write(out)
}

pub(super) fn divergences(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let found = items(&answer["items"]);
    if found.is_empty() {
        return writeln!(out, "no divergences");
    }
    for item in found {
        let mirror = format!("{} → {}", s(&item["source"]), s(&item["destination"]));
        let what = format!("{} {}", s(&item["command"]), s(&item["key"]));
        writeln!(
            out,
            "{}  {}  {}",
            s(&item["kind"]),
            printable(&mirror),
            printable(&what)
        )?;
        writeln!(out, "    primary  {}", printable(&s(&item["primary"])))?;
        writeln!(out, "    mirror   {}", printable(&s(&item["mirror"])))?;
    }
    let first = n(&answer["offset"]);
    let last = first + found.len() as u64;
    writeln!(
        out,
        "{} to {last} of {} kept",
        first + 1,
        n(&answer["total"])
    )
}

fn listing_table(
    columns: &[Column],
    items: &[Value],
    none: &str,
    out: &mut dyn Write,
) -> io::Result<()> {
    let rows = listing::rows(columns, items);
    if rows.is_empty() {
        return writeln!(out, "{none}");
    }
    let name = |column: &Column| match column.name {
        "at_unix_ms" => "at",
        // The cells have their unit.
        name => name.strip_suffix("_ns").unwrap_or(name),
    };
    let header: Vec<&str> = columns.iter().map(name).collect();
    let mut table = Table::new(&header);
    for row in rows {
        let cell = |(column, value): (&Column, &Value)| match value {
            Value::Null => "-".to_owned(),
            Value::String(text) => text.clone(),
            value if column.name == "at_unix_ms" => date(n(value) as f64 / 1e3),
            value if column.name.ends_with("_ns") => nanos(n(value)),
            // Names, not amounts.
            value if matches!(column.name, "id" | "core") => value.to_string(),
            Value::Number(_) if column.kind == ColumnType::Integer => count(n(value)),
            other => other.to_string(),
        };
        table.row(columns.iter().zip(&row).map(cell).collect());
    }
    table.write(out)
}

pub(super) fn queries(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::QUERIES,
        items(&answer["queries"]),
        "no queries",
        out,
    )
}

pub(super) fn databases(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::DATABASES,
        items(&answer["databases"]),
        "no databases",
        out,
    )
}

pub(super) fn clients(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::CLIENTS,
        items(&answer["clients"]),
        "no clients",
        out,
    )
}

pub(super) fn servers(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::SERVERS,
        items(&answer["servers"]),
        "no servers",
        out,
    )
}

pub(super) fn latency(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    let rows = latency::side_rows(answer);
    listing_table(listing::LATENCY, &rows, "no mirrors", out)
}

pub(super) fn metrics(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::METRICS,
        items(&answer["metrics"]),
        "no such metrics",
        out,
    )
}

pub(super) fn changes(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    listing_table(
        listing::CHANGES,
        items(&answer["changes"]),
        "no changes",
        out,
    )
}

pub(super) fn report(report: &Value, out: &mut dyn Write) -> io::Result<()> {
    let ran = duration(report["uptime_seconds"].as_f64().unwrap_or(0.0));
    let requests = count(n(&report["totals"]["requests"]));
    writeln!(out, "ran for {ran} · requests {requests}")?;
    let rows = verdict_rows(report);
    if rows.is_empty() {
        return writeln!(out, "no mirrors");
    }
    for row in rows {
        let (what, line) = (s(&row["what"]), printable(&s(&row["line"])));
        match what.as_str() {
            "verdict" => writeln!(out, "\n{}: {line}", printable(&s(&row["mirror"])))?,
            what => writeln!(out, "  {what:<8}  {line}")?,
        }
    }
    Ok(())
}

pub(super) fn config(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    for line in listing::flatten(answer) {
        let (key, value) = (s(&line[0]), s(&line[1]));
        writeln!(out, "{} = {}", printable(&key), printable(&value))?;
    }
    Ok(())
}

pub(super) fn done(answer: &Value, out: &mut dyn Write) -> io::Result<()> {
    match answer.as_object() {
        Some(fields) if !fields.is_empty() => {
            for (key, value) in fields {
                let word = |value: &Value| match value.as_str() {
                    Some(text) => printable(text),
                    None => printable(&value.to_string()),
                };
                match value.as_array() {
                    Some(entries) if !entries.is_empty() => {
                        writeln!(out, "{}:", printable(key))?;
                        for entry in entries {
                            writeln!(out, "  {}", word(entry))?;
                        }
                    }
                    Some(_) => writeln!(out, "{}: none", printable(key))?,
                    None => writeln!(out, "{}: {}", printable(key), word(value))?,
                }
            }
            Ok(())
        }
        _ => writeln!(out, "done"),
    }
}
