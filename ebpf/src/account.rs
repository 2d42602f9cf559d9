//! What is counted: bytes, packets, connections, refusals, and events that were lost. Per-CPU values
//! too are added to atomically: a softirq may interrupt a task's hook on the same CPU.
use crate::{
    atomic::add,
    maps::{ACCOUNTS, LOST, REFUSALS},
    quota,
};
use aya_ebpf::{Global, bindings::BPF_NOEXIST, programs::SkBuffContext};
use tollgate_common::{
    event::{Reason, RefusalKey},
    flow::{Client, Traffic},
};

/// Which way a packet goes, seen from the workload.
#[derive(Clone, Copy)]
pub(crate) enum Direction {
    /// From the workload.
    Out,
    /// To the workload.
    In,
}

/// Set by the agent before loading; 0: no packet is counted or held to a quota, which shows a bench what that costs.
#[unsafe(no_mangle)]
static COUNTS: Global<u32> = Global::new(1);

/// May this packet on a client's socket pass? Counts it if it may.
#[inline(always)]
pub(crate) fn passes(ctx: &SkBuffContext, client: &mut Client, direction: Direction) -> bool {
    if COUNTS.load() == 0 {
        return true;
    }
    if !quota::passes(ctx, client.workload) {
        return false;
    }
    packet(ctx, client, direction);
    true
}

/// Counts a packet on a client's socket.
#[inline(always)]
fn packet(ctx: &SkBuffContext, client: &mut Client, direction: Direction) {
    let bytes = u64::from(ctx.len());
    // One that the stack or the device cuts into several behind this hook counts as those.
    let packets = u64::from(field!(ctx.skb.skb, gso_segs).max(1));
    if let Some(account) = ACCOUNTS.get_ptr_mut(client.workload) {
        // SAFETY: `account` points to this CPU's live value.
        unsafe { traffic(&raw mut (*account).traffic, (packets, bytes), direction) };
    }
    // SAFETY: `client` is the socket's own value.
    unsafe { traffic(&raw mut client.record.traffic, (packets, bytes), direction) };
}

/// Adds packets and their bytes.
#[inline(always)]
unsafe fn traffic(to: *mut Traffic, (packets, bytes): (u64, u64), direction: Direction) {
    // SAFETY: the caller's pointer is to a live map value.
    unsafe {
        match direction {
            Direction::Out => {
                add(&raw mut (*to).bytes_out, bytes);
                add(&raw mut (*to).packets_out, packets);
            }
            Direction::In => {
                add(&raw mut (*to).bytes_in, bytes);
                add(&raw mut (*to).packets_in, packets);
            }
        }
    }
}

/// Counts a steered connection.
#[inline(always)]
pub(crate) fn connection(workload: u32) {
    if let Some(account) = ACCOUNTS.get_ptr_mut(workload) {
        // SAFETY: `account` points to this CPU's live value.
        unsafe { add(&raw mut (*account).connections, 1) };
    }
}

/// Counts a refusal.
#[inline(always)]
pub(crate) fn refusal(workload: u32, reason: Reason) {
    let key = RefusalKey {
        workload,
        reason: reason as u32,
    };
    if REFUSALS.get_ptr(key).is_none() {
        // Fails if another CPU was first, which is as good.
        let _ = REFUSALS.insert(key, 0, u64::from(BPF_NOEXIST));
    }
    match REFUSALS.get_ptr_mut(key) {
        // SAFETY: `count` points to a live map value.
        Some(count) => unsafe { add(count, 1) },
        // There is no room for it.
        None => lost(),
    }
}

/// Counts an event that did not fit.
#[inline(always)]
pub(crate) fn lost() {
    if let Some(count) = LOST.get_ptr_mut(0) {
        // SAFETY: `count` points to this CPU's live value.
        unsafe { add(count, 1) };
    }
}
