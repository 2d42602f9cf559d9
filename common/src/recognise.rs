//! How processes are recognised: what the hooks know of each, and by what the agent has them know it.
use crate::{limits::MAX_LEVEL, pod};

/// Every process id that a kernel gives (`PID_MAX_LIMIT`): with an entry for each, `PROCESSES` is never full.
pub const MAX_PROCESSES: u32 = 4 << 20;
/// Words of [`Scope::filter`].
pub const FILTER_WORDS: usize = 64;

/// What is known of one process: a value of `PROCESSES`, at its thread-group id.
///
/// Governed: the workload, 16 bits; how it came to be, 16 bits; when, 30 bits, in seconds since boot; two bits of what it
/// has open. Otherwise 16 bits of zero, 16 bits of what executable it runs, and 32 bits that say for what the rules were
/// last asked in vain, or what it waits for.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Mark(pub u64);

/// [`Mark::workload`] of the agent itself, which nothing steers.
pub const EXEMPT: u16 = u16::MAX;
/// A workload's id that no workload has: what is refused until the agent knows whose it is.
pub const UNSETTLED: u16 = u16::MAX - 1;
/// Workloads have ids below this one: a mark has 16 bits for them.
pub const WORKLOAD_IDS: u32 = UNSETTLED as u32;
/// [`Mark::class`]: what it runs was not looked at, or is not known yet.
pub const UNKNOWN: u16 = 0;
/// [`Mark::class`]: what it runs is none of the executables that rules name.
pub const OTHER: u16 = 1;
/// [`Mark::class`]: it is refused until it is known what it, or who made it, has run. The other half is a key of `WAITING`.
const WAITS: u16 = u16::MAX;
/// First class of an executable that rules name.
pub const FIRST_CLASS: u16 = 2;
/// [`Mark::how`]: it was in a governed cgroup.
pub const BY_CGROUP: u16 = 0;
/// [`Mark::how`], a bit: its parent was what the rest says, and it inherited.
pub const INHERITED: u16 = 1 << 15;
/// In a governed process's seconds, which do not reach it: it has become no other program since it was first governed.
const EARLIER: u64 = 1 << 63;
/// Likewise: the agent governed it, or who made it, while that one ran, and what it has open is still to be looked at.
const UNSEEN_OPEN: u64 = 1 << 62;
/// What is left of the upper half for seconds since boot: 34 years.
const SECONDS: u32 = (1 << 30) - 1;

impl Mark {
    /// Of a governed process; `seconds` since boot.
    #[inline(always)]
    pub const fn governed(workload: u16, how: u16, seconds: u32) -> Self {
        Self(workload as u64 | (how as u64) << 16 | ((seconds & SECONDS) as u64) << 32)
    }

    /// Of a process that is not governed and runs an executable of this class.
    #[inline(always)]
    pub const fn running(class: u16) -> Self {
        Self((class as u64) << 16)
    }

    /// Of a process that is not governed and waits for a program to be known; 0: nobody can say for which.
    #[inline(always)]
    pub const fn waiting(number: u32) -> Self {
        Self::running(WAITS).stamped(number)
    }

    /// What it waits for.
    #[inline(always)]
    pub const fn awaits(self) -> Option<u32> {
        match (self.workload(), self.class()) {
            (0, WAITS) => Some(self.stamp()),
            _ => None,
        }
    }

    /// The same, for whom the rules were asked in vain, `stamp` being theirs and the user's.
    #[inline(always)]
    pub const fn stamped(self, stamp: u32) -> Self {
        Self(self.0 as u32 as u64 | (stamp as u64) << 32)
    }

