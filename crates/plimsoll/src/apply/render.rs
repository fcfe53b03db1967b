//! A plan as people read it: `+` creates, `~` changes, `-` deletes, `!` cannot be done.

use std::fmt::Write as _;

use plimsoll_api::v1::VmRequest;

use super::plan::{Change, Plan, Step};
use crate::output::{Output, Tone, vm::resources};

/// The plan for a project of this name.
pub(crate) fn plan(output: &Output, project: &str, plan: &Plan) -> String {
    if plan.is_empty() {
        let mut text = "no changes\n".to_owned();
        notes(output, plan, &mut text);
        return text;
    }
    let mut text = format!("plan for project {project}:\n\n");
    for step in &plan.steps {
        render(output, step, &mut text);
    }
    for refusal in &plan.refusals {
        line(output, &mut text, '!', &refusal.subject, &refusal.reason);
    }
    notes(output, plan, &mut text);
    let (mut create, mut set, mut delete) = (0, 0, 0);
    for step in &plan.steps {
        match step {
            Step::CreateProject { .. } | Step::CreateNetwork { .. } => create += 1,
            Step::CreateVms { request } => create += request.requests.len(),
            Step::SetProject { .. } | Step::SetVm { .. } => set += 1,
            Step::DeleteVm { .. } | Step::DeleteNetwork { .. } | Step::DeleteProject { .. } => {
                delete += 1;
            }
        }
    }
    let _ = write!(text, "\n{create} to create, {set} to change, {delete} to delete");
    if !plan.refusals.is_empty() {
        let _ = write!(text, ", {} that cannot be done", plan.refusals.len());
    }
    text.push('\n');
    text
}

fn notes(output: &Output, plan: &Plan, text: &mut String) {
    for note in &plan.notes {
        let _ = writeln!(text, "  {}", output.paint(note, Tone::Faint));
    }
}

fn render(output: &Output, step: &Step, text: &mut String) {
    match step {
        Step::CreateProject { request } => {
            let quota = crate::output::cluster::quota(&request.quota);
            line(
                output,
                text,
                '+',
                &format!("project {}", request.name),
                &format!("quota: {quota}"),
            );
        }
        Step::SetProject { name, changes, .. } => {
            line(output, text, '~', &format!("project {name}"), &changed(changes));
        }
        Step::CreateNetwork { request } => {
            let cidr =
                request.cidr.map_or_else(|| "addresses: any".to_owned(), |cidr| cidr.to_string());
            let outside = if request.outside { ", reaches the outside" } else { "" };
            line(
                output,
                text,
                '+',
                &format!("network {}", request.name),
                &format!("{cidr}{outside}"),
            );
        }
        Step::SetVm { name, changes, .. } => {
            line(output, text, '~', &format!("vm {name}"), &changed(changes));
        }
        Step::DeleteVm { name, reason } => {
            line(output, text, '-', &format!("vm {name}"), reason);
        }
        Step::CreateVms { request } => {
            for vm in &request.requests {
                line(output, text, '+', &format!("vm {}", names(vm)), &created(vm));
            }
        }
        Step::DeleteNetwork { name } => {
            line(output, text, '-', &format!("network {name}"), "");
        }
        Step::DeleteProject { name } => {
            line(output, text, '-', &format!("project {name}"), "");
        }
    }
}

fn names(request: &VmRequest) -> String {
    match request.split {
        Some(_) => format!("{}-*", request.name),
        None => request.name.to_string(),
    }
}

fn created(request: &VmRequest) -> String {
    let spec = &request.spec;
    let mut text = match request.split {
        Some(split) => format!(
            "in all {}, split into {} to {} VMs",
            resources(&spec.resources),
            split.min_vms,
            split.max_vms
        ),
        None => resources(&spec.resources),
    };
    let _ = write!(text, "; image {}", spec.image);
    for constraint in &spec.constraints {
        let _ = write!(text, "; {constraint}");
    }
    text
}

fn changed(changes: &[Change]) -> String {
    let changes: Vec<_> =
        changes.iter().map(|c| format!("{} {} -> {}", c.field, c.old, c.new)).collect();
    changes.join(", ")
}

fn line(output: &Output, text: &mut String, sign: char, subject: &str, rest: &str) {
    let tone = match sign {
        '+' => Tone::Good,
        '~' => Tone::Attention,
        _ => Tone::Bad,
    };
    let sign = output.paint(&sign.to_string(), tone);
    let _ = writeln!(text, "{}", format!("  {sign} {subject:<20} {rest}").trim_end());
}
