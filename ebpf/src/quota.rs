//! Byte quotas: what a workload may move in a window of time. Decided here, packet by packet, with nobody
//! asked; told once a second, so that the agent ends what would wait in vain.
use crate::{
    account, atomic,
    maps::{EVENTS, QUOTAS, SPENT},
};
use aya_ebpf::{
    bindings::__sk_buff, helpers::generated::bpf_ktime_get_boot_ns, programs::SkBuffContext,
};
use tollgate_common::{
    event::{OVERSPENT, Overspent, Reason},
    quota::{Quota, Spent},
    rules::TCP,
};

/// How often the agent is told of a workload.
const AGAIN: u64 = 1_000_000_000;

/// May this packet of the workload pass? If it may, it is spent.
#[inline(always)]
pub(crate) fn passes(ctx: &SkBuffContext, workload: u32) -> bool {
    !is_limited(workload) || spend(ctx.skb.skb, workload)
}

/// Has the workload a quota?
#[inline(always)]
fn is_limited(workload: u32) -> bool {
    // SAFETY: the pointer is into a live map value.
    let length =
        |quota: *const Quota| unsafe { core::ptr::read_volatile(&raw const (*quota).length) };
    QUOTAS
        .get_ptr(workload)
        .is_some_and(|quota| length(quota) != 0)
}

#[inline(never)]
fn spend(skb: *mut __sk_buff, workload: u32) -> bool {
    let ctx = &SkBuffContext::new(skb);
    let Some((quota, spent)) = of(workload) else {
        return true;
    };
    let bytes = u64::from(ctx.len());
    // SAFETY: both pointers are into live map values; what others change is read once, or added to atomically.
    unsafe {
        let used = used(&quota, spent);
        if used.saturating_add(bytes) <= quota.limit {
            atomic::add(&raw mut (*spent).total, bytes);
            return true;
        }
        // What carries nothing passes: it is how a connection ends.
        if is_bare(ctx) {
            return true;
        }
        account::refusal(workload, Reason::Quota);
        let epoch = core::ptr::read_volatile(&raw const (*spent).epoch);
        core::ptr::write_volatile(&raw mut (*spent).over_limit, quota.limit);
        core::ptr::write_volatile(&raw mut (*spent).over, epoch);
        let now = bpf_ktime_get_boot_ns();
        let told = core::ptr::read_volatile(&raw const (*spent).told);
        if now.wrapping_sub(told) > AGAIN {
            core::ptr::write_volatile(&raw mut (*spent).told, now);
            let overspent = Overspent {
                kind: OVERSPENT,
                workload,
            };
            if EVENTS.output_untyped::<Overspent>(&overspent, 0).is_err() {
                account::lost();
            }
        }
    }
    false
}

/// Has the workload anything left, and was nothing dropped in this window for want of it?
#[inline(always)]
pub(crate) fn is_left(workload: u32) -> bool {
    let Some((quota, spent)) = of(workload) else {
        return true;
    };
    // SAFETY: as in `passes`.
    unsafe {
        let used = used(&quota, spent);
        let epoch = core::ptr::read_volatile(&raw const (*spent).epoch);
        let was_over = core::ptr::read_volatile(&raw const (*spent).over) == epoch
            && core::ptr::read_volatile(&raw const (*spent).over_limit) == quota.limit;
        used < quota.limit && !was_over
    }
}

/// The workload's quota and what it has spent; `None` where it has no quota.
#[inline(always)]
fn of(workload: u32) -> Option<(Quota, *mut Spent)> {
    let quota: *const Quota = QUOTAS.get_ptr(workload)?;
    // SAFETY: the pointer is into a live map value.
    let length = unsafe { core::ptr::read_volatile(&raw const (*quota).length) };
    if length == 0 {
        return None;
    }
    let spent = SPENT.get_ptr_mut(workload)?;
    // SAFETY: as above. The agent writes it whole; a mixture of two is corrected by the next packet's.
    Some((unsafe { core::ptr::read_volatile(quota) }, spent))
}

/// What was spent in the window that it is now. A new window begins with what was counted so far: nothing that is
/// counted meanwhile on another CPU is lost. Windows never go back.
///
/// # Safety
/// `spent` must point to a live value of `SPENT`.
#[inline(always)]
unsafe fn used(quota: &Quota, spent: *mut Spent) -> u64 {
    // SAFETY: the contract; each field is one load or store.
    unsafe {
        let now = bpf_ktime_get_boot_ns().wrapping_add(quota.offset);
        let epoch = now / quota.length.max(1);
        let total = core::ptr::read_volatile(&raw const (*spent).total);
        if epoch > core::ptr::read_volatile(&raw const (*spent).epoch) {
            core::ptr::write_volatile(&raw mut (*spent).base, total);
            core::ptr::write_volatile(&raw mut (*spent).epoch, epoch);
            return 0;
        }
        total.saturating_sub(core::ptr::read_volatile(&raw const (*spent).base))
    }
}

/// Is this a TCP segment without payload?
#[inline(always)]
fn is_bare(ctx: &SkBuffContext) -> bool {
    headers(ctx).is_some_and(|headers| ctx.len() <= headers)
}

/// Bytes of the IP and TCP headers.
#[inline(always)]
fn headers(ctx: &SkBuffContext) -> Option<u32> {
    let first: u8 = ctx.skb.load(0).ok()?;
    let (ip, protocol) = match first >> 4 {
        4 => (u32::from(first & 0x0f) * 4, ctx.skb.load::<u8>(9).ok()?),
        6 => (40, ctx.skb.load::<u8>(6).ok()?),
        _ => return None,
    };
    if u32::from(protocol) != TCP {
        return None;
    }
    let offset: u8 = ctx.skb.load(ip as usize + 12).ok()?;
    Some(ip + u32::from(offset >> 4) * 4)
}
