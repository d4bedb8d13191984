//! Replies, and how they are written in either version of the protocol.

/// A reply before it is written in the client's protocol version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::demo) enum Reply {
    Simple(&'static str),
    Error(String),
    Integer(i64),
    Bulk(Vec<u8>),
    Nil,
    Array(Vec<Reply>),
    Set(Vec<Reply>),
    Map(Vec<(Reply, Reply)>),
}

impl Reply {
    pub(in crate::demo) fn error(text: &str) -> Reply {
        Reply::Error(text.to_owned())
    }

    pub(in crate::demo) fn bulk(text: &str) -> Reply {
        Reply::Bulk(text.as_bytes().to_vec())
    }

    pub(in crate::demo) fn wrong_arity(name: &str) -> Reply {
        Reply::Error(format!(
            "ERR wrong number of arguments for '{name}' command"
        ))
    }

    pub(in crate::demo) fn write(&self, resp3: bool, out: &mut Vec<u8>) {
        match self {
            Reply::Simple(text) => line(out, b'+', text.as_bytes()),
            Reply::Error(text) => line(out, b'-', text.as_bytes()),
            Reply::Integer(value) => line(out, b':', value.to_string().as_bytes()),
            Reply::Nil if resp3 => out.extend_from_slice(b"_\r\n"),
            Reply::Nil => out.extend_from_slice(b"$-1\r\n"),
            Reply::Bulk(bytes) => {
                line(out, b'$', bytes.len().to_string().as_bytes());
                out.extend_from_slice(bytes);
                out.extend_from_slice(b"\r\n");
            }
            Reply::Array(items) => list(out, b'*', items, resp3),
            Reply::Set(items) => list(out, if resp3 { b'~' } else { b'*' }, items, resp3),
            Reply::Map(pairs) => {
                let (kind, count) = if resp3 {
                    (b'%', pairs.len())
                } else {
                    (b'*', pairs.len() * 2)
                };
                line(out, kind, count.to_string().as_bytes());
                for (key, value) in pairs {
                    key.write(resp3, out);
                    value.write(resp3, out);
                }
            }
        }
    }

    /// The same shape with one value changed; the reply itself where there is nothing to change.
    pub(in crate::demo) fn falsified(self) -> Result<Reply, Reply> {
        match self {
            Reply::Bulk(mut bytes) if !bytes.is_empty() => {
                let last = bytes.len() - 1;
                bytes[last] = if bytes[last] == b'#' { b'!' } else { b'#' };
                Ok(Reply::Bulk(bytes))
            }
            Reply::Integer(value) => Ok(Reply::Integer(value.wrapping_add(1))),
            Reply::Array(mut items) if !items.is_empty() => {
                items.pop();
                Ok(Reply::Array(items))
            }
            Reply::Set(mut items) if !items.is_empty() => {
                items.pop();
                Ok(Reply::Set(items))
            }
            Reply::Map(mut pairs) if !pairs.is_empty() => {
                pairs.pop();
                Ok(Reply::Map(pairs))
            }
            unchanged => Err(unchanged),
        }
    }
}

fn line(out: &mut Vec<u8>, kind: u8, text: &[u8]) {
    out.push(kind);
    out.extend_from_slice(text);
    out.extend_from_slice(b"\r\n");
}

fn list(out: &mut Vec<u8>, kind: u8, items: &[Reply], resp3: bool) {
    line(out, kind, items.len().to_string().as_bytes());
    for item in items {
        item.write(resp3, out);
    }
}
