//! `tollgate copies`: what the agent has a process of its own for, see [`crate::kernel::copies`].
use super::Outcome;

/// Makes copies of descriptors for the agent, which has the other end of its standard input.
pub(super) fn run() -> Outcome {
    match crate::kernel::copies::make() {
        Ok(()) => Outcome::Done,
        Err(_) => Outcome::No,
    }
}
