//! Policies and requests that read as one thing and could be taken as another.
use super::*;
use crate::{Connection, Mode};

/// One workload `w` with the role `r` on the api `a` (a.com).
fn with(role: &str, grant: &str) -> String {
    format!(
        "version: 1\nworkloads: {{ w: {{}} }}\napis: {{ a: {{ hosts: [a.com] }} }}\nroles:\n{role}\ngrants:\n  - {{ role: \"{grant}\", to: {{ workload: w }} }}\n"
    )
}

fn asked(policy: &Policy, method: &str, target: &str) -> String {
    call("w", method, &format!("https://a.com{target}")).outcome(policy)
}

fn posted(policy: &Policy, body: &str) -> String {
    call("w", "POST", "https://a.com/x")
        .json(body)
        .outcome(policy)
}

fn form(policy: &Policy, body: &str) -> String {
    let headers = &[("content-type", "application/x-www-form-urlencoded")];
    let call = Call {
        headers,
        body: Body::Read(body.as_bytes()),
        ..call("w", "POST", "https://a.com/x")
    };
    call.outcome(policy)
}

/// A policy whose one rule is `POST /x` with this, which is indented by ten.
fn post(rule: &str) -> Policy {
    let role = format!("  r:\n    - api: a\n      allow:\n        - route: POST /x\n{rule}");
    compiled(&with(&role, "r")).policy
}

fn faults(text: &str) -> String {
    match compile(&[source("policy.yaml", text)]) {
        Ok(_) => String::new(),
        Err(faults) => faults.to_string(),
    }
}

#[test]
fn a_parameter_that_is_not_used_is_a_fault() {
    let role = "  r(repo):\n    - api: a\n      allow: [{ route: \"GET /repos/{repo}/**\" }]";
    let faults = faults(&with(role, "r(repo=acme)"));
    assert!(
        faults.contains("the parameter `repo` is not used"),
        "{faults}"
    );
}

#[test]
fn a_key_twice_with_its_argument_is_a_fault_in_either_order() {
    for keys in ["\"${k}\": any, q: int", "q: int, \"${k}\": any"] {
        let role = format!(
            "  r(k):\n    - api: a\n      allow: [{{ route: GET /x, query: {{ {keys} }} }}]"
        );
        let faults = faults(&with(&role, "r(k=q)"));
        assert!(
            faults.contains("the key `q` stands twice"),
            "{keys}: {faults}"
        );
    }
}

#[test]
fn an_argument_among_values_is_a_value() {
    let role = "  r(state):\n    - api: a\n      allow:\n        - route: GET /x\n          query:\n            state:\n              - ${state}";
    for argument in ["any", "string", "1..9", "/.+/"] {
        let policy = compiled(&with(role, &format!("r(state={argument})"))).policy;
        assert_eq!(
            asked(&policy, "GET", "/x?state=7"),
            "query_value",
            "{argument}"
        );
    }
    let policy = compiled(&with(role, "r(state=7)")).policy;
    assert_eq!(asked(&policy, "GET", "/x?state=7"), "GET /x");
}

