//! Processes as they come, change and move: each has a mark, which its children inherit, so that nobody
//! stops being governed by forking, by leaving a cgroup, or by becoming another program.
use crate::{
    atomic,
    attribute::{self, OFFSETS, read},
    maps::PROCESSES,
    rules, select, waiting,
};
use aya_ebpf::helpers::{bpf_get_current_pid_tgid, generated::bpf_ktime_get_boot_ns};
use tollgate_common::recognise::{ANY_RULE, BY_CGROUP, EXEMPT, Mark, UNKNOWN, UNSETTLED};

/// The current process.
#[inline(always)]
pub(crate) fn current() -> u32 {
    (bpf_get_current_pid_tgid() >> 32) as u32
}

/// A process's mark. Every process has one: `None` is for the verifier.
#[inline(always)]
pub(crate) fn mark(process: u32) -> Option<Mark> {
    let mark = PROCESSES.get_ptr(process)?;
    // SAFETY: a live map value of one word; volatile because others write it meanwhile.
    Some(unsafe { core::ptr::read_volatile(mark) })
}

/// Is the current process the agent?
#[inline(always)]
pub(crate) fn is_the_agent() -> bool {
    mark(current()).is_some_and(|mark| mark.workload() == EXEMPT)
}

/// Marks a process, unless somebody else has marked it meanwhile; whether it did.
#[inline(always)]
pub(crate) fn replace(process: u32, old: Mark, new: Mark) -> bool {
    PROCESSES.get_ptr_mut(process).is_some_and(|mark| {
        // SAFETY: a live map value of one word, aligned to 8.
        unsafe { atomic::replace(mark.cast(), old.0, new.0) }
    })
}

/// Marks a process.
#[inline(always)]
pub(crate) fn set(process: u32, to: Mark) {
    if let Some(mark) = PROCESSES.get_ptr_mut(process) {
        // SAFETY: as in `mark`.
        unsafe { core::ptr::write_volatile(mark, to) };
    }
}

/// Now, as marks have it.
#[inline(always)]
pub(crate) fn now() -> u32 {
    // SAFETY: needed to call a helper without arguments.
    (unsafe { bpf_ktime_get_boot_ns() } / 1_000_000_000) as u32
}

/// A process forked. The child has not run yet. Its mark is always written: the process that had its id
/// before left one.
#[inline(always)]
pub(crate) fn forked(parent: u64, child: u64) {
    let (Some(parent), Some(id)) = (process_of(parent), process_of(child)) else {
        return;
    };
    if parent == id {
        return; // A thread.
    }
    // Before its maker's: whoever is marked by the agent meanwhile, as a child of one who is, stays so.
    let old = mark(id).unwrap_or_default();
    let parent = mark(parent).unwrap_or_default();
    // It may have been made in another cgroup than its parent's.
    let new = within(child, parent).unwrap_or(parent.inherited(now()));
    if !replace(id, old, new) && (new.is_governed() || new.awaits().is_some()) {
        set(id, new);
    }
}

/// The current process became another program. What governs it stays; being the agent does not. Otherwise
/// the rules are asked.
#[inline(always)]
pub(crate) fn executed(task: u64) {
    let process = current();
    let Some(old) = mark(process) else { return };
    if old.is_governed() {
        replace(process, old, old.as_another_program());
        attribute::learn(task);
        return;
    }
    let rules = select::scope().map_or(0, select::rules);
    let class = rules::class_at_exec(rules, process, task);
    let waits = old.awaits().is_some();
    // Who waits for what it ran before does so whatever it runs now, and while there are no rules: they may come back.
    if !waits || rules & ANY_RULE != 0 && waiting::runs(process, class) == 0 {
        // What `settle` has left of who waited. The agent may have marked it since: that stays.
        let old = if waits { Mark::running(UNKNOWN) } else { old };
        replace(process, old, Mark::running(class));
        if rules & ANY_RULE != 0 {
            select::task(); // Its answer is marked.
        }
    }
    let new = mark(process).unwrap_or_default();
    if new.is_governed() {
        replace(process, new, new.as_another_program());
    }
    if new.is_governed() || new.awaits().is_some() {
        attribute::learn(task);
    }
}

/// A process was moved to another cgroup, of whatever hierarchy.
#[inline(always)]
pub(crate) fn moved(task: u64) {
    let Some(process) = process_of(task) else {
        return;
    };
    let old = mark(process).unwrap_or_default();
    if old.workload() == EXEMPT {
        return;
    }
    match within(task, old) {
        Some(mark) => {
            set(process, mark);
            attribute::learn(task);
        }
        // Other conditions may hold there.
        None if !old.is_governed() && old.awaits().is_none() => {
            replace(process, old, Mark::running(old.class()));
        }
        None => (),
    }
}

/// The mark that a task's cgroup gives, if it is governed. `before`: what its process's was, or its maker's.
#[inline(always)]
fn within(task: u64, before: Mark) -> Option<Mark> {
    let workload = select::other(task)?.workload;
    if workload == u32::from(UNSETTLED) {
        return None;
    }
    Some(Mark::governed(workload as u16, BY_CGROUP, now()).after(before))
}

/// A task's process.
#[inline(always)]
pub(crate) fn process_of(task: u64) -> Option<u32> {
    // SAFETY: reads through a helper that checks the address.
    unsafe { read(task, OFFSETS.load().task_tgid) }
}
