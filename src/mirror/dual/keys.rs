//! Which keys a unit touches.

use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::protocol::resp::command::lookup_request;
use crate::protocol::resp::{Request, RequestFramer};

/// What a unit touches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scope {
    /// The keys that were named, perhaps none.
    Keys,
    /// Every key: FLUSHALL, FLUSHDB, SWAPDB.
    Everything,
}

/// The name of a key across databases. 64 bits: among 10^5 keys two fall together once in 10^9 runs, and then one of
/// them is repaired with the other.
pub fn hash(db: u32, key: &[u8]) -> u64 {
    xxh3_64_with_seed(key, u64::from(db))
}

/// The complete commands of a unit.
pub fn commands(unit: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut framer = RequestFramer::new();
    framer.set_authenticated(true);
    let mut rest = unit;
    std::iter::from_fn(move || {
        loop {
            let advance = framer.advance(rest).ok().filter(|advance| advance.done)?;
            let (frame, behind) = rest.split_at(advance.consumed);
            rest = behind;
            if !advance.empty {
                return Some(frame);
            }
        }
    })
}

/// Calls `visit` with the database and name of each key that `unit` names. A SELECT inside a transaction counts.
pub fn visit(unit: &[u8], db: u32, mut visit: impl FnMut(u32, &[u8])) -> Scope {
    let mut db = db;
    let mut scope = Scope::Keys;
    for frame in commands(unit) {
        let request = Request::parse(frame);
        if visit_one(&request, &mut db, &mut visit) == Scope::Everything {
            scope = Scope::Everything;
        }
    }
    scope
}

/// An argument as a number: of a database, for instance.
pub fn number(request: &Request<'_>, at: usize) -> Option<u32> {
    std::str::from_utf8(request.arg(at)?).ok()?.parse().ok()
}

fn visit_one(request: &Request<'_>, db: &mut u32, visit: &mut impl FnMut(u32, &[u8])) -> Scope {
    let number = |at| number(request, at);
    let Some(command) = lookup_request(request) else {
        // A module's command: its first argument is its key nearly always, and nothing better is known.
        if let Some(key) = request.arg(1) {
            visit(*db, key);
        }
        return Scope::Keys;
    };
    match command.name() {
        "FLUSHALL" | "FLUSHDB" | "SWAPDB" => return Scope::Everything,
        "SELECT" => *db = number(1).unwrap_or(*db),
        "MOVE" => {
            if let (Some(key), Some(other)) = (request.arg(1), number(2)) {
                visit(other, key);
            }
        }
        "COPY" => {
            let at = (3..request.len()).find(|at| request.arg_is(*at, b"DB"));
            if let (Some(key), Some(other)) = (request.arg(2), at.and_then(|at| number(at + 1))) {
                visit(other, key);
            }
        }
        _ => {}
    }
    for key in command.keys(request).filter_map(|at| request.arg(at)) {
        visit(*db, key);
    }
    Scope::Keys
}

#[cfg(test)]
mod tests {
    use super::*;

    fn keys(unit: &str) -> (Scope, Vec<String>) {
        let mut found = Vec::new();
        let scope = visit(unit.as_bytes(), 0, |db, key| {
            found.push(format!("{db}:{}", String::from_utf8_lossy(key)))
        });
        (scope, found)
    }

    #[test]
    fn keys_of_transactions_follow_their_selects() {
        let (scope, found) = keys("MULTI\r\nSET a 1\r\nSELECT 3\r\nMSET b 1 c 2\r\nEXEC\r\n");
        assert_eq!(
            (scope, found),
            (Scope::Keys, vec!["0:a".into(), "3:b".into(), "3:c".into()])
        );
        assert_eq!(keys("MOVE a 2\r\n").1, ["2:a", "0:a"]);
        assert_eq!(keys("COPY a b DB 4\r\n").1, ["4:b", "0:a", "0:b"]);
        assert_eq!(keys("FLUSHALL\r\n").0, Scope::Everything);
        assert_eq!(keys("JSON.SET doc $ 1\r\n").1, ["0:doc"]);
    }
}
