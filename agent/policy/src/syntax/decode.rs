//! Reading values out of a tree, collecting faults instead of stopping.
use super::fault::{Fault, Faults, Severity};
use super::text::{File, Location, Source, Span, first_forbidden};
use super::tree::{Builder, Entry, MAX_LINE, MAX_TEXT, MAX_TEXTS, Node, Scalar, Value};
use super::{nearest, parse_byte_size, parse_duration, quote};
use smallvec::SmallVec;
use std::fmt::Display;
use std::net::IpAddr;
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

/// Faults kept; beyond these, only how many there were.
const MAX_FAULTS: usize = 500;

/// The sources read so far and the faults found in them.
#[derive(Debug, Default)]
pub struct Decoder {
    files: Vec<File>,
    /// With their spans, by which they are put in order at the end.
    faults: Vec<(Span, Fault)>,
    /// Errors and warnings beyond [`MAX_FAULTS`].
    dropped: usize,
    errors: usize,
    /// Bytes and nodes of all sources so far.
    bytes: usize,
    pub(super) nodes: usize,
}

/// A fault just made, to add help to.
#[derive(Debug)]
pub struct Remark<'d>(Option<&'d mut Fault>);

impl Remark<'_> {
    /// Says how to mend it.
    pub fn help(self, help: impl Into<String>) {
        if let Some(fault) = self.0 {
            fault.help = Some(help.into());
        }
    }
}

impl Decoder {
    /// A decoder that has read nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// Parses one source. `None` where it is no document; why is among the faults.
    pub fn parse(&mut self, source: &Source) -> Option<Node> {
        let file = u32::try_from(self.files.len()).unwrap_or(u32::MAX);
        let start = Span {
            file,
            line: 1,
            column: 1,
            width: 1,
        };
        self.bytes = self.bytes.saturating_add(source.text.len());
        let one = source.text.len() > MAX_TEXT;
        if one || self.bytes > MAX_TEXTS {
            // Only the name is kept: the text is what is too large.
            let named = Source {
                name: source.name.clone(),
                text: String::new(),
            };
            self.files.push(File::new(&named));
            let message = match one {
                true => format!("the file is larger than {} MiB", MAX_TEXT >> 20),
                false => format!("the files are larger than {} MiB together", MAX_TEXTS >> 20),
            };
            self.error(start, message);
            return None;
        }
        let read = File::new(source);
        let long = read.longer_than(MAX_LINE);
        self.files.push(read);
        if let Some(line) = long {
            let message = format!("the line is longer than {} MiB", MAX_LINE >> 20);
            self.error(Span { line, ..start }, message)
                .help("break it into several lines");
            return None;
        }
        if let Some((character, line, column)) = first_forbidden(&source.text) {
            let span = Span {
                file,
                line,
                column,
                width: 1,
            };
            let code = u32::from(character);
            self.error(
                span,
                format!("the character U+{code:04X} is not allowed here"),
            )
            .help("remove it, or write it as an escape in a double-quoted string");
            return None;
        }
        let before = self.errors;
        let root = Builder::new(self, file).build(&source.text);
        // A tree with holes would only give faults about the holes.
        root.filter(|_| self.errors == before)
    }

    /// Where a span stands, for people.
    pub fn location(&self, span: Span) -> Location {
        let file = self
            .file(span.file)
            .map_or_else(|| "".into(), |file| file.name.clone());
        Location {
            file,
            line: span.line,
            column: span.column,
        }
    }

    fn file(&self, index: u32) -> Option<&File> {
        self.files.get(usize::try_from(index).ok()?)
    }

    pub(super) fn line(&self, file: u32, line: u32) -> &str {
        self.file(file).map_or("", |file| file.line(line))
    }

