//! Durations and sizes with their units, as users write them.
//!
//! Never does: accept a bare number, because "5" may be seconds to one reader and milliseconds to the next.

use std::time::Duration;

/// The units of sizes; a decimal prefix means the decimal size.
const SIZE_UNITS: &[(&str, u64)] = &[
    ("B", 1),
    ("KiB", 1 << 10),
    ("MiB", 1 << 20),
    ("GiB", 1 << 30),
    ("KB", 1_000),
    ("MB", 1_000_000),
    ("GB", 1_000_000_000),
];

/// Parses `"16KiB"`, `"64 MiB"`, `"1GB"`, `"512B"` into bytes; the error says what is wrong.
pub fn parse_size(text: &str) -> Result<usize, String> {
    let text = text.trim();
    let digits = text.bytes().take_while(u8::is_ascii_digit).count();
    let (number, unit) = text.split_at(digits);
    if number.is_empty() {
        return Err(format!("{text:?} is not a size"));
    }
    let unit = unit.trim();
    if unit.is_empty() {
        return Err(format!("{text:?} has no unit"));
    }
    let factor = SIZE_UNITS
        .iter()
        .find(|(name, _)| name.eq_ignore_ascii_case(unit))
        .map(|(_, factor)| *factor)
        .ok_or_else(|| format!("{unit:?} is not a unit of size"))?;
    number
        .parse::<u64>()
        .ok()
        .and_then(|number| number.checked_mul(factor))
        .and_then(|bytes| usize::try_from(bytes).ok())
        .ok_or_else(|| format!("{text:?} is too large"))
}

/// Parses `"30s"`, `"5m"`, `"250ms"`, `"50us"`, `"1h 30m"`; the error says what is wrong.
pub fn parse_duration(text: &str) -> Result<Duration, String> {
    let text = text.trim();
    if !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit()) && text != "0" {
        return Err(format!("{text:?} has no unit"));
    }
    humantime::parse_duration(text).map_err(|error| match error {
        humantime::DurationError::UnknownUnit { unit, .. } => {
            format!("{unit:?} is not a unit of time")
        }
        humantime::DurationError::NumberOverflow => format!("{text:?} is too large"),
        _ => format!("{text:?} is not a duration"),
    })
}

/// Writes a size as users do: `16KiB`.
pub fn show_size(bytes: usize) -> String {
    let bytes = bytes as u64;
    let (name, factor) = [("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)]
        .into_iter()
        .find(|(_, factor)| bytes != 0 && bytes.is_multiple_of(*factor))
        .unwrap_or(("B", 1));
    format!("{}{name}", bytes / factor)
}

/// Writes a duration as users do: `30s`.
pub fn show_duration(duration: Duration) -> String {
    humantime::format_duration(duration).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_have_binary_and_decimal_units() {
        assert_eq!(parse_size("512B"), Ok(512));
        assert_eq!(parse_size("16KiB"), Ok(16_384));
        assert_eq!(parse_size("16 kib"), Ok(16_384));
        assert_eq!(parse_size("1MB"), Ok(1_000_000));
        assert_eq!(parse_size("2GiB"), Ok(2 << 30));
    }

    #[test]
    fn sizes_without_a_known_unit_or_beyond_64_bits_are_refused() {
        for bad in [
            "",
            "12",
            "KiB",
            "1.5MiB",
            "-1B",
            "12 parsecs",
            "99999999999999999999B",
            "18446744073709551615GiB",
        ] {
            assert!(parse_size(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn durations_need_a_unit() {
        assert_eq!(parse_duration("30s"), Ok(Duration::from_secs(30)));
        assert_eq!(parse_duration("50us"), Ok(Duration::from_micros(50)));
        assert_eq!(parse_duration("0us"), Ok(Duration::ZERO));
        for bad in [
            "",
            "5",
            "-1s",
            "1.5.5s",
            "5 lightyears",
            "99999999999999999999s",
        ] {
            assert!(parse_duration(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_is_shown_parses_back() {
        for bytes in [
            0,
            1,
            1023,
            1024,
            16 << 10,
            (1 << 20) + 1,
            256 << 20,
            3 << 30,
        ] {
            assert_eq!(parse_size(&show_size(bytes)), Ok(bytes));
        }
        for ms in [0, 1, 999, 30_000, 90_061_001] {
            let duration = Duration::from_millis(ms);
            assert_eq!(parse_duration(&show_duration(duration)), Ok(duration));
        }
    }
}
