//! What all clients share: where a server is, how requests are sent, how answers are read.

use std::{net::SocketAddr, path::PathBuf, pin::Pin, sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::{Stream, StreamExt as _};
use reqwest::{Method, RequestBuilder, Response};
use serde::{Serialize, de::DeserializeOwned};
use tokio::io::{AsyncWrite, AsyncWriteExt as _};

use super::error::{ClientError, caused_by_refusal};
use crate::{ErrorBody, tls::TlsError};

/// Bytes as they come.
pub type ByteStream = Pin<Box<dyn Stream<Item = Result<Bytes, ClientError>> + Send>>;

/// The longest answer that is read into memory. A list of 100,000 VMs fits.
const ANSWER_LIMIT: u64 = 512 << 20;
/// The longest error body.
const ERROR_LIMIT: u64 = 1 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long a stream may be silent while a file is carried over.
pub(super) const IDLE_TIMEOUT: Duration = Duration::from_secs(60);
/// How long an ordinary call may take.
pub(super) const CALL_TIMEOUT: Duration = Duration::from_secs(60);

/// Where a server is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Target {
    /// A unix socket, without TLS.
    Unix(PathBuf),
    /// `host:port`, with TLS.
    Tcp { host: String, port: u16 },
}

impl Target {
    /// Reads `unix:PATH`, `https://HOST:PORT` or `HOST:PORT`.
    pub(super) fn parse(address: &str) -> Result<Self, ClientError> {
        let invalid = || ClientError::Address { address: address.chars().take(200).collect() };
        if let Some(path) = address.strip_prefix("unix:") {
            return if path.is_empty() { Err(invalid()) } else { Ok(Self::Unix(path.into())) };
        }
        let rest = address.strip_prefix("https://").unwrap_or(address);
        let rest = rest.strip_suffix('/').unwrap_or(rest);
        let (host, port) = rest.rsplit_once(':').ok_or_else(invalid)?;
        let port = port.parse().ok().filter(|port| *port != 0).ok_or_else(invalid)?;
        let host = host.strip_prefix('[').and_then(|h| h.strip_suffix(']')).unwrap_or(host);
        let plain = !host.is_empty()
            && host.len() <= 253
            && host.bytes().all(|b| b.is_ascii_alphanumeric() || b".-:".contains(&b));
        if plain { Ok(Self::Tcp { host: host.to_owned(), port }) } else { Err(invalid()) }
    }
}

/// Resolves every name to one address (or to what one name resolves to): the URL's name is the one
/// that the certificate must have, not the one by which the machine is found.
struct OneAddress {
    host: String,
}

impl reqwest::dns::Resolve for OneAddress {
    fn resolve(&self, _name: reqwest::dns::Name) -> reqwest::dns::Resolving {
        let host = self.host.clone();
        Box::pin(async move {
            // The port of the URL replaces this one.
            let addresses: Vec<SocketAddr> =
                tokio::net::lookup_host((host.as_str(), 0)).await?.collect();
            Ok(Box::new(addresses.into_iter()) as reqwest::dns::Addrs)
        })
    }
}

/// A connection to one server (kept alive and shared), with who asks.
#[derive(Clone)]
pub(super) struct Transport {
    http: reqwest::Client,
    /// What URLs begin with.
    base: String,
    /// The server as people know it.
    pub(super) address: String,
    pub(super) target: Target,
    /// TLS for connections that do not go through the HTTP client.
    pub(super) tls: Arc<rustls::ClientConfig>,
    /// The name that the server's certificate must have.
    pub(super) server_name: String,
    pub(super) token: Option<reqwest::header::HeaderValue>,
}

impl std::fmt::Debug for Transport {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Transport").field("address", &self.address).finish_non_exhaustive()
    }
}

/// How a [`Transport`] is set up.
pub(super) struct Setup<'a> {
    pub(super) address: &'a str,
    /// The name that the server's certificate must have; without, the address's.
    pub(super) server_name: Option<&'a str>,
    pub(super) tls: Result<rustls::ClientConfig, TlsError>,
    pub(super) token: Option<&'a str>,
}

