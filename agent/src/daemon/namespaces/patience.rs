//! How much of the thread's time who tells of processes may take, of each workload: whoever may make namespaces in which the
//! agent cannot listen is told of without end.
use crate::kernel::bounded::Debt;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Looks in vain that are forgiven.
const FORGIVEN: Duration = Duration::from_millis(50);
/// At most this part of the time is spent in vain beyond that.
const SHARE: u32 = 20;

/// Time that was spent in vain of late, by workload.
#[derive(Debug, Default)]
pub(super) struct Patience(HashMap<Arc<str>, Debt<SHARE>>);

impl Patience {
    /// May this workload be looked at because something told of it? Otherwise the next look through all does.
    pub(super) fn has_some_with(&self, workload: &str, now: Instant) -> bool {
        (self.0.get(workload)).is_none_or(|debt| debt.left(now) < FORGIVEN)
    }

    /// A look took so long, and nothing came of it.
    pub(super) fn spend(&mut self, workload: &Arc<str>, took: Duration, now: Instant) {
        let debt = Debt::more(self.0.get(workload), took, now);
        self.0.insert(Arc::clone(workload), debt);
    }

    /// Forgets who owes nothing.
    pub(super) fn forget(&mut self, now: Instant) {
        self.0.retain(|_, debt| !debt.left(now).is_zero());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_is_told_of_in_vain_without_end_has_its_share_of_the_time() {
        let mut patience = Patience::default();
        let (start, one) = (Instant::now(), Arc::from("one"));
        let took = Duration::from_millis(1);
        let mut looks = 0;
        for millisecond in 0..1000 {
            let now = start + Duration::from_millis(millisecond);
            if patience.has_some_with(&one, now) {
                patience.spend(&one, took, now);
                looks += 1;
            }
        }
        assert!((95..=105).contains(&looks), "{looks}");
        let now = start + Duration::from_secs(1);
        assert!(patience.has_some_with("two", now));
        patience.forget(now);
        assert_eq!(patience.0.len(), 1);
        let later = now + FORGIVEN * SHARE + took * SHARE;
        assert!(patience.has_some_with(&one, later));
        patience.forget(later);
        assert!(patience.0.is_empty());
    }
}
