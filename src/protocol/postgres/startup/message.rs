//! The startup packet itself: its parameters, and what of it a server negotiates down.

use super::push_message;

/// Newest minor version of protocol 3 that a server of ours speaks.
pub const PROTOCOL_MINOR_MAX: u16 = 2;

/// A startup packet: protocol version and parameters in the client's order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StartupMessage {
    /// Always 3.
    pub major: u16,
    /// 0 or 2; anything else is for the server to negotiate.
    pub minor: u16,
    pub(super) params: Params,
}

/// Names and values.
pub(super) type Params = Vec<(Vec<u8>, Vec<u8>)>;

impl StartupMessage {
    /// A protocol 3.0 startup for a login of our own.
    pub fn new(user: &[u8], database: &[u8]) -> Self {
        let mut message = Self {
            major: 3,
            minor: 0,
            params: Vec::new(),
        };
        message.set(b"user", user);
        message.set(b"database", database);
        message
    }

    /// Parameters in the client's order.
    pub fn params(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        self.params
            .iter()
            .map(|(name, value)| (name.as_slice(), value.as_slice()))
    }

    /// A parameter's value; of repeated ones the last, as in PostgreSQL.
    pub fn get(&self, name: &[u8]) -> Option<&[u8]> {
        self.params
            .iter()
            .rev()
            .find(|(have, _)| have == name)
            .map(|(_, value)| value.as_slice())
    }

    /// Replaces a parameter where it stands, or appends it. NUL bytes cannot be sent and end the text.
    pub fn set(&mut self, name: &[u8], value: &[u8]) {
        let clean = |text: &[u8]| text.split(|b| *b == 0).next().unwrap_or_default().to_vec();
        let (name, value) = (clean(name), clean(value));
        let mut found = false;
        for (have, old) in &mut self.params {
            if *have == name {
                old.clone_from(&value);
                found = true;
            }
        }
        if !found {
            self.params.push((name, value));
        }
    }

    /// Takes a parameter out.
    pub fn remove(&mut self, name: &[u8]) {
        self.params.retain(|(have, _)| have != name);
    }

    /// The `user` parameter.
    pub fn user(&self) -> Option<&[u8]> {
        self.get(b"user")
    }

    /// The `database` parameter; the user's name where it is absent or empty, as in PostgreSQL.
    pub fn database(&self) -> &[u8] {
        match self.get(b"database") {
            Some(database) if !database.is_empty() => database,
            _ => self.user().unwrap_or_default(),
        }
    }

    /// The client asks for a replication connection (any value but a false one; nonsense is the server's to refuse).
    pub fn is_replication(&self) -> bool {
        self.get(b"replication").is_some_and(|value| {
            let value = value.to_ascii_lowercase();
            let is_prefix = |word: &[u8]| !value.is_empty() && word.starts_with(&value);
            !(is_prefix(b"false")
                || is_prefix(b"no")
                || value == b"off"
                || value == b"of"
                || value == b"0")
        })
    }

    /// The packet.
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; 4];
        out.extend(self.major.to_be_bytes());
        out.extend(self.minor.to_be_bytes());
        for (name, value) in &self.params {
            out.extend_from_slice(name);
            out.push(0);
            out.extend_from_slice(value);
            out.push(0);
        }
        out.push(0);
        let len = out.len() as u32;
        out[..4].copy_from_slice(&len.to_be_bytes());
        out
    }

    /// What a server answers that speaks protocol 3.2 and knows none of the `_pq_.` options; `None` where there is nothing to
    /// negotiate.
    pub fn negotiation(&self) -> Option<Vec<u8>> {
        let unknown: Vec<&[u8]> = self
            .params()
            .map(|(name, _)| name)
            .filter(|name| name.starts_with(b"_pq_."))
            .collect();
        if self.minor <= PROTOCOL_MINOR_MAX && unknown.is_empty() {
            return None;
        }
        let minor = self.minor.min(PROTOCOL_MINOR_MAX);
        let mut body = (3 << 16 | u32::from(minor)).to_be_bytes().to_vec();
        body.extend((unknown.len() as u32).to_be_bytes());
        for name in unknown {
            body.extend_from_slice(name);
            body.push(0);
        }
        let mut out = Vec::new();
        push_message(&mut out, b'v', &body);
        Some(out)
    }
}
