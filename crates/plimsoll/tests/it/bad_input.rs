//! Everything that can be typed wrongly is refused before anything is done: exit code 2 for what is
//! wrong with the command line or a file that it names, 3 for what cannot be reached, 1 for the rest;
//! always `error:` with its cause, and a hint.

use std::{fs, path::Path};

use super::program::{command, run_in};

/// Arguments, exit code, what standard error must say.
type Case = (&'static [&'static str], i32, &'static str);

const MANAGER: &str = "unix:/nonexistent/api.sock";

const LONG: &str = "/srv/an/uncommonly/long/directory/that/somebody/thought/would/be/a/good/place/for/all/of/the/data/of/labs";

const CASES: &[Case] = &[
    (&[], 2, "Usage:"),
    (&["fly"], 2, "unrecognized subcommand 'fly'"),
    (&["vm"], 2, "Usage:"),
    (&["vm", "lst"], 2, "similar subcommand"),
    (&["vm", "list", "--jsn"], 2, "unexpected argument '--jsn'"),
    (&["vm", "show"], 2, "required arguments were not provided"),
    (&["vm", "show", "Web_1"], 2, "`Web_1` is not a name"),
    (&["vm", "show", "../etc"], 2, "is not a name"),
    (&["vm", "show", "web", "extra"], 2, "unexpected argument 'extra'"),
    (&["vm", "create", "web"], 2, "--image <NAME>"),
    (&["vm", "create", "web", "--image", "tiny", "--memory", "4Gb"], 2, "`Gb` is not a unit"),
    (
        &["vm", "create", "web", "--image", "tiny", "--cpu", "0.0001"],
        2,
        "is finer than a thousandth",
    ),
    (&["vm", "create", "web", "--image", "tiny", "--cpu=-1"], 2, "is not a quantity"),
    (&["vm", "create", "web", "--image", "tiny", "--memory", "99999999999TiB"], 2, "is too large"),
    (&["vm", "create", "web", "--image", "tiny", "--count", "0"], 2, "0 is not in 1..=1000"),
    (&["vm", "create", "web", "--image", "tiny", "--count", "5000"], 2, "5000 is not in 1..=1000"),
    (
        &["vm", "create", "web", "--image", "tiny", "--count", "2", "--total"],
        2,
        "cannot be used with",
    ),
    (&["vm", "create", "web", "--image", "tiny", "--total"], 2, "--disk <SIZE>"),
    (&["vm", "create", "web", "--image", "tiny", "--split-max", "3"], 2, "--total"),
    (&["vm", "create", "web", "--image", "tiny", "--affinity", "web:floor"], 2, "is not a scope"),
    (&["vm", "create", "web", "--image", "tiny", "--exclusive", "all"], 2, "use other-projects"),
    (&["vm", "create", "web", "--image", "tiny", "--host-label", "ssd"], 2, "KEY=VALUE"),
    (&["vm", "create", "web", "--image", "tiny", "--accelerator", "a100"], 2, "MODEL=AMOUNT"),
    (
        &["vm", "create", "web", "--image", "tiny", "--policy", "best"],
        2,
        "is not a placement policy",
    ),
    (
        &["vm", "create", "web", "--image", "tiny", "--restart", "often"],
        2,
        "is not one of on-failure",
    ),
    (&["vm", "create", "web", "--image", "tiny", "--end-at", "tomorrow"], 2, "is not an instant"),
    (
        &["vm", "create", "web", "--image", "tiny", "--no-wait", "--timeout", "5s"],
        2,
        "cannot be used with",
    ),
    (&["vm", "create", "web", "--image", "tiny", "--timeout", "soon"], 2, "is not a duration"),
    (&["vm", "create", "web", "--image", "tiny", "--duration", "2"], 2, "is not a duration"),
    (&["vm", "create", "web", "--image", "tiny", "--deadline", "+8h"], 2, "--duration <DURATION>"),
    (
        &["vm", "create", "web", "--image", "tiny", "--duration", "2h", "--end-at", "+8h"],
        2,
        "cannot be used with",
    ),
    (&["vm", "set", "web"], 2, "required arguments were not provided"),
    (&["vm", "deflate", "web"], 2, "required arguments were not provided"),
    (&["vm", "deflate", "web", "--memory", "95%"], 2, "is not from 1% to 90%"),
    (&["vm", "deflate", "web", "--cpu", "half"], 2, "is not from 1% to 90%"),
    (&["vm", "deflate", "web", "--cpu", "50%", "--within", "soon"], 2, "is not a duration"),
    (&["vm", "inflate"], 2, "required arguments were not provided"),
    (&["vm", "set", "web", "--cpu", "two"], 2, "is not a quantity"),
    (&["vm", "set", "web", "--no-constraints", "--affinity", "db"], 2, "cannot be used with"),
    (&["vm", "stop", "web", "--grace", "x"], 2, "is not a duration"),
    (&["vm", "exec", "web"], 2, "<PROGRAM>"),
    (&["vm", "logs", "web", "--source", "kernel"], 2, "[possible values: console, qemu]"),
    (&["vm", "list"], 2, "no project is named"),
    (&["-p", "NOT", "vm", "list"], 2, "is not a name"),
    (&["network", "create", "net", "--cidr", "10.0.0.1/24"], 2, "is not a range of IPv4 addresses"),
    (&["project", "create", "shop", "--credits", "many"], 2, "is not a number of credits"),
    (&["project", "create", "shop", "--max-cpu", "1x"], 2, "is not a unit"),
    (&["token", "create"], 2, "--role <ROLE>"),
    (&["token", "create", "--role", "root"], 2, "is not one of viewer"),
    (&["token", "revoke", "secret"], 2, "is not an id of the form `token-...`"),
    (&["events", "--limit", "0"], 2, "0 is not in 1..=1000"),
    (&["events", "--vm", "web"], 2, "--project <NAME>"),
    (&["settings", "set"], 2, "required arguments were not provided"),
    (&["settings", "set", "--lease", "-5s"], 2, "error:"),
    (&["image", "import"], 2, "required arguments were not provided"),
    (&["image", "import", "--disk", "x.qcow2"], 2, "--name <NAME>"),
    (&["image", "import", "dir", "--disk", "x.qcow2"], 2, "cannot be used with"),
    (&["completion", "tcsh"], 2, "[possible values:"),
    (&["lab", "up", "--hosts", "0"], 2, "0 is not in 1..=64"),
    (&["lab", "up", "--directory", LONG], 2, "the lab's directory is too long"),
    (&["lab", "status", "--directory", "none"], 1, "there is no lab `lab`"),
    (&["apply"], 2, "--file <FILE>"),
    (&["apply", "-f", "none.toml", "--server", MANAGER], 2, "cannot read the description"),
    (&["apply", "-f", "bad.toml", "--server", MANAGER], 2, "unknown field `vms`"),
    (&["apply", "-f", "syntax.toml", "--server", MANAGER], 2, "TOML parse error at line 1"),
    (&["apply", "-f", "bad.toml", "--delete", "--replace"], 2, "cannot be used with"),
    (&["whoami", "--server", "ftp://x"], 2, "is not an address of a server"),
    (&["whoami", "--server", MANAGER], 3, "cannot reach unix:/nonexistent/api.sock"),
    (&["-p", "shop", "vm", "list", "--server", MANAGER], 3, "cannot list VMs"),
    (&["whoami", "--server", MANAGER, "--token-file", "none"], 2, "cannot read the token file"),
    (&["whoami", "--server", MANAGER, "--token-file", "empty"], 2, "is empty"),
    (&["whoami", "--server", MANAGER, "--ca", "none.pem"], 2, "cannot read the CA certificate"),
    (&["whoami", "--context", "nowhere"], 2, "there is no context `nowhere`"),
    (&["context", "use", "nowhere"], 1, "there is no context `nowhere`"),
    (&["context", "set", "here"], 2, "would have no server"),
    (&["agent", "--config", "none.toml"], 2, "cannot use the agent's configuration"),
    (&["agent", "--join", "letmein"], 2, "this is not a join token"),
    (&["agent", "--join-file", "empty"], 2, "the join token is empty"),
    (&["agent", "--join", "x", "--join-file", "empty"], 2, "cannot be used with"),
    (&["server", "--config", "bad.toml"], 2, "cannot understand bad.toml"),
    (&["server", "--listen", "everywhere"], 2, "invalid value 'everywhere'"),
    (&["host", "show", "HOST"], 2, "is not a name"),
    (&["simulate"], 2, "Usage:"),
    (&["simulate", "pack"], 2, "<FILE>"),
    (&["simulate", "pack", "none.vbp"], 2, "cannot open none.vbp"),
    (&["simulate", "pack", "bad.vbp"], 2, "bad.vbp, line 4, column 3: expected an item's size"),
    (&["simulate", "pack", "bad.vbp", "--policy", "worst"], 2, "or best"),
    (&["simulate", "pack", "bad.vbp", "--time-limit", "-1"], 2, "error:"),
    (&["simulate", "pack", "bad.vbp", "--time-limit", "2d"], 2, "at most a day"),
    (&["simulate", "pack", "bad.vbp", "--jobs", "0"], 2, "0 is not in 1..=1024"),
    (&["simulate", "openb", "--nodes", "nodes.csv"], 2, "--pods <FILE>"),
    (
        &["simulate", "openb", "--nodes", "nodes.csv", "--pods", "nodes.csv"],
        2,
        "nodes.csv, line 1, column 1: expected the titles name,cpu_milli",
    ),
    (
        &["simulate", "openb", "--nodes", "bad.vbp", "--pods", "pods.csv"],
        2,
        "bad.vbp, line 1, column 1: expected the titles sn,cpu_milli",
    ),
    (
        &["simulate", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv"],
        2,
        "none of the pods asks for an accelerator",
    ),
    (
        &["simulate", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv", "--arrivals", "0"],
        2,
        "`0` is not a number from 0.01 to 100",
    ),
    (
        &["simulate", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv", "--seeds", "0"],
        2,
        "0 is not in 1..=10000",
    ),
    (
        &["simulate", "openb", "--nodes", "nodes.csv", "--pods", "pods.csv", "--policy", "a,b"],
        2,
        "`a` is not a placement policy",
    ),
    (
        &["simulate", "azure", "--requests", "r.txt", "--flavors", "map", "--intervals", "map"],
        2,
        "--hosts <SHAPE[xN]>",
    ),
    (&["simulate", "azure", "--hosts", "64 cores"], 2, "describes no hosts"),
    (
        &[
            "simulate",
            "azure",
            "--requests",
            "r.txt",
            "--flavors",
            "map",
            "--intervals",
            "map",
            "--hosts",
            "1c1g",
        ],
        2,
        "cannot read the requests",
    ),
    (
        &[
            "simulate",
            "azure",
            "--requests",
            "empty",
            "--flavors",
            "map",
            "--intervals",
            "map",
            "--hosts",
            "1c1g",
        ],
        2,
        "name their file with --lifetimes",
    ),
    (
        &[
            "simulate",
            "azure",
            "--requests",
            "empty",
            "--lifetimes",
            "empty",
            "--flavors",
            "nodes.csv",
            "--intervals",
            "map",
            "--hosts",
            "1c1g",
        ],
        2,
        "nodes.csv, line 1, column",
    ),
    (&["simulate", "consolidate", "--format", "planetlab"], 2, "<DAY>"),
    (&["simulate", "rebalance", "--format", "bytedance", "a", "b"], 2, "in one file, not in 2"),
    (&["simulate", "rebalance", "--format", "bytedance", "none"], 2, "cannot open none"),
    (
        &["simulate", "rebalance", "--format", "bytedance", "bad.vbp"],
        2,
        "bad.vbp, line 2, column 1: this is not the JSON that belongs here",
    ),
    (
        &["simulate", "rebalance", "--format", "roadef", "a", "b", "--moves", "5"],
        2,
        "--cluster and --moves are for --format bytedance",
    ),
    (&["simulate", "consolidate", "--format", "csv", "x"], 2, "possible values: planetlab"),
    (&["simulate", "consolidate", "--policy", "lr"], 2, "`lr` is not a policy of consolidation"),
    (
        &["simulate", "consolidate", "--format", "planetlab", "none", "--memory", "enforced"],
        2,
        "only the policy plimsoll counts memory",
    ),
    (
        &["simulate", "consolidate", "--format", "planetlab", "bad.vbp"],
        2,
        "bad.vbp, line 1, column 2: expected CPU use in %",
    ),
    (&["simulate", "overcommit", "--format", "bitbrains"], 2, "<DIR>"),
    (&["simulate", "overcommit", "--format", "csv"], 2, "possible values: bitbrains"),
    (&["simulate", "overcommit", "--host-cores", "0"], 2, "from 1 to 1000000 cores"),
    (&["simulate", "overcommit", "--host-memory", "1XB"], 2, "is not a unit"),
    (&["simulate", "overcommit", "--host-memory", "1KiB"], 2, "from 1MiB to 1024TiB"),
    (&["simulate", "overcommit", "--host-mhz", "1"], 2, "1 is not in 100..=100000"),
    (&["simulate", "overcommit", "--policy", "p99"], 2, "`p99` is not a policy of overcommitment"),
    (&["simulate", "overcommit", "--policy", "fixed:0"], 2, "X is from 0.1 to 100"),
    (&["simulate", "overcommit", "--risk-cpu", "100%"], 2, "`100%` is not a share"),
    (&["simulate", "overcommit", "--risk-memory", "-1"], 2, "error:"),
    (
        &[
            "simulate",
            "overcommit",
            "--format",
            "bitbrains",
            "none",
            "--host-cores",
            "4",
            "--host-memory",
            "4GiB",
        ],
        2,
        "cannot open none/vms.csv",
    ),
    (&["bench", "manager", "--batch", "0"], 2, "0 is not in 1..=1000"),
    (&["bench", "placement", "--hosts", "0"], 2, "0 is not in 1..=10000000"),
    (&["bench", "placement", "--mix", "all"], 2, "catalog, arbitrary"),
    (&["bench", "placement", "--policy", "first-fit,best"], 2, "`best` is not a placement policy"),
    (&["bench", "placement", "--constraints", "some"], 2, "none, spread, anti"),
    (&["-p", "shop", "vm", "exec", "web", "--timeout", "1h", "--", "ls"], 2, "at most 10m"),
    (&["-p", "shop", "vm", "console", "web", "--json"], 2, "a console has no JSON form"),
];

const FILES: &[&str] = &["bad.toml", "syntax.toml", "empty", "bad.vbp", "nodes.csv", "pods.csv"];

/// Files that cases name.
fn furnish(home: &Path) {
    fs::write(home.join("bad.toml"), "project = \"shop\"\n[[vms]]\nname = \"web\"\n").unwrap();
    fs::write(home.join("syntax.toml"), "project = = 5\n").unwrap();
    fs::write(home.join("empty"), "\n").unwrap();
    fs::write(home.join("bad.vbp"), "2\n10 10\n1\n5 11 1\n").unwrap();
    let nodes = "sn,cpu_milli,memory_mib,gpu,model\nn,1000,1024,1,T4\n";
    fs::write(home.join("nodes.csv"), nodes).unwrap();
    let pods = "name,cpu_milli,memory_mib,num_gpu,gpu_milli\np,1000,1024,0,0\n";
    fs::write(home.join("pods.csv"), pods).unwrap();
}

#[test]
fn every_mistake_is_named_with_its_cause_and_a_hint() {
    assert!(CASES.len() >= 60);
    let home = tempfile::tempdir().unwrap();
    furnish(home.path());
    let mut wrong = Vec::new();
    for (arguments, code, says) in CASES {
        let ran = run_in(home.path(), arguments);
        let mut fault = |what: &str| {
            wrong.push(format!("{arguments:?}: {what}\n  {:?}\n{}", ran.code, ran.stderr));
        };
        if ran.code != Some(*code) {
            fault(&format!("exit code, expected {code}"));
        }
        if !ran.stderr.contains(says) {
            fault(&format!("does not say `{says}`"));
        }
        if ran.stderr.contains("panicked") {
            fault("panicked");
        }
        // With no arguments at all the whole help is the answer.
        let explained = ran.stderr.contains("error: ") && ran.stderr.contains("hint: ");
        if !explained && !ran.stderr.contains("Usage:") {
            fault("no error and hint");
        }
        if !ran.stdout.is_empty() {
            fault("talk on standard output");
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), CASES.len(), wrong.join("\n"));
    let left: Vec<_> = fs::read_dir(home.path())
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| !FILES.contains(&name.as_str()))
        .collect();
    assert!(left.is_empty(), "refused commands left {left:?}");
}

#[test]
fn a_configuration_file_that_is_damaged_is_named() {
    let home = tempfile::tempdir().unwrap();
    let path = home.path().join(".config/plimsoll/config.toml");
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(&path, "current = 5\n").unwrap();
    let ran = run_in(home.path(), &["whoami"]);
    assert_eq!(ran.code, Some(2), "{}", ran.stderr);
    assert!(ran.stderr.contains("config.toml"), "{}", ran.stderr);
    assert!(ran.stderr.contains("hint: "), "{}", ran.stderr);
}

#[test]
fn variables_are_checked_like_options() {
    let home = tempfile::tempdir().unwrap();
    let output = command(home.path())
        .env("PLIMSOLL_PROJECT", "Not A Name")
        .args(["vm", "list"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    let stderr = String::from_utf8(output.stderr).unwrap();
    assert!(stderr.contains("is not a name"), "{stderr}");
}

#[test]
fn contexts_are_written_used_and_forgotten() {
    let home = tempfile::tempdir().unwrap();
    let run = |arguments: &[&str]| run_in(home.path(), arguments);
    let set = run(&["context", "set", "prod", "--server", MANAGER, "--project", "shop"]);
    assert_eq!(set.code, Some(0), "{}", set.stderr);
    let listed: serde_json::Value =
        serde_json::from_str(&run(&["context", "list", "--json"]).stdout).unwrap();
    assert_eq!(listed[0]["name"], "prod");
    assert_eq!(listed[0]["current"], true);
    assert_eq!(listed[0]["project"], "shop");
    // The context is in use: it is its manager that cannot be reached.
    let reached = run(&["vm", "list"]);
    assert_eq!(reached.code, Some(3), "{}", reached.stderr);
    assert_eq!(run(&["context", "delete", "prod"]).code, Some(0));
    assert_eq!(run(&["context", "list", "--json"]).stdout.trim(), "[]");
}
