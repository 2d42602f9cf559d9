//! A strict JSON reader (RFC 8259): what it takes, every other reader takes the same way.
//!
//! Besides the grammar it refuses what readers differ on: a byte order mark, invalid UTF-8, a key twice
//! in one object (compared unescaped), lone surrogates, numbers beyond a double, deep nesting, and
//! anything behind the value.
use std::borrow::Cow;
use std::collections::HashSet;

/// Nesting at most.
pub(crate) const MAX_DEPTH: usize = 64;

/// Why a text is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum JsonError {
    #[error("it is not UTF-8")]
    NotUtf8,
    #[error("it begins with a byte order mark")]
    ByteOrderMark,
    #[error("it is not JSON (byte {0})")]
    Syntax(usize),
    #[error("it is nested more than 64 levels deep")]
    Depth,
    #[error("the key {0} stands twice in one object")]
    DuplicateKey(String),
    #[error("a number in it is too large")]
    NumberTooLarge,
    #[error("a string in it has half of a surrogate pair")]
    Surrogate,
    #[error("something follows the JSON value")]
    Trailing,
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
}

type Read<T> = Result<T, JsonError>;

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
            let plain = rest
                .bytes()
                .take_while(|byte| !matches!(byte, b'"' | b'\\' | 0..=0x1f))
                .count();
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

    /// Reads an object; `field` must read the value of each key.
    pub(crate) fn object<E: From<JsonError>>(
        &mut self,
        mut field: impl FnMut(&mut Self, &str) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut keys = Keys::default();
        self.items(b'{', b'}', |reader| {
            let key = reader.string()?;
            reader.skip_space();
            reader.expect(b':')?;
            if !keys.insert(&key) {
                return Err(JsonError::DuplicateKey(crate::syntax::quote(&key)).into());
            }
            field(reader, &key)
        })
    }

    /// Reads an array; `item` must read each value.
    pub(crate) fn array<E: From<JsonError>>(
        &mut self,
        item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.items(b'[', b']', item)
    }

    /// What stands between brackets, separated by commas.
    fn items<E: From<JsonError>>(
        &mut self,
        open: u8,
        close: u8,
        mut item: impl FnMut(&mut Self) -> Result<(), E>,
    ) -> Result<(), E> {
        self.skip_space();
        self.expect(open)?;
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(JsonError::Depth.into());
        }
        self.skip_space();
        if self.peek() != Some(close) {
            loop {
                item(self)?;
                self.skip_space();
                match self.peek() {
                    Some(b',') => self.at += 1,
                    _ => break,
                }
            }
        }
        self.expect(close)?;
        self.depth -= 1;
        Ok(())
    }

    /// Reads any value, as strictly as one that is looked at.
    pub(crate) fn skip(&mut self) -> Read<()> {
        match self.kind()? {
            Kind::Object => self.object(|reader, _| reader.skip()),
            Kind::Array => self.array(Self::skip),
            Kind::Text => self.string().map(drop),
            Kind::Number | Kind::Bool | Kind::Null => self.word().map(drop),
        }
    }

    /// Nothing but white space may follow.
    pub(crate) fn end(mut self) -> Read<()> {
        self.skip_space();
        if self.at == self.text.len() {
            Ok(())
        } else {
            Err(JsonError::Trailing)
        }
    }
}

/// The keys of one object: a list while they are few.
#[derive(Default)]
struct Keys {
    few: smallvec::SmallVec<[String; 8]>,
    many: HashSet<String>,
}

impl Keys {
    const FEW: usize = 32;

    /// Whether the key is new.
    fn insert(&mut self, key: &str) -> bool {
        if self.many.is_empty() && self.few.len() < Self::FEW {
            let new = !self.few.iter().any(|seen| seen == key);
            if new {
                self.few.push(key.to_owned());
            }
            return new;
        }
        if self.many.is_empty() {
            self.many.extend(self.few.drain(..));
        }
        self.many.insert(key.to_owned())
    }
}

