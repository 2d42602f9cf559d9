//! Recognising who is in no governed cgroup: by user, by executable, and by both within a cgroup.
// A name by value would pass over the stack, which has no room for it.
#![allow(clippy::needless_borrows_for_generic_args)]
use crate::{
    account,
    attribute::{OFFSETS, pointer, read},
    maps::{EVENTS, EXE_NAMES, EXECUTABLES, ROOM, RULES},
    recognise,
    repeat::{GO_ON, STOP, repeat},
    select::{self, BY_MARK},
    waiting,
};
use aya_ebpf::{
    bindings::BPF_ANY,
    helpers::{
        bpf_get_current_uid_gid,
        generated::{bpf_get_current_task, bpf_probe_read_kernel_str},
    },
};
use tollgate_common::recognise::{
    ANY_RULE, ASKED, BY_DIGEST, BY_EXECUTABLE, Case, EXE_NAME, Executable, File, Mark, OTHER, Rule,
    UNKNOWN, UNSEEN, UNSETTLED, Unseen,
};

/// The nanoseconds of a time; the kernel keeps a mark of its own beside them.
const NANOSECONDS: u32 = (1 << 31) - 1;
/// The system's own manager: what it starts is recognised by itself, and would all inherit from it.
const INIT: u32 = 1;

/// Asks the rules whose the current process is, of whose cgroups `conditions` hold: [`BY_MARK`] and the workload, or 0. Asked in vain,
/// they are not asked again until they change, the user does, or what holds.
///
/// The kernel knows it by name, as it does others: such a function the verifier looks at once for each program, and not once
/// for all that may have gone before each call.
#[unsafe(no_mangle)]
#[inline(never)]
pub(crate) extern "C" fn whose_by_rules(conditions: u64) -> u64 {
    let rules = select::scope().map_or(0, select::rules);
    let uid = bpf_get_current_uid_gid() as u32;
    let stamp = stamp(rules, uid, conditions);
    let process = recognise::current();
    let mut mark = recognise::mark(process).unwrap_or_default();
    if rules & ANY_RULE == 0 || process <= INIT {
        return 0;
    }
    if mark.is_governed() {
        return BY_MARK | u64::from(mark.workload()); // Since it was asked whether it is.
    }
    if mark.awaits().is_some() {
        let settled = waiting::settle(process);
        if settled != 0 {
            return settled;
        }
        // That is what it has left: another one is the agent's, and stays.
        mark = Mark::running(UNKNOWN);
    }
    if mark.stamp() == stamp {
        return 0;
    }
    let class = match mark.class() {
        UNKNOWN if rules & BY_EXECUTABLE != 0 => current_class(process),
        known => known,
    };
    let best = Question::of(class, uid, conditions).ask();
    let new = match best.workload() {
        UNSETTLED => {
            if class == UNKNOWN {
                waiting::begin(process);
            }
            return BY_MARK | u64::from(UNSETTLED); // Asked again the next time.
        }
        0 => Mark::running(class).stamped(stamp),
        workload => Mark::governed(workload, best.number() + 1, recognise::now()).after(mark),
    };
    recognise::replace(process, mark, new);
    match best.workload() {
        0 => 0,
        workload => BY_MARK | u64::from(workload),
    }
}

/// A rule in one word: its rank, its workload and its number, from the top. Of several the least has it.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Found(pub(crate) u64);

impl Found {
    /// No rule's.
    pub(crate) const NOBODY: Self = Self((u32::MAX as u64) << 32);
    /// That is not known yet.
    pub(crate) const NOT_YET: Self = Self((UNSETTLED as u64) << 16);

    #[inline(always)]
    fn of(rule: &Rule) -> Self {
        Self(
            u64::from(rule.rank) << 32
                | u64::from(rule.workload as u16) << 16
                | u64::from(rule.number as u16),
        )
    }

