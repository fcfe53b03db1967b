//! What a decision says: the choice, and every refusal with its numbers.

use std::{collections::BTreeMap, fmt};

use plimsoll_model::{
    Constraint, Element, ExclusiveAgainst, HostId, Label, Name, Policy, Scope, VmId,
};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{devices::Devices, request::Unschedulable};

/// Why one host cannot hold a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "reason", rename_all = "snake_case")]
pub enum Refusal {
    /// It takes no new VMs.
    Unschedulable {
        /// Why.
        state: Unschedulable,
    },
    /// The VM must be on another host.
    Pinned {
        /// That one.
        to: HostId,
    },
    /// The VM is to leave it.
    Excluded,
    /// It has not mounted the storage pool in which the VM's disk is.
    Pool {
        /// The pool that is needed.
        need: Name,
        /// The pool that it has.
        has: Option<Name>,
    },
    /// Too little of an element is free. Amounts are in the element's base unit.
    Insufficient {
        /// The element.
        element: Element,
        /// What is asked for.
        need: u64,
        /// What is free.
        free: u64,
        /// What the host has in all.
        capacity: u64,
    },
    /// Enough of an accelerator is free in all, but not on one device (a share), or not in whole
    /// devices. Amounts are thousandths of a device.
    Fragmented {
        /// The model.
        model: Label,
        /// What is asked for.
        need: u64,
        /// What is free in all.
        free: u64,
        /// What is free on the emptiest device.
        largest: u64,
    },
    /// It has no label with this key and one of the values.
    HostLabel {
        /// The key.
        key: Label,
        /// The values that would do.
        values: Vec<Label>,
        /// The value that it has.
        has: Option<Label>,
    },
    /// Members of the group, to which the VM must be near, are elsewhere.
    Affinity {
        /// The group.
        group: Name,
        /// How near.
        scope: Scope,
        /// How many members are outside of this host, rack or zone.
        elsewhere: u32,
    },
    /// VMs that must be near to the group, to which this VM belongs, are elsewhere.
    AffinityOfPlaced {
        /// The group.
        group: Name,
        /// How near.
        scope: Scope,
        /// How many such VMs are outside of this host, rack or zone.
        elsewhere: u32,
    },
    /// Members of a group from which the VM must keep away are here.
    AntiAffinity {
        /// The group.
        group: Name,
        /// How near is too near.
        scope: Scope,
        /// How many members are in this host, rack or zone.
        members: u32,
    },
    /// VMs that must be away from the group, to which this VM belongs, are here.
    AntiAffinityOfPlaced {
        /// The group.
        group: Name,
        /// How near is too near.
        scope: Scope,
        /// How many such VMs are in this host, rack or zone.
        vms: u32,
    },
    /// The VM must be alone, and others are here.
    Exclusive {
        /// Beside whom it will not run.
        against: ExclusiveAgainst,
        /// How many such VMs are here.
        others: u32,
    },
    /// VMs that must be alone are here.
    ExclusiveOfPlaced {
        /// Beside whom they will not run.
        against: ExclusiveAgainst,
        /// How many such VMs are here.
        vms: u32,
    },
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unschedulable { state } => state.fmt(f),
            Self::Pinned { to } => write!(f, "the VM must be on {to}"),
            Self::Excluded => f.write_str("the VM is to leave it"),
            Self::Pool { need, has: Some(has) } => {
                write!(f, "needs storage pool {need}, has {has}")
            }
            Self::Pool { need, has: None } => write!(f, "needs storage pool {need}, has none"),
            Self::Insufficient { element, need, free, capacity } => write!(
                f,
                "insufficient {element}: needs {}, {} free of {}",
                element.print(*need),
                element.print(*free),
                element.print(*capacity)
            ),
            Self::Fragmented { model, need, free, largest } => {
                let print = |amount: &u64| Element::Accelerator(model.clone()).print(*amount);
                write!(
                    f,
                    "fragmented accelerator {model}: needs {}, {} free in all but at most {} on \
                     one device",
                    print(need),
                    print(free),
                    print(largest)
                )
            }
            Self::HostLabel { key, values, has } => {
                write!(f, "needs host label {key} in [")?;
                for (i, value) in values.iter().enumerate() {
                    write!(f, "{}{value}", if i > 0 { ", " } else { "" })?;
                }
                match has {
                    Some(has) => write!(f, "], has {has}"),
                    None => f.write_str("], has none"),
                }
            }
            Self::Affinity { group, scope, elsewhere } => {
                write!(f, "{elsewhere} of group {group} in another {scope}")
            }
            Self::AffinityOfPlaced { group, scope, elsewhere } => {
                write!(f, "{elsewhere} in another {scope} must be near group {group}")
            }
            Self::AntiAffinity { group, scope, members } => {
                write!(f, "{members} of group {group} in the same {scope}")
            }
            Self::AntiAffinityOfPlaced { group, scope, vms } => {
                write!(f, "{vms} in the same {scope} must be away from group {group}")
            }
            Self::Exclusive { against, others } => {
                write!(f, "{others} of other {} on the host", noun(*against))
            }
            Self::ExclusiveOfPlaced { against, vms } => {
                write!(f, "{vms} on the host tolerate no other {}", noun(*against))
            }
        }
    }
}

