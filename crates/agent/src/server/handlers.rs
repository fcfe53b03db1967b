//! The endpoints: unpack, ask the VM, pack.

use std::{sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{
        DefaultBodyLimit, Path, Query, State, WebSocketUpgrade,
        rejection::{JsonRejection, QueryRejection},
        ws::rejection::WebSocketUpgradeRejection,
    },
    http::header,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use futures_util::{future::BoxFuture, stream};
use plimsoll_api::{
    ErrorCode,
    agent::{AgentFacts, ExecRequest, ExecResponse, LogQuery},
    guest,
};
use plimsoll_model::{HostId, HostSpec, VmId};
use tokio::{
    sync::{Mutex, OwnedSemaphorePermit, Semaphore, watch},
    time::Instant,
};
use tokio_util::sync::CancellationToken;
use tower_http::timeout::RequestBodyTimeoutLayer;

use super::{BODY_LIMIT, console, problem::Problem};
use crate::vm::{Vms, console::LogReader};

/// A body: standard input in base64 and arguments.
const LARGEST_BODY: usize = 1 << 20;
/// Standard input of a command, decoded.
const LARGEST_STDIN: usize = 256 << 10;
const LONGEST_EXEC_MS: u64 = 600_000;
/// Commands that run at a time, over all VMs.
const EXECS: usize = 64;
/// Consoles and followed logs at a time.
const STREAMS: usize = 64;
const DEFAULT_TAIL: u64 = 64 << 10;
const LONGEST_TAIL: u64 = 4 << 20;
/// The doctor runs programs: its answer is good for a while.
const DOCTOR_FRESH: Duration = Duration::from_secs(30);

/// Examines the host anew.
pub type Doctor = Arc<dyn Fn() -> BoxFuture<'static, serde_json::Value> + Send + Sync>;

/// What the endpoints work with.
#[derive(Clone)]
pub struct ServerState {
    /// Which host this is.
    pub host: HostId,
    /// Its VMs.
    pub vms: Vms,
    /// What it says it is.
    pub spec: watch::Receiver<HostSpec>,
    /// Examines it.
    pub doctor: Doctor,
}

impl std::fmt::Debug for ServerState {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ServerState").field("host", &self.host).finish_non_exhaustive()
    }
}

type LastExamination = Arc<Mutex<Option<(Instant, serde_json::Value)>>>;

#[derive(Clone)]
struct App {
    state: ServerState,
    execs: Arc<Semaphore>,
    streams: Arc<Semaphore>,
    examined: LastExamination,
    shutdown: CancellationToken,
}

pub(super) fn router(state: ServerState, shutdown: CancellationToken) -> Router {
    let app = App {
        state,
        execs: Arc::new(Semaphore::new(EXECS)),
        streams: Arc::new(Semaphore::new(STREAMS)),
        examined: LastExamination::default(),
        shutdown,
    };
    Router::new()
        .route("/agent/v1/vms/{vm}/exec", post(exec))
        .route("/agent/v1/vms/{vm}/logs", get(logs))
        .route("/agent/v1/vms/{vm}/console", get(console))
        .route("/agent/v1/doctor", get(doctor))
        .route("/agent/v1/facts", get(facts))
        .fallback(async || Problem::new(ErrorCode::NotFound, "there is no such endpoint"))
        .method_not_allowed_fallback(async || {
            Problem::new(ErrorCode::MethodNotAllowed, "the endpoint does not take this method")
        })
        .layer(DefaultBodyLimit::max(LARGEST_BODY))
        .layer(RequestBodyTimeoutLayer::new(BODY_LIMIT))
        .with_state(app)
}

fn vm_of(text: &str) -> Result<VmId, Problem> {
    text.parse::<VmId>().map_err(|error| Problem::of(ErrorCode::InvalidRequest, &error))
}

