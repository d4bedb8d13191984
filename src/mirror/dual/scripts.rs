//! Bodies of scripts and libraries, for a secondary that does not know one: restarted, flushed, or never told.

use std::collections::{HashMap, HashSet, VecDeque};
use std::rc::Rc;

use sha1::{Digest, Sha1};
use xxhash_rust::xxh3::xxh3_64;

use crate::limits::{SCRIPT_BYTES_MAX, SCRIPTS_MAX};
use crate::protocol::resp::Request;
use crate::protocol::resp::effects::encode;

/// The name of a script: forty hexadecimal digits in lower case.
type Sha = [u8; 40];

/// See the module. Oldest bodies go first when there are too many.
#[derive(Debug, Default)]
pub struct ScriptCache {
    bodies: HashMap<Sha, Rc<[u8]>>,
    order: VecDeque<Sha>,
    bytes: usize,
    /// Bodies that were seen, by a cheap hash, so that a repeated EVAL costs no SHA-1.
    seen: HashSet<u64>,
    libraries: VecDeque<Rc<[u8]>>,
    library_bytes: usize,
    /// What the secondary's present process has been told.
    told: HashSet<Sha>,
}

impl ScriptCache {
    /// Takes the body out of EVAL, SCRIPT LOAD and FUNCTION LOAD, whoever sent it.
    pub fn learn(&mut self, request: &Request<'_>) {
        if request.arg_is(0, b"EVAL") || request.arg_is(0, b"EVAL_RO") {
            request
                .arg(1)
                .into_iter()
                .for_each(|body| self.learn_body(body));
        } else if request.arg_is(0, b"SCRIPT") && request.arg_is(1, b"LOAD") {
            request
                .arg(2)
                .into_iter()
                .for_each(|body| self.learn_body(body));
        } else if request.arg_is(0, b"SCRIPT") && request.arg_is(1, b"FLUSH") {
            self.told.clear();
        } else if request.arg_is(0, b"FUNCTION") && request.arg_is(1, b"LOAD") {
            let code = request.arg(request.len() - 1).unwrap_or_default();
            self.learn_library(code);
        } else if request.arg_is(0, b"FUNCTION")
            && (request.arg_is(1, b"FLUSH") || request.arg_is(1, b"DELETE"))
        {
            self.libraries.clear();
            self.library_bytes = 0;
        }
    }

    fn learn_body(&mut self, body: &[u8]) {
        if body.len() > SCRIPT_BYTES_MAX / 16 || !self.seen.insert(xxh3_64(body)) {
            return;
        }
        let sha = sha_of(body);
        if self.bodies.insert(sha, body.into()).is_none() {
            self.order.push_back(sha);
            self.bytes += body.len();
        }
        while self.order.len() > SCRIPTS_MAX || self.bytes > SCRIPT_BYTES_MAX {
            let Some(oldest) = self.order.pop_front() else {
                break;
            };
            if let Some(body) = self.bodies.remove(&oldest) {
                self.seen.remove(&xxh3_64(&body));
                self.bytes -= body.len();
            }
        }
    }

    fn learn_library(&mut self, code: &[u8]) {
        if code.len() > SCRIPT_BYTES_MAX / 16 || self.libraries.iter().any(|known| &**known == code)
        {
            return;
        }
        self.library_bytes += code.len();
        self.libraries.push_back(code.into());
        while self.library_bytes > SCRIPT_BYTES_MAX || self.libraries.len() > SCRIPTS_MAX {
            let Some(oldest) = self.libraries.pop_front() else {
                break;
            };
            self.library_bytes -= oldest.len();
        }
    }

    /// The body that an EVALSHA or EVALSHA_RO names.
    pub fn body(&self, request: &Request<'_>) -> Option<&Rc<[u8]>> {
        self.bodies.get(&sha_named(request)?)
    }

