//! The control port: metrics, health, the API and the dashboard.
//!
//! Every answer of the API is JSON. An error is `{"error": {"code": …, "message": …}}` with a status that fits.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::rejection::QueryRejection;
use axum::extract::{ConnectInfo, DefaultBodyLimit, FromRequestParts, Path, Query, State};
use axum::http::request::Parts;
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodRouter, get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use super::commands::{CommandError, Operation, Who};
use super::ctl::CTL_AGENT;
use super::guard::guard;
use super::listener::{BoundedListener, Peer};
use super::state::ControlState;
use super::{report, samples};
use crate::limits::CONTROL_BODY_BYTES_MAX;
use crate::metrics::TextFormat;

/// What requests under way get once the port is asked to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const DASHBOARD: &str = include_str!("dashboard.html");
/// The page carries its own script and style, and nothing from anywhere else runs or loads in it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Shared = State<Arc<ControlState>>;
type Route = MethodRouter<Arc<ControlState>>;

/// Serves the control port until `shutdown` resolves.
///
/// # Errors
/// If the listener cannot be used.
pub async fn serve(
    listener: std::net::TcpListener,
    state: Arc<ControlState>,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    let listener = BoundedListener::new(listener)?;
    let service = router(state).into_make_service_with_connect_info::<Peer>();
    let (closing, closed) = tokio::sync::oneshot::channel();
    let signal = async move {
        shutdown.await;
        let _ = closing.send(());
    };
    let server = axum::serve(listener, service).with_graceful_shutdown(signal);
    tokio::select! {
        result = async { server.await } => result,
        () = async {
            // Without a sender left the server has ended by itself and the other branch is ready.
            let _ = closed.await;
            tokio::time::sleep(CLOSE_TIMEOUT).await;
        } => Ok(()),
    }
}

fn router(state: Arc<ControlState>) -> Router {
    Router::new()
        .route("/", get(dashboard))
        .route("/metrics", get(metrics))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readyz))
        .route("/report", get(report_page))
        .route("/api/report", show(|| Operation::Report))
        .route("/api/status", show(|| Operation::Status))
        .route("/api/mirrors", show(|| Operation::Mirrors))
        .route("/api/databases", show(|| Operation::Databases))
        .route("/api/clients", show(|| Operation::Clients))
        .route("/api/servers", show(|| Operation::Servers))
        .route("/api/divergences", filtered(Operation::Divergences))
        .route("/api/queries", filtered(Operation::Queries))
        .route("/api/latency", filtered(Operation::Latency))
        .route("/api/metrics", filtered(Operation::Metrics))
        .route("/api/changes", show(|| Operation::Changes))
        .route("/api/config", show(|| Operation::Config))
        .route(
            "/api/mirrors/{name}/exposure",
            set(|mirror, Exposure { exposure }| Operation::SetExposure { mirror, exposure }),
        )
        .route(
            "/api/mirrors/{name}/queue",
            set(|mirror, Queue { units }| Operation::SetQueue { mirror, units }),
        )
        .route(
            "/api/mirrors/{name}/pause",
            tell_one(|mirror| Operation::Pause { mirror }),
        )
        .route(
            "/api/mirrors/{name}/resume",
            tell_one(|mirror| Operation::Resume { mirror }),
        )
        .route(
            "/api/mirrors/{name}/reconnect",
            tell_one(|mirror| Operation::Reconnect { mirror }),
        )
        .route(
            "/api/dual_write/{name}/mode",
            set(|name, Mode { mode }| Operation::SetMode { name, mode }),
        )
        .route("/api/reload", tell(|| Operation::Reload))
        .route("/api/drain", tell(|| Operation::Drain))
        .route("/api/shutdown", tell(|| Operation::Shutdown))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .layer(DefaultBodyLimit::max(CONTROL_BODY_BYTES_MAX))
        .with_state(state)
}

/// Shows a view.
fn show(operation: fn() -> Operation) -> Route {
    get(move |State(state): Shared, who: Asker| perform(state, who, operation()))
}

/// Shows what a filter in the query picks of a view.
fn filtered<F: DeserializeOwned + Send + 'static>(operation: fn(F) -> Operation) -> Route {
    type Filter<F> = Result<Query<F>, QueryRejection>;
    get(
        move |State(state): Shared, who: Asker, filter: Filter<F>| async move {
            match filter {
                Ok(Query(filter)) => perform(state, who, operation(filter)).await,
                Err(refused) => command_error(&CommandError::Invalid(refused.body_text())),
            }
        },
    )
}

