//! Tollgate's eBPF programs, attached at the root of the cgroup tree and to tracepoints of the scheduler's.
//!
//! This file is the list of hooks: each reads its context and asks one of the modules. `select` says
//! whose task it is, `recognise` and `rules` how that is known, `waiting` who waits for that, `birth` of which cgroups, `attribute` who it is, `namespace`
//! whether the agent is there, `steer` where it goes, `flow` how its record gets to the agent, `names` how it is asked for
//! names, `fence` what is refused, `bind` what is bound, `unix` who is spoken to, `entry` what comes in, `exit` what leaves
//! nevertheless, `handed` what is sent over others' connections, `lsm` what is beside the network, `account` what is counted, `quota` when that is enough.
#![no_std]
#![no_main]
#![feature(asm_experimental_arch)] // For `atomic`.
#![allow(unsafe_code)] // Kernel memory and helpers: every `unsafe` says why.
#![allow(missing_docs)] // The hooks; their names are the kernel's.

/// Reads a field of a context: one access of the field's own size, which is what the verifier allows.
macro_rules! field {
    ($pointer:expr, $($field:tt)+) => {
        // SAFETY: the kernel passes a valid context; the verifier knows the field.
        unsafe { core::ptr::read_volatile(&raw const (*$pointer).$($field)+) }
    };
}

/// Writes a field of a context.
macro_rules! set_field {
    ($value:expr => $pointer:expr, $($field:tt)+) => {
        // SAFETY: as in `field`; the verifier knows which fields may be written.
        unsafe { core::ptr::write_volatile(&raw mut (*$pointer).$($field)+, $value) }
    };
}

mod account;
mod atomic;
mod attribute;
mod bind;
mod birth;
mod entry;
mod exit;
mod fence;
mod flow;
mod handed;
mod listener;
mod lsm;
mod maps;
mod names;
mod namespace;
mod quota;
mod recognise;
mod repeat;
mod rules;
mod select;
mod steer;
mod unix;
mod waiting;

use account::Direction;
use aya_ebpf::{
    EbpfContext as _,
    bindings::{BPF_TCP_CLOSE, BPF_TCP_LISTEN, BPF_TCP_SYN_SENT, bpf_sock_addr},
    macros::{btf_tracepoint, cgroup_skb, cgroup_sock, cgroup_sock_addr, lsm, raw_tracepoint},
    programs::{
        BtfTracePointContext, LsmContext, RawTracePointContext, SkBuffContext, SockAddrContext,
        SockContext,
    },
};
use fence::{Attempt, DROP, Errno, PASS};
use maps::{client_of, socket_of};
use select::Governed;
use tollgate_common::{
    event::Reason,
    flow::Address,
    rules::{STREAM, TCP, UDP, address4, address6, is_mapped},
};

#[cgroup_sock_addr(connect4)]
fn connect4(ctx: SockAddrContext) -> i32 {
    let Some(governed) = select::task() else {
        return steer::ungoverned(&ctx);
    };
    let destination = destination4(&ctx);
    let attempt = attempt(&ctx, &governed, destination);
    let done = match attempt.protocol {
        _ if attempt.is_unsettled() => Err((Reason::Unsettled, Errno::Econnrefused)),
        TCP if attempt.socket_type == STREAM => {
            steer::connect(&ctx, &attempt, &destination).map(|listener| set_ip4(&ctx, &listener))
        }
        UDP => return datagrams4(ctx.sock_addr, &attempt),
        _ => Err((Reason::Protocol, Errno::Eperm)),
    };
    attempt.answer(done)
}

// What follows on its own is what is gone through less often: the rest stays close together, which shows where it has not
// run for a while.

#[inline(never)]
fn datagrams4(ctx: *mut bpf_sock_addr, attempt: &Attempt) -> i32 {
    let ctx = SockAddrContext::new(ctx);
    let to = attempt.destination;
    attempt.answer(fence::peer(&ctx, attempt, &to, |to| set_ip4(&ctx, to)))
}

#[inline(never)]
fn datagrams6(ctx: *mut bpf_sock_addr, attempt: &Attempt) -> i32 {
    let ctx = SockAddrContext::new(ctx);
    let to = attempt.destination;
    attempt.answer(fence::peer(&ctx, attempt, &to, |to| set_ip6(&ctx, to)))
}

