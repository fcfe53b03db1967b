use std::{collections::BTreeMap, error::Error as _, path::Path};

use plimsoll_model::{HostId, VmId};
use proptest::prelude::*;

use super::{Period, Scenario, ScenarioError, simulate};
use crate::{engine::Arrival, report::Report};

const EXAMPLE: &str = include_str!("../../../../examples/cluster.toml");

const SMALL: &str = r#"
name = "Small"
seed = 1
duration = "2d"
warm_up = "6h"
policies = ["first-fit", "most-free", "least-free"]

[[cluster.host]]
name = "a"
count = 4
capacity = { cpu = 16, memory = "64GiB" }
zones = 2
racks = 1

[[cluster.host]]
name = "g"
count = 2
capacity = { cpu = 32, memory = "64GiB", accelerators = { t4 = 2 } }
labels = { kind = "gpu" }

[[workload]]
name = "web"
arrivals = { poisson = "6/h" }
batch = { from = 1, to = 3 }
lifetime = { exponential = "3h" }
groups = ["web"]
group_per = "batch"
constraints = [{ anti_affinity = { group = "web" } }]
[[workload.flavor]]
name = "small"
weight = 3
resources = { cpu = 1, memory = "2GiB" }
[[workload.flavor]]
name = "large"
resources = { cpu = { from = 2, to = 8, step = 1 }, memory = "16GiB" }

[[workload]]
name = "train"
arrivals = { constant = "4/d" }
batch = 2
all_or_nothing = true
lifetime = { fixed = "5h" }
[[workload.flavor]]
name = "half"
resources = { cpu = 4, memory = "8GiB", accelerators = { t4 = "500m" } }
[[workload.flavor]]
name = "two"
resources = { cpu = 4, memory = "8GiB", accelerators = { t4 = 2 } }
"#;

fn parse(text: &str) -> Scenario {
    Scenario::parse(Path::new("test.toml"), text).unwrap()
}

fn run(scenario: &Scenario) -> Report {
    simulate(scenario, &mut |_| {}).unwrap().without_measurements()
}

/// A scenario with one workload of which these are the keys, and these at the top.
fn one(top: &str, workload: &str) -> String {
    format!(
        "name = \"x\"\npolicies = [\"first-fit\"]\nduration = \"10d\"\n{top}\n\
         [[cluster.host]]\nname = \"h\"\ncount = 1\ncapacity = {{ cpu = 8, memory = \"32GiB\" }}\n\
         [[workload]]\nname = \"w\"\n{workload}\n\
         [[workload.flavor]]\nname = \"f\"\nresources = {{ cpu = 1, memory = \"1GiB\" }}\n"
    )
}

const PLAIN: &str = "arrivals = { poisson = \"10/h\" }\nlifetime = \"forever\"";

fn arrivals(text: &str) -> Vec<Arrival> {
    parse(text).workload().collect()
}

#[test]
fn the_example_is_a_scenario_in_which_policies_differ() {
    let scenario = parse(EXAMPLE);
    assert_eq!(scenario.host_count(), 48);
    assert_eq!(scenario.workloads.len(), 6);
    assert!(scenario.policies.len() > 1);
    assert_eq!(scenario.sample_every, Period(3_600_000));
}

#[test]
fn a_report_is_a_table() {
    insta::assert_snapshot!(run(&parse(SMALL)).table());
}

