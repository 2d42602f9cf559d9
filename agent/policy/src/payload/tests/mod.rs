//! Tables, properties and hostile input. Rules are written as in a document.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
mod graphql;
mod hostile;
mod llm;
mod mcp;
mod paths;

use super::{Payload, PayloadFault, is_grpc};
use crate::document::payload::tests::read;
use serde_json::Value;

/// A rule, from `graphql: { … }`, `mcp: { … }` or `llm: { … }`.
fn rule(text: &str) -> Payload {
    read(text).unwrap_or_else(|faults| panic!("{faults}"))
}

fn json(text: &str) -> Value {
    serde_json::from_str(text).unwrap_or_else(|error| panic!("{error} in {text}"))
}

/// Checks each body: `Ok` or the code of the fault.
#[track_caller]
fn table(rule: &Payload, cases: &[(Result<(), &str>, Value)]) {
    for (expected, body) in cases {
        let found = rule.check(body);
        assert_eq!(
            found.as_ref().copied().map_err(|fault| fault.code),
            *expected,
            "{body}\n{found:?}"
        );
        if let Err(PayloadFault { detail, hint, .. }) = found {
            assert!(!detail.is_empty() && !hint.is_empty(), "{body}");
            assert!(
                detail.len() < 1_000 && hint.len() < 2_000,
                "{detail} {hint}"
            );
        }
    }
}

struct Types(&'static [&'static str]);

impl crate::model::Headers for Types {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        assert_eq!(name, "content-type");
        self.0.iter().for_each(|value| visit(value.as_bytes()));
    }
}

#[test]
fn grpc_is_told_by_one_content_type() {
    for good in [
        "application/grpc",
        "application/grpc+proto",
        "application/grpc+json",
        "Application/GRPC+thrift",
    ] {
        assert!(is_grpc(&Types(Vec::leak(vec![good]))), "{good}");
    }
    for bad in [
        "",
        "application/grp",
        "application/grpc-web",
        "application/grpc-web+proto",
        "application/grpcx",
        "application/grpc+",
        "application/grpc+a b",
        "application/grpc; x=y",
        "application/json",
    ] {
        assert!(!is_grpc(&Types(Vec::leak(vec![bad]))), "{bad}");
    }
    assert!(!is_grpc(&Types(&[])));
    assert!(!is_grpc(&Types(&["application/grpc", "application/grpc"])));
    assert!(!is_grpc(&Types(&["application/json", "application/grpc"])));
}