#[cgroup_sock_addr(connect6)]
fn connect6(ctx: SockAddrContext) -> i32 {
    let Some(governed) = select::task() else {
        return steer::ungoverned(&ctx);
    };
    let destination = destination6(&ctx);
    let attempt = attempt(&ctx, &governed, destination);
    let done = match attempt.protocol {
        _ if attempt.is_unsettled() => Err((Reason::Unsettled, Errno::Econnrefused)),
        TCP if attempt.socket_type == STREAM => {
            steer::connect(&ctx, &attempt, &destination).map(|listener| set_ip6(&ctx, &listener))
        }
        UDP => return datagrams6(ctx.sock_addr, &attempt),
        _ => Err((Reason::Protocol, Errno::Eperm)),
    };
    attempt.answer(done)
}

#[cgroup_sock_addr(sendmsg4)]
fn sendmsg4(ctx: SockAddrContext) -> i32 {
    let Some(governed) = select::task() else {
        return PASS;
    };
    let destination = destination4(&ctx);
    let attempt = attempt(&ctx, &governed, destination);
    fence::datagram(&ctx, &attempt, &destination, |to| set_ip4(&ctx, to))
}

#[cgroup_sock_addr(sendmsg6)]
fn sendmsg6(ctx: SockAddrContext) -> i32 {
    let Some(governed) = select::task() else {
        return PASS;
    };
    let destination = destination6(&ctx);
    let attempt = attempt(&ctx, &governed, destination);
    fence::datagram(&ctx, &attempt, &destination, |to| set_ip6(&ctx, to))
}

#[cgroup_sock_addr(getpeername4)]
fn getpeername4(ctx: SockAddrContext) -> i32 {
    let own = destination4(&ctx);
    if recognise::is_the_agent() {
        flow::asked(&ctx, &own);
    } else if let Some(asked) = asked_for(&ctx, &own)
        && is_mapped(asked.ip)
    {
        set_ip4(&ctx, &asked);
    }
    PASS
}

#[cgroup_sock_addr(getpeername6)]
fn getpeername6(ctx: SockAddrContext) -> i32 {
    let own = destination6(&ctx);
    if recognise::is_the_agent() {
        flow::asked(&ctx, &own);
    } else if let Some(asked) = asked_for(&ctx, &own) {
        set_ip6(&ctx, &asked);
    }
    PASS
}

/// Answers come from where they were asked for.
#[cgroup_sock_addr(recvmsg4)]
fn recvmsg4(ctx: SockAddrContext) -> i32 {
    if let Some(server) = names::answered(&ctx, &destination4(&ctx))
        && is_mapped(server.ip)
    {
        set_ip4(&ctx, &server);
    }
    PASS
}

#[cgroup_sock_addr(recvmsg6)]
fn recvmsg6(ctx: SockAddrContext) -> i32 {
    if let Some(server) = names::answered(&ctx, &destination6(&ctx)) {
        set_ip6(&ctx, &server);
    }
    PASS
}

#[cgroup_sock(sock_create)]
fn sock_create(ctx: SockContext) -> i32 {
    let Some(governed) = select::task() else {
        return PASS;
    };
    let attempt = Attempt {
        workload: governed.workload,
        governed: governed.cgroup,
        protocol: field!(ctx.sock, protocol),
        socket_type: field!(ctx.sock, type_),
        destination: address6([0; 4], 0),
        has_destination: false,
    };
    let netns = namespace::cookie(ctx.as_ptr());
    if namespace::ports(netns).is_none() {
        namespace::told(netns, recognise::current(), governed.workload);
    }
    match tollgate_common::rules::socket(attempt.socket_type, attempt.protocol) {
        Ok(()) => fence::made(&ctx, &attempt),
        Err(reason) => attempt.refuse(reason, Errno::Eperm),
    }
}

/// Its process has closed it, and it still has its connection.
#[cgroup_sock(sock_release)]
fn sock_release(ctx: SockContext) -> i32 {
    if let Some(client) = client_of(ctx.as_ptr())
        && client.port.address.port != 0
        && !matches!(
            field!(ctx.sock, state),
            BPF_TCP_CLOSE | BPF_TCP_LISTEN | BPF_TCP_SYN_SENT
        )
    {
        flow::leaves(client);
    }
    PASS
}

