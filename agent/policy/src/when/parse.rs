//! From text to the tree that the library's parser makes of it, on a stack that is large enough for it.
use super::check::{Checked, check};
use super::{Known, MAX_TEXT, Span, WhenFault};
use crate::syntax::quote;
use cel::{Env, ParseError};
use std::sync::LazyLock;
use std::thread;

/// Brackets within each other at most.
const MAX_BRACKETS: usize = 24;
/// The parser took less than 1 MiB for the worst of texts of [`MAX_TEXT`] bytes, with and without optimization.
/// Only what is touched is ever there.
const STACK: usize = 16 << 20;

/// Knows no macro, so that the tree is as it was written, and no optional values.
static GRAMMAR: LazyLock<Env> = LazyLock::new(|| Env::default().with_optional_support(false));

pub(super) fn compile(text: &str, known: &Known<'_>) -> Result<Checked, Vec<WhenFault>> {
    scan(text).map_err(|fault| vec![fault])?;
    let whole = Span::new(0, text.len());
    let fault = |message| Err(vec![WhenFault::new(whole, message)]);
    // A thread of its own: the parser's frames are large, and a panic in it ends here.
    thread::scope(|scope| {
        let builder = thread::Builder::new()
            .name("condition".to_owned())
            .stack_size(STACK);
        match builder.spawn_scoped(scope, || parse(text, known)) {
            Err(_) => fault("there is no memory to read the condition"),
            Ok(worker) => worker
                .join()
                .unwrap_or_else(|_| fault("the condition cannot be read")),
        }
    })
}

fn parse(text: &str, known: &Known<'_>) -> Result<Checked, Vec<WhenFault>> {
    match GRAMMAR.compile(text) {
        Ok(program) => check(program.expression(), program.source_info(), text, known),
        Err(errors) => {
            let first = errors.errors.iter().min_by_key(|error| error.pos);
            Err(first.map(|error| said(text, error)).into_iter().collect())
        }
    }
}

/// What can be said without knowing the grammar: sizes, characters, brackets and where strings end.
fn scan(text: &str) -> Result<(), WhenFault> {
    if text.len() > MAX_TEXT {
        let message = format!("the condition is longer than {MAX_TEXT} bytes");
        return Err(WhenFault::new(Span::new(0, 1), message));
    }
    let mut depth = 0_usize;
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let start = text.len() - rest.len();
        let span = Span::new(start, start + first.len_utf8());
        let mut taken = first.len_utf8();
        match first {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            '\'' | '"' => {
                let raw = text
                    .get(..start)
                    .is_some_and(|before| before.ends_with(['r', 'R']));
                taken = string(rest, first, raw).ok_or_else(|| unended(rest, start, first))?;
            }
            '/' if rest.starts_with("//") => taken = rest.find('\n').unwrap_or(rest.len()),
            '\n' | '\t' => {}
            _ if first.is_control() => {
                return Err(WhenFault::new(
                    span,
                    "a control character stands in the condition",
                ));
            }
            _ => {}
        }
        if depth > MAX_BRACKETS {
            let message = format!("brackets stand within each other more than {MAX_BRACKETS} deep");
            return Err(WhenFault::new(span, message));
        }
        rest = rest.get(taken..).unwrap_or_default();
    }
    Ok(())
}

/// The length of the string that `text` starts with.
fn string(text: &str, quote: char, raw: bool) -> Option<usize> {
    let triple = quote.to_string().repeat(3);
    let end = if text.starts_with(&triple) {
        triple.as_str()
    } else {
        text.get(..1)?
    };
    let mut at = end.len();
    loop {
        let rest = text.get(at..)?;
        if rest.starts_with(end) {
            return Some(at + end.len());
        }
        let next = rest.chars().next()?;
        at += next.len_utf8();
        if next == '\\' && !raw {
            at += text.get(at..)?.chars().next()?.len_utf8();
        } else if next.is_control() && (end.len() == 1 || !matches!(next, '\n' | '\t')) {
            return None;
        }
    }
}

fn unended(rest: &str, start: usize, mark: char) -> WhenFault {
    let width = rest.lines().next().map_or(1, str::len);
    WhenFault::new(Span::new(start, start + width), "the string does not end")
        .help(format!("it ends with {mark}, in the same line"))
}

/// The parser's words in ours: its own list all tokens of the grammar.
fn said(text: &str, error: &ParseError) -> WhenFault {
    let at = offset(text, error.pos);
    let found = token(text.get(at..).unwrap_or_default());
    let span = Span::new(at, at + found.len());
    let message = error.msg.as_str();
    if message.contains("Recursion") || message.contains("limit exceeded") {
        return WhenFault::new(span, "the condition is nested too deeply");
    }
    if found.is_empty() {
        return WhenFault::new(span, "the condition ends too early")
            .help("a value is missing, or a bracket is not closed");
    }
    if message.starts_with("reserved identifier") {
        return WhenFault::new(span, format!("{} is reserved", quote(found)));
    }
    if message.starts_with("invalid") {
        return if found.starts_with(['\'', '"']) {
            WhenFault::new(span, "the string holds an escape that means nothing")
                .help(r"a backslash is written `\\`, or the string as r'…'")
        } else {
            WhenFault::new(span, format!("{} is out of range", quote(found)))
                .help("integers have 64 bits; `u` behind one says that it has no sign")
        };
    }
    let help = match found {
        "=" => "two values are compared with `==`",
        "and" | "&" => "write `&&`",
        "or" | "|" => "write `||`",
        "not" => "write `!`",
        "in" | "`" | "as" | "if" | "for" | "var" | "let" => {
            "a field of such a name is written ['the-name']"
        }
        _ if found.starts_with(['\'', '"']) => {
            r"strings stand in quotes; in them, a backslash is written `\\`"
        }
        _ => "e.g. `request.method == 'GET' && !('x' in request.query)`",
    };
    WhenFault::new(span, format!("{} is not expected here", quote(found))).help(help)
}

/// The byte at a line and column, both from 1.
fn offset(text: &str, (line, column): (isize, isize)) -> usize {
    let line = usize::try_from(line - 1).unwrap_or(0);
    let column = usize::try_from(column - 1).unwrap_or(0);
    let mut start = 0;
    for (number, content) in text.split_inclusive('\n').enumerate() {
        if number == line {
            let inside = content.char_indices().nth(column);
            return start + inside.map_or(content.len(), |(at, _)| at);
        }
        start += content.len();
    }
    text.len()
}

/// A word, a number, a string or a sign.
fn token(text: &str) -> &str {
    let Some(first) = text.chars().next() else {
        return "";
    };
    let word = |character: char| character.is_alphanumeric() || character == '_';
    let length = if word(first) {
        text.find(|character| !word(character))
            .unwrap_or(text.len())
    } else if matches!(first, '\'' | '"') {
        string(text, first, false).unwrap_or(text.len())
    } else {
        first.len_utf8()
    };
    text.get(..length).unwrap_or_default()
}
