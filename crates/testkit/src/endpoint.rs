//! The port on which a fake agent answers the manager: its guests echo what they are told.

use std::sync::Arc;

use axum::{
    Json, Router,
    body::Body,
    extract::ws::{Message, WebSocketUpgrade},
    response::IntoResponse,
    routing::{get, post},
};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use hyper_util::rt::TokioIo;
use plimsoll_api::{
    agent::{ExecRequest, ExecResponse},
    tls::{self, ClientAuth, Identity, TlsError},
};
use tokio::net::TcpListener;
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

/// A task that serves until it is aborted. Only the manager's certificate is let in.
pub(crate) fn serve(
    listener: TcpListener,
    ca_pem: &str,
    identity: &Identity,
) -> Result<impl Future<Output = ()> + Send + 'static, TlsError> {
    let config = tls::server_config(identity, ClientAuth::Certificate(ca_pem))?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    Ok(async move {
        let mut connections = tokio::task::JoinSet::new();
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            connections.spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let peer = tls::peer_common_name(stream.get_ref().1.peer_certificates());
                if peer.as_deref() != Some(tls::MANAGER) {
                    return;
                }
                let router = router();
                let service = hyper::service::service_fn(
                    move |request: hyper::Request<hyper::body::Incoming>| {
                        router.clone().oneshot(request.map(Body::new))
                    },
                );
                let _ = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service)
                    .with_upgrades()
                    .await;
            });
        }
    })
}

fn router() -> Router {
    Router::new()
        .route("/agent/v1/vms/{vm}/exec", post(exec))
        .route("/agent/v1/vms/{vm}/logs", get(|| async { "a fake guest has booted\n" }))
        .route("/agent/v1/vms/{vm}/console", get(console))
}

/// "Runs" a program: its arguments come out again.
async fn exec(Json(request): Json<ExecRequest>) -> Json<ExecResponse> {
    Json(ExecResponse {
        exit_code: Some(0),
        signal: None,
        timed_out: false,
        stdout: STANDARD.encode(request.argv.join(" ")),
        stderr: String::new(),
        truncated: false,
    })
}

/// A console that sends back what is typed.
async fn console(upgrade: WebSocketUpgrade) -> impl IntoResponse {
    upgrade.on_upgrade(|mut socket| async move {
        while let Some(Ok(message)) = socket.recv().await {
            let echo = match message {
                Message::Binary(bytes) => Message::Binary(bytes),
                Message::Close(_) => break,
                _ => continue,
            };
            if socket.send(echo).await.is_err() {
                break;
            }
        }
    })
}
