//! A strict JSON reader (RFC 8259): what it takes, every other reader takes the same way.
//!
//! Besides the grammar it refuses what readers differ on: a byte order mark, invalid UTF-8, a key twice
//! in one object (compared unescaped, and in a request without case), lone surrogates, numbers beyond a double, deep nesting, and
//! anything behind the value.
use super::edit::Edits;
use crate::fold;
use std::borrow::Cow;
use std::collections::HashSet;
use std::ops::Range;

/// Nesting at most.
pub(crate) const MAX_DEPTH: usize = 64;

/// Why a text is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JsonError {
    /// Some bytes are not UTF-8.
    #[error("it is not UTF-8")]
    NotUtf8,
    /// A byte order mark, which some readers skip.
    #[error("it begins with a byte order mark")]
    ByteOrderMark,
    /// Not JSON's grammar, from this byte on.
    #[error("it is not JSON (byte {0})")]
    Syntax(usize),
    /// Nested too deep.
    #[error("it is nested more than 64 levels deep")]
    Depth,
    /// A key twice in one object, also where one of them is written with escapes, or in a request in another case.
    #[error("the key {0} stands twice in one object")]
    DuplicateKey(String),
    /// A number that is infinite as a double.
    #[error("a number in it is too large")]
    NumberTooLarge,
    /// An integer that readers round; only told where the values are looked at.
    #[error("an integer in it has more than 64 bits")]
    IntegerTooLarge,
    /// Half of a surrogate pair.
    #[error("a string in it has half of a surrogate pair")]
    Surrogate,
    /// Something behind the value.
    #[error("something follows the JSON value")]
    Trailing,
    /// More values than are kept in memory at once.
    #[error("it has too many values to be looked at as a whole")]
    TooManyValues,
}

/// What becomes of a member or an element that was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Keep,
    /// It disappears, with its comma.
    Cut,
}

/// What comes next.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Object,
    Array,
    Text,
    Number,
    Bool,
    Null,
}

/// Reads one value from front to back.
#[derive(Debug)]
pub(crate) struct Reader<'b> {
    text: &'b str,
    at: usize,
    depth: usize,
    edits: Edits,
    /// Whether keys that differ in case alone are the same.
    fold: bool,
}

pub(super) type Read<T> = Result<T, JsonError>;

impl<'b> Reader<'b> {
    pub(crate) fn new(bytes: &'b [u8]) -> Read<Self> {
        let text = std::str::from_utf8(bytes).map_err(|_| JsonError::NotUtf8)?;
        if text.starts_with('\u{feff}') {
            return Err(JsonError::ByteOrderMark);
        }
        Ok(Self {
            text,
            at: 0,
            depth: 0,
            edits: Edits::default(),
            fold: true,
        })
    }

    /// A reader to whom keys that differ in case are two.
    pub(super) fn minding_case(bytes: &'b [u8]) -> Read<Self> {
        Ok(Self {
            fold: false,
            ..Self::new(bytes)?
        })
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn syntax<T>(&self) -> Read<T> {
        Err(JsonError::Syntax(self.at))
    }

    fn rest(&self) -> &'b str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn skip_space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn expect(&mut self, byte: u8) -> Read<()> {
        if self.peek() != Some(byte) {
            return self.syntax();
        }
        self.at += 1;
        Ok(())
    }

    /// What the next value is.
    pub(crate) fn kind(&mut self) -> Read<Kind> {
        self.skip_space();
        match self.peek() {
            Some(b'{') => Ok(Kind::Object),
            Some(b'[') => Ok(Kind::Array),
            Some(b'"') => Ok(Kind::Text),
            Some(b'-' | b'0'..=b'9') => Ok(Kind::Number),
            Some(b't' | b'f') => Ok(Kind::Bool),
            Some(b'n') => Ok(Kind::Null),
            _ => self.syntax(),
        }
    }

