//! Hosts are promised more than they have, at the risk that the settings state.

use std::time::Duration;

use plimsoll_api::v1::{HostView, SetSettingsRequest};
use plimsoll_model::{Amount, Bytes, Elasticity, Fraction, MilliCores, StoragePool, VmSpec};

use super::super::rig::{Rig, SimHost, name, request, resources, spec};
use crate::{app, reconcile::overcommit::Overcommitter};

/// Enough slots for a class of two VMs to be known.
const SLOTS: u32 = 200;

fn burstable(cpu: u64, mib: u64) -> VmSpec {
    let elasticity = Elasticity::Burstable {
        memory_min: Bytes::mib(256),
        cpu_min: MilliCores(100),
        shares: 100,
    };
    VmSpec { elasticity, ..spec(resources(cpu, mib)) }
}

/// A host of 8 cores and 8 GiB with two VMs of 3 cores and 3 GiB that use a tenth of that.
async fn host_with_two_idle_vms(risk: u32, swap: Bytes, vm: VmSpec) -> (Rig, SimHost) {
    let rig = Rig::new().await;
    let settings = SetSettingsRequest {
        risk_cpu: Some(Fraction::millionths(risk)),
        risk_memory: Some(Fraction::millionths(risk)),
        slot_s: Some(60),
        ..SetSettingsRequest::default()
    };
    app::settings_set(&rig.core, &rig.admin, settings).await.unwrap();
    let mut host = rig.host("h1", StoragePool::Local).await;
    host.swap = swap;
    host.each_uses = Amount { cpu: MilliCores(300), memory: Bytes::mib(300) };
    rig.create(request("idle", Some(2), vm)).await.unwrap();
    (rig, host)
}

async fn pass(rig: &Rig, host: &mut SimHost, overcommitter: &Overcommitter, slots: u32) {
    for _ in 0..slots {
        rig.clock.advance(Duration::from_secs(60));
        host.exchange(&rig.core).await;
        overcommitter.reconcile(rig.core.clone()).await.unwrap();
    }
}

fn shown(rig: &Rig) -> HostView {
    app::host_show(&rig.core, &rig.admin, &name("h1")).unwrap()
}

#[tokio::test]
async fn what_elastic_vms_will_not_use_is_lent_to_newcomers_and_no_more() {
    let (rig, mut host) =
        host_with_two_idle_vms(10_000, Bytes::gib(64), burstable(3000, 3072)).await;
    let overcommitter = Overcommitter::default();
    pass(&rig, &mut host, &overcommitter, 2).await;
    assert_eq!(shown(&rig).loan, Amount::default(), "nothing is known of VMs of this size yet");
    let too_much = || request("late", Some(2), burstable(3000, 3072));
    rig.create(too_much()).await.unwrap_err();

    pass(&rig, &mut host, &overcommitter, SLOTS).await;
    let loan = shown(&rig).loan;
    // Of 6 cores they use 0.6, and what is remembered is a little coarser than that.
    assert!((5_200..=5_400).contains(&loan.cpu.0), "{loan:?}");
    assert!(Bytes::mib(5_200) < loan.memory && loan.memory <= Bytes::mib(5_544), "{loan:?}");
    rig.create(too_much()).await.unwrap();
    host.exchange(&rig.core).await;
    rig.check_consistent().await;

    // Newcomers count with all they are promised until they have run for a while.
    pass(&rig, &mut host, &overcommitter, 1).await;
    rig.create(request("more", Some(4), burstable(3000, 3072))).await.unwrap_err();

    // Whoever leaves takes with it what was lent on its account.
    let before = shown(&rig).loan;
    app::vm_delete(&rig.core, &rig.admin, &name("p"), &name("idle-1")).await.unwrap();
    host.exchange(&rig.core).await;
    host.exchange(&rig.core).await;
    let after = shown(&rig).loan;
    assert!(after.cpu.0 + 2_000 < before.cpu.0 && after.memory < before.memory, "{after:?}");
    rig.check_consistent().await;
}

#[tokio::test]
async fn memory_is_lent_only_as_far_as_swap_holds_it_and_nothing_of_guaranteed_vms() {
    let idle = burstable(3000, 3072);
    let (rig, mut host) = host_with_two_idle_vms(10_000, Bytes::mib(100), idle.clone()).await;
    pass(&rig, &mut host, &Overcommitter::default(), SLOTS).await;
    let loan = shown(&rig).loan;
    assert!(loan.cpu.0 > 5_000 && loan.memory == Bytes::mib(100), "{loan:?}");

    let guaranteed = VmSpec { elasticity: Elasticity::Guaranteed, ..idle.clone() };
    for (risk, vm) in [(10_000, guaranteed), (0, idle)] {
        let (rig, mut host) = host_with_two_idle_vms(risk, Bytes::gib(64), vm).await;
        pass(&rig, &mut host, &Overcommitter::default(), SLOTS).await;
        assert_eq!(shown(&rig).loan, Amount::default(), "risk {risk}");
    }
}

#[tokio::test]
async fn a_loan_is_given_up_with_the_risk_and_outlives_a_manager() {
    let (mut rig, mut host) =
        host_with_two_idle_vms(10_000, Bytes::gib(64), burstable(3000, 3072)).await;
    let overcommitter = Overcommitter::default();
    pass(&rig, &mut host, &overcommitter, SLOTS).await;
    let loan = shown(&rig).loan;
    rig.restart().await;
    assert_eq!(shown(&rig).loan, loan);

    let settings = SetSettingsRequest {
        risk_cpu: Some(Fraction::ZERO),
        risk_memory: Some(Fraction::ZERO),
        ..SetSettingsRequest::default()
    };
    app::settings_set(&rig.core, &rig.admin, settings).await.unwrap();
    pass(&rig, &mut host, &overcommitter, 1).await;
    assert_eq!(shown(&rig).loan, Amount::default());
}
