//! A manager of which the test says how it behaves: the cluster's endpoints over mutual TLS.

use std::{collections::BTreeMap, net::SocketAddr, sync::Arc, time::Duration};

use axum::{
    Json, Router,
    body::Body,
    extract::{Path, Query, State},
    http::StatusCode,
    response::{IntoResponse as _, Response},
    routing::{get, post},
};
use hyper::server::conn::http1;
use hyper_util::{rt::TokioIo, service::TowerToHyperService};
use parking_lot::Mutex;
use plimsoll_api::{
    ClusterClient, ErrorBody, ErrorCode, JoinToken,
    cluster::{AgentReport, DesiredHost, JoinRequest, JoinResponse, ReportReply},
    tls::{self, ClientAuth},
};
use plimsoll_model::HostId;
use serde::Deserialize;
use tokio::{net::TcpListener, sync::watch, task::JoinHandle};
use tokio_rustls::TlsAcceptor;

use super::{Authority, BootTime};

/// What it does with a report.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Behaviour {
    /// Takes it and answers.
    Answer,
    /// Takes it, and the connection breaks before the answer.
    LoseReply,
    /// Does not answer at all, to nothing.
    Hang,
    /// Says that it has failed.
    Fail,
}

pub(crate) struct Book {
    pub(crate) behaviour: Behaviour,
    pub(crate) lease_ms: Option<u64>,
    pub(crate) interval_ms: u64,
    /// Every report that came, with when.
    pub(crate) reports: Vec<(BootTime, AgentReport)>,
    /// The generation that each question for what is wanted named.
    pub(crate) asked_after: Vec<u64>,
    /// The token that is good, once.
    pub(crate) token: Option<String>,
    pub(crate) joined: Vec<JoinRequest>,
    /// What it hands out as the file with a checksum; anything else is this.
    pub(crate) images: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone)]
struct App {
    book: Arc<Mutex<Book>>,
    desired: watch::Sender<DesiredHost>,
    authority: Arc<Authority>,
    address: SocketAddr,
}

pub(crate) struct FakeManager {
    pub(crate) authority: Arc<Authority>,
    app: App,
    serving: Option<JoinHandle<()>>,
}

impl FakeManager {
    /// One that listens and answers everything.
    pub(crate) async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let book = Book {
            behaviour: Behaviour::Answer,
            lease_ms: None,
            interval_ms: 50,
            reports: Vec::new(),
            asked_after: Vec::new(),
            token: None,
            joined: Vec::new(),
            images: BTreeMap::new(),
        };
        let app = App {
            book: Arc::new(Mutex::new(book)),
            desired: watch::Sender::new(DesiredHost::default()),
            authority: Arc::new(Authority::new()),
            address: listener.local_addr().unwrap(),
        };
        let mut manager = Self { authority: Arc::clone(&app.authority), app, serving: None };
        manager.serve(listener);
        manager
    }

    fn serve(&mut self, listener: TcpListener) {
        self.serving = Some(tokio::spawn(serve(listener, self.app.clone())));
    }

    /// Ends it: connections break, new ones are refused.
    pub(crate) async fn stop(&mut self) {
        if let Some(serving) = self.serving.take() {
            serving.abort();
            let _ = serving.await;
        }
    }

    /// Starts it again, at the same address.
    pub(crate) async fn start_again(&mut self) {
        let listener = TcpListener::bind(self.app.address).await.unwrap();
        self.serve(listener);
    }

    pub(crate) fn client(&self) -> ClusterClient {
        let identity = self.authority.identity("host-1");
        let address = self.app.address.to_string();
        ClusterClient::new(&address, &self.authority.pem, &identity).unwrap()
    }

    pub(crate) fn token(&self, secret: &str) -> JoinToken {
        JoinToken {
            address: self.app.address.to_string(),
            ca_sha256: tls::certificate_sha256(&self.authority.pem).unwrap(),
            secret: secret.to_owned(),
        }
    }

    pub(crate) fn want(&self, desired: DesiredHost) {
        self.app.desired.send_replace(desired);
    }

    pub(crate) fn book<T>(&self, f: impl FnOnce(&mut Book) -> T) -> T {
        f(&mut self.app.book.lock())
    }
}

