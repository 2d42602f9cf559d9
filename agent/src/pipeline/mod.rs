//! The story of one connection, one file per stage:
//! accept → attribute → terminate → parse → authorize → rewrite → forward → respond → account → audit.
use crate::{audit, config::Limits, kernel::Fence, snapshot::Live, tls::Authority};
use std::net::{IpAddr, SocketAddr, TcpListener};
use std::sync::Arc;

/// What all workers share: snapshots and atomics only.
#[derive(Debug)]
pub struct Shared {
    /// Policy and secrets in force.
    pub live: Live,
    /// The kernel half.
    pub fence: Arc<Fence>,
    /// Issues leaves.
    pub authority: Arc<Authority>,
    /// Where records go.
    pub sink: audit::Sink,
    /// Bounds.
    pub limits: Limits,
    /// Resolvers for upstream names.
    pub dns_servers: Vec<IpAddr>,
    /// The agent's own addresses, never dialled.
    pub own: Vec<SocketAddr>,
}

/// One worker's listeners: `SO_REUSEPORT`, on 127.0.0.1 and, where the host has it, ::1.
#[derive(Debug)]
pub struct Listeners {
    /// 127.0.0.1
    pub v4: TcpListener,
    /// ::1
    pub v6: Option<TcpListener>,
}

/// Binds `workers` sets of listeners to one port (0: the kernel chooses; the same for all).
///
/// # Errors
/// The port is taken or may not be bound; says by whom to look.
pub fn bind(port: u16, workers: usize) -> std::io::Result<Vec<Listeners>> {
    let _ = (port, workers);
    todo!()
}

/// The running data plane: one current-thread runtime per worker.
#[derive(Debug)]
pub struct Plane {
    _private: (),
}

impl Plane {
    /// Starts a thread per set of listeners.
    ///
    /// # Errors
    /// A thread or runtime could not be made.
    pub fn start(shared: Arc<Shared>, listeners: Vec<Listeners>) -> std::io::Result<Self> {
        let _ = (shared, listeners);
        todo!()
    }
    /// Connections open now.
    pub fn connections(&self) -> usize {
        todo!()
    }
    /// Tells open connections that the snapshot changed, so that those no longer allowed are closed.
    pub fn snapshot_changed(&self) {
        todo!()
    }
    /// Stops accepting, lets requests under way finish for `limits.drain`, then closes. Blocks.
    pub fn drain(self) {
        todo!()
    }
}
