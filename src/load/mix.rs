//! Which commands a load sends, in which shares, and what their replies must look like.

use std::fmt;

use fastrand::Rng;

use super::keys::{PREFIX, is_value, name, value};
use super::{LoadError, exchange::Judged};

/// Keys of one MGET.
const MGET_KEYS: u64 = 10;

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident = $word:literal),+ $(,)?) => {
        /// A command of the mix.
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Kind { $($(#[$doc])* $kind),+ }

        impl Kind {
            /// The words for `--mix`.
            pub const WORDS: &'static [&'static str] = &[$($word),+];

            /// The word for it.
            pub fn word(self) -> &'static str {
                match self { $(Self::$kind => $word),+ }
            }

            fn of(word: &str) -> Option<Self> {
                match word { $($word => Some(Self::$kind),)+ _ => None }
            }
        }
    };
}

kinds! {
    /// No key, no data.
    Ping = "ping",
    /// One string is read.
    Get = "get",
    /// One string is written.
    Set = "set",
    /// Ten strings are read.
    Mget = "mget",
    /// One counter is raised.
    Incr = "incr",
    /// One field of a hash is written.
    Hset = "hset",
    /// A whole hash is read.
    Hgetall = "hgetall",
    /// A list grows.
    Lpush = "lpush",
    /// A list shrinks.
    Lpop = "lpop",
    /// One key is removed.
    Del = "del",
}

/// Commands and their weights.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mix {
    /// No weight is 0; ascending sums of the weights.
    sums: Vec<(Kind, u32)>,
}

impl Default for Mix {
    fn default() -> Self {
        Self::only(Kind::Get)
    }
}

impl Mix {
    /// One command and nothing else.
    pub fn only(kind: Kind) -> Self {
        Self {
            sums: vec![(kind, 1)],
        }
    }

    /// Reads e.g. `get:80,set:20`; a command without a weight has 1.
    ///
    /// # Errors
    /// [`LoadError::Argument`] names what is wrong and what would be right.
    pub fn parse(text: &str) -> Result<Self, LoadError> {
        let mut sums = Vec::new();
        let mut sum = 0_u32;
        for part in text.split(',').map(str::trim) {
            let (word, weight) = part.split_once(':').unwrap_or((part, "1"));
            let kind = Kind::of(&word.trim().to_ascii_lowercase()).ok_or_else(|| {
                LoadError::Argument(format!(
                    "{word:?} is not in the mix's commands: {}",
                    Kind::WORDS.join(", ")
                ))
            })?;
            let weight: u32 = match weight.trim().parse() {
                Ok(weight @ 1..=1_000_000) => weight,
                _ => {
                    return Err(LoadError::Argument(format!(
                        "{weight:?} is no weight of {word}; write e.g. get:80,set:20"
                    )));
                }
            };
            sum = sum
                .checked_add(weight)
                .ok_or_else(|| LoadError::Argument("the weights are too large".into()))?;
            sums.push((kind, sum));
        }
        Ok(Self { sums })
    }

    /// The next command.
    pub fn draw(&self, rng: &mut Rng) -> Kind {
        let [rest @ .., (last, total)] = self.sums.as_slice() else {
            return Kind::Ping;
        };
        if rest.is_empty() {
            return *last;
        }
        let drawn = rng.u32(..*total);
        let found = rest.iter().find(|(_, sum)| drawn < *sum);
        found.map_or(*last, |(kind, _)| *kind)
    }

    /// Whether some command reads or replaces the strings that a run fills in first.
    pub fn reads_strings(&self) -> bool {
        self.sums
            .iter()
            .any(|(kind, _)| matches!(kind, Kind::Get | Kind::Mget))
    }
}

impl fmt::Display for Mix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut before = 0;
        for (n, (kind, sum)) in self.sums.iter().enumerate() {
            let comma = if n == 0 { "" } else { "," };
            write!(f, "{comma}{}:{}", kind.word(), sum - before)?;
            before = *sum;
        }
        Ok(())
    }
}

/// The key of a command that is not for strings: types do not mix.
pub(super) fn typed_name(kind: Kind, key: u64) -> String {
    format!(
        "{PREFIX}{}:{key:012}",
        match kind {
            Kind::Incr => "count",
            Kind::Hset | Kind::Hgetall => "hash",
            Kind::Lpush | Kind::Lpop => "list",
            Kind::Ping | Kind::Get | Kind::Set | Kind::Mget | Kind::Del => return name(key),
        }
    )
}

