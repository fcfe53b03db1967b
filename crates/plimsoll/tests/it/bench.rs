//! `plimsoll bench` on what is small enough for every decision to be verified, or looked at.

use serde_json::Value;

use super::program::run_in;

#[test]
fn placement_is_measured_and_every_decision_is_that_of_a_scan() {
    let home = tempfile::tempdir().unwrap();
    for mix in ["catalog", "arbitrary"] {
        for constraints in ["none", "spread", "anti"] {
            let ran = run_in(
                home.path(),
                &[
                    &["bench", "placement", "--hosts", "200", "--mix", mix],
                    &["--policy", "cosine", "--constraints", constraints][..],
                    &["--requests", "200", "--verify", "200", "--json"][..],
                ]
                .concat(),
            );
            assert_eq!(ran.code, Some(0), "{}", ran.stderr);
            let report: Value = serde_json::from_str(&ran.stdout).unwrap();
            for key in ["p50_us", "p99_us", "per_second", "scan_p50_us", "speedup_p50"] {
                assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
            }
            let counted = [("hosts", 200), ("requests", 200), ("verified", 200), ("mismatches", 0)];
            for (key, value) in counted {
                assert_eq!(report[key], value, "{key}: {report}");
            }
            assert!(report["bytes_per_host"].as_u64().unwrap() > 100, "{report}");
            assert_eq!(report["mix"], mix);
            assert_eq!(report["policy"], "cosine");
            assert_eq!(report["constraints"], constraints);
        }
    }
}

#[test]
fn plans_for_one_host_are_measured() {
    let home = tempfile::tempdir().unwrap();
    let args = ["bench", "reclaim", "--vms", "40", "--rounds", "60", "--json"];
    let ran = run_in(home.path(), &args);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    for key in ["p50_us", "p99_us", "max_us"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let count = |key: &str| report[key].as_u64().unwrap();
    assert_eq!((count("vms"), count("rounds")), (40, 60));
    assert_eq!(count("high") + count("soft") + count("hard") + count("low"), 60, "{report}");
    assert!(count("needed") > 0, "{report}");
}

#[test]
fn plans_against_hotspots_are_measured() {
    let home = tempfile::tempdir().unwrap();
    let args = ["bench", "balance", "--hosts", "60", "--vms", "600", "--rounds", "3", "--json"];
    let ran = run_in(home.path(), &[&args[..], &["--hot-percent", "10"]].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let report: Value = serde_json::from_str(&ran.stdout).unwrap();
    for key in ["p50_ms", "p99_ms", "max_ms", "observe_p50_ms"] {
        assert!(report[key].as_f64().unwrap() > 0.0, "{key}: {report}");
    }
    let count = |key: &str| report[key].as_u64().unwrap();
    assert_eq!((count("hosts"), count("vms"), count("rounds")), (60, 600, 3));
    assert!(count("hotspots") > 0 && count("moves") > 0, "{report}");
    assert!(count("overload_after_permille") < count("overload_before_permille"), "{report}");
}
