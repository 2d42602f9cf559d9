//! What a change lets in and shuts out.
use super::*;
use crate::tools::call::Call as Asked;
use crate::tools::diff::{Change, Difference, Kind, diff};
use proptest::prelude::*;
use proptest::sample::select;

const WHOLE: &str = r#"version: 1
workloads: { w: { match: { unit: w.service } }, v: {} }
identities: { alice: { token: tgi_a }, bob: { token: tgi_b } }
groups: { team: [alice, bob] }
apis:
  a: { hosts: [a.com, "*.b.com"], addresses: [10.0.0.0/8] }
  cache: { tcp: ["10.0.0.7:6379"] }
  bank: { sni: [bank.com] }
credentials:
  c: { secret: "file:s", header: { authorization: "Bearer {secret}" }, to: [a] }
  d: { secret: "file:t", header: { authorization: "Bearer {secret}" }, to: [a] }
roles:
  r:
    - api: a
      credential: c
      allow:
        - route: GET /repos/{repo}/issues
          query: { state: [open, closed], page: 1..9 }
        - route: PATCH /repos/{repo}/issues/{n:int}
          body: { fields: { state: [open, closed] }, max: 1KiB }
        - route: GET|HEAD /files/**
          headers: { require: { x-tenant: [acme] } }
      deny:
        - route: "* /files/secret/**"
  s: [{ api: a, allow: [{ route: GET /team }] }]
  net: [{ api: cache }, { api: bank }]
grants:
  - { role: r, to: { workload: w } }
  - { role: s, to: { workload: v, group: team }, until: 2026-12-31 }
  - { role: net, to: { workload: v } }
"#;

fn between(old: &str, new: &str) -> Difference {
    diff(&compiled(old).policy, &compiled(new).policy, NOW)
}

/// One part replaced: kind, what, and the first witness.
fn changed(part: &str, replacement: &str) -> Vec<(Kind, String, String)> {
    assert!(WHOLE.contains(part), "{part}");
    let difference = between(WHOLE, &WHOLE.replace(part, replacement));
    let told = |change: Change| {
        let witness = change.witnesses.first();
        let request = witness.map_or_else(String::new, |witness| witness.request.clone());
        (change.kind, change.what, request)
    };
    difference.changes.into_iter().map(told).collect()
}

#[test]
fn what_means_the_same_is_no_difference() {
    let turned = [
        ("roles:\n  r:", "roles:\n  another:"),
        ("role: r,", "role: another,"),
        ("\n  a: {", "\n  zzz: {"),
        ("api: a\n", "api: zzz\n"),
        ("to: [a] }\n  d", "to: [zzz] }\n  d"),
        ("to: [a] }\nroles", "to: [zzz] }\nroles"),
        ("s: [{ api: a,", "s: [{ api: zzz,"),
        ("  c: {", "  zz: {"),
        ("credential: c", "credential: zz"),
        ("/repos/{repo}/issues\n", "/repos/{anything}/issues\n"),
        ("GET|HEAD /files/**", "HEAD|GET /files/**"),
        ("[open, closed], page", "[closed, open], page"),
        ("group: team", "identity: [bob, alice]"),
    ];
    let new = turned
        .iter()
        .fold(WHOLE.to_owned(), |text, (part, replacement)| {
            assert!(text.contains(part), "{part}");
            text.replace(part, replacement)
        });
    let difference = between(WHOLE, &new);
    assert!(difference.is_empty(), "{:#?}", difference.changes);
    assert!(between(WHOLE, WHOLE).is_empty());
}

#[test]
fn each_change_with_a_request_that_shows_it() {
    use Kind::{Both, Changes, LetsIn, ShutsOut};
    let issues = "allow GET /repos/*/issues";
    let cases: &[(&str, &str, Kind, &str, &str)] = &[
        (
            "GET /repos/{repo}/issues",
            "GET|POST /repos/{repo}/issues",
            LetsIn,
            "allow POST /repos/*/issues",
            "POST https://a.com/repos/x/issues",
        ),
        (
            "[open, closed], page",
            "[open], page",
            ShutsOut,
            issues,
            "GET https://a.com/repos/x/issues?state=closed",
        ),
        (
            "page: 1..9",
            "page: 1..10",
            LetsIn,
            issues,
            "GET https://a.com/repos/x/issues?page=10",
        ),
        (
            "page: 1..9",
            "page: 2..10",
            Both,
            issues,
            "GET https://a.com/repos/x/issues?page=10",
        ),
        (
            ", page: 1..9 }",
            ", page: 1..9 }\n          extra: strip",
            LetsIn,
            issues,
            "GET https://a.com/repos/x/issues?tollgate-diff=1",
        ),
        (
            "state: [open, closed] }, max",
            "state: [open, closed], x: int }, max",
            LetsIn,
            "allow PATCH /repos/*/issues/{:int}",
            "PATCH https://a.com/repos/x/issues/7",
        ),
        (
            "x-tenant: [acme]",
            "x-tenant: [acme, other]",
            LetsIn,
            "allow GET /files/**",
            "GET https://a.com/files/x",
        ),
        (
            "credential: c",
            "credential: d",
            Changes,
            "allow GET /files/**",
            "GET https://a.com/files/x",
        ),
        (
            "credential: c",
            "credential: client",
            Changes,
            issues,
            "GET https://a.com/repos/x/issues",
        ),
        (
            "* /files/secret/**",
            "* /files/secrets/**",
            LetsIn,
            "deny * /files/secret/**",
            "GET https://a.com/files/secret/x",
        ),
        (
            "* /files/secret/**",
            "* /files/secrets/**",
            ShutsOut,
            "deny * /files/secrets/**",
            "GET https://a.com/files/secrets/x",
        ),
        (
            "role: r, to: { workload: w }",
            "role: r, to: { workload: w }, mode: observe",
            LetsIn,
            "denials",
            "TOLLGATE https://a.com/tollgate-diff",
        ),
        (
            "role: r, to: { workload: w }",
            "role: r, to: { workload: w, identity: bob }",
            ShutsOut,
            issues,
            "GET https://a.com/repos/x/issues",
        ),
        (
            "group: team }",
            "identity: alice }",
            ShutsOut,
            "allow GET /team",
            "GET https://a.com/team",
        ),
        (
            "until: 2026-12-31",
            "until: 2027-12-31",
            LetsIn,
            "allow GET /team",
            "GET https://a.com/team",
        ),
        (
            "\"*.b.com\"",
            "\"*.c.com\"",
            LetsIn,
            issues,
            "GET https://tollgate-diff.c.com/repos/x/issues",
        ),
        (
            "\"*.b.com\"",
            "\"*.c.com\"",
            ShutsOut,
            issues,
            "GET https://tollgate-diff.b.com/repos/x/issues",
        ),
        (
            "10.0.0.7:6379",
            "10.0.0.8:6379",
            LetsIn,
            "allow * /**",
            "connect 10.0.0.8:6379",
        ),
        (
            "[bank.com]",
            "[bank.com, bank.org]",
            LetsIn,
            "allow * /**",
            "connect bank.org:443",
        ),
        (
            "[10.0.0.0/8]",
            "[10.0.0.0/8, 127.0.0.1]",
            LetsIn,
            "addresses",
            "",
        ),
        (
            "unit: w.service",
            "unit: x.service",
            Changes,
            "recognised by",
            "",
        ),
        ("token: tgi_a", "token: tgi_c", Changes, "proven by", ""),
    ];
    let wrong: Vec<String> = cases
        .iter()
        .map(|case| (case, changed(case.0, case.1)))
        .filter(|((_, _, kind, what, request), found)| {
            let is = |change: &(Kind, String, String)| {
                change.0 == *kind && change.1 == *what && change.2 == *request
            };
            !found.iter().any(is)
        })
        .map(|(case, found)| format!("{case:?}\n{found:#?}"))
        .collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn what_has_no_effect_is_told_as_unproven() {
    let found = changed(
        "- route: GET|HEAD /files/**\n",
        "- route: GET /files/{x}\n          headers: { require: { x-tenant: [acme] } }\n        - route: GET|HEAD /files/**\n",
    );
    assert_eq!(
        found,
        [(
            Kind::Unproven,
            "allow GET /files/*".to_owned(),
            String::new()
        )]
    );
}

