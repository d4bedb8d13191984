//! Channel binding where the client logs in at the primary through us.
//!
//! SCRAM-SHA-256-PLUS binds a login to the certificate that the client sees, which is ours. The primary compares it with
//! its own. So:
//! - Both legs are TLS with one and the same certificate: nothing is touched, the binding holds through the proxy.
//! - Only the primary's leg is TLS: the offer is taken out of the primary's list, and the client goes on without it, as it would on
//!   any plain connection.
//! - Both are TLS with different certificates: a client that knows channel binding (libpq's `prefer`) says so in what it
//!   signs, and a primary that offered it takes that for a downgrade and refuses. With `tls = "prefer"` the primary's leg
//!   is then done without TLS, where there is nothing to bind to. With `require` and above TLS stays, and only clients
//!   that do without channel binding get in; the others need `auth = "terminate"`.
//!
//! A client that *requires* channel binding always notices, and refuses: that is what it is for.

use std::io;

use super::Source;
use crate::config::TlsMode;
use crate::limits::POSTGRES_STARTUP_TIMEOUT;
use crate::protocol::postgres::mechanisms::MechanismFilter;
use crate::proxy::Context;
use crate::proxy::tls::ServerTls;
use crate::ring::{Chunk, Socket};

/// Waits for what the primary asks of the client, on a TLS leg to it, and takes out what cannot be had. Returns the
/// connection to go on with, from which the primary's first messages can be read. A plain leg costs nothing.
///
/// # Errors
/// When the primary leaves or stays silent for too long.
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
    let mut filter = MechanismFilter::default();
    let mut begun = Vec::new();
    let reading = async {
        while !filter.is_done() {
            match primary.recv().await? {
                Some(bytes) => filter.push(&bytes, &mut begun),
                // The client gets what there was, and the end.
                None => break,
            }
        }
        io::Result::Ok(())
    };
    context
        .ring
        .timeout(POSTGRES_STARTUP_TIMEOUT, reading)
        .await
        .map_err(|_| io::Error::from(io::ErrorKind::TimedOut))??;
    if filter.took_plus() && ours.is_some() {
        if source.database.tls == TlsMode::Prefer {
            tracing::debug!(
                database = source.database.name,
                "TLS preferred, and done without: channel binding cannot be relayed"
            );
            drop(primary);
            let plain = context.reach(&source.database.endpoint).await?;
            plain.write(packet);
            return Ok(plain);
        }
        tracing::debug!(
            database = source.database.name,
            "channel binding cannot be relayed; a client that insists needs auth = \"terminate\""
        );
    }
    primary.unrecv(Chunk::from(begun));
    Ok(primary)
}
