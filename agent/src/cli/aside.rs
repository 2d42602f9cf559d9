//! `tollgate aside`: what the agent has a process of its own for, see [`crate::kernel::aside`].
use super::Outcome;

/// Does what it is asked by the agent, which has the other end of its standard input.
pub(super) fn run() -> Outcome {
    match crate::kernel::aside::serve() {
        Ok(()) => Outcome::Done,
        Err(_) => Outcome::No,
    }
}
