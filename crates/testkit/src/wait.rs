//! Waiting for what will come, with a limit.

use std::time::Duration;

use anyhow::bail;
use tokio::time::Instant;

/// Asks `condition` until it gives something, and gives that. After `limit` it is an error that names
/// `what`.
///
/// # Errors
/// The condition was not met in time.
pub async fn wait_for<T>(
    limit: Duration,
    what: &str,
    mut condition: impl AsyncFnMut() -> Option<T>,
) -> anyhow::Result<T> {
    let end = Instant::now() + limit;
    let mut pause = Duration::from_millis(5);
    loop {
        match tokio::time::timeout_at(end, condition()).await {
            Ok(Some(value)) => return Ok(value),
            Ok(None) if Instant::now() < end => {}
            _ => bail!("waited {limit:?} in vain for {what}"),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(100));
    }
}
