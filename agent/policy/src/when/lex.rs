//! From a condition's text to its words.
use super::{Span, WhenFault};

/// A word of a condition and where it stands.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Token {
    pub(super) lexeme: Lexeme,
    pub(super) span: Span,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Lexeme {
    /// A name or keyword.
    Word(Box<str>),
    /// An integer without its sign.
    Whole(u64),
    Unsigned(u64),
    Double(f64),
    Text(Box<str>),
    Sign(&'static str),
    End,
}

/// Longest first: `<=` before `<`.
const SIGNS: [&str; 25] = [
    "&&", "||", "==", "!=", "<=", ">=", "(", ")", "[", "]", "{", "}", ".", ",", "-", "+", "*", "/",
    "%", "?", ":", "!", "<", ">", "=",
];

/// The words of `text`, the last of them [`Lexeme::End`].
pub(super) fn lex(text: &str) -> Result<Vec<Token>, WhenFault> {
    let mut lexer = Lexer { text, at: 0 };
    let mut tokens = Vec::new();
    loop {
        lexer.skip_blank();
        let start = lexer.at;
        let lexeme = lexer.lexeme()?;
        let last = lexeme == Lexeme::End;
        tokens.push(Token {
            lexeme,
            span: Span::new(start, lexer.at),
        });
        if last {
            return Ok(tokens);
        }
    }
}

struct Lexer<'t> {
    text: &'t str,
    at: usize,
}

