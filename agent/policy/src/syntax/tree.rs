//! The tree of a document, built from the YAML parser's events.
use super::decode::Decoder;
use super::quote;
use super::text::Span;
use saphyr_parser::{Event, Parser, ScalarStyle};
use std::collections::HashMap;

/// Bytes of one source at most.
pub const MAX_TEXT: usize = 4 << 20;
/// Nesting of one source at most.
pub const MAX_DEPTH: usize = 64;
/// Bytes of one line at most: the parser holds what stands on one until it has read it.
pub const MAX_LINE: usize = 1 << 20;
/// Bytes of all sources of one decoder at most.
pub const MAX_TEXTS: usize = 16 << 20;
/// Nodes (keys and values) of all sources of one decoder at most.
pub const MAX_NODES: usize = 1_000_000;

/// Keys of a mapping up to which they are compared with each other.
const FEW_KEYS: usize = 16;

/// A value and where it stands.
#[derive(Debug, Clone)]
pub struct Node {
    /// What it is.
    pub value: Value,
    /// Where it stands.
    pub span: Span,
}

/// What a node is.
#[derive(Debug, Clone)]
pub enum Value {
    /// A string, number, boolean or nothing.
    Scalar(Scalar),
    /// A list.
    Sequence(Vec<Node>),
    /// Keys and values, in the order of the text; no key twice.
    Mapping(Vec<Entry>),
}

/// A scalar as it is written: what it stands for is decided by who reads it.
#[derive(Debug, Clone)]
pub struct Scalar {
    /// The text, unquoted and unescaped.
    pub text: Box<str>,
    /// Written without quotes: only such a scalar can be a number, a boolean or null.
    pub plain: bool,
}

/// A key with its value.
#[derive(Debug, Clone)]
pub struct Entry {
    /// The key.
    pub key: Key,
    /// The value.
    pub value: Node,
}

/// A key and where it stands.
#[derive(Debug, Clone)]
pub struct Key {
    /// The key's text.
    pub text: Box<str>,
    /// Where it stands.
    pub span: Span,
}

impl Scalar {
    /// What the YAML 1.2 core schema calls it.
    pub fn kind(&self) -> &'static str {
        if !self.plain {
            return "a string";
        }
        match &*self.text {
            "" | "~" | "null" | "Null" | "NULL" => "nothing",
            "true" | "True" | "TRUE" | "false" | "False" | "FALSE" => "a boolean",
            text if is_core_integer(text) => "an integer",
            text if is_core_float(text) => "a number",
            _ => "a string",
        }
    }

    /// Whether it is null: nothing written, `~` or `null`.
    pub fn is_null(&self) -> bool {
        self.kind() == "nothing"
    }
}

impl Node {
    /// What it is, for a message: `a list`, `a mapping`, `an integer`, …
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(scalar) => scalar.kind(),
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

fn is_core_integer(text: &str) -> bool {
    let all = |digits: &str, test: fn(char) -> bool| !digits.is_empty() && digits.chars().all(test);
    if let Some(octal) = text.strip_prefix("0o") {
        return all(octal, |digit| digit.is_digit(8));
    }
    if let Some(hexadecimal) = text.strip_prefix("0x") {
        return all(hexadecimal, |digit| digit.is_ascii_hexdigit());
    }
    all(text.strip_prefix(['+', '-']).unwrap_or(text), |digit| {
        digit.is_ascii_digit()
    })
}

fn is_core_float(text: &str) -> bool {
    let unsigned = text.strip_prefix(['+', '-']).unwrap_or(text);
    if matches!(text, ".nan" | ".NaN" | ".NAN") || matches!(unsigned, ".inf" | ".Inf" | ".INF") {
        return true;
    }
    unsigned.starts_with(|first: char| first.is_ascii_digit() || first == '.')
        && unsigned
            .chars()
            .all(|character| "0123456789.eE+-".contains(character))
        && unsigned.parse::<f64>().is_ok()
}

/// A collection being read.
enum Open {
    Sequence {
        span: Span,
        items: Vec<Node>,
    },
    Mapping {
        span: Span,
        entries: Vec<Entry>,
        /// Where the keys of a large mapping stand; empty while it is small.
        seen: HashMap<Box<str>, Span>,
        key: Option<PendingKey>,
    },
}

/// A key that waits for its value; `None` where the key itself was refused.
type PendingKey = Option<Key>;

/// Builds the tree of one source.
pub(super) struct Builder<'d> {
    decoder: &'d mut Decoder,
    file: u32,
    open: Vec<Open>,
    documents: usize,
    root: Option<Node>,
}

