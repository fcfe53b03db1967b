use plimsoll_model::Image;

use super::*;
use crate::{apply::render, output::Output};

const FILE: &str = r#"
project = { name = "shop", quota = { vms = 10 } }

[[network]]
name = "net"
cidr = "10.20.0.0/24"

[[vm]]
name = "web"
count = 2
image = "tiny"
resources = { cpu = "500m", memory = "128MiB" }
networks = ["net"]
groups = ["web"]
constraints = [{ anti_affinity = { group = "web" } }]

[[vm]]
name = "batch"
split = { min_vms = 2, max_vms = 4 }
image = "tiny"
resources = { cpu = "1", memory = "512MiB", disk = "1GiB" }

[[vm]]
name = "pay"
image = "tiny"
resources = { cpu = "250m", memory = "128MiB", disk = "256MiB" }
constraints = [{ exclusive = { against = "other_projects" } }]
"#;

fn file() -> File {
    File::parse(FILE).unwrap()
}

/// The file with something else in a place.
fn changed(old: &str, new: &str) -> File {
    assert!(FILE.contains(old), "{old}");
    File::parse(&FILE.replace(old, new)).unwrap()
}

#[test]
fn times_are_said_when_a_vm_is_created() {
    let with = |more: &str| {
        let old = "resources = { cpu = \"250m\", memory = \"128MiB\", disk = \"256MiB\" }";
        changed(old, &format!("{old}\n{more}"))
    };
    let file = with("duration = \"2h 30m\"\ndeadline = \"2030-01-01T06:00:00Z\"");
    let planned = plan(&file, &empty(), Options::default());
    let created = planned.steps.iter().find_map(|step| match step {
        Step::CreateVms { request } => request.requests.iter().find(|vm| vm.name.as_str() == "pay"),
        _ => None,
    });
    let spec = &created.unwrap().spec;
    assert_eq!(spec.duration_ms, Some(9_000_000));
    assert_eq!(spec.deadline, Some("2030-01-01T06:00:00Z".parse().unwrap()));
    let mut after = carried_out(&empty(), &planned);
    assert!(plan(&file, &after, Options::default()).steps.is_empty());
    // When it starts it gets an end, which the file says nothing of.
    let pay = after.vms.iter_mut().find(|vm| vm.name.as_str() == "pay").unwrap();
    pay.spec.end_at = Some("2030-01-01T05:00:00Z".parse().unwrap());
    assert!(plan(&file, &after, Options::default()).steps.is_empty());
    let longer = with("duration = \"3h\"");
    let refused = plan(&longer, &after, Options::default()).refusals;
    assert_eq!(refused.len(), 1, "{refused:?}");
    let wrong = FILE.replace("count = 2", "count = 2\nduration = \"soon\"");
    assert!(File::parse(&wrong).is_err());
}

fn tiny() -> Image {
    serde_json::from_value(serde_json::json!({
        "id": "image-00000000000000000000000000000001", "project": null, "name": "tiny",
        "files": [], "disk_size": "64MiB", "disk_format": "qcow2", "min_memory": "128MiB",
        "guest_agent": true, "phase": "ready", "created_at": "2030-01-01T00:00:00Z"
    }))
    .unwrap()
}

/// An empty cluster that has the image.
fn empty() -> Observed {
    Observed { images: vec![tiny()], ..Observed::default() }
}

fn vm(name: &str, spec: &VmSpec) -> VmView {
    let mut vm = crate::output::vm::tests::sample(name);
    vm.spec = spec.clone();
    vm.resources = spec.resources.clone();
    vm
}

