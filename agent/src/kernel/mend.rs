//! Puts back what somebody took away under a running agent.
use super::{Error, Fence, load};

/// A program that was not in force, and what came of putting it back.
#[derive(Debug)]
pub struct Mended {
    /// The layer's name.
    pub layer: &'static str,
    /// Why it was not in force.
    pub why: String,
    /// Whether it is again.
    pub result: Result<(), Error>,
}

impl Fence {
    pub(super) fn put_back(&self) -> Vec<Mended> {
        let programs = self.programs.loaded.iter();
        let gone = programs.filter_map(|program| Some((program, self.why_not(program.hook)?)));
        gone.map(|(program, why)| Mended {
            layer: program.hook.name,
            why,
            result: load::attach_anew(&self.pins, &self.root, program),
        })
        .collect()
    }
}
