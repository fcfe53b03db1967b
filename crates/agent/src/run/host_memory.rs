//! The host's memory at an agent's start and end: swap space, and groups that hold VMs to a part.

use std::path::PathBuf;

use plimsoll_api::ErrorChain;

use crate::{
    config::AgentConfig,
    limits::{LimitsError, memory::MemoryGroups},
    swap,
};

/// Where VMs' memory is held; without, VMs run all the same.
pub(super) fn groups(parent: &str) -> Option<MemoryGroups> {
    let groups = MemoryGroups::detect(parent);
    let say = |error: &LimitsError| {
        tracing::warn!(error = %ErrorChain(error), "what is paged out of VMs may come back");
    };
    groups.inspect_err(say).ok()
}

/// Lets VMs go on that stood still at their limits while no agent ran: they could not be asked who
/// they are.
pub(super) fn relieve(groups: &MemoryGroups) {
    for vm in groups.vms().unwrap_or_default() {
        match groups.relieve(vm) {
            Ok(None) => {}
            Ok(Some(limit)) => tracing::warn!(%vm, %limit, "it stood still at its memory limit"),
            Err(error) => tracing::debug!(%vm, error = %ErrorChain(&error), "no memory limit"),
        }
    }
}

/// Makes the host's swap space as configured. VMs run without it too.
pub(super) async fn set_up_swap(config: &AgentConfig) {
    let (swap, data_dir) = (config.swap.clone(), config.data_dir.clone());
    match tokio::task::spawn_blocking(move || swap::set_up(&swap, &data_dir)).await {
        Ok(Ok(Some(area))) => {
            tracing::info!(area = %area.path.display(), size = %area.size, "swap space is there");
        }
        Ok(Ok(None)) => {}
        Ok(Err(error)) => {
            tracing::warn!(error = %ErrorChain(&error), "swap space is not as configured");
        }
        Err(error) => tracing::warn!(%error, "swap space could not be set up"),
    }
}

/// Removes the swap space that was set up, unless VMs, which go on, are held to less memory than
/// they want: all of it would come back, to be written out again by the next agent.
pub(super) async fn remove_swap(data_dir: PathBuf, groups: Option<MemoryGroups>) {
    let is_held = |groups: &MemoryGroups| {
        let vms = groups.vms().unwrap_or_default();
        vms.iter().any(|vm| groups.in_force(*vm).is_ok_and(|memory| memory.limit.is_some()))
    };
    let removed = tokio::task::spawn_blocking(move || {
        if groups.as_ref().is_some_and(is_held) {
            tracing::info!("VMs are held to less memory: the swap space stays, if there is any");
            return Ok(());
        }
        swap::remove(&data_dir)
    });
    match removed.await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(error = %ErrorChain(&error), "the swap space stays"),
        Err(error) => tracing::warn!(%error, "the swap space stays"),
    }
}
