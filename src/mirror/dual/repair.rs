//! How one key is copied: what to ask the primary, and what its answers make for the secondary.
//!
//! DUMP and RESTORE where both servers know the format, else by type. Either way the secondary's key is replaced as a
//! whole, with the time at which it ends.

use super::keys::commands;
use super::taint::Key;
use crate::protocol::resp::effects::{Expected, Rewrite, encode};
use crate::protocol::resp::{Reply, Request};

/// How keys are copied.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Copying {
    /// DUMP and RESTORE.
    #[default]
    Dump,
    /// Type by type, because the secondary does not know the primary's format.
    ByType,
}

/// What to ask the primary about a key; the number of commands.
pub fn ask(key: &Key, copying: Copying, out: &mut Vec<u8>) -> u32 {
    let name = &*key.name;
    encode(out, [b"PTTL", name]);
    encode(out, [b"PEXPIRETIME", name]);
    match copying {
        Copying::Dump => {
            encode(out, [b"DUMP", name]);
            3
        }
        Copying::ByType => {
            encode(out, [b"TYPE", name]);
            encode(out, [b"GET", name]);
            encode(out, [b"LRANGE", name, b"0", b"-1"]);
            encode(out, [b"SMEMBERS", name]);
            encode(out, [b"ZRANGE", name, b"0", b"-1", b"WITHSCORES"]);
            encode(out, [b"HGETALL", name]);
            encode(out, [b"XRANGE", name, b"-", b"+"]);
            encode(out, [b"XINFO".as_slice(), b"STREAM", name]);
            encode(out, [b"XINFO".as_slice(), b"GROUPS", name]);
            11
        }
    }
}

/// The primary's answers do not make a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the primary's answers do not make a copy of the key")]
pub struct NoCopy;

/// What makes the secondary's key equal to the primary's, from the answers to [`ask`]. By type the commands belong
/// into one MULTI block.
///
/// # Errors
/// [`NoCopy`] where the primary refused: no permission, or a type that only DUMP knows.
pub fn plan(
    key: &Key,
    copying: Copying,
    answers: &[&[u8]],
    now_unix_ms: u64,
    out: &mut Rewrite,
) -> Result<(), NoCopy> {
    let name = &*key.name;
    let answer = |at: usize| {
        answers
            .get(at)
            .map(|bytes| Reply::parse(bytes))
            .ok_or(NoCopy)
    };
    let left = answer(0)?.integer().ok_or(NoCopy)?;
    if left == -2 {
        out.push(Expected::Anything, [b"DEL", name]);
        return Ok(());
    }
    // Redis before 7.0 does not tell the time itself.
    let at = match answer(1)?.integer() {
        Some(at) if at > 0 => Some(at.to_string()),
        _ if left >= 0 => Some((now_unix_ms.saturating_add(left.unsigned_abs())).to_string()),
        _ => None,
    };
    match copying {
        Copying::Dump => {
            let dump = answer(2)?;
            if dump.is_nil() {
                out.push(Expected::Anything, [b"DEL", name]);
                return Ok(());
            }
            let dump = dump.text().filter(|_| !dump.is_error()).ok_or(NoCopy)?;
            let at = at.as_deref().unwrap_or("0").as_bytes();
            out.push(
                Expected::Anything,
                [b"RESTORE", name, at, dump, b"REPLACE", b"ABSTTL"],
            );
        }
        Copying::ByType => {
            out.push(Expected::Anything, [b"DEL", name]);
            by_type(name, &answer, out)?;
            if let Some(at) = at {
                out.push(Expected::Anything, [b"PEXPIREAT", name, at.as_bytes()]);
            }
        }
    }
    Ok(())
}

/// Elements per command: a long list must not become one endless command.
const ELEMENTS_MAX: usize = 512;

fn by_type<'a>(
    name: &[u8],
    answer: &impl Fn(usize) -> Result<Reply<'a>, NoCopy>,
    out: &mut Rewrite,
) -> Result<(), NoCopy> {
    match answer(2)?.text().ok_or(NoCopy)? {
        b"string" => {
            let value = answer(3)?.text().ok_or(NoCopy)?;
            out.push(Expected::Anything, [b"SET", name, value]);
        }
        b"list" => elements(b"RPUSH", name, scalars(answer(4)?), out),
        b"set" => elements(b"SADD", name, scalars(answer(5)?), out),
        b"zset" => {
            // Members come first in the answer, scores first in ZADD.
            let mut swapped = scalars(answer(6)?);
            swapped
                .as_chunks_mut::<2>()
                .0
                .iter_mut()
                .for_each(|pair| pair.swap(0, 1));
            elements(b"ZADD", name, swapped, out);
        }
        b"hash" => elements(b"HSET", name, scalars(answer(7)?), out),
        b"stream" => stream(name, answer(8)?, answer(9)?, answer(10)?, out),
        b"none" => {}
        _ => return Err(NoCopy),
    }
    Ok(())
}

