//! Hosts that are all alike, and where VMs are.

use plimsoll_model::Amount;
use plimsoll_reclaim::predict::{
    Outlook, Risk,
    admit::{Room, admit},
    relieve::{Aim, relieve},
};

/// The hosts in use, numbered from 0, and the host of each VM.
#[derive(Clone, Debug)]
pub(super) struct Fleet {
    capacity: Amount,
    hosts: usize,
    at: Vec<usize>,
    migrations: u64,
}

impl Fleet {
    /// The VMs placed in their order, each on the first host that admits it, and on a new one where
    /// none does.
    pub(super) fn filled(
        capacity: Amount,
        room: &Room,
        sizes: &[Amount],
        expected: &[Outlook],
        risk: Risk,
    ) -> Self {
        let mut hosts: Vec<(Outlook, Amount)> = Vec::new();
        let mut at = Vec::new();
        for (size, outlook) in sizes.iter().zip(expected) {
            let found = hosts.iter_mut().position(|(together, committed)| {
                together.add(outlook);
                let promised = committed.saturating_add(*size);
                let admitted = admit(room, promised, together.peak(risk)).is_ok();
                if admitted {
                    *committed = promised;
                } else {
                    together.remove(outlook);
                }
                admitted
            });
            at.push(found.unwrap_or(hosts.len()));
            if found.is_none() {
                hosts.push((outlook.clone(), *size));
            }
        }
        Self { capacity, hosts: hosts.len(), at, migrations: 0 }
    }

    pub(super) const fn hosts(&self) -> usize {
        self.hosts
    }

    pub(super) const fn capacity(&self) -> Amount {
        self.capacity
    }

    /// The host of each VM.
    pub(super) fn at(&self) -> &[usize] {
        &self.at
    }

    pub(super) const fn migrations(&self) -> u64 {
        self.migrations
    }

    /// What each host is expected to be asked for.
    pub(super) fn together(&self, expected: &[Outlook], nothing: &Outlook) -> Vec<Outlook> {
        let mut hosts = vec![nothing.clone(); self.hosts];
        for (host, outlook) in self.at.iter().zip(expected) {
            hosts[*host].add(outlook);
        }
        hosts
    }

    /// Opens a host and moves VMs there with `relieve`. Whether any went there: if not the host is
    /// not kept.
    pub(super) fn open(&mut self, relieve: impl FnOnce(&mut Self)) -> bool {
        let new = self.hosts;
        self.hosts += 1;
        relieve(self);
        let used = self.at.contains(&new);
        if !used {
            self.hosts = new;
        }
        used
    }

    /// Moves VMs so that hosts are expected to be short less.
    pub(super) fn relieve(&mut self, expected: &[Outlook], aim: &Aim) {
        let hosts = vec![self.capacity; self.hosts];
        let moves = relieve(&hosts, expected, &mut self.at, aim);
        self.migrations += moves.len() as u64;
    }

    /// Empties the host that is asked for least, if all others stay below `fill` of what they have:
    /// its VMs go, the largest first, to where the least is asked for. Whether it could.
    pub(super) fn close_one(
        &mut self,
        expected: &[Outlook],
        nothing: &Outlook,
        risk: Risk,
        fill: f64,
    ) -> bool {
        if self.hosts < 2 {
            return false;
        }
        let mut hosts = self.together(expected, nothing);
        let share = |outlook: &Outlook| share(outlook.peak(risk), self.capacity);
        let Some((closing, _)) = hosts
            .iter()
            .enumerate()
            .min_by(|(_, one), (_, other)| share(one).total_cmp(&share(other)))
        else {
            return false;
        };
        let mut leaving: Vec<_> = (0..self.at.len()).filter(|vm| self.at[*vm] == closing).collect();
        leaving.sort_by(|one, other| {
            share(&expected[*other]).total_cmp(&share(&expected[*one])).then(one.cmp(other))
        });
        let mut at = self.at.clone();
        for vm in &leaving {
            let with = |host: &Outlook| {
                let mut host = host.clone();
                host.add(&expected[*vm]);
                share(&host)
            };
            let target = (0..self.hosts)
                .filter(|host| *host != closing)
                .map(|host| (with(&hosts[host]), host))
                .min_by(|(one, _), (other, _)| one.total_cmp(other));
            match target {
                Some((asked, host)) if asked <= fill => {
                    hosts[host].add(&expected[*vm]);
                    at[*vm] = host;
                }
                _ => return false,
            }
        }
        // The last host takes the number of the one that is closed.
        let last = self.hosts - 1;
        for host in &mut at {
            if *host == last {
                *host = closing;
            }
        }
        self.at = at;
        self.hosts = last;
        self.migrations += leaving.len() as u64;
        true
    }
}

/// The larger of the shares of CPU and of memory.
#[expect(clippy::cast_precision_loss, reason = "shares are rounded anyway")]
pub(super) fn share(asked: Amount, capacity: Amount) -> f64 {
    let cpu = asked.cpu.0 as f64 / capacity.cpu.0.max(1) as f64;
    let memory = asked.memory.0 as f64 / capacity.memory.0.max(1) as f64;
    cpu.max(memory)
}
