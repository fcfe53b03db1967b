//! What runs for long (`server`, `agent`), and what needs no manager (`doctor`, `completion`, `bench`).

use std::{io::Read as _, path::PathBuf};

use clap::CommandFactory as _;
use fs_err as fs;
use plimsoll_agent::{
    AgentConfig, AgentOverrides, Start,
    config::DeclaredCapacity,
    doctor::{DoctorOptions, examine},
};
use plimsoll_api::doctor::{CheckStatus, DoctorReport};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{
    cli::{
        Cli,
        cluster::{AgentArgs, BenchCommand, CompletionArgs, DoctorArgs, ServerArgs},
    },
    failure::{DONE, FAILED, Failure, OrFail as _, Outcome},
    output::{Output, Tone},
};

/// The variable with a join token.
const JOIN_TOKEN: &str = "PLIMSOLL_JOIN_TOKEN";
/// A join token is some 200 characters.
const LONGEST_JOIN_TOKEN: u64 = 4096;

/// Ends with SIGINT or SIGTERM.
fn shutdown() -> Outcome<CancellationToken> {
    let token = CancellationToken::new();
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let cancel = token.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("asked to end");
        cancel.cancel();
    });
    Ok(token)
}

/// Logs go to standard error; `PLIMSOLL_LOG` says how much, as `info` or `plimsoll_agent=debug`.
fn start_logging() -> Outcome {
    use tracing_subscriber::EnvFilter;
    let filter = match std::env::var("PLIMSOLL_LOG") {
        Ok(text) => EnvFilter::try_new(&text)
            .or_usage(|| "PLIMSOLL_LOG is not a filter of logs".to_owned())
            .map_err(|failure| failure.hint("use `info`, or `warn,plimsoll_agent=debug`"))?,
        Err(_) => EnvFilter::new("info"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}

/// Runs the manager.
pub(crate) async fn server(args: ServerArgs) -> Outcome {
    start_logging()?;
    let config = crate::server_config::load(args)?;
    let shutdown = shutdown()?;
    plimsoll_manager::serve(config, shutdown.cancelled_owned())
        .await
        .or_fail(|| "the manager cannot run".to_owned())
}

/// Runs the agent.
pub(crate) async fn agent(args: AgentArgs) -> Outcome {
    start_logging()?;
    let join = join_token(&args)?;
    let overrides = AgentOverrides {
        name: args.name,
        data_dir: args.data_dir,
        listen: args.listen,
        rack: args.rack,
        zone: args.zone,
        capacity: DeclaredCapacity {
            cpu: args.cpu,
            memory: args.memory,
            disk: args.disk,
            disk_bandwidth: args.disk_bandwidth,
            disk_iops: args.disk_iops,
            network: args.network,
        },
        ..AgentOverrides::default()
    };
    let config = AgentConfig::load(args.config.as_deref())
        .or_usage(|| "cannot use the agent's configuration".to_owned())?
        .with(overrides);
    let this = std::env::current_exe()?;
    let verb = |verb: &str| vec![this.clone(), PathBuf::from(verb)];
    let start = Start { join, guard_command: verb("vm-guard"), tunnel_command: verb("vm-tunnel") };
    plimsoll_agent::run(config, start, shutdown()?)
        .await
        .or_fail(|| "the agent cannot run".to_owned())
}

/// The join token, from wherever it was given.
fn join_token(args: &AgentArgs) -> Outcome<Option<String>> {
    let text = match (&args.join, &args.join_file) {
        (Some(dash), _) if dash == "-" => {
            let mut text = String::new();
            std::io::stdin().lock().take(LONGEST_JOIN_TOKEN).read_to_string(&mut text)?;
            text
        }
        (Some(token), _) => token.clone(),
        (None, Some(path)) => {
            let mut text = String::new();
            fs::File::open(path)
                .and_then(|file| file.take(LONGEST_JOIN_TOKEN).read_to_string(&mut text))
                .or_usage(|| "cannot read the join token".to_owned())?;
            text
        }
        (None, None) => match std::env::var(JOIN_TOKEN) {
            Ok(text) => text,
            Err(_) => return Ok(None),
        },
    };
    let token = text.trim();
    if token.is_empty() {
        return Err(Failure::usage("the join token is empty")
            .hint("make one with `plimsoll join-token create`"));
    }
    // Checked here, so that a token that was cut off is a usage error.
    token
        .parse::<plimsoll_api::JoinToken>()
        .or_usage(|| "cannot join".to_owned())
        .map_err(|failure| failure.hint("make one with `plimsoll join-token create`"))?;
    Ok(Some(token.to_owned()))
}

/// Looks at this machine.
pub(crate) async fn doctor(args: &DoctorArgs, output: Output) -> Outcome<u8> {
    let config = AgentConfig::load(args.config.as_deref())
        .or_usage(|| "cannot use the agent's configuration".to_owned())?;
    let options = DoctorOptions {
        qemu: config.qemu.clone(),
        data_dir: config.storage_path(),
        qemu_user: config.qemu_user,
        deduplication: config.deduplication.mode,
    };
    let report = examine(&options).await;
    output.show(&report, doctor_report)?;
    Ok(if report.usable { DONE } else { FAILED })
}

fn doctor_report(output: &Output, report: &DoctorReport) -> String {
    let mut table = output.table(&["", "CHECK", "EVIDENCE"]);
    for check in &report.checks {
        let tone = match check.status {
            CheckStatus::Ok => Tone::Good,
            CheckStatus::Warning => Tone::Attention,
            CheckStatus::Missing | CheckStatus::Unusable if check.required => Tone::Bad,
            CheckStatus::Missing | CheckStatus::Unusable => Tone::Attention,
        };
        table.add_row([
            output.cell(check.status.as_str(), tone),
            output.cell(&check.name, Tone::Plain),
            output.cell(&check.evidence, Tone::Plain),
        ]);
        if let Some(remedy) = &check.remedy {
            table.add_row([
                output.cell("", Tone::Plain),
                output.cell("", Tone::Plain),
                output.cell(format!("-> {remedy}"), Tone::Faint),
            ]);
        }
    }
    let verdict = if report.usable {
        format!("VMs run here, with {}", report.accelerator.as_str())
    } else {
        "no VM can run here".to_owned()
    };
    format!(
        "{}\nplimsoll {}, kernel {}, looked at in {} ms: {verdict}\n",
        output.finish(table),
        report.version,
        report.kernel,
        report.duration_ms
    )
}

/// Prints a completion script.
pub(crate) fn completion(args: &CompletionArgs, output: Output) -> Outcome {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "plimsoll", &mut script);
    output.bytes(&script)
}

/// Measures.
pub(crate) async fn bench(command: BenchCommand, output: Output) -> Outcome {
    match command {
        BenchCommand::Placement(args) => {
            tokio::task::block_in_place(|| super::bench::placement::placement(&args, output))
        }
        BenchCommand::Reclaim(args) => {
            tokio::task::block_in_place(|| super::bench::reclaim::reclaim(&args, output))
        }
        BenchCommand::Balance(args) => {
            tokio::task::block_in_place(|| super::bench::balance::balance(&args, output))
        }
        BenchCommand::Cascade(args) => super::bench::cascade::cascade(&args, output).await,
        BenchCommand::Migrate(args) => super::bench::migrate::migrate(&args, output).await,
        BenchCommand::Manager(args) => super::bench::manager(&args, output).await,
    }
}
