//! The control port: metrics, health, the API and the dashboard.
//!
//! Every answer of the API is JSON. An error is `{"error": {"code": …, "message": …}}` with a status that fits.

use std::future::Future;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, Path, Query, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use axum::{Json, Router, middleware};
use serde::Deserialize;
use serde_json::{Value, json};

use super::commands::{CommandError, Commands};
use super::divergences::DivergenceFilter;
use super::guard::guard;
use super::listener::{BoundedListener, Peer};
use super::state::ControlState;
use super::{report, view};
use crate::limits::{CONTROL_BODY_BYTES_MAX, DIVERGENCES_PER_ANSWER_MAX};
use crate::metrics::{COMPAT_TABLE, TABLE, TextFormat, encode_tables};

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
        .route("/api/divergences", get(divergences))
        .route("/api/latency", get(latency))
        .route("/api/config", get(config))
        .route("/api/mirrors/{name}/exposure", post(set_exposure))
        .route("/api/mirrors/{name}/pause", post(pause))
        .route("/api/mirrors/{name}/resume", post(resume))
        .route("/api/mirrors/{name}/reconnect", post(reconnect))
        .route("/api/dual_write/{name}/mode", post(set_mode))
        .route("/api/reload", post(reload))
        .route("/api/drain", post(drain))
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
    page(report::report(&state).html)
}

async fn report_json(State(state): Shared) -> Json<Value> {
    Json(report::report(&state).json)
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
    let both = [TABLE, COMPAT_TABLE];
    let tables = if state.compat_metrics() {
        &both[..]
    } else {
        &both[..1]
    };
    let text = encode_tables(&state.scrape(), format, tables);
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

async fn status(State(state): Shared) -> Response {
    // Asks the runtime, which may take a while.
    match tokio::task::spawn_blocking(move || view::status(&state)).await {
        Ok(value) => Json(value).into_response(),
        Err(panic) => error(
            StatusCode::INTERNAL_SERVER_ERROR,
            "failed",
            &panic.to_string(),
        ),
    }
}

async fn mirrors(State(state): Shared) -> Json<Value> {
    Json(view::mirrors(&state))
}

async fn databases(State(state): Shared) -> Json<Value> {
    Json(view::databases(&state))
}

async fn divergences(State(state): Shared, Query(mut filter): Query<DivergenceFilter>) -> Response {
    filter.limit = filter.limit.min(DIVERGENCES_PER_ANSWER_MAX);
    Json(view::divergences(&state, &filter)).into_response()
}

#[derive(Deserialize)]
struct LatencyQuery {
    mirror: String,
}

async fn latency(State(state): Shared, Query(query): Query<LatencyQuery>) -> Response {
    match view::latency(&state, &query.mirror) {
        Some(value) => Json(value).into_response(),
        None => command_error(&CommandError::Unknown {
            what: "mirror",
            name: query.mirror,
            known: Vec::new(),
        }),
    }
}

async fn config(State(state): Shared) -> Json<Arc<Value>> {
    Json(state.config())
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ExposureBody {
    exposure: f64,
}

async fn set_exposure(State(state): Shared, Path(name): Path<String>, body: Bytes) -> Response {
    let body: ExposureBody = match parse(&body) {
        Ok(body) => body,
        Err(response) => return *response,
    };
    if !(0.0..=1.0).contains(&body.exposure) {
        let message = format!("exposure is a share from 0 to 1, not {}", body.exposure);
        return command_error(&CommandError::Invalid(message));
    }
    command(state, move |c| c.set_exposure(&name, body.exposure)).await
}

async fn pause(State(state): Shared, Path(name): Path<String>) -> Response {
    command(state, move |c| c.pause(&name)).await
}

async fn resume(State(state): Shared, Path(name): Path<String>) -> Response {
    command(state, move |c| c.resume(&name)).await
}

async fn reconnect(State(state): Shared, Path(name): Path<String>) -> Response {
    command(state, move |c| c.reconnect(&name)).await
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ModeBody {
    mode: String,
}

async fn set_mode(State(state): Shared, Path(name): Path<String>, body: Bytes) -> Response {
    let body: ModeBody = match parse(&body) {
        Ok(body) => body,
        Err(response) => return *response,
    };
    command(state, move |c| c.set_mode(&name, &body.mode)).await
}

async fn reload(State(state): Shared) -> Response {
    command(state, |c| c.reload()).await
}

async fn drain(State(state): Shared) -> Response {
    command(state, |c| c.drain()).await
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

/// Runs a command off the event loop: health probes go on while the runtime takes its time.
async fn command(
    state: Arc<ControlState>,
    run: impl FnOnce(&dyn Commands) -> Result<Value, CommandError> + Send + 'static,
) -> Response {
    match tokio::task::spawn_blocking(move || run(&*state.commands)).await {
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
