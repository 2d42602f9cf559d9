//! Which layers are in force: asked of the kernel, never remembered.
use super::{
    Fence, Layer,
    hooks::{HOOKS, Hook, LSM, TRACEPOINT, TYPED_TRACEPOINT},
    load::{Absent, Loaded},
    pins::{Held, Unpinned},
    probe, sys,
};
use rustix::net::SocketType;
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::{BorrowedFd, RawFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use tollgate_common::flow::LISTENER_TAG;
use tollgate_common::limits::MAX_GOVERNED;
use tollgate_common::settings::Ports;

impl Fence {
    pub(super) fn ask_layers(&self) -> Vec<Layer> {
        let hooks = HOOKS.iter().filter(|hook| !self.is_replaced(hook));
        let hooks = hooks.map(|hook| {
            let why = self.why_not(hook);
            Layer {
                name: hook.name.to_owned(),
                enforcing: why.is_none(),
                needed: hook.holds && !self.is_beyond(hook),
                leaves_open: hook.leaves_open.to_owned(),
                why,
            }
        });
        hooks
            .chain([
                self.maps_layer(),
                self.listener_layer(),
                self.names_layer(),
                self.room_layer(),
                earlier_layer(),
            ])
            .collect()
    }

    /// Is a governed process held to the Unix sockets that policy names, by the kernel's own hooks for them or those that stand in?
    pub fn holds_unix_sockets(&self) -> bool {
        let is_in_force = |name: &str| {
            let mut hooks = HOOKS.iter().filter(|hook| hook.name == name);
            hooks.any(|hook| self.why_not(hook).is_none())
        };
        let mut pairs = HOOKS
            .iter()
            .filter_map(|hook| Some((hook.name, hook.stands_in_for()?)));
        pairs.all(|(other, own)| is_in_force(own) || is_in_force(other))
    }

    /// Has this kernel no such hook?
    fn is_beyond(&self, hook: &Hook) -> bool {
        let mut absent = self.programs.absent.iter();
        absent.any(|absent| absent.is_beyond && absent.hook.name == hook.name)
    }

    /// Is another hook in its place, or is its place taken?
    fn is_replaced(&self, hook: &Hook) -> bool {
        let taken = hook.stands_in_for();
        taken.is_some_and(|other| self.programs.has(other)) || self.programs.stand_in(hook)
    }

    /// Why a hook is not in force; `None` if this agent's program is attached and will stay so.
    pub(super) fn why_not(&self, hook: &Hook) -> Option<String> {
        let mut absent = self.programs.absent.iter();
        if let Some(Absent { why, .. }) = absent.find(|a| a.hook.name == hook.name) {
            return Some(why.clone());
        }
        let Some(&Loaded { id: ours, .. }) = self
            .programs
            .loaded
            .iter()
            .find(|program| program.hook.name == hook.name)
        else {
            return Some("not loaded".to_owned());
        };
        match hook.attach {
            TRACEPOINT | TYPED_TRACEPOINT => {
                return self.why_not_traced(hook, ours, sys::LINK_TRACEPOINT);
            }
            LSM => return self.why_not_traced(hook, ours, sys::LINK_TRACING),
            _ => {}
        }
        match sys::attached(&self.root.fd, hook.attach) {
            Err(error) => return Some(cannot_ask(&error)),
            Ok(attached) if !attached.contains(&ours) => {
                return Some(format!(
                    "the agent's program (id {ours}) is not attached to the cgroup root: restart the agent"
                ));
            }
            Ok(_) => {}
        }
        match sys::open_pin(&self.pins.link(hook.name)).and_then(sys::link_info) {
            Err(error) if sys::is_shortage(&error) => Some(cannot_ask(&error)),
            Err(error) => Some(format!(
                "attached, but its pin is gone ({error}): it will not outlive the agent; restart the agent"
            )),
            Ok(link)
                if (link.kind, link.program, link.attach)
                    != (sys::LINK_CGROUP, ours, hook.attach) =>
            {
                Some(format!(
                    "the pinned link holds another program (id {}): restart the agent",
                    link.program
                ))
            }
            Ok(link) if link.cgroup != probe::ROOT_ID => Some(format!(
                "the pinned link is at another cgroup (id {}): the program will not outlive the agent; restart the agent",
                link.cgroup
            )),
            Ok(_) => None,
        }
    }

    /// The same for a tracepoint or a security hook, where the pinned link is all that holds the program.
    fn why_not_traced(&self, hook: &Hook, ours: u32, kind: u32) -> Option<String> {
        match sys::open_pin(&self.pins.link(hook.name)).and_then(sys::link_info) {
            Err(error) if sys::is_shortage(&error) => Some(cannot_ask(&error)),
            Err(error) => Some(format!(
                "its pin is gone ({error}): nothing holds it; restart the agent"
            )),
            Ok(link) if (link.kind, link.program) != (kind, ours) => Some(format!(
                "the pinned link holds another program (id {}): restart the agent",
                link.program
            )),
            Ok(_) => None,
        }
    }

    /// Is each map pinned? The hooks go on by one that is not; but it ends with them and the agent, and what comes
    /// after them would know nothing of what it held.
    fn maps_layer(&self) -> Layer {
        let unpinned = self.unpinned();
        let why = (!unpinned.is_empty()).then(|| {
            let told = why_unpinned(&unpinned);
            format!("{told}: do not stop the agent before it has put back what is missing")
        });
        Layer {
            name: "maps".to_owned(),
            enforcing: why.is_none(),
            needed: true,
            leaves_open: "nothing as long as this agent runs; if it ends first, what is governed and what was counted is lost, and the next one does not start".to_owned(),
            why,
        }
    }

    /// Maps that are not pinned where they should be, and what is there.
    pub(super) fn unpinned(&self) -> Vec<(&Held, Unpinned)> {
        let maps = self.programs.maps.iter();
        maps.filter_map(|map| Some((map, self.pins.instead_of(map)?)))
            .collect()
    }

    /// Is there a listener that connections are steered to, at each port that the hooks know, open and
    /// tagged? Without one they are refused.
    fn listener_layer(&self) -> Layer {
        let all = self.listeners.all();
        let why = if all.is_empty() {
            Some("no listener has been admitted: every connection is refused".to_owned())
        } else {
            all.iter().find_map(|set| self.gap(set, is_listener)).map(|at| {
                format!("no tagged listener is open at {at}: connections that would go there are refused; restart the agent")
            })
        };
        Layer {
            name: "listener".to_owned(),
            enforcing: why.is_none(),
            needed: false,
            leaves_open: "nothing passes that should not: governed connections are refused while there is none".to_owned(),
            why,
        }
    }

    /// Is there a socket that DNS queries are steered to, at each port that the hooks know, with the tag? Without
    /// one they are refused.
    fn names_layer(&self) -> Layer {
        let all = self.listeners.all();
        let why = if all.is_empty() {
            Some("no socket has been admitted: every DNS query is refused".to_owned())
        } else {
            all.iter().find_map(|set| self.gap(set, is_datagram_socket)).map(|at| {
                format!("no tagged datagram socket is open at {at}: DNS queries that would go there are refused; restart the agent")
            })
        };
        Layer {
            name: "names".to_owned(),
            enforcing: why.is_none(),
            needed: false,
            leaves_open: "nothing passes that should not: governed DNS queries over UDP are refused while there is none".to_owned(),
            why,
        }
    }

    /// Is there room for all that is to be governed? What there is none for is refused.
    fn room_layer(&self) -> Layer {
        let beyond = self.beyond.all().count();
        let why = (beyond > 0).then(|| {
            format!("{beyond} cgroups of workloads are refused, since {MAX_GOVERNED} others are governed: remove cgroups that nobody needs, and bound them where users make their own (cgroup.max.descendants)")
        });
        Layer {
            name: "room".to_owned(),
            enforcing: why.is_none(),
            needed: false,
            leaves_open: "nothing passes that should not: what there is no room for is refused"
                .to_owned(),
            why,
        }
    }

    /// The first address of a namespace's sockets at which none `is` what is asked for, with the tag.
    fn gap(&self, set: &Set, is: fn(RawFd, SocketAddr) -> bool) -> Option<SocketAddr> {
        [
            (Ipv4Addr::LOCALHOST.into(), set.ports.port4),
            (Ipv6Addr::LOCALHOST.into(), set.ports.port6),
        ]
        .into_iter()
        .map(|(ip, port): (IpAddr, u16)| SocketAddr::new(ip, port))
        .find(|at| {
            let there = |&fd: &RawFd| {
                let carried = self.maps.agent_sockets.get(&fd, 0);
                carried.is_ok_and(|carried| carried.tag == LISTENER_TAG) && is(fd, *at)
            };
            at.port() != 0 && !set.listeners.iter().any(there)
        })
    }
}

/// Why these maps are not pinned.
pub(super) fn why_unpinned(unpinned: &[(&Held, Unpinned)]) -> String {
    let each = unpinned.iter().map(|(map, instead)| match instead {
        Unpinned::Another => format!("another object is pinned in the place of {}", map.name),
        Unpinned::Gone(error) => format!("the pin of {} is gone ({error})", map.name),
        Unpinned::Unknown(error) => cannot_ask(error),
    });
    each.collect::<Vec<_>>().join("; ")
}

/// The kernel gave no answer for want of something else than the layer.
fn cannot_ask(error: &std::io::Error) -> String {
    format!("{CANNOT_ASK}{error}")
}

const CANNOT_ASK: &str = "cannot ask the kernel: ";

/// Was the kernel asked in vain why something is not in force? Then it may well be.
pub(super) fn is_unknown(why: &str) -> bool {
    why.starts_with(CANNOT_ASK)
}

/// Can connections from before their process was governed be ended?
fn earlier_layer() -> Layer {
    let why = super::diag::can_destroy().err().map(|error| match error.kind() {
        std::io::ErrorKind::TimedOut => cannot_ask(&error),
        _ => format!("this kernel does not end connections when it is told to ({error}): use one with CONFIG_INET_DIAG_DESTROY, tcp_diag and udp_diag"),
    });
    Layer {
        name: "established".to_owned(),
        enforcing: why.is_none(),
        needed: false,
        leaves_open: "connections that a process had before it was governed stall instead of ending; those go on that a process which is not governed has open too".to_owned(),
        why,
    }
}

/// What was admitted in one network namespace.
#[derive(Debug, Clone)]
struct Set {
    ports: Ports,
    /// The numbers of the descriptors. Not the descriptors: holding those would keep a listener open of which the
    /// agent has let go.
    listeners: Vec<RawFd>,
}

/// What was admitted, by the cookie of its network namespace.
#[derive(Debug, Default)]
pub(super) struct Admitted(Mutex<BTreeMap<u64, Set>>);

impl Admitted {
    fn sets(&self) -> MutexGuard<'_, BTreeMap<u64, Set>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn set(&self, namespace: u64, ports: Ports, listeners: Vec<RawFd>) {
        self.sets().insert(namespace, Set { ports, listeners });
    }

    pub(super) fn remove(&self, namespace: u64) {
        self.sets().remove(&namespace);
    }

    pub(super) fn ports(&self, namespace: u64) -> Option<Ports> {
        self.sets().get(&namespace).map(|set| set.ports)
    }

    pub(super) fn has(&self, namespace: u64) -> bool {
        self.sets().contains_key(&namespace)
    }

    fn all(&self) -> Vec<Set> {
        self.sets().values().cloned().collect()
    }
}