#[test]
fn conditions_and_groups() {
    let with = |when: &str, members: &str| {
        let rule = format!("{{ api: a, allow: [{{ route: GET /team, when: \"{when}\" }}] }}");
        WHOLE
            .replace("{ api: a, allow: [{ route: GET /team }] }", &rule)
            .replace("team: [alice, bob]", members)
    };
    let both = "team: [alice, bob], other: [alice]";
    let old = with("'other' in subject.groups", both);
    // Proven by a caller for whom it comes otherwise.
    let new = with("'team' in subject.groups", both);
    let change = between(&old, &new).changes.remove(0);
    assert_eq!(change.kind, Kind::LetsIn, "{change:#?}");
    assert_eq!(change.witnesses[0].identity.as_deref(), Some("bob"));
    // No rule is written otherwise, and yet other people have it.
    let moved = with(
        "'other' in subject.groups",
        "team: [alice, bob], other: [bob]",
    );
    let told: Vec<String> = between(&old, &moved)
        .changes
        .into_iter()
        .map(|change| format!("{} {}", change.identities.join(" "), change.what))
        .collect();
    assert_eq!(told, ["alice in groups", "bob in groups"]);
    // Nothing made up gets as far as this: told all the same.
    let never = between(&old, &with("request.headers['x-y'] == 'z'", both)).changes;
    assert!(
        never.iter().any(|change| change.what == "allow GET /team"),
        "{never:#?}"
    );
}

