//! The parameters of a role, filled in. An argument is text wherever it stands: it fills a place and widens
//! nothing, whatever reads the place afterwards.
use crate::shape::integer;
use crate::syntax::{Decoder, Entry, Key, Node, Scalar, Span, Value, nearest, quote};
use std::borrow::Cow;
use std::collections::HashSet;

/// Names of parameters and what stands for them, sorted.
pub(crate) type Arguments = Vec<(Box<str>, Box<str>)>;

/// Bytes of a text with its arguments filled in at most.
const MAX_FILLED: usize = 64 << 10;

/// What a text is read as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum As {
    /// What is neither of these.
    Text,
    /// The notation of shapes, of which `/…/` is a pattern.
    Shape,
    /// One of a list there.
    Item,
    /// A path, in which `{name:…}` is a pattern.
    Route,
    /// A condition.
    Condition,
    /// What stands in a JSON Schema.
    Schema,
    /// Names in a schema that are patterns.
    PatternNames,
    Pattern,
}

/// Fills in the arguments of one role.
struct Filling<'f> {
    decoder: &'f mut Decoder,
    arguments: &'f [(Box<str>, Box<str>)],
}

/// The node with every `${name}` replaced; borrowed where there is none.
pub(super) fn fill<'n>(
    decoder: &mut Decoder,
    node: &'n Node,
    arguments: &[(Box<str>, Box<str>)],
) -> Cow<'n, Node> {
    Filling { decoder, arguments }.node(node, As::Text)
}

/// The names in `${name}` anywhere in a node.
pub(super) fn mentioned(node: &Node) -> HashSet<&str> {
    let mut names = HashSet::new();
    collect(node, &mut names);
    names
}

fn collect<'n>(node: &'n Node, names: &mut HashSet<&'n str>) {
    let mut of = |text: &'n str| {
        let pieces = text.split("${").skip(1);
        names.extend(pieces.filter_map(|piece| Some(piece.split_once('}')?.0)));
    };
    match &node.value {
        Value::Scalar(scalar) => of(&scalar.text),
        Value::Sequence(items) => items.iter().for_each(|item| collect(item, names)),
        Value::Mapping(entries) => {
            entries.iter().for_each(|entry| of(&entry.key.text));
            entries
                .iter()
                .for_each(|entry| collect(&entry.value, names));
        }
    }
}

/// How much reading a node costs: its nodes, and its text in small pieces.
pub(super) fn weight(node: &Node) -> usize {
    let text = |text: &str| 1 + text.len() / 64;
    match &node.value {
        Value::Scalar(scalar) => text(&scalar.text),
        Value::Sequence(items) => 1 + items.iter().map(weight).sum::<usize>(),
        Value::Mapping(entries) => {
            let entries = entries.iter();
            1 + entries
                .map(|entry| text(&entry.key.text) + weight(&entry.value))
                .sum::<usize>()
        }
    }
}

/// Whether `${` stands anywhere in it.
fn mentions(node: &Node) -> bool {
    match &node.value {
        Value::Scalar(scalar) => scalar.text.contains("${"),
        Value::Sequence(items) => items.iter().any(mentions),
        Value::Mapping(entries) => entries
            .iter()
            .any(|entry| entry.key.text.contains("${") || mentions(&entry.value)),
    }
}

