//! Speaks QEMU's monitor protocol (QMP) over a unix socket.
//!
//! ```text
//!   caller --execute--> Qmp --line--> writer task --> socket --> QEMU
//!   caller <--oneshot-- pending[id] <-- reader task <-- socket <-- QEMU
//!   caller <--broadcast-- Event     <-+
//! ```
//!
//! What callers may rely on:
//! - every command ends: with its reply, QEMU's refusal, its timeout, or the end of the connection;
//! - any number of commands may wait at the same time, replies are matched by id;
//! - an event or an enumeration value that this crate has never heard of is delivered, not an
//!   error: QEMU adds both in minor versions;
//! - nothing that arrives on the socket can make the crate panic or grow without bound: a guest
//!   that breaks out into QEMU may speak anything here.
//!
//! Why not an existing crate: `qapi` refuses the whole connection on an event that it does not
//! know, and compiles for minutes from QEMU's complete schema.

pub mod codec;
mod commands;
mod connection;
mod descriptor;
mod error;
mod event;
pub mod fake;
mod migration;
mod types;

pub use codec::{CodecError, MAX_EVENT_BYTES, MAX_LINE_BYTES, Message, decode};
pub use connection::{ConnectOptions, EventReceiver, Qmp};
pub use error::QmpError;
pub use event::{Event, EventKind, Timestamp};
pub use migration::{BlockJob, MigrationInfo, MigrationRam, MigrationStatus};
pub use types::{
    BalloonInfo, BlockDevice, BlockInserted, ChardevInfo, CpuFast, CpuProps, Greeting, GuestStats,
    HotpluggableCpu, MemoryDevice, NameInfo, QomProperty, RunState, StatusInfo, UuidInfo,
    VersionInfo, VersionNumbers,
};
