//! Devices, queues and rules of the network, made in a namespace that ends with the check.

use nix::sched::{CloneFlags, unshare};
use plimsoll_api::{
    ErrorChain,
    doctor::{CheckStatus, DoctorCheck},
};

use super::{LIMIT, finding, good, timed_out};
use crate::{
    command::{CommandError, Tool},
    net::GuardState,
};

type Steps = &'static [&'static [&'static str]];

struct Trial {
    name: &'static str,
    steps: Steps,
    works: &'static str,
    without: &'static str,
}

const TRIALS: [Trial; 4] = [
    Trial {
        name: "tun",
        steps: &[&["ip", "tuntap", "add", "dev", "plt0", "mode", "tap", "vnet_hdr"]],
        works: "a tap was made",
        without: "load the module `tun`; without it VMs have no network",
    },
    Trial {
        name: "bridge",
        steps: &[
            &["ip", "link", "add", "plb0", "type", "bridge"],
            &["ip", "link", "set", "plt0", "master", "plb0"],
        ],
        works: "a bridge was made and the tap put on it",
        without: "load the module `bridge`; without it VMs have no network",
    },
    Trial {
        name: "vxlan",
        steps: &[&[
            "ip",
            "link",
            "add",
            "plx0",
            "type",
            "vxlan",
            "id",
            "1",
            "dstport",
            "4789",
            "local",
            "127.0.0.1",
        ]],
        works: "a VXLAN device was made",
        without: "load the module `vxlan`; without it networks do not span hosts",
    },
    Trial {
        name: "network_limits",
        steps: &[
            &[
                "tc", "qdisc", "add", "dev", "plt0", "root", "tbf", "rate", "20mbit", "burst",
                "32kb", "latency", "50ms",
            ],
            &["ip", "link", "add", "pli0", "type", "ifb"],
            &["tc", "qdisc", "add", "dev", "plt0", "handle", "ffff:", "ingress"],
            &[
                "tc", "filter", "add", "dev", "plt0", "parent", "ffff:", "protocol", "all", "u32",
                "match", "u32", "0", "0", "action", "mirred", "egress", "redirect", "dev", "pli0",
            ],
        ],
        works: "tbf, ifb, u32 and mirred limit a tap in both directions",
        without: "load `sch_tbf`, `ifb`, `cls_u32` and `act_mirred`; without them network limits \
                  of VMs cannot be kept",
    },
];

const RULES: &str = "nftables";

pub(super) async fn checks() -> Vec<DoctorCheck> {
    let (answer, mut is_answered) = tokio::sync::mpsc::channel(1);
    // A thread, because a namespace belongs to a thread and must not be left on one of tokio's.
    std::thread::spawn(move || drop(answer.blocking_send(in_namespace())));
    match tokio::time::timeout(LIMIT, is_answered.recv()).await {
        Ok(Some(checks)) => checks,
        Ok(None) => broken("the check itself broke"),
        Err(_) => TRIALS.iter().map(|trial| trial.name).chain([RULES]).map(timed_out).collect(),
    }
}

fn broken(why: &str) -> Vec<DoctorCheck> {
    let check = |name| finding(name, CheckStatus::Unusable, why, Some("run as root"));
    TRIALS.iter().map(|trial| trial.name).chain([RULES]).map(check).collect()
}

fn in_namespace() -> Vec<DoctorCheck> {
    if let Err(errno) = unshare(CloneFlags::CLONE_NEWNET) {
        return broken(&format!("no network namespace can be made: {errno}"));
    }
    let runtime = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return broken(&error.to_string()),
    };
    runtime.block_on(async {
        let mut checks = Vec::new();
        for trial in &TRIALS {
            checks.push(run(trial).await);
        }
        checks.push(rules().await);
        checks
    })
}

async fn run(trial: &Trial) -> DoctorCheck {
    for step in trial.steps {
        let Some((program, arguments)) = step.split_first() else { continue };
        if let Err(error) = Tool::new(program, arguments).limit(LIMIT).run().await {
            return failed(trial, &error);
        }
    }
    good(trial.name, trial.works)
}

fn failed(trial: &Trial, error: &CommandError) -> DoctorCheck {
    if error.is_missing_program() {
        let remedy = "install iproute2";
        return finding(
            trial.name,
            CheckStatus::Missing,
            ErrorChain(error).to_string(),
            Some(remedy),
        );
    }
    finding(trial.name, CheckStatus::Unusable, ErrorChain(error).to_string(), Some(trial.without))
}

async fn rules() -> DoctorCheck {
    match crate::net::prepare_guard().await {
        GuardState::Active => good(RULES, "rules against forged addresses and for ways outside"),
        GuardState::Unavailable { reason } => finding(
            RULES,
            CheckStatus::Unusable,
            reason,
            Some(
                "install nftables and load nf_tables with its bridge, inet and nat parts; without \
                 them guests can forge addresses and no network has a way outside",
            ),
        ),
    }
}
