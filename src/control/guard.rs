//! Who may ask: loopback without a token, anybody with it; and never a foreign page in an operator's browser.
//!
//! Without a token a request must come from loopback *and* name a loopback host, which stops DNS rebinding. A
//! request that changes something must be `application/json`, which a page cannot send across origins without a
//! preflight that we never answer, and its Origin, if there is one, must be the host that it asks.

use std::net::IpAddr;
use std::sync::Arc;

use axum::extract::{ConnectInfo, Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};

use super::http::error;
use super::listener::Peer;
use super::state::ControlState;

/// Paths that say nothing about the traffic: probes, and the page whose script asks for the rest.
const OPEN_PATHS: [&str; 3] = ["/healthz", "/readyz", "/"];

pub(super) async fn guard(
    State(state): State<Arc<ControlState>>,
    ConnectInfo(Peer(peer)): ConnectInfo<Peer>,
    request: Request,
    next: Next,
) -> Response {
    let headers = request.headers();
    let refused = if OPEN_PATHS.contains(&request.uri().path()) {
        None
    } else if state.has_token() {
        refuse_without_token(&state, headers)
    } else {
        refuse_foreign(peer.ip(), headers)
    };
    if let Some(response) = refused.or_else(|| refuse_forged(request.method(), headers)) {
        return response;
    }
    next.run(request).await
}

fn refuse_without_token(state: &ControlState, headers: &HeaderMap) -> Option<Response> {
    let given = text(headers, header::AUTHORIZATION).and_then(|value| value.split_once(' '));
    match given {
        Some((scheme, token))
            if scheme.eq_ignore_ascii_case("bearer") && state.token_matches(token.trim()) =>
        {
            None
        }
        _ => Some(unauthorized()),
    }
}

fn unauthorized() -> Response {
    let body = error(
        StatusCode::UNAUTHORIZED,
        "unauthorized",
        "this control port asks for its token: Authorization: Bearer …",
    );
    ([(header::WWW_AUTHENTICATE, "Bearer")], body).into_response()
}

fn refuse_foreign(peer: IpAddr, headers: &HeaderMap) -> Option<Response> {
    if !peer.to_canonical().is_loopback() {
        return Some(error(
            StatusCode::FORBIDDEN,
            "not_loopback",
            "without a token the control port answers to this host only",
        ));
    }
    let host = text(headers, header::HOST).unwrap_or_default();
    if !is_loopback_host(host) {
        return Some(error(
            StatusCode::FORBIDDEN,
            "foreign_host",
            "without a token the Host must be localhost or a loopback address",
        ));
    }
    None
}

fn refuse_forged(method: &Method, headers: &HeaderMap) -> Option<Response> {
    if matches!(*method, Method::GET | Method::HEAD) {
        return None;
    }
    let content_type = text(headers, header::CONTENT_TYPE).unwrap_or_default();
    let essence = content_type.split(';').next().unwrap_or_default().trim();
    // Of two that differ the next reader could believe the other one.
    let is_single = headers.get_all(header::CONTENT_TYPE).iter().count() == 1;
    if !is_single || !essence.eq_ignore_ascii_case("application/json") {
        return Some(error(
            StatusCode::UNSUPPORTED_MEDIA_TYPE,
            "not_json",
            "send Content-Type: application/json",
        ));
    }
    let host = text(headers, header::HOST).unwrap_or_default();
    let own = |origin: &str| origin.split_once("://").is_some_and(|(_, at)| at == host);
    // An Origin that is not text counts as foreign.
    let foreign = headers
        .get(header::ORIGIN)
        .is_some_and(|o| !o.to_str().is_ok_and(own));
    let cross_site = headers
        .get("sec-fetch-site")
        .is_some_and(|site| site != "same-origin" && site != "none");
    (foreign || cross_site).then(|| {
        error(
            StatusCode::FORBIDDEN,
            "foreign_origin",
            "a page of another origin may not change anything here",
        )
    })
}

fn text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|value| value.to_str().ok())
}

/// `localhost` or a loopback address, with or without a port.
fn is_loopback_host(host: &str) -> bool {
    let name = match host.strip_prefix('[') {
        Some(rest) => rest.split(']').next().unwrap_or_default(),
        None => host.rsplit_once(':').map_or(host, |(name, _)| name),
    };
    name.eq_ignore_ascii_case("localhost") || name.parse().is_ok_and(|ip: IpAddr| ip.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_loopback_names_are_loopback() {
        for host in [
            "localhost",
            "LOCALHOST:9191",
            "127.0.0.1:1",
            "127.9.9.9",
            "[::1]:80",
            "[::1]",
        ] {
            assert!(is_loopback_host(host), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example:9191",
            "10.0.0.1",
            "127.0.0.1.nip.io",
            "[::2]:1",
        ] {
            assert!(!is_loopback_host(host), "{host}");
        }
    }
}
