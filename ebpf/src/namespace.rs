//! Network namespaces: in which of them does the agent listen, and which has it to be told of?
use crate::{
    account,
    attribute::{OFFSETS, pointer, read},
    maps::{EVENTS, NAMESPACES, STRANGERS},
    recognise,
};
use aya_ebpf::{
    bindings::BPF_ANY,
    cty::c_void,
    helpers::generated::{bpf_get_netns_cookie, bpf_ktime_get_boot_ns},
};
use tollgate_common::{
    event::{STRANGER, Stranger},
    settings::Ports,
};

/// The agent is told of a namespace again after this long, if it is still not there.
const AGAIN: u64 = 10_000_000;

/// The cookie of the network namespace of a hook's socket.
#[inline(always)]
pub(crate) fn cookie(ctx: *mut c_void) -> u64 {
    // SAFETY: needed to call a helper, with the context that the kernel passed.
    unsafe { bpf_get_netns_cookie(ctx) }
}

/// Where the agent listens in a namespace, if it does.
#[inline(always)]
pub(crate) fn ports(netns: u64) -> Option<Ports> {
    // SAFETY: the value is one word, read once; a removed entry's memory stays readable.
    unsafe { NAMESPACES.get(netns) }.copied()
}

/// A task was made, became another program, or was moved. If it is governed and where the agent is not, that is told
/// before it can connect.
#[inline(always)]
pub(crate) fn entered(task: u64) {
    let Some(process) = recognise::process_of(task) else {
        return;
    };
    let Some(mark) = recognise::mark(process).filter(|mark| mark.is_governed()) else {
        return;
    };
    let Some(netns) = of_task(task) else { return };
    if ports(netns).is_none() {
        told(netns, process, u32::from(mark.workload()));
    }
}

/// The cookie of a task's network namespace.
#[inline(always)]
fn of_task(task: u64) -> Option<u64> {
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the addresses.
    unsafe {
        let namespaces = pointer(task, at.task_namespaces)?;
        read(pointer(namespaces, at.namespaces_net)?, at.net_cookie)
    }
}

/// A governed task is in a namespace without the agent: tells it, so that it can come. How often is
/// bounded, since whoever may make namespaces may make them all day.
#[inline(always)]
pub(crate) fn told(netns: u64, process: u32, workload: u32) {
    // SAFETY: needed to call a helper without arguments.
    let now = unsafe { bpf_ktime_get_boot_ns() };
    // SAFETY: the value is one word, read once.
    if unsafe { STRANGERS.get(netns) }.is_some_and(|&last| now.wrapping_sub(last) < AGAIN) {
        return;
    }
    let _ = STRANGERS.insert(netns, now, u64::from(BPF_ANY));
    let stranger = Stranger {
        kind: STRANGER,
        tgid: process,
        workload,
        reserved: 0,
        netns,
    };
    if EVENTS.output_untyped::<Stranger>(&stranger, 0).is_err() {
        account::lost();
    }
}
