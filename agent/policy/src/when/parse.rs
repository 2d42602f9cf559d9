//! From words to a tree, as CEL's grammar has it.
//!
//! Recursive, so bounded: brackets and conditionals nest at most [`MAX_NESTING`] deep, and no tree is
//! deeper than [`MAX_DEPTH`], which bounds what walks it later.
use super::lex::{Lexeme, Token, lex};
use super::{Span, WhenFault, quote};

/// Brackets and conditionals within each other at most.
pub(super) const MAX_NESTING: usize = 24;
/// Levels of the tree at most.
pub(super) const MAX_DEPTH: usize = 40;

/// A part of a condition and where it stands.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) kind: NodeKind,
    pub(super) span: Span,
    depth: usize,
}

#[derive(Debug)]
pub(super) enum NodeKind {
    Literal(Literal),
    Name(Box<str>),
    Select(Box<Node>, Word),
    Index(Box<Node>, Box<Node>),
    Call(Call),
    List(Vec<Node>),
    Map(Vec<(Node, Node)>),
    Not(Box<Node>),
    Negate(Box<Node>),
    Binary(Operator, Box<Node>, Box<Node>),
    /// Two or more.
    And(Vec<Node>),
    /// Two or more.
    Or(Vec<Node>),
    Choose(Box<[Node; 3]>),
}

#[derive(Debug)]
pub(super) struct Word {
    pub(super) text: Box<str>,
    pub(super) span: Span,
}

#[derive(Debug)]
pub(super) struct Call {
    pub(super) target: Option<Box<Node>>,
    pub(super) name: Word,
    pub(super) arguments: Vec<Node>,
}

#[derive(Debug, Clone, PartialEq)]
pub(super) enum Literal {
    Null,
    Bool(bool),
    Int(i64),
    Uint(u64),
    Double(f64),
    Text(Box<str>),
    Time(jiff::Timestamp),
    Span(jiff::SignedDuration),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operator {
    Or,
    And,
    Equal,
    Unequal,
    Less,
    AtMost,
    Greater,
    AtLeast,
    In,
    Add,
    Subtract,
    Multiply,
    Divide,
    Remainder,
}

impl Operator {
    const ALL: [(&'static str, Self, u8); 14] = [
        ("||", Self::Or, 1),
        ("&&", Self::And, 2),
        ("==", Self::Equal, 3),
        ("!=", Self::Unequal, 3),
        ("<", Self::Less, 3),
        ("<=", Self::AtMost, 3),
        (">", Self::Greater, 3),
        (">=", Self::AtLeast, 3),
        ("in", Self::In, 3),
        ("+", Self::Add, 4),
        ("-", Self::Subtract, 4),
        ("*", Self::Multiply, 5),
        ("/", Self::Divide, 5),
        ("%", Self::Remainder, 5),
    ];

    /// As it is written.
    pub(super) fn sign(self) -> &'static str {
        Self::ALL
            .iter()
            .find(|(_, operator, _)| *operator == self)
            .map_or("", |(sign, ..)| sign)
    }
}

/// Words that CEL keeps for itself.
const RESERVED: [&str; 17] = [
    "as",
    "break",
    "const",
    "continue",
    "else",
    "for",
    "function",
    "if",
    "import",
    "let",
    "loop",
    "namespace",
    "package",
    "return",
    "var",
    "void",
    "while",
];

pub(super) fn parse(text: &str) -> Result<Node, WhenFault> {
    let mut parser = Parser {
        tokens: lex(text)?.into_iter().peekable(),
        nesting: 0,
        end: Span::new(text.len(), text.len()),
    };
    let node = parser.expression()?;
    match parser.next() {
        Token {
            lexeme: Lexeme::End,
            ..
        } => Ok(node),
        token => Err(unexpected(&token, "an operator or the end")),
    }
}

struct Parser {
    tokens: std::iter::Peekable<std::vec::IntoIter<Token>>,
    nesting: usize,
    end: Span,
}

type Parsed<T> = Result<T, WhenFault>;

impl Parser {
    fn next(&mut self) -> Token {
        self.tokens.next().unwrap_or(Token {
            lexeme: Lexeme::End,
            span: self.end,
        })
    }

