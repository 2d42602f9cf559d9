use super::*;
use crate::Mode;

const GITHUB: &str = "https://api.github.com";

fn github(method: &str, target: &str) -> String {
    let url = format!("{GITHUB}{target}");
    call("builder", method, &url).outcome(&policy())
}

fn patch(body: &str) -> String {
    let url = format!("{GITHUB}/repos/acme/app/issues/7");
    call("builder", "PATCH", &url).json(body).outcome(&policy())
}

#[test]
fn an_empty_policy_denies() {
    let policy = compile(&[]).unwrap().policy;
    assert_eq!(
        call("builder", "GET", "https://api.github.com/").outcome(&policy),
        "unknown_host"
    );
    let policy = compiled("version: 1").policy;
    let decision = call("builder", "GET", "https://api.github.com/").decide(&policy);
    assert_eq!(
        (decision.verdict, decision.mode),
        (Verdict::Deny, Mode::Enforce)
    );
}

#[test]
fn routes() {
    let issues = "GET /repos/acme/{repo}/issues";
    let rest = "GET|HEAD /repos/{owner}/{repo}/**";
    assert_eq!(github("GET", "/repos/acme/app/issues"), issues);
    assert_eq!(github("GET", "//repos/acme/./app/%69ssues"), issues);
    assert_eq!(github("HEAD", "/repos/acme/app/issues"), rest);
    assert_eq!(github("GET", "/repos/acme/app/issues/"), rest);
    assert_eq!(github("GET", "/repos/acme/app"), rest);
    assert_eq!(github("GET", "/repos/acme/app/a/b/c"), rest);
    assert_eq!(github("get", "/repos/acme/app/issues"), "method");
    assert_eq!(github("POST", "/repos/acme/app/issues"), "method");
    assert_eq!(github("GET", "/repos/acme"), "method");
    assert_eq!(github("GET", "/user"), "no_route");
    assert_eq!(github("PATCH", "/repos/acme/app/issues/07"), "method");
    assert_eq!(
        github(
            "DELETE",
            "/repos/acme/3fa85f64-5717-4562-b3fc-2c963f66afa6?confirm=true"
        ),
        "DELETE /repos/acme/{id:uuid}"
    );
    assert_eq!(
        github("DELETE", "/repos/acme/3fa85f64-5717-4562-b3fc-2c963f66afa6"),
        "query_missing"
    );
}

