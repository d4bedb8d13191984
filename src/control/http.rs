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
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::json;

use super::commands::{CommandError, Operation, Who};
use super::ctl::CTL_AGENT;
use super::divergences::DivergenceFilter;
use super::guard::guard;
use super::latency::LatencyFilter;
use super::listener::{BoundedListener, Peer};
use super::queries::QueryFilter;
use super::samples::MetricFilter;
use super::state::ControlState;
use super::{report, samples};
use crate::limits::{CONTROL_BODY_BYTES_MAX, DIVERGENCES_PER_ANSWER_MAX};
use crate::metrics::TextFormat;

/// What requests under way get once the port is asked to close.
const CLOSE_TIMEOUT: Duration = Duration::from_secs(2);

const DASHBOARD: &str = include_str!("dashboard.html");
/// The page carries its own script and style, and nothing from anywhere else runs or loads in it.
const PAGE_POLICY: &str = "default-src 'none'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; \
     connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

type Shared = State<Arc<ControlState>>;

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
        .route("/api/report", get(report_json))
        .route("/api/status", get(status))
        .route("/api/mirrors", get(mirrors))
        .route("/api/databases", get(databases))
        .route("/api/clients", get(clients))
        .route("/api/servers", get(servers))
        .route("/api/divergences", get(divergences))
        .route("/api/queries", get(queries))
        .route("/api/latency", get(latency))
        .route("/api/metrics", get(api_metrics))
        .route("/api/changes", get(changes))
        .route("/api/config", get(config))
        .route("/api/mirrors/{name}/exposure", post(set_exposure))
        .route("/api/mirrors/{name}/queue", post(set_queue))
        .route("/api/mirrors/{name}/pause", post(pause))
        .route("/api/mirrors/{name}/resume", post(resume))
        .route("/api/mirrors/{name}/reconnect", post(reconnect))
        .route("/api/dual_write/{name}/mode", post(set_mode))
        .route("/api/reload", post(reload))
        .route("/api/drain", post(drain))
        .route("/api/shutdown", post(shutdown))
        .fallback(not_found)
        .method_not_allowed_fallback(wrong_method)
        .layer(middleware::from_fn_with_state(Arc::clone(&state), guard))
        .layer(DefaultBodyLimit::max(CONTROL_BODY_BYTES_MAX))
        .with_state(state)
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

async fn report_json(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Report).await
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

async fn status(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Status).await
}

async fn mirrors(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Mirrors).await
}

async fn databases(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Databases).await
}

async fn clients(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Clients).await
}

async fn servers(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Servers).await
}

async fn divergences(
    State(state): Shared,
    who: Asker,
    Query(mut filter): Query<DivergenceFilter>,
) -> Response {
    filter.limit = filter.limit.min(DIVERGENCES_PER_ANSWER_MAX);
    perform(state, who, Operation::Divergences(filter)).await
}

async fn queries(
    State(state): Shared,
    who: Asker,
    filter: Result<Query<QueryFilter>, QueryRejection>,
) -> Response {
    match filter {
        Ok(Query(filter)) => perform(state, who, Operation::Queries(filter)).await,
        Err(refused) => command_error(&CommandError::Invalid(refused.body_text())),
    }
}

async fn config(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Config).await
}

async fn latency(
    State(state): Shared,
    who: Asker,
    filter: Result<Query<LatencyFilter>, QueryRejection>,
) -> Response {
    match filter {
        Ok(Query(filter)) => perform(state, who, Operation::Latency(filter)).await,
        Err(refused) => command_error(&CommandError::Invalid(refused.body_text())),
    }
}

async fn api_metrics(
    State(state): Shared,
    who: Asker,
    filter: Result<Query<MetricFilter>, QueryRejection>,
) -> Response {
    match filter {
        Ok(Query(filter)) => perform(state, who, Operation::Metrics(filter)).await,
        Err(refused) => command_error(&CommandError::Invalid(refused.body_text())),
    }
}

async fn changes(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Changes).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExposureBody {
    exposure: f64,
}

async fn set_exposure(
    State(state): Shared,
    who: Asker,
    Path(mirror): Path<String>,
    body: Bytes,
) -> Response {
    match parse::<ExposureBody>(&body) {
        Ok(ExposureBody { exposure }) => {
            perform(state, who, Operation::SetExposure { mirror, exposure }).await
        }
        Err(response) => *response,
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct QueueBody {
    units: u64,
}

async fn set_queue(
    State(state): Shared,
    who: Asker,
    Path(mirror): Path<String>,
    body: Bytes,
) -> Response {
    match parse::<QueueBody>(&body) {
        Ok(QueueBody { units }) => perform(state, who, Operation::SetQueue { mirror, units }).await,
        Err(response) => *response,
    }
}

async fn pause(State(state): Shared, who: Asker, Path(mirror): Path<String>) -> Response {
    perform(state, who, Operation::Pause { mirror }).await
}

async fn resume(State(state): Shared, who: Asker, Path(mirror): Path<String>) -> Response {
    perform(state, who, Operation::Resume { mirror }).await
}

async fn reconnect(State(state): Shared, who: Asker, Path(mirror): Path<String>) -> Response {
    perform(state, who, Operation::Reconnect { mirror }).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeBody {
    mode: String,
}

async fn set_mode(
    State(state): Shared,
    who: Asker,
    Path(name): Path<String>,
    body: Bytes,
) -> Response {
    match parse::<ModeBody>(&body) {
        Ok(ModeBody { mode }) => perform(state, who, Operation::SetMode { name, mode }).await,
        Err(response) => *response,
    }
}

async fn reload(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Reload).await
}

async fn drain(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Drain).await
}

async fn shutdown(State(state): Shared, who: Asker) -> Response {
    perform(state, who, Operation::Shutdown).await
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

/// The `Box` keeps the common case small.
fn parse<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Box<Response>> {
    serde_json::from_slice(body).map_err(|e| {
        let message = format!("the body is not what this path takes: {e}");
        Box::new(command_error(&CommandError::Invalid(message)))
    })
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
