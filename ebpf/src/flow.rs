//! A steered connection's way to the agent and its end.
//!
//! The client's SYN enters the connection into `FLOWS` by the client's end. The agent's side, once established, writes
//! its own cookie there: that happens before `accept` returns, since the kernel runs the hook with the new socket's lock
//! held, and `accept` takes that lock. The agent asks for the client's end, and takes the entry for its socket's only if
//! the cookie is that socket's: whoever has had that end before or has it since is somebody else.
// A key or a value would pass over the stack, which has little room.
#![allow(clippy::needless_borrows_for_generic_args)]
use crate::{
    account, atomic,
    maps::{EVENTS, FLOW_COUNT, FLOWS, client_of},
    namespace,
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{__sk_buff, BPF_EXIST, BPF_NOEXIST, BPF_SOCK_OPS_STATE_CB_FLAG, seq_file},
    cty::c_void,
    helpers::generated::{bpf_get_socket_cookie, bpf_seq_write},
    programs::{SkBuffContext, SockOpsContext},
};
use aya_log_ebpf::warn;
use tollgate_common::{
    event::Reason,
    flow::{Address, CLIENT_CLOSED, Client, Port, Record},
    limits::MAX_FLOWS,
    rules::{address4, address6, is_ip4},
};

/// Is there no room for another one?
#[inline(always)]
pub(crate) fn are_too_many() -> bool {
    // SAFETY: a live map value of one word; volatile because others write it meanwhile.
    let is_full = |count| unsafe { core::ptr::read_volatile(count) } >= u64::from(MAX_FLOWS);
    FLOW_COUNT.get_ptr(0).is_none_or(is_full)
}

/// A client's SYN leaves from `source`, maybe not for the first time.
#[inline(always)]
pub(crate) fn begins(skb: *mut __sk_buff, client: &mut Client, source: &Address) {
    if client.port.address.port == 0 && enter(client, source) == 0 {
        full(skb, client.workload);
    }
}

/// Too late to refuse here: the agent will find no record and reset the connection.
#[inline(never)]
fn full(skb: *mut __sk_buff, workload: u32) -> u32 {
    let ctx = SkBuffContext::new(skb);
    account::refusal(workload, Reason::Unrecorded);
    warn!(&ctx, "FLOWS is full: a connection will be reset");
    0
}

/// Enters a connection; 0: there is no room.
#[inline(never)]
fn enter(client: &mut Client, source: &Address) -> u32 {
    client.port.address = *source;
    let enter = |flags| FLOWS.insert(&client.port, &client.record.steered, flags);
    if enter(u64::from(BPF_NOEXIST)).is_ok() {
        count(1);
        return 1;
    }
    u32::from(enter(u64::from(BPF_EXIST)).is_ok())
}

/// A client's socket is about to send its SYN: its end is to be told.
#[inline(always)]
pub(crate) fn connecting(ctx: &SockOpsContext) {
    if socket_of(ctx).and_then(client_of).is_some() {
        tell_the_end(ctx);
    }
}

/// Somebody's side of a connection to them is established.
#[inline(always)]
pub(crate) fn accepted(ctx: &SockOpsContext) {
    let Some(steered) = FLOWS.get_ptr_mut(remote(ctx)) else {
        return;
    };
    // SAFETY: `steered` is a live map value. A socket that has this end is there once.
    unsafe {
        if (*steered).accepted == 0 {
            (*steered).accepted = bpf_get_socket_cookie(ctx.as_ptr());
        }
    }
    tell_the_end(ctx);
}

/// A socket of a steered connection is closed, a client's or the agent's.
#[inline(always)]
pub(crate) fn closed(ctx: &SockOpsContext) {
    if let Some(client) = socket_of(ctx).and_then(client_of) {
        return client_closed(client);
    }
    let port = remote(ctx);
    let Some(steered) = FLOWS.get_ptr(&port) else {
        return;
    };
    // SAFETY: as in `accepted`.
    if unsafe { (*steered).accepted == bpf_get_socket_cookie(ctx.as_ptr()) } {
        forget(&port);
    }
}

/// Has the hook called when the socket is closed.
#[inline(always)]
fn tell_the_end(ctx: &SockOpsContext) {
    let _ = ctx.set_cb_flags((ctx.cb_flags() | BPF_SOCK_OPS_STATE_CB_FLAG) as i32);
}

/// The client's socket is closed, or about to be used again: tells the end, once. The agent's side, if there is one,
/// may still ask whose connection it was.
#[inline(always)]
pub(crate) fn client_closed(client: &mut Client) {
    if client.record.steered.connection.cookie == 0 {
        return;
    }
    // SAFETY: `state` is in the socket's own value, aligned to 8.
    if unsafe { atomic::fetch_or(&raw mut client.state, CLIENT_CLOSED) } & CLIENT_CLOSED != 0 {
        return;
    }
    if let Some(steered) = FLOWS.get_ptr(&client.port)
        // SAFETY: a live map value; if it is removed meanwhile its memory stays one.
        && unsafe {
            (*steered).connection == client.record.steered.connection && (*steered).accepted == 0
        }
    {
        forget(&client.port);
    }
    if EVENTS.output_untyped::<Record>(&client.record, 0).is_err() {
        account::lost();
    }
}

#[inline(always)]
fn forget(port: &Port) {
    if FLOWS.remove(port).is_ok() {
        count(u64::MAX);
    }
}

/// Counts entries that come; `u64::MAX`: one that goes.
#[inline(always)]
fn count(more: u64) {
    if let Some(count) = FLOW_COUNT.get_ptr_mut(0) {
        // SAFETY: a live map value of one word, aligned to 8.
        unsafe { atomic::add(count, more) };
    }
}

/// A socket of those that the agent has listed: `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub(crate) struct Listed {
    meta: *const Meta,
    map: *const c_void,
    socket: *const c_void,
    value: *const Client,
}

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// Writes what a client's socket carries.
#[inline(always)]
pub(crate) fn list(listed: *const Listed) -> i32 {
    let value = field!(listed, value);
    if value.is_null() {
        return 0;
    }
    let meta = field!(listed, meta);
    let file = field!(meta, file);
    // SAFETY: needed to call a helper, with the file that the kernel passed and a whole value of its map.
    unsafe { bpf_seq_write(file, value.cast(), size_of::<Client>() as u32) };
    0
}

#[inline(always)]
fn socket_of(ctx: &SockOpsContext) -> Option<*mut c_void> {
    // SAFETY: the context is valid while the program runs and `sk` is the only member of the union.
    let socket = unsafe { (*ctx.ops).__bindgen_anon_2.sk };
    (!socket.is_null()).then_some(socket.cast())
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
    let address = if is_ip4(field!(ctx.ops, family)) {
        address4(ip4, port)
    } else {
        address6(ip6, port)
    };
    Port {
        netns: namespace::cookie(ctx.as_ptr()),
        address,
    }
}