    fn sign(&mut self) -> Option<&'static str> {
        match self.tokens.peek() {
            Some(Token {
                lexeme: Lexeme::Sign(sign),
                ..
            }) => Some(sign),
            _ => None,
        }
    }

    /// Takes `sign` if it is next.
    fn take(&mut self, sign: &str) -> bool {
        let found = self.sign() == Some(sign);
        if found {
            self.next();
        }
        found
    }

    fn expect(&mut self, sign: &str) -> Parsed<Span> {
        let token = self.next();
        match token.lexeme {
            Lexeme::Sign(found) if found == sign => Ok(token.span),
            _ => Err(unexpected(&token, &format!("`{sign}`"))),
        }
    }

    /// A conditional or less.
    fn expression(&mut self) -> Parsed<Node> {
        self.nesting += 1;
        if self.nesting > MAX_NESTING {
            let span = self.next().span;
            return Err(too_deep(span));
        }
        let condition = self.binary(0)?;
        let node = if self.take("?") {
            let yes = self.binary(0)?;
            self.expect(":")?;
            let no = self.expression()?;
            let span = condition.span.to(no.span);
            let depth = deepest([&condition, &yes, &no]);
            build(
                NodeKind::Choose(Box::new([condition, yes, no])),
                span,
                depth,
            )?
        } else {
            condition
        };
        self.nesting -= 1;
        Ok(node)
    }

    /// Operators of at least this precedence.
    fn binary(&mut self, least: u8) -> Parsed<Node> {
        let mut left = self.unary()?;
        while let Some((operator, precedence)) = self.operator() {
            if precedence < least {
                break;
            }
            self.next();
            let right = self.binary(precedence + 1)?;
            left = join(operator, left, right)?;
        }
        Ok(left)
    }

    fn operator(&mut self) -> Option<(Operator, u8)> {
        let written = match &self.tokens.peek()?.lexeme {
            Lexeme::Sign(sign) => sign,
            Lexeme::Word(word) => word.as_ref(),
            _ => return None,
        };
        Operator::ALL
            .iter()
            .find(|(sign, ..)| *sign == written)
            .map(|(_, operator, precedence)| (*operator, *precedence))
    }

    fn unary(&mut self) -> Parsed<Node> {
        let mut signs = Vec::new();
        while let Some(sign @ ("!" | "-")) = self.sign() {
            let span = self.next().span;
            if signs.len() >= MAX_DEPTH {
                return Err(too_deep(span));
            }
            signs.push((sign, span));
        }
        let mut node = match (signs.last().copied(), self.tokens.peek()) {
            // The smallest integer has no positive counterpart, so the sign belongs to the number.
            (Some(("-", start)), Some(token)) if is_number(&token.lexeme) => {
                signs.pop();
                let token = self.next();
                let literal = negative(&token)?;
                let node = leaf(NodeKind::Literal(literal), start.to(token.span));
                self.postfix(node)?
            }
            _ => {
                let node = self.primary()?;
                self.postfix(node)?
            }
        };
        for (sign, start) in signs.into_iter().rev() {
            let (span, depth) = (start.to(node.span), node.depth);
            let operand = Box::new(node);
            let kind = match sign {
                "!" => NodeKind::Not(operand),
                _ => NodeKind::Negate(operand),
            };
            node = build(kind, span, depth)?;
        }
        Ok(node)
    }

    /// `.field`, `.method(…)` and `[index]`, as many as there are.
    fn postfix(&mut self, mut node: Node) -> Parsed<Node> {
        loop {
            let start = node.span;
            if self.take(".") {
                let name = self.word("a field or a function")?;
                node = if self.take("(") {
                    self.call(Some(Box::new(node)), name, start)?
                } else {
                    let (span, depth) = (start.to(name.span), node.depth);
                    build(NodeKind::Select(Box::new(node), name), span, depth)?
                };
            } else if self.take("[") {
                let index = self.expression()?;
                let span = start.to(self.expect("]")?);
                let depth = deepest([&node, &index]);
                node = build(
                    NodeKind::Index(Box::new(node), Box::new(index)),
                    span,
                    depth,
                )?;
            } else {
                return Ok(node);
            }
        }
    }

