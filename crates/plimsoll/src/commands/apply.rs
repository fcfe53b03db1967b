//! `plimsoll apply`.

use std::{io::Read as _, path::Path};

use fs_err as fs;
use plimsoll_model::Name;
use serde::Serialize;

use crate::{
    apply::{
        execute,
        file::{File, LONGEST},
        plan::{self, Options, Plan},
        render,
    },
    cli::vm::ApplyArgs,
    config::{ConfigFile, Connection},
    failure::{Failure, OrFail as _, Outcome},
    output::{self, Output},
};

/// What was planned and done, for programs.
#[derive(Serialize)]
struct Applied<'a> {
    project: &'a Name,
    #[serde(flatten)]
    plan: &'a Plan,
    /// Whether there was anything to do.
    changed: bool,
    /// Whether it was done.
    applied: bool,
    /// The VMs that were created or changed, as they are now.
    vms: Vec<plimsoll_api::v1::VmView>,
}

/// Makes a project what a file says it is.
pub(crate) async fn run(args: &ApplyArgs, connection: &Connection, output: Output) -> Outcome {
    let text = read(&args.file)?;
    let file = File::parse(&text)
        .or_usage(|| format!("cannot use {}", args.file.display()))
        .map_err(|failure| failure.hint("examples/webshop.toml shows every part of such a file"))?;
    let project = &file.project.name;
    if let Some(named) = connection.named_project()
        && named != project
    {
        return Err(Failure::usage(format!(
            "the file describes project `{project}`, but `{named}` was named"
        ))
        .hint("leave --project and PLIMSOLL_PROJECT out: the file says which project it is"));
    }
    let observed = execute::observe(connection, project).await?;
    let plan = if args.delete {
        plan::plan_deletion(&file, &observed)
    } else {
        plan::plan(&file, &observed, Options { replace: args.replace })
    };
    // Programs get the plan as a part of the one object at the end.
    if !output.is_json() {
        output.data(&render::plan(&output, project.as_str(), &plan))?;
    }
    if !plan.refusals.is_empty() {
        return Err(refused(&plan));
    }
    let mut vms = Vec::new();
    let applied = !args.plan && !plan.is_empty();
    if applied {
        confirm(&plan, args, output)?;
        vms = execute::execute(connection, project, &plan, args.wait).await?;
        if !args.delete {
            remember(connection, project)?;
        }
    }
    if output.is_json() {
        return output.json(&Applied {
            project,
            plan: &plan,
            changed: !plan.is_empty(),
            applied,
            vms,
        });
    }
    if !vms.is_empty() {
        output.data(&format!("\n{}", output::vm::list(&output, &vms, false)))?;
    }
    Ok(())
}

fn confirm(plan: &Plan, args: &ApplyArgs, output: Output) -> Outcome {
    let question = match plan.deletions() {
        0 => "Do it?".to_owned(),
        1 => "Do it, and delete 1 VM with its disk?".to_owned(),
        many => format!("Do it, and delete {many} VMs with their disks?"),
    };
    output.confirm(&question, args.yes)
}

fn refused(plan: &Plan) -> Failure {
    let mut failure = Failure::new("the plan cannot be carried out; nothing was done");
    for refusal in &plan.refusals {
        failure = failure.detail(&refusal.subject, &refusal.reason);
    }
    if plan.refusals.iter().all(|refusal| refusal.replaceable) {
        failure.hint("--replace deletes such VMs with their disks and creates them anew")
    } else {
        failure.hint("change the file, or what it needs")
    }
}

fn read(path: &Path) -> Outcome<String> {
    let mut text = String::new();
    let limit = LONGEST as u64 + 1;
    if path == Path::new("-") {
        std::io::stdin()
            .lock()
            .take(limit)
            .read_to_string(&mut text)
            .or_usage(|| "cannot read standard input".to_owned())?;
    } else {
        fs::File::open(path)
            .and_then(|file| file.take(limit).read_to_string(&mut text))
            .or_usage(|| "cannot read the description".to_owned())
            .map_err(|failure| failure.hint("-f names the file; examples/webshop.toml is one"))?;
    }
    if text.len() > LONGEST {
        return Err(Failure::usage(format!("{} is longer than {LONGEST} bytes", path.display())));
    }
    Ok(text)
}

/// A context that names no project gets this one: the commands that follow are about it.
fn remember(connection: &Connection, project: &Name) -> Outcome {
    let Some(context) = connection.context.clone() else { return Ok(()) };
    if connection.project_if_any().is_some() {
        return Ok(());
    }
    ConfigFile::change(|config| {
        if let Some(context) = config.contexts.get_mut(&context) {
            context.project = Some(project.clone());
        }
    })?;
    output::talk(&format!(
        "context {context}: commands now mean project {project} if they name none"
    ));
    Ok(())
}