/// Every scalar of a flat or paired aggregate.
fn scalars<'a>(reply: Reply<'a>) -> Vec<&'a [u8]> {
    reply
        .cursor()
        .filter_map(|item| match item {
            crate::protocol::resp::reply::Item::Scalar(_, text) => Some(text),
            _ => None,
        })
        .collect()
}

fn elements(command: &[u8], name: &[u8], elements: Vec<&[u8]>, out: &mut Rewrite) {
    for some in elements.chunks(ELEMENTS_MAX) {
        out.push(
            Expected::Anything,
            [command, name].into_iter().chain(some.iter().copied()),
        );
    }
}

/// Entries, the last ID, and the groups with their cursors. What consumers have pending only DUMP carries over.
fn stream(name: &[u8], entries: Reply<'_>, info: Reply<'_>, groups: Reply<'_>, out: &mut Rewrite) {
    for entry in entries.elements() {
        let mut parts = entry.elements();
        let Some(id) = parts.next().and_then(|id| id.text()) else {
            continue;
        };
        let fields = parts.next().map(scalars).unwrap_or_default();
        out.push(
            Expected::Anything,
            [b"XADD".as_slice(), name, id].into_iter().chain(fields),
        );
    }
    let last = field(info, b"last-generated-id").unwrap_or(b"0-0");
    if entries.is_empty_collection() {
        // Only a group can make an empty stream.
        out.push(
            Expected::Anything,
            [
                b"XGROUP".as_slice(),
                b"CREATE",
                name,
                b"parhelion",
                b"$",
                b"MKSTREAM",
            ],
        );
        out.push(
            Expected::Anything,
            [b"XGROUP".as_slice(), b"DESTROY", name, b"parhelion"],
        );
    }
    out.push(Expected::Anything, [b"XSETID", name, last]);
    for group in groups.elements() {
        if let (Some(group_name), Some(at)) =
            (field(group, b"name"), field(group, b"last-delivered-id"))
        {
            out.push(
                Expected::Anything,
                [b"XGROUP".as_slice(), b"CREATE", name, group_name, at],
            );
        }
    }
}

/// The text behind a name in a flat list or map.
fn field<'a>(reply: Reply<'a>, name: &[u8]) -> Option<&'a [u8]> {
    let mut elements = reply.elements();
    while let Some(key) = elements.next() {
        let value = elements.next()?;
        if key.text() == Some(name) {
            return value.text();
        }
    }
    None
}

/// The secondary does not know the primary's DUMP format: copy by type from now on.
pub fn is_foreign_format(reply: &[u8]) -> bool {
    let text = Reply::parse(reply);
    let says = |words: &str| {
        text.text()
            .is_some_and(|text| text.windows(words.len()).any(|at| at == words.as_bytes()))
    };
    text.is_error()
        && (says("Bad data format") || says("DUMP payload version") || says("unknown command"))
}

/// The names in a SCAN reply, and the next cursor; `None` if it is none.
pub fn scanned(reply: &[u8]) -> Option<(&[u8], impl Iterator<Item = &[u8]>)> {
    let mut parts = Reply::parse(reply).elements();
    let cursor = parts.next()?.text()?;
    let names = parts.next()?;
    Some((cursor, names.elements().filter_map(|name| name.text())))
}

/// Databases that hold keys, from `INFO keyspace`.
pub fn databases(info: &[u8]) -> Vec<u32> {
    let text = Reply::parse(info).text().unwrap_or_default();
    text.split(|byte| *byte == b'\n')
        .filter_map(|line| {
            let line = line.strip_prefix(b"db")?;
            let end = line.iter().position(|byte| *byte == b':')?;
            std::str::from_utf8(&line[..end]).ok()?.parse().ok()
        })
        .collect()
}

