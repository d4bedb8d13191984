//! A small in-memory server that speaks RESP2 and RESP3, for the demo and as a witness in tests.
//!
//! It is honest about what it cannot do (an unknown command gets Redis's own error text), and dishonest only where it is
//! told to be: it can answer late, and it can falsify a seeded fraction of its read replies, counting each one.

mod session;

use std::collections::HashMap;
use std::io;
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use super::resp_store::Store;
use session::Session;

/// How the server behaves.
#[derive(Debug, Clone, Default)]
pub struct RespOptions {
    /// Waited once before each batch of replies (the commands of one read).
    pub delay: Duration,
    /// One in so many data replies of read commands is falsified; 0 for none.
    pub wrong_every: u32,
    /// Seed of the choice.
    pub seed: u64,
    /// Keeps every command that arrives, per connection, for [`RespServer::recorded`].
    pub record: bool,
}

/// What one connection sent: its commands in order.
pub type Recording = Vec<Vec<Vec<u8>>>;

/// A running server. Dropping it closes everything.
#[derive(Debug)]
pub struct RespServer {
    address: SocketAddr,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    options: RespOptions,
    store: Mutex<Store>,
    rng: Mutex<fastrand::Rng>,
    stop: AtomicBool,
    commands: AtomicU64,
    falsified: AtomicU64,
    connections: Mutex<HashMap<u64, TcpStream>>,
    accepted: AtomicU64,
    recordings: Mutex<Vec<Arc<Mutex<Recording>>>>,
    ids: AtomicU64,
}

impl RespServer {
    /// Listens on a free loopback port.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(options: RespOptions) -> io::Result<RespServer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let rng = fastrand::Rng::with_seed(options.seed);
        let shared = Arc::new(Shared {
            options,
            store: Mutex::default(),
            rng: Mutex::new(rng),
            stop: AtomicBool::new(false),
            commands: AtomicU64::new(0),
            falsified: AtomicU64::new(0),
            connections: Mutex::default(),
            accepted: AtomicU64::new(0),
            recordings: Mutex::default(),
            ids: AtomicU64::new(0),
        });
        let acceptor = Arc::clone(&shared);
        thread::spawn(move || accept(&listener, &acceptor));
        Ok(RespServer { address, shared })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Commands executed so far.
    pub fn commands(&self) -> u64 {
        self.shared.commands.load(Ordering::Relaxed)
    }

    /// Replies falsified so far.
    pub fn falsified(&self) -> u64 {
        self.shared.falsified.load(Ordering::Relaxed)
    }

    /// What each connection sent, in the order of the connections; empty unless recording.
    pub fn recorded(&self) -> Vec<Recording> {
        lock(&self.shared.recordings)
            .iter()
            .map(|one| lock(one).clone())
            .collect()
    }
}

