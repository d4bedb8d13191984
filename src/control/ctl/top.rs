//! `ctl top`: rates between two readings, until it is interrupted.

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};

use super::CtlError;
use super::client::Client;
use super::show::{items, n, s};
use crate::control::table::{Table, bytes, count, duration, nanos};

pub(super) fn top(
    client: &Client,
    interval: f64,
    times: Option<u64>,
    json: bool,
    out: &mut dyn Write,
) -> Result<(), CtlError> {
    // Not faster than a person reads, not slower than an hour; what is not a number is the default.
    let seconds = if interval.is_finite() {
        interval.clamp(0.1, 3_600.0)
    } else {
        2.0
    };
    let mut before = Reading::take(client)?;
    let mut shown = 0;
    while times.is_none_or(|times| shown < times) {
        thread::sleep(Duration::from_secs_f64(seconds));
        let now = Reading::take(client)?;
        let elapsed = now.uptime - before.uptime;
        if json {
            writeln!(out, "{}", now.rates_json(&before, elapsed))?;
        } else {
            now.show(&before, elapsed, out)?;
        }
        out.flush()?;
        before = now;
        shown += 1;
    }
    Ok(())
}

struct Reading {
    uptime: f64,
    status: Value,
    mirrors: Value,
}

impl Reading {
    fn take(client: &Client) -> Result<Self, CtlError> {
        let status = client.get("/api/status")?;
        Ok(Self {
            uptime: status["uptime_seconds"].as_f64().unwrap_or(0.0),
            mirrors: client.get("/api/mirrors")?,
            status,
        })
    }

    fn before<'a>(&self, before: &'a Reading, mirror: &Value) -> Option<&'a Value> {
        let mut earlier = items(&before.mirrors["mirrors"]).iter();
        earlier.find(|m| m["name"] == mirror["name"])
    }

    fn rates_json(&self, before: &Reading, elapsed: f64) -> Value {
        let mirrors: Vec<Value> = items(&self.mirrors["mirrors"])
            .iter()
            .map(|m| {
                let earlier = self.before(before, m).unwrap_or(&Value::Null);
                let per_second =
                    |key: &str| rate(&m["ledger"][key], &earlier["ledger"][key], elapsed);
                json!({
                    "name": m["name"],
                    "offered_per_second": per_second("offered"),
                    "delivered_per_second": per_second("delivered"),
                    "dropped_per_second": per_second("dropped_total"),
                    "queued_units": m["queue"]["units"],
                })
            })
            .collect();
        let (now, then) = (&self.status["totals"], &before.status["totals"]);
        json!({
            "uptime_seconds": self.uptime,
            "clients": now["clients"],
            "requests_per_second": rate(&now["requests"], &then["requests"], elapsed),
            "mirrors": mirrors,
        })
    }

    fn show(&self, before: &Reading, elapsed: f64, out: &mut dyn Write) -> io::Result<()> {
        let (now, then) = (&self.status["totals"], &before.status["totals"]);
        // Home and clear: ECMA-48 CUP and ED.
        write!(out, "\x1b[H\x1b[2J")?;
        writeln!(
            out,
            "parhelion · up {} · {} clients · {:.0} requests/s · mirror rings {} of {}\n",
            duration(self.uptime),
            count(n(&now["clients"])),
            rate(&now["requests"], &then["requests"], elapsed),
            bytes(n(&now["mirror_memory_used"])),
            bytes(n(&now["mirror_memory_capacity"])),
        )?;
        let mut table = Table::new(&[
            "mirror",
            "offered/s",
            "delivered/s",
            "dropped/s",
            "queued",
            "p99",
            "primary p99",
            "diverged",
            "verdict",
        ]);
        for mirror in items(&self.mirrors["mirrors"]) {
            let earlier = self.before(before, mirror).unwrap_or(&Value::Null);
            let per_second = |key: &str| {
                format!(
                    "{:.0}",
                    rate(&mirror["ledger"][key], &earlier["ledger"][key], elapsed)
                )
            };
            table.row(vec![
                s(&mirror["name"]),
                per_second("offered"),
                per_second("delivered"),
                per_second("dropped_total"),
                count(n(&mirror["queue"]["units"])),
                nanos(n(&mirror["latency"]["mirror"]["p99_ns"])),
                nanos(n(&mirror["latency"]["primary"]["p99_ns"])),
                count(n(&mirror["divergences_total"])),
                s(&mirror["verdict"]),
            ]);
        }
        table.write(out)
    }
}

fn rate(now: &Value, then: &Value, elapsed: f64) -> f64 {
    // A restart between two readings starts at zero again.
    n(now).saturating_sub(n(then)) as f64 / elapsed.max(0.001)
}
