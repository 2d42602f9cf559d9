//! What is valid and probably not meant. The work is bounded; a policy so large that the bound is met gets
//! fewer warnings, never a fault.
mod reach;
mod rules;
mod unused;

use super::rules::Ruled;
use super::subjects::Granted;
use crate::document::Document;
use crate::syntax::Decoder;
use std::collections::BTreeSet;

/// A policy without errors, all of it.
pub(super) struct Whole<'w> {
    pub(super) document: &'w Document<'w>,
    pub(super) ruled: &'w Ruled,
    /// Each role and all that it includes.
    pub(super) closures: &'w [BTreeSet<usize>],
    pub(super) granted: &'w Granted,
}

/// Looks for all of it.
pub(super) fn warn(decoder: &mut Decoder, whole: &Whole<'_>) {
    // What is wrong comes first: half a policy has too much that nothing uses.
    if decoder.errors() > 0 {
        return;
    }
    rules::warn(decoder, whole);
    unused::warn(decoder, whole);
    reach::warn(decoder, whole);
}
