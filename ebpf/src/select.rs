//! Which workload is the current task of, or a packet's socket?
use crate::{
    attribute::{OFFSETS, pointer, read},
    maps::{BEYOND, GOVERNED, RELEASED, SCOPE},
    recognise,
    repeat::{GO_ON, STOP, repeat},
    rules as by_rules,
};
use aya_ebpf::{
    bindings::__sk_buff,
    helpers::generated::{bpf_get_current_ancestor_cgroup_id, bpf_skb_ancestor_cgroup_id},
    programs::SkBuffContext,
};
use tollgate_common::{
    limits::MAX_LEVEL,
    recognise::{BEYOND_WORDS, Beyond, EXEMPT, FILTER_WORDS, Scope, UNSETTLED, place},
};

/// Whose a task or a socket is.
#[derive(Clone, Copy)]
pub(crate) struct Governed {
    /// The governed cgroup by which that is known; [`MARKED`]: by what the process was before.
    pub(crate) cgroup: u64,
    /// Whose it is.
    pub(crate) workload: u32,
}

/// [`Governed::cgroup`] of who is governed without being in a governed cgroup: no cgroup's id.
pub(crate) const MARKED: u64 = 0;

/// Whose the current task is: that of the deepest governed cgroup above it, or else its own or its
/// parent's since it was in one, or else whose the rules say.
#[inline(always)]
pub(crate) fn task() -> Option<Governed> {
    if is_nobodys() {
        return None;
    }
    let mut cgroup = 0;
    let mut found = find(&mut cgroup);
    if found == ASK {
        found = by_rules::whose_by_rules(cgroup);
    }
    match found {
        0 => None,
        found if found & BY_MARK != 0 => Some(Governed {
            cgroup: MARKED,
            workload: found as u32,
        }),
        found => Some(Governed {
            cgroup,
            workload: found as u32,
        }),
    }
}

/// Levels at which something may be governed for it to be told here who is nobody's: of more a loop is needed.
const FEW_LEVELS: usize = 2;

/// Is it plain that the current task is nobody's? Most are, and the calls that are needed to say whose others are cost as much as this.
/// What it does not say is left to [`find`] and the rules.
#[inline(always)]
fn is_nobodys() -> bool {
    let Some(scope) = scope() else { return true };
    let (mut levels, rules) = (levels(scope), rules(scope));
    // First: it counts also where there are no rules any more, and no cgroup was ever governed.
    let mark = recognise::mark(recognise::current()).unwrap_or_default();
    if mark.workload() != 0 {
        return false;
    }
    for _ in 0..FEW_LEVELS {
        if levels == 0 {
            break;
        }
        // SAFETY: as in `task_at`.
        let cgroup = unsafe { bpf_get_current_ancestor_cgroup_id(levels.trailing_zeros() as i32) };
        if cgroup != 0 && may_be(scope, cgroup) {
            return false;
        }
        levels &= levels.wrapping_sub(1);
    }
    // No cgroup has a condition that holds.
    levels == 0 && by_rules::are_asked_in_vain(rules, mark, 0)
}

/// What [`find`] returns for who is in no governed cgroup, with the workload in its lower half.
pub(crate) const BY_MARK: u64 = 1 << 63;
/// What [`find`] returns for who is still to be asked for.
const ASK: u64 = 1 << 62;

/// On a stack of its own, which the connect hooks' has no room for. The workload, with the governed cgroup in `cgroup`, or one of the
/// above, where [`ASK`] has the conditions that hold there; 0: nobody's.
#[inline(never)]
fn find(cgroup: &mut u64) -> u64 {
    let Some(scope) = scope() else { return 0 };
    let mark = recognise::mark(recognise::current()).unwrap_or_default();
    if mark.workload() == EXEMPT {
        return 0;
    }
    let mut walk = Walk::new(scope);
    if let Some(deepest) = walk.go(task_at, of_task) {
        *cgroup = deepest.cgroup;
        u64::from(deepest.workload)
    } else if mark.is_governed() {
        BY_MARK | u64::from(mark.workload())
    } else if rules(scope) != 0 {
        *cgroup = walk.conditions;
        ASK
    } else {
        0
    }
}

