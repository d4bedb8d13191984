//! Commands about hashes, lists and sets.

use std::collections::{BTreeSet, VecDeque};
use std::time::Instant;

use super::{Db, Fields, Reply, Value, WRONG_TYPE, count, integer, put};

fn hash_of<'a>(db: &'a mut Db, key: &[u8]) -> Result<Option<&'a mut Fields>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Hash(hash)) => Ok(Some(hash)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

pub(super) fn hset(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn hget(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let hash = hash_of(db, &args[0])?;
    let value = hash.and_then(|hash| hash.iter().find(|(field, _)| *field == args[1]));
    Ok(value.map_or(Reply::Nil, |(_, value)| Reply::Bulk(value.clone())))
}

pub(super) fn hgetall(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn hdel(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn list_of<'a>(
    db: &'a mut Db,
    key: &[u8],
) -> Result<Option<&'a mut VecDeque<Vec<u8>>>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::List(list)) => Ok(Some(list)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

pub(super) fn push(
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

pub(super) fn pop(
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

pub(super) fn lrange(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn set_of<'a>(
    db: &'a mut Db,
    key: &[u8],
) -> Result<Option<&'a mut BTreeSet<Vec<u8>>>, Reply> {
    match db.get_mut(key).map(|entry| &mut entry.value) {
        None => Ok(None),
        Some(Value::Set(set)) => Ok(Some(set)),
        Some(_) => Err(Reply::error(WRONG_TYPE)),
    }
}

pub(super) fn sadd(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn srem(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
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

pub(super) fn smembers(db: &mut Db, args: &[Vec<u8>], _: Instant) -> Result<Reply, Reply> {
    let members = set_of(db, &args[0])?
        .map(|set| set.clone())
        .unwrap_or_default();
    Ok(Reply::Set(members.into_iter().map(Reply::Bulk).collect()))
}
