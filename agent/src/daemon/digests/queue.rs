//! Files that wait to be read. Those in whose names they are take turns, so that whoever runs many has nobody else's wait.
use super::At;
use crate::kernel::FileState;
use std::collections::{BTreeMap, HashSet, VecDeque};
use std::time::{Duration, Instant};

/// Files that wait to be read. Where there are more, who has the most loses the last: who runs that is refused, and asks again.
const WAITING: usize = 4_096;
/// Of those, how many are held: each has a descriptor.
const HELD: usize = 64;
/// Files that are read at once.
const AT_ONCE: usize = 8;
/// Of those, large ones.
const LARGE_AT_ONCE: usize = 4;
/// One that takes longer has its place taken by the next, as long as there are not too many of them.
const LATE: Duration = Duration::from_secs(30);
/// The same of a large one.
const LARGE_LATE: Duration = Duration::from_secs(300);
const AT_ONCE_WITH_LATE: usize = 64;
/// Of one user's files, how many are read at once, and with those that are late.
const OF_USER: (usize, usize) = (2, 4);
/// Of root's.
const OF_ROOT: (usize, usize) = (6, 32);

/// In whose name a file is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(in super::super) enum Owner {
    /// Nobody's: it lies at a path that policy names.
    Named,
    /// Of this real user a process runs it, or has.
    User(u32),
}

impl Owner {
    fn share(self) -> (usize, usize) {
        match self {
            Self::User(0) => OF_ROOT,
            Self::Named | Self::User(_) => OF_USER,
        }
    }
}

/// A file that is to be read.
#[derive(Debug)]
pub(super) struct Asked {
    pub(super) at: At,
    pub(super) state: FileState,
    pub(super) owner: Owner,
    pub(super) is_large: bool,
}

/// One that is being read.
#[derive(Debug)]
pub(super) struct Reading {
    pub(super) since: Instant,
    pub(super) owner: Owner,
    pub(super) is_large: bool,
}

impl Reading {
    fn is_late(&self) -> bool {
        self.since.elapsed() > if self.is_large { LARGE_LATE } else { LATE }
    }
}

/// One owner's, small ones first.
type Own = [VecDeque<Asked>; 2];

#[derive(Debug, Default)]
pub(super) struct Queue {
    waiting: BTreeMap<Owner, Own>,
    /// All of them.
    queued: HashSet<(Owner, FileState)>,
    /// Whose turn it was.
    last: Option<Owner>,
}

impl Queue {
    pub(super) fn has(&self, owner: Owner, state: &FileState) -> bool {
        self.queued.contains(&(owner, *state))
    }

    /// Takes one up, if there is room for it.
    pub(super) fn add(&mut self, asked: Asked) {
        let is_held = matches!(asked.at, At::Held(..));
        let has_room =
            !is_held || self.make_room(asked.owner, HELD, |one| matches!(one.at, At::Held(..)));
        if !has_room || !self.make_room(asked.owner, WAITING, |_| true) {
            return;
        }
        self.queued.insert((asked.owner, asked.state));
        let [small, large] = self.waiting.entry(asked.owner).or_default();
        match asked.is_large {
            false => small.push_back(asked),
            true => large.push_back(asked),
        }
    }

    /// Sees to it that there are fewer than `most` of those that count, be it that who has more of them than this one loses the last.
    fn make_room(&mut self, owner: Owner, most: usize, counts: fn(&Asked) -> bool) -> bool {
        if self.queued.len() < most {
            return true; // Without counting them, as mostly.
        }
        let count = |own: &Own| own.iter().flatten().filter(|one| counts(one)).count();
        let each = self.waiting.iter().map(|(owner, own)| (count(own), *owner));
        let each: Vec<(usize, Owner)> = each.collect();
        if each.iter().map(|(count, _)| count).sum::<usize>() < most {
            return true;
        }
        let own = self.waiting.get(&owner).map_or(0, count);
        match each.into_iter().max() {
            Some((longest, other)) if longest > own => self.lose(other, counts),
            _ => false,
        }
    }

    /// Whether one of those that count was taken away: the last one, large ones first.
    fn lose(&mut self, owner: Owner, counts: fn(&Asked) -> bool) -> bool {
        let Some([small, large]) = self.waiting.get_mut(&owner) else {
            return false;
        };
        let last = |own: &mut VecDeque<Asked>| own.remove(own.iter().rposition(counts)?);
        let lost = last(large).or_else(|| last(small));
        if small.is_empty() && large.is_empty() {
            self.waiting.remove(&owner);
        }
        lost.is_some_and(|lost| self.queued.remove(&(owner, lost.state)))
    }

