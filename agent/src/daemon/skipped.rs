//! Notices what the kernel did not show to the hooks.
use std::collections::BTreeMap;

/// How often the kernel has skipped hooks since the agent loaded them: what counts them is new with each agent.
#[derive(Debug, Default)]
pub(super) struct Skipped(BTreeMap<&'static str, u64>);

impl Skipped {
    /// Takes what the kernel says now; whether any was skipped since it was asked last.
    pub(super) fn take(&mut self, now: BTreeMap<&'static str, u64>) -> bool {
        let mut any = false;
        for (hook, count) in now {
            let before = self.0.insert(hook, count).unwrap_or(0);
            if count > before {
                any = true;
                tracing::warn!(
                    hook,
                    times = count - before,
                    "the kernel did not call a hook, since another process was within it on that processor: all that is \
                     governed is enrolled again"
                );
            }
        }
        any
    }

    /// Those that were.
    pub(super) fn counts(&self) -> BTreeMap<String, u64> {
        let counts = self.0.iter().filter(|(_, count)| **count > 0);
        let named = counts.map(|(hook, count)| ((*hook).to_owned(), *count));
        named.collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_grows_is_noticed_once() {
        let mut skipped = Skipped::default();
        let counts = |fork, exec| BTreeMap::from([("fork", fork), ("exec", exec)]);
        assert!(!skipped.take(counts(0, 0)));
        assert!(skipped.counts().is_empty());
        assert!(skipped.take(counts(2, 0)));
        assert!(!skipped.take(counts(2, 0)));
        // One that could not be asked is what it was.
        assert!(!skipped.take(BTreeMap::from([("exec", 0)])));
        assert!(!skipped.take(counts(2, 0)));
        assert!(skipped.take(counts(3, 1)));
        let told = [("exec".to_owned(), 1), ("fork".to_owned(), 3)];
        assert_eq!(skipped.counts(), BTreeMap::from(told));
    }

    #[test]
    fn what_was_skipped_before_the_first_check_is_noticed() {
        let mut skipped = Skipped::default();
        assert!(skipped.take(BTreeMap::from([("fork", 1)])));
    }
}
