use plimsoll_model::Name;

use super::{layout::Lab, status};
use crate::{cli::lab::LabNameArgs, output::Output};

fn args(name: &str) -> LabNameArgs {
    LabNameArgs { name: name.parse::<Name>().unwrap(), directory: Some("/srv/x".into()) }
}

#[test]
fn names_that_would_make_sockets_too_long_are_refused() {
    assert!(Lab::find(&args("a-name-of-fifte")).is_ok());
    assert!(Lab::find(&args("a-name-of-sixtee")).is_err());
}

#[test]
fn a_lab_is_shown_part_by_part() {
    let part = |name: &str, pid, alive, connected, vms| status::PartStatus {
        name: name.to_owned(),
        pid,
        alive,
        connected,
        address: "192.0.2.1".to_owned(),
        vms,
        log: format!("/srv/x/logs/{name}.log").into(),
    };
    let shown = status::LabStatus {
        name: "lab".to_owned(),
        directory: "/srv/x".into(),
        server: "unix:/srv/x/manager/api.sock".to_owned(),
        parts: vec![
            part("manager", Some(17), true, true, 0),
            part("host-1", Some(18), false, true, 2),
            part("host-2", None, false, false, 0),
        ],
    };
    insta::assert_snapshot!(status::render(&Output::plain(), &shown));
}
