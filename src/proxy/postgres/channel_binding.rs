//! Channel binding where the client logs in at the primary through us.
//!
//! SCRAM-SHA-256-PLUS binds a login to the certificate that the client sees, which is ours. The primary compares it with
//! its own. So:
//! - Both legs are TLS with one and the same certificate: nothing is touched, the binding holds through the proxy.
//! - Only the primary's leg is TLS: the offer is taken out of the primary's list, and the client goes on without it, as it would on
//!   any plain connection.
//! - Both are TLS with different certificates: the offer is taken out too, and a client that does without
//!   (`channel_binding=disable`) goes on, TLS on both legs. A client that knows channel binding (libpq's `prefer`, which is
//!   its default) says so in what it signs, and a primary that offered it takes that for a downgrade and refuses. No proxy
//!   can mend that on the same connection. With `tls = "prefer"`, which allows plaintext to the primary, that client's own
//!   leg is done again without TLS, and the log says so; with `require` and above the primary's refusal is passed on.
//!
//! A client that *requires* channel binding always notices, and refuses: that is what it is for.

use std::io;

use super::Source;
use crate::config::TlsMode;
use crate::protocol::postgres::mechanisms::{MechanismFilter, believes_binding_impossible};
use crate::proxy::Context;
use crate::proxy::tls::ServerTls;
use crate::ring::{Chunk, Socket};

/// Waits for what the primary asks of the client, on a TLS leg to it, and takes out what cannot be had. Returns the
/// connection to go on with, from which the primary's next messages can be read. A plain leg costs nothing.
///
/// # Errors
/// When either side leaves or stays silent for too long.
pub(super) async fn settle(
    context: &Context,
    source: &Source,
    client: &Socket,
    primary: Socket,
    packet: &[u8],
    tls: Option<&ServerTls>,
) -> io::Result<Socket> {
    let Some(secured) = primary.secured() else {
        return Ok(primary);
    };
    let ours = tls.filter(|_| client.is_secure());
    if ours.is_some_and(|ours| secured.certificate.as_ref() == Some(&ours.certificate)) {
        return Ok(primary);
    }
    let limit = context.config.borrow().general.client_login_timeout;
    let settling = async {
        let (filter, begun) = question(&primary).await?;
        if !filter.took_plus() || ours.is_none() || source.database.tls != TlsMode::Prefer {
            primary.unrecv(Chunk::from(begun));
            return Ok(primary);
        }
        client.write(&begun);
        if !misses_binding(client).await? {
            return Ok(primary);
        }
        drop(primary);
        context.plaintext_leg(&source.database.name);
        let plain = context.reach(&source.database.endpoint).await?;
        plain.write(packet);
        let (_, begun) = question(&plain).await?;
        plain.unrecv(Chunk::from(refusal(&begun).to_vec()));
        Ok(plain)
    };
    let settled = context.ring.timeout(limit, settling).await;
    settled.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?
}

/// What the primary says first, up to the message that asks for a login.
async fn question(primary: &Socket) -> io::Result<(MechanismFilter, Vec<u8>)> {
    let mut filter = MechanismFilter::default();
    let mut begun = Vec::new();
    while !filter.is_done() {
        match primary.recv().await? {
            Some(bytes) => filter.push(&bytes, &mut begun),
            // The client gets what there was, and the end.
            None => break,
        }
    }
    Ok((filter, begun))
}

/// From an error on: the question itself has been answered already, and what may stand before it told.
fn refusal(begun: &[u8]) -> &[u8] {
    let mut rest = begun;
    while let Some(([tag, len @ ..], _)) = rest.split_first_chunk::<5>()
        && *tag != b'E'
    {
        let len = 1 + u32::from_be_bytes(*len) as usize;
        rest = rest.get(len..).unwrap_or_default();
    }
    rest
}

/// Looks at the client's answer, which stays where it is.
async fn misses_binding(client: &Socket) -> io::Result<bool> {
    let mut answer = Vec::new();
    let misses = loop {
        match believes_binding_impossible(&answer) {
            Some(misses) => break misses,
            None => match client.recv().await? {
                Some(bytes) => answer.extend_from_slice(&bytes),
                // It has left, or goes away to try otherwise; the primary is told by the end of the stream.
                None => break false,
            },
        }
    };
    client.unrecv(Chunk::from(answer));
    Ok(misses)
}
