//! Tollgate's policy: the document a person writes, the compiler that finds every fault in it, and
//! the decision taken on each request.
//!
//! Pure by rule: no IO, no clock, no async. Everything a decision depends on is an argument.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod syntax;

mod body;
mod compile;
#[cfg(test)]
mod corpora;
mod decide;
mod document;
mod headers;
mod model;
mod policy;
mod route;
mod shape;
pub use compile::{Compiled, compile};
pub use model::*;
pub use policy::Policy;