#[cgroup_sock(post_bind4)]
fn post_bind4(ctx: SockContext) -> i32 {
    let port = field!(ctx.sock, src_port) as u16;
    bind::bound(&ctx, address4(field!(ctx.sock, src_ip4), port))
}

#[cgroup_sock(post_bind6)]
fn post_bind6(ctx: SockContext) -> i32 {
    let ip = [
        field!(ctx.sock, src_ip6[0]),
        field!(ctx.sock, src_ip6[1]),
        field!(ctx.sock, src_ip6[2]),
        field!(ctx.sock, src_ip6[3]),
    ];
    let port = field!(ctx.sock, src_port) as u16;
    bind::bound(&ctx, address6(ip, port))
}

// The kernel calls these for Unix sockets. No library knows such programs yet, so the section is another's, and
// the agent loads them as what they are.
#[cgroup_sock_addr(connect4)]
fn connect_unix(ctx: SockAddrContext) -> i32 {
    unix::speak(&ctx)
}

#[cgroup_sock_addr(connect4)]
fn sendmsg_unix(ctx: SockAddrContext) -> i32 {
    unix::speak(&ctx)
}

#[cgroup_skb(ingress)]
fn ingress(ctx: SkBuffContext) -> i32 {
    let Some(socket) = exit::socket_of(&ctx) else {
        return PASS;
    };
    if entry::is_for_the_agent(socket) {
        return PASS;
    }
    if entry::is_a_clients_copy(&ctx) {
        return DROP;
    }
    let client = client_of(socket.cast());
    if !entry::is_open(&ctx, socket, client.as_deref()) {
        return DROP;
    }
    if let Some(client) = client {
        let may_arrive = exit::is_steered(client) || names::may_arrive(&ctx, socket, client);
        if !may_arrive || !account::passes(&ctx, client, Direction::In) {
            return DROP;
        }
    }
    PASS
}

#[cgroup_skb(egress)]
fn egress(ctx: SkBuffContext) -> i32 {
    let Some(socket) = exit::socket_of(&ctx) else {
        return PASS;
    };
    if exit::is_astray(&ctx) {
        return DROP;
    }
    if exit::is_none_yet(socket) {
        return PASS;
    }
    let mut client = client_of(socket.cast());
    if !exit::is_open(&ctx, socket, client.as_deref_mut()) {
        return DROP;
    }
    if let Some(client) = client
        && !account::passes(&ctx, client, Direction::Out)
    {
        return DROP;
    }
    PASS
}

/// The kernel calls it with softirqs off: it is never left out for running within itself, as other tracing programs are.
#[btf_tracepoint(function = "tcp_destroy_sock")]
fn tcp_destroy_sock(ctx: BtfTracePointContext) -> i32 {
    if let Some(client) = client_of(ctx.arg(0)) {
        flow::client_closed(client);
    }
    0
}

/// Shows the agent what the clients' sockets carry.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/bpf_sk_storage_map")]
extern "C" fn list_clients(listed: *const flow::Listed) -> i32 {
    flow::list(listed)
}

/// The same of what somebody has open, for kernels that go through no map.
#[unsafe(no_mangle)]
#[unsafe(link_section = "iter/task_file")]
extern "C" fn list_opened(opened: *const flow::Opened) -> i32 {
    flow::list_opened(opened)
}

#[raw_tracepoint(tracepoint = "sched_process_fork")]
fn sched_process_fork(ctx: RawTracePointContext) -> i32 {
    recognise::forked(ctx.arg(0), ctx.arg(1));
    namespace::entered(ctx.arg(1));
    0
}

#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    recognise::executed(ctx.arg(0));
    namespace::entered(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "cgroup_attach_task")]
fn cgroup_attach_task(ctx: RawTracePointContext) -> i32 {
    recognise::moved(ctx.arg(2));
    namespace::entered(ctx.arg(2));
    0
}

#[raw_tracepoint(tracepoint = "cgroup_mkdir")]
fn cgroup_mkdir(ctx: RawTracePointContext) -> i32 {
    let _ = birth::made(ctx.arg(0));
    0
}

#[raw_tracepoint(tracepoint = "cgroup_rmdir")]
fn cgroup_rmdir(ctx: RawTracePointContext) -> i32 {
    let _ = birth::gone(ctx.arg(0));
    0
}

