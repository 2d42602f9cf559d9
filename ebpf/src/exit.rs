//! The last look at what leaves: whatever way a packet of a governed socket came about, it goes to the
//! agent, or to whoever connected to a port that the workload may listen on. Nothing else passes.
//!
//! What counts is where the packet itself goes: a socket's peer can change between two looks at it,
//! and IP options or a routing header lead elsewhere than the peer.
use crate::{
    account, atomic, entry,
    fence::NOWHERE,
    flow, listener,
    maps::{EVENTS, KEPT, ORIGIN, PENDING},
    names,
    select::{self, Governed},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_TCP_LISTEN, BPF_TCP_NEW_SYN_RECV, BPF_TCP_SYN_SENT, bpf_sock},
    helpers::generated::{
        bpf_get_socket_cookie, bpf_ktime_get_boot_ns, bpf_sk_fullsock, bpf_skb_cgroup_id,
    },
    programs::SkBuffContext,
};
use core::num::NonZeroUsize;
use tollgate_common::{
    event::{REFUSED, Reason, Refused, TOLD},
    flow::{Address, Client, MADE},
    rules::{DATAGRAM, STREAM, TCP, UDP, address4, address6, leads_to_loopback, loopback6},
};

/// Of IPv6, as a packet's `protocol` has it.
const ETH_P_IPV6: u16 = 0x86dd;
/// The byte of a TCP header that has its flags, and the one that ends a connection.
const FLAGS: usize = 13;
const RESET: u8 = 4;

/// A packet's socket; `None` for what has none, as answers of the kernel itself. It may not be a whole one yet, or no more:
/// then it carries nothing, and has no type.
#[inline(always)]
pub(crate) fn socket_of(ctx: &SkBuffContext) -> Option<*mut bpf_sock> {
    // SAFETY: needed to reach the packet's socket. The context is valid while the program runs.
    let socket = unsafe { (*ctx.skb.skb).__bindgen_anon_2.sk };
    (!socket.is_null()).then_some(socket)
}

/// Does it only stand for one that is going to be accepted? What that one may is asked of its listener (`entry`), and
/// of itself as soon as it is there.
#[inline(always)]
pub(crate) fn is_none_yet(socket: *mut bpf_sock) -> bool {
    field!(socket, state) == BPF_TCP_NEW_SYN_RECV
}

/// The same, if it is a whole one.
#[inline(always)]
fn whole(socket: *mut bpf_sock) -> Option<*mut bpf_sock> {
    // SAFETY: needed to call a helper, which returns null or the socket.
    let whole = unsafe { bpf_sk_fullsock(socket) };
    (!whole.is_null()).then_some(whole)
}

/// May this packet leave? If not, that was counted, and told where it is news.
#[inline(always)]
pub(crate) fn is_open(
    ctx: &SkBuffContext,
    socket: *mut bpf_sock,
    mut client: Option<&mut Client>,
) -> bool {
    if let Some(client) = client.as_deref_mut().filter(|client| is_steered(client)) {
        return is_steered_still(ctx, socket, client);
    }
    let Some(governed) = governed(ctx, socket, client.as_deref()) else {
        // A socket of somebody else's that a governed task asked for names with is looked at all the same.
        return client.is_none()
            || Packet::read(ctx)
                .and_then(|packet| names::leaves(ctx, socket, &packet))
                .is_none_or(|left| left.is_ok());
    };
    others_is_open(ctx.skb.skb, socket, &governed)
}

/// May a packet of a governed socket leave that was not steered?
#[inline(always)]
fn others_is_open(skb: *mut __sk_buff, socket: *mut bpf_sock, governed: &Governed) -> bool {
    let ctx = &SkBuffContext::new(skb);
    let Some(socket) = whole(socket) else {
        return true;
    };
    let Some(packet) = Packet::read(ctx) else {
        return false; // Not IP: the kernel does not make such packets here.
    };
    let (socket_type, protocol) = (field!(socket, type_), field!(socket, protocol));
    let mut destination = packet.destination;
    let reason = match (socket_type, protocol) {
        (STREAM, TCP) => {
            if is_kept(ctx, &packet) {
                return true;
            } else if !is_inbound(ctx, socket, &packet) || packet.transport.is_none() {
                Reason::Unsteered // Or by a detour, past whoever connected.
            } else if entry::may_listen(governed.workload, field!(socket, src_port) as u16) {
                return true;
            } else {
                Reason::Listen
            }
        }
        (DATAGRAM, UDP) if is_kept(ctx, &packet) => return true,
        (DATAGRAM, UDP) => match names::leaves(ctx, socket, &packet) {
            Some(Ok(())) => return true,
            Some(Err((reason, server))) => {
                destination = server;
                reason
            }
            None => Reason::Udp,
        },
        _ => Reason::Unsteered,
    };
    account::refusal(governed.workload, reason);
    tell(ctx, socket, governed, reason, &destination);
    false
}

