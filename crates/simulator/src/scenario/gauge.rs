//! What is measured of a run: a second set of books beside the cluster's, kept so that a sample
//! costs a few additions for each host, also of a million.

use std::collections::BTreeMap;

use plimsoll_model::{Accelerators, Element, Label, Resources};
use plimsoll_placement::{Devices, HostState};

use super::draw::float;
use crate::report::percent;

/// One device in thousandths of itself.
const WHOLE: u64 = 1000;

/// What is known of one host.
struct Row {
    capacity: [u64; 6],
    committed: [u64; 6],
    /// What is promised of each device, by model.
    devices: BTreeMap<Label, Vec<u64>>,
    vms: u32,
}

impl Row {
    fn free(&self, element: &Element) -> u64 {
        match scalar(element) {
            Some(at) => self.capacity[at].saturating_sub(self.committed[at]),
            None => match element {
                Element::Accelerator(model) => self.devices.get(model).map_or(0, |devices| {
                    devices.iter().map(|used| WHOLE.saturating_sub(*used)).sum()
                }),
                _ => 0,
            },
        }
    }

    /// Whether it has room for so much, whatever else is asked of a place.
    fn holds(&self, demand: &Resources) -> bool {
        let scalars = demand.scalars().into_iter().enumerate().all(|(at, need)| {
            // A host that declares no bandwidth or rate does not account for it.
            (at >= 3 && self.capacity[at] == 0)
                || need <= self.capacity[at].saturating_sub(self.committed[at])
        });
        scalars && self.holds_devices(&demand.accelerators)
    }

    fn holds_devices(&self, demand: &Accelerators) -> bool {
        demand.0.iter().all(|(model, need)| {
            let Some(devices) = self.devices.get(model) else { return false };
            if *need < WHOLE {
                return devices.iter().any(|used| used + need <= WHOLE);
            }
            let whole = devices.iter().filter(|used| **used == 0).count();
            whole as u64 >= need / WHOLE
        })
    }
}

/// The place of a scalar element in [`Element::SCALARS`].
fn scalar(element: &Element) -> Option<usize> {
    Element::SCALARS.iter().position(|scalar| scalar == element)
}

/// An element that is watched.
struct Watched {
    element: Element,
    capacity: u128,
    committed: u128,
    /// The sum over time, since the warm-up, of what is committed: base units times milliseconds.
    integral: u128,
}

/// The books.
pub(super) struct Gauge {
    rows: Vec<Row>,
    watched: Vec<Watched>,
    pub(super) hosts_in_use: u32,
    pub(super) vms: u64,
    pub(super) peak_hosts: u32,
    pub(super) peak_vms: u64,
    hosts_integral: u128,
    /// How much time the sums are over, in milliseconds.
    measured_ms: u64,
}

impl Gauge {
    /// Empty hosts, numbered from 1 without gaps.
    pub(super) fn new(hosts: impl Iterator<Item = HostState>, elements: &[Element]) -> Self {
        let rows: Vec<Row> = hosts
            .map(|host| Row {
                capacity: host.capacity.scalars(),
                committed: [0; 6],
                devices: host
                    .capacity
                    .accelerators
                    .0
                    .iter()
                    .map(|(model, amount)| {
                        let count = usize::try_from(amount / WHOLE).unwrap_or(0);
                        (model.clone(), vec![0; count])
                    })
                    .collect(),
                vms: 0,
            })
            .collect();
        let watched = elements.iter().map(|element| Watched {
            element: element.clone(),
            capacity: rows.iter().map(|row| u128::from(row.free(element))).sum(),
            committed: 0,
            integral: 0,
        });
        let watched = watched.collect();
        Self {
            rows,
            watched,
            hosts_in_use: 0,
            vms: 0,
            peak_hosts: 0,
            peak_vms: 0,
            hosts_integral: 0,
            measured_ms: 0,
        }
    }

    /// So much time passes in which nothing changes, after the warm-up.
    pub(super) fn passes(&mut self, milliseconds: u64) {
        for watched in &mut self.watched {
            watched.integral += watched.committed * u128::from(milliseconds);
        }
        self.hosts_integral += u128::from(self.hosts_in_use) * u128::from(milliseconds);
        self.measured_ms += milliseconds;
        self.peak();
    }

    /// Looks whether there was never more.
    pub(super) fn peak(&mut self) {
        self.peak_hosts = self.peak_hosts.max(self.hosts_in_use);
        self.peak_vms = self.peak_vms.max(self.vms);
    }

    /// A VM came to this place in the list of hosts.
    pub(super) fn came(&mut self, host: usize, demand: &Resources, devices: &Devices) {
        self.change(host, demand, devices, |amount, by| amount.saturating_add(by));
        let row = &mut self.rows[host];
        self.hosts_in_use += u32::from(row.vms == 0);
        row.vms += 1;
        self.vms += 1;
    }

