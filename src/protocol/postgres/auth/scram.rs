//! The server's half of SCRAM-SHA-256 (RFC 5802, RFC 7677), and the verifiers it checks against.
//!
//! Without channel binding: PostgreSQL offers it on TLS only. A verifier says whether a password is right without
//! holding it; comparison is in constant time.

use std::fmt;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use hmac::{Hmac, KeyInit, Mac};
use sha2::{Digest, Sha256};
use subtle::ConstantTimeEq;

/// The name of the mechanism.
pub const MECHANISM: &str = "SCRAM-SHA-256";
/// Rounds for verifiers made here: PostgreSQL's default (`scram_iterations`).
pub const ITERATIONS: u32 = 4096;
/// Random bytes of the server's part of the nonce, as many as PostgreSQL takes.
pub const NONCE_LEN: usize = 18;
/// Bytes of a salt made here, as many as PostgreSQL takes.
const SALT_LEN: usize = 16;

type Key = [u8; 32];

/// What a server keeps of a password: enough to check a client, not enough to be one.
#[derive(Clone, PartialEq, Eq)]
pub struct Verifier {
    iterations: u32,
    salt: Box<[u8]>,
    stored_key: Key,
    server_key: Key,
}

impl fmt::Debug for Verifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("[verifier]")
    }
}

impl Verifier {
    /// Reads `SCRAM-SHA-256$iterations:salt$stored:server` as `pg_authid.rolpassword` has it.
    pub fn parse(text: &str) -> Option<Verifier> {
        let rest = text.strip_prefix(MECHANISM)?.strip_prefix('$')?;
        let (head, keys) = rest.split_once('$')?;
        let (iterations, salt) = head.split_once(':')?;
        let (stored, server) = keys.split_once(':')?;
        let key = |text: &str| -> Option<Key> { BASE64.decode(text).ok()?.try_into().ok() };
        Some(Verifier {
            iterations: iterations.parse().ok().filter(|rounds| *rounds > 0)?,
            salt: BASE64.decode(salt).ok()?.into_boxed_slice(),
            stored_key: key(stored)?,
            server_key: key(server)?,
        })
    }

    /// For a password in clear text. `salt_secret` is random per process and makes the salt: the same for the same user, so
    /// that a known user's salt is as stable as that of [`Verifier::mock`]. Costs some milliseconds: keep the result.
    pub fn from_password(password: &[u8], user: &[u8], salt_secret: &Key) -> Verifier {
        let salt = salt_of(user, salt_secret);
        let salted = salted_password(password, &salt, ITERATIONS);
        Verifier {
            iterations: ITERATIONS,
            salt: salt.into(),
            stored_key: stored_key(&hmac(&salted, b"Client Key")),
            server_key: hmac(&salted, b"Server Key"),
        }
    }

    /// For a user who does not exist: looks like any other and fits no password.
    pub fn mock(user: &[u8], salt_secret: &Key) -> Verifier {
        let key = |label: &[u8]| hmac(salt_secret, &[label, user].concat());
        Verifier {
            iterations: ITERATIONS,
            salt: salt_of(user, salt_secret).into(),
            stored_key: key(b"no such stored key\0"),
            server_key: key(b"no such server key\0"),
        }
    }

    /// Whether this is the password. Costs as much as [`Verifier::from_password`].
    pub fn fits(&self, password: &[u8]) -> bool {
        let salted = salted_password(password, &self.salt, self.iterations);
        equal(&stored_key(&hmac(&salted, b"Client Key")), &self.stored_key)
    }
}

/// How an exchange went wrong. PostgreSQL's texts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScramError {
    /// The message is not SCRAM.
    Malformed,
    /// It asks for channel binding, which was not offered.
    ChannelBinding,
    /// It wants to act as somebody else.
    Authzid,
    /// It is SCRAM, with the wrong nonce.
    Nonce,
    /// The proof does not fit.
    WrongPassword,
}

/// An exchange: the client's first message is here, the server's has been made.
pub(super) struct Exchange {
    verifier: Verifier,
    /// `n,,` or `y,,`.
    gs2_header: Box<[u8]>,
    /// The client's and the server's part.
    nonce: Box<[u8]>,
    /// `client-first-message-bare,server-first-message,`.
    auth_message: Vec<u8>,
}

