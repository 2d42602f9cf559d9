//! What a parameter or field may be.
use crate::work;
use regex::{Regex, RegexBuilder};
use std::fmt;
use std::sync::Arc;

/// What a query parameter, a form field or a JSON value may be.
#[derive(Debug, Clone)]
pub(crate) enum Shape {
    Any,
    Text,
    Int,
    Number,
    Bool,
    Uuid,
    /// Integers from the first to the second, both included.
    Range(i64, i64),
    Pattern(Arc<Pattern>),
    OneOf(Vec<Literal>),
    /// A JSON array, or a parameter that may be repeated.
    List(Box<Shape>),
    Object(Vec<Field>),
}

/// A declared field of an object.
#[derive(Debug, Clone)]
pub(crate) struct Field {
    pub(crate) name: Box<str>,
    pub(crate) shape: Shape,
}

/// A value of an enumeration, as it is written and as JSON has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Literal {
    pub(crate) text: Box<str>,
    pub(crate) kind: LiteralKind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum LiteralKind {
    Text,
    Int,
    Bool,
    Null,
}

/// A regular expression that must match a whole text.
#[derive(Debug)]
pub(crate) struct Pattern {
    text: Box<str>,
    regex: Regex,
    /// KiB that its compiled program fits into: what a byte of text costs at worst grows with it.
    size: u32,
}

impl Pattern {
    /// Bytes of a pattern's text at most.
    pub(crate) const MAX_TEXT: usize = 1 << 10;
    /// Bytes of its compiled program, and of its matching cache, at most.
    const MAX_PROGRAM: usize = 128 << 10;

    /// Compiles a pattern, or says what is wrong with it.
    pub(crate) fn new(text: &str) -> Result<Self, String> {
        if text.len() > Self::MAX_TEXT {
            return Err(format!(
                "the pattern is longer than {} bytes",
                Self::MAX_TEXT
            ));
        }
        // Alone first: `a)|(b` would be valid between the anchoring parentheses. Only read, not built.
        match build(text, 0) {
            Ok(_) | Err(regex::Error::CompiledTooBig(_)) => {}
            Err(error) => return Err(explain(error)),
        }
        let (regex, size) = sized(&format!("\\A(?:{text})\\z"))?;
        Ok(Self {
            text: text.into(),
            regex,
            size,
        })
    }

    /// Whether the whole text matches. None does once the decision under way has used up its work.
    pub(crate) fn matches(&self, text: &str) -> bool {
        work::take(text.len(), self.size) && self.regex.is_match(text)
    }

    pub(crate) fn text(&self) -> &str {
        &self.text
    }
}

fn build(text: &str, size: usize) -> Result<Regex, regex::Error> {
    RegexBuilder::new(text)
        .size_limit(size)
        .dfa_size_limit(Pattern::MAX_PROGRAM)
        .nest_limit(64)
        .build()
}

fn explain(error: regex::Error) -> String {
    match error {
        regex::Error::CompiledTooBig(_) => "the pattern is too large when compiled".to_owned(),
        regex::Error::Syntax(text) => {
            let line = text
                .lines()
                .rev()
                .find_map(|line| line.strip_prefix("error: "));
            format!(
                "the pattern is not valid: {}",
                line.unwrap_or("syntax error")
            )
        }
        _ => "the pattern is not valid".to_owned(),
    }
}

impl Shape {
    /// Whether a decoded text, as in a query or form, is of this shape. A list is asked for each of its items.
    pub(crate) fn accepts_text(&self, text: &str) -> bool {
        match self {
            Self::Any | Self::Text => true,
            Self::Int => integer(text).is_some(),
            Self::Number => is_json_number(text),
            Self::Bool => matches!(text, "true" | "false"),
            Self::Uuid => is_uuid(text),
            Self::Range(low, high) => {
                integer(text).is_some_and(|value| (*low..=*high).contains(&value))
            }
            Self::Pattern(pattern) => pattern.matches(text),
            Self::OneOf(literals) => literals
                .iter()
                .any(|literal| literal.kind != LiteralKind::Null && &*literal.text == text),
            Self::List(item) => item.accepts_text(text),
            Self::Object(_) => false,
        }
    }

