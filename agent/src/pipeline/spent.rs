//! Workloads that have spent what their budget gives them: the kernel lets nothing more of them pass, so their
//! connections are reset instead of waiting in vain.
use super::worker::Worker;
use crate::kernel::descriptors;
use std::collections::HashSet;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::TcpStream;
use tokio::sync::watch;

/// How long what was sent may take to arrive.
const PATIENCE: Duration = Duration::from_secs(60);

type Workloads = HashSet<Arc<str>>;

/// Which those are now. The control plane says so, connections of workloads with a budget listen.
#[derive(Debug, Default)]
pub struct Overspent(watch::Sender<Workloads>);

impl Overspent {
    /// One more.
    pub fn add(&self, workload: Arc<str>) {
        // Told also where it was one before: a connection may have come since.
        self.0.send_modify(|workloads| {
            workloads.insert(workload);
        });
    }

    /// Exactly these.
    pub fn set(&self, workloads: Workloads) {
        self.0.send_if_modified(|known| {
            let changed = *known != workloads;
            *known = workloads;
            changed
        });
    }
}

/// A connection of a workload with a budget, held by a second descriptor so that it can be reset wherever its stream
/// has gone.
pub(super) struct Held {
    pub(super) socket: OwnedFd,
    workload: Arc<str>,
    overspent: watch::Receiver<Workloads>,
}

impl Held {
    /// `None` where the workload has no budget: it costs a descriptor.
    pub(super) fn new(worker: &Worker, workload: &Arc<str>, stream: &TcpStream) -> Option<Self> {
        if !worker.shared.live.load().policy.is_budgeted(workload) {
            return None;
        }
        // Without a descriptor left the connection goes on, and times out if it has to.
        let socket = stream.as_fd().try_clone_to_owned().ok()?;
        Some(Self {
            socket,
            workload: Arc::clone(workload),
            overspent: worker.shared.overspent.0.subscribe(),
        })
    }

    /// Waits until the workload has spent all it may.
    pub(super) async fn spent(held: Option<&Self>) {
        let Some(held) = held else {
            return std::future::pending().await;
        };
        let mut overspent = held.overspent.clone();
        if overspent
            .wait_for(|all| all.contains(&held.workload))
            .await
            .is_err()
        {
            // The agent ends, and its connections with it.
            std::future::pending().await
        }
    }

    /// The connection was served: waits until what was sent has arrived, which may run into the limit too. A client that
    /// takes nothing is left to the kernel after a while.
    pub(super) async fn arrived(&self) {
        let socket = socket2::SockRef::from(&self.socket);
        if socket.linger().is_ok_and(|linger| linger.is_some()) {
            return; // It is about to be reset.
        }
        let _ = socket.shutdown(std::net::Shutdown::Write);
        let (mut wait, deadline) = (Duration::from_millis(1), Instant::now() + PATIENCE);
        while descriptors::unsent(&self.socket).is_ok_and(|bytes| bytes > 0)
            && Instant::now() < deadline
        {
            tokio::time::sleep(wait).await;
            wait = (wait * 2).min(Duration::from_millis(50));
        }
    }
}
