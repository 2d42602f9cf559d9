//! A steered connection's way to the agent and its end.
//!
//! The client's SYN leaves (client's address → connection) in `PORTS`; the agent's side, once
//! established, takes it from there. That happens before `accept` returns: the kernel runs the hook
//! with the new socket's lock held, and `accept` takes that lock.
use crate::{
    account, atomic,
    maps::{AGENT_SOCKETS, CLIENTS, EVENTS, FLOWS, PORTS},
    namespace,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_SOCK_OPS_STATE_CB_FLAG},
    programs::SockOpsContext,
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::Reason,
    flow::{ACCEPTED, AGENT_CLOSED, CLIENT_CLOSED, Client, Connection, LISTENER_TAG, Port, Record},
    rules::{address4, address6},
};

const AF_INET: u32 = 2;

/// A client's socket is about to send its SYN; its local address is chosen.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockOpsContext) {
    let Some(socket) = socket_of(ctx) else { return };
    let Some(client) = CLIENTS.of(socket) else {
        return;
    };
    if client.connection.cookie == 0 {
        return;
    }
    client.port = local(ctx);
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
    if PORTS
        .insert(client.port, client.connection, u64::from(BPF_ANY))
        .is_err()
    {
        // Too late to refuse here: the agent will find no record and reset the connection.
        account::refusal(client.workload, Reason::Unrecorded);
        warn!(ctx, "PORTS is full: a connection will be reset");
    }
}

/// The agent's side of a connection is established.
#[inline(always)]
pub(crate) fn accepted(ctx: &SockOpsContext) {
    let Some(socket) = socket_of(ctx) else { return };
    // Cloned from the listener: only what a tagged listener accepts may take a record.
    let Some(carried) = AGENT_SOCKETS.of(socket) else {
        return;
    };
    if carried.tag != LISTENER_TAG {
        return;
    }
    let from = remote(ctx);
    // SAFETY: the value is copied at once.
    let Some(&connection) = (unsafe { PORTS.get(from) }) else {
        return;
    };
    let _ = PORTS.remove(from);
    let Some(record) = FLOWS.get_ptr_mut(connection) else {
        return;
    };
    // SAFETY: `record` points to a live map value.
    if unsafe { set(record, ACCEPTED) } & CLIENT_CLOSED != 0 {
        return; // The client was faster and has removed its record.
    }
    carried.connection = connection;
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// A socket of a steered connection is closed, a client's or the agent's.
#[inline(always)]
pub(crate) fn closed(ctx: &SockOpsContext) {
    let Some(socket) = socket_of(ctx) else { return };
    if let Some(client) = CLIENTS.of(socket) {
        client_closed(client);
    } else if let Some(carried) = AGENT_SOCKETS.of(socket) {
        agent_closed(carried.connection);
    }
}

/// The client's socket is closed, or about to be used again: tells the end, once. The record stays
/// while the agent's side is open, so that the agent can still ask whose connection it was.
#[inline(always)]
pub(crate) fn client_closed(client: &Client) {
    if client.connection.cookie == 0 {
        return;
    }
    // SAFETY: the value is compared at once.
    if unsafe { PORTS.get(client.port) } == Some(&client.connection) {
        let _ = PORTS.remove(client.port);
    }
    let Some(record) = FLOWS.get_ptr_mut(client.connection) else {
        return;
    };
    // SAFETY: `record` points to a live map value.
    let before = unsafe { set(record, CLIENT_CLOSED) };
    if before & CLIENT_CLOSED != 0 {
        return;
    }
    // SAFETY: as above; copied whole into the ring.
    if EVENTS
        .output_untyped::<Record>(unsafe { &*record }, 0)
        .is_err()
    {
        account::lost();
    }
    if before & ACCEPTED == 0 || before & AGENT_CLOSED != 0 {
        let _ = FLOWS.remove(client.connection);
    }
}

/// The agent's side is closed.
#[inline(always)]
fn agent_closed(connection: Connection) {
    if connection.cookie == 0 {
        return;
    }
    let Some(record) = FLOWS.get_ptr_mut(connection) else {
        return;
    };
    // SAFETY: `record` points to a live map value.
    if unsafe { set(record, AGENT_CLOSED) } & CLIENT_CLOSED != 0 {
        let _ = FLOWS.remove(connection);
    }
}

/// Sets bits of a record's state; returns what it was. Whoever sets the last one removes the record.
#[inline(always)]
unsafe fn set(record: *mut Record, bits: u64) -> u64 {
    // SAFETY: the caller's pointer is to a live map value, aligned to 8.
    unsafe { atomic::fetch_or(&raw mut (*record).state, bits) }
}

#[inline(always)]
fn socket_of(ctx: &SockOpsContext) -> Option<*mut aya_ebpf::cty::c_void> {
    // SAFETY: the context is valid while the program runs and `sk` is the only member of the union.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    (!socket.is_null()).then_some(socket.cast())
}

#[inline(always)]
fn local(ctx: &SockOpsContext) -> Port {
    let ip6 = [
        field!(ctx.ops, local_ip6[0]),
        field!(ctx.ops, local_ip6[1]),
        field!(ctx.ops, local_ip6[2]),
        field!(ctx.ops, local_ip6[3]),
    ];
    end(
        ctx,
        field!(ctx.ops, local_ip4),
        ip6,
        field!(ctx.ops, local_port) as u16,
    )
}

#[inline(always)]
fn remote(ctx: &SockOpsContext) -> Port {
    let ip6 = [
        field!(ctx.ops, remote_ip6[0]),
        field!(ctx.ops, remote_ip6[1]),
        field!(ctx.ops, remote_ip6[2]),
        field!(ctx.ops, remote_ip6[3]),
    ];
    // The kernel gives this port in network order, in the upper half of the word.
    let port = u32::from_be(field!(ctx.ops, remote_port)) as u16;
    end(ctx, field!(ctx.ops, remote_ip4), ip6, port)
}

/// Takes both families' addresses, read before: reading only the one that counts is merged by the
/// compiler into one load at a computed offset, and "dereference of modified ctx ptr disallowed".
#[inline(always)]
fn end(ctx: &SockOpsContext, ip4: u32, ip6: [u32; 4], port: u16) -> Port {
    let address = if field!(ctx.ops, family) == AF_INET {
        address4(ip4, port)
    } else {
        address6(ip6, port)
    };
    Port {
        netns: namespace::cookie(ctx.as_ptr()),
        address,
    }
}