    /// Whether it narrows what may be sent, for telling which of two rules says more.
    pub(crate) fn is_constraint(&self) -> bool {
        !matches!(self, Self::Any | Self::Text)
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Any => f.write_str("anything"),
            Self::Text => f.write_str("a string"),
            Self::Int => f.write_str("an integer"),
            Self::Number => f.write_str("a number"),
            Self::Bool => f.write_str("`true` or `false`"),
            Self::Uuid => f.write_str("a UUID"),
            Self::Range(low, high) => write!(f, "an integer from {low} to {high}"),
            Self::Pattern(_) => f.write_str("text of the declared pattern"),
            Self::OneOf(_) => f.write_str("one of the declared values"),
            Self::List(item) => write!(f, "a list, each of it {item}"),
            Self::Object(_) => f.write_str("an object with the declared fields"),
        }
    }
}

/// A canonical decimal integer: no `+`, no leading zeros, no `-0`.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let canonical = digits.bytes().all(|byte| byte.is_ascii_digit())
        && (!digits.starts_with('0') || text == "0");
    text.parse().ok().filter(|_| canonical)
}

/// A finite number in JSON's grammar (RFC 8259, section 6).
pub(crate) fn is_json_number(text: &str) -> bool {
    let mut rest = text.strip_prefix('-').unwrap_or(text).as_bytes();
    let mut digits = |least: usize| {
        let count = rest.iter().take_while(|byte| byte.is_ascii_digit()).count();
        let (taken, tail) = rest.split_at_checked(count).unwrap_or((&[], rest));
        rest = tail;
        (count >= least).then_some(taken)
    };
    let whole = digits(1).is_some_and(|taken| taken.len() == 1 || taken.first() != Some(&b'0'));
    if !whole {
        return false;
    }
    if let [b'.', tail @ ..] = rest {
        let count = tail.iter().take_while(|byte| byte.is_ascii_digit()).count();
        if count == 0 {
            return false;
        }
        rest = tail.get(count..).unwrap_or(&[]);
    }
    // Without an exponent fewer digits than these are finite in any case.
    let finite = text.len() <= 300 && rest.is_empty();
    if let [b'e' | b'E', tail @ ..] = rest {
        let tail = match tail {
            [b'+' | b'-', unsigned @ ..] => unsigned,
            unsigned => unsigned,
        };
        if tail.is_empty() || !tail.iter().all(u8::is_ascii_digit) {
            return false;
        }
        rest = &[];
    }
    rest.is_empty() && (finite || text.parse::<f64>().is_ok_and(f64::is_finite))
}

/// Eight, four, four, four and twelve hexadecimal digits.
pub(crate) fn is_uuid(text: &str) -> bool {
    let mut groups = text.split('-');
    let hexadecimal = |group: &str, length: usize| {
        group.len() == length && group.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    [8, 4, 4, 4, 12].iter().all(|length| {
        groups
            .next()
            .is_some_and(|group| hexadecimal(group, *length))
    }) && groups.next().is_none()
}

/// A pattern that is looked for anywhere in a text, under the bounds of [`Pattern`], and the KiB that its
/// compiled program fits into.
pub(crate) fn search_pattern(text: &str) -> Result<(Regex, u32), String> {
    if text.len() > Pattern::MAX_TEXT {
        return Err(format!(
            "the pattern is longer than {} bytes",
            Pattern::MAX_TEXT
        ));
    }
    sized(text)
}

/// Compiles, and finds by trying the KiB that the program fits into.
fn sized(text: &str) -> Result<(Regex, u32), String> {
    let regex = build(text, Pattern::MAX_PROGRAM).map_err(explain)?;
    let mut size = 1;
    while size << 10 < Pattern::MAX_PROGRAM && build(text, size << 10).is_err() {
        size *= 2;
    }
    Ok((regex, u32::try_from(size).unwrap_or(u32::MAX)))
}
