//! The users' REST API, version 1.
//!
//! Every path begins with `/v1`; `P` is a project's name, `V` a VM's. A bearer token says who asks.
//!
//! ```text
//!   GET    /v1/openapi.json, /v1/status, /v1/whoami          GET|PATCH /v1/settings
//!   POST|GET /v1/projects                                    GET|PATCH|DELETE /v1/projects/P
//!   POST|GET /v1/projects/P/vms                              GET|PATCH|DELETE /v1/projects/P/vms/V
//!   POST   /v1/projects/P/vms/V/{start,stop,reboot,exec}     GET .../V/{logs,console,explain}
//!   POST   /v1/projects/P/vms/V/{deflate,inflate}         POST .../V/migrate, .../V/migrate/cancel
//!   POST   /v1/projects/P/explain
//!   POST|GET /v1/projects/P/networks                         GET|DELETE /v1/projects/P/networks/N
//!   POST|GET /v1/projects/P/images, /v1/images (public)      GET|DELETE .../images/N
//!   PUT    .../images/N/files/{disk,kernel,initrd}           the bytes of a file
//!   GET    /v1/hosts                                         GET|DELETE /v1/hosts/H
//!   POST   /v1/hosts/H/{drain,undrain,fence}
//!   POST|GET /v1/tokens    DELETE /v1/tokens/ID              POST /v1/join-tokens
//!   GET    /v1/balance                                       POST /v1/balance/{plan,apply}
//!   GET    /v1/events?after=S&limit=N&project=P&wait_ms=W
//! ```

mod balance;
mod migration;

use std::{collections::BTreeMap, net::Ipv4Addr};

use serde::{Deserialize, Serialize};

use plimsoll_model::{
    Amount, Bytes, Cidr, Constraint, Credits, Deflation, Element, EventSequence, Fencing, Fraction,
    HostId, HostPhase, HostSpec, ImageFile, Level, Name, OnHostFailure, Policy, Power, Prices,
    ProjectId, Quota, Resources, RestartPolicy, Role, Timestamp, TokenId, VmId, VmPhase, VmSpec,
};

use crate::{
    ErrorBody,
    cluster::{ActualLimits, DeflationOutcome, HostUsage, VmShare, VmUsage},
    deduplication::{ProjectDeduplication, VmDeduplication},
    guest::Facts,
};

pub use balance::{
    BalanceAction, BalanceMode, BalancePlan, BalanceSettings, BalanceStep, BalanceView,
    HostForecast, HostLoad, InvalidBalanceMode,
};
pub use migration::{
    DrainProspect, DrainRequest, DrainResponse, DrainView, DrainedVm, LastMigration,
    MigrateRequest, MigrateResponse, MigrationCause, MigrationOutcome, MigrationPrediction,
    MigrationView,
};

/// Asks for VMs.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVmsRequest {
    /// What is asked for: 1 to 1000 entries, at most 1000 VMs in all.
    pub requests: Vec<VmRequest>,
    /// All or none of them (the default), or as many as can be.
    #[serde(default = "yes")]
    pub all_or_nothing: bool,
    /// The policy; without, the cluster's.
    #[serde(default)]
    pub policy: Option<Policy>,
}

const fn yes() -> bool {
    true
}

/// One entry: a VM, so many equal ones, or a total.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmRequest {
    /// The VM's name; with `count` or `split` the first part of `NAME-1`, `NAME-2`, ...
    pub name: Name,
    /// So many VMs like this. Not together with `split`.
    #[serde(default)]
    pub count: Option<u32>,
    /// `spec.resources` is a total that Plimsoll splits into VMs.
    #[serde(default)]
    pub split: Option<Split>,
    /// What each is like.
    pub spec: VmSpec,
}

/// Into how many VMs a total may be split.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Split {
    /// At least so many; by default one.
    #[serde(default = "one")]
    pub min_vms: u32,
    /// At most so many; by default 64.
    #[serde(default = "sixty_four")]
    pub max_vms: u32,
}

const fn one() -> u32 {
    1
}

const fn sixty_four() -> u32 {
    64
}

/// What was created.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateVmsResponse {
    /// The VMs, in the order of the request.
    pub vms: Vec<VmView>,
    /// With `all_or_nothing: false`: what could not be had, by VM name.
    #[serde(default)]
    pub refused: BTreeMap<String, ErrorBody>,
}

