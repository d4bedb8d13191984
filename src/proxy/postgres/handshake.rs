//! The packets before a session: encryption requests, cancels, the startup packet.

use std::io;

use crate::limits::POSTGRES_STARTUP_TIMEOUT;
use crate::protocol::postgres::startup::{
    First, Severity, StartupError, StartupMessage, encode_error, parse_first, repeated_request,
};
use crate::proxy::Context;
use crate::proxy::services::Shared;
use crate::proxy::tls::{self, ServerTls};
use crate::ring::{Chunk, Socket};

/// A client that wants a session.
pub(super) struct Hello {
    pub startup: StartupMessage,
    /// The startup packet's own bytes.
    pub packet: Vec<u8>,
}

/// Why there is no session.
#[derive(Debug, thiserror::Error)]
pub(super) enum Refusal {
    #[error("the client left before it said who it is")]
    Gone,
    #[error("a cancel request was passed on")]
    CancelDone,
    #[error("{0}")]
    Protocol(StartupError),
    #[error("unencrypted bytes behind an encryption request")]
    Smuggled,
    #[error("no startup packet in time")]
    TimedOut,
    #[error("no TLS: {0}")]
    Tls(io::Error),
    #[error("TLS from the first byte without the application protocol \"postgresql\"")]
    NoAlpn,
    #[error("a client without TLS where it is required")]
    Plaintext,
}

/// Reads up to the startup packet and answers what comes before it. With `tls` the client may, or must, encrypt.
pub(super) async fn receive(
    context: &Context,
    shared: &Shared,
    client: &Socket,
    tls: Option<&ServerTls>,
) -> Result<Hello, Refusal> {
    let hello = converse(context, shared, client, tls);
    context
        .ring
        .timeout(POSTGRES_STARTUP_TIMEOUT, hello)
        .await
        .unwrap_or(Err(Refusal::TimedOut))
        .inspect_err(|refusal| {
            let answer = match refusal {
                Refusal::Protocol(error) => error.response(),
                Refusal::Plaintext => Some(encode_error(
                    Severity::Fatal,
                    "28000",
                    "this address serves no connections without TLS",
                )),
                _ => None,
            };
            client.write(&answer.unwrap_or_default());
        })
}

async fn converse(
    context: &Context,
    shared: &Shared,
    client: &Socket,
    tls: Option<&ServerTls>,
) -> Result<Hello, Refusal> {
    let (mut asked_ssl, mut asked_gss) = (false, false);
    let mut buffer = Vec::new();
    loop {
        let Some(parsed) = parse_first(&buffer) else {
            match client.recv().await {
                Ok(Some(chunk)) => buffer.extend_from_slice(&chunk),
                Ok(None) | Err(_) => return Err(Refusal::Gone),
            }
            continue;
        };
        let parsed = match (parsed, tls) {
            // TLS from the first byte, as clients of Postgres 17 may begin.
            (Err(StartupError::DirectTls), Some(tls)) if !asked_ssl && !client.is_secure() => {
                client.unrecv(Chunk::from(std::mem::take(&mut buffer)));
                let alpn = encrypt(context, client, tls).await?;
                if alpn.as_deref() != Some(tls::POSTGRES_ALPN) {
                    return Err(Refusal::NoAlpn);
                }
                (asked_ssl, asked_gss) = (true, true);
                continue;
            }
            (parsed, _) => parsed.map_err(Refusal::Protocol)?,
        };
        let (asked, is_ssl) = match parsed.first {
            First::Startup(startup) => {
                if tls.is_some_and(|tls| tls.required) && !client.is_secure() {
                    return Err(Refusal::Plaintext);
                }
                client.unrecv(Chunk::from(buffer.split_off(parsed.consumed)));
                return Ok(Hello {
                    startup,
                    packet: buffer,
                });
            }
            First::Cancel(request) => {
                if let Err(error) = cancel(context, shared, &request).await {
                    tracing::warn!(%error, "cannot pass a cancel request on");
                }
                return Err(Refusal::CancelDone);
            }
            First::SslRequest => (&mut asked_ssl, true),
            First::GssEncRequest => (&mut asked_gss, false),
        };
        if std::mem::replace(asked, true) {
            return Err(Refusal::Protocol(repeated_request(is_ssl)));
        }
        if buffer.len() > parsed.consumed {
            return Err(Refusal::Smuggled);
        }
        buffer.clear();
        match tls {
            Some(tls) if is_ssl && !client.is_secure() => {
                client.write(b"S");
                encrypt(context, client, tls).await?;
                // No other encryption inside of this one.
                asked_gss = true;
            }
            _ => client.write(b"N"),
        }
    }
}

/// Does the server's side of a TLS handshake; returns the application protocol.
async fn encrypt(
    context: &Context,
    client: &Socket,
    tls: &ServerTls,
) -> Result<Option<Vec<u8>>, Refusal> {
    let secured = tls::accept(context, client, tls)
        .await
        .map_err(Refusal::Tls)?;
    Ok(secured.alpn)
}

/// Passes a cancel request to the server that issued the key, and waits until that has taken it. A key that nobody
/// here issued is ignored, as Postgres does.
async fn cancel(
    context: &Context,
    shared: &Shared,
    request: &crate::protocol::postgres::startup::CancelRequest,
) -> io::Result<()> {
    let Some(database) = shared.cancels.find(request.pid, &request.key) else {
        return Ok(());
    };
    let server = context.connect(&database).await?;
    server.write(&request.encode());
    // The server closes when the signal is sent, without the manners of TLS; the client learns by our close that it was.
    while let Ok(Some(_)) = server.recv().await {}
    Ok(())
}