    /// What executable it runs, if it is not governed.
    #[inline(always)]
    pub const fn class(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// For what the rules were last asked in vain, if it is not governed.
    #[inline(always)]
    pub const fn stamp(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// Whose it is; 0: nobody's.
    #[inline(always)]
    pub const fn workload(self) -> u16 {
        self.0 as u16
    }

    /// How it came to be governed: [`BY_CGROUP`], or a rule's number and 1; [`INHERITED`].
    #[inline(always)]
    pub const fn how(self) -> u16 {
        (self.0 >> 16) as u16
    }

    /// When, in seconds since boot.
    #[inline(always)]
    pub const fn seconds(self) -> u32 {
        (self.0 >> 32) as u32 & SECONDS
    }

    /// Is it a workload's?
    #[inline(always)]
    pub const fn is_governed(self) -> bool {
        !matches!(self.workload(), 0 | EXEMPT | UNSETTLED)
    }

    /// The same of a process that is governed from now on, `before` having been its mark or its maker's: what it has open may be
    /// from before, unless that one was governed already, and its program had begun so.
    #[inline(always)]
    pub const fn after(self, before: Self) -> Self {
        if !before.is_governed() {
            return Self(self.0 | EARLIER);
        }
        Self(self.0 | before.0 & (EARLIER | UNSEEN_OPEN))
    }

    /// The same of a process whose sockets, and those of what it makes, are to be looked at.
    #[inline(always)]
    pub const fn to_be_looked_at(self) -> Self {
        Self(self.0 | UNSEEN_OPEN)
    }

    /// The same once they were.
    #[inline(always)]
    pub const fn looked_at(self) -> Self {
        Self(self.0 & !UNSEEN_OPEN)
    }

    /// Is what a governed process has open still to be looked at?
    #[inline(always)]
    pub const fn is_to_be_looked_at(self) -> bool {
        self.is_governed() && self.0 & UNSEEN_OPEN != 0
    }

    /// May a governed process have open what it had before it was governed?
    #[inline(always)]
    pub const fn has_earlier(self) -> bool {
        self.0 & EARLIER != 0
    }

    /// The same of a process that has become another program: what it still has open was handed to that one.
    #[inline(always)]
    pub const fn as_another_program(self) -> Self {
        Self(self.0 & !EARLIER)
    }

    /// Of a child of this process, made at `seconds`.
    #[inline(always)]
    pub const fn inherited(self, seconds: u32) -> Self {
        match self.workload() {
            EXEMPT => Self(0),
            0 => self,
            workload => Self::governed(workload, self.how() | INHERITED, seconds).after(self),
        }
    }
}

/// Where something may be governed, and by what: the one entry of `SCOPE`, words that hooks and agent write at the same time,
/// atomically. Of levels and filter, bits are only ever added, so that a change never hides something else.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scope {
    /// Bit N: some governed subtree may have its root at cgroup level N.
    pub levels: u64,
    /// Bits of [`place`] of every governed cgroup: one whose bit is not set is not governed, and need not be looked up.
    pub filter: [u64; FILTER_WORDS],
    /// Bits of [`ANY_RULE`], [`BY_EXECUTABLE`], [`BY_DIGEST`], [`BY_CONTAINER`]; the upper half is another number with each
    /// change of the rules.
    pub rules: u64,
    /// [`Shape`]s of the cgroup paths that are looked for; 0: none.
    pub shapes: [u64; SHAPES],
}

/// [`Scope::rules`]: there are rules.
pub const ANY_RULE: u64 = 1;
/// [`Scope::rules`]: some name executables.
pub const BY_EXECUTABLE: u64 = 2;
/// [`Scope::rules`]: some name executables by their content, which only the agent can look at.
pub const BY_DIGEST: u64 = 4;
/// [`Scope::rules`]: some name containers, which only the agent can look up.
pub const BY_CONTAINER: u64 = 8;

/// Shapes of cgroup paths that are looked for at once.
pub const SHAPES: usize = 32;

/// Cgroup paths that are alike: so many names deep, and at the same places any name. One word of [`Scope::shapes`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Shape(pub u64);

impl Shape {
    /// `stars`: bit N, any name at level N. `slices`: all but the last name must end in `.slice`.
    #[inline(always)]
    pub const fn new(depth: u32, stars: u32, slices: bool, generation: u32) -> Self {
        let head = (depth & 0x7f) | (slices as u32) << 7 | generation << 8;
        Self(head as u64 | (stars as u64) << 32)
    }

    /// How many names deep.
    #[inline(always)]
    pub const fn depth(self) -> u32 {
        self.0 as u32 & 0x7f
    }

