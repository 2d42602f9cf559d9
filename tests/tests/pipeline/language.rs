//! Conditions and payloads on live traffic: what passes arrives as it was sent, what does not reaches nobody and is told why.
use super::*;

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
  two: { hosts: [two.example], tls: { ca: "file:server-ca.pem" } }
roles:
  program:
    - api: odd
      allow:
        - route: GET /reports/{year:int}
          when: "request.headers['x-tenant'] == 'acme' && int(path.year) >= 2020"
        - route: POST /issues
          when: "!('secret' in request.json.labels)"
        - route: POST /graphql
          graphql: { query: [viewer, repository.issues], mutation: [addComment] }
        - route: POST /mcp
          mcp: { methods: [initialize, tools/list], tools: { search: { q: string, limit: 1..10 } } }
        - route: POST /chat
          llm: { models: [gpt-4o-mini, "claude-3-*"], max_tokens: 100, tools: [search] }
      deny:
        - route: "* /**"
          when: "'x-debug' in request.headers"
    - api: two
      allow:
        - grpc: shop.Orders/Get|List
grants:
  - { role: program, to: { workload: probe } }
"#;

/// Sends JSON; `None` is expected to pass, a code and a word of the detail to be refused.
fn post(lab: &mut Lab, path: &str, body: &Value, expected: Option<(&str, &str)>) {
    for h2 in [false, true] {
        let text = format!(" {body}\n");
        let (got, record) = lab.asked(json!({
            "method": "POST", "url": format!("https://odd.example{path}"), "h2": h2,
            "headers": [["content-type", "application/json"]], "body": text,
        }));
        let Some((code, word)) = expected else {
            assert_eq!(got["status"], 200, "{body}: {got}");
            let echo: Value = serde_json::from_str(got["data"].as_str().unwrap()).unwrap();
            assert_eq!(echo["body"], text, "not byte for byte");
            assert_eq!(record["verdict"], "ALLOW", "{record}");
            continue;
        };
        assert_eq!(got["status"], 403, "{body}: {got}");
        let problem: Value = serde_json::from_str(got["data"].as_str().unwrap()).unwrap();
        assert_eq!(problem["code"], code, "{problem}");
        let detail = problem["detail"].as_str().unwrap();
        assert!(detail.contains(word), "{word}: {problem}");
        assert_eq!(problem["decision"], record["id"]);
        assert_eq!(
            (
                &record["verdict"],
                &record["reason"]["code"],
                &record["upstream"]
            ),
            (&json!("DENY"), &json!(code), &Value::Null),
            "{record}"
        );
    }
}

#[test]
fn conditions_hold_for_headers_and_bodies() {
    let mut lab = Lab::ordinary(POLICY, "");
    for h2 in [false, true] {
        for (year, headers, expected) in [
            (2021, json!([["x-tenant", "acme"]]), None),
            (
                2019,
                json!([["x-tenant", "acme"]]),
                Some(("condition", "does not hold")),
            ),
            (
                2021,
                json!([["x-tenant", "initech"]]),
                Some(("condition", "does not hold")),
            ),
            (2021, json!([]), Some(("condition", "cannot be evaluated"))),
            (
                2021,
                json!([["x-tenant", "acme"], ["x-tenant", "acme"]]),
                Some(("condition", "cannot be evaluated")),
            ),
            (
                2021,
                json!([["x-tenant", "acme"], ["x-debug", "1"]]),
                Some(("denied_by_rule", "")),
            ),
        ] {
            let url = format!("https://odd.example/reports/{year}");
            let (got, record) =
                lab.asked(json!({"method": "GET", "url": url, "headers": headers, "h2": h2}));
            let Some((code, word)) = expected else {
                assert_eq!(got["status"], 200, "{got}");
                continue;
            };
            assert_eq!(got["status"], 403, "{got}");
            assert!(
                got["data"].as_str().unwrap().contains(word),
                "{word}: {got}"
            );
            assert_eq!(record["reason"]["code"], code, "{record}");
            assert!(
                !got.to_string().contains("initech"),
                "a value is told: {got}"
            );
        }
    }
    post(&mut lab, "/issues", &json!({"labels": ["bug"]}), None);
    post(
        &mut lab,
        "/issues",
        &json!({"labels": ["bug", "secret"]}),
        Some(("condition", "does not hold")),
    );
    post(
        &mut lab,
        "/issues",
        &json!({"title": "x"}),
        Some(("condition", "cannot be evaluated")),
    );
    // Without the condition, all of them pass.
    lab.reload(&POLICY.replace(
        "          when: \"!('secret' in request.json.labels)\"\n",
        "",
    ));
    post(&mut lab, "/issues", &json!({"labels": ["secret"]}), None);
}