    /// The next value, which is a number, boolean or null, as it is written.
    pub(crate) fn word(&mut self) -> Read<&'b str> {
        let kind = self.kind()?;
        let rest = self.rest();
        // Most numbers are short integers; anything else is looked at in full.
        if let Some(length) = short_integer(rest.as_bytes()) {
            self.at += length;
            return Ok(rest.get(..length).unwrap_or(""));
        }
        let inside = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'+' | b'.');
        let length = rest.bytes().take_while(|byte| inside(*byte)).count();
        let word = rest.get(..length).unwrap_or("");
        match kind {
            Kind::Number if crate::shape::is_json_number(word) => {}
            Kind::Number if word.parse::<f64>().is_ok_and(f64::is_infinite) => {
                return Err(JsonError::NumberTooLarge);
            }
            Kind::Bool | Kind::Null if matches!(word, "true" | "false" | "null") => {}
            _ => return self.syntax(),
        }
        self.at += length;
        Ok(word)
    }

    /// The next value, which is a string, unescaped.
    pub(crate) fn string(&mut self) -> Read<Cow<'b, str>> {
        self.skip_space();
        self.expect(b'"')?;
        let mut unescaped: Option<String> = None;
        loop {
            let rest = self.rest();
            let plain = plain_length(rest.as_bytes());
            let run = rest.get(..plain).unwrap_or("");
            self.at += plain;
            match self.peek() {
                Some(b'"') => {
                    self.at += 1;
                    return Ok(match unescaped {
                        None => Cow::Borrowed(run),
                        Some(text) => Cow::Owned(text + run),
                    });
                }
                Some(b'\\') => {
                    self.at += 1;
                    let character = self.escape()?;
                    let text = unescaped.get_or_insert_default();
                    text.push_str(run);
                    text.push(character);
                }
                _ => return self.syntax(),
            }
        }
    }

    fn escape(&mut self) -> Read<char> {
        let Some(byte) = self.peek() else {
            return self.syntax();
        };
        self.at += 1;
        Ok(match byte {
            b'"' | b'\\' | b'/' => char::from(byte),
            b'b' => '\u{8}',
            b'f' => '\u{c}',
            b'n' => '\n',
            b'r' => '\r',
            b't' => '\t',
            b'u' => return self.unicode_escape(),
            _ => return self.syntax(),
        })
    }

    fn unicode_escape(&mut self) -> Read<char> {
        let first = self.four_digits()?;
        if let Some(character) = char::from_u32(first) {
            return Ok(character);
        }
        if first >= 0xdc00 || !self.rest().starts_with("\\u") {
            return Err(JsonError::Surrogate);
        }
        self.at += 2;
        let second = self.four_digits()?;
        if !(0xdc00..0xe000).contains(&second) {
            return Err(JsonError::Surrogate);
        }
        let code = 0x1_0000 + ((first - 0xd800) << 10) + (second - 0xdc00);
        char::from_u32(code).ok_or(JsonError::Surrogate)
    }

    fn four_digits(&mut self) -> Read<u32> {
        let digits = self.rest().get(..4).unwrap_or("");
        if digits.len() != 4 || !digits.bytes().all(|byte| byte.is_ascii_hexdigit()) {
            return self.syntax();
        }
        self.at += 4;
        u32::from_str_radix(digits, 16).or(Err(JsonError::Syntax(self.at)))
    }

    /// Reads an object; `field` must read the value of each key, and says what becomes of the member.
    pub(super) fn object<E: From<JsonError>>(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<Fate, E>,
    ) -> Result<(), E> {
        let mut keys = Keys::default();
        self.items(b'{', b'}', |reader| {
            let key = reader.string()?;
            reader.skip_space();
            reader.expect(b':')?;
            // The clone of a key without escapes is two words.
            if !keys.insert(key.clone(), reader.fold) {
                return Err(JsonError::DuplicateKey(crate::syntax::quote(&key)).into());
            }
            field(reader, &key)
        })
    }

    /// Reads an array; `item` must read each value, and says what becomes of it.
    pub(super) fn array<E: From<JsonError>>(
        &mut self,
        item: impl FnMut(&mut Self) -> Result<Fate, E>,
    ) -> Result<(), E> {
        self.items(b'[', b']', item)
    }

    /// What stands between brackets, separated by commas.
    fn items<E: From<JsonError>>(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<Fate, E>,
    ) -> Result<(), E> {
        self.skip_space();
        self.expect(open)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(JsonError::Depth.into());
        }
        self.skip_space();
        if self.peek() != Some(close) {
            let mut kept_one = false;
            let mut before = self.at;
            loop {
                self.skip_space();
                let start = self.at;
                let fate = item(self)?;
                let end = self.at;
                self.skip_space();
                let comma = self.at;
                let more = self.peek() == Some(b',');
                match (fate, kept_one, more) {
                    (Fate::Keep, _, _) => kept_one = true,
                    // Behind one that is kept goes the comma before it, else the comma behind it.
                    (Fate::Cut, true, _) => self.replace(before..end, ""),
                    (Fate::Cut, false, true) => self.replace(start..comma + 1, ""),
                    (Fate::Cut, false, false) => self.replace(start..end, ""),
                }
                if !more {
                    break;
                }
                before = comma;
                self.at = comma + 1;
            }
        }
        self.expect(close)?;
        self.depth -= 1;
        Ok(())
    }

    /// Puts something else in the place of what was read. Places must come in the order of the text.
    fn replace(&mut self, range: Range<usize>, with: &str) {
        self.edits
            .replace(self.text.as_bytes(), range, with.as_bytes());
    }

    /// Puts something else in the place of all from `start` to here.
    pub(super) fn replace_from(&mut self, start: usize, with: &str) {
        self.replace(start..self.at, with);
    }

    /// Where the next value begins.
    pub(super) fn position(&mut self) -> usize {
        self.skip_space();
        self.at
    }

    /// Reads any value, as strictly as one that is looked at.
    pub(crate) fn skip(&mut self) -> Read<()> {
        match self.kind()? {
            Kind::Object => self.object(|reader, _| reader.skip().map(|()| Fate::Keep)),
            Kind::Array => self.array(|reader| reader.skip().map(|()| Fate::Keep)),
            Kind::Text => self.string().map(drop),
            Kind::Number | Kind::Bool | Kind::Null => self.word().map(drop),
        }
    }

    /// Nothing but white space may follow. The text with what was cut and replaced, if anything was.
    pub(crate) fn end(mut self) -> Read<Option<Vec<u8>>> {
        self.skip_space();
        if self.at == self.text.len() {
            Ok(self.edits.finish(self.text.as_bytes()))
        } else {
            Err(JsonError::Trailing)
        }
    }
}