async fn serve(listener: TcpListener, app: App) {
    let identity = app.authority.identity(tls::MANAGER);
    // Whoever joins has no certificate yet: the two ports of a manager are one here.
    let members = tls::server_config(&identity, ClientAuth::Token).unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(members));
    let router = Router::new()
        .route("/v1/join", post(join))
        .route("/cluster/v1/report", post(report))
        .route("/cluster/v1/desired", get(desired))
        .route("/cluster/v1/images/{sha256}", get(image))
        .with_state(app);
    // Dropped with this task: then all connections break.
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let (acceptor, router) = (acceptor.clone(), router.clone());
        connections.spawn(async move {
            if let Ok(stream) = acceptor.accept(stream).await {
                let service = TowerToHyperService::new(router);
                let _ = http1::Builder::new().serve_connection(TokioIo::new(stream), service).await;
            }
        });
    }
}

fn problem(code: ErrorCode, message: &str) -> Response {
    let status = StatusCode::from_u16(code.status()).unwrap();
    (status, Json(ErrorBody::new(code, message))).into_response()
}

async fn join(State(app): State<App>, Json(request): Json<JoinRequest>) -> Response {
    let mut book = app.book.lock();
    if book.token.as_deref() != Some(request.token.as_str()) {
        return problem(ErrorCode::Unauthenticated, "the token is not good");
    }
    if request.name.as_str() == "taken" {
        return problem(ErrorCode::AlreadyExists, "there is such a host");
    }
    book.token = None;
    let response = JoinResponse {
        host: HostId(1),
        certificate_pem: app.authority.sign(&request.certificate_request_pem, "host-1"),
        ca_pem: app.authority.pem.clone(),
        cluster_address: app.address.to_string(),
    };
    book.joined.push(request);
    Json(response).into_response()
}

async fn report(State(app): State<App>, Json(report): Json<AgentReport>) -> Response {
    let (behaviour, reply) = {
        let mut book = app.book.lock();
        if book.behaviour != Behaviour::Hang {
            book.reports.push((BootTime::now(), report));
        }
        let reply = ReportReply {
            lease_ms: book.lease_ms,
            interval_ms: book.interval_ms,
            desired_generation: app.desired.borrow().generation,
        };
        (book.behaviour, reply)
    };
    match behaviour {
        Behaviour::Answer => Json(reply).into_response(),
        Behaviour::Hang => std::future::pending().await,
        Behaviour::Fail => problem(ErrorCode::Internal, "the store is gone"),
        Behaviour::LoseReply => {
            // A body that breaks off breaks the connection.
            let broken = futures_util::stream::iter([Err::<&[u8], _>("gone")]);
            Body::from_stream(broken).into_response()
        }
    }
}

#[derive(Deserialize)]
struct After {
    after: u64,
    wait_ms: u64,
}

async fn desired(State(app): State<App>, Query(query): Query<After>) -> Response {
    let hangs = {
        let mut book = app.book.lock();
        book.asked_after.push(query.after);
        book.behaviour == Behaviour::Hang
    };
    if hangs {
        std::future::pending::<()>().await;
    }
    let mut changes = app.desired.subscribe();
    let newer = changes.wait_for(|desired| desired.generation > query.after);
    match tokio::time::timeout(Duration::from_millis(query.wait_ms), newer).await {
        Ok(Ok(desired)) => Json(desired.clone()).into_response(),
        _ => StatusCode::NO_CONTENT.into_response(),
    }
}

async fn image(State(app): State<App>, Path(sha256): Path<String>) -> Vec<u8> {
    let images = &app.book.lock().images;
    images.get(&sha256).cloned().unwrap_or_else(|| b"another file".to_vec())
}
