//! Commands about keys, whatever they hold.

use std::time::Instant;

use super::{Db, Reply, Value, after, count, integer};

pub(super) fn del(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    Ok(count(
        args.iter().filter(|key| db.remove(*key).is_some()).count(),
    ))
}

pub(super) fn expire(db: &mut Db, args: &[Vec<u8>], now: Instant) -> Result<Reply, Reply> {
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

pub(super) fn left(db: &Db, key: &[u8], now: Instant, unit_ms: u128) -> Reply {
    match db.get(key).map(|entry| entry.expires) {
        None => Reply::Integer(-2),
        Some(None) => Reply::Integer(-1),
        Some(Some(at)) => {
            let units = (at.saturating_duration_since(now).as_millis() + unit_ms / 2) / unit_ms;
            Reply::Integer(i64::try_from(units).unwrap_or(i64::MAX))
        }
    }
}

pub(super) fn kind(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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
