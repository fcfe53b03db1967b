//! Brings a lab up, or heals it.

use std::{
    ffi::OsStr,
    net::SocketAddr,
    time::{Duration, Instant},
};

use fs_err as fs;
use plimsoll_agent::{
    AgentConfig,
    config::{DeclaredCapacity, DeduplicationConfig, StorageConfig},
};
use plimsoll_api::{
    Client, ErrorCode,
    client::ClientConfig,
    v1::{CreateJoinTokenRequest, HostView},
};
use plimsoll_model::{HostPhase, Name, Resources};

use super::{
    layout::{
        AGENT_PORT, API_PORT, CLUSTER_PORT, Lab, LabSpec, LabState, MANAGER, host_address,
        host_names, manager_address,
    },
    network,
    process::{self, Recorded},
    status,
};
use crate::{
    cli::lab::LabUpArgs,
    config::{ConfigFile, Context, read_token, write_private},
    failure::{Failure, OrFail as _, Outcome},
    image::LocalImage,
    output::progress::Progress,
};

/// A manager or an agent that does not answer by then has failed.
const START_LIMIT: Duration = Duration::from_secs(60);
/// An agent that is asked to end may take so long.
const STOP_LIMIT: Duration = Duration::from_secs(10);
/// Between two looks.
const POLL: Duration = Duration::from_millis(100);
/// How much of a log an error shows.
const LOG_LINES: usize = 8;

/// The lab as it is to be: as it was, with what was typed.
pub(crate) fn wanted(lab: &Lab, args: &LabUpArgs) -> Outcome<LabState> {
    let before = lab.load()?;
    let base = before.as_ref().map(|state| state.spec.clone()).unwrap_or_default();
    let spec = LabSpec {
        hosts: args.hosts.unwrap_or(base.hosts),
        capacity: Resources {
            cpu: args.cpu.unwrap_or(base.capacity.cpu),
            memory: args.memory.unwrap_or(base.capacity.memory),
            disk: args.disk.unwrap_or(base.capacity.disk),
            disk_bandwidth: args.disk_bandwidth.unwrap_or(base.capacity.disk_bandwidth),
            disk_iops: args.disk_iops.unwrap_or(base.capacity.disk_iops),
            network: args.network.unwrap_or(base.capacity.network),
            ..base.capacity.clone()
        },
        shared_pool: base.shared_pool && !args.local_disks,
        deduplication: args.deduplication,
        swap: args.swap.clone().unwrap_or_else(|| base.swap.clone()),
    };
    let Some(before) = before else {
        return Ok(LabState {
            spec,
            processes: std::collections::BTreeMap::new(),
            cut: Vec::new(),
        });
    };
    let hint = "take it down with `plimsoll lab down --purge` first, or give another --name";
    if spec.hosts < base.hosts {
        return Err(Failure::new(format!(
            "lab `{}` has {} hosts, and a host cannot be taken from it",
            lab.name, base.hosts
        ))
        .hint(hint));
    }
    if spec.shared_pool != base.shared_pool {
        return Err(Failure::new(format!(
            "lab `{}` exists, with hosts of other storage",
            lab.name
        ))
        .hint(hint));
    }
    Ok(LabState { spec, ..before })
}

/// Makes the lab what it is to be.
pub(crate) async fn up(lab: &Lab, args: &LabUpArgs, progress: &Progress) -> Outcome {
    let mut state = wanted(lab, args)?;
    lab.save(&state)?;
    progress.set("making namespaces");
    network::ensure(lab, &state.spec).or_fail(|| "cannot make the lab's network".to_owned())?;
    // Every link is up now, those too that were cut.
    state.cut.clear();
    lab.save(&state)?;

    let client = ensure_manager(lab, &mut state, progress).await?;
    let numbers: Vec<(u8, String)> = host_names(state.spec.hosts).collect();
    for (number, host) in &numbers {
        ensure_host(lab, &mut state, *number, host, &client, progress).await?;
    }
    until_up(lab, &state, &client, progress).await?;
    progress.say(&format!("{} hosts are up", state.spec.hosts));
    for directory in &args.image {
        import(&client, directory, progress).await?;
    }
    if !args.no_context {
        remember(lab, progress)?;
    }
    Ok(())
}

