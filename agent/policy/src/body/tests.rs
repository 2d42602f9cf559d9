#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;
use crate::syntax::Source;
use proptest::prelude::*;
use serde_json::json;

mod hostile;
mod laws;
mod schemas;

/// The text of a policy with one rule, whose `body` is this.
fn policy(body: &str) -> Source {
    let text = format!(
        "version: 1\nworkloads: {{ w: {{}} }}\napis: {{ a: {{ hosts: [a.com] }} }}\n\
         roles:\n  r:\n    - api: a\n      allow:\n        - route: POST /x\n          body: {body}\n\
         grants: [{{ role: r, to: {{ workload: w }} }}]\n"
    );
    Source {
        name: "p.yaml".into(),
        text,
    }
}

fn spec(body: &str) -> BodySpec {
    let compiled = crate::compile(&[policy(body)]).unwrap_or_else(|faults| panic!("{faults}"));
    let mut policy = compiled.policy;
    *policy.rules.pop().unwrap().body.unwrap()
}

/// The faults of a `body`: `column: message`, all on its own line.
fn faults(body: &str) -> Vec<String> {
    let Err(faults) = crate::compile(&[policy(body)]) else {
        return Vec::new();
    };
    let shown = faults.iter().map(|fault| {
        assert!(fault.at.line >= 9, "{fault}");
        format!("{}: {}", fault.at.column, fault.message)
    });
    shown.collect()
}

/// What is sent: the body, and what was cut; or the fault.
fn sent(spec: &BodySpec, media: Media, body: &str) -> Result<(String, Vec<String>), BodyFault> {
    let checked = spec.check(media, body.as_bytes())?;
    Ok(match checked.edits {
        None => (body.to_owned(), Vec::new()),
        Some(edited) => (String::from_utf8(edited.body).unwrap(), edited.stripped),
    })
}

fn cut(spec: &BodySpec, media: Media, body: &str) -> String {
    let (text, _) = sent(spec, media, body).unwrap_or_else(|fault| panic!("{body}: {fault:?}"));
    let again = sent(spec, media, &text);
    assert_eq!(again, Ok((text.clone(), Vec::new())), "{body}");
    text
}

