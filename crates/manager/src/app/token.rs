//! Tokens of users and of hosts that join. Only SHA-256 hashes of their 256-bit random secrets are
//! kept, so a copy of the store opens nothing.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use plimsoll_api::v1::{
    CreateJoinTokenRequest, CreateTokenRequest, CreateTokenResponse, TokenView,
};
use plimsoll_model::{EventKind, ProjectId, Role, Severity, Subject, Timestamp, TokenId};
use sha2::{Digest, Sha256};

use crate::{
    admission::validate,
    app::{AppError, Caller, Noun},
    core::{
        Core, State,
        record::{JoinTokenRecord, TokenRecord},
        txn::Txn,
    },
};

/// No secret of ours is longer: longer ones are not even hashed.
const MAX_SECRET: usize = 256;
/// The most tokens of the cluster.
const MAX_TOKENS: usize = 10_000;
/// Ten years.
const MAX_LIFETIME_S: u64 = 315_360_000;

/// Who the holder of this secret is.
///
/// # Errors
/// The token is unknown, expired or revoked: always the same error.
pub fn token_authenticate(core: &Core, secret: &str) -> Result<Caller, AppError> {
    if secret.len() > MAX_SECRET {
        return Err(AppError::Unauthenticated);
    }
    let state = core.snapshot();
    let now = core.now();
    // Looked up by the hash: how long that takes tells nothing about any secret.
    state
        .token_hashes
        .get(&hash(secret))
        .and_then(|id| state.tokens.get(id))
        .filter(|token| token.expires_at.is_none_or(|end| end > now))
        .map(|token| Caller { token: token.id, role: token.role, project: token.project })
        .ok_or(AppError::Unauthenticated)
}

/// Makes a token.
///
/// # Errors
/// The caller is not an admin of the project, or of the cluster for a token without a project.
pub async fn token_create(
    core: &Core,
    caller: &Caller,
    request: CreateTokenRequest,
) -> Result<CreateTokenResponse, AppError> {
    let secret = new_secret()?;
    let hash = hash(&secret);
    validate::line(&request.note, "note", 256)?;
    if let Some(lifetime) = request.lifetime_s
        && !(1..=MAX_LIFETIME_S).contains(&lifetime)
    {
        return Err(AppError::invalid(
            "lifetime_s",
            format!("{lifetime} s"),
            "use 1 second to 10 years, or leave it out",
        ));
    }
    let caller_ = caller.clone();
    let token = core
        .submit(Some(caller.token), move |txn| {
            let project = match &request.project {
                Some(name) => {
                    let project = caller_.project(&txn.state, name)?.id;
                    caller_.at_least(Role::Admin)?;
                    Some(project)
                }
                None => {
                    caller_.in_cluster(Role::Admin)?;
                    None
                }
            };
            if txn.state.tokens.len() >= MAX_TOKENS {
                return Err(AppError::invalid(
                    "role",
                    format!("the cluster has {MAX_TOKENS} tokens"),
                    "revoke those that are not used",
                ));
            }
            let record = TokenRecord {
                id: TokenId(txn.uuid()),
                hash,
                role: request.role,
                project,
                note: request.note,
                created_at: txn.now,
                expires_at: request.lifetime_s.and_then(|s| later(txn.now, s)),
            };
            log(txn, record.id, EventKind::TokenCreated, project, record.role.to_string());
            let shown = view(&txn.state, &record);
            txn.put_token(record);
            Ok(shown)
        })
        .await?;
    Ok(CreateTokenResponse { secret, token })
}

/// The tokens that the caller may manage, by age.
///
/// # Errors
/// The caller is not an admin.
pub fn token_list(core: &Core, caller: &Caller) -> Result<Vec<TokenView>, AppError> {
    caller.at_least(Role::Admin)?;
    let state = core.snapshot();
    let mut tokens: Vec<TokenView> = state
        .tokens
        .values()
        .filter(|token| manages(caller, token))
        .map(|token| view(&state, token))
        .collect();
    tokens.sort_by_key(|token| (token.created_at, token.id));
    Ok(tokens)
}

/// Revokes a token.
///
/// # Errors
/// There is no such token that the caller may manage, or it is the cluster's last admin token.
pub async fn token_revoke(core: &Core, caller: &Caller, token: TokenId) -> Result<(), AppError> {
    caller.at_least(Role::Admin)?;
    let caller_ = caller.clone();
    core.submit(Some(caller.token), move |txn| {
        let record = txn
            .state
            .tokens
            .get(&token)
            .filter(|record| manages(&caller_, record))
            .cloned()
            .ok_or_else(|| AppError::not_found(Noun::Token, token))?;
        let lasting_admin = |record: &TokenRecord| {
            record.role == Role::Admin && record.project.is_none() && record.expires_at.is_none()
        };
        let others =
            txn.state.tokens.values().filter(|other| other.id != token && lasting_admin(other));
        if lasting_admin(&record) && others.count() == 0 {
            return Err(AppError::InUse {
                what: Noun::Token,
                name: token.to_string(),
                by: "the cluster, as its last admin token without an end".to_owned(),
                hint: "make another with `plimsoll token create --role admin` first",
            });
        }
        log(txn, token, EventKind::TokenRevoked, record.project, "revoked".to_owned());
        txn.remove_token(token);
        Ok(())
    })
    .await
}