    /// Must all but the last name end in `.slice`?
    #[inline(always)]
    pub const fn slices(self) -> bool {
        self.0 & 0x80 != 0
    }

    /// The generation of `STEPS` that it is of.
    #[inline(always)]
    pub const fn generation(self) -> u32 {
        self.0 as u32 >> 8
    }

    /// Bit N: any name at level N.
    #[inline(always)]
    pub const fn stars(self) -> u32 {
        (self.0 >> 32) as u32
    }

    /// The same paths of another generation.
    pub const fn is_like(self, other: Self) -> bool {
        self.depth() == other.depth()
            && self.slices() == other.slices()
            && self.stars() == other.stars()
    }
}

/// Bytes of a cgroup's name, with its closing NUL: more than the kernel lets one have.
pub const CGROUP_NAME: usize = 256;
/// Names and steps of cgroup paths that are looked for.
pub const MAX_STEPS: u32 = 131_072;
/// The name that stands for any.
pub const ANY_NAME: u32 = u32::MAX;
/// Nodes of a generation; the first is its root.
pub const NODES: u32 = 1 << 20;
/// Generations, after which numbers begin again.
pub const GENERATIONS: u32 = 1 << 12;

/// From the way so far, by one more name: the key of `STEPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Step {
    /// `generation * NODES` and a number.
    pub node: u32,
    /// A value of `NAMES`, or [`ANY_NAME`].
    pub name: u32,
}

/// Where a step leads: a value of `STEPS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Arrival {
    /// The next node.
    pub node: u32,
    /// Who has a cgroup whose path ends here; 0: nobody.
    pub workload: u32,
    /// Of several, the lowest has it.
    pub rank: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// What conditions such a path fulfils.
    pub conditions: u64,
}

/// Bytes of an executable's name that are looked at, with its closing NUL; longer ones are cut.
pub const EXE_NAME: usize = 64;
/// Executables that are known at once.
pub const MAX_EXECUTABLES: u32 = 65_536;
/// Rules at once, of every kind of executable.
pub const MAX_RULES: u32 = 65_536;
/// Conditions on cgroups that rules may combine with others: one bit each.
pub const MAX_CONDITIONS: u32 = 64;
/// Conditions that hold for one process and that rules are asked with.
pub const ASKED: u32 = 8;

/// A file: the key of `EXECUTABLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct File {
    /// Its inode.
    pub inode: u64,
    /// Its device, in the kernel's encoding: major << 20 | minor.
    pub device: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// What is known of a file: a value of `EXECUTABLES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Executable {
    /// When it was last changed, seconds: another time, another content.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// [`OTHER`], or what rules call it; [`UNKNOWN`], and above its 16 bits the second in which the agent was asked.
    pub class: u32,
}

/// Programs at once that were run before they were known, each with those before it.
pub const MAX_WAITING: u32 = 16_384;
/// Programs that one process may wait for. Who has run more is refused until it ends.
pub const MAX_BEFORE: u32 = 16;

/// A program that was run and that a rule could mean, and how it was run: a value of `WAITING`. Who ran it waits, and so does
/// all that it makes, whatever that runs since.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Waiting {
    /// The file that it is.
    pub file: File,
    /// When that was last changed, seconds.
    pub seconds: i64,
    /// What conditions held for its cgroups.
    pub conditions: u64,
    /// When it was last changed, nanoseconds.
    pub nanoseconds: u32,
    /// The real user.
    pub uid: u32,
    /// What it waited for already then: another key; 0: nothing.
    pub before: u32,
    /// How many programs those are.
    pub depth: u32,
    /// Its class, if it is known.
    pub class: u32,
    /// The second in which the agent was asked.
    pub asked: u32,
}

impl Waiting {
    /// Is it the same program, run in the same way? One comparison: the verifier looks at all that follows once for each outcome of each.
    #[inline(always)]
    pub fn is_like(&self, other: &Self) -> bool {
        let differs = (self.file.inode ^ other.file.inode)
            | (self.seconds ^ other.seconds) as u64
            | (self.conditions ^ other.conditions)
            | u64::from(self.file.device ^ other.file.device)
            | u64::from(self.nanoseconds ^ other.nanoseconds)
            | u64::from(self.uid ^ other.uid);
        differs == 0
    }

