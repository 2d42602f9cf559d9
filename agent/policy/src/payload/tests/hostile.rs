//! What is meant to cost time, memory or the stack.
use super::{Payload, rule};
use proptest::prelude::*;
use serde_json::{Value, json};
use std::fmt::Write;
use std::time::{Duration, Instant};

/// Generous, since tests are not optimized and share a machine; a check that explodes takes hours.
const MOST: Duration = Duration::from_secs(3);

fn ask(document: &str) -> Value {
    json!({ "query": document })
}

/// Runs on a thread with the stack that the agent's threads have.
fn on_small_stack<T: Send>(run: impl FnOnce() -> T + Send) -> T {
    std::thread::scope(|scope| {
        let builder = std::thread::Builder::new().stack_size(2 << 20);
        builder.spawn_scoped(scope, run).unwrap().join().unwrap()
    })
}

fn code(rule: &Payload, body: &Value) -> Result<(), &'static str> {
    let start = Instant::now();
    let result = on_small_stack(|| rule.check(body)).map_err(|fault| fault.code);
    assert!(start.elapsed() < MOST, "{:?}", start.elapsed());
    result
}

/// `F0 { a { ...F1 ...F1 } }`, and so on.
fn bomb(fragments: usize, width: usize) -> String {
    let mut text = "{ viewer { ...F0 } }".to_owned();
    for index in 0..fragments {
        let spread = format!("a {{ ...F{} }} ", index + 1).repeat(width);
        write!(text, " fragment F{index} on X {{ {spread} }}").unwrap();
    }
    write!(text, " fragment F{fragments} on X {{ id }}").unwrap();
    text
}

#[test]
fn fragments_do_not_explode() {
    let wide = rule("graphql: { query: [viewer], depth: 64 }");
    assert_eq!(code(&wide, &ask(&bomb(8, 2))), Ok(()));
    for (fragments, width) in [(20, 2), (60, 2), (50, 20), (12, 100)] {
        let found = code(&wide, &ask(&bomb(fragments, width)));
        assert_eq!(found, Err("graphql_invalid"), "{fragments} {width}");
    }
    assert_eq!(code(&wide, &ask(&bomb(62, 1))), Ok(()));
    assert_eq!(code(&wide, &ask(&bomb(80, 1))), Err("graphql_field"));
    assert_eq!(code(&wide, &ask(&bomb(100, 1))), Err("graphql_invalid"));
    // A chain that only goes through fragments and inline fragments.
    let mut chain = "{ viewer { ...F0 } }".to_owned();
    for index in 0..1_500 {
        write!(chain, " fragment F{index} on X {{ ...F{} }}", index + 1).unwrap();
    }
    chain.push_str(" fragment F1500 on X { id }");
    assert_eq!(code(&wide, &ask(&chain)), Err("graphql_invalid"));
    // Measured first from its end, it is no deeper at once, and as deep all the same.
    let backwards: String = (0..180).rev().map(|n| format!(" ...F{n}")).collect();
    let mut chain = format!(
        "{{ viewer {{ {backwards} {}...F0{} }} }}",
        "...{".repeat(100),
        "}".repeat(100)
    );
    for index in 0..180 {
        write!(chain, " fragment F{index} on X {{ ...F{} }}", index + 1).unwrap();
    }
    chain.push_str(" fragment F180 on X { id }");
    assert_eq!(code(&wide, &ask(&chain)), Err("graphql_invalid"));
}

#[test]
fn one_fragment_at_many_places_is_bounded() {
    let names: Vec<String> = (0..900).map(|n| format!("w{n}.x")).collect();
    let rule = rule(&format!("graphql: {{ query: [{}] }}", names.join(", ")));
    let mut text = "{ ".to_owned();
    for n in 0..900 {
        write!(text, "w{n}{{...F}}").unwrap();
    }
    write!(
        text,
        "}} fragment F on X {{ {} }}",
        "__typename ".repeat(5_000)
    )
    .unwrap();
    assert_eq!(code(&rule, &ask(&text)), Err("graphql_invalid"));
}

