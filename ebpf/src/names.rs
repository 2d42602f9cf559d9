//! Names: what a governed task asks of any server at port 53 goes to the agent, or nowhere.
//!
//! The datagram itself says nothing of who sent it. So each query is entered into `QUERIES` as it leaves,
//! by where it comes from and its id, and the agent takes that entry when it reads the query. While one is
//! there another like it is dropped: a port that changes hands meanwhile changes nobody's name.
use crate::{
    attribute,
    exit::{self, Packet},
    fence::{self, Attempt, Errno, Refusal},
    listener,
    maps::{ASKERS, QUERIES, socket_of},
    namespace, recognise, select, steer,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_NOEXIST, bpf_sock},
    cty::c_void,
    helpers::generated::bpf_ktime_get_boot_ns,
    programs::{SkBuffContext, SockAddrContext},
};
use tollgate_common::{
    event::Reason,
    flow::{Address, Client, Port, Query},
};

/// Bytes of a UDP header.
const UDP_HEADER: usize = 8;

/// A query to `server`, which `send` sends to the agent; notes on the socket who asks whom.
#[inline(always)]
pub(crate) fn ask(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    server: &Address,
    connects: bool,
    send: impl Fn(&Address),
) -> Result<(), Refusal> {
    let netns = namespace::cookie(ctx.as_ptr());
    let Some(ports) = namespace::ports(netns) else {
        namespace::told(netns, recognise::current(), attempt.workload);
        return Err((Reason::Namespace, Errno::Econnrefused));
    };
    let down = (Reason::AgentDown, Errno::Econnrefused);
    let agent = steer::listener_for(server, &ports).ok_or(down)?;
    if !listens(ctx.as_ptr(), &agent) {
        return Err(down);
    }
    if note(ctx, attempt, (server, connects), netns).is_none() {
        return Err((Reason::Unrecorded, Errno::Econnrefused));
    }
    send(&agent);
    Ok(())
}

#[inline(always)]
fn note(
    ctx: &SockAddrContext,
    attempt: &Attempt,
    (server, connects): (&Address, bool),
    netns: u64,
) -> Option<()> {
    fence::note(ctx, attempt)?;
    let asker = ASKERS.of_or_new(socket_of(ctx))?;
    asker.server = *server;
    if connects {
        asker.peer = *server;
    }
    asker.netns = netns;
    // SAFETY: `asker` is the socket's own value.
    unsafe { attribute::current(&raw mut asker.owner, attempt.workload) }
}

/// The socket is connected to somebody else.
#[inline(always)]
pub(crate) fn leave(ctx: &SockAddrContext) {
    if let Some(asker) = ASKERS.of(socket_of(ctx)) {
        asker.peer.port = 0;
    }
}

/// Is this the agent, and the socket connected to it?
#[inline(always)]
pub(crate) fn is_peer(ctx: &SockAddrContext, destination: &Address) -> bool {
    ASKERS
        .of(socket_of(ctx))
        .is_some_and(|asker| asker.peer.port != 0 && is_the_agent(destination, asker.netns))
}

/// The server that the socket's caller connected it to.
#[inline(always)]
pub(crate) fn peer(ctx: &SockAddrContext) -> Option<Address> {
    let asker = ASKERS.of(socket_of(ctx))?;
    (asker.peer.port != 0).then_some(asker.peer)
}

/// The server that its caller takes an answer from `sender` to be from.
#[inline(always)]
pub(crate) fn answered(ctx: &SockAddrContext, sender: &Address) -> Option<Address> {
    let asker = ASKERS.of(socket_of(ctx))?;
    (asker.server.port != 0 && is_the_agent(sender, asker.netns)).then_some(asker.server)
}

/// A datagram leaves. `None`: it is no query to the agent. `Some(Err)`: it is, and does not get there; why,
/// and which server was meant.
#[inline(always)]
pub(crate) fn leaves(
    ctx: &SkBuffContext,
    socket: *mut bpf_sock,
    packet: &Packet,
) -> Option<Result<(), (Reason, Address)>> {
    let asker = ASKERS.of(socket.cast())?;
    let transport = packet.transport?;
    if !is_the_agent(&packet.destination, asker.netns) {
        return None;
    }
    if !exit::is_on_loopback(ctx) {
        return Some(Err((Reason::Device, asker.server)));
    }
    // Others of the agent's user may share its port: which socket it would reach goes by both ends.
    let (to, from) = (&packet.destination, &packet.source);
    if !listener::sends(ctx.as_ptr(), to, from, listener::is_tagged) {
        return Some(Err((Reason::AgentDown, asker.server)));
    }
    // Of many in one only the first would be entered.
    let many = field!(ctx.skb.skb, gso_size) != 0;
    let Some(id) = ctx
        .skb
        .load::<u16>(transport.get() + UDP_HEADER)
        .ok()
        .filter(|_| !many)
    else {
        return Some(Err((Reason::Udp, asker.server)));
    };
    let query = Query {
        from: Port {
            netns: asker.netns,
            address: packet.source,
        },
        id: u32::from(id),
        reserved: 0,
    };
    // SAFETY: needed to call a helper without arguments.
    asker.time = unsafe { bpf_ktime_get_boot_ns() };
    #[allow(clippy::needless_borrows_for_generic_args)] // A copy would not fit the stack.
    let entered = QUERIES.insert(&query, &*asker, u64::from(BPF_NOEXIST));
    Some(entered.map_err(|_| (Reason::Unrecorded, asker.server)))
}

/// May a packet reach this socket? One that a workload asks for names with hears nobody but the agent.
#[inline(always)]
pub(crate) fn may_arrive(ctx: &SkBuffContext, socket: *mut bpf_sock, client: &Client) -> bool {
    let Some(asker) = ASKERS.of(socket.cast()) else {
        return true;
    };
    if client.is_marked == 0 && select::socket(ctx).is_none() {
        return true;
    }
    Packet::read(ctx).is_some_and(|packet| {
        packet.transport.is_some()
            && exit::is_on_loopback(ctx)
            && is_the_agent(&packet.source, asker.netns)
            && listens(ctx.as_ptr(), &packet.source)
    })
}

#[inline(always)]
pub(crate) fn is_the_agent(address: &Address, netns: u64) -> bool {
    let agent = namespace::ports(netns).and_then(|ports| steer::listener_for(address, &ports));
    agent.is_some_and(|agent| agent == *address)
}

/// Is there a datagram socket at `address` that the agent tagged?
#[inline(always)]
fn listens(ctx: *mut c_void, address: &Address) -> bool {
    listener::datagrams(ctx, address, listener::is_tagged)
}