impl Drop for RespServer {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for (_, stream) in lock(&self.shared.connections).drain() {
            let _ = stream.shutdown(Shutdown::Both);
        }
        // Wakes the acceptor.
        let _ = TcpStream::connect(self.address);
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn accept(listener: &TcpListener, shared: &Arc<Shared>) {
    for stream in listener.incoming() {
        if shared.stop.load(Ordering::SeqCst) {
            return;
        }
        let Ok(stream) = stream else { continue };
        let Ok(copy) = stream.try_clone() else {
            continue;
        };
        let number = shared.accepted.fetch_add(1, Ordering::Relaxed);
        lock(&shared.connections).insert(number, copy);
        let shared = Arc::clone(shared);
        thread::spawn(move || {
            // A connection that breaks is the client's affair.
            let _ = Session::new(&shared).serve(stream);
            // The copy would keep it open.
            lock(&shared.connections).remove(&number);
        });
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;
    use crate::demo::reply_len::{Scan, reply_length};
    use crate::testing::redis::{RedisOptions, RedisServer, encode};

    fn replies(address: SocketAddr, commands: &[&str]) -> Vec<Vec<u8>> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        let mut input = Vec::new();
        let mut out = Vec::new();
        for command in commands {
            let args: Vec<&str> = command.split(' ').collect();
            stream.write_all(&encode(&args)).unwrap();
            loop {
                if let Scan::Complete(length) = reply_length(&input) {
                    out.push(input.drain(..length).collect());
                    break;
                }
                let mut chunk = [0; 4096];
                let length = stream.read(&mut chunk).unwrap();
                assert!(length > 0, "closed after {command}");
                input.extend_from_slice(&chunk[..length]);
            }
        }
        out
    }

    #[rustfmt::skip]
    const SCRIPT: &[&str] = &[
        "PING", "PING x", "ECHO hi", "GET a", "SET a 1", "INCR a", "INCRBY a 5", "DECR a", "APPEND a 7", "STRLEN a",
        "SET a x NX", "SET a x XX", "SET a y EX 100", "TTL a", "SET a z KEEPTTL", "TTL a", "SET a z EX 0", "SET a z NX XX",
        "SET a", "INCR a", "MSET b 1 c 2", "MSET b", "MGET a b nosuch", "EXISTS a b a nosuch", "DEL b nosuch", "TYPE a",
        "HSET h f v g w", "HSET h f x", "HGET h f", "HGET h nosuch", "HGETALL h", "HDEL h f nosuch", "HDEL h g", "HSET h f",
        "TYPE h", "LPUSH l a b", "RPUSH l c", "LRANGE l 0 -1", "LRANGE l -2 5", "LRANGE l 5 1", "LLEN l", "LPOP l", "RPOP l 5",
        "LPOP l", "LPUSH a x", "SADD s 1", "SADD s 1", "SMEMBERS s", "SCARD s", "SREM s 1 2", "SCARD s", "HGET s f",
        "EXPIRE a 50", "TTL a", "TTL nosuch", "EXPIRE nosuch 5", "EXPIRE a -1", "GET a", "NOSUCH x y", "nosuch", "GET",
        "MULTI", "SET t 1", "INCR t", "EXEC", "MULTI", "GET", "EXEC", "EXEC", "DISCARD", "MULTI", "MULTI", "DISCARD",
        "SELECT 3", "GET t", "DBSIZE", "SELECT 99", "SELECT x", "CLIENT SETNAME me", "CLIENT GETNAME", "FLUSHALL", "DBSIZE",
    ];

    /// Every read on data of every type and on what is not there.
    #[rustfmt::skip]
    const READS: &[&str] = &[
        "EXISTS a", "EXISTS nosuch", "EXISTS a nosuch a", "GET a", "GET empty", "GET nosuch", "HGET h f", "HGET h nosuch", "HGET nosuch f",
        "HGETALL h", "HGETALL h2", "HGETALL nosuch", "LLEN l", "LLEN nosuch", "LRANGE l 0 -1", "LRANGE l 0 0", "LRANGE nosuch 0 5",
        "MGET a", "MGET a nosuch", "MGET nosuch a", "MGET nosuch", "MGET nosuch nothing", "MGET nosuch nothing nowhere", "SCARD s",
        "SCARD nosuch", "SMEMBERS s", "SMEMBERS nosuch", "STRLEN a", "STRLEN nosuch",
    ];

    #[test]
    fn whatever_it_falsifies_differs_by_the_rules_of_the_comparison() {
        use crate::protocol::resp::compare::{Comparison, compare};
        use crate::protocol::resp::{Request, command};
        let data = [
            "SET a 1",
            "HSET h f v",
            "HSET h2 f v g w",
            "LPUSH l a b",
            "SADD s 1 2",
        ];
        for version in ["HELLO 2", "HELLO 3"] {
            for read in READS {
                let honest = RespServer::start(RespOptions::default()).unwrap();
                let lying = RespServer::start(RespOptions {
                    wrong_every: 1,
                    ..RespOptions::default()
                })
                .unwrap();
                let script = [&[version], &data[..], &["SET empty ", read]].concat();
                let [ours, theirs] = [&honest, &lying]
                    .map(|server| replies(server.address(), &script).pop().unwrap());
                let bytes = encode(&read.split(' ').collect::<Vec<_>>());
                let request = Request::parse(&bytes);
                let found = compare(command::lookup_request(&request), &request, &ours, &theirs);
                let shown = (
                    ours.escape_ascii().to_string(),
                    theirs.escape_ascii().to_string(),
                );
                match lying.falsified() {
                    0 => assert_eq!(found, Comparison::Equal, "{version}, {read}: {shown:?}"),
                    _ => assert!(
                        matches!(found, Comparison::Different(_)),
                        "{version}, {read}: {shown:?} is {found:?}"
                    ),
                }
            }
        }
    }

    #[test]
    fn it_answers_as_redis_does_in_both_protocol_versions() {
        let real = RedisServer::start(RedisOptions::default()).unwrap();
        let small = RespServer::start(RespOptions::default()).unwrap();
        for version in ["HELLO 2", "HELLO 3"] {
            let script = [&[version], SCRIPT].concat();
            let (wanted, got) = (
                replies(real.address(), &script),
                replies(small.address(), &script),
            );
            // The greeting tells who is speaking.
            for (command, (wanted, got)) in script.iter().zip(wanted.iter().zip(&got)).skip(1) {
                assert_eq!(
                    got.escape_ascii().to_string(),
                    wanted.escape_ascii().to_string(),
                    "{version}, {command}"
                );
            }
        }
    }

    #[test]
    fn it_counts_exactly_the_replies_that_it_falsified() {
        let honest = RespServer::start(RespOptions::default()).unwrap();
        let liar = RespServer::start(RespOptions {
            wrong_every: 10,
            seed: 5,
            ..RespOptions::default()
        })
        .unwrap();
        let commands: Vec<String> = (0..2000)
            .map(|number| {
                if number % 2 == 0 {
                    format!("SET k {number}")
                } else {
                    "GET k".into()
                }
            })
            .collect();
        let commands: Vec<&str> = commands.iter().map(String::as_str).collect();
        let (right, wrong) = (
            replies(honest.address(), &commands),
            replies(liar.address(), &commands),
        );
        let differ = right
            .iter()
            .zip(&wrong)
            .filter(|(right, wrong)| right != wrong)
            .count();
        assert!(differ > 50, "{differ}");
        assert_eq!(liar.falsified(), differ as u64);
    }

    #[test]
    fn it_records_what_each_connection_sent() {
        let server = RespServer::start(RespOptions {
            record: true,
            ..RespOptions::default()
        })
        .unwrap();
        replies(server.address(), &["SET a 1", "GET a"]);
        replies(server.address(), &["PING"]);
        let recorded = server.recorded();
        assert_eq!(recorded.len(), 2);
        assert_eq!(
            recorded[0],
            [
                vec![b"SET".to_vec(), b"a".to_vec(), b"1".to_vec()],
                vec![b"GET".to_vec(), b"a".to_vec()]
            ]
        );
        assert_eq!(recorded[1], [vec![b"PING".to_vec()]]);
    }
}