#[test]
fn an_argument_in_a_pattern_is_text() {
    let roles = [
        "  r(host):\n    - api: a\n      allow: [{ route: GET /x, query: { h: \"/.*@${host}/\" } }]",
        "  r(host):\n    - api: a\n      allow: [{ route: GET /x, query: { h: [\"/.*@${host}/\"] } }]",
    ];
    let list = compiled(&with(roles[1], "r(host=a.b)")).policy;
    assert_eq!(
        asked(&list, "GET", "/x?h=x@a.b"),
        "query_value",
        "a quoted value"
    );
    let policy = compiled(&with(roles[0], "r(host=a.b)")).policy;
    assert_eq!(asked(&policy, "GET", "/x?h=x@a.b"), "GET /x");
    assert_eq!(asked(&policy, "GET", "/x?h=x@aXb"), "query_value");
    let route = "  r(n):\n    - api: a\n      allow: [{ route: \"GET /{id:v-${n}}/y\" }]";
    let policy = compiled(&with(route, "r(n=.+)")).policy;
    assert_eq!(asked(&policy, "GET", "/v-1/y"), "no_route");
    assert_eq!(asked(&policy, "GET", "/v-.+/y"), "GET /{id:v-\\.\\+}/y");
    let schema = "  r(n):\n    - api: a\n      allow:\n        - route: POST /x\n          body: { schema: { properties: { v: { pattern: \"^[${n}]$\" } } } }";
    let policy = compiled(&with(schema, "r(n=a-z)")).policy;
    assert_eq!(posted(&policy, r#"{"v":"-"}"#), "POST /x");
    assert_eq!(posted(&policy, r#"{"v":"m"}"#), "body_schema");
}

#[test]
fn an_argument_in_a_condition_is_text_or_a_number() {
    let role = |when: &str| {
        format!(
            "  r(v):\n    - api: a\n      allow: [{{ route: \"GET /{{id}}\", when: \"{when}\" }}]"
        )
    };
    let policy = compiled(&with(&role("path.id == '${v}'"), "r(v=path.id)")).policy;
    assert_eq!(asked(&policy, "GET", "/x"), "condition");
    let policy = compiled(&with(&role("int(path.id) == ${v}"), "r(v=7)")).policy;
    assert_eq!(asked(&policy, "GET", "/7"), "GET /{id}");
    for when in [
        "path.id == ${v}",
        "'it\\\\'s' != path.id && path.id == ${v}",
    ] {
        let faults = faults(&with(&role(when), "r(v=path.id)"));
        assert!(faults.contains("in quotes"), "{when}: {faults}");
    }
}

#[test]
fn filling_in_is_bounded() {
    let mut text = String::from(
        "version: 1\nworkloads: { w: {} }\napis: { a: { hosts: [a.com] } }\nroles:\n  r(p):\n    - api: a\n      allow:\n",
    );
    for number in 0..20_000 {
        text.push_str(&format!("        - route: GET /${{p}}/{number}\n"));
    }
    text.push_str("grants:\n");
    for number in 0..9_000 {
        text.push_str(&format!(
            "  - {{ role: r(p={number}), to: {{ workload: w }} }}\n"
        ));
    }
    assert!(faults(&text).contains("too many roles with different arguments"));
}

#[test]
fn many_keys_with_an_argument_among_them_take_no_square_time() {
    let mut text = String::from(
        "  r(p):\n    - api: a\n      allow:\n        - route: GET /${p}\n          query:\n            \"${p}\": any\n",
    );
    for number in 0..100_000 {
        text.push_str(&format!("            k{number}: any\n"));
    }
    let before = std::time::Instant::now();
    assert!(faults(&with(&text, "r(p=x)")).contains("more than 1000 parameters"));
    assert!(before.elapsed().as_secs() < 60);
}

#[test]
fn a_deny_rule_takes_the_case_of_the_path_for_no_difference() {
    let role = "  r:\n    - api: a\n      allow: [{ route: \"* /repos/{repo}/**\" }]\n      deny: [{ route: \"* /repos/payroll/**\" }, { route: \"GET /repos/%C3%96l\" }]";
    let policy = compiled(&with(role, "r")).policy;
    for target in [
        "/repos/payroll/x",
        "/repos/Payroll/x",
        "/repos/PAYROLL",
        "/repos/p%41yroll/",
        "/repos/%C3%B6L",
    ] {
        assert_eq!(asked(&policy, "GET", target), "denied_by_rule", "{target}");
    }
    assert_eq!(
        asked(&policy, "GET", "/repos/payrolls/x"),
        "* /repos/{repo}/**"
    );
    assert_eq!(asked(&policy, "GET", "/Repos/payrolls/x"), "no_route");
}

#[test]
fn a_deny_rule_takes_numbers_as_servers_do() {
    let role = "  r:\n    - api: a\n      allow: [{ route: \"* /**\" }]\n      deny: [{ route: \"GET /u/{id:int}\" }, { route: \"GET /o/{id:uuid}\" }]";
    let policy = compiled(&with(role, "r")).policy;
    for target in [
        "/u/7",
        "/u/007",
        "/u/+7",
        "/u/-0",
        "/u/%207",
        "/u/99999999999999999999999",
        "/o/0B6f5b1c-7f0e-4a53-9a55-0d8f8c1f8a11",
        "/o/0b6f5b1c7f0e4a539a550d8f8c1f8a11",
        "/o/%7B0b6f5b1c-7f0e-4a53-9a55-0d8f8c1f8a11%7D",
    ] {
        assert_eq!(asked(&policy, "GET", target), "denied_by_rule", "{target}");
    }
    assert_eq!(asked(&policy, "GET", "/u/seven"), "* /**");
}

#[test]
fn a_key_in_two_cases_is_a_key_twice() {
    let policy = post("          when: \"request.json.role == 'user'\"\n");
    assert_eq!(posted(&policy, r#"{"role":"user"}"#), "POST /x");
    assert_eq!(
        posted(&policy, r#"{"role":"user","Role":"admin"}"#),
        "body_invalid"
    );
    assert_eq!(
        posted(&policy, r#"{"role":"user","a":{"k":1,"\u212a":2}}"#),
        "body_invalid"
    );
    assert_eq!(
        posted(&policy, r#"{"role":"user","s":1,"\u017f":2}"#),
        "body_invalid"
    );
}

#[test]
fn what_is_cut_out_is_cut_out_in_any_case() {
    let policy = post("          body: { strip: [/internal] }\n");
    let json = call("w", "POST", "https://a.com/x").json(r#"{"a":1,"Internal":true}"#);
    let plan = json.decide(&policy).plan;
    assert_eq!(plan.body.as_deref(), Some(&br#"{"a":1}"#[..]));
    for body in ["a=1&internal[]=1", "internal[a]=1&a=1", "a=1&%20Internal=2"] {
        let headers = &[("content-type", "application/x-www-form-urlencoded")];
        let body = Body::Read(body.as_bytes());
        let call = Call {
            headers,
            body,
            ..call("w", "POST", "https://a.com/x")
        };
        let plan = call.decide(&policy).plan;
        assert_eq!(plan.body.as_deref(), Some(&b"a=1"[..]), "{body:?}");
    }
    let nested = post("          body: { strip: [/user/role] }\n");
    assert_eq!(form(&nested, "user[role]=admin"), "body_invalid");
    assert_eq!(form(&policy, "a[]=1"), "POST /x");
}

#[test]
fn models_and_tools_are_named_in_one_case() {
    let policy =
        post("          llm: { models: [small], max_tokens: 9, tools: [], stream: false }\n");
    let good = r#""model":"small","max_tokens":9,"messages":[{"Model":"x"}]"#;
    assert_eq!(posted(&policy, &format!("{{{good}}}")), "POST /x");
    for more in [
        r#""N":7"#,
        r#""Tools":[{"type":"web_search"}]"#,
        r#""Stream":true"#,
        r#""max_Completion_tokens":99"#,
        r#""generationConfig":{"MaxOutputTokens":99}"#,
        r#""GenerationConfig":{"maxOutputTokens":99}"#,
        r#""options":{"num_predict":99}"#,
        r#""max_new_tokens":99"#,
        r#""parameters":{"max_new_tokens":99}"#,
    ] {
        assert_ne!(
            posted(&policy, &format!("{{{good},{more}}}")),
            "POST /x",
            "{more}"
        );
    }
}

#[test]
fn a_form_names_a_field_once() {
    let policy = post("          when: \"request.form.role == 'user'\"\n");
    assert_eq!(form(&policy, "role=user&tags[]=a&tags[]=b"), "POST /x");
    assert_eq!(form(&policy, "role=user&role[]=admin"), "body_invalid");
    assert_eq!(form(&policy, "role=user&role%5B0%5D=admin"), "body_invalid");
}

#[test]
fn headers_that_name_another_resource_do_not_pass_unasked() {
    let rules = |extra: &str| {
        let role = format!("  r:\n    - api: a\n      allow: [{{ route: PUT /x{extra} }}]");
        compiled(&with(&role, "r")).policy
    };
    let policy = rules("");
    let plan = call("w", "PUT", "https://a.com/x").decide(&policy).plan;
    for name in [
        "x-amz-copy-source",
        "x-amz-copy-source-if-match",
        "x-goog-copy-source",
        "x-ms-copy-source",
        "x-ms-rename-source",
        "x-amz-acl",
        "x-amz-grant-read",
        "x-goog-acl",
    ] {
        assert!(!plan.headers.passes(name), "{name}");
    }
    for name in [
        "x-amz-content-sha256",
        "x-amz-date",
        "x-amz-target",
        "x-ms-version",
        "x-goog-api-client",
    ] {
        assert!(plan.headers.passes(name), "{name}");
    }
    let policy = rules(", headers: { allow: [x-amz-copy-source] }");
    let plan = call("w", "PUT", "https://a.com/x").decide(&policy).plan;
    assert!(plan.headers.passes("x-amz-copy-source"));
}

#[test]
fn method_parameters_are_known_as_php_names_them() {
    let role = "  r:\n    - api: a\n      allow: [{ route: GET /x }]";
    let policy = compiled(&with(role, "r")).policy;
    for query in [
        ".method=DELETE",
        "%20_method=DELETE",
        "_method[]=DELETE",
        "access.token=t",
        "api%20key=t",
    ] {
        let url = format!("https://a.com/x?{query}");
        let plan = call("w", "GET", &url).decide(&policy).plan;
        assert_eq!(plan.query, Some(None), "{query}");
    }
}

#[test]
fn mapped_ranges_and_empty_claims_are_faults() {
    let text = "version: 1\napis: { c: { tcp: [\"[::ffff:10.0.0.7]:6379\"] } }";
    assert!(faults(text).contains("IPv4"), "{}", faults(text));
    let text = "version: 1\napis: { c: { hosts: [a.com], addresses: [\"::ffff:10.0.0.0/104\"] } }";
    assert!(faults(text).contains("IPv4"), "{}", faults(text));
    let text = "version: 1\nidentities: { i: { jwt: { issuer: https://a.b, audience: t, claims: { repo: } } } }";
    assert!(
        faults(text).contains("the claim's one value"),
        "{}",
        faults(text)
    );
}

#[test]
fn a_grant_to_every_workload_of_none_is_warned_of() {
    let text = "version: 1\nidentities: { i: { token: tgi_a } }\napis: { a: { hosts: [a.com] } }\nroles: { r: [{ api: a, allow: [{ route: GET / }] }] }\ngrants: [{ role: r, to: { identity: i } }]";
    let warnings = compiled(text).warnings.to_string();
    assert!(warnings.contains("no workload"), "{warnings}");
}

#[test]
fn a_content_type_with_odd_blanks_is_none() {
    let policy = post("          body: { fields: { a: int } }\n");
    let headers = &[("content-type", "\u{a0}application/json")];
    let call = Call {
        headers,
        body: Body::Read(b"{}"),
        ..call("w", "POST", "https://a.com/x")
    };
    assert_eq!(call.outcome(&policy), "body_type");
}

#[test]
fn sessions_of_mcp_can_pass() {
    let role = "  r:\n    - api: a\n      allow: [{ route: POST /x, headers: { allow: [mcp-session-id] } }]";
    let policy = compiled(&with(role, "r")).policy;
    let plan = call("w", "POST", "https://a.com/x").decide(&policy).plan;
    assert!(plan.headers.passes("mcp-session-id"));
}

#[test]
fn nothing_is_observed_beside_an_enforced_grant_that_does_not_hold() {
    let text = "version: 1\nworkloads: { w: {} }\nidentities: { i: { token: tgi_a } }\napis: { a: { hosts: [a.com] }, c: { tcp: [\"10.0.0.7:6379\"] } }\nroles:\n  r: [{ api: a, allow: [{ route: GET /x }] }]\n  o: [{ api: a, allow: [{ route: GET /y }] }]\ngrants:\n  - { role: o, to: { workload: w }, mode: observe }\n";
    let policy = compiled(text).policy;
    assert_eq!(
        call("w", "GET", "https://a.com/z").decide(&policy).mode,
        Mode::Observe
    );
    for grant in [
        "to: { workload: w }, until: 2020-01-01",
        "to: { workload: w, identity: i }",
    ] {
        let policy = compiled(&format!("{text}  - {{ role: r, {grant} }}\n")).policy;
        for url in ["https://a.com/z", "https://b.com/z"] {
            let decision = call("w", "GET", url).decide(&policy);
            assert_eq!(decision.mode, Mode::Enforce, "{grant} {url}");
        }
        let subject = Subject {
            workload: "w",
            identity: None,
        };
        let to = Connection::Address("10.0.0.7:6379".parse().unwrap());
        let decision = policy.connect(&subject, to, NOW).unwrap();
        assert_eq!(
            (decision.verdict, decision.mode),
            (Verdict::Deny, Mode::Enforce)
        );
    }
}

/// A large program, for which the engine's fast ways are of no use.
const SLOW: &str = "(?:[a-z]|[0-9b]){1,400}(?:[ab]*a[ab]{12})*";

#[test]
fn patterns_that_take_too_much_work_deny() {
    let policy = post(&format!(
        "          body: {{ fields: {{ name: \"/{SLOW}/\" }}, max: 4MiB }}"
    ));
    let named = |name: &str| posted(&policy, &format!(r#"{{"name": "{name}"}}"#));
    assert_eq!(named("ab1"), "POST /x");
    assert_eq!(named(&"ab1".repeat(1 << 20)), "work");
    // The next decision has work of its own.
    assert_eq!(named("ab1"), "POST /x");
}

#[test]
fn a_deny_rule_whose_pattern_was_not_tried_does_not_let_pass() {
    let role = format!(
        "  r:\n    - api: a\n      allow: [{{ route: \"GET /**\" }}]\n      deny: [{{ route: \"GET /{{x:{SLOW}}}/{{y:{SLOW}}}/secret\" }}]"
    );
    let policy = compiled(&with(&role, "r")).policy;
    assert_eq!(asked(&policy, "GET", "/ab1/ab1/open"), "GET /**");
    assert_eq!(asked(&policy, "GET", "/ab1/ab1/secret"), "denied_by_rule");
    let long = "ab".repeat(30_000);
    assert_eq!(
        asked(&policy, "GET", &format!("/{long}/ab1/secret")),
        "work"
    );
}
