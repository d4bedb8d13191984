//! Splits what a client of the demo's server sends into commands: arrays of bulk strings, and inline commands.
//!
//! Sans-IO. Deliberately independent of the proxy's framer: a witness that shared its code would share its mistakes.

use memchr::memchr;

/// As Redis before 7.0, which takes up to `INT_MAX`.
const ARGS_MAX: usize = 1024 * 1024;
/// As Redis.
const BULK_MAX: usize = 512 * 1024 * 1024;
/// As Redis.
const INLINE_MAX: usize = 64 * 1024;

/// The outcome of looking at the start of the input.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Parsed {
    /// More bytes are needed.
    Incomplete,
    /// A command of `length` bytes; no arguments for an empty line.
    Command {
        /// Bytes to consume.
        length: usize,
        /// The name and its arguments.
        args: Vec<Vec<u8>>,
    },
    /// Redis's text for what is wrong.
    Bad(&'static str),
}

pub(super) fn parse_command(input: &[u8]) -> Parsed {
    match input.first() {
        None => Parsed::Incomplete,
        Some(b'*') => parse_array(input),
        Some(_) => parse_inline(input),
    }
}

fn parse_array(input: &[u8]) -> Parsed {
    let (count, mut at) = match header(input, 0) {
        Header::Incomplete => return Parsed::Incomplete,
        Header::Value(value, next) if value <= ARGS_MAX as i64 => (value, next),
        _ => return Parsed::Bad("invalid multibulk length"),
    };
    let mut args = Vec::new();
    for _ in 0..count {
        match input.get(at) {
            None => return Parsed::Incomplete,
            Some(b'$') => {}
            Some(_) => return Parsed::Bad("expected '$'"),
        }
        let (length, start) = match header(input, at) {
            Header::Incomplete => return Parsed::Incomplete,
            Header::Value(value, next) => match usize::try_from(value) {
                Ok(length) if length <= BULK_MAX => (length, next),
                _ => return Parsed::Bad("invalid bulk length"),
            },
            Header::Bad => return Parsed::Bad("invalid bulk length"),
        };
        let Some(arg) = input.get(start..start + length) else {
            return Parsed::Incomplete;
        };
        if input.len() < start + length + 2 {
            return Parsed::Incomplete;
        }
        args.push(arg.to_vec());
        at = start + length + 2;
    }
    Parsed::Command { length: at, args }
}

enum Header {
    Incomplete,
    Value(i64, usize),
    Bad,
}

/// The number between the type byte at `at` and the end of its line.
fn header(input: &[u8], at: usize) -> Header {
    let line = &input[at + 1..];
    let Some(end) = memchr(b'\r', &line[..line.len().min(INLINE_MAX)]) else {
        return if line.len() >= INLINE_MAX {
            Header::Bad
        } else {
            Header::Incomplete
        };
    };
    if line.len() < end + 2 {
        return Header::Incomplete;
    }
    let number = std::str::from_utf8(&line[..end])
        .ok()
        .and_then(|text| text.parse().ok());
    number.map_or(Header::Bad, |value| Header::Value(value, at + 1 + end + 2))
}

fn parse_inline(input: &[u8]) -> Parsed {
    let Some(end) = memchr(b'\n', &input[..input.len().min(INLINE_MAX)]) else {
        return if input.len() >= INLINE_MAX {
            Parsed::Bad("too big inline request")
        } else {
            Parsed::Incomplete
        };
    };
    let line = input[..end].strip_suffix(b"\r").unwrap_or(&input[..end]);
    let args = line
        .split(u8::is_ascii_whitespace)
        .filter(|word| !word.is_empty());
    Parsed::Command {
        length: end + 1,
        args: args.map(<[u8]>::to_vec).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_of_a_command_is_incomplete_and_the_whole_is_one_command() {
        let whole = b"*3\r\n$3\r\nSET\r\n$1\r\nk\r\n$4\r\n\r\n\r\n\r\n";
        for cut in 0..whole.len() {
            assert_eq!(
                parse_command(&whole[..cut]),
                Parsed::Incomplete,
                "cut at {cut}"
            );
        }
        let args = vec![b"SET".to_vec(), b"k".to_vec(), b"\r\n\r\n".to_vec()];
        assert_eq!(
            parse_command(whole),
            Parsed::Command {
                length: whole.len(),
                args
            }
        );
    }

    #[test]
    fn hostile_lengths_are_refused_without_reserving() {
        assert_eq!(
            parse_command(b"*2000000000\r\n"),
            Parsed::Bad("invalid multibulk length")
        );
        assert_eq!(
            parse_command(b"*1\r\n$-10\r\n"),
            Parsed::Bad("invalid bulk length")
        );
        assert_eq!(
            parse_command(b"*1\r\n$999999999999\r\n"),
            Parsed::Bad("invalid bulk length")
        );
        assert_eq!(
            parse_command(&[b'x'; 70_000]),
            Parsed::Bad("too big inline request")
        );
    }
}
