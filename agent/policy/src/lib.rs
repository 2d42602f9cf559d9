//! Tollgate's policy: the document a person writes, the compiler that finds every fault in it, and
//! the decision taken on each request.
//!
//! Pure by rule: no IO, no clock, no async. Everything a decision depends on is an argument.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod syntax;

#[cfg(test)]
mod corpora;
mod model;
pub use model::*;
