//! Conditions of rules, in CEL.
//!
//! # What is there
//! | written | is |
//! | --- | --- |
//! | `request.method`, `.scheme`, `.host`, `.path` | strings, canonical |
//! | `request.port` | an integer |
//! | `request.query` | a map: name to list of strings |
//! | `request.headers['x-y']`, `'x-y' in request.headers` | the one value of a header; two values are an error |
//! | `request.json`, `request.form` | the body; `has(request.json)` says whether it is one |
//! | `path.NAME` | a path parameter, a string |
//! | `subject.workload`, `.identity`, `.groups` | a string; a string or null; a list of strings |
//! | `now` | a timestamp, UTC |
//!
//! Operators and functions are those of CEL, as far as [`functions`] lists them; errors in `&&`, `||`, `all` and
//! `exists` included: `false && error` is false. Not part of it: bytes, messages, types as values, time zones,
//! and `map` and `filter` of a map, which has no order.
//!
//! # Numbers
//! An integer of a JSON body is an `int`, one above 2^63-1 a `uint`, a number with a fraction or an exponent
//! a `double`. `==`, `!=`, `<`, … and `in` compare all three by value, so that `request.json.n < 10` is true of
//! 3 and of 9.5; an integer beyond 2^53 is rounded where it is held against a `double`. Arithmetic wants one type
//! on both sides: `double(request.json.n) * 1.5`. What overflows, divides by zero or does not convert is an error.
//!
//! # How
//! The `cel` crate parses and evaluates. In between, [`check`] takes its tree apart and makes another one of it,
//! in which there is nothing but what it knows. What the crate leaves open is closed around it: [`parse`] bounds
//! what the parser sees, and gives it a stack; [`run`] bounds the work of an evaluation by [`run::MAX_STEPS`].
//! What takes more is an error like any other, and no `||` hides it.
use crate::canonical::Target;
use crate::model::Headers;
use std::borrow::Cow;
use std::fmt;

mod check;
mod facts;
mod functions;
mod make;
mod parse;
mod run;
#[cfg(test)]
mod tests;

/// Bytes of a condition at most.
pub(crate) const MAX_TEXT: usize = 4 << 10;

/// A condition that is known to make sense.
pub(crate) struct When {
    text: Box<str>,
    root: cel::IdedExpr,
    /// What the names in it stand for.
    slots: Vec<run::Slot>,
    needs: Needs,
}

/// What a condition may name, besides what is always there.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Known<'a> {
    /// The path parameters of the route.
    pub(crate) parameters: &'a [&'a str],
    /// Whether it may look at the body. A deny rule may not.
    pub(crate) body: bool,
}

/// What a condition is evaluated on.
#[derive(Clone, Copy)]
pub(crate) struct Facts<'a> {
    pub(crate) method: &'a str,
    /// `https` or `http`.
    pub(crate) scheme: &'a str,
    pub(crate) host: &'a str,
    pub(crate) port: u16,
    /// The canonical path.
    pub(crate) path: &'a str,
    /// Path parameters by name, decoded.
    pub(crate) parameters: &'a [(&'a str, Cow<'a, str>)],
    /// For its parameters.
    pub(crate) query: &'a Target<'a>,
    pub(crate) headers: &'a dyn Headers,
    /// The body, where it is JSON and [`When::needs_json`].
    pub(crate) json: Option<&'a serde_json::Value>,
    /// The body, where it is a form and [`When::needs_form`].
    pub(crate) form: Option<&'a serde_json::Value>,
    pub(crate) workload: &'a str,
    pub(crate) identity: Option<&'a str>,
    pub(crate) groups: &'a [&'a str],
    /// Unix seconds.
    pub(crate) now: i64,
}

/// What is wrong with a condition, and where.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct WhenFault {
    /// Byte offset in the condition.
    pub(crate) at: usize,
    /// Bytes it spans.
    pub(crate) width: usize,
    /// What is wrong.
    pub(crate) message: String,
    /// How to mend it.
    pub(crate) help: Option<String>,
}

/// Which parts of the body a condition looks at.
#[derive(Debug, Clone, Copy, Default)]
struct Needs {
    json: bool,
    form: bool,
}

/// Bytes from the first up to the second.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: usize,
    end: usize,
}

impl When {
    /// Compiles a condition, or says all that is wrong with it.
    pub(crate) fn parse(text: &str, known: &Known<'_>) -> Result<Self, Vec<WhenFault>> {
        let checked = parse::compile(text, known)?;
        Ok(Self {
            text: text.into(),
            root: checked.root,
            slots: checked.slots,
            needs: checked.needs,
        })
    }

    /// As it was written.
    pub(crate) fn text(&self) -> &str {
        &self.text
    }

    /// Whether it looks at `request.json`.
    pub(crate) fn needs_json(&self) -> bool {
        self.needs.json
    }

    /// Whether it looks at `request.form`.
    pub(crate) fn needs_form(&self) -> bool {
        self.needs.form
    }

    /// Whether it looks at the body at all.
    pub(crate) fn needs_body(&self) -> bool {
        self.needs.json || self.needs.form
    }

    /// The headers that it names, lower-case.
    pub(crate) fn headers(&self) -> impl Iterator<Item = &str> {
        self.slots.iter().filter_map(run::Slot::header)
    }

    /// Whether it holds.
    ///
    /// # Errors
    /// What could not be evaluated, in words that name members of the condition but no values. The request is
    /// to be denied.
    pub(crate) fn holds(&self, facts: &Facts<'_>) -> Result<bool, String> {
        run::holds(self, facts)
    }
}

impl fmt::Debug for When {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "When({:?})", self.text)
    }
}

impl WhenFault {
    fn new(span: Span, message: impl Into<String>) -> Self {
        Self {
            at: span.start,
            width: span.end.saturating_sub(span.start).max(1),
            message: message.into(),
            help: None,
        }
    }

    fn help(mut self, help: impl Into<String>) -> Self {
        self.help = Some(help.into());
        self
    }
}

impl Span {
    fn new(start: usize, end: usize) -> Self {
        Self { start, end }
    }

    /// From where the first of two starts to where the last one ends.
    fn over(self, other: Self) -> Self {
        Self::new(self.start.min(other.start), self.end.max(other.end))
    }
}
