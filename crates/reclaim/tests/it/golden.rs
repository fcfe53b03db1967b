//! What plans look like, to people and on the wire.

use std::fmt::Write as _;

use plimsoll_model::{Amount, Bytes, Elasticity, MilliCores};
use plimsoll_reclaim::{GuestView, HostView, Memory, Plan, Pressure, Reason, State, plan};

use crate::scene::{Scene, Vm, vm_id};

const NAMES: [&str; 8] = ["database", "web", "batch", "idle", "files", "hung", "cache", "tight"];

fn burstable(min: u64, shares: u32) -> Elasticity {
    Elasticity::Burstable { memory_min: Bytes::mib(min), cpu_min: MilliCores(250), shares }
}

fn deflatable(min: u64) -> Elasticity {
    Elasticity::Deflatable {
        memory_min: Bytes::mib(min),
        cpu_min: MilliCores(250),
        shares: 100,
        utility: None,
    }
}

/// A VM that was promised 1 GiB and a core: MiB that are free, in caches, and used again of those.
fn vm(number: usize, elasticity: Elasticity, free: u64, caches: u64, active: u64) -> Vm {
    let promised = Amount { memory: Bytes::gib(1), cpu: MilliCores::cores(1) };
    let guest = GuestView {
        total: promised.memory,
        free: Bytes::mib(free),
        available: Bytes::mib(free + caches),
        active_file: Bytes::mib(active),
        ..GuestView::default()
    };
    Vm {
        id: vm_id(number),
        elasticity,
        promised,
        allocated: promised,
        resident: Bytes::mib(1024),
        guest: Some(guest),
        working_set: Some(Bytes::mib(1024 - free - caches + active)),
        growing: false,
        asked: Amount::default(),
    }
}

/// Eight VMs of 1 GiB each.
fn scene(memory_mib: u64) -> Scene {
    let mut vms = vec![
        vm(0, Elasticity::Guaranteed, 100, 300, 50),
        vm(1, burstable(512, 400), 50, 600, 400),
        vm(2, burstable(256, 100), 60, 700, 100),
        vm(3, burstable(256, 100), 80, 820, 0),
        vm(4, deflatable(700), 100, 800, 100),
        vm(5, burstable(512, 100), 0, 0, 0),
        vm(6, deflatable(256), 40, 600, 600),
        vm(7, burstable(900, 100), 40, 500, 100),
    ];
    vms[5].guest = None;
    let cut = Bytes::mib(640);
    vms[6].allocated.memory = cut;
    vms[6].resident = cut;
    vms[6].guest = vms[6].guest.map(|guest| GuestView {
        total: cut,
        free: Bytes::mib(5),
        available: Bytes::mib(200),
        pressure: Pressure { some: 185, full: 12 },
        ..guest
    });
    vms[4].asked = Amount { memory: Bytes::mib(256), cpu: MilliCores(500) };
    let resident: u64 = vms.iter().map(|vm| vm.resident.0).sum();
    let overhead = Bytes::mib(8 * 90);
    let memory = Bytes::mib(memory_mib);
    let host = HostView {
        memory,
        overhead,
        available: memory.saturating_sub(overhead).saturating_sub(Bytes(resident)),
        swap_free: Bytes::gib(1),
        cpu: MilliCores::cores(4),
        pressure: Pressure::default(),
        idle_tax: 750,
    };
    Scene { host, vms }
}

fn mib(bytes: Bytes) -> u64 {
    bytes.0 >> 20
}

fn text(scene: &Scene, plan: &Plan) -> String {
    let mut text = format!(
        "{}: {} MiB free, {} needed: {} unused, {} used ({} paged out), {} withheld, {} deferred, \
         {} lacking\n",
        plan.state,
        mib(plan.free),
        mib(plan.needed),
        mib(plan.unused),
        mib(plan.used),
        mib(plan.paged_out),
        mib(plan.withheld),
        mib(plan.deferred),
        mib(plan.shortfall),
    );
    for ((name, vm), target) in NAMES.iter().zip(&scene.vms).zip(&plan.targets) {
        let class = vm.elasticity.class();
        let size = format!("{} -> {} MiB", mib(vm.allocated.memory), mib(target.memory));
        let resident = target.resident.map_or(String::new(), |r| format!(", {} held", mib(r)));
        writeln!(
            text,
            "{name:9} {class:11} {size}{resident}, {} cores, weight {}",
            target.cpu, target.cpu_weight
        )
        .unwrap();
        for reason in &target.reasons {
            writeln!(text, "    {reason}").unwrap();
        }
    }
    text
}

#[test]
fn a_plan_says_what_it_takes_from_whom_and_why() {
    let mut texts = Vec::new();
    for (memory_mib, state) in
        [(9600, State::High), (8800, State::Soft), (8660, State::Hard), (8600, State::Low)]
    {
        let scene = scene(memory_mib);
        let (plan, _) = plan(&scene.host, &scene.views(), &Memory::default());
        assert_eq!(plan.state, state);
        texts.push(text(&scene, &plan));
    }
    insta::assert_snapshot!(texts.join("\n"));
}

#[test]
fn on_the_wire_reasons_are_typed() {
    let scene = scene(8800);
    let (plan, memory) = plan(&scene.host, &scene.views(), &Memory::default());
    insta::assert_json_snapshot!((&plan.targets[2], &plan.targets[4]));
    let written = serde_json::to_string(&memory).unwrap();
    assert_eq!(serde_json::from_str::<Memory>(&written).unwrap(), memory);
    let reasons: Vec<Reason> = plan.targets.iter().flat_map(|t| t.reasons.clone()).collect();
    let written = serde_json::to_string(&reasons).unwrap();
    assert_eq!(serde_json::from_str::<Vec<Reason>>(&written).unwrap(), reasons);
}