/// A VM as users see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct VmView {
    /// Its id.
    pub id: VmId,
    /// Its name.
    pub name: Name,
    /// Its project's name.
    pub project: Name,
    /// Where it stands.
    pub state: VmPhase,
    /// Since when.
    pub state_since: Timestamp,
    /// The name of its host.
    pub host: Option<Name>,
    /// Why there.
    pub placement_reason: Option<String>,
    /// Where and when it is to start, while it waits for a time that is booked for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub booking: Option<BookingView>,
    /// Its addresses.
    #[cfg_attr(feature = "openapi", schema(value_type = Vec<String>))]
    pub addresses: Vec<Ipv4Addr>,
    /// What it is promised.
    pub resources: Resources,
    /// What is wanted, whole.
    pub spec: VmSpec,
    /// Whether it should run.
    pub power: Power,
    /// Counts the changes of what is wanted; two changes at once are told apart by it.
    pub generation: u64,
    /// The generation that is true of the running VM.
    pub observed_generation: u64,
    /// What there is to say.
    pub message: Option<String>,
    /// When it was created.
    pub created_at: Timestamp,
    /// How often it was restarted after a crash, on this host.
    pub restarts: u32,
    /// The limits, read back from the host.
    pub limits: Option<ActualLimits>,
    /// What the guest tells, while its agent answers.
    pub guest: Option<Facts>,
    /// What is taken from it for now.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deflation: Option<Deflation>,
    /// How that went, once it was tried.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deflation_outcome: Option<DeflationOutcome>,
    /// What its host decided that it is to have now, where that divides its memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<VmShare>,
    /// What it uses, as its host sees it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub usage: Option<VmUsage>,
    /// What merging equal pages does for it, while it runs.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deduplication: Option<VmDeduplication>,
    /// Where it is going, while it moves to another host.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub migration: Option<MigrationView>,
    /// How its last move went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_migration: Option<LastMigration>,
}

/// Takes a part of what a running VM has, until it is inflated again. What it is promised stays
/// promised: no other VM is given its room.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct DeflateVmRequest {
    /// How much of its memory, in percent; 0 to 90.
    pub memory_percent: u8,
    /// How much of its CPU, in percent; 0 to 90.
    pub cpu_percent: u8,
    /// By when, in milliseconds; 100 to 600,000. Half of it is the applications'.
    pub within_ms: u64,
    /// The highest level that is asked: with `guest` no application is, with `host` the guest hears
    /// nothing of it.
    pub from: Level,
}

impl Default for DeflateVmRequest {
    fn default() -> Self {
        Self { memory_percent: 0, cpu_percent: 0, within_ms: 10_000, from: Level::Application }
    }
}

/// A host for an interval to come.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct BookingView {
    /// The name of the host. It may become another one.
    pub host: Name,
    /// Why there.
    pub reason: String,
    /// When the VM starts: then, or earlier if room is released.
    pub starts_at: Timestamp,
    /// When it is stopped; none when it has no end.
    pub ends_at: Option<Timestamp>,
    /// When it was booked, or moved last.
    pub since: Timestamp,
}

/// How far a reservation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub enum ReservationState {
    /// A host and an interval are booked for it.
    Booked,
    /// Its time has come and its host is not free yet, or it has no interval at present.
    Waiting,
    /// The VM has its host, until its end.
    Begun,
}

/// Capacity that is held for some time: a VM that is booked, or has a host and an end.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Reservation {
    /// The VM's id.
    pub id: VmId,
    /// The VM's name.
    pub vm: Name,
    /// Its project's name.
    pub project: Name,
    /// How far it is.
    pub state: ReservationState,
    /// The name of the host.
    pub host: Option<Name>,
    /// When it starts, or was placed.
    pub starts_at: Option<Timestamp>,
    /// When the VM is stopped.
    pub ends_at: Option<Timestamp>,
    /// By when it must be over.
    pub deadline: Option<Timestamp>,
    /// What it holds.
    pub resources: Resources,
    /// What there is to say, such as why it waits.
    pub message: Option<String>,
}