    /// The key that it has unless another one has that, never 0. Everybody's who has run the same is the same.
    #[inline(always)]
    pub fn number(&self) -> u32 {
        let words = [
            self.file.inode,
            self.seconds as u64,
            self.conditions,
            self.file.device as u64 | (self.nanoseconds as u64) << 32,
            self.uid as u64 | (self.before as u64) << 32,
        ];
        let mut sum = 0_u64;
        for word in words {
            sum = (sum ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
            sum ^= sum >> 32;
        }
        sum as u32 | 1
    }
}

/// What must hold for a rule: the key of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Case {
    /// A condition's bit and 1; 0: in whatever cgroup.
    pub condition: u32,
    /// A class; [`OTHER`]: whatever it runs; [`UNKNOWN`]: not known yet, and some class would do.
    pub class: u32,
    /// The real user.
    pub uid: u32,
    /// 1: whoever the user is; `uid` is 0 then.
    pub any_user: u32,
}

/// Who has it: a value of `RULES`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Rule {
    /// Key into `WORKLOADS`.
    pub workload: u32,
    /// Of several, the lowest has it.
    pub rank: u32,
    /// The rule's number, which marks tell.
    pub number: u32,
    /// What its condition's bit means, for the agent that gives bits next; 0: nobody has said.
    pub meaning: u32,
}

/// `kind` of a [`Unseen`], after those of `event`.
pub const UNSEEN: u32 = 5;

/// A process runs what the agent has to look at: sent through `EVENTS`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unseen {
    /// [`UNSEEN`].
    pub kind: u32,
    /// Thread-group id.
    pub process: u32,
    /// What it runs.
    pub file: File,
    /// When that was last changed, seconds.
    pub seconds: i64,
    /// And nanoseconds.
    pub nanoseconds: u32,
    /// Explicit padding.
    pub reserved: u32,
}

/// Where a cgroup's bit is in [`Scope::filter`]: the word, and its bit. Ids are numbers that follow each other.
#[inline(always)]
pub const fn place(cgroup: u64) -> (usize, u64) {
    (
        cgroup as usize & (FILTER_WORDS - 1),
        1 << ((cgroup / FILTER_WORDS as u64) & 63),
    )
}

/// Words of [`Beyond`].
pub const BEYOND_WORDS: usize = 1 << 16;

/// Cgroups that are to be governed and that `GOVERNED` has no room for: the one entry of `BEYOND`. They are refused.
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Beyond {
    /// Bits of [`Beyond::place`]. Two cgroups share one only if four million were made between them.
    pub bits: [u64; BEYOND_WORDS],
}

impl Beyond {
    /// Where a cgroup's bit is: the word, and its bit.
    #[inline(always)]
    pub const fn place(cgroup: u64) -> (usize, u64) {
        (
            cgroup as usize & (BEYOND_WORDS - 1),
            1 << ((cgroup / BEYOND_WORDS as u64) & 63),
        )
    }
}

/// A governed cgroup subtree: a value of `GOVERNED`.
#[repr(C)]
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Subtree {
    /// Key into `WORKLOADS`, or [`UNSETTLED`]; 0: only `conditions` are known of it.
    pub workload: u32,
    /// Explicit padding.
    pub reserved: u32,
    /// Bit N: the N-th condition on cgroups holds in it.
    pub conditions: u64,
}