impl Exchange {
    /// Reads the client's first message; returns the server's first.
    pub fn begin(
        first: &[u8],
        verifier: Verifier,
        nonce: &[u8; NONCE_LEN],
    ) -> Result<(Exchange, Vec<u8>), ScramError> {
        let bare = match first {
            [b'n' | b'y', b',', b',', bare @ ..] => bare,
            [b'n' | b'y', b',', ..] => return Err(ScramError::Authzid),
            [b'p', ..] => return Err(ScramError::ChannelBinding),
            _ => return Err(ScramError::Malformed),
        };
        // The user name in here is ignored: the startup packet's counts.
        let mut fields = bare.split(|byte| *byte == b',');
        fields
            .next()
            .filter(|field| field.starts_with(b"n="))
            .ok_or(ScramError::Malformed)?;
        let client_nonce = fields
            .next()
            .and_then(|field| field.strip_prefix(b"r="))
            .filter(|nonce| !nonce.is_empty() && nonce.iter().all(|b| matches!(b, 0x21..=0x7e)))
            .ok_or(ScramError::Malformed)?;
        let nonce = [client_nonce, BASE64.encode(nonce).as_bytes()].concat();
        let mut server_first = b"r=".to_vec();
        server_first.extend_from_slice(&nonce);
        let salt = BASE64.encode(&verifier.salt);
        server_first.extend(format!(",s={salt},i={}", verifier.iterations).as_bytes());
        let exchange = Exchange {
            verifier,
            gs2_header: first[..3].into(),
            nonce: nonce.into(),
            auth_message: [bare, b",", &server_first, b","].concat(),
        };
        Ok((exchange, server_first))
    }

    /// Reads the client's proof; returns the server's.
    pub fn finish(mut self, last: &[u8]) -> Result<Vec<u8>, ScramError> {
        let at = memchr::memmem::rfind(last, b",p=").ok_or(ScramError::Malformed)?;
        let (without_proof, proof) = (&last[..at], &last[at + 3..]);
        let mut fields = without_proof.split(|byte| *byte == b',');
        let binding = fields
            .next()
            .and_then(|field| field.strip_prefix(b"c="))
            .ok_or(ScramError::Malformed)?;
        if BASE64.decode(binding).ok().as_deref() != Some(&*self.gs2_header) {
            return Err(ScramError::ChannelBinding);
        }
        let nonce = fields
            .next()
            .and_then(|field| field.strip_prefix(b"r="))
            .ok_or(ScramError::Malformed)?;
        if nonce != &*self.nonce {
            return Err(ScramError::Nonce);
        }
        let proof: Key = BASE64
            .decode(proof)
            .ok()
            .and_then(|proof| proof.try_into().ok())
            .ok_or(ScramError::Malformed)?;
        self.auth_message.extend_from_slice(without_proof);
        let mut client_key = hmac(&self.verifier.stored_key, &self.auth_message);
        for (byte, proof) in client_key.iter_mut().zip(proof) {
            *byte ^= proof;
        }
        if !equal(&stored_key(&client_key), &self.verifier.stored_key) {
            return Err(ScramError::WrongPassword);
        }
        let signature = hmac(&self.verifier.server_key, &self.auth_message);
        Ok([b"v=", BASE64.encode(signature).as_bytes()].concat())
    }
}

fn salt_of(user: &[u8], secret: &Key) -> [u8; SALT_LEN] {
    let mut salt = [0; SALT_LEN];
    salt.copy_from_slice(&hmac(secret, user)[..SALT_LEN]);
    salt
}

/// SASLprep where the password allows it, else its bytes as they are: PostgreSQL's rule.
fn salted_password(password: &[u8], salt: &[u8], iterations: u32) -> Key {
    let prepared = std::str::from_utf8(password)
        .ok()
        .and_then(|text| stringprep::saslprep(text).ok());
    let password = prepared.as_ref().map_or(password, |text| text.as_bytes());
    pbkdf2::pbkdf2_hmac_array::<Sha256, 32>(password, salt, iterations)
}

fn stored_key(client_key: &Key) -> Key {
    Sha256::digest(client_key).into()
}

fn hmac(key: &[u8], text: &[u8]) -> Key {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).expect("HMAC takes keys of every length");
    mac.update(text);
    mac.finalize().into_bytes().into()
}

