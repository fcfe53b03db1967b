//! `plimsoll simulate` on traces small enough to know the answer.

use std::{fs, path::Path};

use serde_json::Value;

use super::program::run_in;

/// Runs an experiment in a directory and gives the lines of its JSON, each an object.
fn json(home: &Path, arguments: &[&str]) -> Vec<Value> {
    let ran = run_in(home, &[&["simulate"], arguments, &["--json"]].concat());
    assert_eq!(ran.code, Some(0), "{arguments:?}\n{}", ran.stderr);
    let stream = serde_json::Deserializer::from_str(&ran.stdout).into_iter();
    stream.collect::<Result<_, _>>().unwrap()
}

fn keys(object: &Value) -> Vec<&str> {
    object.as_object().unwrap().keys().map(String::as_str).collect()
}

fn table(home: &Path, arguments: &[&str]) -> String {
    let ran = run_in(home, &[&["simulate"], arguments].concat());
    assert_eq!(ran.code, Some(0), "{arguments:?}\n{}", ran.stderr);
    ran.stdout
}

#[test]
fn instances_are_packed_one_object_for_each_in_the_order_of_their_files() {
    let home = tempfile::tempdir().unwrap();
    fs::create_dir(home.path().join("set")).unwrap();
    // Six items of which two fill a bin, and one that needs a bin of its own.
    fs::write(home.path().join("set/b.vbp"), "2\n10 10\n2\n5 1 6\n10 10 1\n").unwrap();
    fs::write(home.path().join("set/a.vbp"), "1\n10\n1\n4 4\n").unwrap();
    let objects = json(home.path(), &["pack", "set", "--policy", "first-fit"]);
    let names: Vec<_> = objects.iter().map(|object| object["file"].as_str().unwrap()).collect();
    assert_eq!(names, ["set/a.vbp", "set/b.vbp"]);
    let mut known =
        ["file", "items", "dimensions", "bins", "lower_bound", "seconds", "policy"].to_vec();
    known.sort_unstable();
    assert_eq!(keys(&objects[1]), known);
    assert_eq!((&objects[1]["items"], &objects[1]["bins"]), (&7.into(), &4.into()));
    let objects = json(home.path(), &["pack", "set/b.vbp", "--time-limit", "0.5"]);
    assert_eq!(objects[0]["policy"], "best");
    assert_eq!((&objects[0]["bins"], &objects[0]["lower_bound"]), (&4.into(), &4.into()));
    let text = table(home.path(), &["pack", "set", "--policy", "ffd-sum", "--jobs", "1"]);
    assert!(text.contains("2 in all"), "{text}");
}

#[test]
fn a_broken_instance_ends_the_run_after_those_before_it() {
    let home = tempfile::tempdir().unwrap();
    fs::write(home.path().join("a.vbp"), "1\n10\n1\n4 4\n").unwrap();
    fs::write(home.path().join("b.vbp"), "1\n10\n1\n4\n").unwrap();
    let ran = run_in(
        home.path(),
        &["simulate", "pack", "a.vbp", "b.vbp", "a.vbp", "--policy", "first-fit", "--json"],
    );
    assert_eq!(ran.code, Some(2));
    assert_eq!(ran.stdout.lines().count(), 1, "{}", ran.stdout);
    assert!(ran.stderr.contains("b.vbp, line 4, column 2"), "{}", ran.stderr);
}

#[test]
fn accelerators_are_allocated() {
    let home = tempfile::tempdir().unwrap();
    let nodes = "sn,cpu_milli,memory_mib,gpu,model\na,8000,8192,1,T4\nb,8000,8192,1,A10\n";
    fs::write(home.path().join("nodes.csv"), nodes).unwrap();
    let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli,gpu_spec\np,100,1,1,600,A10|V100\n";
    fs::write(home.path().join("pods.csv"), pods).unwrap();
    let arguments = ["openb", "--nodes", "nodes.csv", "--pods", "pods.csv", "--seeds", "2"];
    let one = json(home.path(), &[&arguments[..], &["--policy", "first-fit"]].concat());
    let mut known =
        ["policy", "pods", "seeds", "allocated_percent", "fragmented_percent", "seconds"].to_vec();
    known.sort_unstable();
    assert_eq!(keys(&one[0]), known);
    assert_eq!(one[0]["allocated_percent"]["mean"], 30.0);
    assert_eq!(one[0]["allocated_percent"]["min"], 30.0);
    assert_eq!(one[0]["allocated_percent"]["max"], 30.0);
    let two = json(home.path(), &[&arguments[..], &["--policy", "cosine,l2-diff"]].concat());
    assert_eq!(two[0][1]["policy"], "l2-diff");
    let text = table(home.path(), &arguments);
    assert!(text.contains("30.00") && text.contains("most-free"), "{text}");
}