/// Who governs this packet's socket: the cgroup that it was made in, or else the task that connected
/// it, for as long as its workload is there.
#[inline(always)]
pub(crate) fn governed(
    ctx: &SkBuffContext,
    socket: *mut bpf_sock,
    client: Option<&Client>,
) -> Option<Governed> {
    let Some(client) = client else {
        return select::socket(ctx).or_else(|| made(socket));
    };
    if is_steered(client) {
        return Some(Governed {
            cgroup: select::MARKED,
            workload: client.workload,
        });
    }
    if let Some(governed) = select::socket(ctx) {
        return Some(governed);
    }
    // Of a workload that is no more that says nothing; it may be another's by now.
    if client.is_marked != 0
        && let Some(governed) = by_what_it_carries(client.workload)
    {
        return Some(governed);
    }
    by_its_user(socket, client).or_else(|| made(socket))
}

/// Who connected it: whose that one's cgroup is, or else whose it was. Whoever connected it can leave that cgroup and remove it.
#[inline(always)]
fn by_its_user(socket: *mut bpf_sock, client: &Client) -> Option<Governed> {
    let cgroup = PENDING.of(socket.cast())?.governed;
    match select::workload_of(cgroup) {
        Some(workload) => Some(Governed { cgroup, workload }),
        None => by_what_it_carries(client.workload),
    }
}

/// Whose it was made as, or the listener that accepted it: the cgroup that it was made in may be gone, and whoever removed
/// it has the socket still.
#[inline(always)]
fn made(socket: *mut bpf_sock) -> Option<Governed> {
    by_what_it_carries(*ORIGIN.of(socket.cast())? as u32)
}

#[inline(always)]
fn by_what_it_carries(workload: u32) -> Option<Governed> {
    (workload != 0 && !select::is_released(workload)).then_some(Governed {
        cgroup: select::MARKED,
        workload,
    })
}

#[inline(always)]
pub(crate) fn is_steered(client: &Client) -> bool {
    client.record.steered.connection.cookie != 0
}

/// May this packet of a steered connection leave?
#[inline(always)]
fn is_steered_still(ctx: &SkBuffContext, socket: *mut bpf_sock, client: &mut Client) -> bool {
    let Some(packet) = Packet::read(ctx) else {
        return false;
    };
    let Err(reason) = arrives_at_the_agent(ctx, socket, client, &packet) else {
        return true;
    };
    let governed = Governed {
        cgroup: select::MARKED,
        workload: client.workload,
    };
    account::refusal(governed.workload, reason);
    tell(ctx, socket, &governed, reason, &packet.destination);
    false
}

/// Does a packet of a steered connection go where the agent is? The one that begins it says by which number.
#[inline(always)]
fn arrives_at_the_agent(
    ctx: &SkBuffContext,
    socket: *mut bpf_sock,
    client: &mut Client,
    packet: &Packet,
) -> Result<(), Reason> {
    let Some(transport) = packet.transport else {
        return Err(Reason::Unsteered);
    };
    if !leads_to_loopback(packet.destination.ip) {
        return Err(Reason::Unsteered);
    }
    if !is_on_loopback(ctx) {
        return Err(Reason::Device);
    }
    if field!(socket, state) != BPF_TCP_SYN_SENT {
        return Ok(());
    }
    flow::begins(ctx, client, &packet.source, transport.get());
    // It can be long after the hook: the agent may have died, and somebody else may be at its port. Their answer does not
    // arrive (`entry`); what comes with the question does not leave.
    if carries(ctx, transport.get()) && !listener::is_the_agents(ctx.as_ptr(), &packet.destination)
    {
        return Err(Reason::AgentDown);
    }
    Ok(())
}

/// Does it pass the loopback device? Its addresses alone do not say: by another device they lead to whoever is there.
#[inline(always)]
pub(crate) fn is_on_loopback(ctx: &SkBuffContext) -> bool {
    /// `LOOPBACK_IFINDEX`, in every network namespace.
    const LOOPBACK: u32 = 1;
    field!(ctx.skb.skb, ifindex) == LOOPBACK
}

