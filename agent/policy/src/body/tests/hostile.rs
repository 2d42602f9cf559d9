use super::*;
use std::time::{Duration, Instant};

const LARGE: usize = 16 << 20;

/// Everything that reads a body, on one body, within a time that only an attack needs.
fn all(body: &[u8]) -> Vec<bool> {
    let started = Instant::now();
    let specs = [
        "{ max: 16MiB }",
        "{ fields: { a: any, l: [{ a: int }] }, extra: strip, strip: ['/*/*/x', /l/*/y], max: 16MiB }",
        "{ strip: ['/*', '/a/*/*/*'], max: 16MiB }",
        "{ schema: { uniqueItems: true, additionalProperties: { type: object } }, max: 16MiB }",
    ];
    let mut taken = Vec::new();
    for body_spec in specs {
        let spec = spec(body_spec);
        taken.push(spec.check(Media::Json, body).is_ok());
        let _ = spec.check(Media::Form, body);
        let _ = spec.tree(Media::Form, body);
    }
    let pointers = ["/*/*/a", "/l/*", "/a"].map(|text| Pointer::parse(text).unwrap());
    taken.push(redact(body, &pointers).is_ok());
    taken.push(tree(body).is_ok());
    assert!(
        started.elapsed() < Duration::from_secs(60),
        "{:?}",
        started.elapsed()
    );
    taken
}

#[test]
fn nesting_without_end() {
    assert_eq!(all(&vec![b'['; LARGE]), [false; 6]);
    assert_eq!(all(&b"{\"a\":".repeat(LARGE / 5)), [false; 6]);
}

#[test]
fn a_million_keys() {
    let keys: Vec<String> = (0..1_000_000).map(|n| format!("\"{n}\":1")).collect();
    let mut body = format!("{{{}}}", keys.join(","));
    assert!(body.len() < LARGE);
    let taken = all(body.as_bytes());
    assert_eq!(taken[..3], [true; 3]);
    body.insert_str(1, "\"\\u0039\":1,");
    assert_eq!(all(body.as_bytes()), [false; 6]);
}

#[test]
fn large_strings_and_numbers() {
    let text = format!("{{\"a\":\"{}\"}}", "\\u0041é".repeat(LARGE / 10));
    assert_eq!(all(text.as_bytes())[..3], [true; 3]);
    let key = format!("{{\"{}\":1}}", "k".repeat(LARGE - 10));
    assert_eq!(all(key.as_bytes())[..3], [true; 3]);
    let digits = "9".repeat(LARGE);
    assert_eq!(all(digits.as_bytes()), [false; 6]);
    let small = format!("{{\"a\":0.{}}}", "0".repeat(LARGE - 100));
    assert!(all(small.as_bytes())[0]);
    assert_eq!(all("\"".repeat(LARGE).as_bytes()), [false; 6]);
}

#[test]
fn many_small_values() {
    let taken = all(format!("[{}0]", "0,".repeat(LARGE / 2 - 2)).as_bytes());
    // As a tree they would take more memory than a body may.
    assert_eq!((taken[0], taken[5]), (true, false));
    let taken = all(format!("[{}{{}}]", "{\"\":0},".repeat(LARGE / 7 - 2)).as_bytes());
    assert_eq!((taken[0], taken[5]), (true, false));
}

#[test]
fn lists_whose_hashes_collide() {
    // All of them are the same numbers in the same order, in other brackets.
    fn lists(numbers: usize) -> Vec<String> {
        let mut found = vec!["1".to_owned()];
        if numbers > 1 {
            found.clear();
            for first in 1..numbers {
                for left in lists(first) {
                    for right in lists(numbers - first) {
                        found.push(format!("[{left},{right}]"));
                    }
                }
            }
        }
        found
    }
    let all_lists = lists(11);
    assert!(all_lists.len() > 10_000);
    let body = format!("[{}]", all_lists.join(","));
    let spec = spec("{ schema: { uniqueItems: true }, max: 16MiB }");
    let started = Instant::now();
    assert!(spec.check(Media::Json, body.as_bytes()).is_ok());
    assert!(started.elapsed() < Duration::from_secs(10));
}

#[test]
fn too_many_pointers() {
    let pointer = Pointer::parse("/a").unwrap();
    assert_eq!(
        redact(b"{}", &vec![pointer; 10_000]),
        Err(RedactError::TooManyPointers)
    );
    let list: Vec<String> = (0..10_000).map(|n| format!("/a/k{n}")).collect();
    let found = faults(&format!("{{ strip: [{}] }}", list.join(", ")));
    assert_eq!(found, ["26: more than 256 pointers"]);
}

#[test]
fn faults_name_places_and_no_values() {
    let secret = "s3cr3t-value";
    let spec =
        spec("{ fields: { a: { b: int }, c: any }, schema: { properties: { c: { const: 1 } } } }");
    for body in [
        format!("{{\"a\":{{\"b\":\"{secret}\"}}}}"),
        format!("{{\"a\":\"{secret}\"}}"),
        format!("{{\"c\":\"{secret}\"}}"),
        format!("{{\"c\":\"{secret}\" \"{secret}\"}}"),
    ] {
        let fault = spec.check(Media::Json, body.as_bytes()).unwrap_err();
        assert!(!format!("{fault:?}").contains(secret), "{fault:?}");
    }
}

/// `cargo test --release -p tollgate-policy body::tests::hostile::speed -- --ignored --nocapture`
#[test]
#[ignore = "a measurement"]
fn speed() {
    let names: Vec<String> = (0..20).map(|n| format!("field_number_{n}")).collect();
    let fields: Vec<String> = names.iter().map(|name| format!("{name}: string")).collect();
    let fields = fields.join(", ");
    let value = "lorem ipsum dolor sit amet ".repeat(7);
    let members: Vec<String> = names
        .iter()
        .map(|name| format!("\"{name}\": \"{}\"", &value[..185]))
        .collect();
    let body = format!("{{ {} }}", members.join(", "));
    let listed = format!(
        "{{ {}, \"list\": [{}1] }}",
        members[..4].join(", "),
        "17,".repeat(1_000)
    );
    let specs = [
        (
            "fields",
            format!("{{ fields: {{ {fields}, list: [int] }} }}"),
        ),
        (
            "required",
            format!("{{ fields: {{ {fields}, list: [int] }}, required: [field_number_3] }}"),
        ),
        ("strip", "{ strip: [/field_number_3, '/*/x'] }".to_owned()),
        (
            "schema",
            "{ schema: { additionalProperties: { maxLength: 1000 } } }".to_owned(),
        ),
    ];
    for (name, text) in &specs {
        let spec = spec(text);
        for body in [&body, &listed] {
            // The quickest of many short runs is the one that nobody else disturbed.
            let quickest = (0..500).map(|_| {
                let started = Instant::now();
                for _ in 0..20 {
                    let body = std::hint::black_box(body.as_bytes());
                    std::hint::black_box(spec.check(Media::Json, body).unwrap());
                }
                started.elapsed() / 20
            });
            let quickest = quickest.min().unwrap();
            println!("{name}: {} bytes in {quickest:?}", body.len());
            let counted =
                allocation_counter::measure(|| drop(spec.check(Media::Json, body.as_bytes())));
            println!("    {} allocations", counted.count_total);
        }
    }
}
