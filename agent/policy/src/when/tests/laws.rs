//! Random conditions: nothing panics, in the library neither.
use super::*;
use proptest::prelude::*;
use proptest::sample::select;

/// What stands at the ends of a condition.
const LEAVES: [&str; 36] = [
    "request.json.n",
    "request.json.neg",
    "request.json.zero",
    "request.json.half",
    "request.json.whole",
    "request.json.min",
    "request.json.max",
    "request.json.title",
    "request.json.labels",
    "request.json.flag",
    "request.json.none",
    "request.json.user",
    "request.json.user.name",
    "request.json.items",
    "request.json.items[0]",
    "request.json.missing",
    "path.repo",
    "request.method",
    "request.port",
    "0",
    "1",
    "-2",
    "3",
    "9223372036854775807",
    "3.0",
    "-0.5",
    "2u",
    "'bug'",
    "'tools'",
    "''",
    "true",
    "false",
    "null",
    "[1, 2.0, 'ui']",
    "{'name': 1, 'b': true}",
    "[]",
];

fn condition() -> impl Strategy<Value = String> {
    let operators = select(vec![
        "||", "&&", "==", "!=", "<", "<=", ">", ">=", "in", "+", "-", "*", "/", "%",
    ]);
    let loops = select(vec!["all", "exists", "exists_one", "filter", "map"]);
    let methods = select(vec!["contains", "startsWith", "endsWith"]);
    let conversions = select(vec!["int", "double", "uint", "size"]);
    let leaf = select(LEAVES.to_vec()).prop_map(str::to_owned);
    leaf.prop_recursive(4, 24, 3, move |inner| {
        let two = || (inner.clone(), inner.clone());
        prop_oneof![
            6 => (two(), operators.clone())
                .prop_map(|((left, right), operator)| format!("({left} {operator} {right})")),
            1 => inner.clone().prop_map(|operand| format!("!{operand}")),
            1 => inner.clone().prop_map(|operand| format!("-({operand})")),
            1 => (two(), inner.clone()).prop_map(|((a, b), c)| format!("({a} ? {b} : {c})")),
            2 => (two(), loops.clone(), select(vec!["==", "!=", "<", "in", "||"])).prop_map(
                |((range, with), name, operator)| {
                    let variable = format!("v{}", range.len() % 7);
                    format!("{range}.{name}({variable}, {variable} {operator} {with})")
                }
            ),
            1 => (two(), methods.clone())
                .prop_map(|((text, part), name)| format!("{text}.{name}({part})")),
            1 => (inner.clone(), conversions.clone())
                .prop_map(|(value, name)| format!("{name}({value})")),
            1 => two().prop_map(|(of, index)| format!("{of}[{index}]")),
            1 => inner.clone().prop_map(|of| format!("has({of}.name)")),
            1 => two().prop_map(|(one, other)| format!("[{one}, {other}]")),
        ]
    })
}

/// A condition that has a chance to be one: a comparison at the top.
fn compared() -> impl Strategy<Value = String> {
    (
        condition(),
        condition(),
        select(vec!["==", "!=", "<", "in", "&&", "||"]),
    )
        .prop_map(|(left, right, operator)| format!("{left} {operator} {right}"))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn garbage_never_panics(text in "\\PC{0,80}") {
        if let Ok(when) = parse(&text) {
            let _ = with_facts(Some(&body()), |facts| when.holds(facts));
        }
    }

    #[test]
    fn pieces_never_panic(pieces in prop::collection::vec(select(vec![
        "request", ".json", ".a", "(", ")", "[", "]", "{", "}", "'x'", "\"", "1", "1.5", "-", "!", "&&", "||", "?", ":",
        ",", ".all(x,", ".map(x,", "x", "has(", "size(", "now", "path.repo", " in ", "==", "<", "\\", "r'", "0x", "u",
        "timestamp(", "duration('1h')", "ä", "//", "\n", "'''",
    ]), 0..30)) {
        let text = pieces.concat();
        match parse(&text) {
            Ok(when) => {
                let _ = with_facts(Some(&body()), |facts| when.holds(facts));
            }
            Err(faults) => {
                for fault in faults {
                    prop_assert!(fault.width > 0 && fault.at <= text.len());
                    prop_assert!(text.is_char_boundary(fault.at));
                }
            }
        }
    }

    #[test]
    fn conditions_never_panic(text in compared()) {
        if let Ok(when) = parse(&text) {
            let found = with_facts(Some(&body()), |facts| when.holds(facts));
            prop_assert_ne!(found, Err("it cannot be evaluated".to_owned()), "{}", text);
        }
    }
}
