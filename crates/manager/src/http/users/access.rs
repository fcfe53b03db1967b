//! What users do inside VMs: carried on to the agent of the VM's host.

use axum::{
    Json as Answer,
    body::Body,
    extract::{
        State,
        ws::{
            CloseFrame, Message, WebSocket, WebSocketUpgrade, rejection::WebSocketUpgradeRejection,
        },
    },
    http::header::{CONTENT_TYPE, X_CONTENT_TYPE_OPTIONS},
    response::{IntoResponse as _, Response},
};
use futures_util::{SinkExt as _, StreamExt as _};
use plimsoll_api::{
    ErrorChain, ErrorCode,
    agent::{ExecRequest, ExecResponse, LogQuery},
    client::Console,
};
use plimsoll_model::Name;
use std::time::Duration;

use crate::{
    app::{self, Access, Caller},
    http::{
        Services,
        error::{ApiError, from_agent},
        extract::{At, Json, Query},
        listener::stopped,
    },
};

/// The most arguments of a program, and the most of its input (in base64).
const MOST_ARGUMENTS: usize = 1024;
const INPUT_LIMIT: usize = 350_000;
const LONGEST_RUN_MS: u64 = 600_000;
const TAIL_LIMIT: u64 = 4 << 20;
/// Through what drops silent connections.
const PING_EVERY: Duration = Duration::from_secs(20);
const MESSAGE_LIMIT: usize = 1 << 20;

/// Runs a program in a VM, through its guest agent. It is put on record.
#[utoipa::path(post, path = "/v1/projects/{project}/vms/{vm}/exec", tag = "access",
    request_body = ExecRequest, responses((status = 200, body = ExecResponse)))]
pub(super) async fn vm_exec(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    Json(request): Json<ExecRequest>,
) -> Result<Answer<ExecResponse>, ApiError> {
    check_exec(&request)?;
    let at = app::vm_access(&services.core, &caller, &project, &vm, Access::Exec).await?;
    let agent = services.agents.agent(&at).map_err(|error| from_agent(&at.host_name, &error))?;
    agent.exec(at.vm, &request).await.map(Answer).map_err(|error| from_agent(&at.host_name, &error))
}

fn check_exec(request: &ExecRequest) -> Result<(), ApiError> {
    let invalid =
        |message: String, hint| Err(ApiError::new(ErrorCode::InvalidValue, message).hint(hint));
    if request.argv.first().is_none_or(String::is_empty) {
        return invalid("argv: there is no program".into(), "name at least the program to run");
    }
    if request.argv.len() > MOST_ARGUMENTS {
        return invalid(
            format!("argv: more than {MOST_ARGUMENTS} arguments"),
            "pass what is long on standard input",
        );
    }
    if request.argv.iter().any(|argument| argument.contains('\0')) {
        return invalid("argv: an argument has a NUL".into(), "no program can be given one");
    }
    if request.stdin.len() > INPUT_LIMIT {
        return invalid("stdin: more than 256 KiB".into(), "send it in several pieces");
    }
    if !(1..=LONGEST_RUN_MS).contains(&request.timeout_ms) {
        return invalid(
            format!("timeout_ms: {} is not between 1 and {LONGEST_RUN_MS}", request.timeout_ms),
            "run what takes longer in the background",
        );
    }
    Ok(())
}

/// A VM's log: the end of it, and with `follow` what comes.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{vm}/logs", tag = "access",
    params(LogQuery), responses((status = 200, content_type = "text/plain", body = String)))]