/// What conditions hold for the current task's cgroups.
#[inline(always)]
pub(crate) fn conditions() -> u64 {
    let Some(scope) = scope() else { return 0 };
    let mut walk = Walk::new(scope);
    walk.go(task_at, of_task);
    walk.conditions
}

/// The deepest governed cgroup above the one in which a packet's socket was made.
#[inline(always)]
pub(crate) fn socket(ctx: &SkBuffContext) -> Option<Governed> {
    let mut walk = Walk::new(scope()?);
    if walk.levels == 0 {
        return None;
    }
    walk.skb = ctx.skb.skb;
    walk.go(socket_at, of_socket)
}

/// The deepest governed cgroup above another task than the current one.
#[inline(always)]
pub(crate) fn other(task: u64) -> Option<Governed> {
    let at = OFFSETS.load();
    if levels(scope()?) == 0 {
        return None;
    }
    // SAFETY: reads through a helper that checks the address.
    let cgroup = unsafe { pointer(pointer(task, at.task_cgroups)?, at.set_cgroup)? };
    above(cgroup)
}

/// The deepest governed cgroup above a cgroup, or itself.
#[inline(always)]
pub(crate) fn above(cgroup: u64) -> Option<Governed> {
    let mut walk = Walk::new(scope()?);
    walk.cgroup = cgroup;
    walk.go(cgroup_at, of_cgroup)
}

/// The id of a cgroup's ancestor at `level`, itself at its own.
#[inline(always)]
fn ancestor(cgroup: u64, level: i32) -> Option<u64> {
    let at = OFFSETS.load();
    // SAFETY: as in `other`; beyond its own level a cgroup has no ancestors to read.
    unsafe {
        if level > read::<i32>(cgroup, at.cgroup_level)? {
            return None;
        }
        let slot = at.cgroup_ancestors.wrapping_add(level as u32 * 8);
        read(pointer(pointer(cgroup, slot)?, at.cgroup_node)?, at.node_id)
    }
}

/// Is there such a workload no more? What is known by what a socket carries is known for ever, and policy is not.
#[inline(always)]
pub(crate) fn is_released(workload: u32) -> bool {
    RELEASED
        .get_ptr(workload)
        // SAFETY: a live map value; the agent writes it whole.
        .is_some_and(|released| unsafe { core::ptr::read_volatile(released) } != 0)
}

#[inline(always)]
pub(crate) fn scope() -> Option<*const Scope> {
    SCOPE.get_ptr(0)
}

#[inline(always)]
fn levels(scope: *const Scope) -> u64 {
    // SAFETY: the pointer is into a map value, which lives while the program runs; volatile because
    // others write it meanwhile.
    unsafe { core::ptr::read_volatile(&raw const (*scope).levels) }
}

/// What rules there are, and which generation of them.
#[inline(always)]
pub(crate) fn rules(scope: *const Scope) -> u64 {
    // SAFETY: as in `levels`.
    unsafe { core::ptr::read_volatile(&raw const (*scope).rules) }
}

/// May this cgroup be governed?
#[inline(always)]
fn may_be(scope: *const Scope, cgroup: u64) -> bool {
    let (word, bit) = place(cgroup);
    // SAFETY: as in `levels`; `word` is below the count of words.
    let known = unsafe {
        let words = (&raw const (*scope).filter).cast::<u64>();
        core::ptr::read_volatile(words.add(word & (FILTER_WORDS - 1)))
    };
    known & bit != 0
}

/// Is it one that there was no room for?
#[inline(always)]
fn is_beyond(cgroup: u64) -> bool {
    let Some(beyond) = BEYOND.get_ptr(0) else {
        return false;
    };
    let (word, bit) = Beyond::place(cgroup);
    // SAFETY: as in `may_be`.
    let bits =
        unsafe { core::ptr::read_volatile(beyond.cast::<u64>().add(word & (BEYOND_WORDS - 1))) };
    bits & bit != 0
}

/// What a walk over the levels goes by, and what it has found.
struct Walk {
    /// The packet, if it is about its socket's cgroup.
    skb: *mut __sk_buff,
    /// The cgroup, if it is about that one.
    cgroup: u64,
    /// Levels at which something is governed.
    levels: u64,
    /// The deepest governed cgroup.
    found: u64,
    /// Whose it is; 0: none was found.
    workload: u64,
    /// What holds of all of them.
    conditions: u64,
}

