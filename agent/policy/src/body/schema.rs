//! JSON Schema (draft 2020-12) for bodies: what the author says beyond `fields`.
//!
//! [`lint`] refuses what would be ignored without a word (a keyword that is not known), what reaches out of
//! the document, and what makes validation take long; only what is left is given to the library.
mod lint;
mod unique;

use super::BodyFault;
use jsonschema::{Draft, PatternOptions, ValidationError, Validator};
use serde_json::Value;
use std::fmt;

/// Bytes of a pattern's compiled program at most. The library matches it, so that its work cannot be counted as that of
/// other patterns is: what a byte of text costs at worst is bounded by this, at 5 µs.
const MAX_PROGRAM: usize = 16 << 10;
/// Bytes of its matching cache at most.
const MAX_CACHE: usize = 128 << 10;

/// A compiled schema.
pub(crate) struct Schema {
    source: Value,
    validator: Validator,
    /// Whether it refers to itself: then it is only asked whether, and not where, a body fails.
    recursive: bool,
}

/// What is wrong in a schema, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct SchemaFault {
    /// A JSON pointer into the schema.
    pub(crate) pointer: String,
    /// Whether the key there is meant, and not its value.
    pub(crate) key: bool,
    pub(crate) message: String,
    pub(crate) help: Option<String>,
}

impl SchemaFault {
    fn at(pointer: impl Into<String>, message: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            key: false,
            message: message.into(),
            help: None,
        }
    }
}

impl Schema {
    /// Compiles a schema, or says all that is wrong with it.
    pub(crate) fn compile(source: Value) -> Result<Self, Vec<SchemaFault>> {
        let recursive = lint::lint(&source)?;
        let patterns = PatternOptions::regex()
            .size_limit(MAX_PROGRAM)
            .dfa_size_limit(MAX_CACHE);
        let built = jsonschema::options()
            .with_draft(Draft::Draft202012)
            .offline()
            .should_validate_formats(true)
            .should_ignore_unknown_formats(false)
            .with_pattern_options(patterns)
            .with_keyword("uniqueItems", unique::keyword)
            .build(&source);
        match built {
            Ok(validator) => Ok(Self {
                source,
                validator,
                recursive,
            }),
            Err(error) => Err(vec![of_library(&error)]),
        }
    }

    /// Holds a tree against the schema.
    pub(crate) fn check(&self, tree: &Value) -> Result<(), BodyFault> {
        if self.validator.is_valid(tree) {
            return Ok(());
        }
        // Looking for the place tries all branches again and remembers nothing on the way.
        let error = match self.recursive {
            true => None,
            false => self.validator.validate(tree).err(),
        };
        let (pointer, keyword) = error.as_ref().map_or(("", "schema"), |error| {
            (error.instance_path().as_str(), error.kind().keyword())
        });
        Err(BodyFault::Schema {
            pointer: pointer.chars().take(256).collect(),
            keyword: keyword.to_owned(),
        })
    }
}

/// Two schemas of one text are the same.
impl fmt::Debug for Schema {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Schema").field(&self.source).finish()
    }
}

fn of_library(error: &ValidationError<'_>) -> SchemaFault {
    let text = error.masked_with("the value").to_string();
    let text: String = text.chars().filter(|c| !c.is_control()).take(200).collect();
    let message = format!("the schema is not valid here: {text}");
    SchemaFault::at(error.instance_path().as_str(), message)
}
