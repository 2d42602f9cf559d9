use super::{json, rule, table};
use serde_json::{Value, json};

const METHOD: Result<(), &str> = Err("mcp_method");
const TOOL: Result<(), &str> = Err("mcp_tool");
const ARGUMENTS: Result<(), &str> = Err("mcp_arguments");
const INVALID: Result<(), &str> = Err("mcp_invalid");

fn send(method: &str, params: Value) -> Value {
    json!({ "jsonrpc": "2.0", "id": 1, "method": method, "params": params })
}

fn call(tool: &str, arguments: Value) -> Value {
    send(
        "tools/call",
        json!({ "name": tool, "arguments": arguments }),
    )
}

#[test]
fn methods_are_allowed_by_name_or_family() {
    let rule =
        rule("mcp: { methods: [initialize, ping, tools/list, notifications/*, x/*, custom] }");
    table(
        &rule,
        &[
            (
                Ok(()),
                json!({ "jsonrpc": "2.0", "id": "a", "method": "ping" }),
            ),
            (
                Ok(()),
                json!({ "jsonrpc": "2.0", "method": "notifications/initialized" }),
            ),
            (
                Ok(()),
                send("notifications/cancelled", json!({ "requestId": 1 })),
            ),
            (Ok(()), send("tools/list", json!({ "cursor": "x" }))),
            (Ok(()), send("custom", json!({}))),
            (METHOD, send("notifications", json!({}))),
            (METHOD, send("Ping", json!({}))),
            (METHOD, send("ping/x", json!({}))),
            (METHOD, send("pin", json!({}))),
            (METHOD, send("", json!({}))),
            (METHOD, send("prompts/list", json!({}))),
            (METHOD, call("search", json!({}))),
            (METHOD, send("prompts/get", json!({ "name": "a" }))),
            (METHOD, send("resources/read", json!({ "uri": "a:b" }))),
        ],
    );
}

#[test]
fn only_one_plain_message_is_taken() {
    let rule = rule("mcp: { methods: [ping] }");
    let ping = json!({ "jsonrpc": "2.0", "id": 1, "method": "ping" });
    let with = |name: &str, value: Value| {
        let mut message = ping.clone();
        message[name] = value;
        message
    };
    table(
        &rule,
        &[
            (Ok(()), ping.clone()),
            (INVALID, json!([ping.clone()])),
            (INVALID, json!([])),
            (INVALID, json!("ping")),
            (INVALID, json!({})),
            (INVALID, json!({ "jsonrpc": "2.0", "id": 1 })),
            (INVALID, json!({ "id": 1, "method": "ping" })),
            (INVALID, with("jsonrpc", json!("1.0"))),
            (INVALID, with("jsonrpc", json!(2.0))),
            (INVALID, with("method", json!(["ping"]))),
            (INVALID, with("id", Value::Null)),
            (INVALID, with("id", json!(1.5))),
            (INVALID, with("id", json!({}))),
            (INVALID, with("params", json!([]))),
            (INVALID, with("params", Value::Null)),
            (INVALID, with("tool", json!("x"))),
            (INVALID, with("Method", json!("tools/call"))),
            (INVALID, with("result", json!({}))),
        ],
    );
}