fn equal(a: &Key, b: &Key) -> bool {
    a.ct_eq(b).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECRET: Key = [7; 32];

    #[test]
    fn the_exchange_of_rfc_7677_gives_its_signature() {
        let salt = BASE64.decode("W22ZaJ0SNY7soEsUEjb6gQ==").unwrap();
        let salted = salted_password(b"pencil", &salt, 4096);
        let verifier = Verifier {
            iterations: 4096,
            salt: salt.into(),
            stored_key: stored_key(&hmac(&salted, b"Client Key")),
            server_key: hmac(&salted, b"Server Key"),
        };
        // The RFC's server nonce is no base64 of 18 bytes, so the state is set up by hand.
        let nonce = b"rOprNGfwEbeRWgbNEkqO%hvYDpWUa2RaTCAfuxFIlj)hNlF$k0";
        let server_first = [b"r=", &nonce[..], b",s=W22ZaJ0SNY7soEsUEjb6gQ==,i=4096"].concat();
        let exchange = Exchange {
            verifier,
            gs2_header: (*b"n,,").into(),
            nonce: (*nonce).into(),
            auth_message: [b"n=user,r=rOprNGfwEbeRWgbNEkqO,", &server_first[..], b","].concat(),
        };
        let last = [
            b"c=biws,r=",
            &nonce[..],
            b",p=dHzbZapWIk4jUhN+Ute9ytag9zjfMHgsqmmiz7AndVQ=",
        ]
        .concat();
        let signature = b"v=6rriTRBi23WpRR/wtup+mMhUZUn/dB5nLTJRsjl95G4=";
        assert_eq!(exchange.finish(&last).as_deref(), Ok(&signature[..]));
    }

    #[test]
    fn a_stored_verifier_is_read_as_postgres_writes_it_and_fits_its_password_only() {
        let text = String::from_utf8(postgres_protocol::password::scram_sha_256(b"s3cret").into())
            .unwrap();
        let verifier = Verifier::parse(&text).unwrap();
        assert!(verifier.fits(b"s3cret"));
        assert!(!verifier.fits(b"S3cret"));
        for broken in [
            "SCRAM-SHA-256",
            "SCRAM-SHA-1$4096:c2FsdA==$a:b",
            "SCRAM-SHA-256$0:c2FsdA==$AAAA:AAAA",
            &text[..text.len() - 4],
        ] {
            assert_eq!(Verifier::parse(broken), None, "{broken}");
        }
    }

    #[test]
    fn salts_are_stable_and_tell_nothing_of_who_exists() {
        let known = Verifier::from_password(b"pw", b"ann", &SECRET);
        let mock = Verifier::mock(b"ann", &SECRET);
        assert_eq!(known.salt, mock.salt);
        assert_eq!(known.iterations, mock.iterations);
        assert_ne!(Verifier::mock(b"bob", &SECRET).salt, mock.salt);
        assert!(known.fits(b"pw") && !mock.fits(b"pw"));
        assert!(!format!("{known:?}").contains("115"));
    }

    #[test]
    fn what_is_not_scram_is_refused() {
        let verifier = Verifier::from_password(b"pw", b"ann", &SECRET);
        let begin = |first: &[u8]| {
            Exchange::begin(first, verifier.clone(), &[1; NONCE_LEN])
                .map(|_| ())
                .unwrap_err()
        };
        for first in [
            &b""[..],
            b"n",
            b"x,,n=,r=a",
            b"n,,r=a",
            b"n,,n=,x=a",
            b"n,,n=,r=",
        ] {
            assert_eq!(
                begin(first),
                ScramError::Malformed,
                "{}",
                first.escape_ascii()
            );
        }
        assert_eq!(begin(b"p=tls-unique,,n=,r=a"), ScramError::ChannelBinding);
        assert_eq!(begin(b"n,a=bob,n=,r=a"), ScramError::Authzid);
        let finish = |last: &[u8]| {
            let (exchange, _) =
                Exchange::begin(b"n,,n=,r=abc", verifier.clone(), &[1; NONCE_LEN]).unwrap();
            exchange.finish(last).unwrap_err()
        };
        let proof = BASE64.encode([0; 32]);
        let nonce = format!("abc{}", BASE64.encode([1; NONCE_LEN]));
        let with = |head: &str| finish(format!("{head},p={proof}").as_bytes());
        assert_eq!(
            with(&format!("c=biws,r={nonce}")),
            ScramError::WrongPassword
        );
        assert_eq!(with("c=biws,r=other"), ScramError::Nonce);
        assert_eq!(
            with(&format!("c=eSws,r={nonce}")),
            ScramError::ChannelBinding
        );
        assert_eq!(finish(b"c=biws"), ScramError::Malformed);
        let short = format!("c=biws,r={nonce},p=AAAA");
        assert_eq!(finish(short.as_bytes()), ScramError::Malformed);
    }
}
