//! The published JSON Schema of the document.

/// A JSON Schema (2020-12) of policy documents, for editors: it completes and explains keys, and marks most of what
/// [`compile`](crate::compile()) refuses. What it cannot say, such as whether a name is defined, only the compiler knows.
pub const SCHEMA: &str = include_str!("../schema/policy.schema.json");
