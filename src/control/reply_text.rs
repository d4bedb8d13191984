//! A Redis reply as an operator reads it: `"418186"`, `(integer) 15`, `(nil)`, `["a", "b"]`, as redis-cli words it but
//! on one line. What was cut off ends in `…`.

use super::divergences::readable;

/// Containers inside each other that are told apart; what lies deeper is `…`.
const DEPTH_MAX: usize = 16;

/// The reply as text. `None` if the bytes do not begin like a reply: then they are text already.
pub(super) fn reply_text(bytes: &[u8]) -> Option<String> {
    let mut rest = bytes;
    let mut out = String::new();
    // What closes each open container, how many elements it still lacks, and whether it is a map.
    let mut open: Vec<(char, u64, bool)> = Vec::new();
    loop {
        let Some(line) = take_line(&mut rest) else {
            if out.is_empty() && open.is_empty() {
                return None;
            }
            out.push('…');
            break;
        };
        let (kind, text) = (line.first().copied()?, &line[1..]);
        let number = || std::str::from_utf8(text).ok()?.parse::<i64>().ok();
        match kind {
            b'+' => out += &readable(text),
            b'-' => out += &format!("(error) {}", readable(text)),
            b':' => out += &format!("(integer) {}", readable(text)),
            b',' => out += &format!("(double) {}", readable(text)),
            b'(' => out += &format!("(big number) {}", readable(text)),
            b'#' => out += if text == b"t" { "(true)" } else { "(false)" },
            b'_' => out += "(nil)",
            b'$' | b'=' | b'!' if number()? < 0 => out += "(nil)",
            b'$' | b'=' | b'!' => {
                let len = usize::try_from(number()?).ok()?;
                let whole = rest.len() >= len.saturating_add(2);
                let (content, after) = rest.split_at(rest.len().min(len));
                rest = after.get(2..).unwrap_or_default();
                out += &format!("\"{}{}\"", readable(content), if whole { "" } else { "…" });
                if !whole {
                    break;
                }
            }
            b'*' | b'~' | b'>' if number()? < 0 => out += "(nil)",
            b'*' | b'~' | b'>' | b'%' => {
                let count = u64::try_from(number()?).ok()?;
                let is_map = kind == b'%';
                let (begin, end) = if is_map { ('{', '}') } else { ('[', ']') };
                out.push(begin);
                if open.len() == DEPTH_MAX {
                    out.push('…');
                    break;
                }
                let lacks = if is_map {
                    count.saturating_mul(2)
                } else {
                    count
                };
                open.push((end, lacks.saturating_add(1), is_map));
            }
            _ => return None,
        }
        while let Some((end, lacks, _)) = open.last_mut() {
            *lacks -= 1;
            if *lacks > 0 {
                break;
            }
            out.push(*end);
            open.pop();
        }
        let Some((_, lacks, is_map)) = open.last() else {
            break;
        };
        if !out.ends_with(['[', '{']) {
            out += if *is_map && lacks % 2 == 1 {
                ": "
            } else {
                ", "
            };
        }
    }
    out.extend(open.into_iter().rev().map(|(end, _, _)| end));
    Some(out)
}

/// Up to the next CRLF, which is taken too.
fn take_line<'a>(rest: &mut &'a [u8]) -> Option<&'a [u8]> {
    let end = memchr::memmem::find(rest, b"\r\n")?;
    let line = &rest[..end];
    *rest = &rest[end + 2..];
    Some(line)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_read_as_in_redis_cli() {
        for (reply, text) in [
            ("$6\r\n418186\r\n", "\"418186\""),
            (":15\r\n", "(integer) 15"),
            ("$-1\r\n", "(nil)"),
            ("*-1\r\n", "(nil)"),
            ("_\r\n", "(nil)"),
            ("+OK\r\n", "OK"),
            ("-ERR no\r\n", "(error) ERR no"),
            ("*0\r\n", "[]"),
            ("%0\r\n", "{}"),
            ("*2\r\n$1\r\na\r\n:2\r\n", "[\"a\", (integer) 2]"),
            ("*2\r\n*1\r\n+a\r\n*0\r\n", "[[a], []]"),
            (
                "%2\r\n$1\r\nk\r\n$1\r\nv\r\n+l\r\n*1\r\n:1\r\n",
                "{\"k\": \"v\", l: [(integer) 1]}",
            ),
            ("$3\r\n\x01\"\n\r\n", "\"\\u{1}\"\\n\""),
        ] {
            assert_eq!(reply_text(reply.as_bytes()).as_deref(), Some(text));
        }
    }

    #[test]
    fn what_was_cut_off_says_so_and_other_text_is_left_alone() {
        for (reply, text) in [
            ("$600\r\nabc", "\"abc…\""),
            ("*3\r\n$1\r\na\r\n$5\r\nbc", "[\"a\", \"bc…\"]"),
            ("*3\r\n:1\r\n:2", "[(integer) 1, …]"),
            ("%99999999999999999\r\n+a\r\n", "{a: …}"),
        ] {
            assert_eq!(reply_text(reply.as_bytes()).as_deref(), Some(text));
        }
        for text in ["", "3 rows", "-1", "SELECT 5", "$x\r\n", "*\r\n"] {
            assert_eq!(reply_text(text.as_bytes()), None, "{text:?}");
        }
        let deep = "*1\r\n".repeat(100_000);
        assert!(reply_text(deep.as_bytes()).unwrap().len() < 100);
    }
}
