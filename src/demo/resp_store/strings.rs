//! Commands about strings.

use std::time::Instant;

use super::{Db, Entry, Reply, Value, WRONG_TYPE, after, count, integer, put};

pub(super) fn string<'a>(db: &'a Db, key: &[u8]) -> Result<Option<&'a Vec<u8>>, Reply> {
    match db.get(key).map(|entry| &entry.value) {
        None => Ok(None),
        Some(Value::Str(text)) => Ok(Some(text)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

/// Replaces the text and leaves the expiry alone.
fn put_text(db: &mut Db, key: &[u8], text: Vec<u8>) {
    match db.get_mut(key) {
        Some(entry) => entry.value = Value::Str(text),
        None => put(db, key, Value::Str(text)),
    }
}

pub(super) fn set(db: &mut Db, args: &[Vec<u8>], now: Instant) -> Result<Reply, Reply> {
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

pub(super) fn add(db: &mut Db, key: &[u8], by: i64) -> Result<Reply, Reply> {
    let old = string(db, key)?.map_or(Ok(0), |text| integer(text))?;
    let new = old
        .checked_add(by)
        .ok_or_else(|| Reply::error("ERR increment or decrement would overflow"))?;
    put_text(db, key, new.to_string().into_bytes());
    Ok(Reply::Integer(new))
}

pub(super) fn append(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let mut text = string(db, &args[0])?.cloned().unwrap_or_default();
    text.extend_from_slice(&args[1]);
    let length = text.len();
    put_text(db, &args[0], text);
    Ok(count(length))
}

pub(super) fn mget(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let one = |key: &Vec<u8>| match string(db, key) {
        Ok(Some(text)) => Reply::Bulk(text.clone()),
        _ => Reply::Nil,
    };
    Ok(Reply::Array(args.iter().map(one).collect()))
}

pub(super) fn mset(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    if !args.len().is_multiple_of(2) {
        return Err(Reply::wrong_arity("mset"));
    }
    for pair in args.chunks_exact(2) {
        put(db, &pair[0], Value::Str(pair[1].clone()));
    }
    Ok(Reply::Simple("OK"))
}