impl Transport {
    pub(super) fn new(setup: Setup<'_>) -> Result<Self, ClientError> {
        let address = setup.address.to_owned();
        let target = Target::parse(setup.address)?;
        let tls =
            setup.tls.map_err(|source| ClientError::Tls { address: address.clone(), source })?;
        let token = match setup.token {
            None => None,
            Some(token) => {
                let mut value =
                    reqwest::header::HeaderValue::from_str(&format!("Bearer {}", token.trim()))
                        .map_err(|_| ClientError::Token)?;
                value.set_sensitive(true);
                Some(value)
            }
        };
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(tls.clone())
            .no_proxy()
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .connect_timeout(CONNECT_TIMEOUT)
            // Shorter than servers keep idle connections, so that none is used just as it closes.
            .pool_idle_timeout(Duration::from_secs(15))
            .user_agent(concat!("plimsoll/", env!("CARGO_PKG_VERSION")));
        let (base, server_name) = match &target {
            Target::Unix(path) => {
                builder = builder.unix_socket(path.as_path());
                ("http://localhost".to_owned(), "localhost".to_owned())
            }
            Target::Tcp { host, port } => {
                let name = setup.server_name.unwrap_or(host).to_owned();
                builder = builder.dns_resolver(OneAddress { host: host.clone() }).https_only(true);
                let in_url = if name.contains(':') { format!("[{name}]") } else { name.clone() };
                (format!("https://{in_url}:{port}"), name)
            }
        };
        let http = builder
            .build()
            .map_err(|source| ClientError::Setup { address: address.clone(), source })?;
        Ok(Self { http, base, address, target, tls: Arc::new(tls), server_name, token })
    }

    /// A request to be filled in and given to one of the senders below.
    pub(super) fn request(&self, method: Method, path: &str) -> RequestBuilder {
        let builder = self.http.request(method, format!("{}{path}", self.base));
        match &self.token {
            Some(token) => builder.header(reqwest::header::AUTHORIZATION, token.clone()),
            None => builder,
        }
    }

