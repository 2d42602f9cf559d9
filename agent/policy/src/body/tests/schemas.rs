use super::*;

fn fails(spec: &BodySpec, body: &str) -> (String, String) {
    match spec.check(Media::Json, body.as_bytes()) {
        Err(BodyFault::Schema { pointer, keyword }) => (pointer, keyword),
        other => panic!("{body}: {other:?}"),
    }
}

#[test]
fn a_schema_is_held_and_names_the_place_and_the_keyword() {
    let spec = spec(
        "{ strip: [/debug], schema: { type: object, required: [n], additionalProperties: false, properties: { \
         n: { type: integer, minimum: 1 }, mail: { type: string, format: email }, tag: { pattern: ^a+$ }, \
         list: { type: array, uniqueItems: true, items: { $ref: '#/$defs/id' } } } , $defs: { id: { enum: [1, x, [1]] } } } }",
    );
    let good = r#"{"n":1,"mail":"a@b.c","tag":"aaa","list":[1,"x",[1]],"debug":1}"#;
    let checked = spec.check(Media::Json, good.as_bytes()).unwrap();
    assert!(checked.edits.is_some());
    assert_eq!(checked.tree.unwrap()["n"], json!(1));
    let at = |pointer: &str, keyword: &str| (pointer.to_owned(), keyword.to_owned());
    assert_eq!(fails(&spec, r#"{}"#), at("", "required"));
    assert_eq!(fails(&spec, r#"[]"#), at("", "type"));
    assert_eq!(fails(&spec, r#"{"n":0}"#), at("/n", "minimum"));
    assert_eq!(fails(&spec, r#"{"n":1.5}"#), at("/n", "type"));
    assert_eq!(fails(&spec, r#"{"n":1,"mail":"x"}"#), at("/mail", "format"));
    assert_eq!(fails(&spec, r#"{"n":1,"tag":"b"}"#), at("/tag", "pattern"));
    assert_eq!(
        fails(&spec, r#"{"n":1,"x":1}"#),
        at("", "additionalProperties")
    );
    assert_eq!(fails(&spec, r#"{"n":1,"list":[2]}"#), at("/list/0", "enum"));
    let (pointer, keyword) = fails(&spec, r#"{"n":1,"list":[1,1.0]}"#);
    assert_eq!(
        (pointer.as_str(), keyword.as_str()),
        ("/list", "uniqueItems")
    );
    let fault = sent(&spec, Media::Json, r#"{"n":18446744073709551616}"#).unwrap_err();
    assert!(matches!(fault, BodyFault::Invalid(_)), "{fault:?}");
}

#[test]
fn a_schema_holds_for_forms_too() {
    let spec = spec("{ schema: { properties: { a: { type: string }, l: { type: array } } } }");
    assert!(spec.check(Media::Form, b"a=1&l=1&l=2").is_ok());
    let fault = spec.check(Media::Form, b"a=1&a=2").unwrap_err();
    assert!(matches!(fault, BodyFault::Schema { .. }), "{fault:?}");
}

#[test]
fn elements_are_unique_by_their_value() {
    let spec = spec("{ schema: { uniqueItems: true } }");
    let unique = |body: &str| spec.check(Media::Json, body.as_bytes()).is_ok();
    for body in [
        r#"[1,2,"1",[1],[[1]],{"a":1},{"a":2},null,"null",true,"true",0.5]"#,
        r#"["a\",\"b",["a","b"],"[\"a\",\"b\",]"]"#,
        "{}",
    ] {
        assert!(unique(body), "{body}");
    }
    for body in [
        "[1,1.0]",
        "[0,-0]",
        "[0,-0.0]",
        r#"[{"a":1,"b":2},{"b":2,"a":1.0}]"#,
        r#"["a","\u0061"]"#,
        "[9007199254740993,9007199254740993]",
    ] {
        assert!(!unique(body), "{body}");
    }
}

#[test]
fn patterns_never_backtrack() {
    for pattern in ["(?=a)a", "(a)\\\\1", "(?<!a)b"] {
        let found = faults(&format!("{{ schema: {{ pattern: \"{pattern}\" }} }}"));
        assert_eq!(found.len(), 1, "{pattern}: {found:?}");
        assert!(
            found[0].starts_with("38: the schema is not valid here"),
            "{found:?}"
        );
    }
    let spec = spec("{ max: 1MiB, schema: { pattern: '^(a+)+$' } }");
    let body = format!("\"{}b\"", "a".repeat(500_000));
    assert!(spec.check(Media::Json, body.as_bytes()).is_err());
    let large = faults("{ schema: { pattern: '(a{1000}){1000}' } }");
    assert_eq!(large.len(), 1, "{large:?}");
}

#[test]
fn schemas_that_would_take_long_are_refused() {
    let doubled = |levels: usize| {
        let mut defs = vec![format!("d{levels}: {{ type: integer }}")];
        for level in 0..levels {
            let next = level + 1;
            let half = format!("{{ $ref: '#/$defs/d{next}' }}");
            defs.push(format!("d{level}: {{ allOf: [{half}, {half}] }}"));
        }
        format!(
            "{{ schema: {{ $ref: '#/$defs/d0', $defs: {{ {} }} }} }}",
            defs.join(", ")
        )
    };
    assert_eq!(faults(&doubled(8)), Vec::<String>::new());
    let branches = "27: the schema has too many branches, with references followed";
    assert_eq!(faults(&doubled(30)), [branches]);
    let loops = "27: a schema refers to itself without going on in the body";
    for body in [
        "{ schema: { $ref: '#' } }",
        "{ schema: { anyOf: [{ type: string }, { $ref: '#' }] } }",
        "{ schema: { $ref: '#/$defs/a', $defs: { a: { not: { $ref: '#/$defs/b' } }, b: { properties: { x: { $ref: '#/$defs/a' } }, allOf: [{ $ref: '#/$defs/a' }] } } } }",
    ] {
        assert_eq!(faults(body), [loops], "{body}");
    }
    let chain: Vec<String> = (0..200)
        .map(|n| format!("d{n}: {{ items: {{ $ref: '#/$defs/d{}' }} }}", n + 1))
        .collect();
    let chain = format!(
        "{{ schema: {{ $ref: '#/$defs/d0', $defs: {{ {}, d200: {{}} }} }} }}",
        chain.join(", ")
    );
    assert_eq!(
        faults(&chain),
        ["27: the schema is nested too deep, with references followed"]
    );
    let wide: Vec<String> = (0..3_000).map(|n| format!("p{n}: {{}}")).collect();
    assert_eq!(
        faults(&format!(
            "{{ schema: {{ properties: {{ {} }} }} }}",
            wide.join(", ")
        ))
        .len(),
        1
    );
    let long = format!("{{ schema: {{ enum: ['{}'] }} }}", "a".repeat(70_000));
    assert_eq!(faults(&long).len(), 1);
}

#[test]
fn a_schema_that_refers_to_itself_takes_no_time_and_no_stack() {
    // Each of three branches goes down into the same member; the last level fails in all of them.
    let spec = spec(
        "{ schema: { anyOf: [ { properties: { c: { $ref: '#' } }, required: [x], type: object }, \
         { properties: { c: { $ref: '#' } }, required: [y], type: object }, { properties: { c: { $ref: '#' } }, maxProperties: 1, type: object } ] } }",
    );
    let nested = |inner: &str| {
        let levels = json::MAX_DEPTH - 2;
        format!("{}{inner}{}", "{\"c\":".repeat(levels), "}".repeat(levels))
    };
    let started = std::time::Instant::now();
    assert!(spec.check(Media::Json, nested("{}").as_bytes()).is_ok());
    assert_eq!(
        fails(&spec, &nested("1")),
        (String::new(), "schema".to_owned())
    );
    assert!(started.elapsed().as_secs() < 5, "{:?}", started.elapsed());
    let steps = "{ $ref: '#/$defs/a', $defs: { a: { allOf: [{ $ref: '#/$defs/b' }] }, b: { allOf: [{ $ref: '#/$defs/c' }] }, \
         c: { type: object, properties: { c: { $ref: '#' } } } } }";
    let spec = super::spec(&format!("{{ schema: {steps} }}"));
    assert!(spec.check(Media::Json, nested("{}").as_bytes()).is_ok());
    assert_eq!(fails(&spec, &nested("1")).1, "schema");
    let deeper = "{ schema: { $ref: '#/$defs/a', $defs: { a: { allOf: [{ allOf: [{ allOf: [{ allOf: [{ allOf: [{ allOf: [{ allOf: [{ items: { $ref: '#' } }] }] }] }] }] }] }] } } } }";
    assert_eq!(faults(deeper).len(), 1);
}

#[test]
fn every_way_to_refer_to_itself_twice_takes_no_time() {
    let down = "{ properties: { c: { $ref: '#' } } }";
    let twice = [
        format!("oneOf: [{down}, {{ type: string }}], anyOf: [{down}, {down}]"),
        format!("if: {down}, then: {down}, else: {down}"),
        format!("not: {{ not: {down} }}, allOf: [{down}, {down}]"),
        format!("dependentSchemas: {{ c: {down}, d: {down} }}, anyOf: [{down}, {down}]"),
        format!("unevaluatedProperties: {{ $ref: '#' }}, anyOf: [{down}, {down}, {{ not: {down} }}]"),
        format!("unevaluatedProperties: {{ $ref: '#' }}, additionalProperties: {{ $ref: '#' }}, patternProperties: {{ c: {{ $ref: '#' }} }}, {}", &down[2..down.len() - 2]),
        "items: { $ref: '#' }, contains: { $ref: '#' }, anyOf: [{ items: { $ref: '#' } }, { prefixItems: [{ $ref: '#' }] }], unevaluatedItems: { $ref: '#' }".to_owned(),
    ];
    let levels = json::MAX_DEPTH - 2;
    let bodies: Vec<String> = ["{}", "[]", "1"]
        .iter()
        .flat_map(|inner| {
            let objects = format!("{}{inner}{}", "{\"c\":".repeat(levels), "}".repeat(levels));
            [
                objects,
                format!("{}{inner}{}", "[".repeat(levels), "]".repeat(levels)),
            ]
        })
        .collect();
    for schema in twice {
        for wrong in ["", ", type: [object, array]"] {
            let spec = spec(&format!("{{ schema: {{ {schema}{wrong} }} }}"));
            for body in &bodies {
                let started = std::time::Instant::now();
                let _ = spec.check(Media::Json, body.as_bytes());
                assert!(
                    started.elapsed().as_secs() < 5,
                    "{schema}: {:?}",
                    started.elapsed()
                );
            }
        }
    }
}
