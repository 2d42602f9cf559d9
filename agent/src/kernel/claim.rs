//! Sockets that processes had before they were governed: no hook saw them made, so the agent says on each whose it is.
//! What the hooks of packets then make of it is the same as of any other: nothing leaves but where policy lets it go on.
use super::diag::Socket;
use super::holders::{Holder, Holders};
use super::namespaces::{self, Network};
use super::{Fence, maps};
use aya::maps::MapError;
use rustix::fs::fstat;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tollgate_common::flow::{CLAIMED, MADE};

/// By inode: the holder's workload of each socket that is known to be somebody's from now on, or why it is not.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<u32, Result<String, String>>);

/// A listener that is a workload's since this look.
#[derive(Debug)]
pub(super) struct Claimed {
    pub(super) workload: String,
    local: SocketAddr,
    family: u8,
}

impl Claimed {
    pub(super) fn port(&self) -> u16 {
        self.local.port()
    }

    /// Is this one that it accepted before, and that nobody has taken yet?
    pub(super) fn has_accepted(&self, socket: &Socket) -> bool {
        let (own, its) = (self.local, socket.local());
        socket.inode == 0
            && own.port() == its.port()
            && (own.ip().is_unspecified() || own.ip() == its.ip())
            // Of IPv4 over a socket of IPv6 the kernel says IPv6.
            && self.family == socket.family()
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

impl Claims {
    /// A listener, if it is a workload's since; or why it is not.
    pub(super) fn of_listener(
        &self,
        fence: &Fence,
        holders: &Holders,
        socket: &Socket,
    ) -> Option<Result<Claimed, Unheld>> {
        let local = socket.local();
        let why = match self.0.get(&socket.inode) {
            Some(Ok(workload)) => {
                return Some(Ok(Claimed {
                    workload: workload.clone(),
                    local,
                    family: socket.family(),
                }));
            }
            Some(Err(why)) => why.clone(),
            None => "it was not there any more: restart it".to_owned(),
        };
        let (process, workload) = holders.of_socket(fence, socket.inode)?;
        Some(Err(Unheld {
            workload,
            process,
            local,
            why,
        }))
    }
}

impl Holders {
    /// Makes each socket its holder's workload's that is not another's, or one's that is no more. Namespaces in which there are such
    /// are found by them.
    pub(super) fn claim(&mut self, fence: &Fence) -> Claims {
        let mut claims = Claims::default();
        let mut seen = HashSet::new();
        let mut elsewhere = Vec::new();
        for (inode, holders) in &self.sockets {
            let claimed = match self.others(fence).get(inode) {
                Some(other) => Err(format!(
                    "process {other}, which is not governed, has it open too: end that one, or list the port under `listen`"
                )),
                None => match claim(fence, (*inode, holders), true) {
                    Ok(None) => continue,
                    Ok(Some((copy, workload))) => {
                        if namespaces::cookie(copy.as_fd()).is_ok_and(|cookie| seen.insert(cookie))
                        {
                            elsewhere.push(Network::of_socket(copy.as_fd()));
                        }
                        Ok(workload)
                    }
                    Err(error) => Err(format!(
                        "it cannot be said whose it is ({error}): restart it"
                    )),
                },
            };
            claims.0.insert(*inode, claimed);
        }
        elsewhere
            .into_iter()
            .for_each(|network| self.add_network(network));
        claims
    }

    /// Makes what was made as one of the workloads that policy is letting go of its holder's workload's.
    pub(super) fn hand_over(&self, fence: &Fence) {
        for (inode, holders) in &self.sockets {
            if let Err(error) = claim(fence, (*inode, holders), false) {
                tracing::debug!("a socket stays what it was: {error}");
            }
        }
    }
}

/// Enters whose a socket is: of the first holder of which it can be had. What was said of it before stays, unless that was of a
/// workload that is no more, or is being let go of; of what nothing was said of, it is said if `from_before`. `None`: it is not IP's,
/// or nobody governed has it, or nothing is said.
fn claim(
    fence: &Fence,
    (inode, holders): (u32, &[Holder]),
    from_before: bool,
) -> Result<Option<(OwnedFd, String)>, Box<dyn std::error::Error>> {
    let mut failed = None;
    for holder in holders {
        let workload = fence.workload_of_process(holder.process);
        let Some(workload) = workload.filter(|_| !fence.is_free(holder.process)) else {
            continue;
        };
        let copy = match copy_of(*holder, inode) {
            Ok(copy) => copy,
            Err(error) => {
                failed = Some(error);
                continue;
            }
        };
        let domain = socket_domain(&copy)?;
        if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
            return Ok(None);
        }
        return Ok(enter(fence, &copy, &workload, from_before)?.then_some((copy, workload)));
    }
    failed.map_or(Ok(None), |error| Err(error.into()))
}

/// Whether it is somebody's who is governed by now.
fn enter(
    fence: &Fence,
    copy: &OwnedFd,
    workload: &str,
    from_before: bool,
) -> Result<bool, super::Error> {
    let leaving = fence.leaving.load();
    let mut writers = fence.maps.write();
    let was = match writers.origin.get(&copy.as_raw_fd(), 0) {
        Err(MapError::KeyNotFound) => MADE,
        was => was.map_err(maps::read("ORIGIN"))?,
    };
    let owner = u32::try_from(was & !(MADE | CLAIMED)).unwrap_or_default();
    if owner == 0 && !from_before {
        return Ok(false);
    }
    if owner != 0 && !leaving.contains(&owner) && !writers.is_released(owner)? {
        return Ok(true);
    }
    let ids = fence.workload_ids(&mut writers, std::iter::once(workload))?;
    let id = ids.get(workload).copied().unwrap_or_default();
    // What a hook saw made stays one's own to send over.
    let claimed = if owner == 0 { CLAIMED } else { was & CLAIMED };
    let new = was & MADE | claimed | u64::from(id);
    let entered = writers.origin.insert(&copy.as_raw_fd(), new, 0);
    entered.map_err(maps::write("ORIGIN"))?;
    Ok(true)
}

/// A descriptor of this process's own, for as long as it takes.
fn copy_of(holder: Holder, inode: u32) -> io::Result<OwnedFd> {
    // Of a thread that has a table of its own, it cannot be had before Linux 6.9.
    let number = holder.descriptor.ok_or(io::ErrorKind::Unsupported)?;
    let pid = i32::try_from(holder.process).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(io::ErrorKind::NotFound)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(&process, number, PidfdGetfdFlags::empty())?;
    // Closed since, and its number given to another?
    match fstat(&copy)?.st_ino == u64::from(inode) {
        true => Ok(copy),
        false => Err(io::ErrorKind::NotFound.into()),
    }
}