/// Changes a VM; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetVmRequest {
    /// Cores.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub cpu: Option<plimsoll_model::MilliCores>,
    /// Memory: on the running VM at most what its limits tell as `memory_max`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub memory: Option<Bytes>,
    /// Disk space: only more.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk: Option<Bytes>,
    /// Disk bandwidth; 0: not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_bandwidth: Option<plimsoll_model::BytesPerSecond>,
    /// Disk operations; 0: not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub disk_iops: Option<plimsoll_model::IoPerSecond>,
    /// Network bandwidth; 0: not limited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub network: Option<plimsoll_model::BitsPerSecond>,
    /// When it is stopped.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_at: Option<Timestamp>,
    /// What to do when QEMU ends unexpectedly.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub restart: Option<RestartPolicy>,
    /// What to do when its host is fenced.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub on_host_failure: Option<OnHostFailure>,
    /// How far it gives back what it was promised while its host needs it for others.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub elasticity: Option<plimsoll_model::Elasticity>,
    /// The constraints: kept at its next placement; one that the present host breaks is refused.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub constraints: Option<Vec<Constraint>>,
    /// Only if the VM's generation is still this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub if_generation: Option<u64>,
}

/// Stops a VM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct StopVmRequest {
    /// How long the guest may take to shut down, in seconds, before it is ended; 0 to 3600. 0 ends it
    /// at once.
    pub grace_s: u32,
}

impl Default for StopVmRequest {
    fn default() -> Self {
        Self { grace_s: 60 }
    }
}

/// Asks where something would be placed, or why something is where it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ExplainRequest {
    /// What would be asked for: one VM of it is explained.
    pub request: VmRequest,
    /// The policy; without, the cluster's.
    #[serde(default)]
    pub policy: Option<Policy>,
}

/// Every host's refusal or score.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Explanation {
    /// The policy.
    pub policy: Policy,
    /// What was to be placed: the VM's resources with its overhead on the host.
    pub demand: Resources,
    /// The host that wins, by name.
    pub chosen: Option<Name>,
    /// One line that sums it up.
    pub reason: String,
    /// Of a VM that runs on a host that divides its memory: what it is to have now, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub share: Option<VmShare>,
    /// Every host, in the order of their ids.
    pub hosts: Vec<HostVerdict>,
}

/// What became of one host in a decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostVerdict {
    /// Its number.
    pub id: HostId,
    /// Its name.
    pub host: Name,
    /// The score under the policy, if it can hold the VM.
    pub score: Option<f64>,
    /// How many preferred rules it breaks.
    pub broken_preferences: u32,
    /// Why it is out; empty if it is not.
    pub refusals: Vec<Refusal>,
}

/// Why a host is out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Refusal {
    /// A stable name, such as `insufficient` or `anti_affinity`.
    pub code: String,
    /// The reason for people, with its numbers.
    pub message: String,
    /// With `insufficient`: of what.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub element: Option<Element>,
    /// With `insufficient`: how much is needed, in base units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub need: Option<u64>,
    /// With `insufficient`: how much is free, in base units.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub free: Option<u64>,
}

/// A host as users see it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct HostView {
    /// Its number.
    pub id: HostId,
    /// Its name.
    pub name: Name,
    /// Where it stands.
    pub state: HostPhase,
    /// Since when.
    pub state_since: Timestamp,
    /// Whether new VMs are placed here.
    pub schedulable: bool,
    /// Its VMs are moved away, until it is undrained.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub draining: Option<DrainView>,
    /// How it came to be fenced.
    pub fencing: Option<Fencing>,
    /// What it is.
    pub spec: HostSpec,
    /// What its VMs were promised, overhead included.
    pub committed: Resources,
    /// What may be promised beyond its capacity at the risk that the settings state: what its
    /// elastic VMs are promised and will not use.
    #[serde(default)]
    pub loan: Amount,
    /// What is left, that included.
    pub free: Resources,
    /// How busy it is, as of its last report.
    pub usage: Option<HostUsage>,
    /// How many VMs it holds, running or not.
    pub vms: u32,
    /// When its last report came.
    pub last_report_at: Option<Timestamp>,
}

/// Creates a project.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateProjectRequest {
    /// Its name.
    pub name: Name,
    /// The most that it may hold.
    #[serde(default)]
    pub quota: Quota,
    /// Credits in millionths; without, it is not charged.
    #[serde(default)]
    pub credits: Option<Credits>,
}

