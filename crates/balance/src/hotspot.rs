//! Which hosts are overloaded, and which VMs are short of something.

use std::time::Duration;

use plimsoll_model::{HostId, VmId};

use crate::{
    balancer::{Balancer, Situation, VmRecord},
    plan::{Hotspot, Need, Shortage, Symptom},
    resource::{Amounts, Permille, Resource},
    series::Marks,
};

/// Above this share of its CPU a VM that is slow is short of CPU.
const BUSY: f64 = 0.8;

/// The largest share that a volume is reckoned with: at 1 it would be infinite.
const FULL: f64 = 0.99;

/// Sandpiper's volume: the product of 1 / (1 - share) over all that is measured.
pub(crate) fn volume(shares: &Amounts) -> f64 {
    shares.iter().flatten().map(|share| 1.0 / (1.0 - share.clamp(0.0, FULL))).product()
}

/// Of each resource what is asked for, as a share of what there is.
pub(crate) fn shares(asked: &Amounts, capacity: &Amounts) -> Amounts {
    let mut shares = *asked;
    for (share, capacity) in shares.iter_mut().zip(capacity) {
        *share = share.zip(*capacity).map(|(asked, capacity)| asked / capacity);
    }
    shares
}

impl Balancer {
    /// The hosts that are overloaded, the worst first.
    #[must_use]
    pub fn hotspots(&self, situation: &Situation<'_>) -> Vec<Hotspot> {
        let hosts = self.hosts.keys().filter(|host| situation.cluster.host(**host).is_some());
        let mut found: Vec<_> = hosts.filter_map(|host| self.hotspot(*host, situation)).collect();
        found.sort_by(|a, b| b.volume.total_cmp(&a.volume).then(a.host.cmp(&b.host)));
        found
    }

    fn hotspot(&self, host: HostId, situation: &Situation<'_>) -> Option<Hotspot> {
        let record = self.hosts.get(&host)?;
        let settings = &self.settings;
        let now = shares(&record.series.last(), &record.capacity);
        let next = shares(&record.series.next(), &record.capacity);
        let mut short = Vec::new();
        let mut emergency = false;
        for resource in Resource::ALL {
            let at = resource.index();
            let high_samples = record.marks[at].of_last(settings.samples);
            let threshold = settings.threshold_of(resource);
            let (Some(now), Some(predicted)) = (now[at], next[at]) else { continue };
            if high_samples >= settings.high_samples && predicted > threshold.share() {
                let (now, predicted) = (Permille::of(now), Permille::of(predicted));
                emergency |= predicted >= settings.emergency;
                short.push(Shortage { resource, now, predicted, threshold, high_samples });
            }
        }
        let worst = short.iter().max_by_key(|shortage| shortage.predicted)?.resource;
        Some(Hotspot {
            host,
            short,
            volume: (volume(&next) * 1000.0).round() / 1000.0,
            emergency,
            lasts_s: record.overloads.age(situation.now).as_secs(),
            short_for_s: self.short_for(host, worst, situation).map(|left| left.as_secs()),
        })
    }

    /// How much longer a host's overload lasts, if it is expected to be short: as the past ones of the
    /// VM tell that asks for the most of what is short, and those of the host.
    fn short_for(
        &self,
        host: HostId,
        worst: Resource,
        situation: &Situation<'_>,
    ) -> Option<Duration> {
        let short = self.settings.short_overload;
        let of_host = self.hosts.get(&host)?.overloads.left_if_short(situation.now, short)?;
        let asks = |vm: &VmId| {
            let record = self.vms.get(vm)?;
            let asked = record.series.next()[worst.index()]?;
            record.overloads.is_present().then_some((asked, record))
        };
        let culprit = situation.cluster.vms_on(host).filter_map(|vm| asks(&vm));
        let culprit = culprit.max_by(|a, b| a.0.total_cmp(&b.0));
        match culprit {
            Some((_, vm)) => {
                let of_vm = vm.overloads.left_if_short(situation.now, short)?;
                Some(of_host.max(of_vm))
            }
            None => Some(of_host),
        }
    }

    /// The VMs that are short of something although their hosts may be idle, by id.
    #[must_use]
    pub fn needs(&self, situation: &Situation<'_>) -> Vec<Need> {
        let vms = self.vms.iter().filter_map(|(vm, record)| self.need(*vm, record, situation));
        vms.collect()
    }

    fn need(&self, vm: VmId, record: &VmRecord, situation: &Situation<'_>) -> Option<Need> {
        let settings = &self.settings;
        let many =
            |marks: Marks| marks.last() && marks.of_last(settings.samples) >= settings.high_samples;
        let (slow, pinched) = (many(record.slow), many(record.pinched));
        if !slow && !pinched {
            return None;
        }
        let host = situation.cluster.placed(vm)?.host;
        let state = situation.vms.get(&vm)?;
        let symptom = match record.last.guest.latency {
            Some(latency) if slow => Symptom::Latency {
                seen_us: microseconds(latency.seen),
                objective_us: microseconds(latency.objective),
            },
            _ => Symptom::MemoryPressure,
        };
        let waits = record.last.guest.cpu_pressure.is_some_and(|p| p >= settings.pressure);
        let cpu = record.series.last()[Resource::Cpu.index()];
        let busy = cpu.is_some_and(|cpu| cpu > state.has.cpu.0 as f64 * BUSY);
        let short = if pinched {
            Some(Resource::Memory)
        } else if waits || busy {
            Some(Resource::Cpu)
        } else {
            None
        };
        Some(Need { vm, host, symptom, short })
    }
}

fn microseconds(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}
