//! Accepts connections and serves HTTP/1.1 on them.
//!
//! A TLS handshake runs in the connection's own task with a time limit, so that a client that
//! dawdles holds up nobody. Above the limit of connections new ones are closed at once. Shutdown:
//! no new connections, running requests get [`DRAIN`] to end.

use std::{io, sync::Arc, time::Duration};

use axum::{Router, body::Body};
use hyper_util::rt::{TokioIo, TokioTimer};
use plimsoll_api::tls;
use plimsoll_model::HostId;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{OwnedSemaphorePermit, Semaphore, watch},
    task::JoinSet,
};
use tokio_rustls::TlsAcceptor;
use tower::ServiceExt as _;

const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
const HEADER_TIMEOUT: Duration = Duration::from_secs(30);
/// How long running requests may go on when the manager shuts down.
const DRAIN: Duration = Duration::from_secs(5);
/// After a failure to accept, such as too many open files: without a pause the loop would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
const BACKLOG_BUFFER: usize = 64 * 1024;

/// Who is at the other end, as far as the connection tells.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Peer {
    /// Somebody, by TLS from this address.
    Address(std::net::IpAddr),
    /// Somebody on this machine who may open the socket.
    Socket,
    /// A host, by its certificate. Whether it is still a member is asked on every request.
    Host(HostId),
}

/// Where connections come from.
pub(crate) enum Source {
    /// Users, by TLS.
    Users(TcpListener, TlsAcceptor),
    /// Users, by the unix socket.
    Socket(UnixListener),
    /// Agents, by mutual TLS.
    Agents(TcpListener, TlsAcceptor),
}

/// Serves `router` until `stopping` becomes true and what ran has ended.
pub(crate) async fn serve(
    source: Source,
    router: Router,
    most_connections: usize,
    mut stopping: watch::Receiver<bool>,
) {
    let slots = Arc::new(Semaphore::new(most_connections));
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = accept(&source) => accepted,
            () = stopped(&mut stopping) => break,
            Some(_) = connections.join_next() => continue,
        };
        let connection = match accepted {
            Ok(connection) => connection,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(most_connections, "too many connections: one was closed");
            continue;
        };
        connections.spawn(run(connection, router.clone(), slot, stopping.clone()));
    }
    // Every connection ends by itself within the drain time.
    while connections.join_next().await.is_some() {}
}

/// Waits until the manager shuts down.
pub(crate) async fn stopped(stopping: &mut watch::Receiver<bool>) {
    // An error says that the sender is gone, which is the same.
    let _ = stopping.wait_for(|stopping| *stopping).await;
}

enum Connection {
    Tls(tokio::net::TcpStream, TlsAcceptor, bool),
    Socket(tokio::net::UnixStream),
}

async fn accept(source: &Source) -> io::Result<Connection> {
    match source {
        Source::Socket(listener) => Ok(Connection::Socket(listener.accept().await?.0)),
        Source::Users(listener, acceptor) | Source::Agents(listener, acceptor) => {
            let (stream, _) = listener.accept().await?;
            let agents = matches!(source, Source::Agents(..));
            Ok(Connection::Tls(stream, acceptor.clone(), agents))
        }
    }
}

async fn run(
    connection: Connection,
    router: Router,
    slot: OwnedSemaphorePermit,
    mut stopping: watch::Receiver<bool>,
) {
    let _slot = slot;
    match connection {
        Connection::Socket(stream) => serve_http(stream, Peer::Socket, router, stopping).await,
        Connection::Tls(stream, acceptor, agents) => {
            let Ok(address) = stream.peer_addr() else { return };
            let _ = stream.set_nodelay(true);
            let handshake = tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream));
            let shaken = tokio::select! {
                shaken = handshake => shaken,
                () = stopped(&mut stopping) => return,
            };
            let stream = match shaken {
                Ok(Ok(stream)) => stream,
                Ok(Err(error)) => {
                    tracing::debug!(%address, %error, "TLS handshake failed");
                    return;
                }
                Err(_) => return,
            };
            let peer = if agents {
                let name = tls::peer_common_name(stream.get_ref().1.peer_certificates());
                match name.as_deref().and_then(|name| name.parse().ok()) {
                    Some(host) => Peer::Host(host),
                    None => {
                        tracing::warn!(%address, ?name, "not a host's certificate");
                        return;
                    }
                }
            } else {
                Peer::Address(address.ip())
            };
            serve_http(stream, peer, router, stopping).await;
        }
    }
}

async fn serve_http(
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
    peer: Peer,
    router: Router,
    mut stopping: watch::Receiver<bool>,
) {
    let service =
        hyper::service::service_fn(move |mut request: hyper::Request<hyper::body::Incoming>| {
            request.extensions_mut().insert(peer.clone());
            router.clone().oneshot(request.map(Body::new))
        });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEADER_TIMEOUT)
        .max_buf_size(BACKLOG_BUFFER)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = stopped(&mut stopping) => {
            connection.as_mut().graceful_shutdown();
            match tokio::time::timeout(DRAIN, connection).await {
                Ok(ended) => ended,
                Err(_) => return,
            }
        }
    };
    if let Err(error) = ended {
        // Clients leave when they like.
        tracing::debug!(%error, "connection ended");
    }
}
