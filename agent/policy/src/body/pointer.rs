//! JSON pointers (RFC 6901), with `*` for every element or member, and many of them as one tree.
use crate::fold::fold;
use crate::syntax::quote;
use smallvec::SmallVec;
use std::borrow::Cow;
use std::fmt;

/// A place in a JSON text: `/items/*/token`. A token that is `*` as a whole means every element or member.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Pointer {
    text: Box<str>,
    tokens: Box<[Token]>,
}

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Token {
    Every,
    Name(Box<str>),
}

impl Pointer {
    /// Bytes of a pointer's text at most.
    pub const MAX_TEXT: usize = 1 << 10;
    /// Tokens of a pointer at most.
    pub const MAX_TOKENS: usize = 64;

    /// Reads a pointer.
    ///
    /// # Errors
    /// Why it is none, or names the whole text.
    pub fn parse(text: &str) -> Result<Self, String> {
        if text.len() > Self::MAX_TEXT {
            return Err(format!(
                "the pointer is longer than {} bytes",
                Self::MAX_TEXT
            ));
        }
        let Some(rest) = text.strip_prefix('/') else {
            return Err(format!(
                "{} is not a JSON pointer: it must begin with `/`",
                quote(text)
            ));
        };
        if rest.split('/').count() > Self::MAX_TOKENS {
            return Err(format!(
                "the pointer has more than {} tokens",
                Self::MAX_TOKENS
            ));
        }
        let tokens: Option<Box<[Token]>> = rest.split('/').map(token).collect();
        let tokens = tokens.ok_or_else(|| {
            format!(
                "{} is not a JSON pointer: `~` must be written `~0`, and `/` in a name `~1`",
                quote(text)
            )
        })?;
        Ok(Self {
            text: text.into(),
            tokens,
        })
    }

    /// The pointer as it was written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    pub(crate) fn tokens(&self) -> &[Token] {
        &self.tokens
    }
}

impl fmt::Display for Pointer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

fn token(text: &str) -> Option<Token> {
    if text == "*" {
        return Some(Token::Every);
    }
    let mut pieces = text.split('~');
    let mut name = pieces.next().unwrap_or("").to_owned();
    for piece in pieces {
        let mut characters = piece.chars();
        name.push(match characters.next() {
            Some('0') => '~',
            Some('1') => '/',
            _ => return None,
        });
        name.push_str(characters.as_str());
    }
    Some(Token::Name(name.into()))
}

/// A name as a token of a pointer.
pub(super) fn escape(name: &str, into: &mut String) {
    for character in name.chars() {
        match character {
            '~' => into.push_str("~0"),
            '/' => into.push_str("~1"),
            other => into.push(other),
        }
    }
}

/// Many pointers as one tree, followed while a text is read.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pointers {
    pub(super) list: Vec<Pointer>,
    /// Whether names are compared without case.
    fold: bool,
    /// The first is the root.
    nodes: Vec<Node>,
}

#[derive(Debug, Clone, Default)]
struct Node {
    /// By name.
    named: Vec<(Box<str>, usize)>,
    /// Those of the named ones that can mean an element, by number.
    numbered: Vec<(usize, usize)>,
    every: Option<usize>,
    /// The number of the pointer that ends here.
    end: Option<usize>,
}

/// The nodes that the tokens so far lead to.
pub(super) type Active = SmallVec<[usize; 8]>;

impl Pointers {
    /// The pointers as they are written.
    pub(crate) fn texts(&self) -> impl Iterator<Item = &str> {
        self.list.iter().map(Pointer::as_str)
    }

    /// Pointers at most: each may have to be followed on its own.
    pub(crate) const MOST: usize = 256;

    /// `None` if there are too many.
    pub(crate) fn new(pointers: &[Pointer]) -> Option<Self> {
        Self::made(pointers, false)
    }

    /// For readers that do not mind the case of a name: more is found.
    pub(crate) fn folding(pointers: &[Pointer]) -> Option<Self> {
        Self::made(pointers, true)
    }

    fn made(pointers: &[Pointer], fold: bool) -> Option<Self> {
        if pointers.len() > Self::MOST {
            return None;
        }
        let mut tree = Self {
            list: pointers.to_vec(),
            fold,
            nodes: vec![Node::default()],
        };
        for (number, pointer) in pointers.iter().enumerate() {
            let mut at = 0;
            for token in pointer.tokens() {
                at = tree.child(at, token);
            }
            if let Some(node) = tree.nodes.get_mut(at) {
                node.end.get_or_insert(number);
            }
        }
        Some(tree)
    }

    fn child(&mut self, parent: usize, token: &Token) -> usize {
        let new = self.nodes.len();
        let Some(node) = self.nodes.get_mut(parent) else {
            return parent;
        };
        let child = match token {
            Token::Every => *node.every.get_or_insert(new),
            Token::Name(name) => {
                let name: Box<str> = match self.fold {
                    true => fold(name).into(),
                    false => name.clone(),
                };
                match node.named.binary_search_by(|(known, _)| known.cmp(&name)) {
                    Ok(index) => node.named.get(index).map_or(new, |(_, child)| *child),
                    Err(index) => {
                        if let Some(number) = element_number(&name) {
                            node.numbered.push((number, new));
                            node.numbered.sort_unstable();
                        }
                        node.named.insert(index, (name, new));
                        new
                    }
                }
            }
        };
        if child == new {
            self.nodes.push(Node::default());
        }
        child
    }

    /// Where following begins.
    pub(super) fn root(&self) -> Active {
        match self.list.is_empty() {
            true => Active::new(),
            false => Active::from_slice(&[0]),
        }
    }

    /// Follows the name of a member.
    pub(super) fn member(&self, active: &[usize], name: &str) -> Followed<'_> {
        let name = match self.fold && !active.is_empty() {
            true => fold(name),
            false => Cow::Borrowed(name),
        };
        self.follow(active, |node| {
            let index = node
                .named
                .binary_search_by(|(known, _)| (**known).cmp(&name))
                .ok()?;
            node.named.get(index).map(|(_, child)| *child)
        })
    }

    /// Follows the number of an element.
    pub(super) fn element(&self, active: &[usize], number: usize) -> Followed<'_> {
        self.follow(active, |node| {
            let index = node
                .numbered
                .binary_search_by_key(&number, |(known, _)| *known)
                .ok()?;
            node.numbered.get(index).map(|(_, child)| *child)
        })
    }

    fn follow(&self, active: &[usize], named: impl Fn(&Node) -> Option<usize>) -> Followed<'_> {
        let mut next = Active::new();
        if active.is_empty() {
            return Followed::On(next);
        }
        for node in active.iter().filter_map(|number| self.nodes.get(*number)) {
            for child in named(node).into_iter().chain(node.every) {
                let end = self.nodes.get(child).and_then(|node| node.end);
                if let Some(pointer) = end.and_then(|number| self.list.get(number)) {
                    return Followed::Hit(pointer);
                }
                next.push(child);
            }
        }
        Followed::On(next)
    }
}

/// Where a token leads.
pub(super) enum Followed<'p> {
    /// To the end of this pointer.
    Hit(&'p Pointer),
    On(Active),
}

/// `0`, `1`, `12`: what a token must be to mean an element.
pub(crate) fn element_number(token: &str) -> Option<usize> {
    let canonical = token == "0" || token.starts_with(|first: char| ('1'..='9').contains(&first));
    let digits = token.bytes().all(|byte| byte.is_ascii_digit());
    token.parse().ok().filter(|_| canonical && digits)
}
