//! Why a request was refused: one variant per kind of refusal, turned into the wire's
//! [`ErrorBody`] as the last step. Internals stay in the log.

use std::{collections::BTreeMap, fmt, sync::Arc};

use plimsoll_api::{ErrorBody, ErrorCode, error_chain::causes};
use plimsoll_model::{Element, Name, Role};
use plimsoll_placement::{BookRefusal, GroupRefusal, Refusals, SplitRefusal};
use plimsoll_store::{CommitError, StoreError};
use thiserror::Error;

use crate::admission::migrate::MigrationRefusal;

/// A kind of thing that has a name or an id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Noun {
    /// A virtual machine.
    Vm,
    /// A host.
    Host,
    /// A project.
    Project,
    /// A network.
    Network,
    /// An image.
    Image,
    /// A file of an image.
    ImageFile,
    /// A token.
    Token,
}

impl fmt::Display for Noun {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Self::Vm => "VM",
            Self::Host => "host",
            Self::Project => "project",
            Self::Network => "network",
            Self::Image => "image",
            Self::ImageFile => "image file",
            Self::Token => "token",
        })
    }
}

/// A value of a request that is well formed but not allowed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Invalid {
    /// Where in the request, such as `requests[0].spec.resources.cpu`.
    pub field: String,
    /// What is wrong with it.
    pub reason: String,
    /// What would help.
    pub hint: String,
}