#[test]
fn nesting_and_length_are_bounded() {
    let rule = rule("graphql: { query: [viewer], depth: 64 }");
    let nested = |count: usize| format!("{{viewer{}{}}}", "{a".repeat(count), "}".repeat(count));
    assert_eq!(code(&rule, &ask(&nested(63))), Ok(()));
    assert_eq!(code(&rule, &ask(&nested(64))), Err("graphql_field"));
    for text in [
        nested(120),
        nested(100_000),
        "{".repeat(1_000_000),
        format!("{{viewer{}}}", "{...".repeat(300_000)),
        format!(
            "{{viewer(a:{}{})}}",
            "[".repeat(200_000),
            "]".repeat(200_000)
        ),
        format!("{{viewer(a:{})}}", "{a:".repeat(200_000)),
        format!("query($a:{}", "[".repeat(200_000)),
        format!("{{{}}}", "viewer ".repeat(100_000)),
        format!("{{{}}}", "a:viewer ".repeat(4_000)),
        format!("{{{}}}", "#\n".repeat(1_000_000)),
        format!("{{viewer{}}}", "@a".repeat(300_000)),
        "query A{viewer}".repeat(100_000),
        "fragment A on A{a}".repeat(100_000),
        "\"".repeat(1_000_000),
        "\\u{".repeat(300_000),
        "...".repeat(300_000),
        format!("{{viewer(a: \"{}", "\\".repeat(1_000_001)),
    ] {
        let found = code(&rule, &ask(&text));
        assert!(found.is_err(), "{}", &text[..text.len().min(40)]);
    }
    // Long, and nothing wrong with it.
    let text = format!(
        "{{viewer(a: \"{}\") {{ a }} # {}\n}}",
        "x".repeat(1 << 20),
        "y".repeat(1 << 20)
    );
    assert_eq!(code(&rule, &ask(&text)), Ok(()));
}

#[test]
fn long_lists_cost_no_more_than_they_are_long() {
    let tools: Vec<Value> = (0..50_000).map(|_| json!({ "name": "search" })).collect();
    assert_eq!(
        code(
            &rule("llm: { tools: [search] }"),
            &json!({ "tools": tools })
        ),
        Ok(())
    );
    let mut nested = json!({ "name": "search" });
    for _ in 0..30 {
        nested = json!({ "name": "search", "tools": [nested] });
    }
    assert_eq!(
        code(
            &rule("llm: { tools: [search] }"),
            &json!({ "tools": [nested] })
        ),
        Err("llm_invalid")
    );
}

fn anything() -> impl Strategy<Value = Value> {
    let words = "query|jsonrpc|2\\.0|method|tools/call|params|name|arguments|model|tools|type|mcp|function|max_tokens|\\{ viewer \\}|[a-z]{0,3}";
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        words.prop_map(Value::from),
        any::<String>().prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 6, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..5).prop_map(Value::from),
            prop::collection::vec((words, inner), 0..6)
                .prop_map(|members| Value::Object(members.into_iter().collect())),
        ]
    })
}

thread_local! {
    static RULES: [Payload; 3] = [
        rule("graphql: { query: [viewer, a.b.c], mutation: ['*'], introspection: true }"),
        rule("mcp: { methods: [ping], tools: { a: { b: [{ c: 1..3 }] }, b: any }, prompts: [a], resources: ['a:/*'], replies: true }"),
        rule("llm: { models: [a, 'b*'], max_tokens: 5, tools: [a], stream: false }"),
    ];
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2_048, ..ProptestConfig::default() })]

    #[test]
    fn any_body_is_taken_or_refused(body in anything()) {
        RULES.with(|rules| for rule in rules {
            let _ = rule.check(&body);
        });
    }

    #[test]
    fn any_document_is_taken_or_refused(text in "(\\{|\\}|a|b|viewer|\\.\\.\\.|on|F|fragment|query|mutation|type|,|\\(|\\)|:|\\$|@|\"|\"\"\"|\\\\|\\\\u|#|\n|\r|\\[|\\]|=|!|1|-|0\\.|é|😀| ){0,40}") {
        RULES.with(|rules| {
            let _ = rules[0].check(&ask(&text));
        });
    }
}

/// How long a check takes: `cargo test --release -p tollgate-policy -- --ignored --nocapture check_times`.
#[test]
#[ignore = "a measurement"]
fn check_times() {
    let cases = [
        (
            "GraphQL, 519 bytes",
            rule("graphql: { query: [viewer.login, repository.issues, repository.id], depth: 8 }"),
            ask(include_str!("corpus/triage.graphql")),
        ),
        (
            "GraphQL, introspection",
            rule("graphql: { introspection: true }"),
            ask(include_str!("corpus/introspection.graphql")),
        ),
        (
            "MCP, tools/call",
            rule(
                "mcp: { tools: { create_issue: { owner: [acme], repo: string, title: string, labels: [string] } } }",
            ),
            json!({ "jsonrpc": "2.0", "id": 1, "method": "tools/call", "params": { "name": "create_issue",
             "arguments": { "owner": "acme", "repo": "app", "title": "It fails", "labels": ["bug", "p1"] } } }),
        ),
        (
            "LLM, chat",
            rule("llm: { models: [gpt-4o-mini], max_tokens: 4096, tools: [search, get_weather] }"),
            super::json(include_str!("corpus/chat.json")),
        ),
    ];
    for (name, rule, body) in &cases {
        assert_eq!(rule.check(body), Ok(()));
        let mut best = Duration::MAX;
        for _ in 0..50 {
            let start = Instant::now();
            for _ in 0..100 {
                std::hint::black_box(rule.check(std::hint::black_box(body)).is_ok());
            }
            best = best.min(start.elapsed() / 100);
        }
        println!("{name}: {best:?}");
    }
}
