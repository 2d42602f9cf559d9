//! A checked condition: every name is resolved, every function known, every pattern compiled.
use super::functions::Function;
use super::parse::{Literal, Operator};
use regex::Regex;

#[derive(Debug)]
pub(super) enum Expr {
    Literal(Literal),
    Fact(Fact),
    /// A path parameter.
    Parameter(Box<str>),
    /// The one value of a header, by its lower-case name.
    Header(Box<str>),
    HasHeader(Box<str>),
    /// `has(…)` of what a request may lack.
    HasFact(Fact),
    /// A variable of a comprehension, counted from the outermost.
    Local(usize),
    Field(Box<Expr>, Box<str>),
    HasField(Box<Expr>, Box<str>),
    Index(Box<Expr>, Box<Expr>),
    List(Vec<Expr>),
    Map(Vec<(Expr, Expr)>),
    Not(Box<Expr>),
    Negate(Box<Expr>),
    Binary(Operator, Box<Expr>, Box<Expr>),
    And(Vec<Expr>),
    Or(Vec<Expr>),
    Choose(Box<[Expr; 3]>),
    Call(Function, Vec<Expr>),
    Matches(Box<Expr>, Box<Regex>),
    Each(Box<Each>),
}

/// A comprehension.
#[derive(Debug)]
pub(super) struct Each {
    pub(super) kind: EachKind,
    /// What is gone through.
    pub(super) range: Expr,
    /// Which elements `map` takes.
    pub(super) filter: Option<Expr>,
    pub(super) body: Expr,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EachKind {
    All,
    Exists,
    ExistsOne,
    Filter,
    Map,
}

/// What is known of a request, without what is named in the condition.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fact {
    Method,
    Scheme,
    Host,
    Port,
    Path,
    Query,
    Json,
    Form,
    Workload,
    Identity,
    Groups,
    Now,
}
