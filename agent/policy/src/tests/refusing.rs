//! A policy of which nothing is allowed.
use super::*;
use crate::{Connection, Mode, Reason};

#[test]
fn a_policy_that_refuses_all_says_why_whatever_its_rules_are() {
    let reason = Reason {
        code: "policy_fault",
        detail: "a fault".to_owned(),
        hint: "mend it".to_owned(),
    };
    let text = POLICY.replace("openai: {", "pinned: { sni: [pin.com] }\n  openai: {");
    let text = text.replace(
        "grants:",
        "  pinned: [{ api: pinned }]\ngrants:\n  - { role: pinned, to: { workload: builder } }",
    );
    let good = compiled(&text).policy;
    let (open, pinned) = ["api.github.com", "pin.com"]
        .map(|host| Host::parse(host).unwrap())
        .into();
    let subject = Subject {
        workload: "builder",
        identity: None,
    };
    let get = call("builder", "GET", "https://api.github.com/repos/a/b");
    let connection = || Connection::Name(&pinned, 443);
    assert_eq!(get.decide(&good).verdict, Verdict::Allow);
    assert!(good.name("builder", &open, NOW).is_ok());
    let connected = good.connect(&subject, connection(), NOW);
    assert_eq!(connected.unwrap().verdict, Verdict::Allow);

    let refusing = good.refuse_all(reason.clone());
    // Also where the grant is only observed: it is not known whether it still is.
    let observed = call(
        "notebooks",
        "POST",
        "https://api.openai.com/v1/chat/completions",
    );
    for decision in [
        get.decide(&refusing),
        observed.decide(&refusing),
        refusing.connect(&subject, connection(), NOW).unwrap(),
        get.on(|subject, request| refusing.explain(subject, request).decision),
    ] {
        assert_eq!(decision.verdict, Verdict::Deny);
        assert_eq!(decision.effective_mode(Mode::Enforce), Mode::Enforce);
        assert_eq!(decision.reason.as_ref(), Some(&reason));
    }
    assert_eq!(
        refusing.name("builder", &open, NOW).unwrap_err().reason,
        reason
    );
    assert_eq!(refusing.workloads().len(), 3);
}
