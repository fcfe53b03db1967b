//! `plimsoll token` and `plimsoll join-token`.

use std::{io::Write as _, path::Path};

use plimsoll_api::v1::{CreateJoinTokenRequest, CreateTokenRequest};

use crate::{
    cli::project::{JoinTokenCommand, TokenCommand, TokenCreateArgs},
    config::{Connection, create_private},
    failure::{Failure, OrFail as _, Outcome},
    output::{self, Output},
};

/// Runs what was typed about users' tokens.
pub(crate) async fn run(command: TokenCommand, connection: &Connection, output: Output) -> Outcome {
    let client = &connection.client;
    match command {
        TokenCommand::Create(args) => create(&args, connection, output).await,
        TokenCommand::List => {
            let tokens = client.tokens().await.or_fail(|| "cannot list tokens".to_owned())?;
            output.show(&tokens, |output, tokens| output::cluster::tokens(output, tokens))
        }
        TokenCommand::Revoke(args) => {
            output.confirm(&format!("Revoke {}?", args.id), args.yes)?;
            client.revoke_token(args.id).await.or_fail(|| format!("cannot revoke {}", args.id))?;
            super::done(output, "revoked", &args.id.to_string())
        }
    }
}

async fn create(args: &TokenCreateArgs, connection: &Connection, output: Output) -> Outcome {
    let project = if args.cluster {
        None
    } else {
        Some(connection.project().map_err(|failure| {
            failure.hint("name one with --project, or say --cluster for the whole cluster")
        })?)
    };
    let request = CreateTokenRequest {
        role: args.role,
        project,
        note: args.note.clone(),
        lifetime_s: args.lifetime.map(|lifetime| lifetime.as_secs()),
    };
    // Made before the token is: one that cannot be kept should not exist.
    let file = args.out.as_deref().map(create_private).transpose()?;
    let made =
        connection.client.create_token(&request).await.or_fail(|| "cannot make a token".to_owned());
    let made = match made {
        Ok(made) => made,
        Err(failure) => return Err(remove_empty(args.out.as_deref(), failure)),
    };
    if let (Some(mut file), Some(path)) = (file, &args.out) {
        writeln!(file, "{}", made.secret)?;
        output::talk(&format!("{} is in {}", made.token.id, path.display()));
        return if output.is_json() { output.json(&made.token) } else { Ok(()) };
    }
    output.show(&made, |_, made| {
        output::talk(&format!("{}: kept nowhere else, and shown this once", made.token.id));
        format!("{}\n", made.secret)
    })
}

/// Makes a token with which a host joins.
pub(crate) async fn join(
    command: JoinTokenCommand,
    connection: &Connection,
    output: Output,
) -> Outcome {
    let JoinTokenCommand::Create(args) = command;
    let file = args.out.as_deref().map(create_private).transpose()?;
    let request = CreateJoinTokenRequest { lifetime_s: args.lifetime.as_secs() };
    let made = connection
        .client
        .create_join_token(&request)
        .await
        .or_fail(|| "cannot make a join token".to_owned());
    let made = match made {
        Ok(made) => made,
        Err(failure) => return Err(remove_empty(args.out.as_deref(), failure)),
    };
    if let (Some(mut file), Some(path)) = (file, &args.out) {
        writeln!(file, "{}", made.token)?;
        output::talk(&format!("the token is in {}", path.display()));
        return super::done(output, "created", &path.display().to_string());
    }
    output.show(&made, |_, made| {
        output::talk(&format!("good for one host, until {}", made.expires_at));
        format!("{}\n", made.token)
    })
}

/// The file that was made for a token that there is not.
fn remove_empty(path: Option<&Path>, failure: Failure) -> Failure {
    if let Some(path) = path {
        let _ = fs_err::remove_file(path);
    }
    failure
}
