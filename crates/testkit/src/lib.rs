//! What tests and benchmarks of whole parts need: fake agents that speak the real interface, and
//! waits with a limit.
//!
//! A [`FakeAgent`] joins with a real join token, gets a real certificate, reports and fetches its
//! desired state over mutual TLS, and pretends to run VMs: whatever should run, runs at once. A
//! thousand of them live in one process, with one connection each.

mod endpoint;
mod fake_agent;
mod wait;

pub use fake_agent::{FakeAgent, FakeHost, FakeMove, FakeVm, Mode, join_many};
pub use wait::wait_for;
