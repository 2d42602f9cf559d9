//! Sockets that processes had before they were governed: no hook saw them made, so the agent says on each whose it is.
//! What the hooks of packets then make of it is the same as of any other: nothing leaves but where policy lets it go on.
use super::copies::Copies;
use super::diag::Socket;
use super::holders::{Holder, Holders, Reading};
use super::missed::Missed;
use super::namespaces::{self, Network};
use super::{Error, Fence, maps, sys};
use aya::maps::MapError;
use rustix::net::AddressFamily;
use rustix::net::sockopt::socket_domain;
use std::collections::{HashMap, HashSet};
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use tollgate_common::flow::{CLAIMED, MADE};

/// What is missed of a socket.
const UNCLAIMED: &str = "whose a socket is cannot be said";

/// By inode: the holder's workload of each socket that is known to be somebody's from now on, or why it is not.
#[derive(Debug, Default)]
pub(super) struct Claims(HashMap<u32, Result<String, Unclaimed>>);

/// Why it cannot be said whose a socket is.
#[derive(Debug)]
enum Unclaimed {
    /// It stays so.
    Stays(String),
    /// Another look may do better.
    Passes(String),
}

impl From<io::Error> for Unclaimed {
    fn from(error: io::Error) -> Self {
        Self::new(is_passing(&error), &error)
    }
}

impl From<Error> for Unclaimed {
    fn from(error: Error) -> Self {
        Self::new(may_pass(&error), &error)
    }
}

impl Unclaimed {
    fn new(passes: bool, error: &dyn std::error::Error) -> Self {
        match passes {
            true => Self::Passes(error.to_string()),
            false => Self::Stays(format!(
                "it cannot be said whose it is ({error}): restart it"
            )),
        }
    }
}

/// Is it for want of something, or of an answer, that there was no copy?
fn is_passing(error: &io::Error) -> bool {
    sys::is_shortage(error) || error.kind() == io::ErrorKind::TimedOut
}

/// Did a map take or give nothing for want of memory, or because another had it at that moment?
pub(super) fn may_pass(error: &Error) -> bool {
    let Error::Map { source, .. } = error else {
        return false;
    };
    let error = match &**source {
        MapError::SyscallError(error) => &error.io_error,
        MapError::IoError(error) => error,
        _ => return false,
    };
    let is_taken = matches!(error.raw_os_error(), Some(libc::EAGAIN | libc::EBUSY));
    is_taken || sys::is_shortage(error)
}

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
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Unheld {
    pub(super) workload: String,
    process: u32,
    local: SocketAddr,
    why: String,
}

