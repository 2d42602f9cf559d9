//! Who has run a program that is not known yet, and that a rule could mean: it is refused until that is known, whatever it has
//! become since. What it waits for stands in `WAITING`, and the number of that in its mark, which its children inherit.
// A program by value would pass over the stack, which has no room for it.
#![allow(clippy::needless_borrows_for_generic_args)]
use crate::{
    maps::WAITING,
    recognise,
    repeat::{GO_ON, STOP, repeat},
    rules::{self, Found, Question},
    select::{self, BY_MARK},
};
use aya_ebpf::{
    bindings::BPF_NOEXIST,
    helpers::{bpf_get_current_uid_gid, generated::bpf_get_current_task},
};
use tollgate_common::{
    event::{OF_WHO_WAITS, Pending},
    recognise::{ASKED, MAX_BEFORE, Mark, UNKNOWN, UNSETTLED, WORKLOAD_IDS, Waiting},
};

/// What is returned of who waits.
const WAITS: u64 = BY_MARK | UNSETTLED as u64;
/// Questions until all is known of one process.
const TURNS: u32 = MAX_BEFORE * (ASKED + 1);
/// Keys that are tried.
const PLACES: u32 = 4;

/// The current process runs what is not known: it waits from now on.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn begin(process: u32) -> u32 {
    // SAFETY: needed to call a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    if rules::executable(task).is_none() {
        return 0; // The kernel's own thread: there is nothing to wait for.
    }
    let mark = recognise::mark(process).unwrap_or_default();
    if mark.workload() != 0 {
        return 0; // The agent has marked it meanwhile.
    }
    let number = enter(UNKNOWN, mark.awaits().unwrap_or(0));
    recognise::replace(process, mark, Mark::waiting(number));
    number
}

/// A process that waits has become a program of this class, which may be another one to wait for. What [`settle`] returns.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn runs(process: u32, class: u16) -> u64 {
    let settled = settle(process);
    if settled != WAITS {
        return settled;
    }
    let uid = bpf_get_current_uid_gid() as u32;
    let found = Question::of(class, uid, select::conditions()).ask();
    let mark = recognise::mark(process).unwrap_or_default();
    // Who waits for nobody knows what goes on to.
    if found.workload() != 0
        && let Some(before @ 1..) = mark.awaits()
    {
        recognise::replace(process, mark, Mark::waiting(enter(class, before)));
    }
    WAITS
}

/// Asks whose a process that waits is by what it has run: [`WAITS`], [`BY_MARK`] and the workload, or 0: that is nobody's, and what
/// it runs now is to be asked for. Of several that have it, the first does.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn settle(process: u32) -> u64 {
    let mark = recognise::mark(process).unwrap_or_default();
    if mark.is_governed() {
        return BY_MARK | u64::from(mark.workload());
    }
    let found = Found(whose(mark.awaits().unwrap_or(0), process));
    let new = match found.workload() {
        UNSETTLED => return WAITS,
        0 => Mark::running(UNKNOWN),
        // Nobody has looked at what it opened while it waited.
        workload => Mark::governed(workload, found.number() + 1, recognise::now())
            .after(mark)
            .to_be_looked_at(),
    };
    match recognise::replace(process, mark, new) {
        true if found.workload() == 0 => 0,
        true => BY_MARK | u64::from(found.workload()),
        false => WAITS, // Asked again the next time.
    }
}

/// Who has what waits under this number: a [`Found`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn whose(number: u32, process: u32) -> u64 {
    let mut walk = Walk {
        question: Question {
            conditions: 0,
            class: 0,
            uid: 0,
            best: Found::NOBODY,
        },
        found: Found::NOBODY,
        number: u64::from(number),
        before: 0,
        is_asking: 0,
    };
    if number == 0 {
        return Found::NOT_YET.0;
    }
    repeat(TURNS, next, &mut walk);
    if walk.number != 0 {
        tell(process, walk.number as u32);
        return Found::NOT_YET.0;
    }
    walk.found.0
}

/// What is put on a socket of the current process.
#[inline(always)]
pub(crate) fn of_current() -> u64 {
    let mark = recognise::mark(recognise::current()).unwrap_or_default();
    mark.awaits()
        .map_or(0, |number| OF_WHO_WAITS | u64::from(number))
}

/// Whose a socket is by what its owner waited for: a workload, [`UNSETTLED`], or 0: nobody's. Who else has it by now waits for the
/// same, and as long as somebody does it stands in `WAITING`.
#[inline(always)]
pub(crate) fn whose_socket(pending: &mut Pending) -> u32 {
    if pending.waits == 0 {
        return 0;
    }
    let (number, owner) = (pending.waits as u32, pending.refused.owner.tgid);
    let mark = recognise::mark(owner).unwrap_or_default();
    // Who found no room since waits for all that he has run.
    let is_waiting = mark.awaits().is_some_and(|now| now == number || now == 0);
    let workload = if number == 0 || WAITING.get_ptr(number).is_some() {
        Found(whose(number, owner)).workload()
    } else if mark.is_governed() {
        mark.workload()
    } else if is_waiting {
        UNSETTLED // It ended before anybody knew.
    } else {
        0
    };
    if workload == 0 && !is_waiting {
        // So it stays: whoever has its owner's id next has nothing to do with it.
        pending.waits = 0;
    }
    u32::from(workload)
}