#[cfg(test)]
mod tests {
    #![allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic
    )]
    use super::*;
    use crate::corpora::corpus;
    use proptest::prelude::*;

    fn read(bytes: &[u8]) -> Read<()> {
        let mut reader = Reader::new(bytes)?;
        reader.skip()?;
        reader.end()
    }

    #[test]
    fn what_readers_differ_on_is_refused() {
        let cases: [(&[u8], JsonError); 12] = [
            (b"\xef\xbb\xbf{}", JsonError::ByteOrderMark),
            (b"\"\xff\"", JsonError::NotUtf8),
            (br#"{"a":1,"a":2}"#, JsonError::DuplicateKey("`a`".into())),
            (
                br#"{"a":1,"\u0061":2}"#,
                JsonError::DuplicateKey("`a`".into()),
            ),
            (
                br#"[{"x":{"a":1,"a":2}}]"#,
                JsonError::DuplicateKey("`a`".into()),
            ),
            (b"1e999", JsonError::NumberTooLarge),
            (br#""\ud800""#, JsonError::Surrogate),
            (br#""\ud800\u0041""#, JsonError::Surrogate),
            (br#""\udc00""#, JsonError::Surrogate),
            (b"{} {}", JsonError::Trailing),
            (b"{}\n{}", JsonError::Trailing),
            (b"NaN", JsonError::Syntax(0)),
        ];
        for (bytes, error) in cases {
            assert_eq!(
                read(bytes),
                Err(error),
                "{}",
                String::from_utf8_lossy(bytes)
            );
        }
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        assert_eq!(read(nested(MAX_DEPTH).as_bytes()), Ok(()));
        assert_eq!(
            read(nested(MAX_DEPTH + 1).as_bytes()),
            Err(JsonError::Depth)
        );
        assert_eq!(
            read("[".repeat(1_000_000).as_bytes()),
            Err(JsonError::Depth)
        );
        let many: Vec<String> = (0..5_000)
            .map(|n| format!("\"k{}\":0", n % 4_999))
            .collect();
        let many = format!("{{{}}}", many.join(","));
        assert_eq!(
            read(many.as_bytes()),
            Err(JsonError::DuplicateKey("`k0`".into()))
        );
    }

    #[test]
    fn json_test_suite() {
        let Some(folder) = corpus("JSONTestSuite/test_parsing") else {
            return;
        };
        // Valid by the grammar, and refused because two readers take two values from it.
        let refused_by_policy = [
            "y_object_duplicated_key.json",
            "y_object_duplicated_key_and_value.json",
        ];
        let (mut good, mut bad) = (0, 0);
        for entry in std::fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            let result = read(&std::fs::read(&path).unwrap());
            match name.get(..2) {
                Some("y_") if refused_by_policy.contains(&name.as_str()) => {
                    assert!(matches!(result, Err(JsonError::DuplicateKey(_))), "{name}");
                    good += 1;
                }
                Some("y_") => {
                    assert_eq!(result, Ok(()), "{name}");
                    good += 1;
                }
                Some("n_") => {
                    assert!(result.is_err(), "{name}");
                    bad += 1;
                }
                // What is taken though either is right must be what another strict reader takes.
                _ => {
                    let text = std::fs::read(&path).unwrap();
                    assert!(
                        result.is_err()
                            || serde_json::from_slice::<serde_json::Value>(&text).is_ok(),
                        "{name}"
                    );
                }
            }
        }
        assert!(good >= 90 && bad >= 180, "{good} y_, {bad} n_");
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

        /// What is taken is what another reader takes, and strings come out the same.
        #[test]
        fn agrees_with_serde_json(text in "[\\[\\]{},:\"\\\\a-fu0-9eE+. \n-]{0,24}|\"(\\\\u[dD][89cC]00|\\\\u00[0-9a-f]{2}|[a-z]|\\\\[nrtbf/\"\\\\]){0,6}\"") {
            let ours = read(text.as_bytes()).is_ok();
            let theirs = serde_json::from_str::<serde_json::Value>(&text);
            prop_assert!(!ours || theirs.is_ok(), "{text}");
            if let (Ok(serde_json::Value::String(theirs)), true) = (theirs, ours) {
                let mut reader = Reader::new(text.as_bytes()).unwrap();
                prop_assert_eq!(reader.string().unwrap(), theirs);
            }
        }

        #[test]
        fn any_bytes_are_taken_or_refused(bytes in any::<Vec<u8>>()) {
            let _ = read(&bytes);
        }
    }
}
