//! `plimsoll lab`.

use crate::{
    cli::lab::{AttackCommand, LabCommand, LabDownArgs, LabTargetArgs, LabUpArgs},
    failure::{DONE, Failure, Outcome},
    lab::{
        attack, down,
        layout::Lab,
        status::{self, LabStatus},
        up,
    },
    output::{Output, progress::Progress},
};

/// Runs what was typed.
pub(crate) async fn run(command: LabCommand, output: Output) -> Outcome<u8> {
    match command {
        LabCommand::Up(args) => up(&args, output).await?,
        LabCommand::Down(args) => down(&args, output)?,
        LabCommand::Status(args) => status::show(&Lab::find(&args)?, output)?,
        LabCommand::Kill(args) => {
            let lab = target(&args)?;
            down::kill(&lab, args.target.as_str())?;
            super::done(output, "killed", args.target.as_str())?;
        }
        LabCommand::Cut(args) => {
            let lab = target(&args)?;
            down::set_link(&lab, args.target.as_str(), false)?;
            super::done(output, "cut off", args.target.as_str())?;
        }
        LabCommand::Heal(args) => {
            let lab = target(&args)?;
            down::set_link(&lab, args.target.as_str(), true)?;
            super::done(output, "connected again", args.target.as_str())?;
        }
        LabCommand::Attack(AttackCommand::Dedup(args)) => {
            need_root()?;
            attack::run(&args, output).await?;
        }
    }
    Ok(DONE)
}

/// A lab needs namespaces, cgroups and taps.
pub(crate) fn need_root() -> Outcome {
    if nix::unistd::geteuid().is_root() {
        return Ok(());
    }
    Err(Failure::new("a lab needs root: it makes network namespaces, taps and cgroups")
        .hint("run it with sudo"))
}

async fn up(args: &LabUpArgs, output: Output) -> Outcome {
    need_root()?;
    let lab = Lab::hold(&args.lab, true)?;
    let progress = Progress::new(format!("bringing lab {} up", lab.name));
    up::up(&lab, args, &progress).await?;
    drop(progress);
    let state = lab.load()?.ok_or_else(|| lab.not_there())?;
    output.show(&LabStatus::of(&lab, &state), status::render)
}

fn down(args: &LabDownArgs, output: Output) -> Outcome {
    need_root()?;
    let lab = Lab::hold(&args.lab, false)?;
    if args.purge {
        output.confirm(
            &format!("End lab {} and delete all of its data, disks of VMs too?", lab.name),
            args.yes,
        )?;
    }
    let progress = Progress::new(format!("taking lab {} down", lab.name));
    down::down(&lab, &progress)?;
    if args.purge {
        down::purge(&lab)?;
    }
    drop(progress);
    super::done(output, if args.purge { "down and purged" } else { "down" }, lab.name.as_str())
}

fn target(args: &LabTargetArgs) -> Outcome<Lab> {
    need_root()?;
    Lab::hold(&args.lab, false)
}
