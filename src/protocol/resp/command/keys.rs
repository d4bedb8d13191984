//! Finds the keys among a command's arguments.

use super::{KeyFinder, KeySpec};
use crate::protocol::resp::request::Request;

/// Indexes of the arguments that are keys, in the order of the command; never beyond its arguments.
#[derive(Clone, Debug)]
pub struct Keys {
    destination: Option<usize>,
    next: usize,
    /// One behind the last possible key.
    end: usize,
    step: usize,
}

impl Keys {
    pub(super) fn none() -> Self {
        Self {
            destination: None,
            next: 0,
            end: 0,
            step: 1,
        }
    }

    fn range(first: usize, end: usize, step: usize) -> Self {
        Self {
            destination: None,
            next: first,
            end,
            step: step.max(1),
        }
    }
}

impl Iterator for Keys {
    type Item = usize;

    fn next(&mut self) -> Option<usize> {
        if let Some(destination) = self.destination.take() {
            return Some(destination);
        }
        let key = self.next;
        if key >= self.end {
            return None;
        }
        self.next += self.step;
        Some(key)
    }
}

pub(super) fn find(spec: KeySpec, request: &Request<'_>) -> Keys {
    let argc = request.len();
    match spec.finder {
        KeyFinder::Range => fixed(spec, argc),
        KeyFinder::NumKeys(at) => counted(request, usize::from(at)),
        KeyFinder::DestinationAndNumKeys => {
            with_destination(counted(request, 2), (argc > 1).then_some(1))
        }
        KeyFinder::Streams => streams(request),
        KeyFinder::SortStore => with_destination(sort_store(request), (argc > 1).then_some(1)),
        KeyFinder::GeoStore => with_destination(geo_store(request), (argc > 1).then_some(1)),
        KeyFinder::Migrate => migrate(request),
    }
}

fn with_destination(keys: Keys, destination: Option<usize>) -> Keys {
    Keys {
        destination,
        ..keys
    }
}

fn fixed(spec: KeySpec, argc: usize) -> Keys {
    let (Ok(first), Ok(step)) = (usize::try_from(spec.first), usize::try_from(spec.step)) else {
        return Keys::none();
    };
    if first == 0 {
        return Keys::none();
    }
    let end = match usize::try_from(spec.last) {
        Ok(last) => last + 1,
        Err(_) => (argc + 1).saturating_sub(usize::from(spec.last.unsigned_abs())),
    };
    Keys::range(first, end.min(argc), step)
}

/// The number of keys is in argument `at`. A number that does not fit the arguments gives no keys: the server
/// refuses the command.
fn counted(request: &Request<'_>, at: usize) -> Keys {
    let count = request
        .arg(at)
        .and_then(|count| std::str::from_utf8(count).ok())
        .and_then(|count| count.parse::<usize>().ok())
        .unwrap_or(0);
    match (at + 1).checked_add(count) {
        Some(end) if end <= request.len() => Keys::range(at + 1, end, 1),
        _ => Keys::none(),
    }
}

fn streams(request: &Request<'_>) -> Keys {
    let mut at = 1;
    while at < request.len() {
        let is = |word: &[u8]| request.arg_is(at, word);
        if is(b"STREAMS") {
            let first = at + 1;
            let behind = request.len() - first;
            return if behind.is_multiple_of(2) {
                Keys::range(first, first + behind / 2, 1)
            } else {
                Keys::none()
            };
        }
        at += if is(b"COUNT") || is(b"BLOCK") || is(b"CLAIM") {
            2
        } else if is(b"GROUP") {
            3
        } else if is(b"NOACK") {
            1
        } else {
            break;
        };
    }
    Keys::none()
}

/// The last STORE wins, as in the server.
fn sort_store(request: &Request<'_>) -> Keys {
    let mut found = Keys::none();
    let mut at = 2;
    while at < request.len() {
        let is = |word: &[u8]| request.arg_is(at, word);
        if is(b"LIMIT") {
            at += 3;
        } else if is(b"GET") || is(b"BY") {
            at += 2;
        } else if is(b"STORE") && at + 1 < request.len() {
            found = Keys::range(at + 1, at + 2, 1);
            at += 2;
        } else {
            at += 1;
        }
    }
    found
}

/// The options begin behind the position and radius; the last STORE or STOREDIST wins.
fn geo_store(request: &Request<'_>) -> Keys {
    let mut found = Keys::none();
    let mut at = 5;
    while at + 1 < request.len() {
        if request.arg_is(at, b"STORE") || request.arg_is(at, b"STOREDIST") {
            found = Keys::range(at + 1, at + 2, 1);
            at += 1;
        }
        at += 1;
    }
    found
}

fn migrate(request: &Request<'_>) -> Keys {
    if request.arg(3).is_some_and(|key| !key.is_empty()) {
        return Keys::range(3, 4, 1);
    }
    let mut at = 6;
    while at < request.len() {
        let is = |word: &[u8]| request.arg_is(at, word);
        if is(b"KEYS") {
            return Keys::range(at + 1, request.len(), 1);
        }
        at += if is(b"AUTH") {
            2
        } else if is(b"AUTH2") {
            3
        } else {
            1
        };
    }
    Keys::none()
}