#[test]
fn what_is_wrong_is_named_with_its_line_and_column() {
    let workload = |keys: &str| one("", keys);
    let small = |from: &str, to: &str| SMALL.replacen(from, to, 1);
    let mut wrong = Vec::new();
    for (text, line, column, expected) in [
        (String::new(), 1, 1, "missing field `name`"),
        ("name = [".to_owned(), 1, 9, "unclosed array"),
        (small("seed = 1", "seed = -1"), 3, 8, "invalid value: integer `-1`"),
        (small("seed = 1", "sed = 1"), 3, 1, "unknown field `sed`"),
        (small("\"2d\"", "\"2 fortnights\""), 4, 12, "is not a period"),
        (small("\"2d\"", "\"500y\""), 4, 12, "is not a period"),
        (small("\"2d\"", "\"99999d\""), 4, 12, "`duration` must be from 1s to 36500d"),
        (small("\"2d\"", "2"), 4, 12, "expected a period such as"),
        (small("\"6h\"", "\"2d\""), 5, 11, "`duration` (2d) must be after `warm_up` (2d)"),
        (small("\"least-free\"", "\"best-of-all\""), 6, 39, "unknown variant `best-of-all`"),
        (small("\"least-free\"", "\"first-fit\""), 6, 39, "the policy `first-fit` is there twice"),
        (small("count = 4", "count = 0"), 10, 9, "`count` must be from 1 to 1000000, not 0"),
        (small("count = 4", "count = 1000000"), 8, 3, "about 1000002 hosts"),
        (small("\"64GiB\" }\nzones", "\"64Gb\" }\nzones"), 11, 33, "`Gb` is not a unit"),
        (small("cpu = 16", "cores = 16"), 11, 14, "unknown field `cores`"),
        (small("cpu = 16", "cpu = 0"), 11, 12, "`cpu` must be above zero"),
        (small("zones = 2", "zones = []"), 12, 9, "1 to 1000 of `zones`"),
        (small("t4 = 2", "t4 = \"1500m\""), 18, 12, "whole devices of accelerator t4"),
        (small("name = \"g\"", "name = \"a\""), 15, 1, "the host shape `a` is there twice"),
        (small("\"6/h\"", "\"6\""), 23, 24, "`6` is not a rate"),
        (small("\"6/h\"", "\"0/h\""), 23, 24, "is not a rate"),
        (small("{ poisson", "{ poison"), 23, 14, "unknown variant `poison`"),
        (small("from = 1, to = 3", "from = 3, to = 1"), 24, 9, "`from` (3) is above `to` (1)"),
        (small("from = 1, to = 3", "from = 0, to = 3"), 24, 9, "`batch` must be from 1 to 10000"),
        (small("group = \"web\" }", "groop = \"web\" }"), 28, 36, "unknown field `groop`"),
        (
            small("anti_affinity = { group = \"web\" } }", "strength = \"preferred\" }"),
            28,
            16,
            "exactly one of affinity",
        ),
        (small("weight = 3", "weight = -3"), 29, 1, "`weight` must be from 0 to 1000000000"),
        (small("step = 1", "step = 0"), 35, 21, "`step` must be above zero"),
        (small("t4 = \"500m\"", "t4 = \"1500m\""), 43, 1, "no VM can have these accelerators"),
        (workload("arrivals = { poisson = \"10/h\" }"), 9, 1, "missing field `lifetime`"),
        (workload(&format!("{PLAIN}\nend = \"0s\"")), 13, 7, "`end` (0s) must be after `start`"),
        (workload(&PLAIN.replace("10/h", "1000/s")), 9, 1, "about 864000000 VMs"),
        (
            workload(
                &PLAIN.replace("\"forever\"", "{ lognormal = { median = \"1h\", sigma = 99.0 } }"),
            ),
            12,
            12,
            "`sigma` must be from 0 to 10, not 99",
        ),
        (
            workload(&PLAIN.replace("\"forever\"", "{ fixed = \"0s\" }")),
            12,
            12,
            "`fixed` must be from 1ms",
        ),
    ] {
        let error = Scenario::parse(Path::new("f.toml"), &text).expect_err(expected);
        let said = match error.source() {
            Some(source) => format!("{error}: {source}"),
            None => error.to_string(),
        };
        if !said.starts_with(&format!("f.toml:{line}:{column}: ")) || !said.contains(expected) {
            wrong.push(format!("{line}:{column} {expected}, not {said}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn hostile_files_are_refused_within_bounds() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("x.toml");
    let read = |bytes: &[u8]| {
        std::fs::write(&path, bytes).unwrap();
        Scenario::read(&path).expect_err("hostile")
    };
    let deep = format!("name = {}", "[".repeat(100_000));
    assert!(matches!(read(deep.as_bytes()), ScenarioError::Form { .. }));
    let tables = format!("a{} = 1", ".a".repeat(100_000));
    assert!(matches!(read(tables.as_bytes()), ScenarioError::Form { .. }));
    assert!(matches!(read(&vec![b'#'; 5 << 20]), ScenarioError::TooLong { .. }));
    let error = read(b"name = \"x\"\nseed = \xff");
    assert!(error.to_string().ends_with("x.toml:2:8: not UTF-8"), "{error}");
    let gone = Scenario::read(&folder.path().join("gone.toml")).expect_err("gone");
    assert!(matches!(gone, ScenarioError::Read { .. }));
    // A message never takes a terminal over.
    let error = read(b"name = 1\n\"\\u001b[31m\" = 2");
    assert!(!error.to_string().contains('\u{1b}'), "{error}");
}

#[test]
fn hosts_are_dealt_out_to_zones_and_racks() {
    let text = SMALL.replace("zones = 2\nracks = 1", "zones = [\"n\", \"s\"]\nracks = 2");
    let places: Vec<String> = parse(&text)
        .hosts()
        .map(|host| {
            let text = |label: Option<plimsoll_model::Label>| {
                label.map_or_else(|| "-".to_owned(), |label| label.to_string())
            };
            format!("{} {} {} {}", host.id, host.name, text(host.zone), text(host.rack))
        })
        .collect();
    assert_eq!(
        places,
        [
            "host-1 a-1 n rack-1",
            "host-2 a-2 s rack-1",
            "host-3 a-3 n rack-2",
            "host-4 a-4 s rack-2",
            "host-5 g-1 - -",
            "host-6 g-2 - -"
        ]
    );
}

#[test]
fn batches_have_groups_of_their_own_and_leave_together() {
    let text = one(
        "",
        "arrivals = { constant = \"1/d\" }\nbatch = 3\nall_or_nothing = true\n\
         lifetime = { exponential = \"5h\" }\ngroups = [\"g\"]\ngroup_per = \"batch\"\n\
         constraints = [{ anti_affinity = { group = \"g\", scope = \"rack\" } }, \
         { affinity = { group = \"other\" } }]",
    );
    let batches = arrivals(&text);
    assert_eq!(batches.len(), 10);
    for (number, batch) in batches.iter().enumerate() {
        assert_eq!(batch.vms.len(), 3);
        assert!(batch.all_or_nothing);
        assert_eq!(batch.at.0, number as u64 * 86_400_000);
        for vm in &batch.vms {
            let rules: Vec<_> = vm.request.constraints.iter().map(ToString::to_string).collect();
            let own = format!("g-{}", number + 1);
            assert_eq!(rules[0], format!("other rack than group {own}"));
            assert_eq!(rules[1], "same host as group other");
            assert_eq!(vm.request.groups.first().unwrap().as_str(), own);
            assert_eq!(vm.lifetime_ms, batch.vms[0].lifetime_ms);
        }
    }
}

/// A tenth of the expected value is more than six standard deviations of these counts.
fn near(is: f64, expected: f64) {
    assert!((is - expected).abs() < expected / 10.0, "{is} is far from {expected}");
}

#[test]
fn arrivals_come_as_often_as_they_should() {
    let times = |arrivals_are: &str| -> Vec<u64> {
        let keys = format!("arrivals = {arrivals_are}\nlifetime = \"forever\"");
        arrivals(&one("", &keys)).iter().map(|arrival| arrival.at.0).collect()
    };
    near(times("{ poisson = \"30/h\" }").len() as f64, 7200.0);
    assert_eq!(times("{ constant = \"30/h\" }").len(), 7200);
    assert_eq!(times("{ once = 500 }"), vec![0; 500]);

    let day = times("{ diurnal = { rate = \"30/h\", swing = 1.0, peak = \"12h\" } }");
    near(day.len() as f64, 7200.0);
    let noon = day.iter().filter(|at| (6..18).contains(&(*at / 3_600_000 % 24))).count();
    // Of 1 - cos over a turn, the half about its peak has 1/2 + 1/pi.
    near(noon as f64 / day.len() as f64, 0.818);

    let bursts =
        times("{ bursts = { rate = \"100/d\", size = { from = 5, to = 9 }, over = \"1h\" } }");
    near(bursts.len() as f64, 7000.0);
    assert!(bursts.is_sorted());
}

#[test]
fn lifetimes_and_sizes_are_as_they_should_be() {
    let lifetimes = |lifetime: &str| -> Vec<f64> {
        let keys = format!("arrivals = {{ once = 20000 }}\nlifetime = {lifetime}");
        let mut all: Vec<f64> = arrivals(&one("", &keys))
            .iter()
            .flat_map(|arrival| &arrival.vms)
            .map(|vm| vm.lifetime_ms.map_or(f64::INFINITY, |ms| ms as f64 / 3_600_000.0))
            .collect();
        all.sort_by(f64::total_cmp);
        all
    };
    let mean = |all: &[f64]| all.iter().sum::<f64>() / all.len() as f64;
    assert!(lifetimes("\"forever\"").iter().all(|hours| hours.is_infinite()));
    assert!(lifetimes("{ fixed = \"90m\" }").iter().all(|hours| (hours - 1.5).abs() < 1e-9));
    near(mean(&lifetimes("{ exponential = \"4h\" }")), 4.0);
    let lognormal = lifetimes("{ lognormal = { median = \"4h\", sigma = 1.0 } }");
    near(lognormal[10_000], 4.0);
    near(mean(&lognormal), 4.0 * 0.5_f64.exp());
    let uniform = lifetimes("{ uniform = { from = \"1h\", to = \"3h\" } }");
    near(mean(&uniform), 2.0);
    assert!(uniform[0] >= 1.0 && uniform[19_999] <= 3.0);

    let text = one("", "arrivals = { once = 20000 }\nlifetime = \"forever\"").replace(
        "resources = { cpu = 1",
        "resources = { cpu = { from = 1, to = 16, step = \"500m\", spread = \"log_uniform\" }",
    );
    let mut cpus: Vec<u64> =
        arrivals(&text).iter().map(|arrival| arrival.vms[0].request.demand.cpu.0).collect();
    cpus.sort_unstable();
    assert!(cpus[0] == 1000 && cpus[19_999] <= 16_000 && cpus.iter().all(|cpu| cpu % 500 == 0));
    // Half of them are below the geometric mean of the ends.
    assert!((3500..=4000).contains(&cpus[10_000]), "{}", cpus[10_000]);
}

#[test]
fn a_workload_that_is_added_changes_nothing_of_the_others() {
    let of_web = |text: &str| -> Vec<Arrival> {
        let web = |arrival: &Arrival| {
            arrival.vms[0].request.application.as_ref().is_some_and(|name| name.as_str() == "web")
        };
        arrivals(text).into_iter().filter(web).collect()
    };
    let end = SMALL.find("[[workload]]\nname = \"train\"").unwrap();
    assert_eq!(of_web(SMALL), of_web(&SMALL[..end]));
}

#[test]
fn a_flavor_that_fits_nowhere_is_noted_and_its_reason_told() {
    let text = one("", PLAIN).replace("cpu = 1,", "cpu = 9,");
    let report = run(&parse(&text));
    assert!(report.notes[0].contains("Flavor `f` of workload `w` fits no host"));
    let policy = &report.policies[0];
    assert_eq!((policy.totals.placed, policy.totals.rejected_percent), (0, 100.0));
    assert_eq!(policy.rejected_for[0].reason, "larger than any host");
    assert_eq!(policy.rejected_for[0].vms, policy.totals.rejected);
}

#[test]
fn reasons_are_those_of_the_hosts_that_came_nearest() {
    let reason = |keys: &str| {
        let text = one("", &format!("arrivals = {{ once = 9 }}\nlifetime = \"forever\"\n{keys}"));
        let report = run(&parse(&text));
        let totals = &report.policies[0].totals;
        (totals.placed, report.policies[0].rejected_for[0].reason.clone())
    };
    assert_eq!(reason(""), (8, "too little cpu free".to_owned()));
    let apart = "groups = [\"g\"]\nconstraints = [{ anti_affinity = { group = \"g\" } }]";
    assert_eq!(reason(apart), (1, "anti-affinity".to_owned()));
    let label = "constraints = [{ host_label = { key = \"disk\", values = [\"ssd\"] } }]";
    assert_eq!(reason(label), (0, "no large host has the label".to_owned()));
    let together = "batch = 5\nall_or_nothing = true";
    assert_eq!(reason(together), (5, "no room for its whole group".to_owned()));
}

#[test]
fn progress_goes_from_nothing_to_all() {
    let mut seen = Vec::new();
    simulate(&parse(SMALL), &mut |progress| seen.push(progress.done)).unwrap();
    assert!(seen.len() > 300 && seen.is_sorted());
    assert_eq!((seen[0], seen[seen.len() - 1]), (0.0, 1.0));
}

#[test]
fn the_page_says_what_strangers_wrote_and_runs_none_of_it() {
    let evil = "</script><script>alert(1)</script>{{data}}<!-- & \\\" '";
    let text = SMALL.replacen("name = \"Small\"", &format!("name = \"{evil}\""), 1);
    let page = run(&parse(&text)).html();
    assert!(!page.contains("<script>alert"));
    assert!(page.contains("&lt;/script&gt;&lt;script&gt;alert(1)"));
    assert!(page.contains("{{data}}"), "text that looks like a place to fill stays text");
    assert_eq!(page.matches("<script").count(), 2, "the data and our script");
    for outside in ["http://", "https://", "src=", "@import", "url("] {
        let page = page.replace("http://www.w3.org/2000/svg", "");
        assert!(!page.contains(outside), "{outside}");
    }
}

/// What a report must be, whatever the scenario.
fn check(scenario: &Scenario, report: &Report) {
    let mut asked = BTreeMap::<VmId, u64>::new();
    for vm in scenario.workload().flat_map(|arrival| arrival.vms) {
        *asked.entry(vm.request.vm).or_default() += 1;
    }
    assert!(asked.values().all(|count| *count == 1), "ids are used once");
    let samples = report.at_seconds.len();
    for policy in &report.policies {
        let totals = &policy.totals;
        assert_eq!(totals.arrived, totals.placed + totals.rejected);
        let all = totals.arrived + totals.placed_in_warm_up + totals.rejected_in_warm_up;
        assert_eq!(all, asked.len() as u64);
        let reasons: u64 = policy.rejected_for.iter().map(|reason| reason.vms).sum();
        assert_eq!(reasons, totals.rejected);
        let series = &policy.series;
        for percents in series
            .committed_percent
            .iter()
            .chain([&series.fragmented_percent.typical, &series.fragmented_percent.largest])
        {
            assert_eq!(percents.len(), samples);
            assert!(percents.iter().all(|percent| (0.0..=100.0).contains(percent)));
        }
        assert_eq!(series.hosts_in_use.len(), samples);
        assert!(series.rejected.is_sorted());
        assert_eq!(series.rejected.last(), Some(&totals.rejected));
        assert!(u64::from(totals.peak_hosts) <= scenario.host_count());
        assert_eq!(series.vms.first(), Some(&0));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(12))]

    #[test]
    fn the_same_seed_gives_the_same_bytes(
        seed in any::<u32>(),
        hosts in 1_u32..8,
        rate in 1_u32..40,
        burst in 1_u32..50,
    ) {
        let text = SMALL
            .replacen("seed = 1", &format!("seed = {seed}"), 1)
            .replacen("count = 4", &format!("count = {hosts}"), 1)
            .replacen("{ poisson = \"6/h\" }", &format!("{{ poisson = \"{rate}/h\" }}"), 1)
            .replacen(
                "{ constant = \"4/d\" }",
                &format!("{{ bursts = {{ rate = \"2/d\", size = {burst}, over = \"1h\" }} }}"),
                1,
            );
        let scenario = parse(&text);
        let report = run(&scenario);
        check(&scenario, &report);
        let bytes = serde_json::to_vec(&report).unwrap();
        prop_assert_eq!(&bytes, &serde_json::to_vec(&run(&parse(&text))).unwrap());
        prop_assert_eq!(report.html(), run(&scenario).html());
        let other = text.replacen("seed = ", "seed = 1", 1);
        let arrivals = |text: &str| parse(text).workload().collect::<Vec<_>>();
        prop_assert_ne!(arrivals(&text), arrivals(&other));
    }

    #[test]
    fn no_text_is_too_odd(text in "[a-z\\[\\]{}=\", 0-9\n.]{0,200}") {
        let _ = Scenario::parse(Path::new("x"), &text);
        let _ = Scenario::parse(Path::new("x"), &format!("{SMALL}{text}"));
    }
}

#[test]
fn host_numbers_have_no_gaps() {
    let ids: Vec<HostId> = parse(EXAMPLE).hosts().map(|host| host.id).collect();
    assert_eq!(ids, (1..=48).map(HostId).collect::<Vec<_>>());
}
