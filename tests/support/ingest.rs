//! Sentry's ingest endpoint, played by a local HTTP server that parses the envelopes.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::sync::mpsc::{Receiver, channel};

use serde_json::Value;

/// Listens, answers every envelope and hands on the events in them.
pub fn ingest() -> (String, Receiver<Value>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dsn = format!("http://public@{}/42", listener.local_addr().unwrap());
    let (sender, events) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream);
                while let Some(body) = request(&mut reader) {
                    for event in envelope(&body) {
                        let _ = sender.send(event);
                    }
                    let answer = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\n{}";
                    reader.get_mut().write_all(answer.as_bytes()).unwrap();
                }
            });
        }
    });
    (dsn, events)
}

fn request(reader: &mut BufReader<std::net::TcpStream>) -> Option<Vec<u8>> {
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        if reader.read_line(&mut head).ok()? == 0 {
            return None;
        }
    }
    assert!(head.starts_with("POST /api/42/envelope/"), "{head}");
    let head = head.to_ascii_lowercase();
    let field = |name: &str| {
        head.lines()
            .find_map(|line| line.strip_prefix(name).map(|v| v.trim().to_owned()))
    };
    let mut body = Vec::new();
    if let Some(length) = field("content-length:") {
        body.resize(length.parse().unwrap(), 0);
        reader.read_exact(&mut body).unwrap();
        return Some(body);
    }
    // Chunked.
    loop {
        let mut size = String::new();
        reader.read_line(&mut size).unwrap();
        let size = usize::from_str_radix(size.trim(), 16).unwrap();
        let mut chunk = vec![0; size + 2];
        reader.read_exact(&mut chunk).unwrap();
        if size == 0 {
            return Some(body);
        }
        body.extend_from_slice(&chunk[..size]);
    }
}

/// The events of an envelope: a header line, then for each item a header line and its payload.
fn envelope(body: &[u8]) -> Vec<Value> {
    let text = std::str::from_utf8(body).unwrap();
    let mut lines = text.lines();
    let header: Value = serde_json::from_str(lines.next().unwrap()).unwrap();
    assert!(header["event_id"].is_string());
    let mut events = Vec::new();
    while let (Some(item), Some(payload)) = (lines.next(), lines.next()) {
        let item: Value = serde_json::from_str(item).unwrap();
        if item["type"] == "event" {
            assert_eq!(item["length"].as_u64().unwrap() as usize, payload.len());
            events.push(serde_json::from_str(payload).unwrap());
        }
    }
    events
}