/// On the way from what a process ran last to what it ran first.
struct Walk {
    question: Question,
    /// Who has it by what was asked for so far.
    found: Found,
    /// What is asked for; 0: that was all.
    number: u64,
    /// What was run before it.
    before: u64,
    /// Not 0: some of its conditions were asked.
    is_asking: u64,
}

/// Asks the rules of one condition of one program.
extern "C" fn next(_: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let walk = unsafe { &mut *walk };
    let mut condition = 0;
    if walk.is_asking == 0 {
        if walk.number == 0 {
            return STOP;
        }
        let Some(program) = WAITING.get_ptr(walk.number as u32) else {
            return STOP;
        };
        // SAFETY: a live map value; the memory of a removed one stays readable.
        let program = unsafe { &*program };
        walk.question = Question {
            conditions: program.conditions,
            class: u64::from(class(program)),
            uid: u64::from(program.uid),
            best: Found::NOBODY,
        };
        walk.before = u64::from(program.before);
        walk.is_asking = 1;
    } else {
        condition = walk.question.take();
    }
    walk.question.ask_of(condition);
    if walk.question.conditions != 0 {
        return GO_ON;
    }
    let best = walk.question.best;
    if best.workload() == UNSETTLED {
        return STOP;
    }
    if best.workload() != 0 {
        walk.found = best;
    }
    walk.is_asking = 0;
    walk.number = walk.before;
    GO_ON
}

/// A program's class, as far as that is known by now.
#[inline(always)]
fn class(program: &Waiting) -> u16 {
    // SAFETY: a live map value, which the agent writes.
    match unsafe { core::ptr::read_volatile(&raw const program.class) } as u16 {
        UNKNOWN => rules::known_class(&program.file, program.seconds, program.nanoseconds)
            .unwrap_or(UNKNOWN),
        known => known,
    }
}

/// Enters what the current process runs; returns its number, or 0: there is no room, or it has run too many.
#[inline(never)]
fn enter(class: u16, before: u32) -> u32 {
    // SAFETY: needed to call a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some((file, changed, _)) = rules::executable(task) else {
        return before;
    };
    let mut search = Search {
        wanted: Waiting {
            file,
            seconds: changed.seconds,
            conditions: select::conditions(),
            nanoseconds: changed.nanoseconds,
            uid: bpf_get_current_uid_gid() as u32,
            before,
            depth: 0,
            class: u32::from(class),
            asked: 0,
        },
        number: u64::from(before),
        depth: 0,
    };
    repeat(MAX_BEFORE, look, &mut search);
    if search.depth >= u64::from(MAX_BEFORE) {
        return 0;
    }
    if search.number != 0 {
        return before; // It was run before.
    }
    search.wanted.depth = search.depth as u32 + 1;
    search.number = u64::from(search.wanted.number());
    search.depth = 0;
    repeat(PLACES, place, &mut search);
    search.depth as u32
}

/// Enters it under one of the keys that it may have; `depth` is that key then.
extern "C" fn place(turn: u64, search: *mut Search) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let search = unsafe { &mut *search };
    let number = (search.number as u32).wrapping_add((turn as u32) << 1);
    // Somebody else may enter it at the same time.
    let _ = WAITING.insert(number, &search.wanted, u64::from(BPF_NOEXIST));
    let Some(there) = WAITING.get_ptr(number) else {
        return STOP;
    };
    // SAFETY: a live map value; the memory of a removed one stays readable.
    let there = unsafe { &*there };
    if there.before == search.wanted.before && there.is_like(&search.wanted) {
        search.depth = u64::from(number);
        return STOP;
    }
    GO_ON
}

/// Among what a process waits for already.
struct Search {
    wanted: Waiting,
    /// What is looked at; 0: that was all.
    number: u64,
    /// How many were.
    depth: u64,
}

/// Looks at one of them.
extern "C" fn look(turn: u64, search: *mut Search) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let search = unsafe { &mut *search };
    if search.number == 0 {
        return STOP;
    }
    let Some(there) = WAITING.get_ptr(search.number as u32) else {
        search.depth = u64::from(MAX_BEFORE);
        return STOP;
    };
    // SAFETY: a live map value; the memory of a removed one stays readable.
    let there = unsafe { &*there };
    if there.is_like(&search.wanted) {
        return STOP;
    }
    search.depth = turn + 1;
    search.number = u64::from(there.before);
    GO_ON
}

/// Asks the agent to look at a program that is waited for, once a second.
#[inline(always)]
fn tell(process: u32, number: u32) {
    let Some(program) = WAITING.get_ptr_mut(number) else {
        return;
    };
    let now = recognise::now();
    // SAFETY: a live map value; the memory of a removed one stays writable.
    let program = unsafe {
        if core::ptr::read_volatile(&raw const (*program).asked) == now {
            return;
        }
        core::ptr::write_volatile(&raw mut (*program).asked, now);
        &*program
    };
    rules::send(process, &program.file, program.seconds, program.nanoseconds);
}

const _: () = assert!(WORKLOAD_IDS <= u16::MAX as u32);