impl Walk {
    #[inline(always)]
    fn new(scope: *const Scope) -> Self {
        Self {
            skb: core::ptr::null_mut(),
            cgroup: 0,
            levels: levels(scope),
            found: 0,
            workload: 0,
            conditions: 0,
        }
    }

    /// To the deepest level, with one of the turns below. The first that counts is asked here, and mostly it is the only one:
    /// a loop costs more than it.
    #[inline(always)]
    fn go(
        &mut self,
        of: impl Fn(&Self, i32) -> u64,
        turn: extern "C" fn(u64, *mut Self) -> i64,
    ) -> Option<Governed> {
        let first = u64::from(self.levels.trailing_zeros());
        if first < u64::from(MAX_LEVEL) && self.turn(first, of) == GO_ON {
            self.levels &= self.levels.wrapping_sub(1);
            if self.levels != 0 {
                repeat(MAX_LEVEL, turn, self);
            }
        }
        (self.workload != 0).then_some(Governed {
            cgroup: self.found,
            workload: self.workload as u32,
        })
    }

    /// Only levels at which something is governed are asked, and only cgroups that may be governed are
    /// looked up: who is not governed pays next to nothing, also with every packet.
    #[inline(always)]
    fn turn(&mut self, level: u64, ancestor: impl Fn(&Self, i32) -> u64) -> i64 {
        let rest = self.levels >> level;
        if rest == 0 {
            return STOP;
        }
        if rest & 1 == 0 {
            return GO_ON;
        }
        let cgroup = ancestor(self, level as i32);
        let Some(scope) = scope() else { return STOP };
        if cgroup == 0 {
            return STOP;
        }
        if !may_be(scope, cgroup) {
            return GO_ON;
        }
        // SAFETY: the value is read once; a removed entry's memory stays readable.
        let (workload, conditions) = match unsafe { GOVERNED.get(cgroup) } {
            Some(subtree) => (subtree.workload, subtree.conditions),
            None if is_beyond(cgroup) => (u32::from(UNSETTLED), 0),
            None => return GO_ON,
        };
        self.conditions |= conditions;
        if workload != 0 {
            self.found = cgroup;
            self.workload = u64::from(workload);
        }
        GO_ON
    }
}

/// The current task's cgroup at a level.
#[inline(always)]
fn task_at(_: &Walk, level: i32) -> u64 {
    // SAFETY: needed to call a helper. It takes any number and returns 0 below the task's depth.
    unsafe { bpf_get_current_ancestor_cgroup_id(level) }
}

/// That of a packet's socket.
#[inline(always)]
fn socket_at(walk: &Walk, level: i32) -> u64 {
    // SAFETY: as in `task_at`, with the packet that the kernel passed.
    unsafe { bpf_skb_ancestor_cgroup_id(walk.skb, level) }
}

/// That above a cgroup.
#[inline(always)]
fn cgroup_at(walk: &Walk, level: i32) -> u64 {
    ancestor(walk.cgroup, level).unwrap_or(0)
}

/// A turn over the current task's cgroups.
extern "C" fn of_task(level: u64, walk: *mut Walk) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    unsafe { (*walk).turn(level, task_at) }
}

/// A turn over the cgroups of a packet's socket.
extern "C" fn of_socket(level: u64, walk: *mut Walk) -> i64 {
    // SAFETY: as in `of_task`.
    unsafe { (*walk).turn(level, socket_at) }
}

/// A turn over the cgroups above a cgroup.
extern "C" fn of_cgroup(level: u64, walk: *mut Walk) -> i64 {
    // SAFETY: as in `of_task`.
    unsafe { (*walk).turn(level, cgroup_at) }
}

/// Whose a cgroup is, if it is governed.
#[inline(always)]
pub(crate) fn workload_of(cgroup: u64) -> Option<u32> {
    // SAFETY: as in `Walk::turn`.
    let workload = unsafe { GOVERNED.get(cgroup) }?.workload;
    (workload != 0).then_some(workload)
}
