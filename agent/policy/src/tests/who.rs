//! Who could make a call.
use super::*;
use crate::tools::call::Call as Asked;
use crate::{Ability, Mode, Who};

const WHOLE: &str = r#"version: 1
workloads: { ci: {}, shop: {}, watched: {}, idle: {} }
identities: { alice: { token: tgi_a }, bob: { token: tgi_b } }
groups: { team: [alice, bob] }
apis: { a: { hosts: [a.com] }, bank: { sni: [bank.com] } }
credentials: { c: { secret: "file:s", header: { authorization: "{secret}" }, to: [a] } }
roles:
  delete:
    - api: a
      credential: c
      allow: [{ route: "DELETE /repos/{r}" }]
  careful:
    - api: a
      allow:
        - route: DELETE /repos/{r}
          query: { confirm: { type: bool, required: true } }
          headers: { require: { x-reason: string } }
          when: path.r != 'core'
        - route: POST /repos
          body: { fields: { name: string } }
  but: [{ api: a, deny: [{ route: "* /repos/core" }] }]
  bank: [{ api: bank }]
grants:
  - { role: delete, to: { workload: ci, group: team }, until: 2026-12-31 }
  - { role: but, to: { workload: ci, identity: bob } }
  - { role: careful, to: { workload: shop } }
  - { role: bank, to: { workload: shop } }
  - { role: careful, to: { workload: watched, identity: alice }, mode: observe }
"#;

fn who(call: &str) -> Vec<String> {
    let policy = compiled(WHOLE).policy;
    let call = Asked::parse(call).unwrap();
    let abilities = policy.who_can(&call.request(Body::Unread(None), NOW));
    abilities.iter().map(told).collect()
}

fn told(ability: &Ability<'_>) -> String {
    let who = match &ability.who {
        Who::Anybody { but } if but.is_empty() => "anybody".to_owned(),
        Who::Anybody { but } => format!("anybody but {}", but.join(" ")),
        Who::These(names) => names.join(" "),
    };
    let rule = ability
        .rule
        .map_or("observed".to_owned(), |rule| rule.at.line.to_string());
    let mode = if ability.mode == Mode::Observe {
        " observe"
    } else {
        ""
    };
    let until = ability
        .until
        .map_or(String::new(), |until| format!(" until {until}"));
    let with = ability
        .credential
        .map_or(String::new(), |name| format!(" with {name}"));
    let further = ability
        .further
        .iter()
        .map(|it| format!("; {it}"))
        .collect::<String>();
    format!(
        "{} as {who}: {rule}{mode}{until}{with}{further}",
        ability.workload
    )
}

#[test]
fn subjects_rules_and_what_would_still_have_to_hold() {
    let careful = "; header x-reason is string";
    assert_eq!(
        who("DELETE https://a.com/repos/app"),
        [
            "ci as alice bob: 11 until 1798761599 with c".to_owned(),
            format!("shop as anybody: 15; parameter confirm is bool{careful}"),
            format!("watched as alice: 15 observe; parameter confirm is bool{careful}"),
            "watched as alice: observed observe".to_owned(),
        ]
    );
    assert_eq!(
        who("DELETE https://a.com/repos/core?confirm=true"),
        [
            "ci as alice: 11 until 1798761599 with c",
            "watched as alice: observed observe",
        ]
    );
    let body = "the body fits: body { name: string } of at most 65536 bytes";
    assert_eq!(
        who("POST https://a.com/repos")[0],
        format!("shop as anybody: 19; {body}")
    );
    assert_eq!(who("DELETE https://a.com/repos/app?confirm=maybe").len(), 2);
    assert_eq!(
        who("DELETE http://a.com:443/repos/app"),
        Vec::<String>::new()
    );
    assert_eq!(
        who("GET https://bank.com/"),
        ["shop as anybody: 22; the connection is not inspected: any request passes"]
    );
    assert_eq!(
        who("GET https://other.com/"),
        ["watched as alice: observed observe"]
    );
}

#[test]
fn what_a_record_does_not_hold_is_asked_for() {
    let policy = compiled(WHOLE).policy;
    let call = Asked::parse("DELETE https://a.com/repos/app").unwrap();
    let could = |keys: &[&str]| -> Vec<String> {
        let subject = Subject {
            workload: "shop",
            identity: None,
        };
        let keys: Vec<String> = keys.iter().map(|key| (*key).to_owned()).collect();
        let request = call.request(Body::Unread(None), NOW);
        policy
            .could(&subject, &request, &keys)
            .iter()
            .map(told)
            .collect()
    };
    let asks = "shop as : 15; parameter confirm is bool; header x-reason is string";
    assert_eq!(could(&["confirm"]), [asks]);
    assert_eq!(could(&[]), [asks]);
    assert_eq!(could(&["debug"]), Vec::<String>::new());
}

/// Whoever is said to be able without condition is, and nobody else.
#[test]
fn agrees_with_deciding() {
    let policy = compiled(WHOLE).policy;
    for path in ["/repos/app", "/repos/core", "/repos", "/x"] {
        for method in ["DELETE", "POST", "GET"] {
            let call = Asked::new(method, &format!("https://a.com{path}?confirm=true")).unwrap();
            let abilities = policy.who_can(&call.request(Body::Absent, NOW));
            for workload in ["ci", "shop", "watched", "idle"] {
                for identity in [None, Some("alice"), Some("bob")] {
                    let subject = Subject { workload, identity };
                    let request = call.request(Body::Absent, NOW);
                    let Outcome::Decided(decision) = policy.decide(&subject, &request) else {
                        panic!("the body is asked for");
                    };
                    let passes = decision.verdict == Verdict::Allow;
                    let said = abilities.iter().any(|ability| {
                        let is = match &ability.who {
                            Who::Anybody { but } => {
                                identity.is_none_or(|name| !but.contains(&name))
                            }
                            Who::These(names) => identity.is_some_and(|name| names.contains(&name)),
                        };
                        is && ability.workload == workload
                            && ability.rule.is_some()
                            && ability.further.is_empty()
                    });
                    assert_eq!(said, passes, "{workload} {identity:?} {method} {path}");
                }
            }
        }
    }
}

#[test]
fn the_headers_that_rules_look_at_are_told() {
    let text = |when: &str| {
        format!(
            "version: 1\nworkloads: {{ w: {{}} }}\napis: {{ a: {{ hosts: [a.example] }} }}\nroles:\n  r:\n    - api: a\n      \
             allow: [{{ route: GET /x, headers: {{ require: {{ X-Tenant: [acme], accept: string }} }}, when: \"{when}\" }}]\n      \
             deny: [{{ route: \"* /**\", when: \"'X-Debug' in request.headers\" }}]\n\
             grants: [{{ role: r, to: {{ workload: w }} }}]\n"
        )
    };
    let of = |when: &str| compiled(&text(when)).policy.headers_read().to_vec();
    assert_eq!(of("now > now"), ["accept", "x-debug", "x-tenant"]);
    let when =
        "request.headers['X-Plan'] == 'a' || request.headers['x-plan'] == request.headers.accept";
    assert_eq!(of(when), ["accept", "x-debug", "x-plan", "x-tenant"]);
}