    /// The place of a part of a scalar's `text`: `width` bytes from byte `at` of it. The whole scalar where it
    /// does not stand in the source as it reads, because of escapes or line breaks.
    pub fn within(&self, span: Span, text: &str, at: usize, width: usize) -> Span {
        let line = self.line(span.file, span.line);
        let before = usize::try_from(span.column.saturating_sub(1)).unwrap_or(usize::MAX);
        let start = line.char_indices().nth(before).map(|(start, _)| start);
        let rest = start.and_then(|start| line.get(start..)).unwrap_or("");
        let quoted = usize::from(rest.starts_with(['"', '\'']));
        let verbatim = rest
            .get(quoted..)
            .is_some_and(|rest| rest.starts_with(text));
        let (Some(skipped), true) = (text.get(..at), verbatim) else {
            return span;
        };
        let part = text.get(at..at.saturating_add(width)).unwrap_or("");
        let count = |text: &str| u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        let moved = count(skipped).saturating_add(u32::try_from(quoted).unwrap_or(0));
        Span {
            column: span.column.saturating_add(moved),
            width: count(part).max(1),
            ..span
        }
    }

    /// How many lines a file has, at least 1.
    pub(super) fn lines(&self, file: u32) -> u32 {
        self.file(file).map_or(1, File::lines)
    }

    /// Whether another error would only be counted. Costly help need not be worked out then.
    pub fn is_full(&self) -> bool {
        self.faults.len() >= MAX_FAULTS
    }

    /// How many errors there are so far.
    pub fn errors(&self) -> usize {
        self.errors
    }

