//! Conditions: what they come to, what is wrong with them, and that nothing makes them panic or run on.
use super::*;
use serde_json::{Value as Json, json};

mod faults;
mod hostile;
mod laws;
mod values;

/// Headers as a list.
pub(super) struct Fields<'a>(pub(super) &'a [(&'a str, &'a [u8])]);

impl Headers for Fields<'_> {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        for (_, value) in self.0.iter().filter(|(known, _)| *known == name) {
            visit(value);
        }
    }
}

pub(super) const PARAMETERS: &[&str] = &["repo", "number"];

pub(super) fn parse(text: &str) -> Result<When, Vec<WhenFault>> {
    let known = Known {
        parameters: PARAMETERS,
        body: true,
    };
    When::parse(text, &known)
}

/// Tuesday, 24 November 2026, 08:05:09 UTC.
pub(super) const NOW: i64 = 1_795_507_509;

/// A request to look at, with this body.
pub(super) fn with_facts<T>(json: Option<&Json>, look: impl FnOnce(&Facts<'_>) -> T) -> T {
    let form = json!({ "a": "1", "tags": ["x", "y"] });
    let target = Target::parse("/repos/acme/tools/issues/7?page=2&tag=a&tag=b%20c&empty")
        .expect("the target is canonical");
    let headers = Fields(&[
        ("x-tenant", b"acme"),
        ("accept", b"text/html"),
        ("accept", b"text/plain"),
        ("x-raw", b"\xff"),
    ]);
    look(&Facts {
        method: "PATCH",
        scheme: "https",
        host: "api.github.com",
        port: 443,
        path: &target.path,
        parameters: &[("repo", "tools".into()), ("number", "7".into())],
        query: &target,
        headers: &headers,
        json,
        form: Some(&form),
        workload: "report-builder",
        identity: Some("alice"),
        groups: &["oncall", "staff"],
        now: NOW,
    })
}

/// What a condition comes to on a body.
pub(super) fn on(text: &str, json: &Json) -> Result<bool, String> {
    let when = parse(text).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
    with_facts(Some(json), |facts| when.holds(facts))
}

pub(super) fn body() -> Json {
    json!({
        "title": "Crash at start",
        "labels": ["bug", "ui"],
        "n": 3,
        "neg": -7,
        "zero": 0,
        "half": 9.5,
        "whole": 3.0,
        "min": i64::MIN,
        "max": i64::MAX,
        "huge": u64::MAX,
        "flag": true,
        "none": null,
        "at": "2026-11-24T08:00:00Z",
        "user": { "name": "alice", "roles": [], "odd-name": 1 },
        "items": [{ "id": 1, "tags": ["a"] }, { "id": 2, "tags": ["a", "b"] }],
    })
}
