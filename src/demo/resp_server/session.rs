//! One client of the demo's server: what it asks, and what it is told.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Instant;

use super::{Recording, Shared, lock};
use crate::demo::resp_parse::{Parsed, parse_command};
use crate::demo::resp_store::{Reply, arity_error, execute, is_read};

const READ_SIZE: usize = 64 * 1024;
/// A client whose unfinished command is longer is closed.
const INPUT_MAX: usize = 600 * 1024 * 1024;

/// One connection: its protocol version, its transaction, its recording.
pub(super) struct Session<'a> {
    shared: &'a Shared,
    id: u64,
    resp3: bool,
    db: usize,
    name: Vec<u8>,
    queued: Option<Vec<Vec<Vec<u8>>>>,
    abort: bool,
    recording: Option<Arc<Mutex<Recording>>>,
}

impl<'a> Session<'a> {
    pub(super) fn new(shared: &'a Shared) -> Session<'a> {
        let recording = shared.options.record.then(|| {
            let recording = Arc::<Mutex<Recording>>::default();
            lock(&shared.recordings).push(Arc::clone(&recording));
            recording
        });
        let id = shared.ids.fetch_add(1, Ordering::Relaxed) + 1;
        Session {
            shared,
            id,
            resp3: false,
            db: 0,
            name: Vec::new(),
            queued: None,
            abort: false,
            recording,
        }
    }

    pub(super) fn serve(&mut self, mut stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut input = Vec::new();
        let mut chunk = vec![0; READ_SIZE];
        let mut out = Vec::new();
        loop {
            let length = stream.read(&mut chunk)?;
            if length == 0 {
                return Ok(());
            }
            input.extend_from_slice(&chunk[..length]);
            let open = self.answer(&mut input, &mut out);
            if !out.is_empty() {
                if !self.shared.options.delay.is_zero() {
                    thread::sleep(self.shared.options.delay);
                }
                stream.write_all(&out)?;
                out.clear();
            }
            if !open || input.len() > INPUT_MAX {
                return stream.shutdown(Shutdown::Both);
            }
        }
    }

    /// Executes the complete commands of `input`; false when the connection is to be closed.
    fn answer(&mut self, input: &mut Vec<u8>, out: &mut Vec<u8>) -> bool {
        let mut used = 0;
        let mut open = true;
        while open {
            match parse_command(&input[used..]) {
                Parsed::Incomplete => break,
                Parsed::Bad(text) => {
                    Reply::Error(format!("ERR Protocol error: {text}")).write(self.resp3, out);
                    open = false;
                }
                Parsed::Command { length, args } => {
                    used += length;
                    if args.is_empty() {
                        continue;
                    }
                    if let Some(recording) = &self.recording {
                        lock(recording).push(args.clone());
                    }
                    self.shared.commands.fetch_add(1, Ordering::Relaxed);
                    open = self.command(&args, out);
                }
            }
        }
        input.drain(..used);
        open
    }

    fn command(&mut self, args: &[Vec<u8>], out: &mut Vec<u8>) -> bool {
        let name = args[0].to_ascii_uppercase();
        let reply = match name.as_slice() {
            b"QUIT" => {
                Reply::Simple("OK").write(self.resp3, out);
                return false;
            }
            b"MULTI" if self.queued.is_some() => Reply::error("ERR MULTI calls can not be nested"),
            b"MULTI" => {
                self.queued = Some(Vec::new());
                self.abort = false;
                Reply::Simple("OK")
            }
            b"DISCARD" => match self.queued.take() {
                Some(_) => Reply::Simple("OK"),
                None => Reply::error("ERR DISCARD without MULTI"),
            },
            b"EXEC" => self.exec(),
            _ if self.queued.is_some() => self.queue(args),
            b"HELLO" => self.hello(&args[1..]),
            b"SELECT" => self.select(args.get(1)),
            b"CLIENT" => self.client(&args[1..]),
            b"RESET" => {
                self.resp3 = false;
                self.db = 0;
                self.name.clear();
                Reply::Simple("RESET")
            }
            _ => self.run(args),
        };
        reply.write(self.resp3, out);
        true
    }

    fn run(&self, args: &[Vec<u8>]) -> Reply {
        let reply = execute(&mut lock(&self.shared.store), self.db, args, Instant::now());
        self.falsify(args, reply)
    }

    fn queue(&mut self, args: &[Vec<u8>]) -> Reply {
        if let Some(error) = arity_error(args) {
            self.abort = true;
            return error;
        }
        if let Some(queued) = &mut self.queued {
            queued.push(args.to_vec());
        }
        Reply::Simple("QUEUED")
    }

    fn exec(&mut self) -> Reply {
        let Some(queued) = self.queued.take() else {
            return Reply::error("ERR EXEC without MULTI");
        };
        if self.abort {
            return Reply::error("EXECABORT Transaction discarded because of previous errors.");
        }
        let mut store = lock(&self.shared.store);
        let now = Instant::now();
        Reply::Array(
            queued
                .iter()
                .map(|args| execute(&mut store, self.db, args, now))
                .collect(),
        )
    }

    fn hello(&mut self, args: &[Vec<u8>]) -> Reply {
        match args.first().map(Vec::as_slice) {
            None => {}
            Some(b"2") => self.resp3 = false,
            Some(b"3") => self.resp3 = true,
            Some(_) => return Reply::error("NOPROTO unsupported protocol version"),
        }
        if let Some(at) = args
            .iter()
            .position(|arg| arg.eq_ignore_ascii_case(b"SETNAME"))
        {
            self.name = args.get(at + 1).cloned().unwrap_or_default();
        }
        let protocol = if self.resp3 { 3 } else { 2 };
        let id = i64::try_from(self.id).unwrap_or(i64::MAX);
        Reply::Map(vec![
            (Reply::bulk("server"), Reply::bulk("redis")),
            (Reply::bulk("version"), Reply::bulk("7.0.0")),
            (Reply::bulk("proto"), Reply::Integer(protocol)),
            (Reply::bulk("id"), Reply::Integer(id)),
            (Reply::bulk("mode"), Reply::bulk("standalone")),
            (Reply::bulk("role"), Reply::bulk("master")),
            (Reply::bulk("modules"), Reply::Array(Vec::new())),
        ])
    }

    fn select(&mut self, arg: Option<&Vec<u8>>) -> Reply {
        let Some(arg) = arg else {
            return Reply::wrong_arity("select");
        };
        match std::str::from_utf8(arg)
            .ok()
            .and_then(|text| text.parse::<i64>().ok())
        {
            Some(db @ 0..16) => {
                self.db = usize::try_from(db).unwrap_or(0);
                Reply::Simple("OK")
            }
            Some(_) => Reply::error("ERR DB index is out of range"),
            None => Reply::error("ERR value is not an integer or out of range"),
        }
    }

    fn client(&mut self, args: &[Vec<u8>]) -> Reply {
        let sub = args
            .first()
            .map(|arg| arg.to_ascii_uppercase())
            .unwrap_or_default();
        match (sub.as_slice(), args.get(1)) {
            (b"SETNAME", Some(name)) => {
                self.name.clone_from(name);
                Reply::Simple("OK")
            }
            (b"SETINFO", Some(_)) => Reply::Simple("OK"),
            (b"GETNAME", None) if self.name.is_empty() => Reply::Nil,
            (b"GETNAME", None) => Reply::Bulk(self.name.clone()),
            (b"ID", None) => Reply::Integer(i64::try_from(self.id).unwrap_or(i64::MAX)),
            _ => Reply::error(
                "ERR unknown subcommand or wrong number of arguments. Try CLIENT HELP.",
            ),
        }
    }

    /// Only a reply that carries stored data can be wrong without ruining the data of later commands.
    fn falsify(&self, args: &[Vec<u8>], reply: Reply) -> Reply {
        let every = self.shared.options.wrong_every;
        if every == 0 || !is_read(&args[0]) {
            return reply;
        }
        if lock(&self.shared.rng).u32(..every) != 0 {
            return reply;
        }
        match reply.falsified() {
            Ok(wrong) => {
                self.shared.falsified.fetch_add(1, Ordering::Relaxed);
                wrong
            }
            Err(unchanged) => unchanged,
        }
    }
}
