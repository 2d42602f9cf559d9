//! Puts back what somebody took away under a running agent.
mod skipped;

use super::{Error, Fence, layers, load, pins::Unpinned};

/// A layer that was not in force, and what came of putting it back.
#[derive(Debug)]
pub struct Mended {
    /// The layer's name.
    pub layer: &'static str,
    /// Why it was not in force.
    pub why: String,
    /// Whether it is again. `None`: it may have been all the time, and nothing was done.
    pub result: Option<Result<(), Error>>,
    /// Whether something may have passed meanwhile that no hook saw.
    pub was_open: bool,
}

impl Fence {
    pub(super) fn put_back(&self) -> Vec<Mended> {
        self.exempt_nobody_else();
        let programs = self.programs.loaded.iter();
        let gone = programs.filter_map(|program| Some((program, self.why_not(program.hook)?)));
        gone.map(|(program, why)| Mended {
            layer: program.hook.name,
            result: (!layers::is_unknown(&why))
                .then(|| load::attach_anew(&self.pins, &self.root, program)),
            why,
            was_open: true,
        })
        .chain(self.pin_maps())
        .collect()
    }

    /// Pins maps again. The hooks went on by them meanwhile.
    fn pin_maps(&self) -> Option<Mended> {
        let mut gone = self.unpinned();
        // Of what could not be asked it is not known that another hand took it.
        gone.retain(|(_, instead)| !matches!(instead, Unpinned::Unknown(_)));
        (!gone.is_empty()).then(|| Mended {
            layer: "maps",
            why: layers::why_unpinned(&gone),
            result: Some(
                gone.iter()
                    .map(|(map, _)| self.pins.pin_again(map))
                    .fold(Ok(()), Result::and),
            ),
            was_open: false,
        })
    }
}