#[test]
fn members_are_cut_with_their_comma_and_nothing_else() {
    let strip = spec("{ strip: [/a, /l/*, /o/*/a, '/~1/~0'] }");
    let cases = [
        (r#"{"a":1}"#, r#"{}"#),
        (r#"{ "a" : 1 }"#, r#"{  }"#),
        (r#"{"a":1,"b":2}"#, r#"{"b":2}"#),
        (r#"{ "a":1 , "b":2 }"#, r#"{  "b":2 }"#),
        (r#"{"b":2,"a":1}"#, r#"{"b":2}"#),
        (r#"{ "b":2 , "a":1 }"#, r#"{ "b":2  }"#),
        (r#"{"b":2,"a":{"x":[1,2]},"c":3}"#, r#"{"b":2,"c":3}"#),
        (r#"{"b":2,"\u0061":1,"c":3}"#, r#"{"b":2,"c":3}"#),
        (r#"{"l":[1, 2 ,3]}"#, r#"{"l":[ ]}"#),
        (r#"{"l":{"x":1,"y":2}}"#, r#"{"l":{}}"#),
        (r#"{"l":7}"#, r#"{"l":7}"#),
        (
            r#"{"o":[{"a":1,"b":2},{"b":3,"a":4}],"b":{"a":1}}"#,
            r#"{"o":[{"b":2},{"b":3}],"b":{"a":1}}"#,
        ),
        (r#"{"/":{"~":1,"b":2.50}}"#, r#"{"/":{"b":2.50}}"#),
        (r#"[{"a":1}]"#, r#"[{"a":1}]"#),
    ];
    for (body, expected) in cases {
        assert_eq!(cut(&strip, Media::Json, body), expected, "{body}");
    }
    let refused = [
        r#"{"a":1,"a":2}"#,
        r#"{"a":1,"\u0061":2}"#,
        r#"{"a":{"x":1,"x":2}}"#,
        r#"{"a":1,}"#,
        r#"{"a":1}}"#,
        r#"{"a":"\ud800"}"#,
    ];
    for body in refused {
        let fault = strip.check(Media::Json, body.as_bytes()).unwrap_err();
        assert!(matches!(fault, BodyFault::Invalid(_)), "{body}: {fault:?}");
    }
}

#[test]
fn undeclared_members_are_cut_at_every_declared_level() {
    let strip = spec(
        "{ fields: { a: int, o: { a: int }, l: [{ a: int }], any: any }, extra: strip, strip: [/any/x, /z] }",
    );
    let body = r#"{"x":1,"a":1,"o":{"a":1,"b":2},"l":[{"b":1,"a":1},{"b":{"a":1}}],"any":{"b":1,"x":2},"z":3}"#;
    let (text, stripped) = sent(&strip, Media::Json, body).unwrap();
    assert_eq!(
        text,
        r#"{"a":1,"o":{"a":1},"l":[{"a":1},{}],"any":{"b":1}}"#
    );
    assert_eq!(stripped, ["/any/x", "/l/*/b", "/o/b", "/x", "/z"]);
    let fault = sent(&strip, Media::Json, r#"{"a":"1","x":1}"#).unwrap_err();
    assert!(matches!(fault, BodyFault::Value { .. }), "{fault:?}");
    let many: Vec<String> = (0..1_000).map(|n| format!("\"k{n}\":{n}")).collect();
    let (text, stripped) = sent(&strip, Media::Json, &format!("{{{}}}", many.join(","))).unwrap();
    assert_eq!((text.as_str(), stripped.len()), ("{}", check::MAX_STRIPPED));
    let long = format!("{{\"{}\":1}}", "é~".repeat(1_000));
    let (_, stripped) = sent(&strip, Media::Json, &long).unwrap();
    assert!(stripped[0].chars().count() < 200, "{stripped:?}");
}

#[test]
fn required_members_must_be_there() {
    let spec = spec("{ fields: { a: int, b: int, o: { a: int } }, required: [o, a] }");
    assert!(spec.check(Media::Json, br#"{"o":{},"a":1}"#).is_ok());
    let missing = |name: &str| BodyFault::Missing(name.into());
    let fault = |media, body: &str| sent(&spec, media, body).unwrap_err();
    assert_eq!(fault(Media::Json, r#"{"o":{"a":1}}"#), missing("`a`"));
    assert_eq!(fault(Media::Json, r#"{"a":1}"#), missing("`o`"));
    assert_eq!(fault(Media::Form, "b=1"), missing("`a`"));
    assert_eq!(fault(Media::Form, "a=1"), missing("`o`"));
}

#[test]
fn forms_are_cut_too() {
    let strip = spec(
        "{ fields: { a: int, l: [int] }, extra: strip, strip: [/d, /l/x, /l2], required: [a] }",
    );
    let cases = [
        ("a=1", "a=1"),
        ("a=1&d=2", "a=1"),
        ("d=2&a=1", "a=1"),
        ("d=2&x=%41&a=1&y&l=1&l=2", "a=1&l=1&l=2"),
        ("&&d=2&&a=1&", "&&&a=1&"),
        ("%64=2&a=1&x+y=", "a=1"),
    ];
    for (body, expected) in cases {
        assert_eq!(cut(&strip, Media::Form, body), expected, "{body}");
    }
    let (_, stripped) = sent(&strip, Media::Form, "d=2&x%2fy=1&a=1").unwrap();
    assert_eq!(stripped, ["/d", "/x~1y"]);
    for body in ["d=1&d=2&a=1", "x=1&%78=2&a=1", "a=1&a=2"] {
        let fault = sent(&strip, Media::Form, body).unwrap_err();
        assert!(matches!(fault, BodyFault::Twice(_)), "{body}: {fault:?}");
    }
    let any = spec("{ strip: [/d] }");
    assert_eq!(cut(&any, Media::Form, "d=1&a=1&d=2&a=2"), "a=1&a=2");
}

#[test]
fn trees() {
    let read = |text: &str| tree(text.as_bytes());
    let text = r#"{"a":[1,-2,2.5,-0,1e3,18446744073709551615,"\u0041",true,null],"b":{}}"#;
    assert_eq!(
        read(text).unwrap(),
        serde_json::from_str::<Value>(text).unwrap()
    );
    for text in [
        "18446744073709551616",
        "[-9223372036854775809]",
        "1e999",
        "[1,]",
        "1 1",
    ] {
        assert!(matches!(read(text), Err(BodyFault::Invalid(_))), "{text}");
    }
    let spec = spec("{ fields: { a: string, l: [string] } }");
    let form = |body: &str| spec.tree(Media::Form, body.as_bytes()).unwrap();
    assert_eq!(form("a=x+y&l=1"), json!({"a": "x y", "l": ["1"]}));
    assert_eq!(form("l=1&l=%32"), json!({"l": ["1", "2"]}));
    assert_eq!(form("b=1&b=2&b=3"), json!({"b": ["1", "2", "3"]}));
    assert_eq!(form(""), json!({}));
}

#[test]
fn pointers() {
    for good in ["/", "/a", "/a/*/b", "/~0/~1", "/a//b", "/**", "/é"] {
        assert_eq!(Pointer::parse(good).unwrap().to_string(), good);
    }
    let deep = "/a".repeat(Pointer::MAX_TOKENS);
    assert!(Pointer::parse(&deep).is_ok());
    assert!(Pointer::parse(&format!("{deep}/a")).is_err());
    assert!(Pointer::parse(&format!("/{}", "a".repeat(Pointer::MAX_TEXT))).is_err());
    for bad in ["", "a", "a/b", "/~", "/~2", "/a~/b", "#/a", "$.a"] {
        assert!(Pointer::parse(bad).is_err(), "{bad}");
    }
}

#[test]
fn values_are_redacted_in_place() {
    let pointers: Vec<Pointer> = ["/user/email", "/items/*/token", "/items/1/n", "/o"]
        .map(|text| Pointer::parse(text).unwrap())
        .into();
    let body = br#"{ "user": {"email" : "a@b", "n":1.50}, "items":[{"token":7,"n":1},{"token":["x"],"n":2}], "o":{"a":1}}"#;
    let redacted = redact(body, &pointers).unwrap();
    let expected = r#"{ "user": {"email" : "[redacted]", "n":1.50}, "items":[{"token":null,"n":1},{"token":null,"n":null}], "o":null}"#;
    assert_eq!(String::from_utf8(redacted.body.unwrap()).unwrap(), expected);
    assert_eq!(redacted.count, 5);
    let nothing = redact(br#"{"users":[]}"#, &pointers).unwrap();
    assert_eq!((nothing.body, nothing.count), (None, 0));
    for body in [r#"{"a":1,"a":2}"#, "", "{}x", "\u{feff}{}"] {
        let error = redact(body.as_bytes(), &pointers).unwrap_err();
        assert!(matches!(error, RedactError::Ambiguous(_)), "{body}");
    }
}

#[test]
fn what_is_wrong_under_body_is_named() {
    let cases = [
        ("{}", "17: `body` says nothing"),
        (
            "{ max: 1KiB, extra: strip }",
            "30: `extra` says what becomes of members that `fields` does not declare",
        ),
        (
            "{ required: [a] }",
            "29: `required` names members of `fields`",
        ),
        (
            "{ fields: { abc: int }, required: [abd] }",
            "52: `fields` does not declare `abd`",
        ),
        (
            "{ fields: { a: int }, required: [a, a] }",
            "53: `a` stands twice in the list",
        ),
        (
            "{ fields: { a: int }, required: [a], strip: ['/*'] }",
            "50: `a` is required, and cut out by `/*`",
        ),
        (
            "{ strip: [a] }",
            "27: `a` is not a JSON pointer: it must begin with `/`",
        ),
        ("{ strip: [] }", "26: this list is empty"),
        (
            "{ strip: [/a/0] }",
            "27: one element of a list cannot be cut out: the next would take its place",
        ),
        ("{ strip: [/a, /a] }", "31: `/a` stands twice in the list"),
        ("{ field: { a: int } }", "19: unknown key `field` in `body`"),
        (
            "{ schema: { requird: [a] } }",
            "29: the keyword `requird` would not be held",
        ),
        ("{ schema: { type: objekt } }", "35: unknown type `objekt`"),
        (
            "{ schema: { minLength: 0x10 } }",
            "40: `0x10` is not a value that JSON writes like this",
        ),
        (
            "{ schema: { format: regex } }",
            "37: the format `regex` would not be held",
        ),
        (
            "{ schema: { $ref: 'https://example.com/x' } }",
            "35: `https://example.com/x` is no schema within this one",
        ),
        (
            "{ schema: { $ref: 'file:///etc/passwd' } }",
            "35: `file:///etc/passwd` is no schema within this one",
        ),
        (
            "{ schema: { $ref: '#/$defs/x' } }",
            "35: `#/$defs/x` is no schema within this one",
        ),
        (
            "{ schema: { $id: 'https://example.com/x' } }",
            "29: the keyword `$id` would not be held",
        ),
        (
            "{ schema: { $schema: 'http://json-schema.org/draft-07/schema#' } }",
            "38: schemas are those of draft 2020-12",
        ),
        (
            "{ schema: [] }",
            "27: a schema is a mapping, `true` or `false`",
        ),
    ];
    for (body, expected) in cases {
        assert_eq!(faults(body), [expected], "{body}");
    }
}
