//! Hands what is wanted to the VMs' tasks and the networks, as often as it takes.

use std::{sync::Arc, time::Duration};

use plimsoll_api::ErrorChain;
use tokio::time::{sleep, timeout};

use super::{NetworkSet, Shared, VmSet, Wish};

/// Everything is applied again after so long even when nothing has changed: what somebody has
/// broken by hand comes back.
const REFRESH: Duration = Duration::from_secs(30);
/// And after so long when a part failed.
const RETRY: Duration = Duration::from_secs(2);
/// The networks of a host with many, one after the other, on a slow machine.
const NETWORK_LIMIT: Duration = Duration::from_secs(120);

pub(super) struct Applier {
    shared: Arc<Shared>,
    vms: Arc<dyn VmSet>,
    networks: Arc<dyn NetworkSet>,
}

impl Applier {
    pub(super) fn new(
        shared: Arc<Shared>,
        vms: Arc<dyn VmSet>,
        networks: Arc<dyn NetworkSet>,
    ) -> Self {
        Self { shared, vms, networks }
    }

    pub(super) async fn run(self) {
        let mut wishes = self.shared.wish.subscribe();
        loop {
            let wish = wishes.borrow_and_update().clone();
            let complete = match wish {
                Some(wish) => {
                    let handed_on = self.hand_on(&wish);
                    // A network that hangs must not keep a newer wish waiting.
                    tokio::select! {
                        Ok(()) = wishes.changed() => continue,
                        settled = self.settle() => handed_on && settled,
                    }
                }
                None => true,
            };
            let pause = if complete { REFRESH } else { RETRY };
            tokio::select! {
                Ok(()) = wishes.changed() => {}
                () = sleep(pause) => {}
            }
        }
    }

    /// Networks first: a VM that starts finds its own. Returns whether all could be handed on.
    fn hand_on(&self, wish: &Wish) -> bool {
        let known = self.networks.know(&wish.desired.networks);
        if let Err(error) = &known {
            tracing::warn!(error = %ErrorChain(&**error), "cannot remember the networks");
        }
        self.vms.want(&wish.desired.vms, wish.asked_at);
        self.shared.applied.send_replace(wish.desired.generation);
        known.is_ok()
    }

    async fn settle(&self) -> bool {
        let Ok(failures) = timeout(NETWORK_LIMIT, self.networks.settle()).await else {
            tracing::warn!(limit_ms = NETWORK_LIMIT.as_millis(), "the networks take too long");
            return false;
        };
        for (vni, error) in &failures {
            tracing::warn!(vni, error = %ErrorChain(&**error), "a network is not as wanted");
        }
        failures.is_empty()
    }
}