    /// Whose it is; 0: nobody's.
    #[inline(always)]
    pub(crate) fn workload(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// The rule's.
    #[inline(always)]
    pub(crate) fn number(self) -> u16 {
        self.0 as u16
    }
}

/// Need the rules not be asked about the current process, whose mark this is?
#[inline(always)]
pub(crate) fn are_asked_in_vain(rules: u64, mark: Mark, conditions: u64) -> bool {
    if rules & ANY_RULE == 0 {
        return true;
    }
    let uid = bpf_get_current_uid_gid() as u32;
    mark.awaits().is_none() && mark.stamp() == stamp(rules, uid, conditions)
}

/// Another number for each change of the rules, each user and whatever holds of the cgroups: a process may be made in others than
/// its maker's, and have threads in several. Never that of who was not asked for.
#[inline(always)]
fn stamp(rules: u64, uid: u32, conditions: u64) -> u32 {
    let stamp = (rules >> 32) as u32 ^ uid ^ spread(conditions);
    if stamp == 0 { 1 } else { stamp }
}

/// Other bits for other ones: those of a user's number do not undo them.
#[inline(always)]
fn spread(conditions: u64) -> u32 {
    (conditions.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as u32
}

/// What the rules are asked by, and the best of what they say.
pub(crate) struct Question {
    pub(crate) conditions: u64,
    pub(crate) class: u64,
    pub(crate) uid: u64,
    pub(crate) best: Found,
}

impl Question {
    /// Of who runs a program of this class in cgroups of which these hold.
    #[inline(always)]
    pub(crate) fn of(class: u16, uid: u32, conditions: u64) -> Self {
        Self {
            conditions,
            class: u64::from(class),
            uid: u64::from(uid),
            best: Found::NOBODY,
        }
    }

    /// Asks the rules of each condition that holds, and those without one.
    #[inline(always)]
    pub(crate) fn ask(mut self) -> Found {
        repeat(ASKED + 1, next, &mut self);
        match self.conditions {
            0 => self.best,
            _ => Found::NOT_YET, // More hold than can be asked: rather nobody's than the wrong one's.
        }
    }

    /// Asks the rules of one condition; 0: those without one.
    #[inline(always)]
    pub(crate) fn ask_of(&mut self, condition: u32) {
        let found = Found(rule_of(condition, self.class as u32, self.uid as u32));
        self.best = self.best.min(found);
    }

    /// Takes the next condition out; 0: there is none.
    #[inline(always)]
    pub(crate) fn take(&mut self) -> u32 {
        let conditions = self.conditions;
        self.conditions = conditions & conditions.wrapping_sub(1);
        match conditions {
            0 => 0,
            _ => conditions.trailing_zeros() + 1,
        }
    }
}

/// Asks those without a condition first, then those of one condition after the other.
extern "C" fn next(turn: u64, question: *mut Question) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let question = unsafe { &mut *question };
    let condition = match turn {
        0 => 0,
        _ => question.take(),
    };
    if turn != 0 && condition == 0 {
        return STOP;
    }
    question.ask_of(condition);
    GO_ON
}

/// The best rule of one condition for who runs a program of this class: a [`Found`].
#[unsafe(no_mangle)]
#[inline(never)]
extern "C" fn rule_of(condition: u32, class: u32, uid: u32) -> u64 {
    let other = u32::from(OTHER);
    let of = |class, uid, any_user| {
        let case = Case {
            condition,
            class,
            uid,
            any_user,
        };
        // SAFETY: a live map value; the memory of a removed one stays readable.
        let rule = RULES.get_ptr(case).map(|rule| unsafe { &*rule });
        rule.map_or(Found::NOBODY, Found::of)
    };
    let mut best = of(other, uid, 0).min(of(other, 0, 1));
    if class != other {
        best = best.min(of(class, uid, 0)).min(of(class, 0, 1));
    }
    best.0
}

/// What class the current process's executable is of, as far as that is known. What is not is told to the agent.
#[inline(never)]
fn current_class(process: u32) -> u16 {
    // SAFETY: needed to call a helper without arguments.
    let task = unsafe { bpf_get_current_task() };
    let Some((file, changed, _)) = executable(task) else {
        return OTHER; // No program of its own.
    };
    let known = known_class(&file, changed.seconds, changed.nanoseconds);
    let class = known.unwrap_or(UNKNOWN);
    if class == UNKNOWN {
        tell(process, &file, &changed);
    }
    class
}

/// What class the program that a process has just become is of.
#[inline(always)]
pub(crate) fn class_at_exec(rules: u64, process: u32, task: u64) -> u16 {
    if rules & BY_EXECUTABLE == 0 {
        return UNKNOWN;
    }
    let Some((file, changed, dentry)) = executable(task) else {
        return UNKNOWN;
    };
    let class = match known_class(&file, changed.seconds, changed.nanoseconds) {
        Some(class) => class,
        None if rules & BY_DIGEST != 0 || is_named(dentry) => UNKNOWN,
        None => OTHER,
    };
    if class == UNKNOWN {
        tell(process, &file, &changed);
    }
    class
}

/// `None`: nothing is known of the file. One that was changed since it was looked at has no class.
#[inline(always)]
pub(crate) fn known_class(file: &File, seconds: i64, nanoseconds: u32) -> Option<u16> {
    // SAFETY: a live map value; the memory of a removed one stays readable.
    let known = unsafe { &*EXECUTABLES.get_ptr(file)? };
    let is_same = known.seconds == seconds && known.nanoseconds == nanoseconds;
    Some(if is_same { known.class as u16 } else { UNKNOWN })
}

/// A task's executable: which file, when it was last changed, and where its name is.
#[inline(always)]
pub(crate) fn executable(task: u64) -> Option<(File, Executable, u64)> {
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the address.
    unsafe {
        let exe = pointer(pointer(task, at.task_mm)?, at.mm_exe_file)?;
        let inode = pointer(exe, at.file_inode)?;
        let file = File {
            inode: read(inode, at.inode_ino)?,
            device: read(pointer(inode, at.inode_sb)?, at.sb_dev)?,
            reserved: 0,
        };
        let changed = Executable {
            seconds: read(inode, at.inode_changed)?,
            nanoseconds: read::<u32>(inode, at.inode_changed_nanoseconds)? & NANOSECONDS,
            class: 0,
        };
        Some((file, changed, pointer(exe, at.file_dentry)?))
    }
}

/// Do rules name an executable that is called like this one?
#[inline(always)]
fn is_named(dentry: u64) -> bool {
    let Some(room) = ROOM.get_ptr_mut(0) else {
        return true;
    };
    // SAFETY: the room is a live map value, all writes are within it, and the name is read through a helper
    // that checks the address.
    unsafe {
        let words = (&raw mut (*room).exe).cast::<u64>();
        for word in 0..EXE_NAME / 8 {
            core::ptr::write_volatile(words.add(word), 0);
        }
        let Some(name) = pointer(dentry, OFFSETS.load().dentry_name) else {
            return true;
        };
        let to = (&raw mut (*room).exe).cast();
        if bpf_probe_read_kernel_str(to, EXE_NAME as u32, name as *const _) <= 0 {
            return true;
        }
        EXE_NAMES.get_ptr(&(*room).exe).is_some()
    }
}

/// Asks the agent to look at a file, once a second. The stack has no room for what is told: it goes into the ring at
/// once, into an entry that is longer.
#[inline(always)]
fn tell(process: u32, file: &File, changed: &Executable) {
    if !was_told(file, changed) {
        send(process, file, changed.seconds, changed.nanoseconds);
    }
}

#[inline(always)]
pub(crate) fn send(process: u32, file: &File, seconds: i64, nanoseconds: u32) {
    let Some(mut entry) = EVENTS.reserve(0) else {
        return account::lost();
    };
    let event = entry.as_mut_ptr().cast::<Unseen>();
    // SAFETY: the entry is ours until submitted, and as long as a `Refused`, which is longer; each field is written.
    unsafe {
        (*event).kind = UNSEEN;
        (*event).process = process;
        (*event).file.inode = file.inode;
        (*event).file.device = file.device;
        (*event).file.reserved = 0;
        (*event).seconds = seconds;
        (*event).nanoseconds = nanoseconds;
        (*event).reserved = 0;
    }
    entry.submit(0);
}

/// Was the agent asked within this second? If not, it is now. Without room to remember it, it is asked each time.
#[inline(always)]
fn was_told(file: &File, changed: &Executable) -> bool {
    // The second stands above the class, which is unknown.
    let now = recognise::now() << 16 | u32::from(UNKNOWN);
    if let Some(known) = EXECUTABLES.get_ptr_mut(file) {
        // SAFETY: a live map value; the memory of a removed one stays writable.
        unsafe {
            let is_same =
                (*known).seconds == changed.seconds && (*known).nanoseconds == changed.nanoseconds;
            let class = core::ptr::read_volatile(&raw const (*known).class);
            if is_same && (class as u16 != UNKNOWN || class == now) {
                return true;
            }
        }
    }
    let asked = Executable {
        seconds: changed.seconds,
        nanoseconds: changed.nanoseconds,
        class: now,
    };
    let _ = EXECUTABLES.insert(file, asked, u64::from(BPF_ANY));
    false
}
