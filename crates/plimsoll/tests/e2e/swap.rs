//! Swap space that a host's agent sets up.

use super::lab::Lab;

/// The areas in use that lie in a lab's directory.
fn areas(lab: &Lab) -> Vec<String> {
    let directory = lab.directory().to_str().unwrap().to_owned();
    let text = std::fs::read_to_string("/proc/swaps").unwrap();
    let paths = text.lines().filter_map(|line| line.split_whitespace().next());
    paths.filter(|path| path.starts_with(&directory)).map(str::to_owned).collect()
}

#[test]
fn a_hosts_swap_space_outlives_its_agents_death_and_goes_with_the_lab() {
    let Some(lab) = Lab::start_with(1, &["--swap", "file:64MiB"]) else { return };
    let first = areas(&lab);
    assert_eq!(first.len(), 1, "{first:?}");
    // Its first page is the header.
    assert!(lab.json(&["host", "show", "host-1"])["usage"]["swap"].is_string());

    lab.kill("host-1");
    assert_eq!(areas(&lab), first, "nobody took it away");
    lab.heal();
    assert_eq!(areas(&lab), first, "it is found again, and none is made beside it");

    let name = lab.name().to_owned();
    let directory = lab.directory();
    let directory = directory.to_str().unwrap();
    lab.ok(&["lab", "down", "--name", &name, "--directory", directory]);
    assert!(areas(&lab).is_empty());
    assert!(!std::path::Path::new(&first[0]).exists());
}
