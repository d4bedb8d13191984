//! The data of the demo's server and its commands. One lock around it: simple, and as serial as Redis itself.

use std::collections::{BTreeSet, HashMap, VecDeque};
use std::time::{Duration, Instant};

/// A reply before it is written in the client's protocol version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Reply {
    Simple(&'static str),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
    Set(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    pub(super) fn error(text: &str) -> Reply {
        Reply::Error(text.to_owned())
    }

    pub(super) fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    pub(super) fn wrong_arity(name: &str) -> Reply {
        Reply::Error(format!(
            "ERR wrong number of arguments for '{name}' command"
        ))
    }

    pub(super) fn write(&self, resp3: bool, out: &mut Vec<u8>) {
        match self {
            Reply::Simple(text) => line(out, b'+', text.as_bytes()),
            Reply::Error(text) => line(out, b'-', text.as_bytes()),
            Reply::Integer(value) => line(out, b':', value.to_string().as_bytes()),
            Reply::Nil if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::Bulk(bytes) => {
                line(out, b'$', bytes.len().to_string().as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::Array(items) => list(out, b'*', items, resp3),
            Reply::Set(items) => list(out, if resp3 { b'~' } else { b'*' }, items, resp3),
            Reply::Map(pairs) => {
                let (kind, count) = if resp3 {
                    (b'%', pairs.len())
                } else {
                    (b'*', pairs.len() * 2)
                };
                line(out, kind, count.to_string().as_bytes());
                for (key, value) in pairs {
                    key.write(resp3, out);
                    value.write(resp3, out);
                }
            }
        }
    }

    /// The same shape with one value changed; the reply itself where there is nothing to change.
    pub(super) fn falsified(self) -> Result<Reply, Reply> {
        match self {
            Reply::Bulk(mut bytes) if !bytes.is_empty() => {
                let last = bytes.len() - 1;
                bytes[last] = if bytes[last] == b'#' { b'!' } else { b'#' };
                Ok(Reply::Bulk(bytes))
            }
            Reply::Integer(value) => Ok(Reply::Integer(value.wrapping_add(1))),
            Reply::Array(mut items) if !items.is_empty() => {
                items.pop();
                Ok(Reply::Array(items))
            }
            Reply::Set(mut items) if !items.is_empty() => {
                items.pop();
                Ok(Reply::Set(items))
            }
            Reply::Map(mut pairs) if !pairs.is_empty() => {
                pairs.pop();
                Ok(Reply::Map(pairs))
            }
            unchanged => Err(unchanged),
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn list(out: &mut Vec<u8>, kind: u8, items: &[Reply], resp3: bool) {
    line(out, kind, items.len().to_string().as_bytes());
    for item in items {
        item.write(resp3, out);
    }
}

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

fn string<'a>(db: &'a Db, key: &[u8]) -> Result<Option<&'a Vec<u8>>, Reply> {
    match db.get(key).map(|entry| &entry.value) {
        None => Ok(None),
        Some(Value::Str(text)) => Ok(Some(text)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

fn list_of<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a mut VecDeque<Vec<u8>>>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::List(list)) => Ok(Some(list)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

fn set_of<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a mut BTreeSet<Vec<u8>>>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Set(set)) => Ok(Some(set)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

fn hash_of<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a mut Fields>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Hash(hash)) => Ok(Some(hash)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
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

/// Replaces the text and leaves the expiry alone.
fn put_text(db: &mut Db, key: &[u8], text: Vec<u8>) {
    match db.get_mut(key) {
        Some(entry) => entry.value = Value::Str(text),
        None => put(db, key, Value::Str(text)),
    }
}

fn set(db: &mut Db, args: &[Vec<u8>], now: Instant) -> Result<Reply, Reply> {
    let (key, value) = (&args[0], &args[1]);
    let (mut only_new, mut only_old, mut keep) = (false, false, false);
    let mut expires = None;
    let mut options = args[2..].iter();
    while let Some(option) = options.next() {
        match option.to_ascii_uppercase().as_slice() {
            b"NX" if !only_old => only_new = true,
            b"XX" if !only_new => only_old = true,
            b"KEEPTTL" if expires.is_none() => keep = true,
            unit @ (b"EX" | b"PX") if !keep && expires.is_none() => {
                let amount = integer(
                    options
                        .next()
                        .ok_or_else(|| Reply::error("ERR syntax error"))?,
                )?;
                let scale = if unit == b"EX" { 1000 } else { 1 };
                expires = Some(
                    after(now, amount, scale)
                        .ok_or_else(|| Reply::error("ERR invalid expire time in 'set' command"))?,
                );
            }
            _ => return Err(Reply::error("ERR syntax error")),
        }
    }
    let old = db.get(key);
    if (only_new && old.is_some()) || (only_old && old.is_none()) {
        return Ok(Reply::Nil);
    }
    if keep {
        expires = old.and_then(|entry| entry.expires);
    }
    db.insert(
        key.clone(),
        Entry {
            value: Value::Str(value.clone()),
            expires,
        },
    );
    Ok(Reply::Simple("OK"))
}

/// The instant so far ahead; `None` for what is not positive or beyond the clock.
fn after(now: Instant, amount: i64, scale_ms: u64) -> Option<Instant> {
    let ms = u64::try_from(amount)
        .ok()
        .filter(|amount| *amount > 0)?
        .checked_mul(scale_ms)?;
    now.checked_add(Duration::from_millis(ms))
}

fn del(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    Ok(count(
        args.iter().filter(|key| db.remove(*key).is_some()).count(),
    ))
}

fn add(db: &mut Db, key: &[u8], by: i64) -> Result<Reply, Reply> {
    let old = string(db, key)?.map_or(Ok(0), |text| integer(text))?;
    let new = old
        .checked_add(by)
        .ok_or_else(|| Reply::error("ERR increment or decrement would overflow"))?;
    put_text(db, key, new.to_string().into_bytes());
    Ok(Reply::Integer(new))
}

fn append(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let mut text = string(db, &args[0])?.cloned().unwrap_or_default();
    text.extend_from_slice(&args[1]);
    let length = text.len();
    put_text(db, &args[0], text);
    Ok(count(length))
}

fn mget(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let one = |key: &Vec<u8>| match string(db, key) {
        Ok(Some(text)) => Reply::Bulk(text.clone()),
        _ => Reply::Nil,
    };
    Ok(Reply::Array(args.iter().map(one).collect()))
}

fn mset(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    if !args.len().is_multiple_of(2) {
        return Err(Reply::wrong_arity("mset"));
    }
    for pair in args.chunks_exact(2) {
        put(db, &pair[0], Value::Str(pair[1].clone()));
    }
    Ok(Reply::Simple("OK"))
}

fn hset(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    if args.len().is_multiple_of(2) {
        return Err(Reply::wrong_arity("hset"));
    }
    if hash_of(db, &args[0])?.is_none() {
        put(db, &args[0], Value::Hash(Vec::new()));
    }
    let mut added = 0;
    if let Some(hash) = hash_of(db, &args[0])? {
        for pair in args[1..].chunks_exact(2) {
            match hash.iter_mut().find(|(field, _)| *field == pair[0]) {
                Some((_, value)) => value.clone_from(&pair[1]),
                None => {
                    hash.push((pair[0].clone(), pair[1].clone()));
                    added += 1;
                }
            }
        }
    }
    Ok(Reply::Integer(added))
}

fn hget(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let hash = hash_of(db, &args[0])?;
    let value = hash.and_then(|hash| hash.iter().find(|(field, _)| *field == args[1]));
    Ok(value.map_or(Reply::Nil, |(_, value)| Reply::Bulk(value.clone())))
}

fn hgetall(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let pairs = hash_of(db, &args[0])?
        .map(|hash| hash.clone())
        .unwrap_or_default();
    Ok(Reply::Map(
        pairs
            .into_iter()
            .map(|(field, value)| (Reply::Bulk(field), Reply::Bulk(value)))
            .collect(),
    ))
}

fn hdel(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let Some(hash) = hash_of(db, &args[0])? else {
        return Ok(Reply::Integer(0));
    };
    let before = hash.len();
    hash.retain(|(field, _)| !args[1..].contains(field));
    let (removed, empty) = (before - hash.len(), hash.is_empty());
    if empty {
        db.remove(&args[0]);
    }
    Ok(count(removed))
}

fn push(
    db: &mut Db,
    args: &[Vec<u8>],
    put_at: fn(&mut VecDeque<Vec<u8>>, Vec<u8>),
) -> Result<Reply, Reply> {
    if list_of(db, &args[0])?.is_none() {
        put(db, &args[0], Value::List(VecDeque::new()));
    }
    let Some(list) = list_of(db, &args[0])? else {
        return Ok(Reply::Integer(0));
    };
    for item in &args[1..] {
        put_at(list, item.clone());
    }
    Ok(count(list.len()))
}

fn pop(
    db: &mut Db,
    args: &[Vec<u8>],
    take: fn(&mut VecDeque<Vec<u8>>) -> Option<Vec<u8>>,
) -> Result<Reply, Reply> {
    let wanted = match args.get(1) {
        None => None,
        Some(text) => Some(
            usize::try_from(integer(text)?)
                .map_err(|_| Reply::error("ERR value is out of range, must be positive"))?,
        ),
    };
    let Some(list) = list_of(db, &args[0])? else {
        return Ok(Reply::Nil);
    };
    let mut items: Vec<Reply> = Vec::new();
    while items.len() < wanted.unwrap_or(1) {
        let Some(item) = take(list) else { break };
        items.push(Reply::Bulk(item));
    }
    if list.is_empty() {
        db.remove(&args[0]);
    }
    Ok(if wanted.is_some() {
        Reply::Array(items)
    } else {
        items.pop().unwrap_or(Reply::Nil)
    })
}

fn lrange(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let (start, stop) = (integer(&args[1])?, integer(&args[2])?);
    let Some(list) = list_of(db, &args[0])? else {
        return Ok(Reply::Array(Vec::new()));
    };
    let length = i64::try_from(list.len()).unwrap_or(i64::MAX);
    let place = |index: i64| {
        if index < 0 {
            length.saturating_add(index)
        } else {
            index
        }
    };
    let first = place(start).max(0);
    let last = place(stop).min(length - 1);
    let skip = usize::try_from(first).unwrap_or(0);
    let take = usize::try_from(last - first + 1).unwrap_or(0);
    Ok(Reply::Array(
        list.iter()
            .skip(skip)
            .take(take)
            .map(|item| Reply::Bulk(item.clone()))
            .collect(),
    ))
}

fn sadd(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    if set_of(db, &args[0])?.is_none() {
        put(db, &args[0], Value::Set(BTreeSet::new()));
    }
    let Some(set) = set_of(db, &args[0])? else {
        return Ok(Reply::Integer(0));
    };
    Ok(count(
        args[1..]
            .iter()
            .filter(|member| set.insert((*member).clone()))
            .count(),
    ))
}

fn srem(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let Some(set) = set_of(db, &args[0])? else {
        return Ok(Reply::Integer(0));
    };
    let removed = args[1..]
        .iter()
        .filter(|member| set.remove(*member))
        .count();
    if set.is_empty() {
        db.remove(&args[0]);
    }
    Ok(count(removed))
}

fn smembers(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let members = set_of(db, &args[0])?
        .map(|set| set.clone())
        .unwrap_or_default();
    Ok(Reply::Set(members.into_iter().map(Reply::Bulk).collect()))
}

fn expire(db: &mut Db, args: &[Vec<u8>], now: Instant) -> Result<Reply, Reply> {
    let seconds = integer(&args[1])?;
    let Some(entry) = db.get_mut(&args[0]) else {
        return Ok(Reply::Integer(0));
    };
    if seconds <= 0 {
        db.remove(&args[0]);
        return Ok(Reply::Integer(1));
    }
    let at = after(now, seconds, 1000);
    entry.expires =
        Some(at.ok_or_else(|| Reply::error("ERR invalid expire time in 'expire' command"))?);
    Ok(Reply::Integer(1))
}

fn left(db: &Db, key: &[u8], now: Instant, unit_ms: u128) -> Reply {
    match db.get(key).map(|entry| entry.expires) {
        None => Reply::Integer(-2),
        Some(None) => Reply::Integer(-1),
        Some(Some(at)) => {
            let units = (at.saturating_duration_since(now).as_millis() + unit_ms / 2) / unit_ms;
            Reply::Integer(i64::try_from(units).unwrap_or(i64::MAX))
        }
    }
}

fn kind(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    Ok(Reply::Simple(
        match db.get(&args[0]).map(|entry| &entry.value) {
            None => "none",
            Some(Value::Str(_)) => "string",
            Some(Value::Hash(_)) => "hash",
            Some(Value::List(_)) => "list",
            Some(Value::Set(_)) => "set",
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_table_is_sorted_for_the_search() {
        assert!(COMMANDS.is_sorted_by(|a, b| a.name < b.name));
    }
}