impl Kind {
    /// Appends the command for a key.
    pub fn write(self, key: u64, keys: u64, value_size: usize, out: &mut Vec<u8>) {
        let own = typed_name(self, key);
        let own = own.as_bytes();
        match self {
            Kind::Ping => command(out, &[b"PING"]),
            Kind::Get => command(out, &[b"GET", own]),
            Kind::Set => command(out, &[b"SET", own, &value(key, value_size)]),
            Kind::Incr => command(out, &[b"INCR", own]),
            Kind::Hset => command(out, &[b"HSET", own, b"field", &value(key, value_size)]),
            Kind::Hgetall => command(out, &[b"HGETALL", own]),
            Kind::Lpush => command(out, &[b"LPUSH", own, &value(key, value_size)]),
            Kind::Lpop => command(out, &[b"LPOP", own]),
            Kind::Del => command(out, &[b"DEL", own]),
            Kind::Mget => {
                let names: Vec<String> = (0..MGET_KEYS).map(|n| name((key + n) % keys)).collect();
                let mut words = vec![b"MGET".as_slice()];
                words.extend(names.iter().map(String::as_bytes));
                command(out, &words);
            }
        }
    }

    /// Judges a complete reply.
    pub fn judge(self, key: u64, reply: &[u8]) -> Judged {
        let Some(&first) = reply.first() else {
            return Judged::Wrong;
        };
        if matches!(first, b'-' | b'!') {
            return Judged::Error;
        }
        let nothing = matches!(reply, b"$-1\r\n" | b"_\r\n");
        let right = match self {
            Kind::Ping => reply == b"+PONG\r\n",
            Kind::Set => reply == b"+OK\r\n",
            Kind::Incr | Kind::Hset | Kind::Lpush | Kind::Del => first == b':',
            Kind::Hgetall => matches!(first, b'*' | b'%'),
            Kind::Mget => first == b'*',
            Kind::Get | Kind::Lpop if nothing => return Judged::Missing,
            Kind::Get | Kind::Lpop => bulk(reply).is_some_and(|value| is_value(key, value)),
        };
        if right { Judged::Right } else { Judged::Wrong }
    }
}

fn bulk(reply: &[u8]) -> Option<&[u8]> {
    let head = memchr::memchr(b'\n', reply)?;
    (reply[0] == b'$').then(|| reply.get(head + 1..reply.len() - 2))?
}

/// Appends a command of these words.
pub(super) fn command(out: &mut Vec<u8>, words: &[&[u8]]) {
    out.extend_from_slice(format!("*{}\r\n", words.len()).as_bytes());
    for word in words {
        out.extend_from_slice(format!("${}\r\n", word.len()).as_bytes());
        out.extend_from_slice(word);
        out.extend_from_slice(b"\r\n");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn weights_become_shares() {
        let mix = Mix::parse("get:80, SET:20").unwrap();
        assert_eq!(mix.to_string(), "get:80,set:20");
        let mut rng = Rng::with_seed(3);
        let sets = (0..10_000)
            .filter(|_| mix.draw(&mut rng) == Kind::Set)
            .count();
        assert!((1_800..=2_200).contains(&sets), "{sets}");
        assert!(mix.reads_strings() && !Mix::only(Kind::Incr).reads_strings());
    }

    #[test]
    fn what_is_no_mix_is_refused_with_a_way_out() {
        for (text, says) in [
            ("gett", "ping, get, set"),
            ("get:0", "get:80,set:20"),
            ("get:x", "get:80,set:20"),
            ("", "is not in the mix"),
        ] {
            let error = Mix::parse(text).unwrap_err().to_string();
            assert!(error.contains(says), "{text:?}: {error}");
        }
    }

    #[test]
    fn replies_of_another_request_are_wrong() {
        let reply = |key| {
            let mut reply = b"$64\r\n".to_vec();
            reply.extend(value(key, 64));
            reply.extend(b"\r\n");
            reply
        };
        assert_eq!(Kind::Get.judge(7, &reply(7)), Judged::Right);
        assert_eq!(Kind::Get.judge(8, &reply(7)), Judged::Wrong);
        assert_eq!(Kind::Get.judge(8, b"$-1\r\n"), Judged::Missing);
        assert_eq!(Kind::Get.judge(8, b"_\r\n"), Judged::Missing);
        assert_eq!(Kind::Get.judge(8, b"-ERR no\r\n"), Judged::Error);
        assert_eq!(Kind::Set.judge(8, b"$2\r\nOK\r\n"), Judged::Wrong);
        assert_eq!(Kind::Hgetall.judge(8, b"%0\r\n"), Judged::Right);
    }
}
