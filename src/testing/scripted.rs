//! A TCP peer that follows a script: the primary, mirror or client that misbehaves exactly as the test says.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::Duration;

/// How long one expectation may take.
const STEP_TIMEOUT: Duration = Duration::from_secs(20);

/// One step of a script.
#[derive(Debug, Clone)]
pub enum Step {
    /// The next bytes must be these.
    Expect(Vec<u8>),
    /// Reads so many bytes, whatever they are.
    Take(usize),
    /// Reads until this has been seen.
    Until(Vec<u8>),
    /// Sends.
    Send(Vec<u8>),
    /// Waits for the other side to close.
    ExpectClose,
    /// Holds the connection open without a word for this long.
    Hold(Duration),
    /// Closes with a reset (RST) instead of an orderly end.
    Reset,
}

/// A peer with one script per connection, in the order of the connections.
#[derive(Debug)]
pub struct ScriptedPeer {
    address: SocketAddr,
    outcomes: Receiver<Result<Vec<u8>, String>>,
}

impl ScriptedPeer {
    /// Listens on a free loopback port; connection *n* follows script *n*; further ones are refused by closing.
    ///
    /// # Errors
    /// When no port can be bound.
    pub fn start(scripts: Vec<Vec<Step>>) -> io::Result<ScriptedPeer> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
        let address = listener.local_addr()?;
        let (report, outcomes) = channel();
        thread::spawn(move || {
            let mut scripts = scripts.into_iter();
            for stream in listener.incoming() {
                let (Ok(stream), Some(script)) = (stream, scripts.next()) else {
                    continue;
                };
                let report = report.clone();
                thread::spawn(move || {
                    let mut seen = Vec::new();
                    let outcome = follow(stream, &script, &mut seen);
                    // Nobody may be listening any more.
                    let _ = report.send(outcome.map(|()| seen).map_err(|error| error.to_string()));
                });
            }
        });
        Ok(ScriptedPeer { address, outcomes })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// What the next finished connection received, or the step that failed.
    ///
    /// # Errors
    /// The failed step, or that none finished within the timeout.
    pub fn outcome(&self, timeout: Duration) -> Result<Vec<u8>, String> {
        self.outcomes
            .recv_timeout(timeout)
            .map_err(|_| "no connection finished its script".to_owned())?
    }
}

fn follow(mut stream: TcpStream, script: &[Step], seen: &mut Vec<u8>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(STEP_TIMEOUT))?;
    for (number, step) in script.iter().enumerate() {
        perform(&mut stream, step, seen)
            .map_err(|error| io::Error::other(format!("step {number} ({step:?}): {error}")))?;
        if matches!(step, Step::Reset) {
            return Ok(());
        }
    }
    Ok(())
}

fn perform(stream: &mut TcpStream, step: &Step, seen: &mut Vec<u8>) -> io::Result<()> {
    match step {
        Step::Expect(wanted) => {
            let mut got = vec![0; wanted.len()];
            stream.read_exact(&mut got)?;
            seen.extend_from_slice(&got);
            if got != *wanted {
                let got = got.escape_ascii();
                return Err(io::Error::other(format!("received {got} instead")));
            }
        }
        Step::Take(count) => {
            let mut got = vec![0; *count];
            stream.read_exact(&mut got)?;
            seen.extend_from_slice(&got);
        }
        Step::Until(end) => {
            let start = seen.len();
            while !seen[start..].ends_with(end) {
                let mut byte = [0];
                stream.read_exact(&mut byte)?;
                seen.push(byte[0]);
            }
        }
        Step::Send(bytes) => stream.write_all(bytes)?,
        Step::ExpectClose => {
            let mut rest = Vec::new();
            stream.read_to_end(&mut rest)?;
            if !rest.is_empty() {
                return Err(io::Error::other(format!(
                    "received {} before the end",
                    rest.escape_ascii()
                )));
            }
        }
        Step::Hold(time) => thread::sleep(*time),
        Step::Reset => socket2::SockRef::from(&*stream).set_linger(Some(Duration::ZERO))?,
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_followed_and_a_wrong_byte_is_named() {
        let peer = ScriptedPeer::start(vec![
            vec![
                Step::Expect(b"PING\r\n".to_vec()),
                Step::Send(b"+PONG\r\n".to_vec()),
                Step::ExpectClose,
            ],
            vec![Step::Expect(b"PING".to_vec())],
        ])
        .unwrap();
        let mut client = TcpStream::connect(peer.address()).unwrap();
        client.write_all(b"PING\r\n").unwrap();
        let mut reply = [0; 7];
        client.read_exact(&mut reply).unwrap();
        drop(client);
        assert_eq!(peer.outcome(Duration::from_secs(10)).unwrap(), b"PING\r\n");
        let mut client = TcpStream::connect(peer.address()).unwrap();
        client.write_all(b"PUNG").unwrap();
        let error = peer.outcome(Duration::from_secs(10)).unwrap_err();
        assert!(
            error.contains("step 0") && error.contains("PUNG"),
            "{error}"
        );
    }
}
