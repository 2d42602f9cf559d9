//! A steered connection's way to the agent and its end.
//!
//! What is known of it is on the client's socket. The agent asks a socket that it has accepted who its peer is, and the hook
//! of that call finds the client's socket, by both ends, and copies what it carries. A client that closes before the agent has
//! asked leaves it in `ORPHANS`, by its end. Either way the agent compares what the client's SYN said to the one that
//! its own socket was opened by: whoever has had that end before or has it since is somebody else.
// A key or a value would pass over the stack, which has little room.
#![allow(clippy::needless_borrows_for_generic_args)]
use crate::{
    account, atomic,
    attribute::{follow, load, offset},
    exit, listener,
    maps::{ACCEPTED, EVENTS, ORPHANS, client_of, socket_of},
};
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_ANY, BPF_TCP_CLOSE, bpf_sock, file, seq_file},
    cty::c_void,
    helpers::generated::{bpf_seq_write, bpf_sock_from_file},
    programs::{SkBuffContext, SockAddrContext},
};
use tollgate_common::{
    flow::{
        Address, CLIENT_CLOSED, CLIENT_KNOWN, Client, Record, SYN_CLOCK, SYN_SEQUENCE, Steered, Syn,
    },
    rules::{is_mapped, loopback4, loopback6},
};

/// A client's SYN leaves from `source`, maybe not for the first time: TCP begins at `transport`.
#[inline(always)]
pub(crate) fn begins(ctx: &SkBuffContext, client: &mut Client, source: &Address, transport: usize) {
    if client.port.address.port == 0 {
        client.record.steered.syn = Syn {
            sequence: exit::head(ctx, transport + SYN_SEQUENCE).unwrap_or_default(),
            clock: exit::head(ctx, transport + SYN_CLOCK).unwrap_or_default(),
        };
        client.port.address = *source;
    }
}

/// The agent asks a socket that it accepted who its peer is, which is `far`: copies to it what the client's socket carries, if
/// that is still there. Whether that is its connection, the agent sees by the SYN: another one may have that end by now.
#[inline(always)]
pub(crate) fn asked(ctx: &SockAddrContext, far: &Address) {
    let own: *mut bpf_sock = socket_of(ctx).cast();
    let near = if is_mapped(far.ip) {
        loopback4(0)
    } else {
        loopback6(0)
    };
    let port = field!(own, src_port) as u16;
    let _ = listener::with_connection(ctx.as_ptr(), &Address { port, ..near }, far, |socket| {
        let client = client_of(socket.cast()).filter(|client| exit::is_steered(client))?;
        copy(client, ACCEPTED.of_or_new(own.cast())?);
        Some(())
    });
}

#[inline(always)]
fn copy(client: &mut Client, accepted: &mut Steered) {
    let steered = &raw const client.record.steered;
    // SAFETY: both are sockets' own values. The client's may be written meanwhile, where it connects again: which connection
    // it was is taken away before that and read again after, and what is a mixture of two is none.
    unsafe {
        *accepted = *steered;
        let connection = core::ptr::read_volatile(&raw const (*steered).connection);
        if connection != accepted.connection {
            accepted.connection.cookie = 0;
        }
        atomic::fetch_or(&raw mut client.state, CLIENT_KNOWN);
    }
}

/// A client closes its socket, on which a connection stands that the agent may not have asked for yet.
#[inline(always)]
pub(crate) fn leaves(client: &mut Client) {
    // SAFETY: `state` is in the socket's own value.
    let state = unsafe { core::ptr::read_volatile(&raw const client.state) };
    if state & (CLIENT_KNOWN | CLIENT_CLOSED) == 0 {
        let _ = ORPHANS.insert(&client.port, &client.record.steered, u64::from(BPF_ANY));
    }
}

/// The client's socket is gone, or about to be used again: tells the end, once.
#[inline(always)]
pub(crate) fn client_closed(client: &mut Client) {
    if client.record.steered.connection.cookie == 0 {
        return;
    }
    // SAFETY: `state` is in the socket's own value, aligned to 8.
    if unsafe { atomic::fetch_or(&raw mut client.state, CLIENT_CLOSED) } & CLIENT_CLOSED != 0 {
        return;
    }
    if EVENTS.output_untyped::<Record>(&client.record, 0).is_err() {
        account::lost();
    }
}

/// A socket of those that the agent has listed: `struct bpf_iter__bpf_sk_storage_map`.
#[repr(C)]
pub(crate) struct Listed {
    meta: *const Meta,
    map: *const c_void,
    socket: *const u8,
    value: *const Client,
}

/// `struct bpf_iter_meta`
#[repr(C)]
struct Meta {
    file: *mut seq_file,
}

/// An open file of those that the agent has listed: `struct bpf_iter__task_file`.
#[repr(C)]
pub(crate) struct Opened {
    meta: *const Meta,
    task: *const c_void,
    descriptor: u32,
    file: *mut file,
}

/// Writes what a client's socket carries.
#[inline(always)]
pub(crate) fn list(listed: *const Listed) -> i32 {
    write(
        field!(listed, meta),
        field!(listed, socket),
        field!(listed, value),
    )
}

/// Writes what an open file's socket carries, if it is a client's.
#[inline(always)]
pub(crate) fn list_opened(opened: *const Opened) -> i32 {
    let file = field!(opened, file);
    if file.is_null() {
        return 0;
    }
    // SAFETY: needed to call a helper, with the file that the kernel passed, and to read the socket that it returned, whose type
    // the verifier knows.
    let socket = unsafe {
        let socket = bpf_sock_from_file(file).cast_const().cast::<u8>();
        if socket.is_null() {
            return 0;
        }
        follow(socket, offset!(socket_sk))
    };
    let client = socket.and_then(|socket| Some((socket, client_of(socket.cast_mut().cast())?)));
    client.map_or(0, |(socket, client)| {
        write(field!(opened, meta), socket, client)
    })
}

/// Writes what a socket carries, unless its connection has ended.
#[inline(always)]
fn write(meta: *const Meta, socket: *const u8, value: *const Client) -> i32 {
    if socket.is_null() || value.is_null() {
        return 0;
    }
    // SAFETY: needed to read the socket that the kernel passed, whose type the verifier knows.
    let state: u8 = unsafe { load(socket, offset!(sock_state)) };
    if u32::from(state) == BPF_TCP_CLOSE && field!(value, port.address.port) != 0 {
        return 0;
    }
    let file = field!(meta, file);
    // SAFETY: needed to call a helper, with the file that the kernel passed and a whole value of its map.
    unsafe { bpf_seq_write(file, value.cast_mut().cast(), size_of::<Client>() as u32) };
    0
}
