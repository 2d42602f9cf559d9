use super::{json, rule, table};
use serde_json::{Value, json};

const OPERATION: Result<(), &str> = Err("graphql_operation");
const FIELD: Result<(), &str> = Err("graphql_field");
const INVALID: Result<(), &str> = Err("graphql_invalid");

fn ask(document: &str) -> Value {
    json!({ "query": document })
}

#[test]
fn the_members_of_a_request_are_no_parameters() {
    for name in ["query", "variables", "operationName", "extensions"] {
        assert!(
            crate::payload::Graphql::PARAMETERS.contains(&name),
            "{name}"
        );
    }
}

#[test]
fn fields_are_allowed_by_path() {
    let rule =
        rule("graphql: { query: [viewer, repository.issues], mutation: [addComment], depth: 5 }");
    table(
        &rule,
        &[
            (Ok(()), ask("{ viewer }")),
            (
                Ok(()),
                ask("{ viewer { login repositories { nodes { name } } } }"),
            ),
            (
                Ok(()),
                ask("query Q($a: [Int!]! = [1, 2] @x) @y(z: $a) { viewer { login } }"),
            ),
            (
                Ok(()),
                ask(
                    "{ repository(owner: \"a\", name: \"b\") { issues(first: 3) { totalCount } } }",
                ),
            ),
            (Ok(()), ask("{ repository { issues } }")),
            (
                Ok(()),
                ask("{ repository { __typename issues { __typename } } __typename }"),
            ),
            (
                Ok(()),
                ask("mutation { addComment(input: {body: \"x\"}) { subject { id } } }"),
            ),
            // A string is no document.
            (
                Ok(()),
                ask("{ viewer(x: \"} { secret\", y: \"\"\"\\\"\"\" } mutation { drop }\"\"\") }"),
            ),
            (Ok(()), ask("{ viewer # } secret {\n }")),
            // Aliases decide nothing.
            (Ok(()), ask("{ secret: viewer { password: login } }")),
            (FIELD, ask("{ viewer: secret }")),
            (FIELD, ask("{ repository: organization { issues } }")),
            (
                FIELD,
                ask("{ repository { issues: collaborators { id } } }"),
            ),
            // The way to a field is not the field.
            (FIELD, ask("{ repository }")),
            (FIELD, ask("{ repository { id issues } }")),
            (FIELD, ask("{ repository { collaborators { id } } }")),
            (FIELD, ask("{ issues }")),
            (FIELD, ask("{ secret }")),
            (FIELD, ask("{ viewer secret }")),
            (FIELD, ask("{ Viewer }")),
            (FIELD, ask("{ viewer_ }")),
            (FIELD, ask("mutation { viewer }")),
            (
                FIELD,
                ask("mutation { addComment(x: 1) { id } deleteIssue }"),
            ),
            (OPERATION, ask("subscription { viewer }")),
            // A field counts as present whatever a directive says.
            (FIELD, ask("{ secret @skip(if: true) }")),
            (FIELD, ask("{ secret @include(if: false) viewer }")),
            (FIELD, ask("{ ... @skip(if: true) { secret } }")),
            (
                Ok(()),
                ask("{ viewer @custom(x: 1) @defer { login @stream } }"),
            ),
            // Introspection.
            (FIELD, ask("{ __schema { types { name } } }")),
            (FIELD, ask("{ __type(name: \"X\") { name } }")),
            (
                FIELD,
                ask("{ viewer { query { __schema { types { name } } } } }"),
            ),
            (FIELD, ask("{ viewer { __typename { secret } } }")),
            // Depth: five fields within each other.
            (Ok(()), ask("{ viewer { a { b { c { d } } } } }")),
            (FIELD, ask("{ viewer { a { b { c { d { e } } } } } }")),
            (
                FIELD,
                ask("{ viewer { a { ... { b { ...F } } } } } fragment F on X { c { d { e } } }"),
            ),
        ],
    );
}

