//! Warning a guest of its end. The manager says when, so that its event and this are one instant.

use std::time::Duration;

use plimsoll_api::{
    ErrorChain,
    cluster::DesiredPresent,
    guest::{Call, Notice},
};
use plimsoll_model::Timestamp;

use super::{FACTS_LIMIT, RETRY, live::Live};

/// Tells the guest when it is time and it listens. `warned` is the end that it knows of.
pub(super) async fn give(live: &Live, present: &DesiredPresent, warned: &mut Option<Timestamp>) {
    let now = Timestamp::now();
    let Next::Warn { end } = next(present, *warned, now) else { return };
    if !live.guest.is_speaking() {
        return;
    }
    let seconds = u64::try_from(end.as_second() - now.as_second()).unwrap_or(0);
    let notice = Call::Notice { notice: Notice::EndingSoon { seconds } };
    match live.guest.call(notice, FACTS_LIMIT).await {
        Ok(_) => *warned = Some(end),
        Err(error) => tracing::warn!(error = %ErrorChain(&error), "the guest was not warned"),
    }
}

/// How long there is nothing to tell. A silent guest that begins to speak wakes the runner sooner.
pub(super) fn pause(present: &DesiredPresent, warned: Option<Timestamp>) -> Duration {
    match next(present, warned, Timestamp::now()) {
        Next::Nothing => Duration::MAX,
        Next::Wait(pause) => pause,
        Next::Warn { .. } => RETRY,
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Next {
    /// There is no end, or the guest knows it.
    Nothing,
    /// It is too early.
    Wait(Duration),
    /// It is time.
    Warn { end: Timestamp },
}

fn next(present: &DesiredPresent, warned: Option<Timestamp>, now: Timestamp) -> Next {
    match (present.end_at, present.warn_at) {
        (Some(end), Some(at)) if warned != Some(end) => {
            if at <= now {
                Next::Warn { end }
            } else {
                Next::Wait(at.duration_since(now).unsigned_abs())
            }
        }
        _ => Next::Nothing,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manager_says_when() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let present = ending("1970-01-01T00:16:40Z", "1970-01-01T00:15:40Z");
        let end = at(1000);
        assert_eq!(next(&present, None, at(640)), Next::Wait(Duration::from_secs(300)));
        assert_eq!(next(&present, None, at(939)), Next::Wait(Duration::from_secs(1)));
        assert_eq!(next(&present, None, at(940)), Next::Warn { end });
        assert_eq!(next(&present, None, at(2000)), Next::Warn { end }, "late, not never");
        assert_eq!(next(&present, Some(end), at(940)), Next::Nothing, "it knows");
        assert_eq!(next(&present, Some(at(900)), at(940)), Next::Warn { end }, "a new end");
    }

    fn ending(end_at: &str, warn_at: &str) -> DesiredPresent {
        serde_json::from_value(serde_json::json!({
            "generation": 1,
            "power": "running",
            "shutdown_grace_ms": 0,
            "name": "a",
            "project": plimsoll_model::ProjectId(uuid::Uuid::nil()),
            "project_name": "p",
            "resources": { "cpu": 1000, "memory": 1024, "disk": 1024 },
            "image": { "files": [], "disk_format": "raw", "append": null, "guest_agent": true },
            "disk": "image",
            "interfaces": [],
            "user_data": null,
            "ssh_keys": [],
            "restart": "never",
            "fenced_by_lease": false,
            "reboots": 0,
            "end_at": end_at,
            "warn_at": warn_at,
        }))
        .expect("as the manager sends it")
    }
}
