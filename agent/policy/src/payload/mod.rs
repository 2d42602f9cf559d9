//! Protocols that hide many operations behind one route: what a rule says of them, and whether a body is that.
//!
//! The route and the body's limits are decided before; what comes here is a strict JSON tree. A fault names
//! what was asked for, bounded and quoted, and never a value.
mod graphql;
mod grpc;
mod llm;
mod mcp;
mod operations;
#[cfg(test)]
mod tests;
mod value;

use crate::syntax::quote;
use serde_json::{Map, Value};

pub(crate) use graphql::{FieldPaths, Graphql, Listed};
pub(crate) use grpc::is_grpc;
pub(crate) use grpc::{GrpcMethods, GrpcRoute};
pub(crate) use llm::Llm;
pub(crate) use mcp::{Arguments, Mcp, Methods};
pub(crate) use operations::OperationKind;

/// What a rule says of a body whose protocol it names.
#[derive(Debug)]
pub(crate) enum Payload {
    /// Operations and fields.
    Graphql(Graphql),
    /// Methods, tools and their arguments.
    Mcp(Mcp),
    /// Models, tokens and tools.
    Llm(Llm),
}

/// Why a body is denied.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct PayloadFault {
    /// `graphql_field`, `mcp_tool`, `llm_model`, …
    pub(crate) code: &'static str,
    /// What was asked for.
    pub(crate) detail: String,
    /// What to do about it.
    pub(crate) hint: String,
}

impl PayloadFault {
    fn new(code: &'static str, detail: impl Into<String>, hint: impl Into<String>) -> Self {
        Self {
            code,
            detail: detail.into(),
            hint: hint.into(),
        }
    }
}

impl Payload {
    /// Whether a body, read as strict JSON, is what the rule allows.
    pub(crate) fn check(&self, body: &Value) -> Result<(), PayloadFault> {
        match self {
            Self::Graphql(rule) => rule.check(body),
            Self::Mcp(rule) => rule.check(body),
            Self::Llm(rule) => rule.check(body),
        }
    }
}

/// A name, or with a trailing `*` all that begin with what stands before it. Compared exactly, case included.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Glob {
    Exact(Box<str>),
    Prefix(Box<str>),
}

impl Glob {
    /// A `*` stands only at the end.
    pub(crate) fn parse(text: &str) -> Option<Self> {
        let prefix = text.strip_suffix('*');
        if prefix.unwrap_or(text).contains('*') {
            return None;
        }
        Some(match prefix {
            Some(prefix) => Self::Prefix(prefix.into()),
            None => Self::Exact(text.into()),
        })
    }

    pub(crate) fn matches(&self, name: &str) -> bool {
        match self {
            Self::Exact(text) => &**text == name,
            Self::Prefix(prefix) => name.starts_with(&**prefix),
        }
    }
}

/// The first member of an object that is not among `known`.
fn unknown_member<'v>(object: &'v Map<String, Value>, known: &[&str]) -> Option<&'v str> {
    object
        .keys()
        .map(String::as_str)
        .find(|key| !known.contains(key))
}

/// A member that counts as absent where it is null, as most clients write what they leave out.
fn member<'v>(object: &'v Map<String, Value>, name: &str) -> Option<&'v Value> {
    object.get(name).filter(|value| !value.is_null())
}

/// A few names for a hint: quoted, and not more than a reader takes in.
fn some_of<'n>(names: impl IntoIterator<Item = &'n str>) -> String {
    const SHOWN: usize = 8;
    let mut names = names.into_iter();
    let mut text = names.by_ref().take(SHOWN).map(quote).collect::<Vec<_>>();
    if names.next().is_some() {
        text.push("…".to_owned());
    }
    match text.is_empty() {
        true => "none".to_owned(),
        false => text.join(", "),
    }
}