fn permit(of: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Problem> {
    Arc::clone(of).try_acquire_owned().map_err(|_| {
        let message = format!("this host has too many {what} open");
        Problem::new(ErrorCode::TooManyRequests, message).with_hint("try again in a moment")
    })
}

async fn exec(
    State(app): State<App>,
    Path(vm): Path<String>,
    request: Result<Json<ExecRequest>, JsonRejection>,
) -> Result<Json<ExecResponse>, Problem> {
    let vm = vm_of(&vm)?;
    let Json(request) = request.map_err(|rejection| Problem::of_body(&rejection))?;
    let request = exec_request(request)?;
    let _permit = permit(&app.execs, "commands")?;
    let result = app.state.vms.exec(vm, request).await?;
    Ok(Json(ExecResponse {
        exit_code: result.exit_code,
        signal: result.signal,
        timed_out: result.timed_out,
        stdout: STANDARD.encode(&result.stdout),
        stderr: STANDARD.encode(&result.stderr),
        truncated: result.stdout_truncated || result.stderr_truncated,
    }))
}

fn exec_request(request: ExecRequest) -> Result<guest::ExecRequest, Problem> {
    let invalid = |message: &str| Problem::new(ErrorCode::InvalidValue, message);
    if request.argv.first().is_none_or(String::is_empty) {
        return Err(invalid("there is no program to run"));
    }
    let bytes: usize = request.argv.iter().map(String::len).sum();
    if request.argv.len() > guest::MAX_ARGUMENTS || bytes > guest::MAX_ARGUMENT_BYTES {
        return Err(invalid("the command has too many or too long arguments"));
    }
    if request.argv.iter().any(|argument| argument.contains('\0')) {
        return Err(invalid("an argument has a zero byte in it"));
    }
    if !(1..=LONGEST_EXEC_MS).contains(&request.timeout_ms) {
        return Err(invalid("a command may run for 1 ms to 10 minutes"));
    }
    let stdin =
        STANDARD.decode(&request.stdin).map_err(|_| invalid("standard input is not base64"))?;
    if stdin.len() > LARGEST_STDIN {
        return Err(Problem::new(ErrorCode::TooLarge, "standard input is larger than 256 KiB"));
    }
    Ok(guest::ExecRequest {
        argv: request.argv,
        env: Vec::new(),
        stdin,
        timeout_ms: request.timeout_ms,
        max_output_bytes: guest::MAX_OUTPUT_BYTES,
    })
}

async fn logs(
    State(app): State<App>,
    Path(vm): Path<String>,
    query: Result<Query<LogQuery>, QueryRejection>,
) -> Result<Response, Problem> {
    let vm = vm_of(&vm)?;
    let Query(query) = query
        .map_err(|rejection| Problem::new(ErrorCode::InvalidRequest, rejection.body_text()))?;
    let tail = query.tail_bytes.unwrap_or(DEFAULT_TAIL);
    if tail > LONGEST_TAIL {
        return Err(Problem::new(ErrorCode::InvalidValue, "at most 4 MiB of a log can be had"));
    }
    let permit = if query.follow { Some(permit(&app.streams, "streams")?) } else { None };
    let reader = app.state.vms.log(vm, query.source, tail)?;
    let body = Body::from_stream(follow(reader, query.follow, permit, app.shutdown));
    Ok(([(header::CONTENT_TYPE, "text/plain; charset=utf-8")], body).into_response())
}

fn follow(
    reader: LogReader,
    follow: bool,
    permit: Option<OwnedSemaphorePermit>,
    shutdown: CancellationToken,
) -> impl futures_util::Stream<Item = std::io::Result<bytes::Bytes>> {
    stream::unfold(Some((reader, permit, shutdown)), move |state| async move {
        let (mut reader, permit, shutdown) = state?;
        let next = tokio::select! {
            next = reader.next(follow) => next,
            () = shutdown.cancelled() => return None,
        };
        match next {
            Ok(Some(piece)) => Some((Ok(piece), Some((reader, permit, shutdown)))),
            Ok(None) => None,
            Err(error) => Some((Err(error), None)),
        }
    })
}

async fn console(
    State(app): State<App>,
    Path(vm): Path<String>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, Problem> {
    let vm = vm_of(&vm)?;
    let upgrade = upgrade
        .map_err(|rejection| Problem::new(ErrorCode::InvalidRequest, rejection.body_text()))?;
    let permit = permit(&app.streams, "streams")?;
    // Before the upgrade, so that a failure is an answer and not a console that closes at once.
    let session = app.state.vms.console(vm).await?;
    Ok(upgrade
        .max_message_size(console::LARGEST_MESSAGE)
        .max_frame_size(console::LARGEST_MESSAGE)
        .on_upgrade(move |socket| async move {
            console::serve(socket, session, app.shutdown).await;
            drop(permit);
        }))
}

async fn doctor(State(app): State<App>) -> Json<serde_json::Value> {
    let mut examined = app.examined.lock().await;
    match &*examined {
        Some((then, findings)) if then.elapsed() < DOCTOR_FRESH => Json(findings.clone()),
        _ => {
            let findings = (app.state.doctor)().await;
            *examined = Some((Instant::now(), findings.clone()));
            Json(findings)
        }
    }
}

async fn facts(State(app): State<App>) -> Json<AgentFacts> {
    Json(AgentFacts {
        host: app.state.host,
        spec: app.state.spec.borrow().clone(),
        vms: app.state.vms.observed(),
    })
}