/// Starts the manager unless it lives, and waits until it answers.
async fn ensure_manager(lab: &Lab, state: &mut LabState, progress: &Progress) -> Outcome<Client> {
    let alive = state.processes.get(MANAGER).is_some_and(Recorded::is_alive);
    if !alive {
        progress.set("starting the manager");
        let address = manager_address();
        let config = format!(
            "data_dir = {}\napi_listen = \"{address}:{API_PORT}\"\n\
             cluster_listen = \"{address}:{CLUSTER_PORT}\"\nadvertise = \"{address}\"\n",
            toml::Value::String(lab.manager_directory().display().to_string())
        );
        let path = lab.config(MANAGER);
        write_private(&path, &config, true)?;
        let arguments = [OsStr::new("server"), OsStr::new("--config"), path.as_os_str()];
        let process = process::start(lab, MANAGER, &arguments)?;
        state.processes.insert(MANAGER.to_owned(), process);
        lab.save(state)?;
    }
    let deadline = Instant::now() + START_LIMIT;
    loop {
        match connect(lab).await {
            Ok(client) => {
                progress.say(if alive { "the manager was up" } else { "the manager is up" });
                return Ok(client);
            }
            Err(failure) if Instant::now() >= deadline => {
                return Err(failure.context("the manager does not answer"));
            }
            Err(_) => check_alive(lab, state, MANAGER)?,
        }
        tokio::time::sleep(POLL).await;
    }
}

/// A client that has been answered.
pub(crate) async fn connect(lab: &Lab) -> Outcome<Client> {
    let client = Client::new(&ClientConfig {
        address: status::server(lab),
        ca_pem: None,
        token: Some(read_token(&lab.admin_token())?),
    })?;
    client.whoami().await?;
    Ok(client)
}

/// Fails, with the end of its log, if a part has died.
fn check_alive(lab: &Lab, state: &LabState, part: &str) -> Outcome {
    if state.processes.get(part).is_some_and(Recorded::is_alive) {
        return Ok(());
    }
    let log = lab.log(part);
    let text = fs::read_to_string(&log).unwrap_or_default();
    let lines: Vec<&str> = text.lines().collect();
    let failure = lines[lines.len().saturating_sub(LOG_LINES)..]
        .iter()
        .fold(Failure::new(format!("{part} has ended")), |failure, line| {
            failure.detail("log", *line)
        });
    Err(failure.hint(format!("all of its log is in {}", log.display())))
}

/// Starts a host's agent unless it lives, and anew if it is to have another configuration. Hosts join one after the other, so that their numbers are
/// those of their names.
async fn ensure_host(
    lab: &Lab,
    state: &mut LabState,
    number: u8,
    host: &str,
    client: &Client,
    progress: &Progress,
) -> Outcome {
    let text = toml::to_string(&agent_config(lab, &state.spec, number, host)?)?;
    let path = lab.config(host);
    let alive = state.processes.get(host).filter(|process| process.is_alive()).cloned();
    if let Some(process) = alive {
        if fs::read_to_string(&path).is_ok_and(|before| before == text) {
            return Ok(());
        }
        progress.set(format!("restarting {host}: its configuration is another one"));
        if !process::end(&[process], STOP_LIMIT).is_empty() {
            return Err(Failure::new(format!("the agent of {host} does not end")));
        }
    }
    progress.set(format!("starting {host}"));
    for directory in [lab.host_directory(host), lab.pool()] {
        fs::create_dir_all(&directory)?;
    }
    write_private(&path, &text, true)?;
    let name: Name = host.parse()?;
    let known = match client.host(&name).await {
        Ok(_) => true,
        Err(error) if error.code() == Some(ErrorCode::NotFound) => false,
        Err(error) => return Err(error.into()),
    };
    let token = if known {
        None
    } else {
        let request = CreateJoinTokenRequest { lifetime_s: 600 };
        Some(client.create_join_token(&request).await?.token)
    };
    // In a file, because everybody can see arguments, and QEMU would inherit the environment.
    let join = lab.config(host).with_extension("join");
    let mut arguments = vec![OsStr::new("agent"), OsStr::new("--config"), path.as_os_str()];
    if let Some(token) = token {
        write_private(&join, &token, true)?;
        arguments.extend([OsStr::new("--join-file"), join.as_os_str()]);
    }
    let process = process::start(lab, host, &arguments)?;
    state.processes.insert(host.to_owned(), process);
    lab.save(state)?;
    let deadline = Instant::now() + START_LIMIT;
    while let Err(error) = client.host(&name).await {
        if error.code() != Some(ErrorCode::NotFound) || Instant::now() >= deadline {
            return Err(error).or_fail(|| format!("{host} does not join"));
        }
        check_alive(lab, state, host)?;
        tokio::time::sleep(POLL).await;
    }
    // It was good once.
    let _ = fs::remove_file(&join);
    Ok(())
}

