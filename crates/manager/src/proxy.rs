//! Calls to agents: what a user wants inside a VM goes from the manager to the agent of the VM's
//! host, by mutual TLS. The agent's certificate must be that host's.

use std::collections::HashMap;

use plimsoll_api::{AgentClient, ClientError, tls::Identity};
use plimsoll_model::HostId;

use crate::app::VmLocation;

/// Connections to agents, made when they are first needed and kept alive.
pub(crate) struct AgentProxy {
    ca_pem: String,
    identity: Identity,
    clients: parking_lot::Mutex<HashMap<HostId, (String, AgentClient)>>,
}

/// More hosts than this are not remembered at once: setting a client up again is cheap.
const MOST_CLIENTS: usize = 4096;

impl AgentProxy {
    pub(crate) fn new(ca_pem: String, identity: Identity) -> Self {
        Self { ca_pem, identity, clients: parking_lot::Mutex::new(HashMap::new()) }
    }

    /// The client for the agent that has this VM.
    pub(crate) fn agent(&self, location: &VmLocation) -> Result<AgentClient, ClientError> {
        let mut clients = self.clients.lock();
        if let Some((address, client)) = clients.get(&location.host)
            && *address == location.agent_address
        {
            return Ok(client.clone());
        }
        let client =
            AgentClient::new(location.host, &location.agent_address, &self.ca_pem, &self.identity)?;
        if clients.len() >= MOST_CLIENTS {
            clients.clear();
        }
        clients.insert(location.host, (location.agent_address.clone(), client.clone()));
        Ok(client)
    }
}