impl<'d> Builder<'d> {
    pub(super) fn new(decoder: &'d mut Decoder, file: u32) -> Self {
        Self {
            decoder,
            file,
            open: Vec::new(),
            documents: 0,
            root: None,
        }
    }

    /// Reads `text` to its end, or to the first thing after which nothing can be trusted.
    pub(super) fn build(mut self, text: &str) -> Option<Node> {
        let mut parser = Parser::new_from_str(text);
        while let Some(event) = parser.next_event() {
            let proceed = match event {
                Ok((event, span)) => {
                    let span = self.span(span);
                    self.event(event, span)
                }
                Err(error) => {
                    let mark = *error.marker();
                    let span = self.span(saphyr_parser::Span::empty(mark));
                    let remark = self
                        .decoder
                        .error(span, format!("invalid YAML: {}", error.info()));
                    // As in `role: reader(repo: acme/app)`.
                    if error.info().contains("mapping values are not allowed") {
                        remark.help("a text with `: ` in it needs quotes; in a role's arguments `=` does without");
                    }
                    false
                }
            };
            if !proceed {
                return None;
            }
        }
        if self
            .root
            .as_ref()
            .is_none_or(|root| root.kind() == "nothing")
        {
            let start = Span {
                file: self.file,
                line: 1,
                column: 1,
                width: 1,
            };
            self.decoder.error(start, "the document is empty");
            return None;
        }
        self.root
    }

    fn span(&self, span: saphyr_parser::Span) -> Span {
        let number = |value: usize| u32::try_from(value).unwrap_or(u32::MAX);
        let last = self.decoder.lines(self.file);
        if number(span.start.line()) > last {
            // The scanner counts a line end where a text ends without one.
            let end = self.decoder.line(self.file, last).chars().count();
            return Span {
                file: self.file,
                line: last,
                column: number(end).saturating_add(1),
                width: 1,
            };
        }
        let width = if span.start.line() == span.end.line() {
            span.end.col().saturating_sub(span.start.col())
        } else {
            let line = self.decoder.line(self.file, number(span.start.line()));
            line.trim_end()
                .chars()
                .count()
                .saturating_sub(span.start.col())
        };
        Span {
            file: self.file,
            line: number(span.start.line()).max(1),
            column: number(span.start.col()).saturating_add(1),
            width: number(width).max(1),
        }
    }