#[lsm(hook = "socket_create")]
fn socket_create(ctx: LsmContext) -> i32 {
    lsm::socket_create(&ctx)
}

#[lsm(hook = "ptrace_access_check")]
fn ptrace_access_check(ctx: LsmContext) -> i32 {
    lsm::ptrace_access_check(&ctx)
}

#[lsm(hook = "task_kill")]
fn task_kill(ctx: LsmContext) -> i32 {
    lsm::task_kill(&ctx)
}

#[lsm(hook = "file_receive")]
fn file_receive(ctx: LsmContext) -> i32 {
    lsm::file_receive(&ctx)
}

#[lsm(hook = "socket_sendmsg")]
fn socket_sendmsg(ctx: LsmContext) -> i32 {
    handed::send(&ctx)
}

#[lsm(hook = "unix_stream_connect")]
fn unix_stream_connect(ctx: LsmContext) -> i32 {
    unix::connect(&ctx)
}

#[lsm(hook = "unix_may_send")]
fn unix_may_send(ctx: LsmContext) -> i32 {
    unix::send(&ctx)
}

#[lsm(hook = "bpf")]
fn bpf(_: LsmContext) -> i32 {
    lsm::bpf()
}

#[lsm(hook = "inode_unlink")]
fn inode_unlink(ctx: LsmContext) -> i32 {
    lsm::take_out(&ctx)
}

#[lsm(hook = "inode_rename")]
fn inode_rename(ctx: LsmContext) -> i32 {
    lsm::take_out(&ctx)
}

#[lsm(hook = "sb_umount")]
fn sb_umount(ctx: LsmContext) -> i32 {
    lsm::sb_umount(&ctx)
}

/// What a governed task tried.
#[inline(always)]
fn attempt(ctx: &SockAddrContext, governed: &Governed, destination: Address) -> Attempt {
    Attempt {
        workload: governed.workload,
        governed: governed.cgroup,
        protocol: field!(ctx.sock_addr, protocol),
        socket_type: field!(ctx.sock_addr, type_),
        destination,
        has_destination: true,
    }
}

#[inline(always)]
fn destination4(ctx: &SockAddrContext) -> Address {
    address4(field!(ctx.sock_addr, user_ip4), port(ctx))
}

#[inline(always)]
fn destination6(ctx: &SockAddrContext) -> Address {
    let ip = [
        field!(ctx.sock_addr, user_ip6[0]),
        field!(ctx.sock_addr, user_ip6[1]),
        field!(ctx.sock_addr, user_ip6[2]),
        field!(ctx.sock_addr, user_ip6[3]),
    ];
    address6(ip, port(ctx))
}

/// The port, host order. The kernel gives it in network order, in the lower half of the word.
#[inline(always)]
fn port(ctx: &SockAddrContext) -> u16 {
    u16::from_be(field!(ctx.sock_addr, user_port) as u16)
}

#[inline(always)]
fn set_ip4(ctx: &SockAddrContext, to: &Address) {
    set_field!(to.ip[3] => ctx.sock_addr, user_ip4);
    set_field!(u32::from(to.port.to_be()) => ctx.sock_addr, user_port);
}

#[inline(always)]
fn set_ip6(ctx: &SockAddrContext, to: &Address) {
    set_field!(to.ip[0] => ctx.sock_addr, user_ip6[0]);
    set_field!(to.ip[1] => ctx.sock_addr, user_ip6[1]);
    set_field!(to.ip[2] => ctx.sock_addr, user_ip6[2]);
    set_field!(to.ip[3] => ctx.sock_addr, user_ip6[3]);
    set_field!(u32::from(to.port.to_be()) => ctx.sock_addr, user_port);
}

/// Where a socket's caller asked to go that is connected to `own` instead.
#[inline(always)]
fn asked_for(ctx: &SockAddrContext, own: &Address) -> Option<Address> {
    let client = client_of(socket_of(ctx))?;
    if exit::is_steered(client) {
        return Some(client.record.steered.destination);
    }
    names::peer(ctx).or_else(|| fence::held_peer(ctx, own))
}

#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// Some helpers are for GPL programs only. The crate itself is offered under these licences.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
pub static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
