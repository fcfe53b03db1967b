//! The shortest way through everything.

use std::time::Duration;

use super::lab::Lab;

#[test]
fn a_vm_on_a_lab_of_one_host_from_creation_to_deletion() {
    let Some(lab) = Lab::start(1) else { return };
    lab.ok(&["project", "create", "shop"]);
    let created =
        lab.json(&["-p", "shop", "vm", "create", "web", "--image", "tiny", "--memory", "128MiB"]);
    assert_eq!(created["vms"][0]["state"], "running");
    let kernel = lab.exec("shop", "web", &["uname", "-s"]);
    assert_eq!(kernel, "Linux");
    assert_eq!(lab.try_exec("shop", "web", &["sh", "-c", "exit 7"]).code, Some(7));

    // The agent and the manager may go; the VM stays, and is found again.
    let boot = lab.exec("shop", "web", &["cat", "/proc/sys/kernel/random/boot_id"]);
    lab.kill("manager");
    lab.kill("host-1");
    lab.heal();
    lab.wait("the VM is found again", Duration::from_secs(60), || {
        lab.vm("shop", "web")["state"] == "running"
            && lab.try_exec("shop", "web", &["true"]).code == Some(0)
    });
    assert_eq!(lab.exec("shop", "web", &["cat", "/proc/sys/kernel/random/boot_id"]), boot);

    lab.ok(&["-p", "shop", "vm", "delete", "web", "--yes"]);
    assert!(lab.vms("shop").is_empty());
    assert_eq!(lab.status()["parts"][1]["vms"], 0);
}
