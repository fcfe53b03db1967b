//! A VM's serial console over a WebSocket: binary frames both ways.

use bytes::Bytes;
use futures_util::{
    SinkExt as _, StreamExt as _,
    stream::{SplitSink, SplitStream},
};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio_tungstenite::{
    WebSocketStream,
    tungstenite::{self, Message, client::IntoClientRequest as _, protocol::WebSocketConfig},
};

use super::{
    error::ClientError,
    transport::{CALL_TIMEOUT, Target, Transport},
};
use crate::ErrorBody;

trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

type Socket = WebSocketStream<Box<dyn Duplex>>;

/// The longest message of the other side.
const MESSAGE_LIMIT: usize = 1 << 20;

/// An open console.
pub struct Console {
    sender: ConsoleSender,
    receiver: ConsoleReceiver,
}

/// The way to the guest.
pub struct ConsoleSender {
    sink: SplitSink<Socket, Message>,
    address: String,
}

/// The way from the guest.
pub struct ConsoleReceiver {
    stream: SplitStream<Socket>,
    address: String,
}

impl std::fmt::Debug for Console {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Console").field("address", &self.sender.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ConsoleSender {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleSender").field("address", &self.address).finish_non_exhaustive()
    }
}

impl std::fmt::Debug for ConsoleReceiver {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ConsoleReceiver").field("address", &self.address).finish_non_exhaustive()
    }
}

impl Console {
    /// The two ways, to be used by two tasks.
    #[must_use]
    pub fn split(self) -> (ConsoleSender, ConsoleReceiver) {
        (self.sender, self.receiver)
    }

    /// See [`ConsoleSender::send`].
    ///
    /// # Errors
    /// The connection failed.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.sender.send(bytes).await
    }

    /// See [`ConsoleReceiver::receive`].
    ///
    /// # Errors
    /// The connection failed.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ClientError> {
        self.receiver.receive().await
    }
}

impl ConsoleSender {
    /// Sends bytes to the guest's serial port.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn send(&mut self, bytes: Bytes) -> Result<(), ClientError> {
        self.sink.send(Message::Binary(bytes)).await.map_err(|e| failure(&self.address, e))
    }

    /// Keeps the connection alive through what drops silent ones.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn ping(&mut self) -> Result<(), ClientError> {
        self.sink.send(Message::Ping(Bytes::new())).await.map_err(|e| failure(&self.address, e))
    }

    /// Says goodbye.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn close(&mut self) -> Result<(), ClientError> {
        self.sink.close().await.map_err(|e| failure(&self.address, e))
    }
}

impl ConsoleReceiver {
    /// The next bytes of the guest; `None`: the other side has closed.
    ///
    /// # Errors
    /// The connection failed.
    pub async fn receive(&mut self) -> Result<Option<Bytes>, ClientError> {
        loop {
            match self.stream.next().await {
                None | Some(Ok(Message::Close(_))) => return Ok(None),
                Some(Ok(Message::Binary(bytes))) => return Ok(Some(bytes)),
                Some(Ok(Message::Text(text))) => return Ok(Some(text.into())),
                Some(Ok(_)) => {}
                Some(Err(error)) => return Err(failure(&self.address, error)),
            }
        }
    }
}

fn failure(address: &str, source: tungstenite::Error) -> ClientError {
    ClientError::WebSocket { address: address.to_owned(), source: Box::new(source) }
}

impl Transport {
    /// Opens a WebSocket.
    pub(super) async fn console(&self, path: &str) -> Result<Console, ClientError> {
        tokio::time::timeout(CALL_TIMEOUT, self.open(path))
            .await
            .map_err(|_| self.timeout(CALL_TIMEOUT))?
    }

    async fn open(&self, path: &str) -> Result<Console, ClientError> {
        let (stream, host): (Box<dyn Duplex>, String) = match &self.target {
            Target::Unix(socket) => {
                let stream = tokio::net::UnixStream::connect(socket)
                    .await
                    .map_err(|error| self.unreachable(error))?;
                (Box::new(stream), "localhost".to_owned())
            }
            Target::Tcp { host, port } => {
                let name = rustls::pki_types::ServerName::try_from(self.server_name.clone())
                    .map_err(|_| ClientError::Address { address: self.address.clone() })?;
                let stream = tokio::net::TcpStream::connect((host.as_str(), *port))
                    .await
                    .map_err(|error| self.unreachable(error))?;
                let stream = tokio_rustls::TlsConnector::from(self.tls.clone())
                    .connect(name, stream)
                    .await
                    .map_err(|error| self.unreachable(error))?;
                (Box::new(stream), self.server_name.clone())
            }
        };
        let mut request = format!("ws://{host}{path}")
            .into_client_request()
            .map_err(|error| failure(&self.address, error))?;
        if let Some(token) = &self.token {
            request.headers_mut().insert(reqwest::header::AUTHORIZATION, token.clone());
        }
        let limits = WebSocketConfig::default()
            .max_message_size(Some(MESSAGE_LIMIT))
            .max_frame_size(Some(MESSAGE_LIMIT));
        let (socket, _) =
            tokio_tungstenite::client_async_with_config(request, stream, Some(limits))
                .await
                .map_err(|error| self.refusal(error))?;
        let (sink, stream) = socket.split();
        Ok(Console {
            sender: ConsoleSender { sink, address: self.address.clone() },
            receiver: ConsoleReceiver { stream, address: self.address.clone() },
        })
    }

    /// A refused upgrade carries our error body like every other refusal.
    fn refusal(&self, error: tungstenite::Error) -> ClientError {
        let tungstenite::Error::Http(answer) = error else {
            return failure(&self.address, error);
        };
        let status = answer.status().as_u16();
        answer
            .body()
            .as_deref()
            .and_then(|text| serde_json::from_slice::<ErrorBody>(text).ok())
            .map_or_else(
                || ClientError::Foreign { address: self.address.clone(), status },
                |body| ClientError::Api { body: Box::new(body), status },
            )
    }
}
