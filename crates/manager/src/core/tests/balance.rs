//! What agents measure beside CPU and memory, and what comes of it.

use std::time::Duration;

use plimsoll_api::{
    cluster::{HostRates, HostUsage, MemoryStall, VmRates, VmUsage},
    v1::{BalanceAction, BalanceMode, BalanceView, SetSettingsRequest},
};
use plimsoll_model::{Amount, BitsPerSecond, Bytes, BytesPerSecond, MilliCores, StoragePool, VmId};
use proptest::prelude::*;

use super::super::rig::{Rig, SimHost, request, resources, spec};
use crate::app;

const GIGABIT: BitsPerSecond = BitsPerSecond(1_000_000_000);

fn known() -> HostRates {
    HostRates {
        network_capacity: Some(GIGABIT),
        disk_capacity: Some(BytesPerSecond(100 << 20)),
        ..HostRates::default()
    }
}

fn idle() -> VmRates {
    VmRates {
        cpu_wait: Some(MilliCores(0)),
        cpu_throttled: Some(MilliCores(0)),
        swapped_in: Some(BytesPerSecond(0)),
        disk_read: Some(BytesPerSecond(0)),
        disk_written: Some(BytesPerSecond(0)),
        sent: Some(BitsPerSecond(0)),
        received: Some(BitsPerSecond(0)),
    }
}

/// Two VMs on the first of two hosts, after a while in which each does so much, the first host can
/// do so much and the second so much.
async fn after(each: VmRates, can: [HostRates; 2], cpu: u64) -> BalanceView {
    let rig = Rig::new().await;
    let settings = SetSettingsRequest {
        balance_mode: Some(BalanceMode::Advise),
        ..SetSettingsRequest::default()
    };
    app::settings_set(&rig.core, &rig.admin, settings).await.unwrap();
    let mut hosts: Vec<SimHost> = vec![rig.host("h1", StoragePool::Local).await];
    rig.create(request("a", Some(2), spec(resources(4000, 256)))).await.unwrap();
    hosts[0].exchange(&rig.core).await;
    hosts.push(rig.host("h2", StoragePool::Local).await);
    for (host, can) in hosts.iter_mut().zip(can) {
        host.does = can;
        host.each_does = each;
        host.each_uses = Amount { cpu: MilliCores(cpu), memory: Bytes::mib(100) };
    }
    for _ in 0..8 {
        rig.clock.advance(Duration::from_secs(2));
        for host in &mut hosts {
            host.exchange(&rig.core).await;
        }
        rig.core.balance().reconcile(rig.core.clone()).await.unwrap();
    }
    app::balance_show(&rig.core, &rig.admin).unwrap()
}

fn moves(view: &BalanceView) -> usize {
    let steps = &view.plan.as_ref().expect("a plan was made").steps;
    steps.iter().filter(|step| matches!(step.what, BalanceAction::Move { .. })).count()
}

#[tokio::test]
async fn a_host_with_too_much_traffic_or_too_much_to_write_loses_a_vm() {
    let sends = VmRates { sent: Some(BitsPerSecond(450_000_000)), ..idle() };
    let writes = VmRates { disk_written: Some(BytesPerSecond(45 << 20)), ..idle() };
    for (each, what) in [(sends, "network"), (writes, "disk bandwidth")] {
        let view = after(each, [known(), known()], 100).await;
        assert_eq!(moves(&view), 1, "{view:#?}");
        let plan = view.plan.unwrap();
        assert!(plan.findings[0].contains(&format!("90.0 % of its {what}")), "{plan:#?}");
        assert!(plan.steps[0].reason.contains(what), "{plan:#?}");
        assert!(view.hosts[0].hot && !view.hosts[1].hot);
    }
    assert_eq!(moves(&after(idle(), [known(), known()], 100).await), 0);
}