    /// Sends a request and takes any success.
    pub(super) async fn send(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Response, ClientError> {
        let answer = tokio::time::timeout(limit, request.send())
            .await
            .map_err(|_| self.timeout(limit))?
            .map_err(|error| self.failure(error))?;
        if answer.status().is_success() {
            return Ok(answer);
        }
        let status = answer.status().as_u16();
        let foreign = || ClientError::Foreign { address: self.address.clone(), status };
        let text = tokio::time::timeout(limit, self.read(answer, ERROR_LIMIT))
            .await
            .map_err(|_| self.timeout(limit))?
            .map_err(|_| foreign())?;
        let body: ErrorBody = serde_json::from_slice(&text).map_err(|_| foreign())?;
        Err(ClientError::Api { body: Box::new(body), status })
    }

    /// Sends a request and reads a JSON value. `limit` holds for the whole of it.
    pub(super) async fn json<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<T, ClientError> {
        self.optional(request, limit).await?.map_or_else(
            || self.decode(&[], "request without content"),
            |(text, what)| self.decode(&text, &what),
        )
    }

    /// The same where the answer may be empty (204).
    pub(super) async fn json_or_nothing<T: DeserializeOwned>(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Option<T>, ClientError> {
        match self.optional(request, limit).await? {
            None => Ok(None),
            Some((text, what)) => self.decode(&text, &what).map(Some),
        }
    }

    async fn optional(
        &self,
        request: RequestBuilder,
        limit: Duration,
    ) -> Result<Option<(Vec<u8>, String)>, ClientError> {
        let whole = async {
            let answer = self.send(request, limit).await?;
            if answer.status() == reqwest::StatusCode::NO_CONTENT {
                return Ok(None);
            }
            let what = answer.url().path().to_owned();
            Ok(Some((self.read(answer, ANSWER_LIMIT).await?, what)))
        };
        tokio::time::timeout(limit, whole).await.map_err(|_| self.timeout(limit))?
    }

    fn decode<T: DeserializeOwned>(&self, text: &[u8], request: &str) -> Result<T, ClientError> {
        serde_json::from_slice(text).map_err(|source| ClientError::Decode {
            address: self.address.clone(),
            request: request.to_owned(),
            source,
        })
    }

    async fn read(&self, answer: Response, limit: u64) -> Result<Vec<u8>, ClientError> {
        let mut text = Vec::new();
        let mut stream = answer.bytes_stream();
        while let Some(chunk) = stream.next().await {
            let chunk = chunk.map_err(|error| self.failure(error))?;
            if (text.len() + chunk.len()) as u64 > limit {
                return Err(ClientError::AnswerTooLarge { address: self.address.clone(), limit });
            }
            text.extend_from_slice(&chunk);
        }
        Ok(text)
    }

    /// The body as it comes; `idle` bounds the silence between two pieces.
    pub(super) fn stream(self, answer: Response, idle: Option<Duration>) -> ByteStream {
        let chunks = answer.bytes_stream();
        Box::pin(futures_util::stream::unfold(Some((chunks, self)), move |state| async move {
            let (mut chunks, transport) = state?;
            let next = match idle {
                None => Ok(chunks.next().await),
                Some(idle) => tokio::time::timeout(idle, chunks.next())
                    .await
                    .map_err(|_| transport.timeout(idle)),
            };
            match next {
                Ok(None) => None,
                Ok(Some(Ok(chunk))) => Some((Ok(chunk), Some((chunks, transport)))),
                Ok(Some(Err(error))) => Some((Err(transport.failure(error)), None)),
                Err(error) => Some((Err(error), None)),
            }
        }))
    }

    /// Carries the body over to a file, at most `limit` bytes; tells how many there were.
    pub(super) async fn copy(
        self,
        answer: Response,
        file: &mut (impl AsyncWrite + Unpin),
        limit: u64,
    ) -> Result<u64, ClientError> {
        let address = self.address.clone();
        let mut written = 0_u64;
        let mut stream = self.stream(answer, Some(IDLE_TIMEOUT));
        let failed = |source| ClientError::File { doing: "write", source };
        while let Some(chunk) = stream.next().await {
            let chunk = chunk?;
            written += chunk.len() as u64;
            if written > limit {
                return Err(ClientError::AnswerTooLarge { address, limit });
            }
            file.write_all(&chunk).await.map_err(failed)?;
        }
        file.flush().await.map_err(failed)?;
        Ok(written)
    }

    pub(super) fn timeout(&self, limit: Duration) -> ClientError {
        ClientError::Timeout { address: self.address.clone(), limit_ms: limit.as_millis() }
    }

    pub(super) fn unreachable(
        &self,
        error: impl std::error::Error + Send + Sync + 'static,
    ) -> ClientError {
        ClientError::Unreachable {
            address: self.address.clone(),
            refused: caused_by_refusal(&error),
            source: Box::new(error),
        }
    }

    fn failure(&self, error: reqwest::Error) -> ClientError {
        if error.is_timeout() {
            self.timeout(CONNECT_TIMEOUT)
        } else {
            // The URL has the server's name in the cluster, which tells people nothing.
            self.unreachable(error.without_url())
        }
    }
}

/// A query string of what is set, or nothing.
pub(super) fn query<T: Serialize>(request: RequestBuilder, query: &T) -> RequestBuilder {
    request.query(query)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_sockets_or_hosts_with_ports() {
        let tcp = |host: &str, port| Target::Tcp { host: host.to_owned(), port };
        for (text, target) in [
            ("unix:/run/plimsoll/api.sock", Target::Unix("/run/plimsoll/api.sock".into())),
            ("https://192.0.2.1:7700", tcp("192.0.2.1", 7700)),
            ("https://[2001:db8::1]:7700/", tcp("2001:db8::1", 7700)),
            ("manager.example:1", tcp("manager.example", 1)),
        ] {
            assert_eq!(Target::parse(text).unwrap(), target);
        }
        for text in ["", "unix:", "http://192.0.2.1:80", "192.0.2.1", "x:0", "a b:1", ":1"] {
            assert!(Target::parse(text).is_err(), "{text}");
        }
    }

    #[tokio::test]
    async fn a_refused_connection_is_told_from_other_failures() {
        let free = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = free.local_addr().unwrap().port();
        let transport = |address: &str| {
            Transport::new(Setup {
                address,
                server_name: Some("manager"),
                tls: crate::tls::no_tls_config(),
                token: None,
            })
            .unwrap()
        };
        let there = transport(&format!("127.0.0.1:{port}"));
        // Something listens and ends the connection: not a refusal.
        let accept = tokio::spawn(async move { drop(free.accept().await.unwrap()) });
        let error = there.send(there.request(Method::GET, "/"), CALL_TIMEOUT).await.unwrap_err();
        assert!(!error.is_refused(), "{error:?}");
        accept.await.unwrap();
        // The listener is gone: now it is one.
        let error = there.send(there.request(Method::GET, "/"), CALL_TIMEOUT).await.unwrap_err();
        assert!(error.is_refused(), "{error:?}");
    }
}