    /// Notes that the document is to be refused, and why.
    pub fn error(&mut self, at: Span, message: impl Into<String>) -> Remark<'_> {
        self.errors += 1;
        self.note(Severity::Error, at, message.into())
    }

    /// Notes something that is probably not what the author meant.
    pub fn warning(&mut self, at: Span, message: impl Into<String>) -> Remark<'_> {
        self.note(Severity::Warning, at, message.into())
    }

    fn note(&mut self, severity: Severity, at: Span, message: String) -> Remark<'_> {
        if self.is_full() {
            self.dropped += 1;
            return Remark(None);
        }
        let (line_text, line_skipped) = self.excerpt(at);
        let location = self.location(at);
        let fault = Fault {
            severity,
            at: location,
            width: at.width,
            message,
            help: None,
            line_text,
            line_skipped,
        };
        self.faults.push((at, fault));
        Remark(self.faults.last_mut().map(|(_, fault)| fault))
    }

    /// The part of a line that a fault shows, and how many characters before it are left out.
    fn excerpt(&self, at: Span) -> (String, u32) {
        Fault::excerpt(self.line(at.file, at.line), at.column)
    }

    /// Ends the decoding.
    ///
    /// # Errors
    /// All faults, in the order of the text, if any of them is an error; else the warnings are returned.
    pub fn finish(mut self) -> Result<Faults, Faults> {
        self.faults.sort_by_key(|(span, _)| *span);
        let mut faults: Vec<Fault> = self.faults.into_iter().map(|(_, fault)| fault).collect();
        if let (true, Some(last)) = (self.dropped > 0, faults.last_mut()) {
            let more = format!("{} more faults are not shown", self.dropped);
            last.help = Some(
                last.help
                    .take()
                    .map_or(more.clone(), |help| format!("{help}; {more}")),
            );
        }
        if self.errors > 0 {
            Err(Faults(faults))
        } else {
            Ok(Faults(faults))
        }
    }

    /// Notes that something else was expected here.
    pub fn expected(&mut self, node: &Node, what: &str) -> Remark<'_> {
        self.error(node.span, format!("expected {what}, found {}", node.kind()))
    }

    /// The entries of a mapping, to be taken by key. `what` names it in messages: `the api`.
    pub fn fields<'n>(&mut self, node: &'n Node, what: &'static str) -> Option<Fields<'n>> {
        let entries = self.mapping(node)?;
        Some(Fields {
            entries,
            taken: SmallVec::from_elem(false, entries.len()),
            known: SmallVec::new(),
            what,
            span: node.span,
        })
    }

    /// The entries of a mapping whose keys are names.
    pub fn mapping<'n>(&mut self, node: &'n Node) -> Option<&'n [Entry]> {
        if let Value::Mapping(entries) = &node.value {
            return Some(entries);
        }
        self.expected(node, "a mapping (`key: value` lines, or `{ key: value }`)");
        None
    }

    /// The items of a list.
    pub fn list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        if let Value::Sequence(items) = &node.value {
            return Some(items);
        }
        self.expected(node, "a list (`- item` lines, or `[item, item]`)");
        None
    }

    /// The items of a list that must have some.
    pub fn nonempty_list<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        let items = self.list(node)?;
        if items.is_empty() {
            self.error(node.span, "this list is empty")
                .help("list at least one, or remove the key");
            return None;
        }
        Some(items)
    }

    /// The items of a list, or the one value that stands in its place.
    pub fn one_or_many<'n>(&mut self, node: &'n Node) -> Option<&'n [Node]> {
        match &node.value {
            Value::Sequence(_) => self.nonempty_list(node),
            _ => Some(std::slice::from_ref(node)),
        }
    }

    /// A scalar of any kind but null, as it is written.
    pub fn scalar<'n>(&mut self, node: &'n Node, what: &str) -> Option<&'n Scalar> {
        match &node.value {
            Value::Scalar(scalar) if !scalar.is_null() => Some(scalar),
            _ => {
                self.expected(node, what);
                None
            }
        }
    }

    /// A string.
    pub fn string<'n>(&mut self, node: &'n Node) -> Option<&'n str> {
        let scalar = self.scalar(node, "a string")?;
        if scalar.kind() != "a string" {
            self.expected(node, "a string")
                .help("put it in quotes if it is meant as text");
            return None;
        }
        Some(&scalar.text)
    }

    /// A plain decimal integer within a range.
    pub fn integer<T>(&mut self, node: &Node, range: RangeInclusive<T>) -> Option<T>
    where
        T: std::str::FromStr + PartialOrd + Display,
    {
        let what = format!("an integer from {} to {}", range.start(), range.end());
        let scalar = self.scalar(node, &what)?;
        let digits = scalar.text.strip_prefix('-').unwrap_or(&scalar.text);
        let canonical = &*scalar.text == "0" || !digits.starts_with(['0', '+']);
        let value = scalar
            .text
            .parse()
            .ok()
            .filter(|value| range.contains(value));
        if scalar.plain && canonical && value.is_some() {
            return value;
        }
        let in_quotes = !scalar.plain && canonical && value.is_some();
        let report = self.error(
            node.span,
            format!("expected {what}, found {}", quote(&scalar.text)),
        );
        if in_quotes {
            report.help("write it without quotes");
        }
        None
    }

    /// `true` or `false`.
    pub fn boolean(&mut self, node: &Node) -> Option<bool> {
        let scalar = self.scalar(node, "`true` or `false`")?;
        match (&*scalar.text, scalar.plain) {
            ("true", true) => Some(true),
            ("false", true) => Some(false),
            _ => {
                self.error(
                    node.span,
                    format!("expected `true` or `false`, found {}", quote(&scalar.text)),
                );
                None
            }
        }
    }

    /// A size in bytes: `16KiB`, see [`parse_byte_size`].
    pub fn byte_size(&mut self, node: &Node) -> Option<u64> {
        self.parsed(
            node,
            "a size such as `512`, `16KiB` or `1MiB`",
            parse_byte_size,
        )
    }

    /// A span of time: `10s`, see [`parse_duration`].
    pub fn duration(&mut self, node: &Node) -> Option<Duration> {
        self.parsed(
            node,
            "a duration such as `250ms`, `10s`, `5m`, `2h` or `7d`",
            parse_duration,
        )
    }

    /// An IPv4 or IPv6 address.
    pub fn ip(&mut self, node: &Node) -> Option<IpAddr> {
        self.parsed(node, "an IP address", |text| text.parse().ok())
    }

    /// A path, not empty and without NUL.
    pub fn path(&mut self, node: &Node) -> Option<PathBuf> {
        let usable = |text: &str| (!text.is_empty() && !text.contains('\0')).then(|| text.into());
        let text = self.string(node)?;
        let path = usable(text);
        if path.is_none() {
            self.error(node.span, "expected a path");
        }
        path
    }

    /// A scalar read by `parse`; `what` says what it should have been.
    pub fn parsed<T>(
        &mut self,
        node: &Node,
        what: &str,
        parse: impl FnOnce(&str) -> Option<T>,
    ) -> Option<T> {
        let scalar = self.scalar(node, what)?;
        let value = parse(&scalar.text);
        if value.is_none() {
            self.error(
                node.span,
                format!("expected {what}, found {}", quote(&scalar.text)),
            );
        }
        value
    }

    /// One of a few words.
    pub fn word<T: Copy>(&mut self, node: &Node, words: &[(&str, T)]) -> Option<T> {
        let list = words
            .iter()
            .map(|(word, _)| format!("`{word}`"))
            .collect::<Vec<_>>()
            .join(", ");
        let scalar = self.scalar(node, &format!("one of {list}"))?;
        let found = words.iter().find(|(word, _)| *word == &*scalar.text);
        if found.is_none() {
            let message = format!("expected one of {list}, found {}", quote(&scalar.text));
            let near = nearest(&scalar.text, words.iter().map(|(word, _)| *word));
            let remark = self.error(node.span, message);
            if let Some(near) = near {
                remark.help(format!("did you mean `{near}`?"));
            }
        }
        found.map(|(_, value)| *value)
    }
}

