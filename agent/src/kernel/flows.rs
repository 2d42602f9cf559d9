//! Flows, as the hooks keep them.
use super::{
    Error, Fence, Flow, FlowAccount,
    askers::since_boot,
    load::Listing,
    namespaces, syn, sys,
    translate::{abi, address, counters, time},
};
use rustix::net::getpeername;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd as _, AsRawFd as _, BorrowedFd};
use tollgate_common::flow::{CLIENT_CLOSED, Client, Port, Steered};

/// Nanoseconds after which a connection that its client has closed is nobody's: before the number of its SYN may come again.
const OLDEST: u64 = 240_000_000_000;

/// Why what clients' sockets carry is not listed. A program for an iterator that the kernel does not have is attached nowhere.
fn unlisted(source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ENOENT | libc::EINVAL | libc::EOPNOTSUPP | libc::ENOSYS) => {
            Error::NoIterator { source }
        }
        _ => Error::Unlisted { source },
    }
}

impl Fence {
    pub(super) fn flow_behind(&self, accepted: BorrowedFd<'_>) -> Option<Flow> {
        let syn = syn::of(accepted);
        // The hook of this call looks for the client's socket: there is none on the other side of a connection but its own, and
        // the SYN says so once more where the kernel has kept it (no SYN cookies).
        let peer = SocketAddr::try_from(getpeername(accepted).ok()??).ok()?;
        let found = self.maps.accepted.get(&accepted.as_raw_fd(), 0);
        let is_its = |steered: &Steered| {
            steered.connection.cookie != 0 && syn.is_none_or(|syn| syn.repeats(&steered.syn))
        };
        if let Some(steered) = found.ok().filter(is_its) {
            return Some(self.flow(&steered));
        }
        let port = Port {
            netns: namespaces::cookie(accepted).ok()?,
            address: abi(peer),
        };
        let orphan: Steered = sys::take(&self.maps.orphans, &port).ok()?;
        let age = since_boot().saturating_sub(orphan.connection.opened);
        let is_its = syn.is_some_and(|syn| syn.repeats(&orphan.syn)) && age < OLDEST;
        is_its.then(|| self.flow(&orphan))
    }

    pub(super) fn live_flows(&self) -> Result<Vec<FlowAccount>, Error> {
        let (program, map) = match &self.programs.listing {
            Listing::Carried(program) => (program, Some(self.maps.clients.as_fd())),
            Listing::Opened(program) => (program, None),
        };
        let mut clients: Vec<Client> = sys::list(program, map).map_err(unlisted)?;
        // More than one process may have it open.
        let cookie = |client: &Client| client.record.steered.connection.cookie;
        clients.sort_unstable_by_key(cookie);
        clients.dedup_by_key(|client| cookie(client));
        let live = clients.iter().filter(|client| {
            client.record.steered.connection.cookie != 0 && client.state & CLIENT_CLOSED == 0
        });
        let accounts = live.filter_map(|client| {
            let steered = &client.record.steered;
            Some(FlowAccount {
                cookie: steered.connection.cookie,
                workload: self.names.workload(steered.owner.workload).to_string(),
                process: (*self.process(&steered.owner)).clone(),
                destination: address(&steered.destination),
                opened: time(steered.connection.opened).try_into().ok()?,
                counters: counters(&client.record.traffic),
            })
        });
        Ok(accounts.collect())
    }

    pub(super) fn count_lost(&self) -> u64 {
        self.maps
            .lost
            .get(&0, 0)
            .map_or(0, |values| values.iter().sum())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_cannot_be_listed_is_told_with_what_to_do() {
        let told = |code| unlisted(io::Error::from_raw_os_error(code)).to_string();
        let without = told(libc::ENOENT);
        assert!(
            without.contains("this kernel has no iterator") && without.contains("boot"),
            "{without}"
        );
        let short = told(libc::EMFILE);
        assert!(short.contains("Too many open files"), "{short}");
        assert!(short.contains("ask again"), "{short}");
    }
}