impl<'f> Filling<'f> {
    fn node<'n>(&mut self, node: &'n Node, read: As) -> Cow<'n, Node> {
        if !mentions(node) {
            return Cow::Borrowed(node);
        }
        let span = node.span;
        let value = match &node.value {
            Value::Scalar(scalar) => Value::Scalar(self.scalar(scalar, span, read)),
            Value::Sequence(items) => {
                let read = if read == As::Shape { As::Item } else { read };
                let items = items.iter().map(|item| self.node(item, read).into_owned());
                Value::Sequence(items.collect())
            }
            Value::Mapping(entries) => Value::Mapping(self.entries(entries, read)),
        };
        Cow::Owned(Node { value, span })
    }

    fn entries(&mut self, entries: &[Entry], read: As) -> Vec<Entry> {
        let rule = entries
            .iter()
            .any(|entry| matches!(&*entry.key.text, "route" | "grpc"));
        // No key stands twice before.
        let check = entries.iter().any(|entry| entry.key.text.contains("${"));
        let mut seen: HashSet<Box<str>> = HashSet::new();
        let mut filled: Vec<Entry> = Vec::with_capacity(entries.len());
        for Entry { key, value } in entries {
            let names = match read {
                As::PatternNames => As::Pattern,
                _ => As::Text,
            };
            let text = self.text(key.span, &key.text, names);
            if check && !seen.insert(text.clone()) {
                let message = format!("the key {} stands twice, with its argument", quote(&text));
                self.decoder.error(key.span, message);
            }
            let read = below(read, &key.text, rule);
            filled.push(Entry {
                key: Key {
                    text,
                    span: key.span,
                },
                value: self.node(value, read).into_owned(),
            });
        }
        filled
    }

    fn scalar(&mut self, scalar: &Scalar, span: Span, read: As) -> Scalar {
        let text = &*scalar.text;
        let shaped = |text: &str| text.len() > 1 && text.starts_with('/') && text.ends_with('/');
        let pattern = shaped(text) && (read == As::Shape || (read == As::Item && scalar.plain));
        let as_what = if pattern { As::Pattern } else { read };
        let filled = Scalar {
            text: self.text(span, text, as_what),
            plain: scalar.plain,
        };
        // What is a type or a range among values is so by what the role's author wrote, and not by an argument.
        let meant = pattern || text.contains("..") || filled.kind() != "a string";
        Scalar {
            plain: filled.plain && (read != As::Item || meant),
            ..filled
        }
    }

    fn text(&mut self, span: Span, text: &str, read: As) -> Box<str> {
        let (mut filled, mut rest) = (String::with_capacity(text.len()), text);
        while let Some((before, after)) = rest.split_once("${") {
            filled.push_str(before);
            let Some((name, tail)) = after.split_once('}') else {
                self.decoder
                    .error(span, "`${` has no closing brace")
                    .help("write `${name}`, where `name` is a parameter of the role");
                return text.into();
            };
            if filled.len() > MAX_FILLED {
                let message = format!("with its arguments this is longer than {MAX_FILLED} bytes");
                self.decoder.error(span, message);
                return filled.into();
            }
            match self.argument(name) {
                Some(value) => self.place(span, &mut filled, (name, value), read),
                None => self.unknown(span, name),
            }
            rest = tail;
        }
        filled.push_str(rest);
        filled.into()
    }

    fn argument(&self, name: &str) -> Option<&'f str> {
        let mut arguments = self.arguments.iter();
        let found = arguments.find(|(parameter, _)| **parameter == *name);
        found.map(|(_, value)| &**value)
    }

    /// Puts an argument behind what is filled in already.
    fn place(&mut self, span: Span, filled: &mut String, (name, value): (&str, &str), read: As) {
        let pattern = read == As::Pattern || (read == As::Route && in_pattern(filled));
        let condition = read == As::Condition;
        let escapes = filled
            .bytes()
            .rev()
            .take_while(|byte| *byte == b'\\')
            .count();
        if (pattern || condition) && escapes % 2 == 1 {
            let message = format!("`${{{name}}}` stands behind a `\\`");
            self.decoder.error(span, message);
            return;
        }
        if condition && !in_quotes(filled) && !is_word(value) {
            self.decoder
                .error(span, format!("`${{{name}}}` must stand in quotes here"))
                .help(format!(
                    "write `'${{{name}}}'`: only an integer, `true` or `false` can stand without"
                ));
            return;
        }
        match pattern {
            true => filled.push_str(&regex::escape(value)),
            false => filled.push_str(value),
        }
    }

    fn unknown(&mut self, span: Span, name: &str) {
        let known = self.arguments.iter().map(|(parameter, _)| &**parameter);
        let help = match nearest(name, known) {
            Some(near) => format!("did you mean `${{{near}}}`?"),
            None => format!(
                "name it in the role's key: `role({})`",
                name.escape_default().take(60).collect::<String>()
            ),
        };
        let message = format!("{} is no parameter of this role", quote(name));
        self.decoder.error(span, message).help(help);
    }
}

