//! What became of many requests in a few lines: how many of each verdict, and each kind of refusal once.
use super::record::{Coverage, Record, Verdict};
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

/// Kinds remembered; with twice as many the older half is forgotten, and counted.
const KINDS: usize = 1024;

/// Requests by what became of them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Counts {
    /// Passed.
    pub allowed: u64,
    /// Refused.
    pub denied: u64,
    /// Passed, and would have been refused in enforce mode.
    pub would_deny: u64,
    /// Failed for another reason.
    pub failed: u64,
    /// Kinds of what did not pass, besides those that are told one by one.
    pub other_kinds: u64,
}

/// What did not pass, and how often.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Repeated {
    /// How often.
    pub times: u64,
    /// The last time.
    pub last: Arc<Record>,
}

/// Counts records as they are added, oldest first; bounded in memory.
#[derive(Debug, Default)]
pub(super) struct Tally {
    counts: Counts,
    kinds: HashMap<u64, Repeated>,
    hashes: RandomState,
}

impl Tally {
    pub(super) fn add(&mut self, record: Record) {
        let count = match record.verdict {
            Verdict::Allow => &mut self.counts.allowed,
            Verdict::Deny | Verdict::Limit => &mut self.counts.denied,
            Verdict::WouldDeny => &mut self.counts.would_deny,
            Verdict::Error => &mut self.counts.failed,
        };
        *count = count.saturating_add(1);
        if record.verdict == Verdict::Allow {
            return;
        }
        let mut hasher = self.hashes.build_hasher();
        record.hash_alike(&mut hasher);
        let last = Arc::new(record);
        let kind = self.kinds.entry(hasher.finish()).or_insert(Repeated {
            times: 0,
            last: Arc::clone(&last),
        });
        kind.times = kind.times.saturating_add(1);
        kind.last = last;
        if self.kinds.len() >= 2 * KINDS {
            self.forget_older();
        }
    }

    fn forget_older(&mut self) {
        let mut kinds: Vec<_> = self.kinds.drain().collect();
        kinds.sort_by_key(|(_, kind)| std::cmp::Reverse(weight(kind)));
        let forgotten = kinds.len().saturating_sub(KINDS);
        self.counts.other_kinds = self.counts.other_kinds.saturating_add(forgotten as u64);
        kinds.truncate(KINDS);
        self.kinds = kinds.into_iter().collect();
    }

    /// The counts, and the last `limit` kinds, newest last. A browser tries names and sockets of its own accord: what
    /// was asked of apis counts as newer than those.
    pub(super) fn finish(mut self, limit: usize) -> (Counts, Vec<Repeated>) {
        let mut kinds: Vec<_> = self.kinds.into_values().collect();
        kinds.sort_by_key(weight);
        let others = kinds.len().saturating_sub(limit);
        self.counts.other_kinds = self.counts.other_kinds.saturating_add(others as u64);
        (self.counts, kinds.split_off(others))
    }
}

fn weight(kind: &Repeated) -> (bool, jiff::Timestamp) {
    (kind.last.coverage == Coverage::Request, kind.last.time)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::tests::{denied, full};
    use super::*;

    fn at(second: i64, change: impl FnOnce(&mut Record)) -> Record {
        let mut record = denied("api.example");
        record.time = jiff::Timestamp::from_second(second).unwrap();
        change(&mut record);
        record
    }

    fn path(record: &mut Record, path: &str) {
        let request = record.request.as_mut().unwrap();
        request.route = None;
        path.clone_into(&mut request.path);
    }

    #[test]
    fn each_kind_is_told_once_and_the_newest_last() {
        let mut tally = Tally::default();
        tally.add(full());
        for second in 0..9_000 {
            tally.add(at(second, |r| {
                path(r, if second == 5 { "/once" } else { "/a" })
            }));
        }
        // What a program does of its own accord comes before what was asked of apis.
        tally.add(at(10_000, |r| r.coverage = Coverage::Dns));
        let (counts, kinds) = tally.finish(10);
        assert_eq!(
            (counts.allowed, counts.denied, counts.other_kinds),
            (1, 9_001, 0)
        );
        let seen: Vec<(u64, i64)> = kinds
            .iter()
            .map(|kind| (kind.times, kind.last.time.as_second()))
            .collect();
        assert_eq!(seen, [(1, 10_000), (1, 5), (8_999, 8_999)]);
    }

    #[test]
    fn no_end_of_kinds_is_held() {
        let mut tally = Tally::default();
        for second in 0..10_000 {
            tally.add(at(second, |r| path(r, &format!("/{second}"))));
            assert!(tally.kinds.len() < 2 * KINDS);
        }
        let (counts, kinds) = tally.finish(2);
        assert_eq!((counts.denied, counts.other_kinds), (10_000, 9_998));
        assert_eq!(kinds[1].last.request.as_ref().unwrap().path, "/9999");
    }

    #[test]
    fn what_a_route_leaves_open_makes_no_other_kind() {
        let mut tally = Tally::default();
        for second in 0..100 {
            tally.add(at(second, |record| {
                path(record, &format!("/v1/things/{second}"));
                record.request.as_mut().unwrap().route = Some("GET /v1/things/{id}".into());
            }));
        }
        assert_eq!(tally.finish(10).1.len(), 1);
    }
}