#[test]
fn fragments_are_followed_where_they_are_spread() {
    let rule = rule("graphql: { query: [viewer, repository.issues, repository.owner.login] }");
    table(
        &rule,
        &[
            (
                Ok(()),
                ask("{ ...F } fragment F on Query { viewer { login } }"),
            ),
            (
                Ok(()),
                ask("{ repository { ...F } } fragment F on Repository { issues { id } }"),
            ),
            (
                Ok(()),
                ask(
                    "{ repository { ... on Repository { issues } ... @x { issues } ... { owner { login } } } }",
                ),
            ),
            (
                Ok(()),
                ask(
                    "{ viewer { ...F } repository { issues { ...F } } } fragment F on X { anything }",
                ),
            ),
            // Allowed at one place, and not at the other.
            (
                FIELD,
                ask("{ viewer { ...F } ...F } fragment F on X { anything }"),
            ),
            (
                FIELD,
                ask("{ repository { issues { ...F } ...F } } fragment F on X { id }"),
            ),
            (
                FIELD,
                ask("{ repository { ...F } ...F } fragment F on X { issues }"),
            ),
            (FIELD, ask("{ ...F } fragment F on Query { secret }")),
            (
                FIELD,
                ask(
                    "{ ... on Query { ...F } } fragment F on Query { repository { ...G } } fragment G on R { id }",
                ),
            ),
            (
                FIELD,
                ask("{ repository { owner { ... on User { email } } } }"),
            ),
            (INVALID, ask("{ viewer { ...F } }")),
            (INVALID, ask("{ viewer { ...F } } fragment F on X { ...F }")),
            (
                INVALID,
                ask(
                    "{ viewer { ...F } } fragment F on X { a { ...G } } fragment G on X { b { ...F } }",
                ),
            ),
            (INVALID, ask("{ viewer } fragment F on X { a }")),
            (
                INVALID,
                ask("{ viewer } fragment F on X { ...G } fragment G on X { ...F }"),
            ),
            (
                INVALID,
                ask("{ viewer { ...F } } fragment F on X { a } fragment F on X { b }"),
            ),
            (INVALID, ask("{ viewer { ...on } } fragment on on X { a }")),
        ],
    );
}

#[test]
fn every_operation_of_a_document_must_be_allowed() {
    let rule = rule("graphql: { query: [viewer] }");
    let both = "query A { viewer } mutation B { addComment }";
    table(
        &rule,
        &[
            (Ok(()), ask("query A { viewer } query B { viewer { id } }")),
            (
                Ok(()),
                json!({ "query": "query A { viewer } query B { viewer }", "operationName": "B" }),
            ),
            (OPERATION, json!({ "query": both, "operationName": "A" })),
            (FIELD, ask("query A { viewer } query B { secret }")),
            (INVALID, ask("query A { viewer } query A { viewer }")),
            (INVALID, ask("{ viewer } query A { viewer }")),
            (INVALID, ask("{ viewer } { viewer }")),
        ],
    );
}

#[test]
fn a_star_is_every_field_but_the_schema() {
    table(
        &rule("graphql: { query: ['*'] }"),
        &[
            (Ok(()), ask("{ anything { at { all } } }")),
            (FIELD, ask("{ __schema { types { name } } }")),
            (
                FIELD,
                ask("{ ...F } fragment F on Query { __type(name: \"a\") { name } }"),
            ),
            (FIELD, ask("{ a { __schema { x } } }")),
            (OPERATION, ask("mutation { anything }")),
        ],
    );
    table(
        &rule("graphql: { query: [viewer.login], mutation: ['*'], introspection: true }"),
        &[
            (
                Ok(()),
                ask(
                    "query IntrospectionQuery { __schema { types { ...T } } __type(name: \"a\") { name } } fragment T on __Type { name }",
                ),
            ),
            (Ok(()), ask("mutation { a { query { __schema { x } } } }")),
            (FIELD, ask("{ viewer { __schema { x } } }")),
            (FIELD, ask("{ other }")),
        ],
    );
    table(
        &rule("graphql: { introspection: true }"),
        &[
            (Ok(()), ask("{ __schema { types { name } } }")),
            (FIELD, ask("{ viewer }")),
            (OPERATION, ask("mutation { a }")),
        ],
    );
}

#[test]
fn only_a_plain_request_is_taken() {
    let rule = rule("graphql: { query: [viewer] }");
    let with = |name: &str, value: Value| {
        let mut request = ask("{ viewer }");
        request[name] = value;
        request
    };
    table(
        &rule,
        &[
            (
                Ok(()),
                json!({ "query": "{ viewer }", "variables": { "a": [1] }, "operationName": null, "extensions": null }),
            ),
            (Ok(()), with("extensions", json!({ "tracing": true }))),
            (Ok(()), with("variables", Value::Null)),
            (INVALID, json!([{ "query": "{ viewer }" }])),
            (INVALID, json!([])),
            (INVALID, json!("{ viewer }")),
            (INVALID, json!(null)),
            (INVALID, json!({})),
            (INVALID, json!({ "query": null })),
            (INVALID, json!({ "query": ["{ viewer }"] })),
            (INVALID, json!({ "Query": "{ viewer }" })),
            (INVALID, with("mutation", json!("mutation { a }"))),
            (INVALID, with("id", json!("abc"))),
            (INVALID, with("documentId", json!("abc"))),
            (INVALID, with("operationName", json!(1))),
            (INVALID, with("variables", json!("{}"))),
            (INVALID, with("extensions", json!([]))),
            (
                INVALID,
                with(
                    "extensions",
                    json!({ "persistedQuery": { "version": 1, "sha256Hash": "0" } }),
                ),
            ),
            (
                INVALID,
                json!({ "extensions": { "persistedQuery": { "version": 1, "sha256Hash": "0" } } }),
            ),
        ],
    );
}