    /// SCRIPT LOAD for an EVALSHA whose script the secondary has not been told yet; noted as told.
    pub fn tell(&mut self, request: &Request<'_>, out: &mut Vec<u8>) -> bool {
        let Some(sha) = sha_named(request) else {
            return false;
        };
        let Some(body) = self.bodies.get(&sha).filter(|_| !self.told.contains(&sha)) else {
            return false;
        };
        encode(out, [b"SCRIPT".as_slice(), b"LOAD", body]);
        self.told.insert(sha);
        true
    }

    /// The secondary said NOSCRIPT, or there is another process now.
    pub fn forget_told(&mut self) {
        self.told.clear();
    }

    /// FUNCTION LOAD REPLACE of every library that is known; the number of commands.
    pub fn libraries(&self, out: &mut Vec<u8>) -> u32 {
        for code in &self.libraries {
            encode(out, [b"FUNCTION".as_slice(), b"LOAD", b"REPLACE", code]);
        }
        // At most SCRIPTS_MAX.
        self.libraries.len() as u32
    }

    /// Bodies that are known.
    pub fn len(&self) -> usize {
        self.bodies.len()
    }

    /// Nothing is known.
    pub fn is_empty(&self) -> bool {
        self.bodies.is_empty()
    }
}

/// The form of an EVALSHA that carries the body; an EVALSHA_RO stays read-only.
pub fn with_body(request: &Request<'_>, body: &[u8], out: &mut Vec<u8>) {
    let name: &[u8] = if request.arg_is(0, b"EVALSHA_RO") {
        b"EVAL_RO"
    } else {
        b"EVAL"
    };
    let args = request.args().enumerate().map(|(at, arg)| match at {
        0 => name,
        1 => body,
        _ => arg,
    });
    encode(out, args);
}

fn sha_named(request: &Request<'_>) -> Option<Sha> {
    if !request.arg_is(0, b"EVALSHA") && !request.arg_is(0, b"EVALSHA_RO") {
        return None;
    }
    let mut sha: Sha = request.arg(1)?.try_into().ok()?;
    sha.make_ascii_lowercase();
    Some(sha)
}

fn sha_of(body: &[u8]) -> Sha {
    let mut sha = [0; 40];
    for (pair, byte) in sha
        .as_chunks_mut::<2>()
        .0
        .iter_mut()
        .zip(Sha1::digest(body))
    {
        *pair = [HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]];
    }
    sha
}

const HEX: [u8; 16] = *b"0123456789abcdef";

#[cfg(test)]
mod tests {
    use super::*;

    fn request(args: &[&str]) -> Vec<u8> {
        let mut out = Vec::new();
        encode(&mut out, args);
        out
    }

    #[test]
    fn a_body_that_anybody_sent_is_told_once_under_its_sha() {
        let mut cache = ScriptCache::default();
        cache.learn(&Request::parse(&request(&["eval", "return 1", "0"])));
        // The sha1 of "return 1".
        let call = request(&[
            "EVALSHA_RO",
            "E0E1F9FABFC9D4800C877A703B823AC0578FF8DB",
            "1",
            "k",
        ]);
        let call = Request::parse(&call);
        let mut out = Vec::new();
        assert!(cache.tell(&call, &mut out));
        assert_eq!(out, request(&["SCRIPT", "LOAD", "return 1"]));
        assert!(!cache.tell(&call, &mut out), "told already");
        cache.forget_told();
        assert!(cache.tell(&call, &mut out));
        let mut full = Vec::new();
        with_body(&call, cache.body(&call).unwrap(), &mut full);
        assert_eq!(full, request(&["EVAL_RO", "return 1", "1", "k"]));
    }

    #[test]
    fn the_oldest_bodies_go_first() {
        let mut cache = ScriptCache::default();
        for number in 0..SCRIPTS_MAX + 10 {
            cache.learn(&Request::parse(&request(&[
                "SCRIPT",
                "LOAD",
                &format!("return {number}"),
            ])));
        }
        assert_eq!(cache.len(), SCRIPTS_MAX);
        cache.learn(&Request::parse(&request(&["SCRIPT", "LOAD", "return 0"])));
        assert_eq!(cache.len(), SCRIPTS_MAX, "a forgotten body is learnt again");
    }
}