/// Does it leave with loopback's own address by another device? Nobody's should (RFC 4291, 2.5.3; RFC 1122, 3.2.1.3). The agent's
/// answers would, to a client that has bound an address which is not the host's (`IPV6_FREEBIND`); of IPv4's the kernel lets them where
/// somebody has set `route_localnet`. What is to be translated, as a service's address, was by now.
#[inline(always)]
pub(crate) fn is_astray(ctx: &SkBuffContext) -> bool {
    if is_on_loopback(ctx) {
        return false;
    }
    // A VRF has a loopback of its own.
    if field!(ctx.skb.skb, protocol) == u32::from(ETH_P_IPV6.to_be()) {
        let loopback = Some(loopback6(0).ip);
        head::<[u32; 4]>(ctx, 8) == loopback && head::<[u32; 4]>(ctx, 24) != loopback
    } else {
        is_loopbacks4(ctx, 12) && !is_loopbacks4(ctx, 16)
    }
}

/// Is the address of IPv4 that is `at` this place one of loopback's?
#[inline(always)]
fn is_loopbacks4(ctx: &SkBuffContext, at: usize) -> bool {
    head::<u8>(ctx, at) == Some(127)
}

/// Is there anything behind the header of TCP that begins at `transport`?
#[inline(always)]
fn carries(ctx: &SkBuffContext, transport: usize) -> bool {
    let words = ctx.skb.load::<u8>(transport + 12).unwrap_or(0) >> 4;
    ctx.len() as usize > transport + usize::from(words) * 4
}

/// Does somebody listen here who was connected to? Such a connection is not the workload's own, and is not
/// steered.
#[inline(always)]
fn is_inbound(ctx: &SkBuffContext, socket: *mut bpf_sock, packet: &Packet) -> bool {
    if field!(socket, state) == BPF_TCP_LISTEN {
        // About to answer the first packet of a connection, whose socket is cloned from this one.
        is_inbound_from_now(socket);
        return true;
    }
    if ORIGIN
        .of(socket.cast())
        .is_some_and(|origin| *origin & MADE == 0)
    {
        return true;
    }
    // Accepted before its workload was governed?
    let mut here = packet.source;
    here.port = field!(socket, src_port) as u16;
    let was = listener::any(ctx.as_ptr(), &here, |_| true);
    if was {
        is_inbound_from_now(socket);
    }
    was
}

#[inline(always)]
fn is_inbound_from_now(socket: *mut bpf_sock) {
    if let Some(origin) = ORIGIN.of_or_new(socket.cast()) {
        *origin &= !MADE;
    }
}

/// Was this connection there before its workload was governed, and may go on? Only to the peer that it had then.
#[inline(always)]
fn is_kept(ctx: &SkBuffContext, packet: &Packet) -> bool {
    // SAFETY: needed to call a helper, with the packet that the kernel passed, and to read an entry: one that is removed
    // meanwhile stays readable.
    let kept = unsafe { KEPT.get(bpf_get_socket_cookie(ctx.as_ptr())) };
    let (Some(transport), Some(kept)) = (packet.transport, kept) else {
        return false;
    };
    let ends = kept.ends != 0;
    kept.peer == packet.destination
        && (!ends || u32::from(kept.protocol) == TCP && is_reset(ctx, transport.get()))
}

/// Does TCP's header at `transport` say that the connection is over at once?
#[inline(always)]
pub(crate) fn is_reset(ctx: &SkBuffContext, transport: usize) -> bool {
    let flags = ctx.skb.load::<u8>(transport + FLAGS);
    flags.is_ok_and(|flags| flags & RESET != 0)
}

/// Tells the agent of a refusal, once for each destination that follows another.
#[inline(always)]
pub(crate) fn tell(
    ctx: &SkBuffContext,
    socket: *mut bpf_sock,
    governed: &Governed,
    reason: Reason,
    destination: &Address,
) {
    told(ctx.skb.skb, socket, governed, reason as u32, destination);
}

#[inline(never)]
fn told(
    skb: *mut __sk_buff,
    socket: *mut bpf_sock,
    governed: &Governed,
    reason: u32,
    destination: &Address,
) -> u32 {
    try_tell(skb, socket, governed, reason, destination).map_or(0, |()| 1)
}

