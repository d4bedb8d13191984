//! Plain tables for people at a terminal, and the words for numbers that the report uses too.

use std::io::{self, Write};
use std::time::{Duration, UNIX_EPOCH};

/// Rows of text; the first column is left-aligned, numbers to the right.
#[derive(Debug, Default)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(header.iter().map(ToString::to_string).collect());
        table
    }

    pub(super) fn row(&mut self, cells: Vec<String>) {
        let cells = cells.iter().map(|cell| printable(cell)).collect();
        self.rows.push(cells);
    }

    pub(super) fn write(&self, out: &mut dyn Write) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            let cells = self.rows.iter().filter_map(|row| row.get(column));
            cells.map(|cell| cell.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let right: Vec<bool> = (0..columns).map(|column| self.is_numeric(column)).collect();
        for row in &self.rows {
            let mut line = String::new();
            for (column, cell) in row.iter().enumerate() {
                let pad = " ".repeat(widths[column] - cell.chars().count());
                if right[column] {
                    line.push_str(&pad);
                    line.push_str(cell);
                } else {
                    line.push_str(cell);
                    line.push_str(&pad);
                }
                line.push_str("  ");
            }
            writeln!(out, "{}", line.trim_end())?;
        }
        Ok(())
    }

    fn is_numeric(&self, column: usize) -> bool {
        let starts_with_digit = |row: &Vec<String>| {
            row.get(column)
                .is_some_and(|cell| cell == "-" || cell.starts_with(|c: char| c.is_ascii_digit()))
        };
        self.rows.len() > 1 && self.rows.iter().skip(1).all(starts_with_digit)
    }
}

/// Text that cannot move a terminal's cursor or colours: values come from databases.
pub(super) fn printable(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() {
            out.extend(c.escape_default());
        } else {
            out.push(c);
        }
    }
    out
}

/// `1234567` as `1,234,567`.
pub(super) fn count(n: u64) -> String {
    let digits = n.to_string();
    let mut out = String::new();
    for (i, digit) in digits.chars().enumerate() {
        if i > 0 && (digits.len() - i).is_multiple_of(3) {
            out.push(',');
        }
        out.push(digit);
    }
    out
}

/// Nanoseconds with a unit that fits; `-` for none.
pub(super) fn nanos(ns: u64) -> String {
    let value = ns as f64;
    match ns {
        0 => "-".to_owned(),
        1..1_000_000 => format!("{:.0} µs", value / 1e3),
        1_000_000..10_000_000 => format!("{:.2} ms", value / 1e6),
        10_000_000..1_000_000_000 => format!("{:.0} ms", value / 1e6),
        _ => format!("{:.2} s", value / 1e9),
    }
}

/// Bytes with a binary unit.
pub(super) fn bytes(n: u64) -> String {
    let mut value = n as f64;
    let mut unit = "B";
    for next in ["KiB", "MiB", "GiB", "TiB"] {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" {
        format!("{n} B")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A share as per cent; small ones are not rounded away.
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let percent = part as f64 / whole as f64 * 100.0;
    match part {
        0 => "0 %".to_owned(),
        _ if percent < 0.01 => "< 0.01 %".to_owned(),
        _ if part < whole && percent > 99.99 => "> 99.99 %".to_owned(),
        _ => format!("{percent:.2} %"),
    }
}

/// UTC, to the second.
pub(super) fn date(unix: f64) -> String {
    let at = UNIX_EPOCH + Duration::from_secs(unix.max(0.0) as u64);
    let text = humantime::format_rfc3339_seconds(at).to_string();
    text.replace('T', " ").replace('Z', " UTC")
}

/// Seconds as days, hours, minutes and seconds; the two largest.
pub(super) fn duration(seconds: f64) -> String {
    let s = seconds.max(0.0) as u64;
    match s {
        0..60 => format!("{s} s"),
        60..3_600 => format!("{} min {} s", s / 60, s % 60),
        3_600..86_400 => format!("{} h {} min", s / 3_600, s % 3_600 / 60),
        _ => format!("{} d {} h", s / 86_400, s % 86_400 / 3_600),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_read_well_and_small_shares_do_not_vanish() {
        assert_eq!(count(1_234_567), "1,234,567");
        assert_eq!(count(12), "12");
        assert_eq!(nanos(1_234_567), "1.23 ms");
        assert_eq!(bytes(1536), "1.5 KiB");
        assert_eq!(share(1, 1_000_000), "< 0.01 %");
        assert_eq!(share(999_999, 1_000_000), "> 99.99 %");
        assert_eq!(duration(90_061.0), "1 d 1 h");
    }

    #[test]
    fn a_value_cannot_move_the_terminals_cursor() {
        let mut table = Table::new(&["key", "n"]);
        table.row(vec!["a\x1b[2J\nb".into(), "7".into()]);
        let mut out = Vec::new();
        table.write(&mut out).unwrap();
        let text = String::from_utf8(out).unwrap();
        assert!(!text.contains('\x1b'));
        assert_eq!(text.lines().count(), 2);
    }
}
