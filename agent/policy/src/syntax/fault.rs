//! What is wrong in a document, said so that it can be mended.
use super::text::{File, Location, Source};
use std::fmt;
use unicode_width::UnicodeWidthChar;

/// How bad a [`Fault`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is taken, and is probably not what its author meant.
    Warning,
}

impl fmt::Display for Severity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Error => "error",
            Self::Warning => "warning",
        })
    }
}

/// One thing wrong in a document: what, where, and how to mend it.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Fault {
    /// Error or warning.
    pub severity: Severity,
    /// Where it starts.
    pub at: Location,
    /// How many characters it spans on its line, at least 1.
    pub width: u32,
    /// What is wrong.
    pub message: String,
    /// How to mend it.
    pub help: Option<String>,
    /// The source line, for display; at most 200 characters of it.
    pub line_text: String,
    /// Characters of the line that `line_text` leaves out at its start.
    pub line_skipped: u32,
}

impl Fault {
    /// A fault that is found after the document was read, one character wide, with its line from `sources`.
    pub fn found(severity: Severity, at: Location, message: String, sources: &[Source]) -> Self {
        let named = sources.iter().find(|source| *source.name == *at.file);
        let file = named.map(File::new);
        let line = file.as_ref().map_or("", |file| file.line(at.line));
        let (line_text, line_skipped) = Self::excerpt(line, at.column);
        Self {
            severity,
            at,
            width: 1,
            message,
            help: None,
            line_text,
            line_skipped,
        }
    }

    /// The part of a line that is shown for a fault at `column`, and how many characters before it are not.
    pub(super) fn excerpt(line: &str, column: u32) -> (String, u32) {
        let before = usize::try_from(column)
            .unwrap_or(usize::MAX)
            .saturating_sub(1);
        let long = before > Self::MAX_LINE / 2 && line.chars().nth(Self::MAX_LINE).is_some();
        let skipped = if long { before - Self::MAX_LINE / 2 } else { 0 };
        let text = line.chars().skip(skipped).take(Self::MAX_LINE).collect();
        (text, u32::try_from(skipped).unwrap_or(u32::MAX))
    }

    /// Longest part of a source line that a fault carries, in characters.
    pub(super) const MAX_LINE: usize = 200;

    /// The source line with tabs as four columns, and the underline that stands below it.
    fn picture(&self) -> (String, String) {
        let first = self
            .at
            .column
            .saturating_sub(1)
            .saturating_sub(self.line_skipped);
        let last = first.saturating_add(self.width);
        let (mut shown, mut underline) = (String::new(), String::new());
        let mut position = 0_u32;
        for character in self.line_text.chars() {
            let columns = match character {
                '\t' => 4,
                other => other.width().unwrap_or(1),
            };
            match character {
                '\t' => shown.push_str("    "),
                other if other.width().is_none() => shown.push('\u{fffd}'),
                other => shown.push(other),
            }
            if position < last {
                let mark = if position < first { " " } else { "^" };
                underline.push_str(&mark.repeat(columns));
            }
            position = position.saturating_add(1);
        }
        if !underline.contains('^') {
            // The fault stands at the line's end, where there is no character to underline.
            underline.push('^');
        }
        (shown, underline)
    }
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shown, underline) = self.picture();
        let number = self.at.line.to_string();
        let margin = " ".repeat(number.len());
        writeln!(f, "{}: {}: {}", self.at, self.severity, self.message)?;
        writeln!(f, "{margin} |")?;
        writeln!(f, "{number} | {}", shown.trim_end())?;
        writeln!(f, "{margin} | {underline}")?;
        if let Some(help) = &self.help {
            writeln!(f, "{margin} = help: {help}")?;
        }
        Ok(())
    }
}

/// Every fault of a document, in the order of the text. `Display` prints all, each with its source line underlined.
#[derive(Debug, Clone, Default, serde::Serialize)]
#[serde(transparent)]
pub struct Faults(pub Vec<Fault>);

impl Faults {
    /// Whether nothing is wrong.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether the document is to be refused.
    pub fn has_errors(&self) -> bool {
        self.iter().any(|fault| fault.severity == Severity::Error)
    }

    /// Each of them.
    pub fn iter(&self) -> std::slice::Iter<'_, Fault> {
        self.0.iter()
    }
}

impl<'a> IntoIterator for &'a Faults {
    type Item = &'a Fault;
    type IntoIter = std::slice::Iter<'a, Fault>;
    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for Faults {
    type Item = Fault;
    type IntoIter = std::vec::IntoIter<Fault>;
    fn into_iter(self) -> Self::IntoIter {
        self.0.into_iter()
    }
}

impl fmt::Display for Faults {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (index, fault) in self.iter().enumerate() {
            if index > 0 {
                writeln!(f)?;
            }
            fault.fmt(f)?;
        }
        Ok(())
    }
}

impl std::error::Error for Faults {}
