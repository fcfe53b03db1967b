//! Placement against a naive model, and what its answers look like.

mod golden;
mod naive;
mod properties;
mod scenario;
mod speed;
