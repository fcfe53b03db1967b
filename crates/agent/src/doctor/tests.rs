use std::collections::BTreeSet;

use plimsoll_api::doctor::DoctorAccelerator;

use super::*;

#[tokio::test]
async fn this_machine_is_examined_quickly_and_left_as_it_was() {
    let devices = || fs::read_to_string("/proc/thread-self/net/dev").unwrap().lines().count();
    let before = devices();
    let report = examine(&DoctorOptions::default()).await;
    assert_eq!(devices(), before);
    assert!(report.duration_ms < 3000, "{} ms", report.duration_ms);
    for check in &report.checks {
        eprintln!("{:22} {:9} {}", check.name, check.status.as_str(), check.evidence);
        assert!(!check.evidence.is_empty());
        let works = matches!(check.status, CheckStatus::Ok);
        assert!(works || check.remedy.is_some() || check.name == "gpus", "{}", check.name);
    }
    let names: BTreeSet<&str> = report.checks.iter().map(|check| check.name.as_str()).collect();
    assert_eq!(names.len(), report.checks.len(), "each name once");
    for name in [
        "qemu",
        "qemu_img",
        "kvm",
        "nested_virtualisation",
        "cgroups",
        "ksm",
        "userfaultfd",
        "pagemap_scan",
        "swap",
        "memory_cgroup",
        "tun",
        "bridge",
        "vxlan",
        "network_limits",
        "nftables",
        "fuse",
        "clock",
        "gpus",
        "disk_space",
        "unprivileged_user",
    ] {
        assert!(names.contains(name), "{name}");
    }
    let forced = DoctorOptions {
        deduplication: DeduplicationMode::ForcedAcrossProjects,
        ..DoctorOptions::default()
    };
    let forced = examine(&forced).await;
    let ksm = forced.check("ksm").unwrap();
    assert!(ksm.status == CheckStatus::Missing || ksm.evidence.contains("between projects"));
    let kvm = report.check("kvm").unwrap();
    match (report.accelerator, report.kvm_instructions_per_second) {
        (DoctorAccelerator::Kvm, Some(rate)) => {
            assert!(rate >= LEAST_INSTRUCTIONS_PER_SECOND);
            assert_eq!(kvm.status, CheckStatus::Ok);
        }
        (DoctorAccelerator::Tcg, Some(rate)) => {
            assert!(rate < LEAST_INSTRUCTIONS_PER_SECOND);
            assert!(kvm.evidence.contains("million instructions/s"), "{}", kvm.evidence);
        }
        (accelerator, None) => assert_eq!(accelerator, DoctorAccelerator::Tcg),
    }
    let wire = serde_json::to_string(&report).unwrap();
    assert_eq!(serde_json::from_str::<DoctorReport>(&wire).unwrap(), report);
}