    fn word(&mut self, what: &str) -> Parsed<Word> {
        let token = self.next();
        match token.lexeme {
            Lexeme::Word(text) if !matches!(&*text, "in" | "true" | "false" | "null") => Ok(Word {
                text,
                span: token.span,
            }),
            Lexeme::Word(text) => Err(WhenFault::new(
                token.span,
                format!("{} is a word of the language", quote(&text)),
            )
            .help(format!("write ['{text}']"))),
            _ => Err(unexpected(&token, what)),
        }
    }

    /// After `(`.
    fn call(&mut self, target: Option<Box<Node>>, name: Word, start: Span) -> Parsed<Node> {
        let (arguments, end) = self.list(")", false)?;
        let depth = deepest(arguments.iter().chain(target.as_deref()));
        let call = Call {
            target,
            name,
            arguments,
        };
        build(NodeKind::Call(call), start.to(end), depth)
    }

    /// Expressions between commas, up to and with `end`.
    fn list(&mut self, end: &'static str, trailing_comma: bool) -> Parsed<(Vec<Node>, Span)> {
        let mut items = Vec::new();
        if self.sign() == Some(end) {
            return Ok((items, self.next().span));
        }
        loop {
            items.push(self.expression()?);
            let comma = self.take(",");
            if !comma || (trailing_comma && self.sign() == Some(end)) {
                let span = self.expect(end)?;
                return Ok((items, span));
            }
        }
    }

    fn primary(&mut self) -> Parsed<Node> {
        let token = self.next();
        let span = token.span;
        let literal = match token.lexeme {
            Lexeme::Sign("(") => {
                let mut node = self.expression()?;
                node.span = span.to(self.expect(")")?);
                return Ok(node);
            }
            Lexeme::Sign("[") => {
                let (items, end) = self.list("]", true)?;
                let depth = deepest(&items);
                return build(NodeKind::List(items), span.to(end), depth);
            }
            Lexeme::Sign("{") => return self.map(span),
            Lexeme::Word(text) => return self.named(text, span),
            Lexeme::Whole(value) => match i64::try_from(value) {
                Ok(value) => Literal::Int(value),
                Err(_) => return Err(too_large(span)),
            },
            Lexeme::Unsigned(value) => Literal::Uint(value),
            Lexeme::Double(value) => Literal::Double(value),
            Lexeme::Text(text) => Literal::Text(text),
            lexeme @ (Lexeme::Sign(_) | Lexeme::End) => {
                return Err(unexpected(&Token { lexeme, span }, "a value"));
            }
        };
        Ok(leaf(NodeKind::Literal(literal), span))
    }

    fn named(&mut self, text: Box<str>, span: Span) -> Parsed<Node> {
        let literal = match &*text {
            "true" => Literal::Bool(true),
            "false" => Literal::Bool(false),
            "null" => Literal::Null,
            "in" => {
                return Err(WhenFault::new(span, "`in` stands between two values")
                    .help("e.g. `'x' in request.json.labels`"));
            }
            reserved if RESERVED.contains(&reserved) => {
                let message = format!("{} is reserved", quote(reserved));
                return Err(WhenFault::new(span, message));
            }
            _ if self.take("(") => return self.call(None, Word { text, span }, span),
            _ if self.sign() == Some("{") => {
                return Err(WhenFault::new(
                    span,
                    "messages with a type are not part of conditions",
                ));
            }
            _ => return Ok(leaf(NodeKind::Name(text), span)),
        };
        Ok(leaf(NodeKind::Literal(literal), span))
    }