/// Makes a one-use token with which a host joins. Returns its secret part and its end.
///
/// # Errors
/// The caller is not an admin of the cluster, or the lifetime is not allowed.
pub async fn join_token_create(
    core: &Core,
    caller: &Caller,
    request: CreateJoinTokenRequest,
) -> Result<(String, Timestamp), AppError> {
    caller.in_cluster(Role::Admin)?;
    if !(60..=86_400).contains(&request.lifetime_s) {
        return Err(AppError::invalid(
            "lifetime_s",
            format!("{} s", request.lifetime_s),
            "use 60 to 86400 seconds",
        ));
    }
    let secret = new_secret()?;
    let hash = hash(&secret);
    let expires_at = core
        .submit(Some(caller.token), move |txn| {
            let expires_at = later(txn.now, request.lifetime_s).unwrap_or(Timestamp::MAX);
            if txn.state.join_tokens.len() >= MAX_TOKENS {
                return Err(AppError::Busy);
            }
            let record = JoinTokenRecord { id: TokenId(txn.uuid()), hash, expires_at };
            log(txn, record.id, EventKind::TokenCreated, None, "for a host to join".to_owned());
            txn.put_join_token(record);
            Ok(expires_at)
        })
        .await?;
    Ok((secret, expires_at))
}

/// Makes sure that there is an admin token of the cluster with this secret, for the server's first
/// start (and for the lab): the caller writes the secret to a private file before. Idempotent.
///
/// # Errors
/// The store refuses, or the secret is shorter than 32 characters.
pub async fn token_ensure_admin(core: &Core, secret: &str, note: &str) -> Result<(), AppError> {
    if !(32..=MAX_SECRET).contains(&secret.len()) {
        return Err(AppError::invalid(
            "secret",
            format!("{} characters", secret.len()),
            "use 32 to 256 random characters",
        ));
    }
    validate::line(note, "note", 256)?;
    let (hash, note) = (hash(secret), note.to_owned());
    core.submit(None, move |txn| {
        if txn.state.token_hashes.contains_key(&hash) {
            return Ok(());
        }
        let record = TokenRecord {
            id: TokenId(txn.uuid()),
            hash,
            role: Role::Admin,
            project: None,
            note,
            created_at: txn.now,
            expires_at: None,
        };
        log(txn, record.id, EventKind::TokenCreated, None, "the first admin's".to_owned());
        txn.put_token(record);
        Ok(())
    })
    .await
}

/// SHA-256 in hexadecimal digits.
pub(crate) fn hash(secret: &str) -> String {
    use std::fmt::Write as _;
    Sha256::digest(secret.as_bytes()).iter().fold(String::with_capacity(64), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// 256 random bits: too many to guess, so that no slow hash is needed.
fn new_secret() -> Result<String, AppError> {
    let mut bytes = [0; 32];
    getrandom::fill(&mut bytes).map_err(|_| AppError::Unsupported {
        what: "the operating system gives no random bytes".to_owned(),
        hint: "check that getrandom(2) is allowed".to_owned(),
    })?;
    Ok(URL_SAFE_NO_PAD.encode(bytes))
}

fn later(now: Timestamp, seconds: u64) -> Option<Timestamp> {
    let seconds = i64::try_from(seconds).ok()?;
    now.checked_add(jiff::SignedDuration::from_secs(seconds)).ok()
}

/// A project's admin manages the project's tokens, the cluster's admin all.
fn manages(caller: &Caller, token: &TokenRecord) -> bool {
    caller.project.is_none() || caller.project == token.project
}

fn view(state: &State, token: &TokenRecord) -> TokenView {
    TokenView {
        id: token.id,
        role: token.role,
        project: token.project.and_then(|id| state.project(id)).map(|project| project.name.clone()),
        note: token.note.clone(),
        created_at: token.created_at,
        expires_at: token.expires_at,
    }
}

fn log(
    txn: &mut Txn<'_>,
    id: TokenId,
    kind: EventKind,
    project: Option<ProjectId>,
    message: String,
) {
    txn.event(Severity::Info, kind, Subject::Token { id }, project, message);
}
