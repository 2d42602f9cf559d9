//! The story of one connection, one file per stage, composed here:
//! accept → attribute → terminate → parse → identify → authorize (→ sign) → rewrite → forward → screen → respond → account → audit.
//!
//! Each stage consumes the previous one's value, and only the stage's own file can make its value: what was not
//! authorized cannot be forwarded, and what was forwarded cannot be left out of the log.
mod account;
mod again;
mod answer;
mod attribute;
mod authorize;
mod body;
mod change;
mod charge;
mod exchange;
mod forward;
mod framed;
mod heard;
mod hello;
mod hold;
mod hop;
mod identify;
mod listen;
mod parse;
mod plane;
mod refuse;
mod respond;
mod rewrite;
mod screen;
mod serve;
mod short;
mod sign;
mod spent;
mod splice;
mod terminate;
mod websocket;
mod worker;

pub(crate) use authorize::now;
pub(crate) use body::RequestBody;
pub use hold::Room;
pub use listen::{Listeners, bind, bind_here};
pub use plane::{Doors, Plane};
pub use spent::Overspent;
pub(crate) use worker::LocalExecutor;

use crate::{audit, config::Limits, kernel::Fence, snapshot::Live, tls::Issuing};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

/// What all workers share: snapshots and atomics only.
#[derive(Debug)]
pub struct Shared {
    /// Policy and secrets in force.
    pub live: Live,
    /// The kernel half.
    pub fence: Arc<Fence>,
    /// Issues leaves.
    pub issuing: Arc<Issuing>,
    /// Where records go.
    pub sink: audit::Sink,
    /// Bounds.
    pub limits: Limits,
    /// Keys that issuers published.
    pub published: crate::identity::Published,
    /// For responses that are held whole.
    pub room: Room,
    /// Workloads whose connections are to end.
    pub overspent: Overspent,
    /// Refusals of names that were counted and not recorded.
    pub unrecorded: AtomicU64,
    /// Resolvers for upstream names.
    pub dns_servers: Vec<IpAddr>,
    /// The agent's own addresses, never dialled.
    pub own: Arc<[SocketAddr]>,
}