/// Changes a project; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetProjectRequest {
    /// A new quota, whole.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub quota: Option<Quota>,
    /// Credits to add (or, negative, to take).
    #[serde(skip_serializing_if = "Option::is_none")]
    pub add_credits: Option<Credits>,
    /// No longer charged.
    pub uncharged: bool,
}

/// A project as users see it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ProjectView {
    /// Its id.
    pub id: ProjectId,
    /// Its name.
    pub name: Name,
    /// The most that it may hold.
    pub quota: Quota,
    /// What it holds now.
    pub used: Resources,
    /// How many VMs it has.
    pub vms: u32,
    /// What it has left.
    pub credits: Option<Credits>,
    /// When it was created.
    pub created_at: Timestamp,
    /// What merging equal pages does for its VMs that run, all together.
    #[serde(default)]
    pub deduplication: ProjectDeduplication,
}

/// Creates a network.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateNetworkRequest {
    /// Its name.
    pub name: Name,
    /// Its addresses; without, a /24 is chosen.
    #[serde(default)]
    pub cidr: Option<Cidr>,
    /// Whether guests reach the outside through their host.
    #[serde(default)]
    pub outside: bool,
}

/// Announces an image; its files follow with PUT.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateImageRequest {
    /// Its name.
    pub name: Name,
    /// One line about it.
    #[serde(default)]
    pub description: String,
    /// Its files, with checksums: exactly one disk; an initrd only with a kernel.
    pub files: Vec<ImageFile>,
    /// The kernel's command line.
    #[serde(default)]
    pub append: Option<String>,
    /// The least memory with which it boots.
    #[serde(default)]
    pub min_memory: Bytes,
    /// Whether it brings the guest agent.
    #[serde(default)]
    pub guest_agent: bool,
}

/// Makes a token.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateTokenRequest {
    /// What its holder may do.
    pub role: Role,
    /// In which project; without, in the whole cluster.
    #[serde(default)]
    pub project: Option<Name>,
    /// What it is for.
    #[serde(default)]
    pub note: String,
    /// How long it lasts, in seconds; without, until it is revoked.
    #[serde(default)]
    pub lifetime_s: Option<u64>,
}

/// A token without its secret.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct TokenView {
    /// Its id.
    pub id: TokenId,
    /// What its holder may do.
    pub role: Role,
    /// In which project.
    pub project: Option<Name>,
    /// What it is for.
    pub note: String,
    /// When it was made.
    pub created_at: Timestamp,
    /// When it ends.
    pub expires_at: Option<Timestamp>,
}

/// A new token.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateTokenResponse {
    /// The token, shown this once: only a hash of it is kept.
    pub secret: String,
    /// What is known of it from now on.
    pub token: TokenView,
}

impl std::fmt::Debug for CreateTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateTokenResponse").field("token", &self.token).finish_non_exhaustive()
    }
}

/// Makes a token with which one host joins, once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateJoinTokenRequest {
    /// How long it is good, in seconds: 60 to 86,400.
    pub lifetime_s: u64,
}

impl Default for CreateJoinTokenRequest {
    fn default() -> Self {
        Self { lifetime_s: 3600 }
    }
}

/// A join token: `plj1.<manager address:port>.<SHA-256 of the CA, hex>.<secret>` with the address in
/// URL-safe base64, all that a host needs to find the manager and to be sure of it.
#[derive(Clone, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct CreateJoinTokenResponse {
    /// The token, shown this once.
    pub token: String,
    /// When it ends.
    pub expires_at: Timestamp,
}

impl std::fmt::Debug for CreateJoinTokenResponse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("CreateJoinTokenResponse")
            .field("expires_at", &self.expires_at)
            .finish_non_exhaustive()
    }
}

