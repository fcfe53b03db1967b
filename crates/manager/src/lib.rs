//! The brain: admission, placement, reconciliation and the REST API.
//!
//! ```text
//!   http (unpack, authorise) --> app (decide) --> core (one committer, durable) --> store
//!                                   |                    |
//!                               admission            snapshot --> http, agents, reconcile
//! ```
//!
//! [`core`] holds the state and is the only way to change it; [`app`] has one function for each
//! request; [`admission`] decides what may be had; [`reconcile`] does what time and failures ask for.

pub mod admin_token;
pub(crate) mod admission;
pub mod app;
mod auth;
pub mod ca;
pub mod core;
mod http;
pub mod images;
mod metrics;
mod proxy;
pub mod reconcile;
mod server;

pub use http::openapi;
pub use server::{FencingConfig, Server, ServerConfig, ServerError, serve};