/// The length of an integer of few digits that ends where JSON lets a value end.
fn short_integer(bytes: &[u8]) -> Option<usize> {
    let sign = usize::from(bytes.first() == Some(&b'-'));
    let digits = bytes.get(sign..)?.iter().take(20);
    let count = digits.take_while(|byte| byte.is_ascii_digit()).count();
    let end = bytes.get(sign + count);
    let ends = matches!(end, Some(b',' | b']' | b'}' | b' ' | b'\t' | b'\n' | b'\r'));
    let canonical = count == 1 || (count > 1 && bytes.get(sign) != Some(&b'0'));
    (ends && canonical).then_some(sign + count)
}

/// How many bytes there are before a quote, a backslash or a control character.
fn plain_length(bytes: &[u8]) -> usize {
    const ONES: u64 = u64::from_le_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    // The lowest marked byte is the first below `limit`; what is marked above it may be wrong.
    let below = |word: u64, limit: u64| word.wrapping_sub(ONES * limit) & !word & HIGH;
    let (words, rest) = bytes.as_chunks::<8>();
    for (index, word) in words.iter().enumerate() {
        let word = u64::from_le_bytes(*word);
        let quote = below(word ^ (ONES * u64::from(b'"')), 1);
        let backslash = below(word ^ (ONES * u64::from(b'\\')), 1);
        let found = quote | backslash | below(word, 0x20);
        if found != 0 {
            return index * 8 + usize::from(found.trailing_zeros() as u8 / 8);
        }
    }
    let special = |byte: &u8| matches!(byte, b'"' | b'\\' | 0..=0x1f);
    words.len() * 8 + rest.iter().take_while(|byte| !special(byte)).count()
}

/// The keys of one object: a list while they are few.
#[derive(Default)]
struct Keys<'b> {
    few: smallvec::SmallVec<[Cow<'b, str>; Keys::FEW]>,
    many: HashSet<Cow<'b, str>>,
}

impl<'b> Keys<'b> {
    const FEW: usize = 32;

    /// Whether the key is new.
    fn insert(&mut self, key: Cow<'b, str>, fold: bool) -> bool {
        if self.many.is_empty() && self.few.len() < Self::FEW {
            let known = |known: &Cow<'b, str>| match fold {
                true => fold::same(known, &key),
                false => *known == key,
            };
            let new = !self.few.iter().any(known);
            if new {
                self.few.push(key);
            }
            return new;
        }
        if self.many.is_empty() {
            let few = self.few.drain(..);
            self.many.extend(few.map(|key| folded(key, fold)));
        }
        self.many.insert(folded(key, fold))
    }
}

/// What a key is compared by.
fn folded(key: Cow<'_, str>, fold: bool) -> Cow<'_, str> {
    match key {
        Cow::Borrowed(key) if fold => fold::fold(key),
        Cow::Owned(key) if fold => Cow::Owned(fold::fold(&key).into_owned()),
        exact => exact,
    }
}

#[cfg(test)]
mod tests;