const _: () = assert!(size_of::<Mark>() == 8);
const _: () = assert!(size_of::<Scope>() == 8 * (2 + FILTER_WORDS + SHAPES));
const _: () = assert!(size_of::<Subtree>() == 16);
const _: () = assert!(size_of::<Step>() == 8);
const _: () = assert!(size_of::<Arrival>() == 24);
const _: () = assert!(size_of::<File>() == 16);
const _: () = assert!(size_of::<Executable>() == 16);
const _: () = assert!(size_of::<Case>() == 16);
const _: () = assert!(size_of::<Rule>() == 16);
const _: () = assert!(size_of::<Unseen>() == 40);
const _: () = assert!(size_of::<Waiting>() == 56);
const _: () = assert!(crate::limits::MAX_WORKLOADS < WORKLOAD_IDS);
const _: () = assert!(MAX_LEVEL <= 32);
pod!(
    Mark, Scope, Subtree, Step, Arrival, File, Executable, Case, Rule, Unseen, Waiting
);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_child_inherits_all_but_exemption() {
        let parent = Mark::governed(7, BY_CGROUP, 100);
        let child = parent.inherited(101);
        assert!(child.is_governed());
        assert_eq!((child.workload(), child.seconds()), (7, 101));
        assert_eq!(child.how(), BY_CGROUP | INHERITED);
        assert_eq!(child.inherited(102).how(), BY_CGROUP | INHERITED);
        assert_eq!(Mark::governed(EXEMPT, 0, 1).inherited(2), Mark(0));
        assert_eq!(Mark::running(3).inherited(2), Mark::running(3));
        assert!(!Mark::running(u16::MAX).is_governed());
        assert!(!Mark::governed(EXEMPT, 0, 1).is_governed());
    }

    #[test]
    fn what_is_open_may_be_from_before_until_the_program_is_another() {
        let first = Mark::governed(7, 9, 100).after(Mark::running(3));
        assert!(first.has_earlier() && first.is_governed());
        assert_eq!(
            (first.workload(), first.how(), first.seconds()),
            (7, 9, 100)
        );
        assert!(first.inherited(101).has_earlier());
        assert_eq!(first.inherited(101).seconds(), 101);
        let anew = first.as_another_program();
        assert_eq!(anew, Mark::governed(7, 9, 100));
        assert!(!anew.inherited(101).has_earlier());
        // To be looked at is a process through all that it becomes, and what it makes, until it was.
        let unseen = first.to_be_looked_at();
        assert!(!first.is_to_be_looked_at() && unseen.is_to_be_looked_at());
        assert!(unseen.as_another_program().is_to_be_looked_at());
        assert!(
            unseen
                .as_another_program()
                .inherited(101)
                .is_to_be_looked_at()
        );
        assert!(Mark::governed(8, 9, 100).after(unseen).is_to_be_looked_at());
        assert_eq!(unseen.inherited(101).seconds(), 101);
        assert_eq!(unseen.looked_at(), first);
        assert!(!Mark::running(3).to_be_looked_at().is_to_be_looked_at());
        assert!(!Mark::governed(8, 9, 100).after(anew).has_earlier());
        assert!(Mark::governed(8, 9, 100).after(first).has_earlier());
        assert!(
            Mark::governed(8, 9, 100)
                .after(Mark::governed(EXEMPT, 0, 1))
                .has_earlier()
        );
    }

    #[test]
    fn shapes_keep_what_they_are_made_of() {
        let shape = Shape::new(31, 0x8000_0002, true, GENERATIONS - 1);
        assert_eq!((shape.depth(), shape.stars()), (31, 0x8000_0002));
        assert!(shape.slices());
        assert_eq!(shape.generation(), GENERATIONS - 1);
        assert!(shape.is_like(Shape::new(31, 0x8000_0002, true, 0)));
        assert!(!shape.is_like(Shape::new(31, 0x8000_0002, false, 0)));
    }

    #[test]
    fn who_waits_waits_with_all_that_it_makes() {
        let mark = Mark::waiting(9);
        assert_eq!((mark.awaits(), mark.is_governed()), (Some(9), false));
        assert_eq!(mark.inherited(5), mark);
        assert_eq!(Mark::running(9).stamped(9).awaits(), None);
        assert_eq!(Mark::governed(7, WAITS, 9).awaits(), None);
    }

    #[test]
    fn a_stamp_leaves_the_class() {
        let mark = Mark::running(7).stamped(9);
        assert_eq!((mark.class(), mark.stamp(), mark.workload()), (7, 9, 0));
        assert_eq!(mark.stamped(10), Mark::running(7).stamped(10));
    }

    #[test]
    fn every_cgroup_has_a_place_in_the_filter() {
        assert_eq!(place(0), (0, 1));
        assert_eq!(place(65), (1, 2));
        assert_eq!(place(u64::MAX), (63, 1 << 63));
    }
}
