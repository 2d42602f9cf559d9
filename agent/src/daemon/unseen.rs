//! Processes that wait for what they run to be looked at. Users take turns: who runs one new program after the other has nobody else's wait.
use super::agent::lock;
use crate::kernel::{FileState, owner};
use std::collections::{BTreeMap, VecDeque};
use std::sync::Mutex;
use tokio::sync::Notify;

/// As many wait. Where there are more, who has the most loses the last: its next connection that is refused tells again.
const WAITING: usize = 4_096;

type One = (u32, FileState);
type User = Option<u32>;

/// All of them.
#[derive(Debug, Default)]
pub(super) struct Unseen {
    waiting: Mutex<Waiting>,
    more: Notify,
}

#[derive(Debug, Default)]
struct Waiting {
    by: BTreeMap<User, VecDeque<One>>,
    /// How many they are.
    many: usize,
    /// Whose turn it was.
    last: User,
}

impl Unseen {
    /// One more.
    pub(super) fn add(&self, process: u32, file: FileState) {
        lock(&self.waiting).add(owner(process), (process, file));
        self.more.notify_one();
    }

    /// Whose turn it is, once there is any.
    pub(super) async fn next(&self) -> One {
        loop {
            if let Some(one) = lock(&self.waiting).next() {
                return one;
            }
            self.more.notified().await;
        }
    }
}

impl Waiting {
    fn add(&mut self, user: User, one: One) {
        self.by.entry(user).or_default().push_back(one);
        self.many += 1;
        if self.many > WAITING {
            let most = self.by.iter().max_by_key(|(_, own)| own.len());
            let most = most.map(|(user, _)| *user).unwrap_or_default();
            self.take(most, VecDeque::pop_back);
        }
    }

    fn next(&mut self) -> Option<One> {
        let mut after = self.by.range((
            std::ops::Bound::Excluded(self.last),
            std::ops::Bound::Unbounded,
        ));
        let next = after.next().or_else(|| self.by.first_key_value());
        self.last = *next?.0;
        self.take(self.last, VecDeque::pop_front)
    }

    fn take(&mut self, user: User, take: fn(&mut VecDeque<One>) -> Option<One>) -> Option<One> {
        let own = self.by.get_mut(&user)?;
        let taken = take(own)?;
        if own.is_empty() {
            self.by.remove(&user);
        }
        self.many -= 1;
        Some(taken)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_runs_many_new_programs_has_nobody_else_wait() {
        let mut waiting = Waiting::default();
        let file = FileState {
            device: 1,
            inode: 1,
            changed: (0, 0),
        };
        let one = |process| (process, file);
        let busy = Some(1_000);
        for process in 0..2 * 4_096 {
            waiting.add(busy, one(process));
        }
        assert_eq!(waiting.many, WAITING);
        // His first stay, and others find room.
        for (user, process) in [(Some(1_001), 10_001), (None, 10_002), (Some(0), 10_003)] {
            waiting.add(user, one(process));
        }
        assert_eq!(waiting.many, WAITING);
        let first: Vec<u32> = (0..5)
            .filter_map(|_| waiting.next())
            .map(|(process, _)| process)
            .collect();
        assert_eq!(first, [10_003, 0, 10_001, 10_002, 1]);
        let rest = std::iter::from_fn(|| waiting.next()).count();
        assert_eq!((rest, waiting.many), (WAITING - 5, 0));
        assert!(waiting.by.is_empty());
    }
}