/// What stands under a key is read as; `rule` says whether the key is one of a rule.
fn below(read: As, key: &str, rule: bool) -> As {
    match (read, key) {
        // Names in these are the API's.
        (As::Shape | As::Item, _) | (As::Text, "query" | "fields" | "require" | "tools") => {
            As::Shape
        }
        (As::Schema, "pattern") => As::Pattern,
        (As::Schema, "patternProperties") => As::PatternNames,
        (As::Schema | As::PatternNames | As::Pattern, _) | (_, "schema") => As::Schema,
        (_, "when") if rule => As::Condition,
        (_, "route") => As::Route,
        _ => As::Text,
    }
}

/// What means the same within quotes and without.
fn is_word(value: &str) -> bool {
    integer(value).is_some() || matches!(value, "true" | "false")
}

/// Whether a route ends within the pattern of a segment.
fn in_pattern(route: &str) -> bool {
    let segment = route.rsplit("/{").next().unwrap_or(route);
    let depth = |byte: u8| segment.bytes().filter(|known| *known == byte).count();
    // The brace that opens the segment is what it was split at.
    segment.len() < route.len() && segment.contains(':') && depth(b'{') + 1 > depth(b'}')
}

/// Whether a condition ends within a string.
fn in_quotes(condition: &str) -> bool {
    const QUOTES: [&str; 4] = ["'''", "\"\"\"", "'", "\""];
    let (mut rest, mut raw) = (condition, false);
    let mut open: Option<&str> = None;
    while let Some(first) = rest.chars().next() {
        let tail = rest.get(first.len_utf8()..).unwrap_or("");
        match open {
            Some(quote) => {
                if let Some(tail) = rest.strip_prefix(quote) {
                    (open, rest) = (None, tail);
                } else if first == '\\' && !raw {
                    let skipped = tail.chars().next().map_or(0, char::len_utf8);
                    rest = tail.get(skipped..).unwrap_or("");
                } else {
                    rest = tail;
                }
            }
            None if rest.starts_with("//") => match rest.split_once('\n') {
                Some((_, tail)) => rest = tail,
                None => return false,
            },
            None => {
                let quote = QUOTES.into_iter().find(|quote| rest.starts_with(quote));
                let Some(quote) = quote else {
                    raw = matches!(first, 'r' | 'R') || (raw && matches!(first, 'b' | 'B'));
                    rest = tail;
                    continue;
                };
                open = Some(quote);
                rest = rest.get(quote.len()..).unwrap_or("");
                continue;
            }
        }
        if open.is_none() {
            raw = false;
        }
    }
    open.is_some()
}

#[cfg(test)]
mod tests {
    use super::{in_pattern, in_quotes};

    #[test]
    fn quotes_of_conditions() {
        for within in [
            "'",
            "a == \"",
            "'it\\'s",
            "r'\\",
            "'''a'b",
            "\"\"\"a\"b",
            "'a' + '//",
            "// '\n'",
        ] {
            assert!(in_quotes(within), "{within}");
        }
        for without in [
            "",
            "a == ",
            "'a'",
            "r'\\'",
            "'\\\\'",
            "'''a'b'''",
            "// it's",
            "''",
        ] {
            assert!(!in_quotes(without), "{without}");
        }
    }

    #[test]
    fn patterns_of_routes() {
        for within in ["GET /{id:", "GET /a/{id:[0-9]{1,3}-", "GET /{a}/{id:(x/y"] {
            assert!(in_pattern(within), "{within}");
        }
        for without in [
            "GET /",
            "GET /{id",
            "GET /{id:int}/",
            "GET /{id:[0-9]{1,3}}/x:",
            "GET /x:{",
        ] {
            assert!(!in_pattern(without), "{without}");
        }
    }
}
