//! The walk against a second one, written straight from the semantics: expand every fragment, list every path of
//! fields from the root, and look each up.
use super::rule;
use proptest::prelude::*;
use serde_json::json;
use std::fmt::Write;

#[derive(Debug, Clone)]
enum Part {
    Field(&'static str, Vec<Part>),
    Inline(Vec<Part>),
    /// A later fragment than the one it stands in, so that there are no cycles.
    Spread(usize),
}

const NAMES: [&str; 5] = ["a", "b", "c", "__typename", "__schema"];
const FRAGMENTS: usize = 3;

fn parts() -> impl Strategy<Value = Vec<Part>> {
    let name = prop::sample::select(vec!["a", "a", "b", "b", "c", "__typename", "__schema"]);
    let leaf = prop_oneof![
        6 => name.clone().prop_map(|name| Part::Field(name, Vec::new())),
        1 => (0..FRAGMENTS).prop_map(Part::Spread),
    ];
    let part = leaf.prop_recursive(3, 12, 3, move |inner| {
        let set = prop::collection::vec(inner, 1..3);
        prop_oneof![
            4 => (prop::sample::select(vec!["a", "b", "c"]), set.clone()).prop_map(|(name, set)| Part::Field(name, set)),
            1 => set.prop_map(Part::Inline),
        ]
    });
    prop::collection::vec(part, 1..3)
}

fn write_parts(text: &mut String, parts: &[Part], first: usize) {
    text.push_str("{ ");
    for part in parts {
        match part {
            Part::Field(name, set) => {
                // An alias that is another field's name.
                write!(text, "{}: {name} ", NAMES[name.len() % 3]).unwrap();
                if !set.is_empty() {
                    write_parts(text, set, first);
                }
            }
            Part::Inline(set) => {
                text.push_str("... on T ");
                write_parts(text, set, first);
            }
            Part::Spread(index) if *index >= first => write!(text, "...F{index} ").unwrap(),
            Part::Spread(_) => text.push_str("a "),
        }
    }
    text.push_str("} ");
}

/// Every path of fields, and whether the field at its end has fields of its own.
fn paths(
    parts: &[Part],
    fragments: &[Vec<Part>],
    first: usize,
    at: &[&'static str],
    found: &mut Vec<(Vec<&'static str>, bool)>,
) {
    for part in parts {
        match part {
            Part::Field(name, set) => {
                let path = [at, &[*name]].concat();
                found.push((path.clone(), !set.is_empty()));
                paths(set, fragments, first, &path, found);
            }
            Part::Inline(set) => paths(set, fragments, first, at, found),
            Part::Spread(index) if *index >= first => {
                paths(&fragments[*index], fragments, index + 1, at, found);
            }
            Part::Spread(_) => found.push(([at, &["a"]].concat(), false)),
        }
    }
}

fn allowed(path: &[&str], has_set: bool, rules: &[Vec<&str>], introspection: bool) -> bool {
    let below = |path: &[&str]| rules.iter().any(|rule| path.starts_with(rule));
    let (last, before) = path.split_last().unwrap();
    match *last {
        "__typename" => true,
        name if name.starts_with("__") => introspection && (before.is_empty() || below(before)),
        _ => {
            let schema = path.first() == Some(&"__schema");
            let way = has_set && rules.iter().any(|rule| rule.starts_with(path));
            below(path) || way || (schema && introspection)
        }
    }
}

fn used(parts: &[Part], first: usize, fragments: &[Vec<Part>], seen: &mut [bool]) {
    for part in parts {
        match part {
            Part::Field(_, set) | Part::Inline(set) => used(set, first, fragments, seen),
            Part::Spread(index) if *index >= first => {
                seen[*index] = true;
                used(&fragments[*index], index + 1, fragments, seen);
            }
            Part::Spread(_) => {}
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 4_096, ..ProptestConfig::default() })]

    #[test]
    fn the_walk_agrees_with_the_naive_one(
        set in parts(),
        fragments in prop::collection::vec(parts(), FRAGMENTS),
        rules in prop::collection::btree_set(prop::collection::vec(prop::sample::select(vec!["a", "b", "c"]), 1..4), 1..5),
        introspection in any::<bool>(),
    ) {
        let mut text = "query Q ".to_owned();
        write_parts(&mut text, &set, 0);
        let mut seen = [false; FRAGMENTS];
        used(&set, 0, &fragments, &mut seen);
        for (index, fragment) in fragments.iter().enumerate().filter(|(index, _)| seen[*index]) {
            write!(text, "fragment F{index} on T ").unwrap();
            write_parts(&mut text, fragment, index + 1);
        }
        let rules: Vec<Vec<&str>> = rules.into_iter().collect();
        let listed = rules.iter().map(|path| path.join(".")).collect::<Vec<_>>().join(", ");
        let rule = rule(&format!("graphql: {{ query: [{listed}], depth: 64, introspection: {introspection} }}"));
        let found = rule.check(&json!({ "query": &text }));
        let mut every = Vec::new();
        paths(&set, &fragments, 0, &[], &mut every);
        let naive = every.iter().all(|(path, has_set)| allowed(path, *has_set, &rules, introspection));
        prop_assert_eq!(found.is_ok(), naive, "{} {:?} {:?}", text, rules, found);
        if let Err(fault) = found {
            prop_assert_eq!(fault.code, "graphql_field", "{}", text);
        }
    }
}