#[inline(always)]
fn try_tell(
    skb: *mut __sk_buff,
    socket: *mut bpf_sock,
    governed: &Governed,
    reason: u32,
    destination: &Address,
) -> Option<()> {
    let Some(socket) = whole(socket) else {
        account::lost();
        return None;
    };
    let Some(pending) = PENDING.of_or_new(socket.cast()) else {
        account::lost();
        return None;
    };
    let refused: *mut Refused = &raw mut pending.refused;
    let (socket_type, protocol) = (field!(socket, type_), field!(socket, protocol));
    // SAFETY: `pending` is the socket's own value. Two packets of it at once may tell twice, or each
    // other's destination; both were dropped.
    unsafe {
        // Whom its caller connected a datagram socket to is on it; see `fence::peer`.
        let is_its_peer =
            destination.port == NOWHERE && (*refused).destination.ip == destination.ip;
        if !is_its_peer && (*refused).destination != *destination {
            (*refused).destination = *destination;
            pending.state = 0;
        }
        if atomic::fetch_or(&raw mut pending.state, TOLD) & TOLD != 0 {
            return None;
        }
        if (*refused).kind != REFUSED {
            // No hook saw who it was: what is known is whose cgroup it was made in.
            (*refused).kind = REFUSED;
            (*refused).protocol = protocol;
            (*refused).socket_type = socket_type;
            (*refused).owner.workload = governed.workload;
            (*refused).owner.cgroup = bpf_skb_cgroup_id(skb);
            pending.governed = governed.cgroup;
        }
        (*refused).reason = reason;
        (*refused).has_destination = 1;
        (*refused).time = bpf_ktime_get_boot_ns();
        // By value it would pass over the stack, which has no room for it.
        #[allow(clippy::needless_borrows_for_generic_args)]
        if EVENTS.output(&*refused, 0).is_err() {
            account::lost();
        }
    }
    Some(())
}

/// What a packet itself says.
pub(crate) struct Packet {
    /// From where; with the port where there is `transport`.
    pub(crate) source: Address,
    /// Where to; with the port where there is `transport`.
    pub(crate) destination: Address,
    /// Where TCP or UDP begins, right behind an IP header without options and extensions, whose destination is
    /// the last. `None`: there is something else. A number that is none is 0: of an `Option<usize>` the compiler
    /// takes any register for the number that is not there, the context too: "32-bit pointer arithmetic prohibited".
    pub(crate) transport: Option<NonZeroUsize>,
}

impl Packet {
    #[inline(always)]
    pub(crate) fn read(ctx: &SkBuffContext) -> Option<Self> {
        let first: [u32; 5] = head(ctx, 0)?;
        let start = first[0].to_ne_bytes();
        match start[0] >> 4 {
            4 => {
                let [_, protocol, ..] = first[2].to_ne_bytes();
                let plain = start[0] & 0x0f == 5 && matches!(u32::from(protocol), TCP | UDP);
                let (source, destination) = (address4(first[3], 0), address4(first[4], 0));
                Some(Self::new(
                    ctx,
                    source,
                    destination,
                    if plain { 20 } else { 0 },
                ))
            }
            6 => {
                let ips: [[u32; 4]; 2] = head(ctx, 8)?;
                let [length, more, next, _] = first[1].to_ne_bytes();
                let transport = match u32::from(next) {
                    UDP | TCP => 40,
                    // Too long for its header: the kernel itself puts a hop-by-hop header before TCP.
                    0 if length == 0 && more == 0 => jumbo(ctx),
                    _ => 0,
                };
                let (source, destination) = (address6(ips[0], 0), address6(ips[1], 0));
                Some(Self::new(ctx, source, destination, transport))
            }
            _ => None,
        }
    }

    /// `transport`: where its header begins, if right behind a plain IP header; else 0.
    #[inline(always)]
    fn new(
        ctx: &SkBuffContext,
        mut source: Address,
        mut destination: Address,
        transport: usize,
    ) -> Self {
        let ports = match transport {
            0 => None,
            20 => head(ctx, 20),
            40 => head(ctx, 40),
            at => ctx.skb.load::<[u16; 2]>(at).ok(),
        };
        let [from, to] = ports.unwrap_or_default();
        source.port = u16::from_be(from);
        destination.port = u16::from_be(to);
        Self {
            source,
            destination,
            transport: NonZeroUsize::new(if ports.is_some() { transport } else { 0 }),
        }
    }
}

/// What is `at` a place near the start of the packet, which mostly is in one piece: then without a call.
#[inline(always)]
pub(crate) fn head<T>(ctx: &SkBuffContext, at: usize) -> Option<T> {
    let (start, end) = (
        field!(ctx.skb.skb, data) as usize,
        field!(ctx.skb.skb, data_end) as usize,
    );
    if start + at + size_of::<T>() > end {
        return ctx.skb.load(at).ok();
    }
    // SAFETY: needed to read the packet, within which it is. Where words of it begin is not aligned on every machine;
    // those that the verifier lets have it do not mind.
    Some(unsafe { core::ptr::read_volatile((start + at) as *const T) })
}

/// Where TCP begins behind a jumbogram's only extension header; 0 where it does not.
#[inline(always)]
fn jumbo(ctx: &SkBuffContext) -> usize {
    match ctx.skb.load::<u8>(40) {
        Ok(next) if u32::from(next) == TCP => 48,
        _ => 0,
    }
}
