//! Sockets that processes had before they were governed and that have no peer yet: no hook saw them made, so the agent says
//! whose they are.
use super::diag::Socket;
use super::holders::{Holder, Holders};
use super::{Fence, maps};
use aya::maps::MapError;
use rustix::net::sockopt::socket_cookie;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsRawFd, OwnedFd};
use tollgate_common::flow::MADE;

/// A socket that is known to be a workload's from now on.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) workload: String,
    local: SocketAddr,
    listens: bool,
}

impl Claimed {
    /// Is this one that it accepted before, and that nobody has taken yet?
    pub(super) fn has_accepted(&self, socket: &Socket) -> bool {
        let (own, its) = (self.local, socket.local());
        self.listens
            && socket.inode == 0
            && own.port() == its.port()
            && (own.ip().is_unspecified() || own.ip() == its.ip())
    }
}

/// A listener that is not held, and why.
#[derive(Debug)]
pub(super) struct Unheld {
    pub(super) workload: String,
    process: u32,
    local: SocketAddr,
    why: String,
}

impl Unheld {
    pub(super) fn warn(&self) {
        tracing::warn!(
            workload = self.workload,
            pid = self.process,
            "connections to {} are not refused: the process listened there before it was governed, and {}",
            self.local,
            self.why
        );
    }
}

impl Fence {
    /// Makes a socket its holder's workload's. `None`: nobody's who is governed.
    pub(super) fn claim(
        &self,
        holders: &Holders,
        socket: &Socket,
    ) -> Option<Result<Claimed, Unheld>> {
        let holder = holders.of_socket(socket.inode)?;
        let workload = self.workload_of_process(holder.process)?;
        let local = socket.local();
        let why = if let Some(other) = holders.others(self).get(&socket.inode) {
            format!(
                "process {other}, which is not governed, has it open too: end that one, or list the port under `listen`"
            )
        } else {
            match self.enter_origin(holder, socket, &workload) {
                Ok(()) => {
                    return Some(Ok(Claimed {
                        workload,
                        local,
                        listens: socket.listens(),
                    }));
                }
                Err(error) => {
                    format!("it cannot be said whose it is ({error}): restart the process")
                }
            }
        };
        Some(Err(Unheld {
            workload,
            process: holder.process,
            local,
            why,
        }))
    }

    /// What was said of it before stays, unless that was of a workload that is no more.
    fn enter_origin(
        &self,
        holder: Holder,
        socket: &Socket,
        workload: &str,
    ) -> Result<(), Box<dyn std::error::Error>> {
        let copy = copy_of(holder, socket)?;
        let mut writers = self.maps.write();
        let ids = self.workload_ids(&mut writers, std::iter::once(workload))?;
        let id = ids.get(workload).copied().unwrap_or_default();
        let was = match writers.origin.get(&copy.as_raw_fd(), 0) {
            Err(MapError::KeyNotFound) => MADE,
            was => was.map_err(maps::read("ORIGIN"))?,
        };
        let owner = u32::try_from(was & !MADE).unwrap_or_default();
        if owner != 0 && !writers.is_released(owner)? {
            return Ok(());
        }
        let entered = writers
            .origin
            .insert(&copy.as_raw_fd(), was & MADE | u64::from(id), 0);
        Ok(entered.map_err(maps::write("ORIGIN"))?)
    }
}

/// A descriptor of this process's own, for as long as it takes.
fn copy_of(holder: Holder, socket: &Socket) -> io::Result<OwnedFd> {
    // Of a thread that has a table of its own, it cannot be had before Linux 6.9.
    let number = holder.descriptor.ok_or(io::ErrorKind::Unsupported)?;
    let pid = i32::try_from(holder.process).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    // Closed since, and its number given to another?
    match socket_cookie(&copy)? == socket.cookie() {
        true => Ok(copy),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}
