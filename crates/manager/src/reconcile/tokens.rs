//! Tokens whose time is over are no longer good; here they are removed.

use crate::{
    app::AppError,
    core::{Core, State},
};
use plimsoll_model::{EventKind, Severity, Subject, Timestamp, TokenId};

pub(crate) async fn reconcile(core: Core) -> Result<String, AppError> {
    let (users, joins) = expired(&core.snapshot(), core.now());
    let count = users.len() + joins.len();
    if count > 0 {
        core.submit(None, |txn| {
            let (users, joins) = expired(&txn.state, txn.now);
            for id in users {
                let project = txn.state.tokens.get(&id).and_then(|token| token.project);
                let (kind, subject) = (EventKind::TokenRevoked, Subject::Token { id });
                txn.event(Severity::Info, kind, subject, project, "its time is over".to_owned());
                txn.remove_token(id);
            }
            for id in joins {
                txn.remove_join_token(id);
            }
            Ok(())
        })
        .await?;
    }
    Ok(format!("{count} tokens removed"))
}

fn expired(state: &State, now: Timestamp) -> (Vec<TokenId>, Vec<TokenId>) {
    let users = state
        .tokens
        .values()
        .filter(|token| token.expires_at.is_some_and(|end| end <= now))
        .map(|token| token.id)
        .collect();
    let joins = state
        .join_tokens
        .values()
        .filter(|token| token.expires_at <= now)
        .map(|token| token.id)
        .collect();
    (users, joins)
}