pub(super) async fn vm_logs(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    Query(query): Query<LogQuery>,
) -> Result<Response, ApiError> {
    if query.tail_bytes.is_some_and(|bytes| bytes > TAIL_LIMIT) {
        let message = format!("tail_bytes: more than {TAIL_LIMIT}");
        return Err(ApiError::new(ErrorCode::InvalidValue, message).hint("ask for at most 4 MiB"));
    }
    let at = app::vm_locate(&services.core, &caller, &project, &vm)?;
    let failed = |error| from_agent(&at.host_name, &error);
    let agent = services.agents.agent(&at).map_err(failed)?;
    let stream = agent.logs(at.vm, &query).await.map_err(failed)?;
    // One that follows would hold up the shutdown.
    let mut stopping = services.stopping.clone();
    let end = async move { stopped(&mut stopping).await };
    let body = Body::from_stream(stream.take_until(Box::pin(end)));
    let headers =
        [(CONTENT_TYPE, "text/plain; charset=utf-8"), (X_CONTENT_TYPE_OPTIONS, "nosniff")];
    Ok((headers, body).into_response())
}

/// A VM's serial console: a WebSocket with binary frames both ways. It is put on record.
#[utoipa::path(get, path = "/v1/projects/{project}/vms/{vm}/console", tag = "access",
    responses((status = 101, description = "The WebSocket is open")))]
pub(super) async fn vm_console(
    State(services): State<Services>,
    caller: Caller,
    At((project, vm)): At<(Name, Name)>,
    upgrade: Result<WebSocketUpgrade, WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let upgrade = upgrade.map_err(|rejection| {
        ApiError::new(ErrorCode::InvalidRequest, "this is not the beginning of a WebSocket")
            .cause(rejection.body_text())
            .hint("open it with a WebSocket client, such as `plimsoll vm console`")
    })?;
    let at = app::vm_access(&services.core, &caller, &project, &vm, Access::Console).await?;
    let failed = |error| from_agent(&at.host_name, &error);
    let agent = services.agents.agent(&at).map_err(failed)?;
    // Before the upgrade, so that a refusal is still an ordinary answer.
    let console = agent.console(at.vm).await.map_err(failed)?;
    let mut stopping = services.stopping.clone();
    Ok(upgrade.max_message_size(MESSAGE_LIMIT).max_frame_size(MESSAGE_LIMIT).on_upgrade(
        move |socket| async move {
            tokio::select! {
                () = pump(socket, console) => {}
                () = stopped(&mut stopping) => {}
            }
        },
    ))
}

/// Carries bytes both ways until one side ends.
async fn pump(socket: WebSocket, console: Console) {
    let (mut to_user, mut from_user) = socket.split();
    let (mut to_guest, mut from_guest) = console.split();
    let upward = async {
        let mut pings = tokio::time::interval(PING_EVERY);
        loop {
            let message = tokio::select! {
                message = from_user.next() => message,
                _ = pings.tick() => {
                    if to_guest.ping().await.is_err() {
                        break;
                    }
                    continue;
                }
            };
            let bytes = match message {
                Some(Ok(Message::Binary(bytes))) => bytes,
                Some(Ok(Message::Text(text))) => text.into(),
                Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                Some(Ok(Message::Close(_)) | Err(_)) | None => break,
            };
            if to_guest.send(bytes).await.is_err() {
                break;
            }
        }
        let _ = to_guest.close().await;
    };
    let downward = async {
        let mut pings = tokio::time::interval(PING_EVERY);
        let reason = loop {
            let received = tokio::select! {
                received = from_guest.receive() => received,
                _ = pings.tick() => {
                    if to_user.send(Message::Ping(bytes::Bytes::new())).await.is_err() {
                        break "";
                    }
                    continue;
                }
            };
            match received {
                Ok(Some(bytes)) => {
                    if to_user.send(Message::Binary(bytes)).await.is_err() {
                        break "";
                    }
                }
                Ok(None) => break "the console has ended",
                Err(error) => {
                    tracing::debug!(error = %ErrorChain(&error), "console broke off");
                    break "the host's agent broke off";
                }
            }
        };
        let close = CloseFrame { code: axum::extract::ws::close_code::AWAY, reason: reason.into() };
        let _ = to_user.send(Message::Close(Some(close))).await;
    };
    tokio::select! {
        () = upward => {}
        () = downward => {}
    }
}