/// What there would be, had the plan been carried out: a model of the manager.
fn carried_out(observed: &Observed, plan: &Plan) -> Observed {
    let mut after = observed.clone();
    for step in &plan.steps {
        match step {
            Step::CreateProject { request } => {
                after.project = Some(
                    serde_json::from_value(serde_json::json!({
                        "id": "project-00000000000000000000000000000001", "name": request.name,
                        "quota": request.quota, "used": {}, "vms": 0, "credits": null,
                        "created_at": "2030-01-01T00:00:00Z"
                    }))
                    .unwrap(),
                );
            }
            Step::SetProject { request, .. } => {
                if let (Some(project), Some(quota)) = (&mut after.project, &request.quota) {
                    project.quota = quota.clone();
                }
            }
            Step::CreateNetwork { request } => after.networks.push(
                serde_json::from_value(serde_json::json!({
                    "id": "net-00000000000000000000000000000001",
                    "project": "project-00000000000000000000000000000001", "name": request.name,
                    "cidr": request.cidr.map_or("10.99.0.0/24".to_owned(), |c| c.to_string()),
                    "vni": 1, "outside": request.outside, "created_at": "2030-01-01T00:00:00Z"
                }))
                .unwrap(),
            ),
            Step::SetVm { name, request, .. } => {
                let vm = after.vms.iter_mut().find(|vm| vm.name == *name).unwrap();
                let resources = &mut vm.spec.resources;
                resources.cpu = request.cpu.unwrap_or(resources.cpu);
                resources.memory = request.memory.unwrap_or(resources.memory);
                resources.disk = request.disk.unwrap_or(resources.disk);
                resources.network = request.network.unwrap_or(resources.network);
                if let Some(constraints) = &request.constraints {
                    vm.spec.constraints = constraints.clone();
                }
                vm.spec.restart = request.restart.unwrap_or(vm.spec.restart);
            }
            Step::DeleteVm { name, .. } => after.vms.retain(|vm| vm.name != *name),
            Step::CreateVms { request } => {
                for request in &request.requests {
                    create(&mut after, request);
                }
            }
            Step::DeleteNetwork { name } => after.networks.retain(|n| n.name != *name),
            Step::DeleteProject { .. } => after.project = None,
        }
    }
    after
}

fn create(after: &mut Observed, request: &VmRequest) {
    let Some(split) = request.split else {
        after.vms.push(vm(request.name.as_str(), &request.spec));
        return;
    };
    let total = &request.spec.resources;
    for number in 1..=split.min_vms {
        let mut spec = request.spec.clone();
        // The first takes what does not divide, as the manager's split does.
        let share = |x: u64| {
            let each = x / u64::from(split.min_vms);
            if number == 1 { x - each * u64::from(split.min_vms - 1) } else { each }
        };
        spec.resources = Resources::from_scalars(total.scalars().map(share));
        after.vms.push(vm(&format!("{}-{number}", request.name), &spec));
    }
}

fn shown(plan: &Plan) -> String {
    render::plan(&Output::plain(), "shop", plan)
}

/// What there is once the file was applied.
fn applied() -> Observed {
    carried_out(&empty(), &plan(&file(), &empty(), Options::default()))
}

#[test]
fn everything_is_created_at_first_and_nothing_changes_afterwards() {
    let first = plan(&file(), &empty(), Options::default());
    insta::assert_snapshot!(shown(&first));
    let second = plan(&file(), &applied(), Options::default());
    assert!(second.is_empty(), "{}", shown(&second));
    assert_eq!(shown(&second), "no changes\n");
}

