//! `plimsoll project`.

use plimsoll_api::v1::{CreateProjectRequest, SetProjectRequest};
use plimsoll_model::Quota;

use crate::{
    cli::project::{ProjectCommand, ProjectSetArgs},
    config::Connection,
    failure::{Failure, OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed.
pub(crate) async fn run(
    command: ProjectCommand,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let client = &connection.client;
    let now = jiff::Timestamp::now();
    let one = |output: &Output, project: &_| output::cluster::project(output, project, now);
    match command {
        ProjectCommand::Create(args) => {
            let name = args.project.name;
            let request = CreateProjectRequest {
                name: name.clone(),
                quota: args.quota.over(&Quota::default()),
                credits: args.credits,
            };
            let project = client
                .create_project(&request)
                .await
                .or_fail(|| format!("cannot create project `{name}`"))?;
            output.show(&project, one)
        }
        ProjectCommand::List => {
            let projects = client.projects().await.or_fail(|| "cannot list projects".to_owned())?;
            output.show(&projects, |output, projects| output::cluster::projects(output, projects))
        }
        ProjectCommand::Show(args) => {
            let name = args.name;
            let project =
                client.project(&name).await.or_fail(|| format!("cannot show project `{name}`"))?;
            output.show(&project, one)
        }
        ProjectCommand::Set(args) => {
            let project = set(&args, connection).await?;
            output.show(&project, one)
        }
        ProjectCommand::Delete(args) => {
            let name = args.project.name;
            output.confirm(&format!("Delete project {name}?"), args.yes)?;
            client
                .delete_project(&name)
                .await
                .or_fail(|| format!("cannot delete project `{name}`"))?;
            super::done(output, "deleted", name.as_str())
        }
    }
}

async fn set(
    args: &ProjectSetArgs,
    connection: &Connection,
) -> Outcome<plimsoll_api::v1::ProjectView> {
    let name = &args.project.name;
    let change_quota = args.quota.any() || args.no_quota;
    if !change_quota && args.add_credits.is_none() && !args.uncharged {
        return Err(Failure::usage(format!("nothing to change in project `{name}`"))
            .hint("`plimsoll project set --help` shows what can be changed"));
    }
    let what = || format!("cannot change project `{name}`");
    let quota = if !change_quota {
        None
    } else if args.no_quota {
        Some(args.quota.over(&Quota::default()))
    } else {
        let now = connection.client.project(name).await.or_fail(what)?;
        Some(args.quota.over(&now.quota))
    };
    let request =
        SetProjectRequest { quota, add_credits: args.add_credits, uncharged: args.uncharged };
    connection.client.set_project(name, &request).await.or_fail(what)
}
