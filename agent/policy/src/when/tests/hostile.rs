use super::*;
use std::time::{Duration, Instant};

const TOO_MUCH: &str = "it takes too much work on this request";

/// Runs on a stack that is smaller than a worker's.
fn on_small_stack(run: impl FnOnce() + Send + 'static) {
    std::thread::Builder::new()
        .stack_size(1 << 20)
        .spawn(run)
        .expect("a thread starts")
        .join()
        .expect("no panic");
}

fn texts() -> Vec<String> {
    let nest = |open: &str, inside: &str, close: &str, depth: usize| {
        open.repeat(depth) + inside + &close.repeat(depth)
    };
    let mut texts = vec![
        "(".repeat(4096),
        "[".repeat(4096),
        "{".repeat(4096),
        "{1:".repeat(1300),
        "!".repeat(4000) + "request.json.flag",
        "-".repeat(4000) + "request.json.n",
        "!-".repeat(2000) + "request.json.n",
        "a.".repeat(2000) + "a",
        "request.json".to_owned() + &".a".repeat(2000),
        "request.json".to_owned() + &"[0]".repeat(1300),
        "request.json".to_owned() + &".size()".repeat(500),
        "true?".repeat(800),
        "true?true:".repeat(400) + "true",
        "true?".repeat(400) + "true" + &":true".repeat(400),
        "1+".repeat(2000) + "1",
        "1-".repeat(2000) + "1 == request.port",
        "true&&".repeat(600) + "request.json.flag",
        "a||".repeat(1300) + "a",
        "true||true&&".repeat(300) + "request.json.flag",
        "'".repeat(4096),
        "\\".repeat(4096),
        "\u{0}".repeat(4096),
        "!!(!!!!!!(!!!!(((((!!(!!(!!!!((".repeat(100) + "1",
        "9".repeat(4096),
        ".".repeat(4096),
        "//".repeat(2000),
        "request.path.matches('".to_owned() + &"(a*)*".repeat(700) + "')",
        "x".repeat(5000),
    ];
    for depth in [8, 16, 23, 24, 25, 39, 40, 41, 400] {
        texts.push(nest("(", "request.json.flag", ")", depth));
        texts.push(nest("[", "request.json.flag", "]", depth) + " == []");
        texts.push(nest("{1:", "request.json.flag", "}", depth) + " == {}");
        texts.push(nest("size(", "request.json.flag", ")", depth) + " == 1");
        texts.push(nest("!(", "request.json.flag", ")", depth));
        texts.push("!".repeat(depth) + "request.json.flag");
        texts.push(nest("(request.json.flag ? ", "true", " : false)", depth));
        texts.push("1 + ".repeat(depth) + "request.json.n > 0");
    }
    texts
}

#[test]
fn hostile_texts_on_a_small_stack() {
    on_small_stack(|| {
        let body = body();
        let mut taken = 0;
        for text in texts() {
            let start = Instant::now();
            if let Ok(when) = parse(&text) {
                taken += 1;
                // Whatever it comes to.
                let _ = with_facts(Some(&body), |facts| when.holds(facts));
            }
            assert!(start.elapsed() < Duration::from_secs(2), "{text:.60}");
        }
        assert!(taken > 20, "what is not too deep is taken: {taken}");
    });
}

#[test]
fn deep_values_on_a_small_stack() {
    on_small_stack(|| {
        let mut body = json!([]);
        for _ in 0..60 {
            body = json!([{ "a": body }]);
        }
        let body = json!({ "a": body.clone(), "b": body });
        assert_eq!(on("request.json.a == request.json.b", &body), Ok(true));
        let mut body = json!([]);
        for _ in 0..2_000 {
            body = Json::Array(vec![body]);
        }
        let body = json!({ "a": body });
        let found = on("request.json.a == request.json.a", &body);
        assert_eq!(found, Err(TOO_MUCH.to_owned()));
        // serde_json drops recursively; that is its owner's concern, and strict JSON is not this deep.
    });
}

/// Conditions whose work a body can make large.
const GREEDY: [&str; 14] = [
    "request.json.a.all(x, request.json.a.all(y, x != -y - 1))",
    "request.json.a.all(x, !(-1 in request.json.a))",
    "request.json.a.map(x, request.json.a).size() == 0",
    "request.json.a.map(x, request.json.a + request.json.a).size() == 0",
    "request.json.a.map(x, request.json.s + request.json.s).size() == 0",
    "request.json.a.exists(x, request.json.s.contains('no'))",
    "request.json.a.exists(x, request.json.s == request.json.t)",
    "request.json.a.exists(x, request.json.s < 'a' || request.json.s.size() == 1)",
    "request.json.a.exists(x, request.json.s.matches('(a|b)*c'))",
    "request.json.a.all(x, request.json.a == request.json.b)",
    "request.json.a.all(x, request.json.o == request.json.o)",
    "request.json.a.all(x, request.json.o.all(k, k != ''))",
    "request.json.a.exists(x, request.json.missing == 1) || true",
    "request.json.a.exists(x, x / 0 == 1) || request.json.a.all(x, request.json.a.all(y, true))",
];