fn agent_config(lab: &Lab, spec: &LabSpec, number: u8, host: &str) -> Outcome<AgentConfig> {
    let address = host_address(number);
    let capacity = &spec.capacity;
    let disk = if number.is_multiple_of(2) { "hdd" } else { "ssd" };
    let label = |text: &str| text.parse::<plimsoll_model::Label>();
    Ok(AgentConfig {
        name: Some(host.parse()?),
        data_dir: lab.host_directory(host),
        listen: SocketAddr::from((address, AGENT_PORT)),
        advertise: Some(address.into()),
        underlay: Some(address.into()),
        rack: Some(format!("rack-{number}").parse()?),
        zone: Some(format!("zone-{}", number.div_ceil(2)).parse()?),
        labels: [(label("lab")?, label(lab.name.as_str())?), (label("disk")?, label(disk)?)].into(),
        capacity: DeclaredCapacity {
            cpu: Some(capacity.cpu),
            memory: Some(capacity.memory),
            disk: Some(capacity.disk),
            disk_bandwidth: Some(capacity.disk_bandwidth),
            disk_iops: Some(capacity.disk_iops),
            network: Some(capacity.network),
        },
        storage: if spec.shared_pool {
            StorageConfig::Shared { pool: lab.name.clone(), path: lab.pool() }
        } else {
            StorageConfig::Local { path: lab.host_directory(host).join("disks") }
        },
        cgroup: lab.cgroup(host),
        deduplication: DeduplicationConfig { mode: spec.deduplication },
        swap: spec.swap.clone(),
        ..AgentConfig::default()
    })
}

/// Waits until every host reports.
async fn until_up(lab: &Lab, state: &LabState, client: &Client, progress: &Progress) -> Outcome {
    let deadline = Instant::now() + START_LIMIT;
    loop {
        let hosts = client.hosts().await?;
        let silent: Vec<&HostView> = hosts
            .iter()
            .filter(|host| {
                let (is, wanted) = (&host.spec.capacity, &state.spec.capacity);
                // One that was restarted with another capacity has not reported it yet.
                let is_known = (is.cpu, is.memory) == (wanted.cpu, wanted.memory);
                host.state != HostPhase::Up || host.usage.is_none() || !is_known
            })
            .collect();
        let Some(first) = silent.first() else { return Ok(()) };
        if Instant::now() >= deadline {
            return Err(Failure::new(format!("host {} is {}", first.name, first.state))
                .context("not every host came up")
                .hint(format!("its log is {}", lab.log(first.name.as_str()).display())));
        }
        progress.set(format!("{} of {} hosts are up", hosts.len() - silent.len(), hosts.len()));
        for host in &silent {
            check_alive(lab, state, host.name.as_str())?;
        }
        tokio::time::sleep(POLL).await;
    }
}

/// Imports a public image, unless there is one of this name.
async fn import(client: &Client, directory: &std::path::Path, progress: &Progress) -> Outcome {
    let name = LocalImage::name_in(directory)?;
    let there = client
        .images(None)
        .await?
        .into_iter()
        .any(|image| image.name == name && image.phase == plimsoll_model::ImagePhase::Ready);
    if there {
        progress.say(&format!("image {name} was there"));
        return Ok(());
    }
    progress.set(format!("reading image {name}"));
    LocalImage::open(directory, None)?.import(client, None, progress).await?;
    progress.say(&format!("image {name} is imported"));
    Ok(())
}

/// Lets the commands that follow find the lab.
fn remember(lab: &Lab, progress: &Progress) -> Outcome {
    let config = ConfigFile::load()?;
    let server = status::server(lab);
    let known = config.contexts.get(&lab.name).is_some_and(|context| context.server == server);
    if known && config.current.as_ref() == Some(&lab.name) {
        return Ok(());
    }
    ConfigFile::change(|config| {
        let context = config.contexts.entry(lab.name.clone()).or_default();
        if context.server != server {
            *context = Context { server, ..Context::default() };
        }
        context.token_file = Some(lab.admin_token());
        config.current = Some(lab.name.clone());
    })?;
    progress.say(&format!("context {} is the current one: commands mean this lab", lab.name));
    Ok(())
}
