//! The admin socket: how the command line talks to a running agent.
pub mod client;
pub(super) mod server;
#[cfg(test)]
mod tests;
pub mod wire;
