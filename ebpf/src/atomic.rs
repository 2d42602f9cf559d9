//! Atomic read-modify-write. `core` offers none for this target (it has no compare-and-swap in its
//! oldest version), the instructions exist since Linux 5.12.
use core::arch::asm;

/// `*to += amount`.
///
/// # Safety
/// `to` must be aligned to 8 and point to writable map memory; the verifier checks both.
#[inline(always)]
pub(crate) unsafe fn add(to: *mut u64, amount: u64) {
    // SAFETY: needed to name the instruction; it writes the eight bytes at `to` and nothing else.
    unsafe {
        asm!(
            "lock *(u64 *)({to} + 0) += {amount}",
            to = in(reg) to,
            amount = in(reg) amount,
            options(nostack),
        );
    }
}

/// `*to &= bits`.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn and(to: *mut u64, bits: u64) {
    // SAFETY: as in `add`.
    unsafe {
        asm!(
            "lock *(u64 *)({to} + 0) &= {bits}",
            to = in(reg) to,
            bits = in(reg) bits,
            options(nostack),
        );
    }
}

/// `*to |= bits`; returns what it was before.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn fetch_or(to: *mut u64, bits: u64) -> u64 {
    let mut value = bits;
    // SAFETY: as in `add`; the old value comes back in the register that held the bits.
    unsafe {
        asm!(
            "{value} = atomic_fetch_or((u64 *)({to} + 0), {value})",
            to = in(reg) to,
            value = inout(reg) value,
            options(nostack),
        );
    }
    value
}

/// `*to = new` if it is `old`; whether it was.
///
/// # Safety
/// As for [`add`].
#[inline(always)]
pub(crate) unsafe fn replace(to: *mut u64, old: u64, new: u64) -> bool {
    let mut found = old;
    // SAFETY: as in `add`; the instruction compares with `r0` and leaves there what it found.
    unsafe {
        asm!(
            "r0 = cmpxchg_64({to} + 0, r0, {new})",
            to = in(reg) to,
            new = in(reg) new,
            inout("r0") found,
            options(nostack),
        );
    }
    found == old
}
