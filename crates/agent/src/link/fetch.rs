//! Asks what is wanted: a long poll, and from the beginning when what is known may be stale.

use std::sync::Arc;

use parking_lot::Mutex;
use plimsoll_api::{ClientError, ClusterClient, ErrorChain, cluster::DesiredHost};

use super::{
    LONG_POLL, Shared, Wish,
    backoff::{Backoff, LONGEST},
    state::LinkState,
};
use crate::vm::BootTime;

pub(super) struct Fetcher {
    client: ClusterClient,
    shared: Arc<Shared>,
    state: Arc<Mutex<LinkState>>,
    boot_id: String,
}

impl Fetcher {
    pub(super) const fn new(
        client: ClusterClient,
        shared: Arc<Shared>,
        state: Arc<Mutex<LinkState>>,
        boot_id: String,
    ) -> Self {
        Self { client, shared, state, boot_id }
    }

    pub(super) async fn run(self) {
        let mut refetch = self.shared.refetch.subscribe();
        let mut backoff = Backoff::default();
        // What an earlier agent knew may be stale.
        let mut after = 0;
        loop {
            let asked_at = BootTime::now();
            let answer = tokio::select! {
                // Checked first: an answer that is there already may be from before the reason.
                biased;
                Ok(()) = refetch.changed() => {
                    after = 0;
                    continue;
                }
                answer = self.client.desired(after, LONG_POLL) => answer,
            };
            match answer {
                Ok(Some(desired)) => {
                    backoff.succeeded();
                    after = desired.generation;
                    self.publish(Wish { desired: Arc::new(desired), asked_at });
                }
                Ok(None) => {
                    backoff.succeeded();
                    self.confirm(after, asked_at);
                }
                Err(error) => {
                    log_failure(&error);
                    let pause = backoff.failed(LONGEST, rand::random());
                    tokio::time::sleep(pause).await;
                }
            }
        }
    }

    fn publish(&self, wish: Wish) {
        tracing::debug!(generation = wish.desired.generation, "what is wanted has changed");
        if let Err(error) = self.state.lock().keep_desired(&wish, &self.boot_id) {
            // It is a cache: the runners keep each VM's wish themselves.
            tracing::warn!(error = %ErrorChain(&error), "cannot remember what is wanted");
        }
        self.shared.wish.send_replace(Some(wish));
    }

    /// Nothing newer than `after`: what is known is what was wanted at `asked_at` too.
    fn confirm(&self, after: u64, asked_at: BootTime) {
        let newest = self.shared.wish.borrow().clone();
        match newest {
            Some(wish) if wish.desired.generation == after => {
                self.shared.wish.send_replace(Some(Wish { asked_at, ..wish }));
            }
            // The manager has never wanted anything of this host.
            None if after == 0 => {
                self.publish(Wish { desired: Arc::new(DesiredHost::default()), asked_at });
            }
            _ => {}
        }
    }
}

fn log_failure(error: &ClientError) {
    // The reporter says the same with more to say; here it would only double the log.
    tracing::debug!(error = %ErrorChain(error), "cannot ask what is wanted");
}
