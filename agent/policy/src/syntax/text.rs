//! Sources and places in them.
use std::sync::Arc;

/// One text to compile: a policy file, or the agent's configuration.
#[derive(Debug, Clone)]
pub struct Source {
    /// What to call it in faults: usually its path.
    pub name: String,
    /// The whole text, UTF-8.
    pub text: String,
}

/// A place in a [`Source`]: one-based line and column (in characters).
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
pub struct Location {
    /// The source's name.
    pub file: Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

impl std::fmt::Display for Location {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}:{}", self.file, self.line, self.column)
    }
}

/// A range of characters on one line of one of a decoder's sources.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// Which of the decoder's sources.
    pub(super) file: u32,
    /// Line, from 1.
    pub(super) line: u32,
    /// Column in characters, from 1.
    pub(super) column: u32,
    /// Characters, at least 1.
    pub(super) width: u32,
}

/// A source with its lines found.
#[derive(Debug)]
pub(super) struct File {
    pub(super) name: Arc<str>,
    text: String,
    /// Byte offset of each line's start.
    starts: Vec<usize>,
}

impl File {
    pub(super) fn new(source: &Source) -> Self {
        let bytes = source.text.as_bytes();
        let breaks = bytes.iter().enumerate().filter_map(|(index, byte)| {
            // A line ends with LF, CR LF or CR alone, as the YAML scanner counts them.
            let ends = *byte == b'\n' || (*byte == b'\r' && bytes.get(index + 1) != Some(&b'\n'));
            ends.then_some(index + 1)
        });
        Self {
            name: source.name.as_str().into(),
            starts: std::iter::once(0).chain(breaks).collect(),
            text: source.text.clone(),
        }
    }

    /// How many lines there are, at least 1; the one behind a last line end counts.
    pub(super) fn lines(&self) -> u32 {
        u32::try_from(self.starts.len()).unwrap_or(u32::MAX)
    }

    /// The first line that is longer than `most` bytes.
    pub(super) fn longer_than(&self, most: usize) -> Option<u32> {
        let ends = self.starts.iter().skip(1).copied();
        let mut lines = self.starts.iter().zip(ends.chain([self.text.len()]));
        let index = lines.position(|(start, end)| end.saturating_sub(*start) > most)?;
        u32::try_from(index + 1).ok()
    }

    /// The text of a line (from 1) without its end; empty where there is no such line.
    pub(super) fn line(&self, line: u32) -> &str {
        let index = usize::try_from(line)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        let Some(&start) = self.starts.get(index) else {
            return "";
        };
        let end = self
            .starts
            .get(index.saturating_add(1))
            .copied()
            .unwrap_or(self.text.len());
        self.text
            .get(start..end)
            .unwrap_or("")
            .trim_end_matches(['\n', '\r'])
    }
}

/// The first character that has no business in a document, with its line and column.
pub(super) fn first_forbidden(text: &str) -> Option<(char, u32, u32)> {
    let (mut line, mut column) = (1_u32, 1_u32);
    let mut previous = '\0';
    for character in text.chars() {
        let tail_of_crlf = previous == '\r' && character == '\n';
        previous = character;
        if character == '\n' || character == '\r' {
            if !tail_of_crlf {
                line = line.saturating_add(1);
            }
            column = 1;
            continue;
        }
        if is_forbidden(character) {
            return Some((character, line, column));
        }
        column = column.saturating_add(1);
    }
    None
}

/// Control characters, and those that make a text look other than it is.
fn is_forbidden(character: char) -> bool {
    (character.is_control() && character != '\t')
        || is_bidi(character)
        || matches!(
            character,
            '\u{feff}' | '\u{fffe}' | '\u{ffff}' | '\u{2028}' | '\u{2029}'
        )
}

/// Characters that reorder the text around them: what a reviewer sees is not what is read.
pub(super) fn is_bidi(character: char) -> bool {
    matches!(character, '\u{61c}' | '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}')
}
