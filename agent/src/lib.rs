//! Tollgate's agent. The layout tells the story of a connection: see `ARCHITECTURE.md`.

pub mod audit;
pub mod budget;
pub mod cli;
pub mod config;
pub mod daemon;
pub(crate) mod dns;
pub mod gate;
pub mod identity;
#[allow(unsafe_code)] // The kernel's door: every `unsafe` says why it is needed and why it is safe.
pub mod kernel;
pub mod pipeline;
pub mod secrets;
pub mod snapshot;
pub mod telemetry;
pub mod tls;
pub(crate) mod upstream;
