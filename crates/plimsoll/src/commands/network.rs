//! `plimsoll network`.

use plimsoll_api::v1::CreateNetworkRequest;

use crate::{
    cli::project::NetworkCommand,
    config::Connection,
    failure::{OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed.
pub(crate) async fn run(
    command: NetworkCommand,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let client = &connection.client;
    let project = connection.project()?;
    match command {
        NetworkCommand::Create(args) => {
            let name = args.network.name;
            let request =
                CreateNetworkRequest { name: name.clone(), cidr: args.cidr, outside: args.outside };
            let network = client
                .create_network(&project, &request)
                .await
                .or_fail(|| format!("cannot create network `{name}`"))?;
            output.show(&network, output::cluster::network)
        }
        NetworkCommand::List => {
            let networks =
                client.networks(&project).await.or_fail(|| "cannot list networks".to_owned())?;
            output.show(&networks, |output, networks| output::cluster::networks(output, networks))
        }
        NetworkCommand::Show(args) => {
            let name = args.name;
            let network = client
                .network(&project, &name)
                .await
                .or_fail(|| format!("cannot show network `{name}`"))?;
            output.show(&network, output::cluster::network)
        }
        NetworkCommand::Delete(args) => {
            let name = args.network.name;
            output.confirm(&format!("Delete network {name} of project {project}?"), args.yes)?;
            client
                .delete_network(&project, &name)
                .await
                .or_fail(|| format!("cannot delete network `{name}`"))?;
            super::done(output, "deleted", name.as_str())
        }
    }
}
