//! The work an evaluation may do.
use std::cell::Cell;

/// Steps of one evaluation at most.
pub(crate) const MAX_STEPS: u32 = 1 << 20;

/// The steps that are left.
#[derive(Debug)]
pub(super) struct Effort(Cell<u32>);

/// There are no steps left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Exhausted;

impl Effort {
    pub(super) fn new() -> Self {
        Self(Cell::new(MAX_STEPS))
    }

    /// Takes steps. Once it failed it goes on failing, so nothing can go on after it.
    pub(super) fn take(&self, steps: usize) -> Result<(), Exhausted> {
        let left = u32::try_from(steps)
            .ok()
            .and_then(|steps| self.0.get().checked_sub(steps));
        self.0.set(left.unwrap_or(0));
        left.map(|_| ()).ok_or(Exhausted)
    }

    /// For text that is read or copied: a step for each 32 bytes.
    pub(super) fn take_text(&self, bytes: usize) -> Result<(), Exhausted> {
        self.take(bytes / 32 + 1)
    }

    /// Whether a step more was wanted than there was.
    pub(super) fn is_exhausted(&self) -> bool {
        self.0.get() == 0
    }
}
