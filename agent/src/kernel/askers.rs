//! Who asks for names: the hook's record of each query, taken as the query is read.
use super::{
    Fence, Flow, namespaces, sys,
    translate::{abi, address},
};
use std::io;
use std::net::SocketAddr;
use std::os::fd::AsFd;
use tollgate_common::flow::{Asker, Port, Query};

/// A network namespace, as the kernel tells it from others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Namespace(u64);

impl Namespace {
    /// That of a socket.
    ///
    /// # Errors
    /// The kernel does not say; it has since Linux 5.14.
    pub fn of(socket: &impl AsFd) -> io::Result<Self> {
        namespaces::cookie(socket.as_fd()).map(Self)
    }
}

/// Nanoseconds since boot, as the hooks count.
pub fn since_boot() -> u64 {
    let now = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    now.tv_sec
        .unsigned_abs()
        .saturating_mul(1_000_000_000)
        .saturating_add(now.tv_nsec.unsigned_abs())
}

impl Fence {
    pub(super) fn take_asker(
        &self,
        namespace: Namespace,
        from: SocketAddr,
        id: [u8; 2],
    ) -> Option<Flow> {
        let query = Query {
            from: Port {
                netns: namespace.0,
                address: abi(from),
            },
            id: u32::from(u16::from_ne_bytes(id)),
            reserved: 0,
        };
        let asker: Asker = sys::take(&self.maps.queries, &query).ok()?;
        Some(Flow {
            cookie: 0,
            workload: self.names.workload(asker.owner.workload),
            process: self.process(&asker.owner),
            destination: address(&asker.server),
        })
    }

    pub(super) fn forget_askers(&self, time: u64) {
        let mut writers = self.maps.write();
        let old: Vec<Query> = writers
            .queries
            .iter()
            .filter_map(Result::ok)
            .filter_map(|(query, asker)| (asker.time < time).then_some(query))
            .collect();
        for query in old {
            // One that is gone was read after all.
            let _ = writers.queries.remove(&query);
        }
    }
}