/// Does something to the whole process.
fn tell(operation: fn() -> Operation) -> Route {
    post(move |State(state): Shared, who: Asker| perform(state, who, operation()))
}

/// Does something to what the path names.
fn tell_one(operation: fn(String) -> Operation) -> Route {
    post(
        move |State(state): Shared, who: Asker, Path(name): Path<String>| {
            perform(state, who, operation(name))
        },
    )
}

/// Sets something of what the path names to what the body says.
fn set<B: DeserializeOwned + Send + 'static>(operation: fn(String, B) -> Operation) -> Route {
    post(
        move |State(state): Shared, who: Asker, Path(name): Path<String>, body: Bytes| async move {
            match serde_json::from_slice(&body) {
                Ok(body) => perform(state, who, operation(name, body)).await,
                Err(error) => command_error(&CommandError::Invalid(format!(
                    "the body is not what this path takes: {error}"
                ))),
            }
        },
    )
}

/// An error as the API words it.
pub(super) fn error(status: StatusCode, code: &str, message: &str) -> Response {
    let body = Json(json!({"error": {"code": code, "message": message}}));
    (status, body).into_response()
}

async fn dashboard() -> Response {
    page(DASHBOARD.into())
}

async fn report_page(State(state): Shared) -> Response {
    // Off the event loop, as every operation: a page of 50 mirrors takes its time.
    match tokio::task::spawn_blocking(move || report::report(&state)).await {
        Ok(report) => page(report.html),
        Err(panic) => command_error(&CommandError::Failed(panic.to_string())),
    }
}

fn page(html: String) -> Response {
    let headers = [
        (header::CONTENT_TYPE, "text/html; charset=utf-8"),
        (header::CONTENT_SECURITY_POLICY, PAGE_POLICY),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        (header::REFERRER_POLICY, "no-referrer"),
        (header::CACHE_CONTROL, "no-store"),
    ];
    (headers, html).into_response()
}

async fn metrics(State(state): Shared, headers: HeaderMap) -> Response {
    let accept = headers.get(header::ACCEPT);
    let accept = accept.and_then(|a| a.to_str().ok()).unwrap_or_default();
    let format = TextFormat::negotiate(accept);
    let text = samples::metrics_text(&state, format);
    ([(header::CONTENT_TYPE, format.content_type())], text).into_response()
}

async fn readyz(State(state): Shared) -> (StatusCode, &'static str) {
    if state.draining() {
        (StatusCode::SERVICE_UNAVAILABLE, "draining\n")
    } else if state.ready() {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "starting\n")
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Exposure {
    exposure: f64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Queue {
    units: u64,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Mode {
    mode: String,
}

async fn not_found() -> Response {
    error(StatusCode::NOT_FOUND, "not_found", "there is nothing here")
}

async fn wrong_method() -> Response {
    error(
        StatusCode::METHOD_NOT_ALLOWED,
        "wrong_method",
        "this path takes another method",
    )
}

/// Who sends a request, for the log: `ctl` says so itself.
struct Asker(Who);

impl<S: Sync> FromRequestParts<S> for Asker {
    type Rejection = std::convert::Infallible;

    async fn from_request_parts(parts: &mut Parts, _: &S) -> Result<Self, Self::Rejection> {
        let peer = parts.extensions.get::<ConnectInfo<Peer>>();
        let name = peer.map_or_else(String::new, |ConnectInfo(Peer(at))| at.to_string());
        let agent = parts.headers.get(header::USER_AGENT);
        let is_ctl = agent.is_some_and(|agent| agent == CTL_AGENT);
        Ok(Asker(Who::new(if is_ctl { "ctl" } else { "http" }, name)))
    }
}

/// Carries out an operation off the event loop: health probes go on while the runtime takes its time.
async fn perform(state: Arc<ControlState>, Asker(who): Asker, operation: Operation) -> Response {
    let done = tokio::task::spawn_blocking(move || state.perform(&who, &operation));
    match done.await {
        Ok(Ok(value)) => Json(value).into_response(),
        Ok(Err(error)) => command_error(&error),
        Err(panic) => command_error(&CommandError::Failed(panic.to_string())),
    }
}

fn command_error(failure: &CommandError) -> Response {
    let status = match failure {
        CommandError::Unknown { .. } => StatusCode::NOT_FOUND,
        CommandError::Invalid(_) => StatusCode::UNPROCESSABLE_ENTITY,
        CommandError::Conflict(_) => StatusCode::CONFLICT,
        CommandError::Failed(_) => StatusCode::INTERNAL_SERVER_ERROR,
    };
    error(status, failure.code(), &failure.to_string())
}
