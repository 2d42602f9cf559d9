//! How many refusals of one workload are recorded one by one.
use std::time::{Duration, Instant};

/// Refusals a workload may have recorded one by one in a burst, and per second after it. A workload that hammers a
/// closed door must not fill the decision log's queue, on which everybody's requests depend; all are counted.
const BURST: u32 = 500;
/// See [`BURST`].
const PER_SECOND: u32 = 50;

/// A token bucket in whole tokens.
#[derive(Debug)]
pub(crate) struct Allowance {
    left: u32,
    filled: Instant,
}

impl Allowance {
    pub(crate) fn new(now: Instant) -> Self {
        Self {
            left: BURST,
            filled: now,
        }
    }

    /// Whether one more may be recorded.
    pub(crate) fn spend(&mut self, now: Instant) -> bool {
        let each = Duration::from_secs(1) / PER_SECOND;
        let earned = now.saturating_duration_since(self.filled).as_nanos() / each.as_nanos();
        let earned = u32::try_from(earned).unwrap_or(BURST).min(BURST);
        if earned > 0 {
            self.left = self.left.saturating_add(earned).min(BURST);
            self.filled = now;
        }
        let may = self.left > 0;
        self.left = self.left.saturating_sub(1);
        may
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_is_recorded_then_a_trickle() {
        let start = Instant::now();
        let mut allowance = Allowance::new(start);
        let burst = (0..2 * BURST).filter(|_| allowance.spend(start)).count();
        assert_eq!(burst, BURST as usize);
        let later = start + Duration::from_secs(2);
        let trickle = (0..2 * BURST).filter(|_| allowance.spend(later)).count();
        assert_eq!(trickle, 2 * PER_SECOND as usize);
    }
}