#[test]
fn deny_wins_however_the_path_is_written() {
    for target in [
        "/repos/acme/payroll",
        "/repos/acme/payroll/",
        "/repos/acme/payroll/x",
        "/repos/acme/pay%72oll/x",
        "/repos/acme//payroll/issues",
        "/repos/acme/x/../payroll/y",
    ] {
        assert_eq!(github("GET", target), "denied_by_rule", "{target}");
    }
    let exact = r#"
version: 1
workloads: { w: {} }
apis: { a: { hosts: [a.com] } }
roles: { r: [{ api: a, allow: [{ route: GET /** }], deny: [{ route: "* /v1/x:delete" }, { route: "GET /admin/" }, { route: TRACE / }] }] }
grants: [{ role: r, to: { workload: w } }]
"#;
    let policy = compiled(exact).policy;
    let get = |url: &str| call("w", "GET", url).outcome(&policy);
    assert_eq!(get("https://a.com/v1/x:delete"), "denied_by_rule");
    assert_eq!(get("https://a.com/v1/x%3Adelete"), "denied_by_rule");
    assert_eq!(get("https://a.com/v1/x%3adelete/"), "denied_by_rule");
    assert_eq!(get("https://a.com/admin"), "denied_by_rule");
    assert_eq!(get("https://a.com/admin/"), "denied_by_rule");
    assert_eq!(get("https://a.com/admin/x"), "GET /**");
    assert_eq!(
        call("w", "TRACE", "https://a.com/").outcome(&policy),
        "denied_by_rule"
    );
}

#[test]
fn star_allows_no_tunnel_and_no_disguised_method() {
    let policy = policy();
    let url = "https://x.ledger.corp:8443/a";
    assert_eq!(call("builder", "PURGE", url).outcome(&policy), "* /**");
    assert_eq!(call("builder", "TRACE", url).outcome(&policy), "method");
    assert_eq!(call("builder", "CONNECT", url).outcome(&policy), "method");
    assert_eq!(call("builder", "purge", url).outcome(&policy), "method");
    assert_eq!(call("builder", "connect", url).outcome(&policy), "method");
}

#[test]
fn queries() {
    let issues = "GET /repos/acme/{repo}/issues";
    // The wider rule would take what the narrower refuses; a role without it shows the narrower.
    let narrow = POLICY.replace("        - route: GET|HEAD /repos/{owner}/{repo}/**\n", "");
    let policy = compiled(&narrow).policy;
    let ask = |query: &str| {
        let url = format!("{GITHUB}/repos/acme/app/issues{query}");
        call("builder", "GET", &url).outcome(&policy)
    };
    for good in [
        "",
        "?",
        "?state=open",
        "?st%61te=op%65n",
        "?per_page=100&page=-3",
        "?labels=a&labels=b+c",
    ] {
        assert_eq!(ask(good), issues, "{good}");
    }
    for (bad, code) in [
        ("?debug=1", "query_extra"),
        ("?State=open", "query_extra"),
        ("?labels%5B%5D=a", "query_extra"),
        ("?state=OPEN", "query_value"),
        ("?state", "query_value"),
        ("?per_page=0", "query_value"),
        ("?per_page=101", "query_value"),
        ("?per_page=+5", "query_value"),
        ("?per_page=05", "query_value"),
        ("?page=1.0", "query_value"),
        ("?page=99999999999999999999", "query_value"),
        ("?state=open&state=closed", "query_duplicate"),
        ("?state=open&st%61te=open", "query_duplicate"),
    ] {
        assert_eq!(ask(bad), code, "{bad}");
    }
}

#[test]
fn what_is_stripped_of_the_query() {
    let policy = policy();
    let plan = |target: &str| {
        let url = format!("{GITHUB}{target}");
        let decision = call("builder", "GET", &url).decide(&policy);
        assert_eq!(decision.verdict, Verdict::Allow, "{target}");
        (decision.plan.query, decision.plan.stripped_query.join(" "))
    };
    let issues = "/repos/acme/app/issues";
    assert_eq!(plan(&format!("{issues}?state=open")), (None, String::new()));
    assert_eq!(
        plan(&format!("{issues}?access_token=x&state=open&API-Key=y")),
        (
            Some(Some("state=open".into())),
            "API-Key access_token".into()
        )
    );
    assert_eq!(
        plan(&format!("{issues}?access_token=x")),
        (Some(None), "access_token".into())
    );
    assert_eq!(
        plan(&format!("{issues}?_method=DELETE")),
        (Some(None), "_method".into())
    );
    let pulls = "/repos/acme/app/pulls";
    assert_eq!(
        plan(&format!("{pulls}?x=1&state=open&y=2")),
        (Some(Some("state=open".into())), "x y".into())
    );
    assert_eq!(plan("/repos/a/b/c?page_token=z"), (None, String::new()));
    let own = call(
        "builder",
        "GET",
        "https://x.ledger.corp:8443/?token=z&_method=PUT",
    )
    .decide(&policy);
    assert_eq!(own.plan.query, Some(Some("token=z".into())));
}

#[test]
fn bodies() {
    let route = "PATCH /repos/acme/{repo}/issues/{number:int}";
    for good in [
        r#"{}"#,
        r#"{"state":"open","labels":["a","b"],"priority":1,"user":{"name":"x"}}"#,
        r#"{"st\u0061te":"open"}"#,
        r#"{"priority":null, "labels":[] }"#,
    ] {
        assert_eq!(patch(good), route, "{good}");
    }
    for (bad, code) in [
        (r#"{"title":"x"}"#, "body_field"),
        (r#"{"state":"gone"}"#, "body_field"),
        (r#"{"state":1}"#, "body_field"),
        (r#"{"labels":"a"}"#, "body_field"),
        (r#"{"labels":[1]}"#, "body_field"),
        (r#"{"labels":[["a"]]}"#, "body_field"),
        (r#"{"priority":2}"#, "body_field"),
        (r#"{"priority":1.0}"#, "body_field"),
        (r#"{"priority":"1"}"#, "body_field"),
        (r#"{"user":{"name":"x","admin":true}}"#, "body_field"),
        (r#"{"user":null}"#, "body_field"),
        (r#"{"state":"open","st\u0061te":"closed"}"#, "body_invalid"),
        (r#"{"state":"open"} {}"#, "body_invalid"),
        (r#"[]"#, "body_invalid"),
        (r#""#, "body_invalid"),
        ("\u{feff}{}", "body_invalid"),
        (r#"{"labels":["\ud800"]}"#, "body_invalid"),
    ] {
        assert_eq!(patch(bad), code, "{bad}");
    }
    let long = format!(r#"{{"labels":["{}"]}}"#, "x".repeat(1_024));
    assert_eq!(patch(&long), "body_too_large");
}

#[test]
fn bodies_in_other_clothes() {
    let policy = policy();
    let url = format!("{GITHUB}/repos/acme/app/issues/7");
    let with = |headers: &[(&str, &str)], body: &str| {
        let call = Call {
            headers,
            body: Body::Read(body.as_bytes()),
            ..call("builder", "PATCH", &url)
        };
        call.outcome(&policy)
    };
    let route = "PATCH /repos/acme/{repo}/issues/{number:int}";
    let json = ("content-type", "application/json");
    let form = ("content-type", "application/x-www-form-urlencoded");
    assert_eq!(
        with(&[("content-type", "Application/JSON; Charset=UTF-8")], "{}"),
        route
    );
    assert_eq!(with(&[json, ("content-encoding", "identity")], "{}"), route);
    assert_eq!(
        with(&[form], "state=open&labels=a&labels=b%20c&priority=1"),
        route
    );
    assert_eq!(with(&[form], ""), route);
    for (headers, body, code) in [
        (&[][..], "{}", "body_type"),
        (&[("content-type", "text/plain")], "{}", "body_type"),
        (
            &[("content-type", "application/json;charset=utf-16")],
            "{}",
            "body_type",
        ),
        (&[json, json], "{}", "body_type"),
        (
            &[("content-type", "application/json, text/plain")],
            "{}",
            "body_type",
        ),
        (&[json, ("content-encoding", "gzip")], "{}", "body_encoding"),
        (
            &[
                json,
                ("content-encoding", "identity"),
                ("content-encoding", "br"),
            ],
            "{}",
            "body_encoding",
        ),
        (&[form], "title=x", "body_field"),
        (&[form], "state=gone", "body_field"),
        (&[form], "state=open&state=open", "body_field"),
        (&[form], "state=open&st%61te=closed", "body_field"),
        (&[form], "user=x", "body_field"),
        (&[form], "labels[]=x", "body_field"),
        (&[form], "state=open;x=1", "body_invalid"),
        (&[form], "labels=%zz", "body_invalid"),
        (&[form], "labels=%00", "body_invalid"),
        (&[form], "labels=%ff", "body_invalid"),
        (&[form], "labels=%+1", "body_invalid"),
    ] {
        assert_eq!(with(headers, body), code, "{headers:?} {body}");
    }
}

#[test]
fn a_body_is_asked_for_only_where_a_rule_must_see_it() {
    let policy = policy();
    let url = format!("{GITHUB}/repos/acme/app/issues/7");
    let ask = |method, headers, body| {
        Call {
            headers,
            body,
            ..call("builder", method, &url)
        }
        .on(|subject, request| policy.decide(subject, request))
    };
    assert!(matches!(
        ask("PATCH", JSON, Body::Unread(None)),
        Outcome::NeedsBody { max: 1024 }
    ));
    assert!(matches!(
        ask("PATCH", JSON, Body::Unread(Some(1024))),
        Outcome::NeedsBody { max: 1024 }
    ));
    let code = |outcome| match outcome {
        Outcome::Decided(decision) => decision.reason.map(|reason| reason.code),
        Outcome::NeedsBody { .. } => panic!("the body is asked for"),
    };
    assert_eq!(
        code(ask("PATCH", JSON, Body::Unread(Some(1025)))),
        Some("body_too_large")
    );
    assert_eq!(
        code(ask("PATCH", &[], Body::Unread(None))),
        Some("body_type")
    );
    assert_eq!(code(ask("PATCH", JSON, Body::Absent)), Some("body_invalid"));
    assert_eq!(code(ask("GET", &[], Body::Unread(Some(1 << 40)))), None);
}

#[test]
fn hosts_and_ports() {
    let policy = policy();
    let code = |url: &str| call("builder", "GET", url).outcome(&policy);
    assert_eq!(code("https://a.ledger.corp:8443/"), "* /**");
    assert_eq!(code("https://main.ledger.corp:8443/"), "* /**");
    assert_eq!(code("https://a.b.ledger.corp:8443/"), "unknown_host");
    assert_eq!(code("https://ledger.corp:8443/"), "unknown_host");
    assert_eq!(code("https://a.ledger.corp/"), "unknown_host");
    assert_eq!(code("https://evil.example/"), "unknown_host");
    assert_eq!(code("https://api.github.com.evil.example/"), "unknown_host");
    assert_eq!(code("https://api.openai.com/v1"), "no_grant");
    assert_eq!(
        call("nobody", "GET", "https://api.github.com/").outcome(&policy),
        "no_grant"
    );
    let hint = call("builder", "GET", "https://a.ledger.corp/")
        .decide(&policy)
        .reason
        .unwrap()
        .hint;
    assert!(hint.contains("`ledger`") && hint.contains("8443"), "{hint}");
    let api = policy
        .api_for(&Host::parse("a.ledger.corp").unwrap(), 8443)
        .unwrap();
    assert_eq!((api.name.as_str(), api.at.line), ("ledger", 10));
}

#[test]
fn a_denial_is_observed_only_where_nothing_enforces() {
    let policy = policy();
    let mode = |workload, url: &str| {
        let decision = call(workload, "GET", url).decide(&policy);
        assert_eq!(decision.verdict, Verdict::Deny, "{url}");
        assert!(decision.plan.client_credentials && decision.plan.credential.is_none());
        decision.mode
    };
    assert_eq!(
        mode("notebooks", "https://api.openai.com/v1/files"),
        Mode::Observe
    );
    assert_eq!(mode("notebooks", "https://api.github.com/"), Mode::Observe);
    assert_eq!(mode("notebooks", "https://evil.example/"), Mode::Observe);
    assert_eq!(mode("builder", "https://evil.example/"), Mode::Enforce);
    assert_eq!(mode("builder", "https://api.openai.com/"), Mode::Enforce);
    assert_eq!(
        mode("builder", "https://api.github.com/user"),
        Mode::Enforce
    );
    assert_eq!(mode("runner", "https://api.github.com/user"), Mode::Enforce);
    assert_eq!(mode("nobody", "https://api.github.com/user"), Mode::Enforce);
    let mixed = POLICY.to_owned() + "  - { role: chat, to: { workload: notebooks } }\n";
    let mixed = compiled(&mixed).policy;
    assert_eq!(
        call("notebooks", "GET", "https://api.openai.com/")
            .decide(&mixed)
            .mode,
        Mode::Enforce
    );
}

#[test]
fn nothing_goes_in_clear() {
    let policy = policy();
    let decide = |workload, method, url| call(workload, method, url).decide(&policy);
    let with = decide(
        "builder",
        "GET",
        "http://api.github.com:443/repos/acme/app/issues",
    );
    assert_eq!(
        (with.reason.as_ref().unwrap().code, with.mode),
        ("cleartext", Mode::Enforce)
    );
    assert_eq!(with.effective_mode(Mode::Observe), Mode::Enforce);
    let own = decide("builder", "GET", "http://a.ledger.corp:8443/");
    assert_eq!(
        (own.reason.unwrap().code, own.mode),
        ("cleartext", Mode::Enforce)
    );
    let without = decide(
        "notebooks",
        "POST",
        "http://api.openai.com:443/v1/chat/completions",
    );
    assert_eq!(
        (without.reason.unwrap().code, without.mode),
        ("cleartext", Mode::Observe)
    );
    let other = decide("builder", "GET", "https://api.github.com/user");
    assert_eq!(other.effective_mode(Mode::Observe), Mode::Observe);
    assert_eq!(other.effective_mode(Mode::Enforce), Mode::Enforce);
}

#[test]
fn plans() {
    let policy = policy();
    let issues = "https://api.github.com/repos/acme/app/issues";
    let plan = call("builder", "GET", issues).decide(&policy).plan;
    let credential = plan.credential.unwrap();
    assert_eq!(credential.name, "github-bot");
    let crate::CredentialForm::Headers { headers, .. } = &credential.form else {
        panic!("{credential:?}");
    };
    let (name, around) = &headers[0];
    assert_eq!(
        (&**name, &*around.before, &*around.after),
        ("authorization", "Bearer ", "")
    );
    assert_eq!(plan.response_strip, ["set-cookie"]);
    assert!(!plan.client_credentials);
    for name in [
        "accept",
        "content-type",
        "user-agent",
        "if-none-match",
        "x-request-id",
        "openai-beta",
        "x-amz-date",
    ] {
        assert!(plan.headers.passes(name), "{name}");
    }
    for name in [
        "authorization",
        "cookie",
        "x-api-key",
        "x-amz-security-token",
        "x-http-method-override",
        "x-forwarded-for",
        "connection",
        "host",
        "content_length",
        "x-custom",
        "x-reason",
        "proxy-connection",
        "te",
    ] {
        assert!(!plan.headers.passes(name), "{name}");
    }
    let options = call("builder", "OPTIONS", "https://api.github.com/repos/a/b")
        .decide(&policy)
        .plan;
    assert!(options.credential.is_none());
    let delete =
        "https://api.github.com/repos/acme/3fa85f64-5717-4562-b3fc-2c963f66afa6?confirm=true";
    assert!(
        call("builder", "DELETE", delete)
            .decide(&policy)
            .plan
            .headers
            .passes("x-reason")
    );
    let own = call("builder", "GET", "https://a.ledger.corp:8443/")
        .decide(&policy)
        .plan;
    assert!(
        own.client_credentials
            && own.headers.passes("authorization")
            && own.headers.passes("cookie")
    );
    assert!(own.credential.is_none() && !own.headers.passes("x-method-override"));
}

#[test]
fn the_most_specific_rule_decides_whatever_the_order() {
    let routes = [
        "GET /a/b/c",
        "GET /a/b/{x:int}",
        "GET /a/b/{x}",
        "GET /a/b/**",
        "GET /a/{y}/c",
        "GET /**",
    ];
    let policy_of = |routes: &[&str]| {
        let allow: Vec<String> = routes
            .iter()
            .map(|route| format!("{{ route: '{route}' }}"))
            .collect();
        compiled(&format!(
            "version: 1\nworkloads: {{ w: {{}} }}\napis: {{ a: {{ hosts: [a.com] }} }}\n\
             roles: {{ r: [{{ api: a, allow: [{}] }}] }}\ngrants: [{{ role: r, to: {{ workload: w }} }}]\n",
            allow.join(", ")
        ))
        .policy
    };
    for turn in 0..routes.len() {
        let mut turned = routes;
        turned.rotate_left(turn);
        let policy = policy_of(&turned);
        let get = |path: &str| call("w", "GET", &format!("https://a.com{path}")).outcome(&policy);
        assert_eq!(get("/a/b/c"), "GET /a/b/c");
        assert_eq!(get("/a/b/1"), "GET /a/b/{x:int}");
        assert_eq!(get("/a/b/x"), "GET /a/b/{x}");
        assert_eq!(get("/a/b/x/y"), "GET /a/b/**");
        assert_eq!(get("/a/b"), "GET /a/b/**");
        assert_eq!(get("/a/z/c"), "GET /a/{y}/c");
        assert_eq!(get("/"), "GET /**");
    }
}

#[test]
fn reasons_say_what_was_missing_and_where() {
    let narrow = POLICY.replace("        - route: GET|HEAD /repos/{owner}/{repo}/**\n", "");
    let policy = compiled(&narrow).policy;
    let secret = "hunter2";
    let url = format!("{GITHUB}/repos/acme/app/issues?debug={secret}");
    let reason = call("builder", "GET", &url).decide(&policy).reason.unwrap();
    assert_eq!(
        reason.detail,
        "parameter `debug` is not declared by GET /repos/acme/{repo}/issues"
    );
    assert_eq!(
        reason.hint,
        "add it under `query:` at policy.yaml:18, or drop it from the request"
    );
    for url in [
        format!("{GITHUB}/repos/acme/app/issues?state={secret}"),
        format!("{GITHUB}/{secret}"),
    ] {
        let reason = call("builder", "GET", &url).decide(&policy).reason.unwrap();
        assert!(!format!("{reason:?}").contains(secret), "{reason:?}");
    }
    let url = format!("{GITHUB}/repos/acme/app/issues/7");
    let body = format!(r#"{{"state":"{secret}"}}"#);
    let reason = call("builder", "PATCH", &url)
        .json(&body)
        .decide(&policy)
        .reason
        .unwrap();
    assert!(reason.detail.contains("`state`") && !reason.detail.contains(secret));
}

#[test]
fn explanations_begin_with_the_nearest_rule() {
    let policy = policy();
    let url = format!("{GITHUB}/repos/acme/app/issues/7");
    let call = call("builder", "PATCH", &url).json(r#"{"title":"x"}"#);
    let explanation = call.on(|subject, request| policy.explain(subject, request));
    assert_eq!(explanation.decision.verdict, Verdict::Deny);
    let near: Vec<(&str, &str)> = explanation
        .near
        .iter()
        .map(|near| (&*near.rule.route, near.failed.code))
        .collect();
    assert_eq!(
        near[0],
        ("PATCH /repos/acme/{repo}/issues/{number:int}", "body_field")
    );
    assert_eq!(near[1].1, "method");
    assert_eq!(near.len(), 6);
    assert!(near[3..].iter().all(|(_, code)| *code == "no_route"));
}

#[test]
fn hash_and_order_of_files() {
    let other = source("b.yaml", "version: 1\nworkloads: { w: {} }\n");
    let one = compile(&[source("a.yaml", POLICY), other.clone()])
        .unwrap()
        .policy;
    let two = compile(&[other, source("a.yaml", POLICY)]).unwrap().policy;
    assert_eq!(one.hash(), two.hash());
    assert_eq!(one.hash().len(), 64);
    assert_ne!(one.hash(), policy().hash());
    let names = |policy: &Policy| -> Vec<String> {
        policy
            .workloads()
            .iter()
            .map(|workload| workload.name.clone())
            .collect()
    };
    assert_eq!(names(&one), ["builder", "notebooks", "runner", "w"]);
    assert_eq!(names(&one), names(&two));
}
