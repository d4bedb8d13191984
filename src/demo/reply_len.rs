//! How long one RESP2 or RESP3 reply is; nothing about its meaning. Sans-IO, without recursion.

use memchr::memchr;

/// The outcome of looking at the start of the input.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scan {
    /// More bytes are needed.
    Incomplete,
    /// The first reply is so many bytes long.
    Complete(usize),
    /// Not RESP.
    Malformed,
}

/// Measures the first reply (or push) of `input`; an attribute counts as part of the reply that follows it.
pub fn reply_length(input: &[u8]) -> Scan {
    let mut at = 0;
    // Values still to come; aggregates add their members.
    let mut pending = 1_u64;
    while pending > 0 {
        let Some(kind) = input.get(at) else {
            return Scan::Incomplete;
        };
        let Some(end) = memchr(b'\r', &input[at..]) else {
            return Scan::Incomplete;
        };
        let text = &input[at + 1..at + end];
        at += end + 2;
        pending -= 1;
        let members = match kind {
            b'+' | b'-' | b':' | b'_' | b'#' | b',' | b'(' => Some(0),
            b'$' | b'!' | b'=' => match number(text) {
                Some(-1) => Some(0),
                Some(length) => {
                    let Ok(length) = usize::try_from(length) else {
                        return Scan::Malformed;
                    };
                    at = at.saturating_add(length).saturating_add(2);
                    Some(0)
                }
                None => None,
            },
            b'*' | b'~' | b'>' => number(text).map(|count| count.max(0).unsigned_abs()),
            b'%' => number(text).map(|count| count.max(0).unsigned_abs().saturating_mul(2)),
            b'|' => number(text).map(|count| {
                count
                    .max(0)
                    .unsigned_abs()
                    .saturating_mul(2)
                    .saturating_add(1)
            }),
            _ => None,
        };
        let Some(members) = members else {
            return Scan::Malformed;
        };
        pending = pending.saturating_add(members);
        if at > input.len() {
            return Scan::Incomplete;
        }
    }
    Scan::Complete(at)
}

fn number(text: &[u8]) -> Option<i64> {
    std::str::from_utf8(text).ok()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_cut_is_incomplete_and_what_follows_does_not_count() {
        let replies: [&[u8]; 8] = [
            b"+OK\r\n",
            b"$-1\r\n",
            b"$4\r\n\r\n\r\n\r\n",
            b"*2\r\n*1\r\n:1\r\n$0\r\n\r\n",
            b"%1\r\n+a\r\n*-1\r\n",
            b">3\r\n$7\r\nmessage\r\n$1\r\nc\r\n$1\r\nm\r\n",
            b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n",
            b"=7\r\ntxt:abc\r\n",
        ];
        for reply in replies {
            for cut in 0..reply.len() {
                assert_eq!(
                    reply_length(&reply[..cut]),
                    Scan::Incomplete,
                    "{}",
                    reply[..cut].escape_ascii()
                );
            }
            let followed = [reply, b"+NEXT\r\n"].concat();
            assert_eq!(reply_length(&followed), Scan::Complete(reply.len()));
        }
        assert_eq!(reply_length(b"HTTP/1.1 200\r\n"), Scan::Malformed);
    }
}
