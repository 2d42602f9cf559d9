//! From text to a tree that knows where each part stands, and the faults found on the way.
//!
//! [`Decoder`] parses one or more [`Source`]s into [`Node`]s and reads values out of them. It never
//! stops at the first fault: a value that is wrong is `None` to the caller and a [`Fault`] in
//! [`Decoder::finish`].
//!
//! The language is YAML 1.2 (core schema) without what makes two readers disagree: one document per
//! source, string keys, no key twice, no anchors, aliases, tags or merge keys, no control characters.
//!
//! ```
//! use tollgate_policy::syntax::{Decoder, Source};
//!
//! let source = Source { name: "agent.yaml".into(), text: "prot: 8443\nidle: 5m\n".into() };
//! let mut decoder = Decoder::new();
//! if let Some(root) = decoder.parse(&source) {
//!     if let Some(mut fields) = decoder.fields(&root, "the configuration") {
//!         let port = fields.take("port").and_then(|node| decoder.integer(node, 1..=65_535_u16));
//!         let idle = fields.take("idle").and_then(|node| decoder.duration(node));
//!         fields.finish(&mut decoder);
//!         assert_eq!(port, None);
//!         assert_eq!(idle, Some(std::time::Duration::from_secs(300)));
//!     }
//! }
//! let faults = decoder.finish().unwrap_err();
//! assert_eq!(
//!     faults.to_string(),
//!     "agent.yaml:1:1: error: unknown key `prot` in the configuration\n  \
//!        |\n\
//!      1 | prot: 8443\n  \
//!        | ^^^^\n  \
//!        = help: did you mean `port`? known keys: `idle`, `port`\n"
//! );
//! ```

mod decode;
mod fault;
#[cfg(test)]
mod tests;
mod text;
mod tree;
mod units;

pub use decode::{Decoder, Fields, Remark};
pub use fault::{Fault, Faults, Severity};
pub use text::{Location, Source, Span};
pub use tree::{
    Entry, Key, MAX_DEPTH, MAX_LINE, MAX_NODES, MAX_TEXT, MAX_TEXTS, Node, Scalar, Value,
};
pub use units::{parse_byte_size, parse_duration};

/// User text inside a message: backticks around it, cut to 60 characters, controls escaped.
pub fn quote(text: &str) -> String {
    const KEPT: usize = 60;
    let mut quoted = String::from("`");
    let mut chars = text.chars();
    for character in chars.by_ref().take(KEPT) {
        if character.is_control() || text::is_bidi(character) {
            quoted.extend(character.escape_default());
        } else {
            quoted.push(character);
        }
    }
    if chars.next().is_some() {
        quoted.push('…');
    }
    quoted.push('`');
    quoted
}

/// The one of `known` that `word` was probably meant to be.
pub fn nearest<'k>(word: &str, known: impl IntoIterator<Item = &'k str>) -> Option<&'k str> {
    // Longer words are no typing mistakes, and the distance costs length × length.
    const LONGEST: usize = 64;
    let length = word.chars().take(LONGEST + 1).count();
    if length > LONGEST {
        return None;
    }
    let allowed = (length / 3).clamp(1, 3);
    known
        .into_iter()
        .filter(|candidate| candidate.len() <= LONGEST * 4)
        .map(|candidate| (strsim::damerau_levenshtein(word, candidate), candidate))
        .filter(|(distance, _)| *distance <= allowed)
        .min()
        .map(|(_, candidate)| candidate)
}
