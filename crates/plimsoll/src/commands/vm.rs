//! `plimsoll vm`.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use plimsoll_api::{
    Client, ErrorBody,
    cluster::DeflationOutcome,
    v1::{CreateVmsRequest, DeflateVmRequest, SetVmRequest, StopVmRequest, VmView},
};
use plimsoll_model::{Amount, Elasticity, Name};
use serde::Serialize;

use super::{
    join,
    wait::{Wanted, until_gone, until_true},
};
use crate::{
    cli::{
        values::{WaitArgs, milliseconds},
        vm::{
            CreateArgs, DeflateArgs, DeleteArgs, ElasticityArgs, ListArgs, SetArgs, StopArgs,
            VmCommand,
        },
    },
    config::Connection,
    failure::{DONE, Failure, OrFail as _, Outcome},
    output::{self, Output, progress::Progress},
};

/// Runs what was typed.
pub(crate) async fn run(
    command: VmCommand,
    connection: &Connection,
    output: Output,
) -> Outcome<u8> {
    match command {
        VmCommand::Create(args) => create(&args, connection, output).await?,
        VmCommand::List(args) => list(&args, connection, output).await?,
        VmCommand::Show(args) => {
            let project = connection.project()?;
            let vm = connection
                .client
                .vm(&project, &args.name)
                .await
                .or_fail(|| format!("cannot show vm `{}`", args.name))?;
            let now = jiff::Timestamp::now();
            output.show(&vm, |output, vm| output::vm::show(output, vm, now))?;
        }
        VmCommand::Set(args) => set(&args, connection, output).await?,
        VmCommand::Deflate(args) => deflate(&args, connection, output).await?,
        VmCommand::Migrate(args) => super::migrate::migrate(&args, connection, output).await?,
        VmCommand::Profile(args) => {
            super::profile::profile(&args, connection, output).await?;
        }
        VmCommand::Inflate(args) => {
            each(Verb::Inflate, &args.names, args.wait, connection, output).await?;
        }
        VmCommand::Start(args) => {
            let verb = Verb::Start;
            each(verb, &args.names, args.wait, connection, output).await?;
        }
        VmCommand::Stop(StopArgs { vms, grace }) => {
            let seconds = u32::try_from(grace.as_secs()).unwrap_or(u32::MAX);
            if seconds > 3600 {
                return Err(Failure::usage("--grace may be at most 1h"));
            }
            each(Verb::Stop { grace_s: seconds }, &vms.names, vms.wait, connection, output).await?;
        }
        VmCommand::Reboot(args) => {
            each(Verb::Reboot, &args.names, args.wait, connection, output).await?;
        }
        VmCommand::Delete(args) => delete(&args, connection, output).await?,
        VmCommand::Exec(args) => return super::exec::exec(&args, connection, output).await,
        VmCommand::Logs(args) => super::exec::logs(&args, connection, output).await?,
        VmCommand::Console(args) => super::exec::console(&args.name, connection, output).await?,
        VmCommand::Explain(args) => super::explain::of_vm(&args.name, connection, output).await?,
    }
    Ok(DONE)
}

/// What was created, for programs.
#[derive(Serialize)]
struct Created<'a> {
    vms: &'a [VmView],
    refused: &'a BTreeMap<String, ErrorBody>,
}

async fn create(args: &CreateArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let deadline = Instant::now() + args.wait.timeout;
    let name = &args.request.name;
    let request = super::request::build(&args.request, connection, &project).await?;
    let progress = Progress::new(format!("placing vm {name}"));
    let response = connection
        .client
        .create_vms(
            &project,
            &CreateVmsRequest {
                requests: vec![request],
                all_or_nothing: !args.partial,
                policy: args.request.policy,
            },
        )
        .await
        .or_fail(|| format!("cannot create vm `{name}`"))?;
    let mut vms = response.vms;
    if !args.wait.no_wait {
        let wanted: Vec<_> = vms.iter().map(|vm| (vm.name.clone(), Wanted::Running)).collect();
        vms = until_true(connection, &project, &wanted, deadline, &progress).await?;
    }
    drop(progress);
    for (name, error) in &response.refused {
        output::talk(&format!("refused: vm {name}: {error}"));
    }
    if output.is_json() {
        output.json(&Created { vms: &vms, refused: &response.refused })?;
    } else {
        output.data(&output::vm::list(&output, &vms, false))?;
    }
    if vms.is_empty() && !response.refused.is_empty() {
        return Err(Failure::new("no VM could be created"));
    }
    Ok(())
}