fn large() -> Json {
    let numbers: Vec<_> = (0..25_000).collect();
    let object: serde_json::Map<_, _> = (0..20_000).map(|n| (n.to_string(), json!(n))).collect();
    let text = "ab".repeat(500_000);
    json!({
        "a": numbers, "b": numbers, "o": object, "s": text, "t": text.clone() + "c",
        "u": format!("{text}d"),
    })
}

#[test]
fn work_is_bounded() {
    let body = large();
    for text in GREEDY {
        let when = parse(text).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
        let start = Instant::now();
        let found = with_facts(Some(&body), |facts| when.holds(facts));
        let took = start.elapsed();
        assert!(took < Duration::from_secs(3), "{text}: {took:?}");
        if !text.contains("missing") {
            let expected = Err(TOO_MUCH.to_owned());
            assert_eq!(found, expected, "{text}");
        }
    }
    // One pass over much is not too much.
    assert_eq!(on("request.json.a.all(x, x >= 0)", &body), Ok(true));
    assert_eq!(on("!(-1 in request.json.a)", &body), Ok(true));
    assert_eq!(on("request.json.t.contains('bc')", &body), Ok(true));
}

/// Patterns that backtracking engines take for ever on, and some that are large when compiled.
#[test]
fn patterns_are_bounded() {
    let patterns = [
        "^(a+)+$",
        "(a|a)*b",
        "(.*)*(.*)*(.*)*b",
        "(a*)*c",
        "(x+x+)+y",
        "[ab]*a[ab]{12}$",
        "(ab?){80}c",
        "(?:a?){60}a{60}c",
        "(?:[ab]?){900}[cd]",
        "[ab]*a[ab]{900}[cd]",
    ];
    for pattern in patterns {
        let when = parse(&format!("request.json.s.matches('{pattern}')")).unwrap();
        for size in [500, 5_000, 50_000] {
            let body = json!({ "s": "abb".repeat(size / 3) + "!" });
            let start = Instant::now();
            let _ = with_facts(Some(&body), |facts| when.holds(facts));
            let took = start.elapsed();
            assert!(
                took < Duration::from_secs(2),
                "{pattern} of {size}: {took:?}"
            );
        }
    }
    let path = "request.path.matches('^/repos/[a-z]+/[a-z-]{1,40}/') && request.json.n == 3";
    assert_eq!(on(path, &body()), Ok(true));
}

/// Figures: `cargo test --release -p tollgate-policy -- --ignored --nocapture when_figures`.
#[test]
#[ignore = "measures"]
fn when_figures() {
    let body = body();
    let time = |run: &mut dyn FnMut()| {
        let rounds = 20_000;
        let start = Instant::now();
        for _ in 0..rounds {
            run();
        }
        start.elapsed() / rounds
    };
    for text in [
        "!('secret' in request.json.labels) && path.repo != 'payroll'",
        "!('secret' in request.json.labels)",
        "path.repo == 'tools' && now < timestamp('2030-01-01T00:00:00Z')",
        "request.method == 'PATCH'",
        "request.query.page == ['2']",
        "request.headers['x-tenant'] == 'acme'",
        "request.json.items.exists(item, item.tags.exists(tag, tag == 'b'))",
        "now.getHours() >= 8 && now.getHours() < 18",
        "request.path.matches('/issues/[0-9]+$')",
    ] {
        let parsing = time(&mut || drop(std::hint::black_box(parse(text))));
        let when = parse(text).unwrap();
        let held = with_facts(Some(&body), |facts| {
            time(&mut || drop(std::hint::black_box(when.holds(facts))))
        });
        println!("{text}: parse {parsing:?}, holds {held:?}");
    }
    let body = large();
    let many = |part: &str| {
        format!(
            "request.json.a.exists(x, {}false)",
            format!("{part} || ").repeat(20)
        )
    };
    let dear = [
        "x < 0",
        "x / 0 == 1",
        "x.y == 1",
        "now.getDayOfYear() < 0",
        "timestamp(x) < now",
        "[x, x] == [1]",
        "{'a': x, 'b': x} == {}",
        "{'a': x}.b == 1",
        "string(x) == 'a'",
        "''.matches('a')",
        "x in [-1, -2, -3]",
        "'a' + 'b' == 'c'",
        "x == request.json.a",
        "!(x >= 0)",
        "int(string(x)) < 0",
        "now - now > duration('1h')",
        "[1, 2].exists(y, y == x + 200000)",
        "[x].map(y, y) == []",
        "request.json.s == request.json.o",
    ];
    let dear = dear.map(many);
    for text in GREEDY
        .iter()
        .copied()
        .chain(dear.iter().map(String::as_str))
    {
        let when = parse(text).unwrap_or_else(|faults| panic!("{text}: {faults:?}"));
        for size in [300, 1_000, 3_000, 10_000, 25_000] {
            let mut body = body.clone();
            let cut = |list: &mut Json| list.as_array_mut().unwrap().truncate(size);
            cut(&mut body["a"]);
            cut(&mut body["b"]);
            let start = Instant::now();
            let found = with_facts(Some(&body), |facts| when.holds(facts));
            println!("{text:.60} of {size}: {:?} {found:?}", start.elapsed());
        }
    }
}
