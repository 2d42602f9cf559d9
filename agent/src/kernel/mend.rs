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
        let gone: Vec<_> = gone.collect();
        if gone.iter().any(|(_, why)| !layers::is_unknown(why)) {
            self.note_unseen();
        }
        gone.into_iter()
            .map(|(program, why)| Mended {
                layer: program.hook.name,
                result: (!layers::is_unknown(&why)).then(|| self.attach_again(program)),
                why,
                was_open: true,
            })
            .chain(self.pin_maps())
            .collect()
    }

    fn attach_again(&self, program: &load::Loaded) -> Result<(), Error> {
        self.make_again()?;
        load::attach_anew(&self.pins, &self.root, program)
    }

    /// Makes what pins lie in anew, which may be gone with them, and what it says of the hooks: where that cannot be noted they are put
    /// back all the same.
    fn make_again(&self) -> Result<(), Error> {
        self.pins.make_again()?;
        if let Err(error) = self.pins.note(|hook| self.programs.has(hook)) {
            tracing::error!("the next agent will not know which hooks there were: {error}");
        }
        Ok(())
    }

    /// Notes that hooks were away. Where that cannot be, they are put back all the same.
    fn note_unseen(&self) {
        if let Err(error) = self.pins.note_unseen() {
            tracing::error!("the next agent will not know that hooks were away: {error}");
        }
    }

    /// Says that all that is governed has been looked at since hooks were away, as [`Self::mend`] asks for.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn seen(&self) -> Result<(), Error> {
        self.pins.note_seen()
    }

    /// Is that still to be said, by this agent or since an earlier one?
    pub fn is_unseen(&self) -> bool {
        self.pins.is_unseen()
    }

    /// Pins maps again. The hooks went on by them meanwhile.
    fn pin_maps(&self) -> Option<Mended> {
        let mut gone = self.unpinned();
        // Of what could not be asked it is not known that another hand took it.
        gone.retain(|(_, instead)| !matches!(instead, Unpinned::Unknown(_)));
        (!gone.is_empty()).then(|| Mended {
            layer: "maps",
            why: layers::why_unpinned(&gone),
            result: Some(self.make_again().and_then(|()| {
                gone.iter()
                    .map(|(map, _)| self.pins.pin_again(map))
                    .fold(Ok(()), Result::and)
            })),
            was_open: false,
        })
    }
}
