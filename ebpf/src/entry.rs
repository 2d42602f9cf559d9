//! The first look at what comes in: nobody is answered on a port that the workload may not listen on, and
//! nobody but the agent answers a steered connection.
use crate::{
    account,
    exit::{self, Packet},
    listener,
    maps::{LISTEN, ORIGIN, PENDING, client_of},
    select::{self, Governed},
    waiting,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_TCP_LISTEN, BPF_TCP_SYN_SENT, bpf_sock},
    programs::SkBuffContext,
};
use tollgate_common::{event::Reason, flow::Client, openings::Listen, recognise::UNSETTLED};

/// Does it reach a listener of the agent's? Of that nothing is asked, and nobody's account has it.
#[inline(always)]
pub(crate) fn is_for_the_agent(socket: *mut bpf_sock) -> bool {
    field!(socket, state) == BPF_TCP_LISTEN && listener::is_tagged(socket)
}

/// May this packet reach its socket? Only what begins a connection is looked at here: on one that stands, it
/// is what leaves that is judged.
#[inline(always)]
pub(crate) fn is_open(ctx: &SkBuffContext, socket: *mut bpf_sock, client: Option<&Client>) -> bool {
    match field!(socket, state) {
        BPF_TCP_LISTEN => is_served(ctx, socket, client),
        BPF_TCP_SYN_SENT => {
            !client.is_some_and(exit::is_steered) || is_from_the_agent(ctx, socket, client)
        }
        _ => true,
    }
}

/// May a workload serve connections on this port?
#[inline(always)]
pub(crate) fn may_listen(workload: u32, port: u16) -> bool {
    let key = Listen {
        workload,
        port,
        reserved: 0,
    };
    LISTEN.get_ptr(key).is_some()
}

#[inline(always)]
fn is_served(ctx: &SkBuffContext, socket: *mut bpf_sock, client: Option<&Client>) -> bool {
    let governed = exit::governed(ctx, socket, client).or_else(|| of_who_waits(socket));
    let Some(governed) = governed else {
        return true;
    };
    if may_listen(governed.workload, field!(socket, src_port) as u16) {
        // What it accepts is cloned from it, and known by that. Kernels before 6.13 do not show us its first answer, which
        // is `exit`'s occasion to mark it; and where its cgroup does not, or no longer, nothing else tells whose it is.
        if let Some(origin) = ORIGIN.of_or_new(socket.cast()) {
            *origin = u64::from(governed.workload);
        }
        return true;
    }
    let reason = match governed.workload == u32::from(UNSETTLED) {
        true => Reason::Unsettled,
        false => Reason::Listen,
    };
    account::refusal(governed.workload, reason);
    if let Some(packet) = Packet::read(ctx) {
        exit::tell(ctx, socket, &governed, reason, &packet.destination);
    }
    false
}

/// Whose a socket is that was made or bound by who waited to be known.
#[inline(always)]
fn of_who_waits(socket: *mut bpf_sock) -> Option<Governed> {
    let workload = waiting::whose_socket(PENDING.of(socket.cast())?);
    (workload != 0).then_some(Governed {
        cgroup: select::MARKED,
        workload,
    })
}

/// The agent may have died since the hook saw its listener, and somebody else may be at its port. That
/// nobody is there passes, so that the caller learns it at once.
#[inline(always)]
fn is_from_the_agent(ctx: &SkBuffContext, socket: *mut bpf_sock, client: Option<&Client>) -> bool {
    let Some(packet) = Packet::read(ctx) else {
        return false;
    };
    let Some(transport) = packet.transport else {
        return false;
    };
    if exit::is_on_loopback(ctx)
        && listener::answers(ctx.as_ptr(), &packet.destination, &packet.source)
        || exit::is_reset(ctx, transport.get())
    {
        return true;
    }
    if let Some(governed) = exit::governed(ctx, socket, client) {
        account::refusal(governed.workload, Reason::AgentDown);
        exit::tell(ctx, socket, &governed, Reason::AgentDown, &packet.source);
    }
    false
}

/// Is this a copy of what a workload sends to many (a broadcast), which the kernel gives to the host's own sockets before `exit`
/// sees it?
#[inline(always)]
pub(crate) fn is_a_clients_copy(ctx: &SkBuffContext) -> bool {
    /// `PACKET_LOOPBACK` of `<linux/if_packet.h>`
    const COPY: u32 = 5;
    field!(ctx.skb.skb, pkt_type) == COPY && is_from_a_client(ctx.skb.skb) != 0
}

#[inline(never)]
fn is_from_a_client(skb: *mut __sk_buff) -> u32 {
    let ctx = &SkBuffContext::new(skb);
    let Some(packet) = Packet::read(ctx) else {
        return 0;
    };
    let is_clients = |socket: *mut bpf_sock| client_of(socket.cast()).is_some();
    u32::from(listener::sends(
        ctx.as_ptr(),
        &packet.source,
        &packet.destination,
        is_clients,
    ))
}