#[test]
fn from_nothing_and_to_nothing() {
    let all = between("version: 1", WHOLE).changes;
    assert!(
        all.iter()
            .all(|change| change.kind == Kind::LetsIn || change.what.starts_with("deny")),
        "{all:#?}"
    );
    assert_eq!(all.len(), 8, "{all:#?}");
    let none = between(WHOLE, "version: 1").changes;
    assert!(
        none.iter()
            .all(|change| change.kind == Kind::ShutsOut || change.what.starts_with("deny"))
    );
    assert_eq!(none.len(), all.len());
}

/// A rule of a random policy: effect, route, what it asks of the query.
type Rule = (bool, &'static str, &'static str, &'static str);

fn rule() -> impl Strategy<Value = Rule> {
    let methods = select(vec!["GET", "GET|PUT", "*", "PUT"]);
    let path = select(vec![
        "/a",
        "/a/",
        "/{x}",
        "/a/{n:int}",
        "/a/b",
        "/{x}/b",
        "/a/**",
        "/**",
        "/{p:[ab]+}",
        "/b/7",
    ]);
    let query = select(vec![
        "",
        "query: {}",
        "query: { p: int }",
        "query: { p: 1..5, q: [x, y] }",
        "query: { p: { type: int, required: true } }",
        "query: { p: int }, extra: strip",
    ]);
    (any::<bool>(), methods, path, query).prop_map(|(deny, methods, path, query)| {
        (deny, methods, path, if deny { "" } else { query })
    })
}

/// Who a role is granted to, until when, how.
type Grant = (usize, &'static str, &'static str, &'static str);

#[derive(Debug, Clone)]
struct Model {
    roles: Vec<Vec<Rule>>,
    grants: Vec<Grant>,
}

fn model() -> impl Strategy<Value = Model> {
    let to = select(vec![
        "workload: w",
        "workload: w, identity: alice",
        "group: team",
        "workload: v",
    ]);
    let until = select(vec!["", "", ", until: 2026-12-31", ", until: 2020-01-01"]);
    let mode = select(vec!["", "", ", mode: observe"]);
    (
        prop::collection::vec(prop::collection::vec(rule(), 1..4), 1..4),
        prop::collection::vec((0..3_usize, to, until, mode), 0..4),
    )
        .prop_map(|(roles, grants)| Model { roles, grants })
}

fn document(model: &Model, prefix: &str) -> String {
    let mut text = String::from(
        "version: 1\nworkloads: { w: {}, v: {} }\nidentities: { alice: { token: tgi_a }, bob: { token: tgi_b } }\n\
         groups: { team: [alice, bob] }\napis: { a: { hosts: [a.com] } }\nroles:\n",
    );
    for (number, rules) in model.roles.iter().enumerate() {
        text.push_str(&format!("  {prefix}{number}:\n"));
        for (deny, methods, path, query) in rules {
            let effect = if *deny { "deny" } else { "allow" };
            let comma = if query.is_empty() { "" } else { ", " };
            text.push_str(&format!(
                "    - {{ api: a, {effect}: [{{ route: '{methods} {path}'{comma}{query} }}] }}\n"
            ));
        }
    }
    text.push_str(
        "grants:\n  - { role: ROLE0, to: { workload: v }, until: 2019-01-01 }\n"
            .replace("ROLE", prefix)
            .as_str(),
    );
    for (role, to, until, mode) in &model.grants {
        let role = role % model.roles.len();
        text.push_str(&format!(
            "  - {{ role: {prefix}{role}, to: {{ {to} }}{until}{mode} }}\n"
        ));
    }
    text
}

fn verdict(
    policy: &Policy,
    workload: &str,
    identity: Option<&str>,
    call: &Asked,
    now: i64,
) -> Verdict {
    let subject = Subject { workload, identity };
    match policy.decide(&subject, &call.request(Body::Absent, now)) {
        Outcome::Decided(decision) => decision.verdict,
        Outcome::NeedsBody { .. } => panic!("the body is asked for"),
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, max_shrink_iters: 500, ..ProptestConfig::default() })]

    #[test]
    fn names_and_order_are_no_difference(model in model()) {
        let mut turned = model.clone();
        turned.roles.iter_mut().for_each(|rules| rules.reverse());
        turned.grants.reverse();
        let difference = between(&document(&model, "r"), &document(&turned, "other"));
        prop_assert!(difference.is_empty(), "{:#?}", difference.changes);
    }

    #[test]
    fn witnesses_are_true_and_nothing_is_missed(
        old in model(), new in model(),
        asked in prop::collection::vec((select(vec!["w", "v"]), select(vec![None, Some("alice"), Some("bob")]),
            select(vec!["GET", "PUT", "POST"]), select(vec!["/", "/a", "/a/", "/a/b", "/a/7", "/b", "/b/7", "/c/b", "/a/b/c"]),
            select(vec!["", "?p=1", "?p=9", "?p=1&p=1", "?q=x", "?r=1"])), 64),
    ) {
        let [old, new] = [&old, &new].map(|model| compiled(&document(model, "r")).policy);
        let difference = diff(&old, &new, NOW);
        for change in &difference.changes {
            for witness in &change.witnesses {
                let call = Asked::parse(&witness.request).unwrap();
                let answer = |policy: &Policy| {
                    let subject = Subject { workload: &witness.workload, identity: witness.identity.as_deref() };
                    let Outcome::Decided(decision) = policy.decide(&subject, &call.request(Body::Absent, witness.now)) else {
                        panic!("the body is asked for");
                    };
                    (decision.verdict, decision.mode, decision.plan.query)
                };
                prop_assert_ne!(answer(&old), answer(&new), "{:#?}", change);
            }
        }
        for (workload, identity, method, path, query) in asked {
            let call = Asked::new(method, &format!("https://a.com{path}{query}")).unwrap();
            let is = [&old, &new].map(|policy| verdict(policy, workload, identity, &call, NOW));
            prop_assert!(is[0] == is[1] || !difference.is_empty(), "{workload} {identity:?} {method} {path}{query}");
        }
    }
}

#[test]
fn what_a_workload_may_open_is_told() {
    let with = |openings: &str| format!("match: {{ unit: w.service }}, {openings}");
    let replaced = changed(
        "match: { unit: w.service }",
        &with("listen: [8080, 80], unix: [], established: report"),
    );
    let told: Vec<(Kind, &str)> = replaced
        .iter()
        .map(|(kind, what, _)| (*kind, what.as_str()))
        .collect();
    assert_eq!(
        told,
        [
            (Kind::Changes, "connections from before"),
            (Kind::Changes, "listens on"),
            (Kind::Changes, "may speak to")
        ]
    );
    let logs = with(
        "unix: [/run/systemd/journal/stdout, /dev/log, /run/systemd/journal/socket, /run/systemd/journal/dev-log]",
    );
    assert!(
        changed("match: { unit: w.service }", &logs).is_empty(),
        "what is there by itself"
    );
}
