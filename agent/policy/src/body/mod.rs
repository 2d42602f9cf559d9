//! Bodies: what a rule declares of a request's, whether it is that, and what is cut out of it; and
//! what is taken out of a response's.
//!
//! What was decided on is byte for byte what is sent, but for the members that the rule cuts out.
mod check;
mod edit;
mod form;
mod json;
mod pointer;
mod redact;
mod schema;
#[cfg(test)]
mod tests;
mod tree;

use crate::model::Headers;
use crate::policy::Extra;
use crate::shape::Field;
use serde_json::Value;

pub use json::JsonError;
pub use pointer::Pointer;
pub use redact::{RedactError, Redacted, Redactor, redact};

pub(crate) use pointer::{Pointers, Token, element_number};
pub(crate) use schema::{Schema, SchemaFault};
pub(crate) use tree::json as strict_json;

/// What a rule says of the body.
#[derive(Debug)]
pub(crate) struct BodySpec {
    /// The members at most, by name; `None` where any may be there.
    pub(crate) fields: Option<Vec<Field>>,
    /// Places in `fields` of those that must be there, in order.
    pub(crate) required: Vec<usize>,
    /// What becomes of members that `fields` does not declare.
    pub(crate) extra: Extra,
    /// What is cut out.
    pub(crate) strip: Pointers,
    pub(crate) schema: Option<Schema>,
    /// Bytes at most.
    pub(crate) max: usize,
}

/// What came of a check that holds.
#[derive(Debug, Default)]
pub(crate) struct Checked {
    /// What is to be sent instead; `None` where the body is sent as it came.
    pub(crate) edits: Option<Edited>,
    /// What is sent, as a tree, where the check had to make one.
    pub(crate) tree: Option<Value>,
}

/// A body that something was cut out of.
#[derive(Debug)]
pub(crate) struct Edited {
    pub(crate) body: Vec<u8>,
    /// The pointers that cut something, as the rule has them, and undeclared members, as pointers with `*` for
    /// elements. Sorted, none twice, not more than [`check::MAX_STRIPPED`].
    pub(crate) stripped: Vec<String>,
}

/// How a body is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Media {
    Json,
    Form,
}

/// Why a body is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum BodyFault {
    Absent,
    Type,
    Encoding,
    TooLarge(usize),
    Invalid(String),
    Undeclared(String),
    Value {
        field: String,
        expected: String,
    },
    Twice(String),
    Missing(String),
    /// A pointer to a value that the schema does not take, and the keyword that it fails.
    Schema {
        pointer: String,
        keyword: String,
    },
}

impl From<JsonError> for BodyFault {
    fn from(error: JsonError) -> Self {
        Self::Invalid(error.to_string())
    }
}

impl BodySpec {
    /// Checks what can be known before the body is read.
    pub(crate) fn media(&self, headers: &dyn Headers) -> Result<Media, BodyFault> {
        let mut encoded = false;
        headers.each("content-encoding", &mut |value| {
            encoded |= !value.trim_ascii().eq_ignore_ascii_case(b"identity");
        });
        if encoded {
            return Err(BodyFault::Encoding);
        }
        let (mut count, mut media) = (0, None);
        headers.each("content-type", &mut |value| {
            count += 1;
            media = parse_media(value);
        });
        media.filter(|_| count == 1).ok_or(BodyFault::Type)
    }

    /// Checks a body that was read whole, or one byte further than `max`. What is to be sent has passed all of
    /// the check, and would again with nothing more to cut.
    pub(crate) fn check(&self, media: Media, body: &[u8]) -> Result<Checked, BodyFault> {
        if body.len() > self.max {
            return Err(BodyFault::TooLarge(self.max));
        }
        let edits = match media {
            Media::Json => check::json(self, body)?,
            Media::Form => form::check(self, body)?,
        };
        let Some(schema) = &self.schema else {
            return Ok(Checked { edits, tree: None });
        };
        let sent = edits.as_ref().map_or(body, |edited| &edited.body);
        let tree = self.tree(media, sent)?;
        schema.check(&tree)?;
        Ok(Checked {
            edits,
            tree: Some(tree),
        })
    }

    /// A body as a tree. A form is an object of strings, and of lists of strings where a field is declared as
    /// a list or stands more than once.
    pub(crate) fn tree(&self, media: Media, body: &[u8]) -> Result<Value, BodyFault> {
        match media {
            Media::Json => Ok(tree::json(body)?),
            Media::Form => form::tree(body, self.fields.as_deref()),
        }
    }
}

/// A JSON text as a tree, read as strictly as a body is checked. Integers must fit 64 bits.
pub(crate) fn tree(bytes: &[u8]) -> Result<Value, BodyFault> {
    Ok(tree::json(bytes)?)
}

/// A word of JSON as a number, e.g. of a schema: `None` if it is none, or not one that all readers take alike.
pub(crate) fn json_number(word: &str) -> Option<serde_json::Number> {
    let good = crate::shape::is_json_number(word);
    good.then(|| tree::number(word).ok()).flatten()
}

/// The two media types whose fields are known here, with no parameter but UTF-8.
fn parse_media(value: &[u8]) -> Option<Media> {
    let text = std::str::from_utf8(value).ok()?.to_ascii_lowercase();
    let blank = [' ', '\t'];
    let (essence, parameter) = match text.split_once(';') {
        Some((essence, parameter)) => (essence, Some(parameter.trim_matches(blank))),
        None => (text.as_str(), None),
    };
    if parameter.is_some_and(|text| !matches!(text, "charset=utf-8" | "charset=\"utf-8\"")) {
        return None;
    }
    match essence.trim_matches(blank) {
        "application/json" => Some(Media::Json),
        "application/x-www-form-urlencoded" => Some(Media::Form),
        _ => None,
    }
}
