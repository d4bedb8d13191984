//! The data of the demo's server and its commands. One lock around it: simple, and as serial as Redis itself.

mod collections;
mod keys;
mod reply;
mod strings;

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

use collections::{
    hdel, hget, hgetall, hset, list_of, lrange, pop, push, sadd, set_of, smembers, srem,
};
use keys::{del, expire, kind, left};
pub(super) use reply::Reply;
use strings::{add, append, mget, mset, set, string};

type Fields = Vec<(Vec<u8>, Vec<u8>)>;

#[derive(Debug)]
enum Value {
    Str(Vec<u8>),
    // Ordered containers, so that two servers with the same data answer in the same order.
    Hash(Fields),
    List(VecDeque<Vec<u8>>),
    Set(BTreeSet<Vec<u8>>),
}

#[derive(Debug)]
struct Entry {
    value: Value,
    expires: Option<Instant>,
}

/// Sixteen databases.
#[derive(Debug, Default)]
pub(super) struct Store {
    dbs: [HashMap<Vec<u8>, Entry>; 16],
}

type Db = HashMap<Vec<u8>, Entry>;
type Run = fn(&mut Db, &[Vec<u8>], Instant) -> Result<Reply, Reply>;

struct Spec {
    name: &'static str,
    /// As in Redis: negative means "at least", the name counts.
    arity: i32,
    read: bool,
    run: Run,
}

const WRONG_TYPE: &str = "WRONGTYPE Operation against a key holding the wrong kind of value";
const NOT_INTEGER: &str = "ERR value is not an integer or out of range";

const fn spec(name: &'static str, arity: i32, read: bool, run: Run) -> Spec {
    Spec {
        name,
        arity,
        read,
        run,
    }
}

#[rustfmt::skip]
const COMMANDS: &[Spec] = &[
    spec("APPEND", 3, false, append),
    spec("COMMAND", -1, false, |_, _, _| Ok(Reply::Array(Vec::new()))),
    spec("DBSIZE", 1, false, |db, _, _| Ok(count(db.len()))),
    spec("DECR", 2, false, |db, args, _| add(db, &args[0], -1)),
    spec("DEL", -2, false, del),
    spec("ECHO", 2, false, |_, args, _| Ok(Reply::Bulk(args[0].clone()))),
    spec("EXISTS", -2, true, |db, args, _| Ok(count(args.iter().filter(|key| db.contains_key(*key)).count()))),
    spec("EXPIRE", 3, false, expire),
    spec("FLUSHALL", -1, false, |_, _, _| Ok(Reply::Simple("OK"))),
    spec("GET", 2, true, |db, args, _| Ok(string(db, &args[0])?.map_or(Reply::Nil, |text| Reply::Bulk(text.clone())))),
    spec("HDEL", -3, false, hdel),
    spec("HGET", 3, true, hget),
    spec("HGETALL", 2, true, hgetall),
    spec("HSET", -4, false, hset),
    spec("INCR", 2, false, |db, args, _| add(db, &args[0], 1)),
    spec("INCRBY", 3, false, |db, args, _| { let by = integer(&args[1])?; add(db, &args[0], by) }),
    spec("INFO", -1, false, |_, _, _| Ok(Reply::bulk("# Server\r\nredis_version:7.0.0\r\nredis_mode:standalone\r\n"))),
    spec("LLEN", 2, true, |db, args, _| Ok(count(list_of(db, &args[0])?.map_or(0, |list| list.len())))),
    spec("LPOP", -2, false, |db, args, _| pop(db, args, VecDeque::pop_front)),
    spec("LPUSH", -3, false, |db, args, _| push(db, args, VecDeque::push_front)),
    spec("LRANGE", 4, true, lrange),
    spec("MGET", -2, true, mget),
    spec("MSET", -3, false, mset),
    spec("PING", -1, false, |_, args, _| Ok(args.first().map_or(Reply::Simple("PONG"), |text| Reply::Bulk(text.clone())))),
    spec("PTTL", 2, false, |db, args, now| Ok(left(db, &args[0], now, 1))),
    spec("RPOP", -2, false, |db, args, _| pop(db, args, VecDeque::pop_back)),
    spec("RPUSH", -3, false, |db, args, _| push(db, args, VecDeque::push_back)),
    spec("SADD", -3, false, sadd),
    spec("SCARD", 2, true, |db, args, _| Ok(count(set_of(db, &args[0])?.map_or(0, |set| set.len())))),
    spec("SET", -3, false, set),
    spec("SMEMBERS", 2, true, smembers),
    spec("SREM", -3, false, srem),
    spec("STRLEN", 2, true, |db, args, _| Ok(count(string(db, &args[0])?.map_or(0, Vec::len)))),
    spec("TTL", 2, false, |db, args, now| Ok(left(db, &args[0], now, 1000))),
    spec("TYPE", 2, false, kind),
];