/// Does `fd` listen where a connection to `at` arrives?
fn is_listener(fd: RawFd, at: SocketAddr) -> bool {
    if fd < 0 {
        return false;
    }
    // SAFETY: needed because only the number is known. It is asked two questions and neither kept nor
    // closed; if it was closed or is another file by now, they fail or are answered with no.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let listens = rustix::net::sockopt::socket_acceptconn(fd).unwrap_or(false);
    listens && is_bound(fd, at)
}

/// Is `fd` a datagram socket where a datagram to `at` arrives?
fn is_datagram_socket(fd: RawFd, at: SocketAddr) -> bool {
    if fd < 0 {
        return false;
    }
    // SAFETY: as in `is_listener`.
    let fd = unsafe { BorrowedFd::borrow_raw(fd) };
    let kind = rustix::net::sockopt::socket_type(fd);
    kind.is_ok_and(|kind| kind == SocketType::DGRAM) && is_bound(fd, at)
}

fn is_bound(fd: BorrowedFd<'_>, at: SocketAddr) -> bool {
    let bound = rustix::net::getsockname(fd)
        .ok()
        .and_then(|address| SocketAddr::try_from(address).ok());
    bound.is_some_and(|bound| {
        bound.port() == at.port() && (bound.ip() == at.ip() || bound.ip().is_unspecified())
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn connections_from_before_are_no_layer_where_they_cannot_be_ended() {
        let with = earlier_layer();
        assert!(with.enforcing && with.why.is_none(), "{with:?}");
        // Of this thread alone.
        let without = std::thread::spawn(|| {
            use caps::{CapSet::Effective, Capability::CAP_NET_ADMIN};
            caps::drop(None, Effective, CAP_NET_ADMIN).unwrap();
            earlier_layer()
        });
        let without = without.join().unwrap();
        assert!(!without.enforcing, "{without:?}");
        let why = without.why.unwrap();
        assert!(why.contains("not permitted"), "{why}");
    }
}
