//! Loops of which the verifier looks at one turn. It would look at each turn of a loop of the language apart, and at
//! all that follows for each turn that it can end at: a second of every start of the agent.
use aya_ebpf::{cty::c_void, helpers::generated::bpf_loop};

/// What a turn returns to be followed by the next, and to be the last.
pub(crate) const GO_ON: i64 = 0;
/// See [`GO_ON`].
pub(crate) const STOP: i64 = 1;

/// Calls `turn` with 0, 1, … below `times` and with `state`, until it says [`STOP`].
#[inline(always)]
pub(crate) fn repeat<T>(times: u32, turn: extern "C" fn(u64, *mut T) -> i64, state: &mut T) {
    let turn = turn as *mut c_void;
    // SAFETY: needed to call a helper; since Linux 5.17. It passes on `state`, which is on our stack and outlives it, and
    // the verifier looks at `turn` with it.
    unsafe { bpf_loop(times, turn, core::ptr::from_mut(state).cast(), 0) };
}
