use plimsoll_model::Name;

use super::{layout::Lab, status};
use crate::{cli::lab::LabNameArgs, output::Output};

#[test]
fn directories_that_would_make_the_socket_too_long_are_refused() {
    let find = |directory: String| {
        let name: Name = "lab".parse().unwrap();
        Lab::find(&LabNameArgs { name, directory: Some(directory.into()) })
    };
    assert!(find(format!("/{}", "x".repeat(80))).is_ok());
    assert!(find(format!("/{}", "x".repeat(100))).is_err());
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