#[test]
fn operations_are_held_to_what_the_rule_names() {
    let mut lab = Lab::ordinary(POLICY, "");
    let graphql = |query: &str| json!({"query": query});
    for (query, expected) in [
        ("{ viewer { login } }", None),
        ("mutation { addComment(id: 7) { id } }", None),
        (
            "{ repository(name: \"app\") { secrets } }",
            Some(("graphql_field", "repository.secrets")),
        ),
        (
            "{ viewer: repository { ...F } } fragment F on R { secrets }",
            Some(("graphql_field", "repository.secrets")),
        ),
        (
            "mutation { deleteIssue(id: 7) { id } }",
            Some(("graphql_field", "deleteIssue")),
        ),
        (
            "subscription { viewer { login } }",
            Some(("graphql_operation", "subscription")),
        ),
    ] {
        post(&mut lab, "/graphql", &graphql(query), expected);
    }
    let call = |name: &str, arguments: Value| json!({"jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": {"name": name, "arguments": arguments}});
    for (body, expected) in [
        (
            json!({"jsonrpc": "2.0", "id": 1, "method": "tools/list"}),
            None,
        ),
        (call("search", json!({"q": "fence", "limit": 5})), None),
        (
            call("search", json!({"q": "fence", "limit": 500})),
            Some(("mcp_arguments", "limit")),
        ),
        (
            call("delete_repo", json!({})),
            Some(("mcp_tool", "delete_repo")),
        ),
        (
            json!({"jsonrpc": "2.0", "id": 1, "method": "resources/list"}),
            Some(("mcp_method", "resources/list")),
        ),
    ] {
        post(&mut lab, "/mcp", &body, expected);
    }
    let chat = |model: &str, tokens: u32, tool: &str| {
        json!({"model": model, "max_tokens": tokens, "messages": [],
               "tools": [{"type": "function", "function": {"name": tool}}]})
    };
    for (body, expected) in [
        (chat("gpt-4o-mini", 100, "search"), None),
        (chat("claude-3-haiku", 1, "search"), None),
        (chat("gpt-5", 100, "search"), Some(("llm_model", "gpt-5"))),
        (
            chat("gpt-4o-mini", 101, "search"),
            Some(("llm_tokens", "max_tokens")),
        ),
        (
            chat("gpt-4o-mini", 100, "shell"),
            Some(("llm_tool", "shell")),
        ),
    ] {
        post(&mut lab, "/chat", &body, expected);
    }
}

#[test]
fn grpc_calls_are_told_apart_by_path_and_type() {
    let mut lab = Lab::ordinary(POLICY, "");
    let mut call = |method: &str, kind: &str| {
        lab.asked(json!({
            "method": "POST", "url": format!("https://two.example/shop.Orders/{method}"), "h2": true,
            "headers": [["content-type", kind], ["te", "trailers"]], "body": "\0\0\0\0\0",
        }))
    };
    for (method, kind) in [
        ("Get", "application/grpc"),
        ("List", "application/grpc+proto"),
    ] {
        let (got, record) = call(method, kind);
        assert_eq!(
            (&got["status"], &got["data"]),
            (&json!(200), &json!("\0\0\0\0\u{2}ok")),
            "{got}"
        );
        assert_eq!(
            header(&got, "grpc-status"),
            None,
            "it is in the trailers: {got}"
        );
        assert_eq!(record["verdict"], "ALLOW", "{record}");
        assert_eq!(record["request"]["path"], format!("/shop.Orders/{method}"));
    }
    // Refused in the form that the client reads: status and reason in the head, no body.
    for (method, kind, code) in [
        ("Delete", "application/grpc", "no_route"),
        ("Get", "application/grpc-web", "grpc_type"),
    ] {
        let (got, record) = call(method, kind);
        assert_eq!(
            (&got["status"], &got["data"]),
            (&json!(200), &json!("")),
            "{got}"
        );
        assert_eq!(header(&got, "grpc-status"), Some("7"), "{got}");
        let message = header(&got, "grpc-message").unwrap();
        assert!(message.contains(code), "{got}");
        assert_eq!(
            (&record["verdict"], &record["reason"]["code"]),
            (&json!("DENY"), &json!(code)),
            "{record}"
        );
        assert_eq!(record["upstream"], Value::Null, "{record}");
    }
    let (got, record) = call("Get", "application/json");
    assert_eq!(got["status"], 403, "{got}");
    assert!(got["data"].as_str().unwrap().contains("grpc_type"), "{got}");
    assert_eq!(record["reason"]["code"], "grpc_type", "{record}");
}