/// Settings of the cluster.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct Settings {
    /// The policy for requests that name none.
    pub policy: Policy,
    /// What holding resources costs.
    pub prices: Prices,
    /// A host that has not reported for so many milliseconds is unreachable.
    pub unreachable_after_ms: u64,
    /// And after so many, dead.
    pub dead_after_ms: u64,
    /// How long a host's lease lasts, in milliseconds; 0: hosts have no lease.
    pub lease_ms: u64,
    /// Memory that a VM costs its host beside its own.
    pub vm_memory_overhead: Bytes,
    /// How long before a VM's end its guest is warned, in seconds.
    pub end_warning_s: u32,
    /// In which share of slots a host may be short of CPU. With 0 no host is promised
    /// more CPU than it has; otherwise elastic VMs count with what they are likely to use.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub risk_cpu: Fraction,
    /// The same of memory. No more is promised than there is a place for: memory and swap.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", schema(value_type = f64))]
    pub risk_memory: Fraction,
    /// The length of a slot, in seconds: how finely it is remembered what VMs use.
    #[serde(default = "five_minutes")]
    pub slot_s: u32,
    /// What is done about hosts that run hot.
    #[serde(default)]
    pub balance: BalanceSettings,
}

const fn five_minutes() -> u32 {
    300
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            policy: Policy::default(),
            prices: Prices::default(),
            unreachable_after_ms: 10_000,
            dead_after_ms: 30_000,
            lease_ms: 20_000,
            vm_memory_overhead: Bytes::mib(96),
            end_warning_s: 60,
            risk_cpu: Fraction::ZERO,
            risk_memory: Fraction::ZERO,
            slot_s: five_minutes(),
            balance: BalanceSettings::default(),
        }
    }
}

/// Changes settings; what is absent stays.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct SetSettingsRequest {
    /// See [`Settings::policy`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub policy: Option<Policy>,
    /// See [`Settings::prices`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub prices: Option<Prices>,
    /// See [`Settings::unreachable_after_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unreachable_after_ms: Option<u64>,
    /// See [`Settings::dead_after_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub dead_after_ms: Option<u64>,
    /// See [`Settings::lease_ms`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub lease_ms: Option<u64>,
    /// See [`Settings::vm_memory_overhead`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub vm_memory_overhead: Option<Bytes>,
    /// See [`Settings::end_warning_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end_warning_s: Option<u32>,
    /// The length of a slot, in seconds: what was learnt with another length is forgotten.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub slot_s: Option<u32>,
    /// In which share of slots a host may be short of CPU, from 0 to 0.5.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub risk_cpu: Option<Fraction>,
    /// The same of memory.
    #[serde(skip_serializing_if = "Option::is_none")]
    #[cfg_attr(feature = "openapi", schema(value_type = Option<f64>))]
    pub risk_memory: Option<Fraction>,
    /// See [`BalanceSettings::mode`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_mode: Option<BalanceMode>,
    /// See [`BalanceSettings::threshold_percent`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_threshold_percent: Option<u8>,
    /// See [`BalanceSettings::cooldown_s`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_cooldown_s: Option<u32>,
    /// See [`BalanceSettings::moves_at_once`].
    #[serde(skip_serializing_if = "Option::is_none")]
    pub balance_moves_at_once: Option<u32>,
}

/// Who asks, as the manager sees it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct WhoAmI {
    /// The token.
    pub token: TokenId,
    /// Its role.
    pub role: Role,
    /// Its project; without, the whole cluster.
    pub project: Option<Name>,
}

/// The cluster in numbers, and its reconcilers' last results.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::ToSchema))]
pub struct ClusterStatus {
    /// The manager's version.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Hosts by phase.
    pub hosts: BTreeMap<HostPhase, u32>,
    /// VMs by phase (a project's token: its own).
    pub vms: BTreeMap<VmPhase, u32>,
    /// What all hosts have.
    pub capacity: Resources,
    /// What VMs were promised of it.
    pub committed: Resources,
    /// Each reconciler's last result.
    pub tasks: BTreeMap<String, String>,
}

/// Which events.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(feature = "openapi", derive(utoipa::IntoParams))]
pub struct EventQuery {
    /// Only those after this place in the log; without, the newest.
    #[serde(default)]
    pub after: Option<EventSequence>,
    /// At most so many: 1 to 1000, by default 100.
    #[serde(default)]
    pub limit: Option<u32>,
    /// Only those of this project.
    #[serde(default)]
    #[cfg_attr(feature = "openapi", param(value_type = Option<String>))]
    pub project: Option<Name>,
    /// Only those of this VM (with `project`).
    #[serde(default)]
    #[cfg_attr(feature = "openapi", param(value_type = Option<String>))]
    pub vm: Option<Name>,
    /// Waits so long for one, if there is none yet: at most 30,000.
    #[serde(default)]
    pub wait_ms: Option<u64>,
}