    /// The next whose turn it is to be read, beside those that are.
    pub(super) fn next<'r>(
        &mut self,
        reading: impl Iterator<Item = &'r Reading> + Clone,
    ) -> Option<Asked> {
        let late = |one: &&Reading| one.is_late();
        let (all, all_late) = (
            reading.clone().count(),
            reading.clone().filter(late).count(),
        );
        if all >= (AT_ONCE + all_late).min(AT_ONCE_WITH_LATE) {
            return None;
        }
        let large = reading.clone().filter(|one| one.is_large);
        let may_be_large = large.clone().count() < LARGE_AT_ONCE + large.filter(late).count();
        let may_have = |owner: Owner| {
            let own = reading.clone().filter(|one| one.owner == owner);
            let (share, with_late) = owner.share();
            own.clone().count() < (share + own.filter(late).count()).min(with_late)
        };
        let is_next = |(owner, [small, large]): (&Owner, &Own)| {
            let has_one = !small.is_empty() || may_be_large && !large.is_empty();
            (has_one && may_have(*owner)).then_some(*owner)
        };
        let after = |owner: &Owner| self.last.is_none_or(|last| *owner > last);
        let later = self.waiting.iter().filter(|(owner, _)| after(owner));
        let mut turns = later.chain(self.waiting.iter());
        let owner = turns.find_map(is_next)?;
        self.last = Some(owner);
        self.take(owner)
    }

    /// The first of one owner's.
    fn take(&mut self, owner: Owner) -> Option<Asked> {
        let [small, large] = self.waiting.get_mut(&owner)?;
        let first = small.pop_front().or_else(|| large.pop_front())?;
        if small.is_empty() && large.is_empty() {
            self.waiting.remove(&owner);
        }
        self.queued.remove(&(owner, first.state));
        Some(first)
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::digests::Held;
    use std::sync::Arc;

    const ALICE: Owner = Owner::User(1_000);
    const BOB: Owner = Owner::User(1_001);

    fn asked(owner: Owner, inode: u64, is_large: bool) -> Asked {
        Asked {
            at: At::Process(1, None),
            state: FileState {
                device: 1,
                inode,
                changed: (0, 0),
            },
            owner,
            is_large,
        }
    }

    fn reading(one: &Asked) -> Reading {
        Reading {
            since: Instant::now(),
            owner: one.owner,
            is_large: one.is_large,
        }
    }

    /// Takes as many as may be read at once.
    fn taken(queue: &mut Queue) -> Vec<(Owner, u64)> {
        let (mut beside, mut all) = (Vec::new(), Vec::new());
        while let Some(next) = queue.next(beside.iter()) {
            beside.push(reading(&next));
            all.push((next.owner, next.state.inode));
        }
        all
    }

    #[test]
    fn who_has_many_has_nobody_elses_wait() {
        let mut queue = Queue::default();
        (0..10_000).for_each(|n| queue.add(asked(ALICE, n, true)));
        assert_eq!(queue.queued.len(), WAITING);
        queue.add(asked(BOB, 20_000, true));
        queue.add(asked(BOB, 20_001, false));
        queue.add(asked(BOB, 20_002, false));
        assert_eq!(queue.queued.len(), WAITING, "another's made room");
        assert!(queue.has(BOB, &asked(BOB, 20_000, true).state));
        let first = taken(&mut queue);
        let expected = [(ALICE, 0), (BOB, 20_001), (ALICE, 1), (BOB, 20_002)];
        assert_eq!(first, expected, "in turns, small ones first");
        assert_eq!(queue.queued.len(), WAITING - first.len());
    }

    #[test]
    fn large_ones_and_late_ones_leave_room() {
        let mut queue = Queue::default();
        let users = (0..6).map(|n| Owner::User(2_000 + n));
        for (owner, n) in users.flat_map(|owner| [(owner, 0), (owner, 1)]) {
            queue.add(asked(owner, n, true));
        }
        queue.add(asked(BOB, 2, false));
        assert_eq!(taken(&mut queue).len(), LARGE_AT_ONCE + 1);
        // What a filesystem does not answer for keeps only its own user's waiting.
        let long_ago = Instant::now() - LATE - Duration::from_secs(1);
        let stuck = |owner| Reading {
            since: long_ago,
            owner,
            is_large: false,
        };
        let all: Vec<Reading> = [ALICE; 4].map(stuck).into();
        let mut queue = Queue::default();
        queue.add(asked(ALICE, 1, false));
        assert!(queue.next(all.iter()).is_none());
        queue.add(asked(BOB, 1, false));
        assert_eq!(queue.next(all.iter()).unwrap().owner, BOB);
    }

    #[test]
    fn held_ones_are_bounded_and_do_not_depend_on_how_many_others_wait() {
        let file = std::fs::File::open("/proc/self/exe").unwrap();
        let file = Held(Arc::new(file.into()));
        let held = |owner, inode| Asked {
            at: At::Held(file.clone(), None),
            ..asked(owner, inode, false)
        };
        let mut queue = Queue::default();
        (0..10_000).for_each(|n| queue.add(asked(ALICE, n, false)));
        (0..100).for_each(|n| queue.add(held(BOB, n)));
        assert_eq!(queue.waiting.get(&BOB).unwrap()[0].len(), HELD);
        queue.add(held(ALICE, 30_000));
        queue.add(held(Owner::User(0), 1));
        assert!(queue.has(Owner::User(0), &held(BOB, 1).state));
        assert_eq!(queue.queued.len(), WAITING);
        taken(&mut queue);
        assert!(
            queue
                .waiting
                .values()
                .flatten()
                .all(|own| own.len() <= WAITING)
        );
    }
}
