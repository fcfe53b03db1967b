//! The nouns of Plimsoll.
//!
//! Everything that more than one room of the house talks about is defined here and nowhere else:
//! units, resource vectors, VMs and their elasticity, hosts, projects, networks, images, constraints
//! and events, and the state machines with their legal transitions. The crate is pure: no clock, no
//! I/O, no randomness; times and ids come in as arguments.

pub mod amount;
pub mod constraint;
pub mod deflation;
pub mod elasticity;
pub mod event;
pub mod host;
pub mod id;
pub mod image;
pub mod name;
pub mod network;
pub mod policy;
pub mod project;
pub mod resources;
pub mod units;
pub mod vm;

pub use amount::Amount;
pub use constraint::{Constraint, ExclusiveAgainst, Rule, Scope, Strength};
pub use deflation::{Deflation, InvalidDeflation, Level};
pub use elasticity::{
    Elasticity, ElasticityError, Fraction, InvalidCurve, UtilityCurve, UtilityCurves, UtilityPoint,
};
pub use event::{Event, EventKind, Severity, Subject};
pub use host::{Fencing, Host, HostEvent, HostPhase, HostSpec, IllegalHostTransition, StoragePool};
pub use id::{EventSequence, HostId, ImageId, NetworkId, ProjectId, TokenId, VmId};
pub use image::{Image, ImageFile, ImageFileKind, ImagePhase};
pub use name::{InvalidName, Label, Name};
pub use network::{Address, Cidr, Interface, InvalidCidr, MacAddress, Network};
pub use policy::Policy;
pub use project::{Credits, Prices, Project, Quota, Role};
pub use resources::{Accelerators, Element, InvalidAccelerator, Resources};
pub use units::{BitsPerSecond, Bytes, BytesPerSecond, IoPerSecond, MilliCores, ParseUnitError};
pub use vm::{
    DiskLocation, IllegalVmTransition, OnHostFailure, Placement, Power, RestartPolicy, Vm, VmEvent,
    VmPhase, VmSpec,
};

/// An instant, printed as RFC 3339 in UTC.
pub type Timestamp = jiff::Timestamp;