/// The entries of one mapping. What is not taken by [`Fields::finish`] is a fault.
#[derive(Debug)]
#[must_use = "call `finish`, or unknown keys go unnoticed"]
pub struct Fields<'n> {
    entries: &'n [Entry],
    taken: SmallVec<[bool; 16]>,
    known: SmallVec<[&'static str; 16]>,
    what: &'static str,
    span: Span,
}

impl<'n> Fields<'n> {
    /// The value of `key`, if it is there. From now on the key is known.
    pub fn take(&mut self, key: &'static str) -> Option<&'n Node> {
        self.take_entry(key).map(|entry| &entry.value)
    }

    /// The key and value of `key`, if they are there.
    pub fn take_entry(&mut self, key: &'static str) -> Option<&'n Entry> {
        self.known.push(key);
        let index = self
            .entries
            .iter()
            .position(|entry| &*entry.key.text == key)?;
        if let Some(taken) = self.taken.get_mut(index) {
            *taken = true;
        }
        self.entries.get(index)
    }

    /// Whether `key` is there; does not make it known.
    pub fn has(&self, key: &str) -> bool {
        self.entries.iter().any(|entry| &*entry.key.text == key)
    }

    /// The value of `key`; a fault where it is missing.
    pub fn require(&mut self, decoder: &mut Decoder, key: &'static str) -> Option<&'n Node> {
        let node = self.take(key);
        if node.is_none() {
            decoder.error(self.span, format!("{} needs `{key}`", self.what));
        }
        node
    }

    /// Where the mapping stands.
    pub fn span(&self) -> Span {
        self.span
    }

    /// Notes every key that was not taken, with the nearest known one.
    pub fn finish(mut self, decoder: &mut Decoder) {
        if self.taken.iter().all(|taken| *taken) {
            return;
        }
        self.known.sort_unstable();
        self.known.dedup();
        for (entry, _) in self
            .entries
            .iter()
            .zip(&self.taken)
            .filter(|(_, taken)| !**taken)
        {
            let help = (!decoder.is_full()).then(|| self.help(&entry.key.text));
            let message = format!("unknown key {} in {}", quote(&entry.key.text), self.what);
            decoder
                .error(entry.key.span, message)
                .help(help.unwrap_or_default());
        }
    }

    fn help(&self, key: &str) -> String {
        let list = self
            .known
            .iter()
            .map(|key| format!("`{key}`"))
            .collect::<Vec<_>>()
            .join(", ");
        if self.known.is_empty() {
            return format!("{} has no keys", self.what);
        }
        match nearest(key, self.known.iter().copied()) {
            Some(near) => format!("did you mean `{near}`? known keys: {list}"),
            None => format!("known keys: {list}"),
        }
    }
}
