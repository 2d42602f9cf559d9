//! How much work the patterns of one decision may be.
//!
//! A pattern is matched in time that is linear in the text; but what a byte of text costs grows with the compiled
//! program, to some 300 ns for each KiB of it, and a request has many texts. Whoever decides sets a bound, and each
//! match takes from it what it may cost at worst. Beyond the bound nothing matches, and the decision is a denial.
use std::cell::Cell;

/// Bytes of text times KiB of program in one decision at most: 0.6 s at the very worst, and hardly ever 5 ms.
pub(crate) const MAX: u64 = 1 << 21;
/// What looking costs, in bytes.
const LOOK: u64 = 16;

thread_local! {
    /// What is left; `None` where nobody counts.
    static LEFT: Cell<Option<u64>> = const { Cell::new(None) };
}

/// Counts for as long as it lives. Of two, the inner one's work is not the outer one's.
pub(crate) struct Count {
    outer: Option<u64>,
}

impl Count {
    pub(crate) fn begin() -> Self {
        Self {
            outer: LEFT.replace(Some(MAX)),
        }
    }

    /// Whether something did not match for want of work.
    pub(crate) fn is_used_up(&self) -> bool {
        LEFT.get() == Some(0)
    }
}

impl Drop for Count {
    fn drop(&mut self) {
        LEFT.set(self.outer);
    }
}

/// Takes what a match of so many bytes may cost. Once it failed it goes on failing.
pub(crate) fn take(bytes: usize, size: u32) -> bool {
    let Some(left) = LEFT.get() else { return true };
    let bytes = u64::try_from(bytes).unwrap_or(u64::MAX);
    let cost = bytes.saturating_add(LOOK).saturating_mul(u64::from(size));
    let left = left.saturating_sub(cost);
    LEFT.set(Some(left));
    left > 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_end_with_who_counts() {
        assert!(take(usize::MAX, u32::MAX), "nobody counts");
        let outer = Count::begin();
        assert!(take(1 << 10, 1));
        {
            let inner = Count::begin();
            assert!(!take(1 << 21, 1));
            assert!(inner.is_used_up() && !take(0, 1), "and goes on failing");
        }
        assert!(!outer.is_used_up() && take(1 << 10, 1));
    }
}
