//! `plimsoll host`.

use crate::{
    cli::cluster::HostCommand,
    config::Connection,
    failure::{OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed.
pub(crate) async fn run(command: HostCommand, connection: &Connection, output: Output) -> Outcome {
    let client = &connection.client;
    let now = jiff::Timestamp::now();
    let one = |output: &Output, host: &_| output::cluster::host(output, host, now);
    match command {
        HostCommand::List => {
            let hosts = client.hosts().await.or_fail(|| "cannot list hosts".to_owned())?;
            output.show(&hosts, |output, hosts| output::cluster::hosts(output, hosts, now))
        }
        HostCommand::Show(args) => {
            let name = &args.name;
            let host = client.host(name).await.or_fail(|| format!("cannot show host `{name}`"))?;
            output.show(&host, one)
        }
        HostCommand::Drain(args) => super::migrate::drain(&args, connection, output).await,
        HostCommand::Undrain(args) => {
            let name = &args.name;
            let host = client
                .undrain_host(name)
                .await
                .or_fail(|| format!("cannot undrain host `{name}`"))?;
            output.show(&host, one)
        }
        HostCommand::Fence(args) => {
            let name = &args.host.name;
            output.confirm(
                &format!("Is host {name} known to run nothing? If it is not, VMs may run twice."),
                args.yes,
            )?;
            let host =
                client.fence_host(name).await.or_fail(|| format!("cannot fence host `{name}`"))?;
            output.show(&host, one)
        }
        HostCommand::Remove(args) => {
            let name = &args.host.name;
            output.confirm(&format!("Remove host {name} from the cluster?"), args.yes)?;
            client.remove_host(name).await.or_fail(|| format!("cannot remove host `{name}`"))?;
            super::done(output, "removed", name.as_str())
        }
    }
}
