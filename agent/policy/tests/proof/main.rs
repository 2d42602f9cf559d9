//! The policy against a second evaluator that is written straight from the semantics, and the laws that
//! hold of every policy.
//!
//! `meaning.rs` and `naive.rs` (with `fits.rs` and `body.rs`) are the semantics; `model.rs` prints a policy, `generate.rs`
//! and `witness.rs` make policies and requests; `agreement.rs` compares; `flaws.rs` shows that it notices;
//! `laws.rs` has what must hold whatever the policy.
#![allow(
    missing_docs,
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod agreement;
mod body;
mod chance;
mod fits;
mod flaws;
mod generate;
mod laws;
mod meaning;
mod model;
mod naive;
mod request;
mod shrink;
mod tally;
mod witness;

use tollgate_policy::Policy;
use tollgate_policy::syntax::Source;

fn source(name: &str, text: String) -> Source {
    Source {
        name: name.to_owned(),
        text,
    }
}

/// The policy of a document that has no fault.
fn compiled(text: &str) -> Policy {
    match tollgate_policy::compile(&[source("p.yaml", text.to_owned())]) {
        Ok(compiled) => compiled.policy,
        Err(faults) => panic!("{faults}\n{text}"),
    }
}
