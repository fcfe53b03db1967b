//! A VM's serial console over a WebSocket.

use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, Utf8Bytes, WebSocket, close_code};
use bytes::Bytes;
use tokio::time::{Instant, MissedTickBehavior, interval, timeout};
use tokio_util::sync::CancellationToken;

use crate::vm::console::{ConsoleError, ConsoleSession};

/// What a person or a paste types at once.
pub(super) const LARGEST_MESSAGE: usize = 64 << 10;
/// A reader that takes nothing for so long is cut off: what it misses is in the log.
const SEND_LIMIT: Duration = Duration::from_secs(10);
const PING_EVERY: Duration = Duration::from_secs(20);
/// Without any sign of life.
const SILENCE_LIMIT: Duration = Duration::from_secs(70);

const READ_ONLY: &str = "\r\n[another session types into this console; you can only watch]\r\n";

/// Serves one session until one of the two ends.
pub(super) async fn serve(
    mut socket: WebSocket,
    mut session: ConsoleSession,
    shutdown: CancellationToken,
) {
    let mut pings = interval(PING_EVERY);
    pings.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut heard = Instant::now();
    let mut told = false;
    let (code, reason) = loop {
        let message = tokio::select! {
            piece = session.read() => match piece {
                Some(piece) => Message::Binary(piece),
                None => break (close_code::NORMAL, "the VM has ended"),
            },
            message = socket.recv() => {
                heard = Instant::now();
                let typed: Bytes = match message {
                    Some(Ok(Message::Binary(bytes))) => bytes,
                    Some(Ok(Message::Text(text))) => text.into(),
                    Some(Ok(Message::Ping(_) | Message::Pong(_))) => continue,
                    Some(Ok(Message::Close(_)) | Err(_)) | None => return,
                };
                match session.write(typed).await {
                    Ok(()) => continue,
                    Err(ConsoleError::ReadOnly) if told => continue,
                    Err(ConsoleError::ReadOnly) => {
                        told = true;
                        Message::Binary(Bytes::from_static(READ_ONLY.as_bytes()))
                    }
                    Err(ConsoleError::Stuck) => {
                        break (close_code::ERROR, "the guest does not take the input");
                    }
                    Err(_) => break (close_code::NORMAL, "the VM has ended"),
                }
            }
            _ = pings.tick() => {
                if heard.elapsed() > SILENCE_LIMIT {
                    return;
                }
                Message::Ping(Bytes::new())
            }
            () = shutdown.cancelled() => break (close_code::RESTART, "the agent ends"),
        };
        match timeout(SEND_LIMIT, socket.send(message)).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) | Err(_) => return,
        }
    };
    let close = CloseFrame { code, reason: Utf8Bytes::from_static(reason) };
    // Whoever does not take the farewell has left already.
    let _ = timeout(SEND_LIMIT, socket.send(Message::Close(Some(close)))).await;
}