const fn noun(against: ExclusiveAgainst) -> &'static str {
    match against {
        ExclusiveAgainst::OtherProjects => "projects",
        ExclusiveAgainst::OtherApplications => "applications",
    }
}

/// A host and why it cannot hold the request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusedHost {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// The first reason, in the order of the filters.
    pub refusal: Refusal,
}

/// Hosts that are refused for the same kind of reason.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefusalCount {
    /// How many hosts.
    pub hosts: u32,
    /// One of them: for a shortage the one with the most free, otherwise the one of the lowest id.
    pub example: RefusedHost,
}

/// No host can hold a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, Error)]
pub struct Refusals {
    /// The VM.
    pub vm: VmId,
    /// How many hosts there are, all refused.
    pub hosts: u32,
    /// By kind of the first reason, most frequent first.
    pub counts: Vec<RefusalCount>,
}

impl fmt::Display for Refusals {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.hosts {
            0 => return f.write_str("the cluster has no hosts"),
            1 => f.write_str("the only host cannot hold it: ")?,
            hosts => write!(f, "none of {hosts} hosts can hold it: ")?,
        }
        for (i, count) in self.counts.iter().enumerate() {
            let RefusalCount { hosts, example: RefusedHost { name, refusal, .. } } = count;
            let separator = if i > 0 { "; " } else { "" };
            match (hosts, refusal) {
                (1, refusal) => write!(f, "{separator}{name} {refusal}")?,
                (_, Refusal::Insufficient { .. }) => {
                    write!(f, "{separator}{hosts} hosts, the best {name}: {refusal}")?;
                }
                _ => write!(f, "{separator}{hosts} hosts such as {name}: {refusal}")?,
            }
        }
        Ok(())
    }
}

/// Where a VM goes, and why there.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Choice {
    /// The VM.
    pub vm: VmId,
    /// Its host.
    pub host: HostId,
    /// The policy that chose.
    pub policy: Policy,
    /// The host's score by that policy, rounded to 12 decimal digits.
    pub score: f64,
    /// How many preferred rules it breaks there.
    pub broken: u32,
    /// The accelerator devices that it gets there.
    #[serde(default, skip_serializing_if = "Devices::is_empty")]
    pub devices: Devices,
}

impl Choice {
    /// The reason in a few words, such as `most-free 0.812`. How many other hosts there were is not
    /// counted: that would cost a look at each of them. [`Explanation`] has it.
    #[must_use]
    pub fn reason(&self) -> String {
        self.to_string()
    }
}

impl fmt::Display for Choice {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.policy {
            Policy::FirstFit | Policy::FfdProd | Policy::FfdSum => {
                write!(f, "{}, the first with room", self.policy)?;
            }
            _ => write!(f, "{} {:.3}", self.policy, self.score)?,
        }
        match self.broken {
            0 => Ok(()),
            1 => f.write_str(", breaks 1 preference"),
            broken => write!(f, ", breaks {broken} preferences"),
        }
    }
}