async fn list(args: &ListArgs, connection: &Connection, output: Output) -> Outcome {
    let client = &connection.client;
    let what = || "cannot list VMs".to_owned();
    if !args.all_projects {
        let vms = client.vms(&connection.project()?).await.or_fail(what)?;
        return output.show(&vms, |output, vms| output::vm::list(output, vms, false));
    }
    let mut vms = Vec::new();
    for project in client.projects().await.or_fail(what)? {
        vms.extend(client.vms(&project.name).await.or_fail(what)?);
    }
    output.show(&vms, |output, vms| output::vm::list(output, vms, true))
}

/// What is booked in the project, or held until an end.
pub(super) async fn reservations(connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let what = || "cannot list reservations".to_owned();
    let reservations = connection.client.reservations(&project).await.or_fail(what)?;
    output
        .show(&reservations, |output, reservations| output::vm::reservations(output, reservations))
}

/// The class that the options make of what the VM has now; `None` where they name nothing of it.
async fn new_elasticity(
    args: &SetArgs,
    connection: &Connection,
    project: &Name,
) -> Outcome<Option<Elasticity>> {
    let given = &args.elasticity;
    let ElasticityArgs { class, min_memory, min_cpu, shares } = given;
    if class.is_none() && min_memory.is_none() && min_cpu.is_none() && shares.is_none() {
        return Ok(None);
    }
    let vm = connection.client.vm(project, &args.name).await?;
    let (memory, cpu) = (vm.resources.memory, vm.resources.cpu);
    let (memory, cpu) = (args.memory.unwrap_or(memory), args.cpu.unwrap_or(cpu));
    super::request::changed(&vm.spec.elasticity, given, memory, cpu).map(Some)
}

async fn set(args: &SetArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let name = &args.name;
    let deadline = Instant::now() + args.wait.timeout;
    let constraints = args.constraints.constraints();
    let end_at = args
        .end_at
        .map(|at| at.resolve(jiff::Timestamp::now()))
        .transpose()
        .map_err(Failure::usage)?;
    let elasticity = new_elasticity(args, connection, &project).await?;
    let request = SetVmRequest {
        cpu: args.cpu,
        memory: args.memory,
        disk: args.disk,
        disk_bandwidth: args.disk_bandwidth,
        disk_iops: args.disk_iops,
        network: args.network_bandwidth,
        end_at,
        restart: args.restart,
        on_host_failure: args.on_host_failure,
        elasticity,
        constraints: (args.no_constraints || !constraints.is_empty()).then_some(constraints),
        if_generation: args.if_generation,
    };
    let mut vm = connection
        .client
        .set_vm(&project, name, &request)
        .await
        .or_fail(|| format!("cannot change vm `{name}`"))?;
    if !args.wait.no_wait {
        let progress = Progress::new(format!("changing vm {name}"));
        let wanted = [(name.clone(), Wanted::Generation(vm.generation))];
        if let Some(now) =
            until_true(connection, &project, &wanted, deadline, &progress).await?.pop()
        {
            vm = now;
        }
    }
    output.show(&vm, |output, vm| output::vm::list(output, std::slice::from_ref(vm), false))
}

/// Takes what is asked for, and tells who gave it. It has failed if something is missing.
/// Deflates a VM, waits until that has settled, and tells how it went.
pub(super) async fn deflated(
    connection: &Connection,
    project: &Name,
    name: &Name,
    request: &DeflateVmRequest,
    progress: &Progress,
) -> Outcome<DeflationOutcome> {
    /// What the way there and back, and a look that comes just too late, may take.
    const SLACK: Duration = Duration::from_secs(30);
    let deadline = Instant::now() + Duration::from_millis(request.within_ms) + SLACK;
    let vm = connection.client.deflate_vm(project, name, request).await;
    let vm = vm.or_fail(|| format!("cannot deflate vm `{name}`"))?;
    let wanted = [(name.clone(), Wanted::Generation(vm.generation))];
    let now = until_true(connection, project, &wanted, deadline, progress).await?.pop();
    now.and_then(|vm| vm.deflation_outcome)
        .filter(|outcome| outcome.generation == vm.generation)
        .ok_or_else(|| Failure::new(format!("vm `{name}` was changed or stopped meanwhile")))
}