#[test]
fn tools_are_called_by_name_with_their_arguments() {
    let rule = rule(
        "mcp: { tools: { search: { q: string, limit: 1..10, state: [open, closed, 3, null], \
         tags: [string], by: { user: int }, exact: bool, ratio: number, id: uuid, key: '/[a-z]+/' }, \
         get_issue: any, ping: {} } }",
    );
    table(
        &rule,
        &[
            (Ok(()), call("search", json!({ "q": "x", "limit": 10 }))),
            (Ok(()), call("search", json!({}))),
            (Ok(()), send("tools/call", json!({ "name": "search" }))),
            (
                Ok(()),
                send(
                    "tools/call",
                    json!({ "name": "ping", "_meta": { "progressToken": 1 } }),
                ),
            ),
            (
                Ok(()),
                call(
                    "search",
                    json!({ "state": "open", "tags": ["a", "b"], "by": { "user": -3 } }),
                ),
            ),
            (
                Ok(()),
                call(
                    "search",
                    json!({ "state": 3, "exact": true, "ratio": 1.5, "key": "abc" }),
                ),
            ),
            (
                Ok(()),
                call("search", json!({ "state": null, "tags": [], "by": {} })),
            ),
            (
                Ok(()),
                call("get_issue", json!({ "anything": [{ "at": "all" }] })),
            ),
            (ARGUMENTS, call("search", json!({ "limit": 11 }))),
            (ARGUMENTS, call("search", json!({ "limit": 0 }))),
            (ARGUMENTS, call("search", json!({ "limit": 1.0 }))),
            (
                ARGUMENTS,
                call(
                    "search",
                    json(r#"1e0"#.replace("1e0", r#"{"limit":1e0}"#).as_str()),
                ),
            ),
            (ARGUMENTS, call("search", json(r#"{"limit":-0}"#))),
            (ARGUMENTS, call("search", json!({ "limit": "1" }))),
            (ARGUMENTS, call("search", json!({ "limit": u64::MAX }))),
            (
                ARGUMENTS,
                call("search", json!({ "by": { "user": u64::MAX } })),
            ),
            (ARGUMENTS, call("search", json!({ "q": 1 }))),
            (ARGUMENTS, call("search", json!({ "q": null }))),
            (ARGUMENTS, call("search", json!({ "state": "3" }))),
            (ARGUMENTS, call("search", json!({ "state": 3.0 }))),
            (ARGUMENTS, call("search", json!({ "state": "null" }))),
            (ARGUMENTS, call("search", json!({ "tags": "a" }))),
            (ARGUMENTS, call("search", json!({ "tags": ["a", 1] }))),
            (
                ARGUMENTS,
                call("search", json!({ "by": { "user": 1, "x": 1 } })),
            ),
            (ARGUMENTS, call("search", json!({ "by": [] }))),
            (ARGUMENTS, call("search", json!({ "exact": "true" }))),
            (ARGUMENTS, call("search", json!({ "ratio": "1" }))),
            (ARGUMENTS, call("search", json!({ "id": "not-a-uuid" }))),
            (ARGUMENTS, call("search", json!({ "key": "ABC" }))),
            (ARGUMENTS, call("search", json!({ "Q": "x" }))),
            (ARGUMENTS, call("ping", json!({ "x": 1 }))),
            (TOOL, call("delete", json!({}))),
            (TOOL, call("Search", json!({}))),
            (TOOL, call("search ", json!({}))),
            (TOOL, call("", json!({}))),
            (TOOL, call("s\u{435}arch", json!({}))),
            (METHOD, send("tools/list", json!({}))),
            (METHOD, send("tools/Call", json!({ "name": "search" }))),
            (INVALID, send("tools/call", json!({}))),
            (INVALID, send("tools/call", json!({ "name": ["search"] }))),
            (INVALID, call("search", json!([]))),
            (INVALID, call("search", Value::Null)),
            (
                INVALID,
                send("tools/call", json!({ "name": "search", "tool": "delete" })),
            ),
            (
                INVALID,
                json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call" }),
            ),
            // Without an id it is called all the same.
            (
                TOOL,
                json!({ "jsonrpc": "2.0", "method": "tools/call", "params": { "name": "delete" } }),
            ),
        ],
    );
    let secret = call("search", json!({ "q": { "hunter2": "hunter2" } }));
    let fault = rule.check(&secret).unwrap_err();
    assert_eq!(
        fault.detail,
        "the argument `q` of the tool `search` is not a string"
    );
}

#[test]
fn tools_by_method_are_any_tools() {
    table(
        &rule("mcp: { methods: [tools/call] }"),
        &[(Ok(()), call("anything", json!({ "at": "all" })))],
    );
    table(
        &rule("mcp: { methods: [tools/*] }"),
        &[
            (Ok(()), send("tools/list", json!({}))),
            (METHOD, call("anything", json!({}))),
        ],
    );
}

#[test]
fn prompts_and_resources_are_allowed_by_name() {
    let rule = rule(
        "mcp: { prompts: [review], resources: ['file:///docs/*', 'config://app', 'git:repo-*'] }",
    );
    let read = |uri: &str| send("resources/read", json!({ "uri": uri }));
    table(
        &rule,
        &[
            (
                Ok(()),
                send(
                    "prompts/get",
                    json!({ "name": "review", "arguments": { "a": "b" } }),
                ),
            ),
            (METHOD, send("prompts/get", json!({ "name": "reviews" }))),
            (INVALID, send("prompts/get", json!({ "uri": "review" }))),
            (
                INVALID,
                send("prompts/get", json!({ "name": "review", "arguments": [] })),
            ),
            (Ok(()), read("file:///docs/a/b.md")),
            (Ok(()), read("file:///docs/")),
            (Ok(()), read("file:///docs/...a/b..c/.d")),
            (Ok(()), read("config://app")),
            (Ok(()), read("git:repo-a")),
            (
                Ok(()),
                send("resources/subscribe", json!({ "uri": "config://app" })),
            ),
            (
                Ok(()),
                send("resources/unsubscribe", json!({ "uri": "config://app" })),
            ),
            (METHOD, read("config://app/x")),
            (METHOD, read("file:///doc")),
            (METHOD, read("FILE:///docs/a")),
            (METHOD, read("file:///docs/../etc/passwd")),
            (METHOD, read("file:///docs/..")),
            (METHOD, read("file:///docs/a/./../../b")),
            (METHOD, read("file:///docs/%2e%2e/etc/passwd")),
            (METHOD, read("file:///docs/.%2E/etc/passwd")),
            (METHOD, read("file:///docs/%252e%252e/etc/passwd")),
            (METHOD, read("file:///docs/..%2fetc/passwd")),
            (METHOD, read("file:///docs/..\\etc\\passwd")),
            (METHOD, read("file:///docs/..%5cetc")),
            (METHOD, read("file:///docs/a%00.md")),
            (METHOD, read("file:///docs/..;/etc")),
            (METHOD, read("file:///docs/..?x")),
            (METHOD, read("file:///docs/a\nb")),
            (METHOD, read("git:repo-/../x")),
            (METHOD, send("resources/list", json!({}))),
            (METHOD, send("resources/templates/list", json!({}))),
            (
                INVALID,
                send("resources/read", json!({ "uri": ["config://app"] })),
            ),
            (
                INVALID,
                send(
                    "resources/read",
                    json!({ "uri": "config://app", "name": "x" }),
                ),
            ),
        ],
    );
    let fault = rule.check(&read("https://x/a?key=hunter2")).unwrap_err();
    assert!(!format!("{fault:?}").contains("hunter2"), "{fault:?}");
}

#[test]
fn answers_pass_only_where_they_are_expected() {
    let answer = json!({ "jsonrpc": "2.0", "id": 7, "result": { "roots": [] } });
    let error = json!({ "jsonrpc": "2.0", "id": 7, "error": { "code": -1, "message": "no" } });
    table(
        &rule("mcp: { methods: [ping] }"),
        &[(METHOD, answer.clone()), (METHOD, error.clone())],
    );
    table(
        &rule("mcp: { replies: true }"),
        &[
            (Ok(()), answer),
            (Ok(()), error),
            (INVALID, json!({ "jsonrpc": "2.0", "result": {} })),
            (
                INVALID,
                json!({ "jsonrpc": "2.0", "id": 1, "result": {}, "error": {} }),
            ),
            (
                INVALID,
                json!({ "jsonrpc": "2.0", "id": 1, "result": {}, "params": {} }),
            ),
            (METHOD, send("ping", json!({}))),
        ],
    );
}

#[test]
fn realistic_messages() {
    let rule = rule(
        "mcp: { methods: [initialize, notifications/*, tools/list], tools: { create_issue: { owner: [acme], repo: string, title: string, labels: [string] } } }",
    );
    let initialize = json(
        r#"{"jsonrpc":"2.0","id":0,"method":"initialize","params":{"protocolVersion":"2025-06-18",
        "capabilities":{"roots":{"listChanged":true},"sampling":{},"elicitation":{}},
        "clientInfo":{"name":"ExampleClient","title":"Example","version":"1.0.0"}}}"#,
    );
    let create = json(
        r#"{"method":"tools/call","params":{"name":"create_issue","arguments":{"owner":"acme","repo":"app",
        "title":"It fails","labels":["bug","p1"]},"_meta":{"progressToken":3}},"jsonrpc":"2.0","id":12}"#,
    );
    let elsewhere = call(
        "create_issue",
        json!({ "owner": "evil", "repo": "app", "title": "x" }),
    );
    table(
        &rule,
        &[
            (Ok(()), initialize),
            (Ok(()), create),
            (ARGUMENTS, elsewhere),
        ],
    );
}