fn find(name: &[u8]) -> Option<&'static Spec> {
    let name = std::str::from_utf8(name).ok()?.to_ascii_uppercase();
    let at = COMMANDS
        .binary_search_by(|spec| spec.name.cmp(&name))
        .ok()?;
    COMMANDS.get(at)
}

pub(super) fn is_read(name: &[u8]) -> bool {
    find(name).is_some_and(|spec| spec.read)
}

/// Redis's error for an unknown command or a wrong number of arguments.
pub(super) fn arity_error(args: &[Vec<u8>]) -> Option<Reply> {
    let Some(spec) = find(&args[0]) else {
        let name = String::from_utf8_lossy(&args[0]).replace(['\r', '\n'], " ");
        let mut text = format!("ERR unknown command '{name:.128}', with args beginning with: ");
        for arg in args[1..].iter().take(20) {
            let arg = String::from_utf8_lossy(arg).replace(['\r', '\n'], " ");
            text.push_str(&format!("'{arg:.128}' "));
        }
        return Some(Reply::Error(text));
    };
    let count = i32::try_from(args.len()).unwrap_or(i32::MAX);
    let fits = if spec.arity < 0 {
        count >= -spec.arity
    } else {
        count == spec.arity
    };
    (!fits).then(|| Reply::wrong_arity(&spec.name.to_ascii_lowercase()))
}

/// Executes one command in database `db`.
pub(super) fn execute(store: &mut Store, db: usize, args: &[Vec<u8>], now: Instant) -> Reply {
    if let Some(error) = arity_error(args) {
        return error;
    }
    let Some(spec) = find(&args[0]) else {
        return Reply::error("ERR unknown command");
    };
    if spec.name == "FLUSHALL" {
        store.dbs.iter_mut().for_each(HashMap::clear);
    }
    let db = &mut store.dbs[db];
    for key in &args[1..] {
        if db
            .get(key)
            .is_some_and(|entry| entry.expires.is_some_and(|at| at <= now))
        {
            db.remove(key);
        }
    }
    (spec.run)(db, &args[1..], now).unwrap_or_else(|error| error)
}

fn count(items: usize) -> Reply {
    Reply::Integer(i64::try_from(items).unwrap_or(i64::MAX))
}

fn integer(text: &[u8]) -> Result<i64, Reply> {
    let parsed = std::str::from_utf8(text)
        .ok()
        .and_then(|text| text.parse().ok());
    parsed.ok_or_else(|| Reply::error(NOT_INTEGER))
}

fn put(db: &mut Db, key: &[u8], value: Value) {
    db.insert(
        key.to_vec(),
        Entry {
            value,
            expires: None,
        },
    );
}

/// The instant so far ahead; `None` for what is not positive or beyond the clock.
fn after(now: Instant, amount: i64, scale_ms: u64) -> Option<Instant> {
    let ms = u64::try_from(amount)
        .ok()
        .filter(|amount| *amount > 0)?
        .checked_mul(scale_ms)?;
    now.checked_add(Duration::from_millis(ms))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_table_is_sorted_for_the_search() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
    }
}
