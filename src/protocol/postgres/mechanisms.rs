//! The SASL mechanisms that a relayed server may offer its client. Sans-IO.
//!
//! SCRAM-SHA-256-PLUS binds a login to the TLS connection it runs over, by a hash of the server's certificate. Client and
//! server can agree on it through a proxy only where both legs are TLS and show the same certificate; elsewhere the
//! offer is taken out, because a client would have to refuse it (libpq does on a plain connection) or fail with it.

/// Longest list that is looked at; PostgreSQL's is 36 bytes.
const LIST_LEN_MAX: usize = 1024;

const AUTHENTICATION_SASL: [u8; 4] = 10u32.to_be_bytes();
const PLUS: &[u8] = b"SCRAM-SHA-256-PLUS";

/// Follows a server's first messages up to the one that says how to log in.
#[derive(Debug, Default)]
pub struct MechanismFilter {
    /// Bytes of a message that is not whole.
    held: Vec<u8>,
    /// Bytes to come of a message that is passed on unread.
    pass: usize,
    done: bool,
    took_plus: bool,
}

impl MechanismFilter {
    /// Takes what the server sent; appends what the client is to get to `out`.
    pub fn push(&mut self, bytes: &[u8], out: &mut Vec<u8>) {
        self.held.extend_from_slice(bytes);
        while !self.done && self.step(out) {}
        if self.done {
            out.append(&mut self.held);
        }
    }

    /// Whether the question has been asked: from here on bytes may pass as they are.
    pub fn is_done(&self) -> bool {
        self.done
    }

    /// Whether an offer of channel binding was taken out.
    pub fn took_plus(&self) -> bool {
        self.took_plus
    }

    /// One message, or a piece of one. False: more bytes are needed.
    fn step(&mut self, out: &mut Vec<u8>) -> bool {
        if self.pass > 0 {
            let len = self.pass.min(self.held.len());
            self.pass -= len;
            out.extend(self.held.drain(..len));
            return len > 0;
        }
        let Some(([tag, len @ ..], body)) = self.held.split_first_chunk::<5>() else {
            return false;
        };
        let len = u32::from_be_bytes(*len) as usize;
        if *tag != b'R' || !(8..=LIST_LEN_MAX).contains(&len) {
            // Notices, errors, version negotiation; what is no message at all is the client's to refuse.
            self.done = *tag == b'R' || *tag == b'E' || len < 4;
            self.pass = len.saturating_add(1);
            return true;
        }
        let Some(body) = body.get(..len - 4) else {
            return false;
        };
        if let Some(list) = body.strip_prefix(&AUTHENTICATION_SASL)
            && let Some(list) = without_plus(list)
        {
            out.push(b'R');
            out.extend((8 + list.len() as u32).to_be_bytes());
            out.extend(AUTHENTICATION_SASL);
            out.extend(list);
            self.held.drain(..=len);
            self.took_plus = true;
        }
        self.done = true;
        true
    }
}

/// Longest first answer to a SASL question that is looked at; libpq's is under 100 bytes.
const ANSWER_LEN_MAX: usize = 4096;

/// Whether the client's SASLInitialResponse says that it knows channel binding and takes the server for one that does
/// not (`y`, RFC 5802 section 6): a server that does would refuse it. `None`: more bytes are needed.
pub fn believes_binding_impossible(input: &[u8]) -> Option<bool> {
    let Some(([tag, len @ ..], body)) = input.split_first_chunk::<5>() else {
        return input
            .first()
            .is_some_and(|tag| *tag != b'p')
            .then_some(false);
    };
    let len = u32::from_be_bytes(*len) as usize;
    if *tag != b'p' || !(4..=ANSWER_LEN_MAX).contains(&len) {
        return Some(false);
    }
    let body = body.get(..len - 4)?;
    let name = body.iter().position(|byte| *byte == 0);
    // Behind the mechanism's name stands the length of what SCRAM says.
    let said = name.and_then(|end| body.get(end + 5..)).unwrap_or_default();
    Some(said.starts_with(b"y,"))
}