impl Unheld {
    /// Tells the log.
    pub fn warn(&self) {
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
            Some(Err(Unclaimed::Stays(why))) => why.clone(),
            // It may be so yet.
            Some(Err(Unclaimed::Passes(_))) => return None,
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
    pub(super) fn claim(
        &mut self,
        fence: &Fence,
        reading: &mut Reading,
        missed: &mut Missed,
    ) -> Claims {
        let mut claims = Claims::default();
        let mut seen = HashSet::new();
        let mut elsewhere = Vec::new();
        let mut copies = Copies::default();
        if !self.sockets.is_empty() {
            // Before any is copied: it is to be closed at once.
            let _ = self.others(fence, reading);
        }
        for (inode, holders) in &self.sockets {
            let claimed = match copy(fence, &mut copies, (*inode, holders)) {
                Ok(None) => continue,
                Ok(Some((copy, workload))) => {
                    // Also of one that stays another's: its connection is looked for there.
                    if namespaces::cookie(copy.as_fd()).is_ok_and(|cookie| seen.insert(cookie)) {
                        elsewhere.push(Network::of_socket(copy.as_fd()));
                    }
                    match self.enter_unshared(fence, reading, (*inode, &copy), &workload) {
                        Ok(false) => continue,
                        Ok(true) => Ok(workload),
                        Err(unclaimed) => Err(unclaimed),
                    }
                }
                Err(unclaimed) => Err(unclaimed),
            };
            if let Err(Unclaimed::Passes(why)) = &claimed {
                self.miss(*inode, missed, UNCLAIMED, why);
            }
            claims.0.insert(*inode, claimed);
        }
        for network in elsewhere {
            if let Err(error) = self.add_network(network) {
                missed.of_everybody("a socket's network namespace cannot be opened", &error);
            }
        }
        claims
    }

    /// Unless somebody who is not governed has it open as well, or that cannot be known.
    fn enter_unshared(
        &self,
        fence: &Fence,
        reading: &mut Reading,
        (inode, copy): (u32, &OwnedFd),
        workload: &str,
    ) -> Result<bool, Unclaimed> {
        let others = self.others(fence, reading);
        match others.map(|others| others.get(&inode)) {
            Ok(None) => Ok(enter(fence, copy, workload, true)?),
            Ok(Some(other)) => Err(Unclaimed::Stays(format!(
                "process {other}, which is not governed, has it open too: end that one, or list the port under `listen`"
            ))),
            Err(error) => Err(Unclaimed::Passes(format!(
                "who else has it open cannot be read: {error}"
            ))),
        }
    }

    /// Makes what was made as one of the workloads that policy is letting go of its holder's workload's.
    pub(super) fn hand_over(&self, fence: &Fence, missed: &mut Missed) {
        let mut copies = Copies::default();
        for (inode, holders) in &self.sockets {
            let had = copy(fence, &mut copies, (*inode, holders));
            let entered = had.and_then(|had| match had {
                Some((copy, workload)) => Ok(enter(fence, &copy, &workload, false)?),
                None => Ok(false),
            });
            match entered {
                Ok(_) => {}
                Err(Unclaimed::Passes(why)) => self.miss(*inode, missed, UNCLAIMED, &why),
                Err(Unclaimed::Stays(why)) => {
                    tracing::debug!("a socket stays what it was: {why}");
                }
            }
        }
    }
}

/// A copy of a socket, of the first holder of which it can be had, and whose that one is. `None`: it is not IP's, or nobody governed has it.
fn copy(
    fence: &Fence,
    copies: &mut Copies,
    (inode, holders): (u32, &[Holder]),
) -> Result<Option<(OwnedFd, String)>, Unclaimed> {
    let mut failed: Option<io::Error> = None;
    for holder in holders {
        let workload = fence.workload_of_process(holder.process);
        let Some(workload) = workload.filter(|_| !fence.is_free(holder.process)) else {
            continue;
        };
        let copy = match copies.of(*holder, inode) {
            Ok(copy) => copy,
            Err(error) => {
                // What may pass is told before what stays.
                failed = Some(failed.filter(is_passing).unwrap_or(error));
                continue;
            }
        };
        let domain = socket_domain(&copy).map_err(io::Error::from)?;
        if domain != AddressFamily::INET && domain != AddressFamily::INET6 {
            return Ok(None);
        }
        return Ok(Some((copy, workload)));
    }
    failed.map_or(Ok(None), |error| Err(error.into()))
}

/// Enters whose a socket is; whether it is somebody's who is governed by now. What was said of it before stays, unless that was of a
/// workload that is no more, or is being let go of; of what nothing was said of, it is said if `from_before`.
fn enter(fence: &Fence, copy: &OwnedFd, workload: &str, from_before: bool) -> Result<bool, Error> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_shortage_is_to_be_tried_again() {
        let of_descriptor = |code| Unclaimed::from(io::Error::from_raw_os_error(code));
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            let unclaimed = of_descriptor(code);
            assert!(matches!(unclaimed, Unclaimed::Passes(_)), "{unclaimed:?}");
        }
        let silent = Unclaimed::from(io::Error::from(io::ErrorKind::TimedOut));
        assert!(matches!(silent, Unclaimed::Passes(_)), "{silent:?}");
        // Forbidden, not there in this kernel, ended, closed.
        for code in [libc::EPERM, libc::ENOSYS, libc::ESRCH, libc::EBADF] {
            let unclaimed = of_descriptor(code);
            assert!(matches!(unclaimed, Unclaimed::Stays(_)), "{unclaimed:?}");
        }
        // A thread's own table, which cannot be had.
        let unclaimed = Unclaimed::from(io::Error::from(io::ErrorKind::Unsupported));
        assert!(matches!(unclaimed, Unclaimed::Stays(_)), "{unclaimed:?}");
    }

    #[test]
    fn a_map_without_memory_is_to_be_tried_again() {
        let of_map = |code| {
            let error = MapError::IoError(io::Error::from_raw_os_error(code));
            Unclaimed::from(maps::write("ORIGIN")(error))
        };
        for code in [libc::ENOMEM, libc::EBUSY, libc::EAGAIN] {
            assert!(matches!(of_map(code), Unclaimed::Passes(_)), "{code}");
        }
        for code in [libc::EPERM, libc::ENOTSUP, libc::E2BIG] {
            assert!(matches!(of_map(code), Unclaimed::Stays(_)), "{code}");
        }
        let many = Error::TooMany {
            what: "workloads",
            limit: 1,
        };
        assert!(matches!(Unclaimed::from(many), Unclaimed::Stays(_)));
    }
}
