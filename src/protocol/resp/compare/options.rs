//! Options of a command that change how its reply is compared.

use crate::protocol::resp::command::ReplyShape;
use crate::protocol::resp::request::Request;

/// The reply depends on the data alone.
pub(super) fn is_comparable(shape: ReplyShape, request: &Request<'_>) -> bool {
    match shape {
        ReplyShape::NotCompared => false,
        // With a range the reply holds idle times.
        ReplyShape::Pending => request.len() <= 3,
        ReplyShape::EntryId => !entry_id(request).is_some_and(|id| id.ends_with(b"*")),
        _ => true,
    }
}

/// The ID argument of XADD, behind its options.
fn entry_id<'r>(request: &'r Request<'_>) -> Option<&'r [u8]> {
    let mut at = 2;
    loop {
        let is = |word: &[u8]| request.arg_is(at, word);
        at += if is(b"MAXLEN") || is(b"MINID") {
            let approximate = request
                .arg(at + 1)
                .is_some_and(|arg| matches!(arg, b"=" | b"~"));
            2 + usize::from(approximate)
        } else if is(b"LIMIT") {
            2
        } else if [&b"NOMKSTREAM"[..], b"KEEPREF", b"DELREF", b"ACKED"]
            .into_iter()
            .any(is)
        {
            1
        } else {
            return request.arg(at);
        };
    }
}

/// A geographic search whose result has a defined order.
pub(super) fn is_sorted(request: &Request<'_>) -> bool {
    has_option(request, &[b"ASC", b"DESC"])
}

/// Scores stand behind the members. Pops always give them.
pub(super) fn has_scores(request: &Request<'_>) -> bool {
    request.arg_is(0, b"ZPOPMIN")
        || request.arg_is(0, b"ZPOPMAX")
        || has_option(request, &[b"WITHSCORES", b"WITHSCORE"])
}

fn has_option(request: &Request<'_>, options: &[&[u8]]) -> bool {
    // Argument 1 is a key or a number.
    request.args().skip(2).any(|arg| {
        options
            .iter()
            .any(|option| arg.eq_ignore_ascii_case(option))
    })
}