#[test]
fn what_can_be_changed_on_a_running_vm_is() {
    let file = changed("cpu = \"250m\"", "cpu = \"500m\"");
    let plan = plan(&file, &applied(), Options::default());
    insta::assert_snapshot!(shown(&plan), @r"
    plan for project shop:

      ~ vm pay               cpu 250m -> 500m

    0 to create, 1 to change, 0 to delete
    ");
    let after = carried_out(&applied(), &plan);
    assert!(super::plan(&file, &after, Options::default()).is_empty());
}

#[test]
fn scaling_down_removes_the_highest_numbers_and_scaling_up_adds_missing_ones() {
    let up = changed("count = 2", "count = 4");
    let four = carried_out(&applied(), &plan(&up, &applied(), Options::default()));
    let names = |observed: &Observed| -> Vec<String> {
        let mut names: Vec<_> = observed
            .vms
            .iter()
            .map(|vm| vm.name.to_string())
            .filter(|n| n.starts_with("web"))
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(&four), ["web-1", "web-2", "web-3", "web-4"]);
    insta::assert_snapshot!(shown(&plan(&file(), &four, Options::default())), @r"
    plan for project shop:

      - vm web-4             beyond the count of 2
      - vm web-3             beyond the count of 2

    0 to create, 0 to change, 2 to delete
    ");
    // One in the middle is missing: it alone is made.
    let mut hole = applied();
    hole.vms.retain(|vm| vm.name.as_str() != "web-1");
    let plan = plan(&file(), &hole, Options::default());
    let [Step::CreateVms { request }] = plan.steps.as_slice() else { panic!("{}", shown(&plan)) };
    assert_eq!(request.requests.len(), 1);
    assert_eq!(request.requests[0].name.as_str(), "web-1");
}

#[test]
fn what_cannot_be_changed_is_refused_with_its_reason_or_replaced() {
    let file = changed(
        "resources = { cpu = \"250m\", memory = \"128MiB\", disk = \"256MiB\" }",
        "resources = { cpu = \"250m\", memory = \"128MiB\", disk = \"128MiB\" }\nnetworks = [\"net\"]",
    );
    let refused = plan(&file, &applied(), Options::default());
    insta::assert_snapshot!(shown(&refused));
    assert!(refused.refusals.iter().all(|refusal| refusal.replaceable));
    let replaced = plan(&file, &applied(), Options { replace: true });
    assert!(replaced.refusals.is_empty());
    insta::assert_snapshot!(shown(&replaced));
    let after = carried_out(&applied(), &replaced);
    assert!(plan(&file, &after, Options::default()).is_empty());
}

#[test]
fn a_total_is_split_once() {
    let file = changed("memory = \"512MiB\"", "memory = \"1GiB\"");
    let refused = plan(&file, &applied(), Options::default());
    assert_eq!(refused.refusals.len(), 1);
    assert!(refused.refusals[0].reason.contains("512MiB memory"), "{}", refused.refusals[0].reason);
    let replaced = plan(&file, &applied(), Options { replace: true });
    assert_eq!(replaced.deletions(), 2);
    // Other fields of its members can be changed as those of any VM.
    let file = changed("split = {", "restart = \"never\"\nsplit = {");
    let plan = plan(&file, &applied(), Options::default());
    assert!(plan.refusals.is_empty());
    assert_eq!(plan.steps.len(), 2);
}

#[test]
fn unknown_images_and_networks_are_named() {
    let file = changed("networks = [\"net\"]", "networks = [\"nte\"]");
    let observed = Observed::default();
    insta::assert_snapshot!(shown(&plan(&file, &observed, Options::default())));
}

#[test]
fn networks_cannot_change_their_addresses() {
    let file = changed("10.20.0.0/24", "10.21.0.0/24");
    let plan = plan(&file, &applied(), Options { replace: true });
    assert_eq!(plan.refusals.len(), 1);
    assert!(!plan.refusals[0].replaceable);
}

#[test]
fn deletion_takes_what_the_file_describes_and_leaves_the_rest() {
    let all = plan_deletion(&file(), &applied());
    insta::assert_snapshot!(shown(&all));
    let nothing = carried_out(&applied(), &all);
    assert!(nothing.project.is_none() && nothing.vms.is_empty() && nothing.networks.is_empty());
    assert!(plan_deletion(&file(), &nothing).is_empty());

    let mut more = applied();
    let spec = more.vms[0].spec.clone();
    more.vms.push(vm("mine", &spec));
    let some = plan_deletion(&file(), &more);
    assert_eq!(some.notes.len(), 2, "{:?}", some.notes);
    let after = carried_out(&more, &some);
    assert_eq!(after.vms.len(), 1);
    assert_eq!(after.networks.len(), 1, "`mine` uses it");
}

#[test]
fn what_the_image_decides_is_not_a_change() {
    let mut observed = applied();
    // The disk of a VM whose size the file does not say has grown.
    for vm in &mut observed.vms {
        if vm.name.as_str() == "web-1" {
            vm.spec.resources.disk = plimsoll_model::Bytes::gib(5);
        }
    }
    assert!(plan(&file(), &observed, Options::default()).is_empty());
}

#[test]
fn the_same_input_gives_the_same_plan() {
    let json = |plan: &Plan| serde_json::to_string(plan).unwrap();
    let one = plan(&file(), &empty(), Options::default());
    let two = plan(&file(), &empty(), Options::default());
    assert_eq!(json(&one), json(&two));
}