    /// After `{`.
    fn map(&mut self, start: Span) -> Parsed<Node> {
        let mut entries: Vec<(Node, Node)> = Vec::new();
        let mut more = self.sign() != Some("}");
        while more {
            let key = self.expression()?;
            self.expect(":")?;
            let value = self.expression()?;
            entries.push((key, value));
            more = self.take(",") && self.sign() != Some("}");
        }
        let end = self.expect("}")?;
        let depth = deepest(entries.iter().flat_map(|(key, value)| [key, value]));
        build(NodeKind::Map(entries), start.to(end), depth)
    }
}

fn is_number(lexeme: &Lexeme) -> bool {
    matches!(lexeme, Lexeme::Whole(_) | Lexeme::Double(_))
}

fn negative(token: &Token) -> Parsed<Literal> {
    match token.lexeme {
        Lexeme::Double(value) => Ok(Literal::Double(-value)),
        Lexeme::Whole(value) => 0_i64
            .checked_sub_unsigned(value)
            .map(Literal::Int)
            .ok_or_else(|| too_large(token.span)),
        _ => Err(unexpected(token, "a number")),
    }
}

/// `&&` and `||` become one node however many there are: only what nests is deep.
fn join(operator: Operator, left: Node, right: Node) -> Parsed<Node> {
    let span = left.span.to(right.span);
    let (left_depth, right_depth) = (left.depth, right.depth);
    let flat = left_depth.saturating_sub(1).max(right_depth);
    let (kind, depth) = match (operator, left.kind) {
        (Operator::And, NodeKind::And(mut terms)) => {
            terms.push(right);
            (NodeKind::And(terms), flat)
        }
        (Operator::Or, NodeKind::Or(mut terms)) => {
            terms.push(right);
            (NodeKind::Or(terms), flat)
        }
        (operator, kind) => {
            let left = Node {
                kind,
                span: left.span,
                depth: left_depth,
            };
            let kind = match operator {
                Operator::And => NodeKind::And(vec![left, right]),
                Operator::Or => NodeKind::Or(vec![left, right]),
                _ => NodeKind::Binary(operator, Box::new(left), Box::new(right)),
            };
            (kind, left_depth.max(right_depth))
        }
    };
    build(kind, span, depth)
}

fn leaf(kind: NodeKind, span: Span) -> Node {
    Node {
        kind,
        span,
        depth: 1,
    }
}

fn deepest<'n>(nodes: impl IntoIterator<Item = &'n Node>) -> usize {
    nodes.into_iter().map(|node| node.depth).max().unwrap_or(0)
}

/// A node above others, the deepest of which is `below` deep.
fn build(kind: NodeKind, span: Span, below: usize) -> Parsed<Node> {
    let depth = below + 1;
    if depth > MAX_DEPTH {
        return Err(too_deep(span));
    }
    Ok(Node { kind, span, depth })
}

fn too_deep(span: Span) -> WhenFault {
    WhenFault::new(span, "the condition is nested too deeply").help(format!(
        "at most {MAX_NESTING} brackets within each other, and {MAX_DEPTH} operators in a row"
    ))
}

fn too_large(span: Span) -> WhenFault {
    WhenFault::new(span, "the integer does not fit 64 bits")
        .help("an integer from 2^63 to 2^64-1 is written with `u` behind it")
}

fn unexpected(token: &Token, wanted: &str) -> WhenFault {
    let found = match &token.lexeme {
        Lexeme::Word(word) => quote(word),
        Lexeme::Whole(_) | Lexeme::Unsigned(_) | Lexeme::Double(_) => "a number".to_owned(),
        Lexeme::Text(_) => "a string".to_owned(),
        Lexeme::Sign(sign) => format!("`{sign}`"),
        Lexeme::End => "the end".to_owned(),
    };
    let fault = WhenFault::new(token.span, format!("expected {wanted}, found {found}"));
    match &token.lexeme {
        Lexeme::Sign("=") => fault.help("equality is written `==`"),
        Lexeme::Word(word) => match &**word {
            "and" => fault.help("`and` is written `&&`"),
            "or" => fault.help("`or` is written `||`"),
            "not" => fault.help("`not` is written `!`"),
            _ => fault,
        },
        _ => fault,
    }
}
