//! What the hooks told through the ring.
use super::{
    Event, Fence, FileState, Flow, Process, Refusal,
    translate::{address, counters, socket_name, time},
};
use aya::maps::{MapData, RingBuf};
use std::sync::{Arc, PoisonError};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tollgate_common::event::{
    CLOSED, NAME_REFUSED, NameRefused, OVERSPENT, Overspent, REFUSED, Reason, Refused, STRANGER,
    Stranger,
};
use tollgate_common::flow::{Owner, Record, Steered};
use tollgate_common::recognise::{UNSEEN, Unseen};
use tollgate_common::rules::{DATAGRAM, RAW, STREAM, TCP, UDP};

/// Events handled before other tasks get a turn.
const BATCH: usize = 256;

/// Holds the ring while somebody waits for events, and puts it back when they stop.
struct Taken<'a> {
    fence: &'a Fence,
    ring: Option<AsyncFd<RingBuf<MapData>>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(ring) = self.ring.take() {
            *self
                .fence
                .maps
                .events
                .lock()
                .unwrap_or_else(PoisonError::into_inner) = Some(ring.into_inner());
        }
    }
}

impl Fence {
    pub(super) async fn wait_for_events(&self, sink: &mut (dyn FnMut(Event) + Send)) {
        let ring = self
            .maps
            .events
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        let ring = ring.and_then(|ring| {
            // SAFETY: needed because the trait `AsRawFd` promises less than this asks. The ring owns its
            // descriptor, returns the same one each time, and closes it only when it is dropped.
            unsafe { AsyncFd::register_with_interest(ring, Interest::READABLE) }
                .inspect_err(|error| tracing::error!(%error, "cannot wait for the kernel's events"))
                .ok()
        });
        let mut taken = Taken { fence: self, ring };
        let Some(ring) = taken.ring.as_mut() else {
            // Somebody else has it, or it cannot be waited for: there will be no events here.
            return std::future::pending().await;
        };
        loop {
            let Ok(mut ready) = ring.readable_mut().await else {
                return;
            };
            let mut handled = 0;
            while let Some(entry) = ready.get_inner_mut().next() {
                if let Some(event) = self.event(&entry) {
                    sink(event);
                }
                handled += 1;
                if handled == BATCH {
                    break;
                }
            }
            if handled < BATCH {
                ready.clear_ready();
            } else {
                tokio::task::yield_now().await;
            }
        }
    }

    fn event(&self, bytes: &[u8]) -> Option<Event> {
        let (kind, _) = bytes.split_first_chunk()?;
        match u32::from_ne_bytes(*kind) {
            CLOSED => {
                let record: Record = plain(bytes)?;
                Some(Event::Closed {
                    flow: self.flow(&record.steered),
                    opened: time(record.steered.connection.opened),
                    counters: counters(&record.traffic),
                })
            }
            UNSEEN => {
                let unseen: Unseen = plain(bytes)?;
                Some(Event::Unseen {
                    pid: unseen.process,
                    file: FileState {
                        device: unseen.file.device,
                        inode: unseen.file.inode,
                        changed: (unseen.seconds, unseen.nanoseconds),
                    },
                })
            }
            REFUSED => Some(Event::Refused(self.refusal(&plain(bytes)?)?)),
            STRANGER => {
                let stranger: Stranger = plain(bytes)?;
                Some(Event::Stranger {
                    pid: stranger.tgid,
                    workload: self.names.workload(stranger.workload),
                })
            }
            OVERSPENT => {
                let overspent: Overspent = plain(bytes)?;
                Some(Event::Overspent {
                    workload: self.names.workload(overspent.workload),
                })
            }
            NAME_REFUSED => {
                let named: NameRefused = plain(bytes)?;
                let name = socket_name(&named.name.bytes);
                let refusal = self.refusal(&named.refused)?;
                Some(Event::Refused(Refusal {
                    protocol: "unix".to_owned(),
                    detail: unix_detail(&name),
                    name: Some(name),
                    ..refusal
                }))
            }
            _ => None,
        }
    }

    /// A flow of the domain.
    pub(super) fn flow(&self, steered: &Steered) -> Flow {
        Flow {
            cookie: steered.connection.cookie,
            workload: self.names.workload(steered.owner.workload),
            process: self.process(&steered.owner),
            destination: address(&steered.destination),
        }
    }

    /// Who the hooks say it was.
    pub(super) fn process(&self, owner: &Owner) -> Arc<Process> {
        self.names.process(&self.root, &self.maps.paths, owner)
    }

    fn refusal(&self, refused: &Refused) -> Option<Refusal> {
        let reason = Reason::ALL
            .into_iter()
            .find(|&reason| reason as u32 == refused.reason)?;
        Some(Refusal {
            time: time(refused.time),
            workload: self.names.workload(refused.owner.workload),
            process: self.process(&refused.owner),
            destination: (refused.has_destination != 0).then(|| address(&refused.destination)),
            name: None,
            protocol: protocol(refused.socket_type, refused.protocol),
            reason: code(reason),
            detail: detail(reason).to_owned(),
        })
    }
}