impl<'t> Lexer<'t> {
    fn rest(&self) -> &'t str {
        self.text.get(self.at..).unwrap_or("")
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'t str {
        let rest = self.rest();
        let end = rest
            .find(|character| !wanted(character))
            .unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or("")
    }

    fn take(&mut self, text: &str) -> bool {
        let found = self.rest().starts_with(text);
        if found {
            self.at += text.len();
        }
        found
    }

    fn next(&mut self) -> Option<char> {
        let character = self.rest().chars().next()?;
        self.at += character.len_utf8();
        Some(character)
    }

    fn skip_blank(&mut self) {
        loop {
            self.take_while(|character| matches!(character, ' ' | '\t' | '\n' | '\r' | '\x0c'));
            if !self.rest().starts_with("//") {
                return;
            }
            self.take_while(|character| character != '\n');
        }
    }

    fn fault(&self, start: usize, message: impl Into<String>) -> WhenFault {
        WhenFault::new(Span::new(start, self.at), message)
    }

    fn lexeme(&mut self) -> Result<Lexeme, WhenFault> {
        let mut ahead = self.rest().chars();
        let (first, second) = (ahead.next(), ahead.next());
        match (first, second) {
            (None, _) => Ok(Lexeme::End),
            (Some('0'..='9'), _) | (Some('.'), Some('0'..='9')) => self.number(),
            (Some('\'' | '"'), _) => self.string(false),
            (Some('r' | 'R'), Some('\'' | '"')) => {
                self.at += 1;
                self.string(true)
            }
            (Some('b' | 'B'), Some('\'' | '"')) => {
                let start = self.at;
                self.at += 1;
                Err(self
                    .fault(start, "bytes are not part of conditions")
                    .help("write a string, without `b` before it"))
            }
            (Some('a'..='z' | 'A'..='Z' | '_'), _) => {
                let word = self.take_while(is_word);
                Ok(Lexeme::Word(word.into()))
            }
            (Some(other), _) => self.sign(other),
        }
    }

    fn sign(&mut self, first: char) -> Result<Lexeme, WhenFault> {
        let start = self.at;
        if let Some(sign) = SIGNS.iter().copied().find(|sign| self.take(sign)) {
            return Ok(Lexeme::Sign(sign));
        }
        self.next();
        let fault = self.fault(
            start,
            format!("{} has no meaning here", super::quote(&first.to_string())),
        );
        Err(match first {
            '&' => fault.help("`and` is written `&&`"),
            '|' => fault.help("`or` is written `||`"),
            '`' => fault.help("a name with other characters is written `['the-name']`"),
            _ => fault,
        })
    }

    fn number(&mut self) -> Result<Lexeme, WhenFault> {
        let start = self.at;
        if self.take("0x") || self.take("0X") {
            let digits = self.take_while(|character| character.is_ascii_hexdigit());
            let value = u64::from_str_radix(digits, 16).ok();
            return self.whole(start, value);
        }
        let digits = self.take_while(|character| character.is_ascii_digit());
        let mut double = false;
        if fraction_follows(self.rest()) {
            self.at += 1;
            self.take_while(|character| character.is_ascii_digit());
            double = true;
        }
        if let Some(length) = exponent_length(self.rest()) {
            self.at += length;
            self.take_while(|character| character.is_ascii_digit());
            double = true;
        }
        if !double {
            return self.whole(start, digits.parse().ok());
        }
        let written = self.text.get(start..self.at).unwrap_or("");
        let value = written.parse().ok().filter(|value: &f64| value.is_finite());
        self.end_number(start)?;
        value
            .map(Lexeme::Double)
            .ok_or_else(|| self.fault(start, "the number is too large"))
    }

    fn whole(&mut self, start: usize, value: Option<u64>) -> Result<Lexeme, WhenFault> {
        let unsigned = self.take("u") || self.take("U");
        self.end_number(start)?;
        let value = value.ok_or_else(|| self.fault(start, "the number is not a valid integer"))?;
        Ok(if unsigned {
            Lexeme::Unsigned(value)
        } else {
            Lexeme::Whole(value)
        })
    }

    /// A number does not run into a word.
    fn end_number(&mut self, start: usize) -> Result<(), WhenFault> {
        if self.take_while(is_word).is_empty() {
            return Ok(());
        }
        Err(self
            .fault(start, "this is neither a number nor a name")
            .help("put text between quotes"))
    }

    fn string(&mut self, raw: bool) -> Result<Lexeme, WhenFault> {
        let start = self.at;
        let single = if self.rest().starts_with('\'') {
            "'"
        } else {
            "\""
        };
        let triple = single.repeat(3);
        let (end, lines) = if self.rest().starts_with(&triple) {
            (triple.as_str(), true)
        } else {
            (single, false)
        };
        self.take(end);
        let mut value = String::new();
        while !self.take(end) {
            let at = self.at;
            match self.next() {
                None | Some('\r') => return Err(self.open_string(start, end)),
                Some('\n') if !lines => return Err(self.open_string(start, end)),
                Some('\\') if !raw => value.push(self.escape(at)?),
                Some(character) => value.push(character),
            }
        }
        Ok(Lexeme::Text(value.into()))
    }

    fn open_string(&self, start: usize, end: &str) -> WhenFault {
        self.fault(start, "the string does not end")
            .help(format!("it ends with {end} on the same line"))
    }

    fn escape(&mut self, start: usize) -> Result<char, WhenFault> {
        let plain = match self.next() {
            Some('a') => '\x07',
            Some('b') => '\x08',
            Some('f') => '\x0c',
            Some('n') => '\n',
            Some('r') => '\r',
            Some('t') => '\t',
            Some('v') => '\x0b',
            Some(same @ ('\\' | '\'' | '"' | '`' | '?')) => same,
            Some('x' | 'X') => return self.coded(start, 2, 16),
            Some('u') => return self.coded(start, 4, 16),
            Some('U') => return self.coded(start, 8, 16),
            Some('0'..='3') => {
                self.at -= 1;
                return self.coded(start, 3, 8);
            }
            _ => return Err(self.bad_escape(start)),
        };
        Ok(plain)
    }

    fn coded(&mut self, start: usize, digits: usize, radix: u32) -> Result<char, WhenFault> {
        let mut code: u32 = 0;
        for _ in 0..digits {
            let digit = self.next().and_then(|digit| digit.to_digit(radix));
            let next = digit.and_then(|digit| code.checked_mul(radix)?.checked_add(digit));
            code = next.ok_or_else(|| self.bad_escape(start))?;
        }
        char::from_u32(code).ok_or_else(|| self.bad_escape(start))
    }

    fn bad_escape(&self, start: usize) -> WhenFault {
        self.fault(start, "this escape has no meaning in a string")
            .help("a backslash is written `\\\\`, or put `r` before the string")
    }
}

fn is_word(character: char) -> bool {
    character.is_ascii_alphanumeric() || character == '_'
}

fn fraction_follows(rest: &str) -> bool {
    rest.strip_prefix('.')
        .is_some_and(|rest| rest.starts_with(|character: char| character.is_ascii_digit()))
}

/// Bytes of `e`, `e+` or `e-` where digits follow.
fn exponent_length(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix(['e', 'E'])?;
    let digits = after.strip_prefix(['+', '-']).unwrap_or(after);
    digits
        .starts_with(|character: char| character.is_ascii_digit())
        .then_some(rest.len() - digits.len())
}