#[tokio::test]
async fn what_is_not_known_or_not_measured_is_not_guessed() {
    let unknown = HostRates::default();
    let sends = VmRates { sent: Some(BitsPerSecond(450_000_000)), ..idle() };
    // How fast the source's network is, is not known: no share of it can be too much.
    let view = after(sends, [unknown, known()], 100).await;
    assert_eq!((moves(&view), view.hosts[0].network_percent), (0, None), "{view:#?}");
    // It is, but one direction is not measured.
    let half = VmRates { received: None, ..sends };
    let view = after(half, [known(), known()], 100).await;
    assert_eq!((moves(&view), view.hosts[0].network_percent), (0, None), "{view:#?}");
    assert_eq!(view.hosts[0].disk_percent, Some(0.0));
}

#[tokio::test]
async fn a_host_whose_vms_wait_is_hot_and_one_whose_vms_are_at_their_own_limit_is_not() {
    // Three of eight cores are used either way, and all that the VMs may use is wanted.
    let waits = VmRates { cpu_wait: Some(MilliCores(2500)), ..idle() };
    let view = after(waits, [known(), known()], 1500).await;
    assert_eq!((view.hosts[0].cpu_percent, moves(&view)), (37.5, 1), "{view:#?}");
    assert_eq!(view.hosts[0].cpu_wait_percent, Some(62.5));
    assert!(view.hosts[0].hot);
    let held = VmRates { cpu_throttled: Some(MilliCores(1700)), ..idle() };
    let view = after(held, [known(), known()], 1500).await;
    assert_eq!((view.hosts[0].hot, moves(&view)), (false, 0));
    let left = view.plan.unwrap().left.join("\n");
    assert!(left.contains("its own limit holds back 1700m cores"), "{left}");
    assert!(left.contains("no reason to move it"), "{left}");
}

fn figure() -> impl Strategy<Value = u64> {
    prop_oneof![Just(0), Just(u64::MAX), Just(1 << 50), Just((1 << 50) + 1), 0..1_000_000_u64]
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, ..ProptestConfig::default() })]

    /// Figures that no machine can have are left out; the report, and the host's lease with it, count.
    #[test]
    fn absurd_figures_are_left_out(figures in prop::collection::vec(figure(), 14), stall in 0..2000_u16) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let rig = Rig::new().await;
            let mut host = rig.host("h1", StoragePool::Local).await;
            let mut report = host.report();
            let bytes = |at: usize| Some(BytesPerSecond(figures[at]));
            let bits = |at: usize| Some(BitsPerSecond(figures[at]));
            let stall = MemoryStall { some_permille: stall, full_permille: 0 };
            report.usage = HostUsage {
                memory: Bytes(figures[0]),
                rates: HostRates {
                    memory_stall: Some(stall),
                    swapped_in: bytes(1),
                    swapped_out: bytes(2),
                    received: bits(3),
                    sent: bits(4),
                    network_capacity: bits(5),
                    disk_capacity: bytes(6),
                },
                ..HostUsage::default()
            };
            report.vm_usage = vec![VmUsage {
                vm: VmId(uuid::Uuid::from_u128(7)),
                cpu: MilliCores(figures[7].min(1_000_000)),
                memory: Bytes(figures[8]),
                resident: Bytes::ZERO,
                rates: VmRates {
                    cpu_wait: Some(MilliCores(figures[9].min(1_000_000))),
                    cpu_throttled: None,
                    swapped_in: bytes(10),
                    disk_read: bytes(11),
                    disk_written: bytes(12),
                    sent: bits(13),
                    received: None,
                },
            }];
            let out_of = |bounds: &[(usize, u64)]| bounds.iter().any(|(at, most)| figures[*at] > *most);
            let (amount, bytes, bits) = (1 << 60, 1 << 50, 1 << 53);
            let absurd_host = stall.some_permille > 1000
                || out_of(&[(0, amount), (1, bytes), (2, bytes), (3, bits), (4, bits), (5, bits), (6, bytes)]);
            let absurd_vm = out_of(&[(8, amount), (10, bytes), (11, bytes), (12, bytes), (13, bits)]);
            let wanted = report.usage.clone();
            app::agent_report(&rig.core, host.id, report).await.unwrap();
            let (usage, vms) = rig.core.telemetry().with(host.id, |telemetry| {
                (telemetry.usage.clone(), telemetry.vm_usage.len())
            });
            assert_eq!(usage, if absurd_host { HostUsage::default() } else { wanted });
            assert_eq!(vms, usize::from(!absurd_vm));
        });
    }
}