/// The server's run id, from `INFO server`: another one means that it was restarted and may have lost data.
pub fn run_id(info: &[u8]) -> Option<Box<[u8]>> {
    let text = Reply::parse(info).text()?;
    text.split(|byte| *byte == b'\n')
        .find_map(|line| line.strip_prefix(b"run_id:"))
        .map(|id| id.trim_ascii().into())
}

/// The version whose commands the server knows, from `INFO server`: major and minor. Valkey and others name the Redis that
/// they are compatible with.
pub fn version(info: &[u8]) -> Option<(u32, u32)> {
    let text = Reply::parse(info).text()?;
    let mut lines = text.split(|byte| *byte == b'\n');
    let line = lines.find_map(|line| line.strip_prefix(b"redis_version:"))?;
    let mut numbers = std::str::from_utf8(line).ok()?.trim().split('.');
    let mut number = || numbers.next()?.parse().ok();
    Some((number()?, number()?))
}

/// The name of the first command, for messages.
pub fn name_of(unit: &[u8]) -> String {
    let first = commands(unit).next().unwrap_or_default();
    let request = Request::parse(first);
    match crate::protocol::resp::command::lookup_request(&request) {
        Some(command) => command.name().to_owned(),
        None => "other".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn planned(copying: Copying, answers: &[&str]) -> Result<String, NoCopy> {
        let key = Key {
            db: 0,
            name: b"k".as_slice().into(),
        };
        let answers: Vec<String> = answers
            .iter()
            .map(|text| text.replace(' ', "\r\n") + "\r\n")
            .collect();
        let answers: Vec<&[u8]> = answers.iter().map(String::as_bytes).collect();
        let mut out = Rewrite::default();
        plan(&key, copying, &answers, 1000, &mut out)?;
        let lines: Vec<String> = commands(&out.bytes)
            .map(|frame| {
                let request = Request::parse(frame);
                let words: Vec<_> = request.args().map(String::from_utf8_lossy).collect();
                words.join(" ")
            })
            .collect();
        Ok(lines.join("; "))
    }

    #[test]
    fn a_dump_is_restored_with_its_absolute_end() {
        let copy = |answers: &[&str]| planned(Copying::Dump, answers).unwrap();
        assert_eq!(
            copy(&[":-1", ":-1", "$1 x"]),
            "RESTORE k 0 x REPLACE ABSTTL"
        );
        assert_eq!(
            copy(&[":50", ":1234", "$1 x"]),
            "RESTORE k 1234 x REPLACE ABSTTL"
        );
        assert_eq!(
            copy(&[":50", "-ERR", "$1 x"]),
            "RESTORE k 1050 x REPLACE ABSTTL"
        );
        assert_eq!(copy(&[":-2", ":-2", "$-1"]), "DEL k");
        assert_eq!(
            planned(Copying::Dump, &["-NOPERM", ":1", "$1 x"]),
            Err(NoCopy)
        );
    }

    #[test]
    fn every_type_is_copied_without_a_dump() {
        let copy = |kind: &str, at: usize, answer: &str| {
            let mut answers = [
                ":-1",
                ":-1",
                kind,
                "-WRONGTYPE",
                "-W",
                "-W",
                "-W",
                "-W",
                "-W",
                "-W",
                "-W",
            ];
            answers[at] = answer;
            planned(Copying::ByType, &answers).unwrap()
        };
        assert_eq!(copy("+string", 3, "$1 v"), "DEL k; SET k v");
        assert_eq!(copy("+list", 4, "*2 $1 a $1 b"), "DEL k; RPUSH k a b");
        assert_eq!(
            copy("+zset", 6, "*4 $1 a $1 1 $1 b $1 2"),
            "DEL k; ZADD k 1 a 2 b"
        );
        assert_eq!(copy("+hash", 7, "*2 $1 f $1 v"), "DEL k; HSET k f v");
        assert_eq!(
            copy("+stream", 8, "*1 *2 $3 1-1 *2 $1 f $1 v"),
            "DEL k; XADD k 1-1 f v; XSETID k 0-0"
        );
    }

    #[test]
    fn the_keyspace_and_the_run_id_are_read_from_info() {
        assert_eq!(
            databases(b"$36\r\n# Keyspace\r\ndb0:keys=1\r\ndb11:keys=2\r\n\r\n\r\n"),
            [0, 11]
        );
        assert_eq!(
            run_id(b"$16\r\na:b\r\nrun_id:abc\r\n\r\n").as_deref(),
            Some(b"abc".as_slice())
        );
    }
}
