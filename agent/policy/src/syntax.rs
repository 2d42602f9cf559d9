//! From text to a tree that knows where each part stands, and the faults found on the way.

/// One text to compile: a policy file, or the agent's configuration.
#[derive(Debug, Clone)]
pub struct Source {
    /// What to call it in faults: usually its path.
    pub name: String,
    /// The whole text, UTF-8.
    pub text: String,
}

/// A place in a [`Source`]: one-based line and column (in characters).
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Location {
    /// The source's name.
    pub file: std::sync::Arc<str>,
    /// Line, from 1.
    pub line: u32,
    /// Column in characters, from 1.
    pub column: u32,
}

/// How bad a [`Fault`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// The document is refused.
    Error,
    /// The document is taken, and is probably not what its author meant.
    Warning,
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
    /// The source line, for display.
    pub line_text: String,
}

/// Every fault of a document, in the order of the text. `Display` prints all, each with its source line underlined.
#[derive(Debug, Clone, Default)]
pub struct Faults(pub Vec<Fault>);