/// What was found about one host.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "verdict", rename_all = "snake_case")]
pub enum Verdict {
    /// It cannot hold the request.
    Refused {
        /// Every reason, in the order of the filters.
        reasons: Vec<Refusal>,
    },
    /// It can.
    Possible {
        /// Its place among the hosts that can, from 1 for the chosen one.
        rank: u32,
        /// Its score by the policy, rounded to 12 decimal digits.
        score: f64,
        /// The preferred rules that would be broken there.
        broken: Vec<Constraint>,
    },
}

/// One host of an explanation.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HostVerdict {
    /// The host.
    pub host: HostId,
    /// Its name.
    pub name: Name,
    /// What was found.
    #[serde(flatten)]
    pub verdict: Verdict,
}

/// How every host did.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Explanation {
    /// The VM.
    pub vm: VmId,
    /// The policy.
    pub policy: Policy,
    /// The choice, exactly as the decision makes it; none when every host is refused.
    pub choice: Option<Choice>,
    /// Every host, by id.
    pub hosts: Vec<HostVerdict>,
}

impl Explanation {
    /// The reason in a few words: the choice's, or how many hosts were refused for what.
    #[must_use]
    pub fn reason(&self) -> String {
        self.choice.as_ref().map_or_else(|| self.refusals().to_string(), Choice::reason)
    }

    /// The refused hosts, counted by the kind of their first reason.
    #[must_use]
    pub fn refusals(&self) -> Refusals {
        let mut tally = Tally::default();
        for host in &self.hosts {
            if let Verdict::Refused { reasons } = &host.verdict
                && let Some(refusal) = reasons.first()
            {
                tally.add(host.host, &host.name, refusal.clone());
            }
        }
        tally.finish(self.vm)
    }
}

/// Counts refusals by kind.
#[derive(Default)]
pub(crate) struct Tally {
    hosts: u32,
    kinds: BTreeMap<(u8, Option<Element>), RefusalCount>,
}

impl Tally {
    pub(crate) fn add(&mut self, host: HostId, name: &Name, refusal: Refusal) {
        self.hosts += 1;
        let key = match &refusal {
            Refusal::Unschedulable { .. } => (0, None),
            Refusal::Pinned { .. } => (1, None),
            Refusal::Excluded => (2, None),
            Refusal::Pool { .. } => (3, None),
            Refusal::Insufficient { element, .. } => (4, Some(element.clone())),
            Refusal::Fragmented { model, .. } => (5, Some(Element::Accelerator(model.clone()))),
            Refusal::HostLabel { .. } => (6, None),
            Refusal::Affinity { .. } => (7, None),
            Refusal::AffinityOfPlaced { .. } => (8, None),
            Refusal::AntiAffinity { .. } => (9, None),
            Refusal::AntiAffinityOfPlaced { .. } => (10, None),
            Refusal::Exclusive { .. } => (11, None),
            Refusal::ExclusiveOfPlaced { .. } => (12, None),
        };
        let free = |refusal: &Refusal| match refusal {
            Refusal::Insufficient { free, .. } => *free,
            Refusal::Fragmented { largest, .. } => *largest,
            _ => 0,
        };
        if let Some(count) = self.kinds.get_mut(&key) {
            count.hosts += 1;
            if free(&refusal) > free(&count.example.refusal) {
                count.example = RefusedHost { host, name: name.clone(), refusal };
            }
        } else {
            let example = RefusedHost { host, name: name.clone(), refusal };
            self.kinds.insert(key, RefusalCount { hosts: 1, example });
        }
    }

    pub(crate) fn finish(self, vm: VmId) -> Refusals {
        let mut counts: Vec<_> = self.kinds.into_values().collect();
        counts.sort_by_key(|count| std::cmp::Reverse(count.hosts));
        Refusals { vm, hosts: self.hosts, counts }
    }
}