/// The list without channel binding; `None` where it is as it should be, or nothing would be left of it.
fn without_plus(list: &[u8]) -> Option<Vec<u8>> {
    let names = || {
        list.split(|byte| *byte == 0)
            .take_while(|name| !name.is_empty())
    };
    let others: Vec<&[u8]> = names().filter(|name| *name != PLUS).collect();
    if others.is_empty() || others.len() == names().count() {
        return None;
    }
    let mut out = others.join(&0);
    out.extend([0, 0]);
    Some(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn message(tag: u8, body: &[u8]) -> Vec<u8> {
        let mut out = vec![tag];
        out.extend((body.len() as u32 + 4).to_be_bytes());
        out.extend(body);
        out
    }

    fn sasl(list: &[u8]) -> Vec<u8> {
        message(b'R', &[&AUTHENTICATION_SASL[..], list].concat())
    }

    /// Every way of cutting `input` in two gives the same.
    fn filtered(input: &[u8]) -> (Vec<u8>, bool, bool) {
        let through = |cut: usize| {
            let (mut filter, mut out) = (MechanismFilter::default(), Vec::new());
            filter.push(&input[..cut], &mut out);
            filter.push(&input[cut..], &mut out);
            (out, filter.is_done(), filter.took_plus())
        };
        let whole = through(0);
        for cut in 1..=input.len() {
            assert_eq!(through(cut), whole, "cut at {cut}");
        }
        whole
    }

    #[test]
    fn only_the_offer_of_channel_binding_is_taken_out() {
        let notice = message(b'N', b"SNOTICE\0\0");
        let behind = message(b'Z', b"I");
        let offer = sasl(b"SCRAM-SHA-256-PLUS\0SCRAM-SHA-256\0\0");
        let (out, done, took) = filtered(&[&notice[..], &offer, &behind].concat());
        assert_eq!(
            out,
            [&notice[..], &sasl(b"SCRAM-SHA-256\0\0"), &behind].concat()
        );
        assert!(done && took);
    }

    #[test]
    fn everything_else_passes_as_it_is() {
        for input in [
            sasl(b"SCRAM-SHA-256\0\0"),
            // Without another mechanism the client must say what is missing.
            sasl(b"SCRAM-SHA-256-PLUS\0\0"),
            message(b'R', &[0, 0, 0, 0]),
            message(b'R', &[0, 0, 0, 5, 1, 2, 3, 4]),
            message(b'E', b"SFATAL\0\0"),
            b"HTTP/1.1 400 Bad Request\r\n\r\n".to_vec(),
            vec![b'R', 0xff, 0xff, 0xff, 0xff, 1, 2, 3],
            vec![0; 40],
        ] {
            let (out, _, took) = filtered(&input);
            assert_eq!(out, input);
            assert!(!took);
        }
    }

    #[test]
    fn a_client_that_misses_channel_binding_is_told_by_its_first_answer() {
        let answer = |said: &[u8]| {
            let len = (said.len() as u32).to_be_bytes();
            message(b'p', &[b"SCRAM-SHA-256\0", &len[..], said].concat())
        };
        let misses = answer(b"y,,n=,r=abc");
        for cut in 0..misses.len() {
            assert_eq!(believes_binding_impossible(&misses[..cut]), None, "{cut}");
        }
        assert_eq!(believes_binding_impossible(&misses), Some(true));
        for other in [
            answer(b"n,,n=,r=abc"),
            answer(b"p=tls-server-end-point,,n=,r=abc"),
            answer(b""),
            message(b'p', b"secret\0"),
            message(b'p', b""),
            message(b'X', b""),
            b"p\0\0\0\x01".to_vec(),
            b"p\x7f\xff\xff\xff".to_vec(),
        ] {
            let said = believes_binding_impossible(&[&other[..], b"\0"].concat());
            assert_eq!(said, Some(false), "{}", other.escape_ascii());
        }
    }

    #[test]
    fn a_huge_length_is_not_waited_for() {
        let (mut filter, mut out) = (MechanismFilter::default(), Vec::new());
        filter.push(b"N\x7f\xff\xff\xff", &mut out);
        filter.push(&[1; 100_000], &mut out);
        assert_eq!(out.len(), 100_005);
        assert!(filter.held.is_empty());
    }
}