async fn deflate(args: &DeflateArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let name = &args.name;
    let request = DeflateVmRequest {
        memory_percent: args.memory.unwrap_or(0),
        cpu_percent: args.cpu.unwrap_or(0),
        within_ms: milliseconds(args.within),
        from: args.from.into(),
    };
    let progress = Progress::new(format!("deflating vm {name}"));
    let outcome = deflated(connection, &project, name, &request, &progress).await?;
    drop(progress);
    output.show(&outcome, output::vm::deflation)?;
    if outcome.missing == Amount::default() {
        return Ok(());
    }
    let Amount { memory, cpu } = outcome.missing;
    Err(Failure::new(format!("{memory} of memory and {cpu} of CPU could not be taken"))
        .context(format!("vm `{name}` is deflated only in part"))
        .hint("what was taken stays taken until `plimsoll vm inflate`"))
}

/// What is done to each of some VMs.
#[derive(Clone, Copy)]
enum Verb {
    Start,
    Stop { grace_s: u32 },
    Reboot,
    Inflate,
}

impl Verb {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "start",
            Self::Stop { .. } => "stop",
            Self::Reboot => "reboot",
            Self::Inflate => "inflate",
        }
    }

    const fn wanted(self, vm: &VmView) -> Wanted {
        match self {
            Self::Start => Wanted::Running,
            Self::Stop { .. } => Wanted::Stopped,
            // The old guest answers until it goes down: only the generation tells that it was done.
            Self::Reboot => Wanted::RunningGeneration(vm.generation),
            Self::Inflate => Wanted::Generation(vm.generation),
        }
    }

    async fn ask(self, client: &Client, project: &Name, name: &Name) -> Outcome<VmView> {
        let result = match self {
            Self::Start => client.start_vm(project, name).await,
            Self::Stop { grace_s } => {
                client.stop_vm(project, name, &StopVmRequest { grace_s }).await
            }
            Self::Reboot => client.reboot_vm(project, name).await,
            Self::Inflate => client.inflate_vm(project, name).await,
        };
        result.or_fail(|| format!("cannot {} vm `{name}`", self.name()))
    }
}

async fn each(
    verb: Verb,
    names: &[Name],
    wait: WaitArgs,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let project = connection.project()?;
    let deadline = Instant::now() + wait.timeout;
    let progress = Progress::new(format!("{}: {}", verb.name(), join(names)));
    let mut vms = Vec::new();
    for name in names {
        vms.push(verb.ask(&connection.client, &project, name).await?);
    }
    if !wait.no_wait {
        let wanted: Vec<_> = vms.iter().map(|vm| (vm.name.clone(), verb.wanted(vm))).collect();
        vms = until_true(connection, &project, &wanted, deadline, &progress).await?;
    }
    drop(progress);
    output.show(&vms, |output, vms| output::vm::list(output, vms, false))
}

async fn delete(args: &DeleteArgs, connection: &Connection, output: Output) -> Outcome {
    let project = connection.project()?;
    let names = &args.vms.names;
    let deadline = Instant::now() + args.vms.wait.timeout;
    let what = if names.len() == 1 { "vm" } else { "VMs" };
    output.confirm(
        &format!("Delete {what} {} of project {project} with all data?", join(names)),
        args.yes,
    )?;
    let progress = Progress::new(format!("deleting {}", join(names)));
    for name in names {
        connection
            .client
            .delete_vm(&project, name)
            .await
            .or_fail(|| format!("cannot delete vm `{name}`"))?;
    }
    if !args.vms.wait.no_wait {
        until_gone(&connection.client, &project, names, deadline, &progress).await?;
    }
    drop(progress);
    if output.is_json() {
        return output.json(
            &names
                .iter()
                .map(|name| serde_json::json!({ "done": "deleted", "name": name }))
                .collect::<Vec<_>>(),
        );
    }
    output::talk(&format!("deleted: {}", join(names)));
    Ok(())
}