    /// The opposite of [`Self::came`].
    pub(super) fn left(&mut self, host: usize, demand: &Resources, devices: &Devices) {
        self.change(host, demand, devices, |amount, by| amount.saturating_sub(by));
        let row = &mut self.rows[host];
        row.vms -= 1;
        self.hosts_in_use -= u32::from(row.vms == 0);
        self.vms -= 1;
    }

    fn change(
        &mut self,
        host: usize,
        demand: &Resources,
        devices: &Devices,
        with: impl Fn(u64, u64) -> u64,
    ) {
        let row = &mut self.rows[host];
        let before: Vec<u64> = self.watched.iter().map(|w| row.free(&w.element)).collect();
        for (at, need) in demand.scalars().into_iter().enumerate() {
            row.committed[at] = with(row.committed[at], need);
        }
        for (model, shares) in &devices.0 {
            let Some(used) = row.devices.get_mut(model) else { continue };
            for share in shares {
                if let Some(used) = used.get_mut(share.device as usize) {
                    *used = with(*used, share.thousandths);
                }
            }
        }
        // By what is free, so that what a host does not account for is not counted.
        for (watched, before) in self.watched.iter_mut().zip(before) {
            let after = row.free(&watched.element);
            watched.committed = watched.committed + u128::from(before) - u128::from(after);
        }
    }

    /// How much of each watched element is committed now, in percent of what there is.
    pub(super) fn committed_percent(&self) -> impl Iterator<Item = f64> + '_ {
        self.watched.iter().map(|watched| share(watched.committed, watched.capacity))
    }

    /// The same as a mean over the time since the warm-up.
    pub(super) fn mean_percent(&self) -> impl Iterator<Item = f64> + '_ {
        self.watched.iter().map(|watched| {
            share(watched.integral, watched.capacity.saturating_mul(u128::from(self.measured_ms)))
        })
    }

    /// How many hosts were in use in the mean.
    pub(super) fn mean_hosts(&self) -> f64 {
        if self.measured_ms == 0 {
            return 0.0;
        }
        ratio(self.hosts_integral, u128::from(self.measured_ms))
    }

    /// How much of what is free lies on hosts that have no room for `demand`, in percent: of each
    /// element that it asks for, then the mean of these. 0 where nothing is free.
    pub(super) fn fragmented_percent(&self, demand: &Resources) -> f64 {
        let asked: Vec<Element> = demand
            .elements()
            .filter(|(_, amount)| *amount > 0)
            .map(|(element, _)| element)
            .collect();
        let mut sums = vec![(0_u128, 0_u128); asked.len()];
        for row in &self.rows {
            let holds = row.holds(demand);
            for (element, (stranded, free)) in asked.iter().zip(&mut sums) {
                let here = u128::from(row.free(element));
                *free += here;
                if !holds {
                    *stranded += here;
                }
            }
        }
        let sum: f64 = sums.iter().map(|(stranded, free)| share(*stranded, *free)).sum();
        percent(sum / float(asked.len().max(1) as u64))
    }
}

#[expect(clippy::cast_precision_loss, reason = "a ratio for people needs no more than 53 bits")]
fn ratio(part: u128, whole: u128) -> f64 {
    part as f64 / whole as f64
}

/// In percent; 0 of nothing.
fn share(part: u128, whole: u128) -> f64 {
    if whole == 0 { 0.0 } else { percent(100.0 * ratio(part, whole)) }
}

/// Whether an empty host of this capacity has room for so much.
pub(super) fn empty_holds(capacity: &Resources, demand: &Resources) -> bool {
    let devices = |model: &Label| capacity.accelerators.get(model);
    let scalars = demand.scalars().into_iter().zip(capacity.scalars()).enumerate();
    scalars.into_iter().all(|(at, (need, has))| (at >= 3 && has == 0) || need <= has)
        && demand.accelerators.0.iter().all(|(model, need)| *need <= devices(model))
}

#[cfg(test)]
mod tests {
    use std::{ops::ControlFlow, path::Path};

    use plimsoll_model::{Policy, ProjectId, VmId};
    use plimsoll_placement::{Choice, Cluster, Placed, Request, Verdict};
    use uuid::Uuid;

    use super::*;
    use crate::{
        engine::{self, Observer, SimTime},
        scenario::Scenario,
    };