#[test]
fn what_servers_read_differently_is_refused() {
    let rule = rule("graphql: { query: [viewer] }");
    for document in [
        "",
        " ",
        "# comment",
        "viewer",
        "{ }",
        "{ viewer",
        "{ viewer } }",
        "{ viewer { } }",
        "query",
        "{ viewer(a: ) }",
        "{ viewer(a: \"x) }",
        "{ viewer(a: \"a\nb\") }",
        "{ viewer(a: \"\"\"x) }",
        "{ viewer(a: \"\\x\") }",
        "{ viewer .. F }",
        "{ viewer(a: 01) }",
        "{ viewer(a: 1x) }",
        "{ viewer ; secret }",
        "{ viéwer }",
        "{ viewer } type T { a: Int }",
        "{ viewer } extend type Query { a: Int }",
        "schema { query: Q }",
        "fragment F on Query { viewer }",
        // Where the comment ends depends on who reads.
        "{ viewer # \r secret }",
        "{ viewer # \u{2028} secret }",
        "{ viewer # \u{2029} secret }",
        "{ viewer # \u{85} secret }",
        "{ viewer # \u{b} secret\n }",
        "{ viewer # \u{c} secret\n }",
        "{ viewer # \0\n }",
        "\u{feff}{ viewer }",
        "{ view\u{feff}er }",
        "{ viewer\u{a0}secret }",
        "query Q($a: Int { viewer }",
        "{ viewer: }",
        "{ ...on }",
        "{ a: b: viewer }",
        "{ viewer(a: $) }",
        "{ viewer @ }",
        "{ viewer, ..., }",
        "{ viewer(a: \"\n\") }",
        "{ viewer(a: \"\r\n} secret {\") }",
        "{ viewer(a: [\"\n x\"]) }",
        "{ viewer(a) }",
        "{ viewer(a b: 1) }",
        "{ viewer(a: {b}) }",
        "{ viewer(a: [{b c: 1}]) }",
        "{ viewer @a(b) }",
        "query($a: T = {b}) { viewer }",
    ] {
        table(&rule, &[(INVALID, ask(document))]);
    }
    for document in ["{ viewer # a\r\n }", "{\tviewer,,,\r\n}", "{viewer}"] {
        table(&rule, &[(Ok(()), ask(document))]);
    }
}

#[test]
fn faults_name_the_path_and_no_value() {
    let rule = rule("graphql: { query: [viewer, repository.issues] }");
    let fault = rule
        .check(&ask(
            "{ repository(token: \"hunter2\") { x: collaborators(after: \"hunter2\") { id } } }",
        ))
        .unwrap_err();
    assert_eq!(
        fault.detail,
        "query `repository.collaborators` is not allowed"
    );
    assert_eq!(fault.hint, "allowed there or below: `issues`");
    let fault = rule.check(&ask("mutation Drop { x }")).unwrap_err();
    assert_eq!(fault.detail, "mutation `Drop` is not allowed");
    assert_eq!(fault.hint, "the rule allows operations of the kind `query`");
    let long = format!("{{ {} }}", "a".repeat(100_000));
    assert!(rule.check(&ask(&long)).unwrap_err().detail.len() < 300);
}

/// What clients send, against rules that fit and rules that do not.
#[test]
fn realistic_documents() {
    let triage = include_str!("corpus/triage.graphql");
    let introspection = include_str!("corpus/introspection.graphql");
    let relay = include_str!("corpus/relay.graphql");
    let cases = [
        (
            "graphql: { query: [viewer.login, repository.issues, repository.id], depth: 8 }",
            triage,
            Ok(()),
        ),
        (
            "graphql: { query: [viewer.login, repository.issues], depth: 8 }",
            triage,
            FIELD,
        ),
        ("graphql: { query: [repository], depth: 8 }", triage, FIELD),
        ("graphql: { query: ['*'], depth: 4 }", triage, FIELD),
        ("graphql: { query: ['*'] }", introspection, FIELD),
        (
            "graphql: { introspection: true, query: [a] }",
            introspection,
            Ok(()),
        ),
        (
            "graphql: { query: [node, me], mutation: [updateTodo], subscription: [todoAdded] }",
            relay,
            Ok(()),
        ),
        (
            "graphql: { query: [node, me], mutation: [updateTodo] }",
            relay,
            Err("graphql_operation"),
        ),
        (
            "graphql: { query: [node, me], mutation: [addTodo], subscription: ['*'] }",
            relay,
            FIELD,
        ),
    ];
    for (text, document, expected) in cases {
        let body = json!({ "query": document, "variables": { "owner": "acme", "n": 20 }, "operationName": "Triage" });
        table(&rule(text), &[(expected, body)]);
    }
    table(
        &rule("graphql: { query: [viewer] }"),
        &[(Ok(()), json(r#"{"query":"query { viewer { login }}"}"#))],
    );
}
