//! Bytes both ways between two streams.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::UnixStream;
use tokio::sync::Notify;
use tokio::time::sleep;

/// What is read at once. What is copied as often as this should stay in a core's cache.
pub(super) const BUFFER: usize = 128 << 10;
/// A direction goes on for so long once the other has ended. QEMU closes the way there and waits for
/// the last word on the way back, which takes no longer than what it has sent is read. What goes on
/// beyond that has nobody at its other end: QEMU has died there, and did not here.
const REST_LIMIT: Duration = Duration::from_secs(60);

/// Carries bytes both ways until both directions have ended, or one breaks. Each end of a direction
/// is passed on.
pub(super) async fn carry(far: impl AsyncRead + AsyncWrite, near: UnixStream) -> io::Result<()> {
    carry_within(far, near, REST_LIMIT).await
}

async fn carry_within(
    far: impl AsyncRead + AsyncWrite,
    near: UnixStream,
    rest_limit: Duration,
) -> io::Result<()> {
    tokio::pin!(far);
    let ended = Arc::new(Notify::new());
    let mut near = Watched { stream: near, ended: Arc::clone(&ended) };
    let one_way = async {
        ended.notified().await;
        sleep(rest_limit).await;
    };
    tokio::select! {
        carried = tokio::io::copy_bidirectional_with_sizes(&mut far, &mut near, BUFFER, BUFFER) =>
            carried.map(drop),
        () = one_way => Err(io::ErrorKind::TimedOut.into()),
    }
}

/// Tells when a direction has ended.
struct Watched {
    stream: UnixStream,
    ended: Arc<Notify>,
}

impl AsyncRead for Watched {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let before = buffer.remaining();
        ready!(Pin::new(&mut self.stream).poll_read(context, buffer))?;
        if before > 0 && buffer.remaining() == before {
            self.ended.notify_one();
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Watched {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.ended.notify_one();
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    use super::*;

    #[tokio::test]
    async fn one_direction_alone_does_not_last() {
        let limit = Duration::from_millis(20);
        for ends_here in [true, false] {
            let (mut qemu, near) = UnixStream::pair().unwrap();
            let (mut other, far) = tokio::io::duplex(1024);
            let carried = tokio::spawn(carry_within(far, near, limit));
            if ends_here {
                qemu.write_all(b"last").await.unwrap();
                qemu.shutdown().await.unwrap();
                let mut came = Vec::new();
                other.read_to_end(&mut came).await.unwrap();
                assert_eq!(came, b"last");
            } else {
                other.shutdown().await.unwrap();
                assert_eq!(qemu.read(&mut [0; 8]).await.unwrap(), 0);
            }
            // The other direction is never ended by its own QEMU.
            let error = carried.await.unwrap().unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::TimedOut);
            assert!(!matches!(qemu.read(&mut [0; 8]).await, Ok(1..)));
        }
    }

    #[tokio::test]
    async fn a_direction_that_breaks_ends_both() {
        let (qemu, near) = UnixStream::pair().unwrap();
        let (mut other, far) = tokio::io::duplex(1024);
        let carried = tokio::spawn(carry(far, near));
        drop(qemu);
        // Nobody reads it any more.
        let written = async { while other.write_all(&[0; 4096]).await.is_ok() {} };
        written.await;
        assert!(carried.await.unwrap().is_err());
    }
}
