//! Cutting and replacing parts of a text, in the order of the text; the rest stays byte for byte.
use std::ops::Range;

/// The new text, as far as it differs already. Nothing is copied before the first difference.
#[derive(Debug, Default)]
pub(super) struct Edits {
    out: Option<Vec<u8>>,
    /// What of the old text is copied or replaced.
    done: usize,
}

impl Edits {
    /// Puts `with` in the place of `range`, which begins behind all ranges before it.
    pub(super) fn replace(&mut self, text: &[u8], range: Range<usize>, with: &[u8]) {
        let out = self
            .out
            .get_or_insert_with(|| Vec::with_capacity(text.len()));
        out.extend_from_slice(text.get(self.done..range.start).unwrap_or(&[]));
        out.extend_from_slice(with);
        self.done = range.end;
    }

    /// The new text, if it is another.
    pub(super) fn finish(self, text: &[u8]) -> Option<Vec<u8>> {
        let mut out = self.out?;
        out.extend_from_slice(text.get(self.done..).unwrap_or(&[]));
        Some(out)
    }
}