/// Reads a struct of the ABI from the start of `bytes`.
fn plain<T: aya::Pod>(bytes: &[u8]) -> Option<T> {
    if bytes.len() < size_of::<T>() {
        return None;
    }
    // SAFETY: needed to read a struct from bytes. There are enough of them, any bytes are a valid
    // `Pod`, and the read does not need alignment.
    Some(unsafe { bytes.as_ptr().cast::<T>().read_unaligned() })
}

/// Stable codes of reasons.
pub(super) fn code(reason: Reason) -> &'static str {
    match reason {
        Reason::AgentDown => "agent_down",
        Reason::Udp => "udp",
        Reason::Raw => "raw",
        Reason::Protocol => "protocol",
        Reason::Direct => "direct",
        Reason::Unrecorded => "unrecorded",
        Reason::Unsteered => "unsteered",
        Reason::Namespace => "namespace",
        Reason::Quota => "quota",
        Reason::Unsettled => "unsettled",
        Reason::Device => "device",
        Reason::Listen => "listen",
        Reason::Port => "port",
        Reason::Unix => "unix",
        Reason::Family => "family",
        Reason::Trace => "trace",
        Reason::Signal => "signal",
        Reason::Passed => "passed",
        Reason::Fence => "fence",
    }
}

fn detail(reason: Reason) -> &'static str {
    match reason {
        Reason::AgentDown => {
            "the agent is not listening where this connection or DNS query would be steered: start it, or look at its listeners and network namespace"
        }
        Reason::Udp => {
            "governed workloads may use UDP for DNS only, at port 53, where the agent answers: use TCP"
        }
        Reason::Raw => "governed workloads may not use raw sockets",
        Reason::Protocol => "governed workloads may use TCP and DNS over UDP only",
        Reason::Direct => {
            "the connection was addressed to the agent itself: connect to the API's own address"
        }
        Reason::Unrecorded => {
            "who made the connection or DNS query could not be recorded, so it was refused: the same query again before the agent has read it, or no memory"
        }
        Reason::Namespace => {
            "the agent does not listen in this connection's network namespace: it has been told and comes if it can (`tollgate status` says why it could not); connect again"
        }
        Reason::Quota => {
            "the workload has spent the bytes that its budget gives it: `tollgate usage` shows when there are more"
        }
        Reason::Unsettled => {
            "it is not known yet whose this process is: the agent has to look at its executable or its container first; try again, and start the agent if it is down"
        }
        Reason::Unsteered => {
            "a packet of a socket that was not steered: one that was connected, or made raw, before the workload was governed; connect again"
        }
        Reason::Device => {
            "the socket is bound to a network device or sends by one, from where nothing gets to the agent: do not choose a device (SO_BINDTODEVICE, IP_PKTINFO)"
        }
        Reason::Listen => {
            "nobody may connect to the workload on this port: add it to the workload's `listen:` in the policy if others are to"
        }
        Reason::Port => "the agent's own port is kept for the agent: bind another one",
        Reason::Unix => "the workload may not speak to this Unix socket",
        Reason::Family => {
            "governed workloads may make sockets of IP, Unix and netlink only: what others carry is not looked at"
        }
        Reason::Trace => "a governed process may look into processes of its own workload only",
        Reason::Signal => "a governed process may not signal the agent",
        Reason::Fence => {
            "a governed process may not use bpf(2), take anything out of a bpffs, or unmount one: that is where the fence is"
        }
        Reason::Passed => {
            "the workload has not made this connection, and has not received it, or sends nothing over it: let it connect by itself, or give it the port under `listen:` in the policy if it is to serve it"
        }
    }
}

/// What to write into the policy; the name is somebody else's words.
fn unix_detail(name: &str) -> String {
    match name.as_bytes().first() {
        None => "the workload may not speak to Unix sockets without a name".to_owned(),
        Some(b'/' | b'@') => format!(
            "the workload may not speak to this Unix socket: add \"{}\" to its `unix:` in the policy if it is to; who \
             listens there acts outside the fence",
            name.escape_debug()
        ),
        Some(_) => format!(
            "the workload may not speak to Unix sockets by relative paths, as \"{}\" is one: policy cannot name them",
            name.escape_debug()
        ),
    }
}

fn protocol(socket_type: u32, protocol: u32) -> String {
    match (socket_type, protocol) {
        (RAW, _) => "raw".to_owned(),
        (_, TCP) | (STREAM, 0) => "tcp".to_owned(),
        (_, UDP) | (DATAGRAM, 0) => "udp".to_owned(),
        (_, 1 | 58) => "icmp".to_owned(),
        (_, number) => number.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn protocols_have_names() {
        assert_eq!(protocol(STREAM, 0), "tcp");
        assert_eq!(protocol(DATAGRAM, 17), "udp");
        assert_eq!(protocol(RAW, 1), "raw");
        assert_eq!(protocol(DATAGRAM, 58), "icmp");
        assert_eq!(protocol(STREAM, 262), "262");
    }

    #[test]
    fn short_entries_are_no_structs() {
        assert!(plain::<u64>(&[0; 7]).is_none());
        assert_eq!(plain::<u64>(&[0; 9]), Some(0));
    }
}
