//! VMs that move, over the real interfaces.

use plimsoll_api::{
    ErrorCode,
    v1::{DrainProspect, DrainRequest, MigrateRequest, MigrationOutcome, VmView},
};
use plimsoll_model::{Name, VmPhase};
use plimsoll_testkit::{Mode, wait_for};

use crate::api_errors::raw;
use crate::cluster::{Cluster, LIMIT, name, refusal, vms};

async fn moved(cluster: &Cluster, vm: &Name) -> VmView {
    wait_for(LIMIT, "the end of a move", async || {
        let vm = cluster.admin.vm(&name("shop"), vm).await.ok()?;
        (vm.migration.is_none() && vm.last_migration.is_some()).then_some(vm)
    })
    .await
    .unwrap()
}

#[tokio::test]
async fn a_vm_moves_to_where_it_is_asked_to_and_to_where_there_is_room() {
    let (cluster, agents) = Cluster::furnished(2).await;
    let (shop, web) = (name("shop"), name("web-1"));
    cluster.admin.create_vms(&shop, &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    let before = cluster.admin.vm(&shop, &web).await.unwrap().host.unwrap();
    let other = |host: &Name| if host.as_str() == "h-1" { name("h-2") } else { name("h-1") };

    let dry_run = MigrateRequest { dry_run: true, ..MigrateRequest::default() };
    let said = cluster.admin.migrate_vm(&shop, &web, &dry_run).await.unwrap();
    assert_eq!((&said.from, &said.to), (&before, &other(&before)));
    assert!(said.vm.migration.is_none() && said.copy_disk);

    let to = MigrateRequest { to: Some(other(&before)), ..MigrateRequest::default() };
    let begun = cluster.admin.migrate_vm(&shop, &web, &to).await.unwrap();
    assert_eq!(begun.vm.migration.unwrap().to, other(&before));
    let there = moved(&cluster, &web).await;
    assert_eq!((there.host, there.state), (Some(other(&before)), VmPhase::Running));
    let last = there.last_migration.unwrap();
    assert_eq!((last.from, last.outcome), (before.clone(), MigrationOutcome::Moved));
    wait_for(LIMIT, "the source to hold nothing", async || {
        let source = agents.iter().find(|agent| *agent.name() == before)?;
        source.vms().is_empty().then_some(())
    })
    .await
    .unwrap();
    let figures = async || {
        let vm = cluster.admin.vm(&shop, &web).await.ok()?;
        vm.last_migration?.figures
    };
    let figures = wait_for(LIMIT, "the source's figures", figures).await.unwrap();
    assert_eq!(figures.downtime_ms, 40);
    // Not before the source is done with it: until then no move is begun at all.
    let again = refusal(cluster.admin.migrate_vm(&shop, &web, &to).await);
    assert!(again.causes[0].contains("is on that host"), "{again}");
    let (_, metrics) = raw(&cluster, "GET /metrics", "").await;
    for metric in [
        "plimsoll_migrations_total{outcome=\"moved\"} 1",
        "plimsoll_migration_downtime_seconds_count 1",
    ] {
        assert!(metrics.contains(metric), "no {metric} in {metrics}");
    }
    let refused = refusal(cluster.admin.cancel_migration(&shop, &web).await);
    assert_eq!(refused.code, ErrorCode::WrongState);
}

#[tokio::test]
async fn a_move_that_its_target_refuses_leaves_the_vm_running() {
    let (cluster, agents) = Cluster::furnished(2).await;
    let (shop, web) = (name("shop"), name("web-1"));
    cluster.admin.create_vms(&shop, &vms("web", 1)).await.unwrap();
    cluster.wait_phase("web-1", VmPhase::Running).await;
    let before = cluster.admin.vm(&shop, &web).await.unwrap().host;
    for agent in agents.iter().filter(|agent| Some(agent.name()) != before.as_ref()) {
        agent.set_mode(Mode::Failing);
    }
    cluster.admin.migrate_vm(&shop, &web, &MigrateRequest::default()).await.unwrap();
    let stays = moved(&cluster, &web).await;
    assert_eq!((stays.host, stays.state), (before, VmPhase::Running));
    let last = stays.last_migration.unwrap();
    assert_eq!(last.outcome, MigrationOutcome::Failed);
    assert_eq!(last.message.as_deref(), Some("it pretends to fail"));
}

#[tokio::test]
async fn a_host_is_emptied_over_the_api() {
    let (cluster, _agents) = Cluster::furnished(3).await;
    let (shop, admin) = (name("shop"), &cluster.admin);
    admin.create_vms(&shop, &vms("web", 5)).await.unwrap();
    for n in 1..=5 {
        cluster.wait_phase(&format!("web-{n}"), VmPhase::Running).await;
    }
    let host = admin.vm(&shop, &name("web-1")).await.unwrap().host.unwrap();
    let wrong = DrainRequest { parallel: 0, ..DrainRequest::default() };
    assert_eq!(refusal(admin.drain_host(&host, &wrong).await).code, ErrorCode::InvalidValue);
    let said = admin.drain_host(&host, &DrainRequest::default()).await.unwrap();
    assert!(!said.vms.is_empty());
    assert!(said.vms.iter().all(|vm| vm.prospect == DrainProspect::Moves && vm.to.is_some()));
    wait_for(LIMIT, "the host to be empty", async || {
        let host = admin.host(&host).await.ok()?;
        (host.vms == 0 && host.draining.is_some() && !host.schedulable).then_some(())
    })
    .await
    .unwrap();
    let back = admin.undrain_host(&host).await.unwrap();
    assert!(back.schedulable && back.draining.is_none());
}