    /// Compares the books with the cluster whenever time moves on.
    struct Compare<'a> {
        gauge: Gauge,
        scenario: &'a Scenario,
        elements: &'a [Element],
        compared: u32,
    }

    impl Compare<'_> {
        fn compare(&self, cluster: &Cluster) {
            for (row, host) in self.gauge.rows.iter().zip(cluster.hosts()) {
                let free = cluster.free(host.id);
                for element in self.elements {
                    assert_eq!(row.free(element), free.get(element), "{element} of {}", host.name);
                }
                assert_eq!(row.vms as usize, cluster.vms_on(host.id).count());
            }
            for flavor in self.scenario.workloads.iter().flat_map(|workload| &workload.flavors) {
                let demand = flavor.middle();
                let (vm, project) = (VmId(Uuid::nil()), ProjectId(Uuid::nil()));
                let request = Request::new(vm, project, demand.clone());
                let explanation = cluster.explain(&request, Policy::FirstFit);
                for (row, host) in self.gauge.rows.iter().zip(&explanation.hosts) {
                    // Neighbours that want to be alone are not a lack of room.
                    let room = match &host.verdict {
                        Verdict::Possible { .. } => true,
                        Verdict::Refused { reasons } => !reasons.iter().any(|reason| {
                            use plimsoll_placement::Refusal::{Fragmented, Insufficient};
                            matches!(reason, Insufficient { .. } | Fragmented { .. })
                        }),
                    };
                    assert_eq!(row.holds(&demand), room, "{demand:?} on {}", host.name);
                }
            }
        }
    }

    impl Observer for Compare<'_> {
        fn advanced(&mut self, _: SimTime, cluster: &Cluster) -> ControlFlow<()> {
            self.compared += 1;
            if self.compared.is_multiple_of(50) {
                self.compare(cluster);
            }
            ControlFlow::Continue(())
        }

        fn placed(&mut self, _: SimTime, request: &Request, choice: &Choice) -> ControlFlow<()> {
            self.gauge.came(choice.host.0 as usize - 1, &request.demand, &choice.devices);
            ControlFlow::Continue(())
        }

        fn departed(&mut self, _: SimTime, placed: &Placed) -> ControlFlow<()> {
            self.gauge.left(placed.host.0 as usize - 1, &placed.request.demand, &placed.devices);
            ControlFlow::Continue(())
        }
    }

    #[test]
    fn the_books_agree_with_the_cluster() {
        let text = include_str!("../../../../examples/cluster.toml")
            .replace("duration = \"14d\"", "duration = \"4d\"");
        let scenario = Scenario::parse(Path::new("cluster.toml"), &text).unwrap();
        let model = Element::Accelerator("a100".parse().unwrap());
        let elements: Vec<_> = Element::SCALARS.into_iter().chain([model]).collect();
        let mut cluster = Cluster::new();
        scenario.hosts().for_each(|host| cluster.upsert_host(host));
        let mut compare = Compare {
            gauge: Gauge::new(scenario.hosts(), &elements),
            scenario: &scenario,
            elements: &elements,
            compared: 0,
        };
        let end = Some(scenario.duration.after_start());
        let workload = scenario.workload();
        engine::run(&mut cluster, Policy::Cosine, workload, end, &mut compare).unwrap();
        compare.compare(&cluster);
        let in_use = cluster.hosts().filter(|host| cluster.vms_on(host.id).count() > 0).count();
        assert_eq!(compare.gauge.hosts_in_use as usize, in_use);
        assert!(compare.compared > 5000, "{}", compare.compared);
    }

    #[test]
    fn what_is_free_where_a_vm_has_no_room_is_fragmented() {
        let text = "name = \"x\"\nduration = \"1d\"\npolicies = [\"first-fit\"]\n\
                    [[cluster.host]]\nname = \"h\"\ncount = 2\n\
                    capacity = { cpu = 8, memory = \"32GiB\" }\n\
                    [[workload]]\nname = \"w\"\narrivals = { once = 1 }\nlifetime = \"forever\"\n\
                    [[workload.flavor]]\nname = \"f\"\nresources = { cpu = 4, memory = \"24GiB\" }";
        let scenario = Scenario::parse(Path::new("x"), text).unwrap();
        let mut gauge = Gauge::new(scenario.hosts(), &[Element::Cpu, Element::Memory]);
        let demand = scenario.workloads[0].flavors[0].most();
        assert!(gauge.fragmented_percent(&demand).abs() < 1e-9);
        gauge.came(0, &demand, &Devices::default());
        // Of 12 free cores 4 lie on the first host, of 40 GiB 8: the mean of 33.3 and 20 %.
        assert!((gauge.fragmented_percent(&demand) - 26.667).abs() < 0.01);
        let committed: Vec<f64> = gauge.committed_percent().collect();
        assert_eq!(committed, [25.0, 37.5]);
        gauge.passes(1000);
        gauge.left(0, &demand, &Devices::default());
        gauge.passes(3000);
        assert_eq!(gauge.mean_percent().collect::<Vec<_>>(), [6.25, 9.375]);
        assert!((gauge.mean_hosts() - 0.25).abs() < 1e-9 && gauge.peak_hosts == 1);
    }
}