    /// Takes one event; `false` ends the reading.
    fn event(&mut self, event: Event<'_>, span: Span) -> bool {
        match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => true,
            Event::DocumentStart(_) => {
                self.documents += 1;
                if self.documents > 1 {
                    self.decoder
                        .error(span, "a second document in one file")
                        .help("one file is one document: move what follows `---` to a file of its own");
                }
                self.documents <= 1
            }
            Event::Alias(_) => {
                self.decoder
                    .error(span, "aliases (`*name`) are not supported")
                    .help("write the value out where it is needed");
                self.count(span) && self.place(null(span))
            }
            Event::Scalar(text, style, anchor, tag) => {
                self.refuse_properties(span, anchor, tag.is_some());
                let plain = style == ScalarStyle::Plain;
                let value = Value::Scalar(Scalar {
                    text: text.into(),
                    plain,
                });
                self.count(span) && self.place(Node { value, span })
            }
            Event::SequenceStart(anchor, tag) => {
                self.refuse_properties(span, anchor, tag.is_some());
                self.enter(
                    span,
                    Open::Sequence {
                        span,
                        items: Vec::new(),
                    },
                )
            }
            Event::MappingStart(anchor, tag) => {
                self.refuse_properties(span, anchor, tag.is_some());
                let (entries, seen) = (Vec::new(), HashMap::new());
                self.enter(
                    span,
                    Open::Mapping {
                        span,
                        entries,
                        seen,
                        key: None,
                    },
                )
            }
            Event::SequenceEnd | Event::MappingEnd => self.leave(),
        }
    }

    fn refuse_properties(&mut self, span: Span, anchor: usize, tagged: bool) {
        if anchor != 0 {
            self.decoder
                .error(span, "anchors (`&name`) are not supported")
                .help("write the value out where it is needed");
        }
        if tagged {
            self.decoder
                .error(span, "tags (`!name`) are not supported")
                .help("quote the value if it is meant to be a string");
        }
    }

    fn count(&mut self, span: Span) -> bool {
        self.decoder.nodes += 1;
        if self.decoder.nodes > MAX_NODES {
            self.decoder.error(
                span,
                format!("the document has more than {MAX_NODES} nodes"),
            );
        }
        self.decoder.nodes <= MAX_NODES
    }

    fn enter(&mut self, span: Span, open: Open) -> bool {
        if self.open.len() >= MAX_DEPTH {
            self.decoder.error(
                span,
                format!("the document is nested more than {MAX_DEPTH} levels deep"),
            );
            return false;
        }
        self.open.push(open);
        self.count(span)
    }

    fn leave(&mut self) -> bool {
        let node = match self.open.pop() {
            Some(Open::Sequence { span, items }) => Node {
                value: Value::Sequence(items),
                span,
            },
            Some(Open::Mapping { span, entries, .. }) => Node {
                value: Value::Mapping(entries),
                span,
            },
            None => return true,
        };
        self.place(node)
    }

    /// Puts a finished node where it belongs: as root, item, key or value.
    fn place(&mut self, node: Node) -> bool {
        match self.open.last_mut() {
            None => self.root = Some(node),
            Some(Open::Sequence { items, .. }) => items.push(node),
            Some(Open::Mapping {
                entries, key, seen, ..
            }) => match key.take() {
                None => *key = Some(read_key(self.decoder, node, entries, seen)),
                Some(None) => {}
                Some(Some(key)) => entries.push(Entry { key, value: node }),
            },
        }
        true
    }
}

fn null(span: Span) -> Node {
    Node {
        value: Value::Scalar(Scalar {
            text: "".into(),
            plain: true,
        }),
        span,
    }
}

/// A key, if it is a string, not `<<`, and new to its mapping.
fn read_key(
    decoder: &mut Decoder,
    node: Node,
    entries: &[Entry],
    seen: &mut HashMap<Box<str>, Span>,
) -> Option<Key> {
    let kind = node.kind();
    let Value::Scalar(scalar) = node.value else {
        decoder.error(node.span, format!("a key must be a string, not {kind}"));
        return None;
    };
    if kind != "a string" {
        decoder
            .error(node.span, format!("a key must be a string, not {kind}"))
            .help(format!(
                "quote it: \"{}\"",
                scalar.text.escape_default().take(40).collect::<String>()
            ));
        return None;
    }
    if scalar.plain && &*scalar.text == "<<" {
        decoder
            .error(node.span, "merge keys (`<<`) are not supported")
            .help("write the keys out where they are needed");
        return None;
    }
    if let Some(first) = first_of(&scalar.text, entries, seen) {
        let first = decoder.location(first);
        decoder
            .error(
                node.span,
                format!("{} is defined twice", quote(&scalar.text)),
            )
            .help(format!("first defined at {first}; keep one of them"));
        return None;
    }
    Some(Key {
        text: scalar.text,
        span: node.span,
    })
}

/// Where a key stood before. Most mappings have few keys, and comparing those is cheaper than hashing them.
fn first_of(text: &str, entries: &[Entry], seen: &mut HashMap<Box<str>, Span>) -> Option<Span> {
    if entries.len() < FEW_KEYS {
        let first = entries.iter().find(|entry| &*entry.key.text == text)?;
        return Some(first.key.span);
    }
    for entry in entries.get(seen.len()..).unwrap_or_default() {
        seen.insert(entry.key.text.clone(), entry.key.span);
    }
    seen.get(text).copied()
}