/// Why a request was refused. Display is the message; the cause is never repeated in it.
#[derive(Debug, Error)]
pub enum AppError {
    /// No token, or none that is good.
    #[error("the token is unknown, expired or revoked")]
    Unauthenticated,
    /// The token's role is too low.
    #[error("this takes the role {needed}{}, and the token has {has}", if *.cluster { " in the whole cluster" } else { "" })]
    Forbidden {
        /// The role that it takes.
        needed: Role,
        /// The token's.
        has: Role,
        /// Whether it must be a token of the whole cluster.
        cluster: bool,
    },
    /// It is not there, or the caller may not know that it is.
    #[error("there is no {what} `{name}`")]
    NotFound {
        /// What.
        what: Noun,
        /// Its name as asked for.
        name: String,
    },
    /// The name is taken.
    #[error("there is already a {what} `{name}`")]
    AlreadyExists {
        /// What.
        what: Noun,
        /// The name.
        name: String,
    },
    /// The thing's state does not allow it.
    #[error("cannot {action} {what} `{name}` while it is {state}")]
    WrongState {
        /// What was to be done, as a verb.
        action: &'static str,
        /// To what.
        what: Noun,
        /// Its name.
        name: String,
        /// Its state.
        state: String,
        /// What would help.
        hint: &'static str,
    },
    /// Somebody else changed it meanwhile.
    #[error("{what} `{name}` has generation {actual} and not {expected}: it was changed meanwhile")]
    Conflict {
        /// What.
        what: Noun,
        /// Its name.
        name: String,
        /// The generation that the caller has seen.
        expected: u64,
        /// The present one.
        actual: u64,
    },
    /// Others still use it.
    #[error("{what} `{name}` is still used by {by}")]
    InUse {
        /// What.
        what: Noun,
        /// Its name.
        name: String,
        /// By whom.
        by: String,
        /// What would help.
        hint: &'static str,
    },
    /// A value is not allowed.
    #[error("{}: {}", .0.field, .0.reason)]
    Invalid(Invalid),
    /// The project's quota of an element does not allow it.
    #[error(
        "project `{project}` would hold {} of {element}, its quota is {}",
        element.print(*would), element.print(*limit)
    )]
    Quota {
        /// The project.
        project: Name,
        /// Of what.
        element: Element,
        /// What it would hold.
        would: u64,
        /// Its quota.
        limit: u64,
    },
    /// The project's quota of VMs does not allow it.
    #[error("project `{project}` would have {would} VMs, its quota is {limit}")]
    QuotaOfVms {
        /// The project.
        project: Name,
        /// How many it would have.
        would: u64,
        /// Its quota.
        limit: u64,
    },
    /// The project has nothing left.
    #[error("project `{project}` has no credits left")]
    NoCredits {
        /// The project.
        project: Name,
    },
    /// No host can hold a VM.
    #[error("no host can hold VM `{vm}`")]
    NoCapacity {
        /// The VM.
        vm: Name,
        /// How many hosts were refused for what.
        #[source]
        refusals: Refusals,
    },
    /// A host cannot take a VM that runs elsewhere.
    #[error("VM `{vm}` cannot move to host `{host}`")]
    NoMigrationTo {
        /// The VM.
        vm: Name,
        /// The host.
        host: Name,
        /// Why not.
        #[source]
        refusal: MigrationRefusal,
    },
    /// No other host can take a VM that runs.
    #[error("no other host can take VM `{vm}`")]
    NoMigration {
        /// The VM.
        vm: Name,
        /// Why those cannot that would have room.
        unfit: Vec<(Name, MigrationRefusal)>,
        /// How many hosts placement refused for what.
        #[source]
        refusals: Refusals,
    },
    /// There is no interval for a VM that would have to be booked.
    #[error("VM `{vm}` cannot be booked")]
    NoInterval {
        /// The VM.
        vm: Name,
        /// Why not, in times that users know.
        #[source]
        refusal: BookRefusal,
    },
    /// A group cannot be placed as a whole.
    #[error("the {of} VMs cannot all be placed: no host is left for `{vm}`", of = .refusal.of)]
    NoCapacityForGroup {
        /// The first VM without a place.
        vm: Name,
        /// How far it went.
        #[source]
        refusal: GroupRefusal,
    },
    /// A total cannot be split.
    #[error("the total of `{name}` cannot be split into VMs that hosts can hold")]
    NoSplit {
        /// The request's name.
        name: Name,
        /// Why.
        #[source]
        refusal: SplitRefusal,
    },
    /// A network has no address left.
    #[error("network `{network}` has no address left")]
    NoAddress {
        /// The network.
        network: Name,
    },
    /// Something that this version cannot do.
    #[error("{what}")]
    Unsupported {
        /// What.
        what: String,
        /// What would help.
        hint: String,
    },
    /// The VM runs nowhere, or its host does not answer.
    #[error("host `{host}` does not answer")]
    Unreachable {
        /// The host.
        host: Name,
    },
    /// The queue of changes is full.
    #[error("too many changes are waiting")]
    Busy,
    /// The manager is stopping.
    #[error("the manager is shutting down")]
    ShuttingDown,
    /// The change could not be written; it has not happened.
    #[error("the change could not be written to the store")]
    Store(#[source] Arc<CommitError>),
    /// No plan can be made: what the manager knows contradicts itself.
    #[error("cannot make a plan")]
    NoPlan(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// A record could not be encoded.
    #[error("a record could not be encoded")]
    Encode(#[source] StoreError),
    /// A report that is older than one already seen.
    #[error("the report is older than one already taken")]
    StaleReport,
    /// The host is being fenced at this moment.
    #[error("the host is being fenced")]
    BeingFenced,
}

impl AppError {
    /// A value that is not allowed.
    pub fn invalid(
        field: impl Into<String>,
        reason: impl Into<String>,
        hint: impl Into<String>,
    ) -> Self {
        Self::Invalid(Invalid { field: field.into(), reason: reason.into(), hint: hint.into() })
    }

    /// It is not there.
    pub fn not_found(what: Noun, name: impl fmt::Display) -> Self {
        Self::NotFound { what, name: name.to_string() }
    }

    /// The stable code.
    #[must_use]
    pub const fn code(&self) -> ErrorCode {
        match self {
            Self::Unauthenticated => ErrorCode::Unauthenticated,
            Self::Forbidden { .. } => ErrorCode::Forbidden,
            Self::NotFound { .. } => ErrorCode::NotFound,
            Self::AlreadyExists { .. } => ErrorCode::AlreadyExists,
            Self::WrongState { .. } => ErrorCode::WrongState,
            Self::Conflict { .. } | Self::StaleReport | Self::BeingFenced => ErrorCode::Conflict,
            Self::InUse { .. } => ErrorCode::InUse,
            Self::Invalid(_) => ErrorCode::InvalidValue,
            Self::Quota { .. } | Self::QuotaOfVms { .. } => ErrorCode::QuotaExceeded,
            Self::NoCredits { .. } => ErrorCode::NoCredits,
            Self::NoMigrationTo { .. } => ErrorCode::WrongState,
            Self::NoCapacity { .. }
            | Self::NoMigration { .. }
            | Self::NoInterval { .. }
            | Self::NoCapacityForGroup { .. }
            | Self::NoSplit { .. }
            | Self::NoAddress { .. } => ErrorCode::NoCapacity,
            Self::Unsupported { .. } => ErrorCode::Unsupported,
            Self::Unreachable { .. } | Self::ShuttingDown => ErrorCode::Unreachable,
            Self::Busy => ErrorCode::TooManyRequests,
            Self::Store(_) | Self::Encode(_) | Self::NoPlan(_) => ErrorCode::Internal,
        }
    }

    /// What would help.
    #[must_use]
    pub fn hint(&self) -> String {
        match self {
            Self::Unauthenticated => "get a token from an admin: `plimsoll token create`".into(),
            Self::Forbidden { cluster: true, .. } => {
                "use a token that is not bound to a project".into()
            }
            Self::Forbidden { .. } => "use a token with that role".into(),
            Self::NotFound { what, .. } => match what {
                Noun::Vm => "`plimsoll vm list` shows the project's VMs".into(),
                Noun::Host => "`plimsoll host list` shows the hosts".into(),
                Noun::Project => "`plimsoll project list` shows the projects that you may see".into(),
                Noun::Network => "`plimsoll network list` shows the project's networks".into(),
                Noun::Image | Noun::ImageFile => {
                    "`plimsoll image list` shows the project's and the public images".into()
                }
                Noun::Token => "`plimsoll token list` shows the tokens".into(),
            },
            Self::AlreadyExists { .. } => "choose another name, or change the one there is".into(),
            Self::WrongState { hint, .. } | Self::InUse { hint, .. } => (*hint).into(),
            Self::Conflict { .. } => "look at it again, then repeat the change".into(),
            Self::Invalid(invalid) => invalid.hint.clone(),
            Self::Quota { .. } | Self::QuotaOfVms { .. } => {
                "stop or delete VMs, or ask an admin for more: `plimsoll project set`".into()
            }
            Self::NoCredits { .. } => {
                "ask an admin for more: `plimsoll project set --add-credits`".into()
            }
            Self::NoCapacity { .. } | Self::NoCapacityForGroup { .. } | Self::NoSplit { .. } => {
                "`plimsoll explain` shows what each host lacks; ask for less, relax constraints or add hosts"
                    .into()
            }
            Self::NoMigrationTo { refusal, .. } => refusal.hint().into(),
            Self::NoMigration { unfit, .. } => unfit.first().map_or_else(
                || "`plimsoll vm explain` shows what each host lacks; relax constraints or add hosts".into(),
                |(_, refusal)| refusal.hint().into(),
            ),
            Self::NoInterval { refusal: BookRefusal::Never { .. }, .. } => {
                "`plimsoll explain` shows what each host lacks; ask for less, relax constraints or add hosts"
                    .into()
            }
            Self::NoInterval { .. } => {
                "give it a later deadline or a shorter duration, or ask for less; `plimsoll reservation list` \
                 shows what is booked"
                    .into()
            }
            Self::NoAddress { .. } => "delete VMs on it, or make another network".into(),
            Self::Unsupported { hint, .. } => hint.clone(),
            Self::Unreachable { .. } => {
                "`plimsoll host show` tells since when; check the host and its agent".into()
            }
            Self::Busy => "wait a moment and try again".into(),
            Self::ShuttingDown => "try again when it is back".into(),
            Self::NoPlan(_) => "this is a fault of Plimsoll: please report it with the manager's log".into(),
            Self::Store(_) | Self::Encode(_) => {
                "nothing was changed; check the manager's log and its disk space".into()
            }
            Self::StaleReport | Self::BeingFenced => "send a new report".into(),
        }
    }

    /// The message with all its causes, in one line.
    #[must_use]
    pub fn in_full(&self) -> String {
        let causes: String = causes(self).map(|cause| format!(": {cause}")).collect();
        format!("{self}{causes}")
    }

    /// The wire's error body. The causes of our own failures stay in the log.
    #[must_use]
    pub fn to_body(&self) -> ErrorBody {
        let mut body = ErrorBody::new(self.code(), self.to_string()).with_hint(self.hint());
        if body.code != ErrorCode::Internal {
            body.causes = causes(self).collect();
        }
        body.details = self.details();
        body
    }

    fn details(&self) -> BTreeMap<String, String> {
        let mut details = BTreeMap::new();
        let refusals = match self {
            Self::NoMigration { refusals, unfit, .. } => {
                let unfit = unfit.iter().map(|(host, why)| (host.to_string(), why.to_string()));
                details.extend(unfit);
                refusals
            }
            Self::NoCapacity { refusals, .. }
            | Self::NoInterval { refusal: BookRefusal::Never { refusals }, .. } => refusals,
            Self::NoInterval { refusal: BookRefusal::TooLate { refusals, .. }, .. } => refusals,
            Self::NoCapacityForGroup { refusal, .. }
            | Self::NoSplit { refusal: SplitRefusal::NoPlace { last: refusal, .. }, .. } => {
                &refusal.refusals
            }
            _ => return BTreeMap::new(),
        };
        details.extend(refusals.counts.iter().map(|count| {
            let others = match count.hosts {
                0 | 1 => String::new(),
                hosts => format!(" (and {} hosts like it)", hosts - 1),
            };
            (count.example.name.to_string(), format!("{}{others}", count.example.refusal))
        }));
        details
    }
}