#[test]
fn vms_come_and_go() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    write("map.txt", "2,4 a\n4,8 b\n");
    write("intervals.txt", "0 0\n300 1\n600 2\n");
    // Two of b fill two hosts; when they have left, three of a need two again.
    write("v1.txt", "0 b,b\n900 a,|,a,a\n");
    write("v1.c1200.txt", "0 U1,U2\n900 C0,|,C0,U0\n");
    let arguments =
        ["azure", "--requests", "v1.txt", "--flavors", "map.txt", "--intervals", "intervals.txt"];
    let with = |hosts: &str, policy: &str| {
        json(home.path(), &[&arguments[..], &["--hosts", hosts, "--policy", policy]].concat())
    };
    let needed = with("4c8g", "least-free");
    let mut known = [
        "policy",
        "placed",
        "rejected",
        "peak_hosts",
        "mean_cpu_percent",
        "mean_memory_percent",
        "placements_per_second",
    ]
    .to_vec();
    known.sort_unstable();
    assert_eq!(keys(&needed[0]), known);
    assert_eq!((&needed[0]["placed"], &needed[0]["peak_hosts"]), (&5.into(), &2.into()));
    // 4 cores for 300 s and for 600 s, then 2 for 300 s twice and for 150 s, of 8 for 1,200 s.
    let expected = 100.0 * (4.0 * 900.0 + 2.0 * 750.0) / (8.0 * 1200.0);
    let cpu = needed[0]["mean_cpu_percent"].as_f64().unwrap();
    assert!((cpu - expected).abs() < 1e-9, "{cpu} {expected}");
    let fewer = with("4c8gx1", "first-fit");
    assert_eq!((&fewer[0]["placed"], &fewer[0]["rejected"]), (&3.into(), &2.into()));
    let text = table(home.path(), &[&arguments[..], &["--hosts", "4c8gx3"]].concat());
    assert!(text.contains("REJECTED") && text.contains("ffd-sum"), "{text}");
    let ran = run_in(home.path(), &[&["simulate"], &arguments[..], &["--hosts", "2c4g"]].concat());
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("no number of hosts is enough"), "{}", ran.stderr);
}

#[test]
fn hosts_are_overcommitted() {
    let home = tempfile::tempdir().unwrap();
    let write = |name: &str, text: &str| fs::write(home.path().join(name), text).unwrap();
    // Two VMs, each a host's size: busy in turn, half a day each, for eight days.
    write("vms.csv", "vm,cores,mem_cap_mb\n1,2,1024\n2,2,1024\n");
    let line = |id: usize, used: &dyn Fn(bool) -> u32| {
        let slots = (0..8 * 288).map(|slot| used((slot % 288 < 144) == (id == 1)).to_string());
        format!("{id},{}\n", slots.collect::<Vec<_>>().join(","))
    };
    let both = |used: &dyn Fn(bool) -> u32| line(1, used) + &line(2, used);
    write("cpu_mhz.csv", &both(&|busy| if busy { 1900 } else { 0 }));
    write("mem_mb.csv", &both(&|_| 300));
    let arguments = ["overcommit", "--format", "bitbrains", ".", "--host-cores", "2"];
    let arguments = [&arguments[..], &["--host-memory", "1GiB", "--host-mhz", "1000"]].concat();
    let with = |more: &[&str]| json(home.path(), &[&arguments[..], more].concat());
    let risk = ["--policy", "plimsoll", "--risk-cpu", "1%", "--risk-memory", "0.1%"];
    let one = with(&risk);
    let mut known = [
        "policy",
        "vms",
        "larger_than_host",
        "hosts",
        "mean_hosts",
        "density",
        "cpu_short_percent",
        "memory_short_percent",
        "cpu_short_slots_percent",
        "one_less_cpu_short_percent",
        "unmet_cpu_percent",
        "unmet_memory_percent",
        "resizes",
        "migrations",
        "migrations_per_vm_day",
    ]
    .to_vec();
    known.sort_unstable();
    assert_eq!(keys(&one[0]), known);
    assert_eq!((&one[0]["vms"], &one[0]["hosts"]), (&2.into(), &1.into()));
    assert_eq!((&one[0]["density"], &one[0]["policy"]), (&2.0.into(), &"plimsoll".into()));
    assert_eq!(one[0]["cpu_short_percent"], 0.0);
    // Both are made smaller, since the host has memory for one.
    assert_eq!((&one[0]["resizes"], &one[0]["migrations"]), (&2.into(), &0.into()));
    let all = with(&[]);
    let hosts: Vec<_> = all[0].as_array().unwrap().iter().map(|one| &one["hosts"]).collect();
    // none, three ratios, p95 and 1.1 times it, peak, plimsoll.
    assert_eq!(hosts, [2, 2, 1, 1, 2, 2, 2, 1]);
    let text = table(home.path(), &[&arguments[..], &["--policy", "none,fixed:2"]].concat());
    assert!(text.contains("CPU SHORT %") && text.contains("fixed:2"), "{text}");
    assert_eq!(with(&risk), one);
    write("mem_mb.csv", "1,300\n2,300\n");
    let ran = run_in(home.path(), &[&["simulate"], &arguments[..]].concat());
    assert_eq!(ran.code, Some(2));
    assert!(ran.stderr.contains("mem_mb.csv, line 1, column"), "{}", ran.stderr);
}
