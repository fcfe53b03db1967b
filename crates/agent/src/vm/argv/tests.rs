use super::*;

fn machine() -> Machine {
    Machine {
        vm: "vm-7c9e6679742540de944be07fc1f90ae7".parse().unwrap(),
        name: "web-1".parse().unwrap(),
        accelerator: Accelerator::Tcg,
        vcpus: 2,
        max_vcpus: 4,
        memory: Bytes(256 << 20),
        max_memory: Some(Bytes(1 << 30)),
        mergeable: false,
        disk: DiskFiles {
            overlay: "/pool/vm/disk-0.qcow2".into(),
            base: Some(("/images/aa".into(), "qcow2".into())),
            seed: Some("/pool/vm/seed.img".into()),
            size: Bytes(1 << 30),
            direct: true,
        },
        disk_bandwidth: BytesPerSecond(10 << 20),
        disk_iops: IoPerSecond(100),
        nics: vec![Nic {
            tap: "tap0".into(),
            mac: "52:54:00:12:34:56".parse().unwrap(),
            mtu: 1450,
        }],
        boot: Some(DirectBoot {
            kernel: "/images/bb".into(),
            initrd: Some("/images/cc".into()),
            append: "console=ttyS0".into(),
        }),
        incoming: None,
    }
}

/// One option per line.
fn printed(line: &CommandLine) -> String {
    let mut text = String::new();
    for argument in &line.arguments {
        let option = argument.starts_with('-');
        text.push_str(if option { "\n" } else { " " });
        text.push_str(argument);
    }
    for descriptor in &line.descriptors {
        text.push_str(&format!("\n{}: {:?}", descriptor.number, descriptor.source));
    }
    text
}

#[test]
fn a_vm_with_everything() {
    insta::assert_snapshot!(printed(&command_line(&machine())));
}

#[test]
fn a_cloud_image_under_kvm_without_a_network() {
    let machine = Machine {
        accelerator: Accelerator::Kvm,
        boot: None,
        nics: Vec::new(),
        max_memory: None,
        disk: DiskFiles {
            base: Some(("/images/dd".into(), "raw".into())),
            seed: None,
            direct: false,
            ..machine().disk
        },
        ..machine()
    };
    insta::assert_snapshot!(printed(&command_line(&machine)));
}

#[test]
fn a_machine_that_comes_is_of_the_same_type_and_waits_paused() {
    let incoming = Some(Incoming { machine_type: "pc-q35-10.0".to_owned() });
    let here = printed(&command_line(&machine()));
    let comes = printed(&command_line(&Machine { incoming, ..machine() }));
    let rest = comes.replace("pc-q35-10.0,", "q35,").replace("\n-S\n-incoming defer", "");
    assert_ne!(comes, here);
    assert_eq!(rest, here, "but for that it is the machine that boots");
}

#[test]
fn no_path_of_the_host_reaches_the_command_line() {
    let line = command_line(&machine());
    for argument in &line.arguments {
        assert!(!argument.contains("/pool") && !argument.contains("/images"), "{argument}");
    }
    // Each descriptor is named exactly once as such.
    let numbers: std::collections::BTreeSet<i32> =
        line.descriptors.iter().map(|descriptor| descriptor.number).collect();
    assert_eq!(numbers.len(), line.descriptors.len());
}

#[test]
fn all_memory_of_a_guest_may_be_merged_or_none() {
    let merges = |mergeable| {
        let text = printed(&command_line(&Machine { mergeable, ..machine() }));
        assert!(text.contains("mem-merge=off"), "what is not the guest's memory never is");
        text.matches("\"merge\":true").count()
    };
    assert_eq!((merges(true), merges(false)), (2, 0));
}

#[test]
fn odd_sizes_are_made_whole() {
    assert_eq!(boot_memory(Bytes(1)), Bytes(1 << 20));
    assert_eq!(boot_memory(Bytes((256 << 20) + 1)), Bytes(257 << 20));
    let machine = Machine { vcpus: 0, max_vcpus: 0, ..machine() };
    assert!(printed(&command_line(&machine)).contains("cpus=1,maxcpus=1"));
}
