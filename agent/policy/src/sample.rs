//! Texts made up to fit: of a pattern, of a shape. And whether a pattern fits any segment of a path at all.
use crate::shape::{LiteralKind, Pattern, Shape};
use regex_syntax::hir::{Class, Hir, HirKind};
use std::fmt::Write;

/// A UUID.
pub(crate) const UUID: &str = "3fa85f64-5717-4562-b3fc-2c963f66afa6";
/// Bytes of a made up text at most.
const MAX: usize = 1_024;

fn parse(pattern: &str) -> Option<Hir> {
    let mut parser = regex_syntax::ParserBuilder::new().nest_limit(64).build();
    parser.parse(pattern).ok()
}

/// Whether a segment of a canonical path can match the pattern. Says yes where it is not sure.
pub(crate) fn is_segment(pattern: &str) -> bool {
    let Some(hir) = parse(pattern) else {
        return true;
    };
    hir.properties().maximum_len() != Some(0) && is_possible(&hir)
}

/// What a decoded segment never holds: it would be refused, or end the segment.
fn in_segment(character: char) -> bool {
    !character.is_control() && !matches!(character, '/' | '\\' | ';')
}

fn is_possible(hir: &Hir) -> bool {
    match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => {
            std::str::from_utf8(&literal.0).is_ok_and(|text| text.chars().all(in_segment))
        }
        HirKind::Class(class) => pick(class).is_some(),
        HirKind::Repetition(repetition) => repetition.min == 0 || is_possible(&repetition.sub),
        HirKind::Capture(capture) => is_possible(&capture.sub),
        HirKind::Concat(parts) => parts.iter().all(is_possible),
        HirKind::Alternation(parts) => parts.iter().any(is_possible),
    }
}

/// A character of a class that may stand in a segment, one that reads well where there is such.
fn pick(class: &Class) -> Option<char> {
    let ranges: Vec<(char, char)> = match class {
        Class::Unicode(class) => {
            let ranges = class.ranges().iter();
            ranges.map(|range| (range.start(), range.end())).collect()
        }
        Class::Bytes(class) => {
            let ranges = class.ranges().iter();
            ranges
                .map(|range| (char::from(range.start()), char::from(range.end().min(0x7f))))
                .collect()
        }
    };
    let has = |wanted: &char| {
        let mut ranges = ranges.iter();
        ranges.any(|(start, end)| (*start..=*end).contains(wanted))
    };
    if let Some(good) = ['x', 'a', '1', 'A', '-'].into_iter().find(has) {
        return Some(good);
    }
    // There are fewer than 100 characters that cannot be: a longer range has others.
    let characters = ranges
        .iter()
        .flat_map(|(start, end)| (*start..=*end).take(200));
    characters
        .into_iter()
        .find(|character| in_segment(*character))
}

/// A text that the pattern matches whole, made of what a segment may hold.
pub(crate) fn of_pattern(pattern: &Pattern) -> Option<String> {
    let mut text = String::new();
    write(&parse(pattern.text())?, &mut text).then_some(())?;
    pattern.matches(&text).then_some(text)
}

/// Appends the shortest text that is easily found; `false` where there is none.
fn write(hir: &Hir, text: &mut String) -> bool {
    let start = text.len();
    let done = match hir.kind() {
        HirKind::Empty | HirKind::Look(_) => true,
        HirKind::Literal(literal) => std::str::from_utf8(&literal.0)
            .map(|literal| text.push_str(literal))
            .is_ok(),
        HirKind::Class(class) => pick(class).map(|character| text.push(character)).is_some(),
        HirKind::Repetition(repetition) => {
            // Once where it need not be there at all: an empty segment is none.
            let least = repetition.min.max(u32::from(repetition.max != Some(0)));
            let length = repetition
                .sub
                .properties()
                .minimum_len()
                .unwrap_or(1)
                .max(1);
            usize::try_from(least).is_ok_and(|least| least.saturating_mul(length) <= MAX)
                && (0..least).all(|_| write(&repetition.sub, text))
        }
        HirKind::Capture(capture) => write(&capture.sub, text),
        HirKind::Concat(parts) => parts.iter().all(|part| write(part, text)),
        HirKind::Alternation(parts) => parts.iter().any(|part| write(part, text)),
    };
    if !done || text.len() > MAX {
        text.truncate(start);
        return false;
    }
    true
}

/// Appends decoded text as it may stand in a path or query.
pub(crate) fn escape(decoded: &str, text: &mut String) {
    for byte in decoded.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            text.push(char::from(byte));
        } else {
            let _ = write!(text, "%{byte:02X}");
        }
    }
}

/// Texts at the borders of a shape, some that fit and some that do not.
pub(crate) fn texts(shape: &Shape) -> Vec<String> {
    let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
    match shape {
        Shape::Any | Shape::Text => words(&["x", "7", ""]),
        Shape::Int => words(&["7", "-7", "7.5", "x"]),
        Shape::Number => words(&["7.5", "7", "x"]),
        Shape::Bool => words(&["true", "false", "x"]),
        Shape::Uuid => words(&[UUID, "x"]),
        Shape::Range(low, high) => {
            let around = [
                Some(*low),
                Some(*high),
                low.checked_sub(1),
                high.checked_add(1),
            ];
            around
                .into_iter()
                .flatten()
                .map(|number| number.to_string())
                .collect()
        }
        Shape::Pattern(pattern) => {
            let mut found: Vec<String> = of_pattern(pattern).into_iter().collect();
            found.push("x".to_owned());
            found
        }
        Shape::OneOf(literals) => {
            let values = literals.iter().take(64);
            let values = values.map(|literal| literal.text.to_string());
            values.chain(["tollgate-none".to_owned()]).collect()
        }
        Shape::List(item) => texts(item),
        Shape::Object(_) => Vec::new(),
    }
}

/// JSON values at the borders of a shape, as text.
pub(crate) fn values(shape: &Shape) -> Vec<String> {
    match shape {
        Shape::Any | Shape::Text => vec!["\"x\"".to_owned(), "7".to_owned()],
        Shape::Uuid => vec![quoted(UUID), quoted("x")],
        Shape::Pattern(_) => texts(shape).iter().map(|text| quoted(text)).collect(),
        Shape::OneOf(literals) => {
            let values = literals.iter().take(64).map(|literal| match literal.kind {
                LiteralKind::Text => quoted(&literal.text),
                _ => literal.text.to_string(),
            });
            values.chain([quoted("tollgate-none")]).collect()
        }
        Shape::List(item) => {
            let lists = values(item).into_iter().map(|value| format!("[{value}]"));
            lists.chain(["[]".to_owned()]).collect()
        }
        Shape::Object(fields) => {
            let mut objects = vec!["{}".to_owned()];
            for field in fields.iter().take(16) {
                let one = values(&field.shape).into_iter();
                objects.extend(one.map(|value| format!("{{{}:{value}}}", quoted(&field.name))));
                if objects.len() > 64 {
                    break;
                }
            }
            objects
        }
        Shape::Int | Shape::Number | Shape::Range(..) | Shape::Bool => {
            let texts = texts(shape).into_iter();
            texts
                .map(|text| if text == "x" { quoted(&text) } else { text })
                .collect()
        }
    }
}

fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}
