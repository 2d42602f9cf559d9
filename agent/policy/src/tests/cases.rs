//! `tollgate test`, from the file to the report.
use super::*;
use crate::tools::cases::{CaseResult, Suite};
use crate::tools::coverage::Coverage;
use std::collections::HashMap;

fn suite(text: &str) -> Result<Suite, String> {
    Suite::read(&source("cases.yaml", text)).map_err(|faults| faults.to_string())
}

fn run(text: &str) -> (Vec<CaseResult>, Coverage) {
    let policy = policy();
    let mut coverage = Coverage::new(&policy);
    let bodies = HashMap::from([("b.json".to_owned(), br#"{"state":"open"}"#.to_vec())]);
    let results = suite(text).unwrap().run(&policy, &bodies, &mut coverage);
    (results, coverage)
}

const GOOD: &str = r#"
policy: [policy.yaml]
now: 2026-06-01T00:00:00Z
cases:
  - name: reads issues
    workload: builder
    request: GET https://api.github.com/repos/acme/app/issues?state=open&access_token=z
    headers: { accept: application/json, X-Custom: [a, b] }
    expect: { verdict: allow, rule: "GET /repos/acme/{repo}/issues", mode: enforce, credential: github-bot, stripped: ["?access_token", x-custom] }
  - workload: builder
    request: PATCH https://api.github.com/repos/acme/app/issues/7
    json: { state: open, labels: [a, "1"], priority: 1 }
    expect: allow
  - workload: builder
    request: PATCH https://api.github.com/repos/acme/app/issues/7
    headers: { content-type: application/json }
    body: '{"state":"gone"}'
    expect: { verdict: deny, code: body_field, credential: none }
  - workload: builder
    request: PATCH https://api.github.com/repos/acme/app/issues/7
    headers: { content-type: application/json }
    file: b.json
    expect: { verdict: allow, rule: "policy.yaml:23" }
  - workload: builder
    request: GET https://api.github.com/repos/acme/payroll
    expect: { verdict: deny, rule: "role:triage deny * /repos/acme/payroll/**" }
  - workload: notebooks
    request: GET https://api.openai.com/v1/files
    expect: { verdict: deny, mode: observe }
"#;

#[test]
fn cases_that_hold() {
    let (results, coverage) = run(GOOD);
    let failed: Vec<_> = results.iter().filter(|result| !result.passed).collect();
    assert!(failed.is_empty(), "{failed:#?}");
    let verdicts: Vec<_> = results.iter().map(|result| result.verdict).collect();
    assert_eq!(
        verdicts,
        ["ALLOW", "ALLOW", "DENY", "ALLOW", "DENY", "WOULD-DENY"]
    );
    assert_eq!(
        results[1].name,
        "PATCH https://api.github.com/repos/acme/app/issues/7"
    );
    assert_eq!(coverage.counts(), (3, 9));
    assert_eq!(coverage.percent(), 33);
    let never: Vec<&str> = coverage
        .rules()
        .filter(|rule| rule.hits == 0)
        .map(|rule| rule.rule.as_str())
        .collect();
    assert!(never.contains(&"role:own allow * /**"), "{never:?}");
    let twice = coverage.rules().find(|rule| rule.hits == 2).unwrap();
    assert!(twice.rule.contains("PATCH"));
}

#[test]
fn each_kind_of_drift_is_told() {
    let case = |request: &str, expect: &str| {
        let text = format!(
            "cases: [{{ workload: builder, request: '{request}', headers: {{ x-a: b }}, expect: {expect} }}]"
        );
        run(&text).0.remove(0)
    };
    let issues = "GET https://api.github.com/repos/acme/app/issues";
    for (expect, drift) in [
        ("deny", "verdict: expected deny, came allow"),
        (
            "{ verdict: allow, code: method }",
            "code: expected method, came none",
        ),
        (
            "{ verdict: allow, rule: GET /x }",
            "rule: expected GET /x, came role:triage allow GET /repos/acme/{repo}/issues (policy.yaml:18)",
        ),
        (
            "{ verdict: allow, mode: observe }",
            "mode: expected observe, came enforce",
        ),
        (
            "{ verdict: allow, credential: none }",
            "credential: expected none, came github-bot",
        ),
        (
            "{ verdict: allow, stripped: [] }",
            "stripped: expected [], came [x-a]",
        ),
    ] {
        assert_eq!(case(issues, expect).drift, [drift]);
    }
    let missed = case("POST https://api.github.com/repos/acme/app/issues", "allow");
    assert_eq!(missed.drift, ["verdict: expected allow, came deny"]);
    assert!(missed.why[0].starts_with("method: "), "{:?}", missed.why);
    assert!(
        missed.why.iter().any(|why| why.starts_with("near: ")),
        "{:?}",
        missed.why
    );
    let allowed = case(issues, "deny").why;
    assert_eq!(
        allowed,
        ["allowed by role:triage allow GET /repos/acme/{repo}/issues (policy.yaml:18)"]
    );
    let text = "cases: [{ workload: bilder, request: 'GET https://a.com/', expect: deny }]";
    let unknown = run(text).0.remove(0);
    assert_eq!(
        (unknown.verdict, unknown.drift[0].as_str()),
        (
            "ERROR",
            "there is no workload `bilder` in the policy: did you mean `builder`?"
        )
    );
}

#[test]
fn faults_have_places() {
    for (text, fault) in [
        (
            "policy: [p.yaml]",
            "cases.yaml:1:1: error: the file of cases needs `cases`",
        ),
        ("cases: []", "cases.yaml:1:8: error: this list is empty"),
        (
            "cases: [{ workload: w, reqest: GET https://a.com/, expect: allow }]",
            "did you mean `request`?",
        ),
        (
            "cases: [{ workload: w, request: https://a.com/, expect: allow }]",
            "write a method and a URL",
        ),
        (
            "cases: [{ workload: w, request: GET https://a.com/%2f, expect: allow }]",
            "the agent refuses this with 400",
        ),
        (
            "cases: [{ workload: w, request: GET https://a.com/, expect: alow }]",
            "did you mean `allow`?",
        ),
        (
            "cases: [{ workload: w, request: GET https://a.com/, body: a, json: {}, expect: allow }]",
            "one of `body`, `json` and `file`",
        ),
        (
            "cases: [{ workload: w, request: GET https://a.com/, file: ../x, expect: allow }]",
            "is no file beside this one",
        ),
        (
            "cases: [{ workload: w, request: GET https://a.com/, json: { a: 0x1f }, expect: allow }]",
            "`0x1f` is no JSON value",
        ),
        ("now: today\ncases: [{}]", "expected a time such as"),
    ] {
        let told = suite(text).unwrap_err();
        assert!(told.contains(fault), "{fault}\n{told}");
    }
}
