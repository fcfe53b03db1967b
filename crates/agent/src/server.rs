//! The agent's own port: what the manager asks that cannot be said as desired state.
//!
//! HTTP/1.1 over mutual TLS. Everybody in the cluster has a certificate of its CA. The one with the
//! common name `manager` gets all; those of other hosts only what concerns VMs that move between them
//! and this one ([`peers`]), and of that only what the manager has announced. Everything is bounded: connections,
//! handshakes, heads, bodies, running requests, open streams. Connections of those who vanish end by
//! TCP keep-alive.

mod console;
mod handlers;
mod peers;
mod problem;

#[cfg(test)]
mod tests;

use std::{io, net::SocketAddr, sync::Arc, time::Duration};

use axum::{Extension, Router};
use hyper::server::conn::http1;
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use nix::sys::socket::{setsockopt, sockopt};
use plimsoll_api::{
    ErrorCode,
    tls::{self, ClientAuth, Identity, TlsError},
};
use plimsoll_model::HostId;
use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpStream},
    sync::Semaphore,
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;

pub use handlers::{Doctor, ServerState};

use self::problem::Problem;

/// Connections at a time.
const CONNECTIONS: usize = 256;
/// From the connection to the end of the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// From the first byte of a request's head to its last.
const HEAD_LIMIT: Duration = Duration::from_secs(10);
/// Between two pieces of a body.
const BODY_LIMIT: Duration = Duration::from_secs(10);
/// Running requests may end for so long when the agent ends.
const GRACE: Duration = Duration::from_secs(2);
/// After a failure to accept, as when no file descriptor is left.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Why the agent cannot serve.
#[derive(Debug, Error)]
pub enum ServerError {
    /// The address cannot be listened at.
    #[error("cannot listen at {address}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// What the system said.
        #[source]
        source: io::Error,
    },
    /// The certificates do not make a server.
    #[error("cannot set up TLS for the agent's port")]
    Tls(#[source] TlsError),
}

/// A port that is listened at, before anything is served.
#[derive(Debug)]
pub struct Listener {
    listener: TcpListener,
    address: SocketAddr,
}

impl Listener {
    /// Listens at `address`.
    ///
    /// # Errors
    /// [`ServerError::Listen`].
    pub async fn bind(address: SocketAddr) -> Result<Self, ServerError> {
        let failed = |source| ServerError::Listen { address, source };
        let listener = TcpListener::bind(address).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        Ok(Self { listener, address })
    }

    /// Where it listens: with the port that was chosen, if it was to be any.
    #[must_use]
    pub const fn address(&self) -> SocketAddr {
        self.address
    }

    /// Serves until `shutdown`.
    ///
    /// # Errors
    /// [`ServerError::Tls`]; once it serves, it goes on.
    pub async fn serve(
        self,
        identity: &Identity,
        ca_pem: &str,
        state: ServerState,
        shutdown: CancellationToken,
    ) -> Result<(), ServerError> {
        let config = tls::server_config(identity, ClientAuth::Certificate(ca_pem))
            .map_err(ServerError::Tls)?;
        let doors = Doors {
            acceptor: TlsAcceptor::from(Arc::new(config)),
            hosts: peers::router(state.vms.clone()),
            manager: handlers::router(state, shutdown.clone()),
            others: Router::new().fallback(refuse),
            shutdown: shutdown.clone(),
        };
        let places = Arc::new(Semaphore::new(CONNECTIONS));
        let mut connections = JoinSet::new();
        loop {
            let Ok(place) = Arc::clone(&places).acquire_owned().await else { break };
            let accepted = tokio::select! {
                () = shutdown.cancelled() => break,
                accepted = self.listener.accept() => accepted,
            };
            while connections.try_join_next().is_some() {}
            match accepted {
                Ok((stream, peer)) => {
                    let doors = doors.clone();
                    connections.spawn(async move {
                        doors.connection(stream, peer).await;
                        drop(place);
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "cannot accept a connection");
                    sleep(ACCEPT_PAUSE).await;
                }
            }
        }
        // Each ends by itself when it sees the shutdown; those that do not are cut off.
        let all = async { while connections.join_next().await.is_some() {} };
        let _ = timeout(GRACE, all).await;
        Ok(())
    }
}

#[derive(Clone)]
struct Doors {
    acceptor: TlsAcceptor,
    manager: Router,
    /// Agents of other hosts, for VMs that move.
    hosts: Router,
    others: Router,
    shutdown: CancellationToken,
}

impl Doors {
    async fn connection(self, stream: TcpStream, peer: SocketAddr) {
        keep_alive(&stream);
        let stream = match timeout(HANDSHAKE_LIMIT, self.acceptor.accept(stream)).await {
            Ok(Ok(stream)) => stream,
            Ok(Err(error)) => {
                tracing::debug!(%peer, %error, "a TLS handshake failed");
                return;
            }
            Err(_) => return,
        };
        let name = tls::peer_common_name(stream.get_ref().1.peer_certificates());
        let host = name.as_deref().and_then(|name| name.parse::<HostId>().ok());
        let router = match host {
            _ if name.as_deref() == Some(tls::MANAGER) => self.manager,
            Some(host) => self.hosts.layer(Extension(host)),
            None => {
                tracing::warn!(%peer, name, "neither the manager nor a host: refused");
                self.others
            }
        };
        let connection = http1::Builder::new()
            .timer(TokioTimer::new())
            .header_read_timeout(HEAD_LIMIT)
            .serve_connection(TokioIo::new(stream), TowerToHyperService::new(router))
            .with_upgrades();
        let mut connection = std::pin::pin!(connection);
        let ended = tokio::select! {
            ended = connection.as_mut() => ended,
            () = self.shutdown.cancelled() => {
                connection.as_mut().graceful_shutdown();
                connection.await
            }
        };
        if let Err(error) = ended {
            tracing::debug!(%peer, %error, "a connection broke");
        }
    }
}

async fn refuse() -> Problem {
    Problem::new(ErrorCode::Forbidden, "only the manager may ask an agent")
        .with_hint("ask the manager: `plimsoll --help` tells how")
}

/// Somebody who vanished without a word is noticed within a minute or so.
fn keep_alive(stream: &TcpStream) {
    let set = setsockopt(stream, sockopt::KeepAlive, &true)
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepIdle, &30))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepInterval, &10))
        .and_then(|()| setsockopt(stream, sockopt::TcpKeepCount, &3))
        .and_then(|()| setsockopt(stream, sockopt::TcpUserTimeout, &60_000));
    if let Err(error) = set {
        tracing::debug!(%error, "cannot set TCP keep-alive");
    }
}
