//! Networks.

use std::{net::Ipv4Addr, sync::Arc};

use plimsoll_api::v1::CreateNetworkRequest;
use plimsoll_model::{
    Cidr, EventKind, Name, Network, NetworkId, ProjectId, Role, Severity, Subject,
};

use crate::{
    admission::address,
    app::{AppError, Caller, Noun},
    core::{Core, State, txn::Txn},
};

/// The most networks of one project.
const MAX_NETWORKS: usize = 256;

/// Creates a network.
///
/// # Errors
/// The name is taken, or its addresses overlap with those of another network of the project.
pub async fn network_create(
    core: &Core,
    caller: &Caller,
    project: &Name,
    request: CreateNetworkRequest,
) -> Result<Network, AppError> {
    let (caller_, project) = (caller.clone(), project.clone());
    core.submit(Some(caller.token), move |txn| {
        let project = caller_.project(&txn.state, &project)?.clone();
        caller_.at_least(Role::Operator)?;
        let name = request.name;
        if txn.state.network_by_name(project.id, &name).is_some() {
            return Err(AppError::AlreadyExists { what: Noun::Network, name: name.to_string() });
        }
        let others: Vec<_> = of_project(&txn.state, project.id).cloned().collect();
        if others.len() >= MAX_NETWORKS {
            return Err(AppError::invalid(
                "name",
                format!("the project has {MAX_NETWORKS} networks"),
                "delete one that is not used",
            ));
        }
        let cidr = choose_cidr(&others, request.cidr)?;
        let vni = address::free_vni(&txn.state).ok_or_else(|| AppError::Unsupported {
            what: "the cluster has no network identifier left".to_owned(),
            hint: "delete networks that are not used".to_owned(),
        })?;
        txn.settings_mut().last_vni = vni;
        let network = Network {
            id: NetworkId(txn.uuid()),
            project: project.id,
            name,
            cidr,
            vni,
            outside: request.outside,
            created_at: txn.now,
        };
        log(txn, &network, EventKind::NetworkCreated, &format!("created with {cidr}"));
        txn.put_network(network.clone());
        Ok(network)
    })
    .await
}

/// The networks of a project, by name.
///
/// # Errors
/// There is no such project for the caller.
pub fn network_list(
    core: &Core,
    caller: &Caller,
    project: &Name,
) -> Result<Vec<Network>, AppError> {
    let state = core.snapshot();
    let project = caller.project(&state, project)?;
    let mut networks: Vec<Network> =
        of_project(&state, project.id).map(|network| (**network).clone()).collect();
    networks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(networks)
}

/// One network.
///
/// # Errors
/// There is no such network for the caller.
pub fn network_show(
    core: &Core,
    caller: &Caller,
    project: &Name,
    network: &Name,
) -> Result<Network, AppError> {
    let state = core.snapshot();
    let project = caller.project(&state, project)?;
    state
        .network_by_name(project.id, network)
        .map(|network| (**network).clone())
        .ok_or_else(|| AppError::not_found(Noun::Network, network))
}

/// Deletes a network.
///
/// # Errors
/// VMs are on it.
pub async fn network_delete(
    core: &Core,
    caller: &Caller,
    project: &Name,
    network: &Name,
) -> Result<(), AppError> {
    let (caller_, project, name) = (caller.clone(), project.clone(), network.clone());
    core.submit(Some(caller.token), move |txn| {
        let project = caller_.project(&txn.state, &project)?.id;
        caller_.at_least(Role::Operator)?;
        let network = txn
            .state
            .network_by_name(project, &name)
            .cloned()
            .ok_or_else(|| AppError::not_found(Noun::Network, &name))?;
        let first = (network.id, Ipv4Addr::UNSPECIFIED);
        let used = txn.state.addresses.range(first..=(network.id, Ipv4Addr::BROADCAST)).count();
        if used > 0 {
            return Err(AppError::InUse {
                what: Noun::Network,
                name: name.to_string(),
                by: format!("{used} VMs"),
                hint: "delete the VMs on it first",
            });
        }
        log(txn, &network, EventKind::NetworkDeleted, "deleted");
        txn.remove_network(network.id);
        Ok(())
    })
    .await
}

fn of_project(state: &State, project: ProjectId) -> impl Iterator<Item = &Arc<Network>> {
    state.networks.values().filter(move |network| network.project == project)
}

fn choose_cidr(others: &[Arc<Network>], asked: Option<Cidr>) -> Result<Cidr, AppError> {
    let taken: Vec<Cidr> = others.iter().map(|network| network.cidr).collect();
    let Some(cidr) = asked else {
        return address::free_cidr(&taken).ok_or_else(|| {
            AppError::invalid("cidr", "no free range left", "name a range with `--cidr`")
        });
    };
    let gateway = cidr.gateway();
    if gateway.is_loopback()
        || gateway.is_link_local()
        || gateway.octets()[0] == 0
        || gateway.octets()[0] >= 224
    {
        return Err(AppError::invalid(
            "cidr",
            format!("{cidr} has a special meaning"),
            "use a private range such as 10.10.0.0/24",
        ));
    }
    match others.iter().find(|other| address::overlap(&cidr, &other.cidr)) {
        Some(other) => Err(AppError::invalid(
            "cidr",
            format!("{cidr} overlaps with {} of network `{}`", other.cidr, other.name),
            "networks of one project have different addresses: choose another range",
        )),
        None => Ok(cidr),
    }
}

fn log(txn: &mut Txn<'_>, network: &Network, kind: EventKind, message: &str) {
    let subject = Subject::Network { id: network.id, name: network.name.clone() };
    txn.event(Severity::Info, kind, subject, Some(network.project), message.to_owned());
}
