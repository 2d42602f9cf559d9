use super::naive::{Asked, Model, Rule, WORKLOADS};
use super::*;
use proptest::prelude::*;
use proptest::sample::{select, subsequence};

fn segment() -> impl Strategy<Value = &'static str> {
    select(vec![
        "a",
        "b",
        "1",
        "*",
        "{n:int}",
        "{p:[ab]+}",
        "a:b",
        "a%3Ab",
    ])
}

fn segments() -> impl Strategy<Value = Vec<&'static str>> {
    (
        prop::collection::vec(segment(), 0..3),
        select(vec![None, Some("**"), Some("")]),
    )
        .prop_map(|(mut segments, last)| {
            // A placeholder may stand only once, by name.
            for placeholder in ["{n:int}", "{p:[ab]+}"] {
                if segments
                    .iter()
                    .filter(|segment| **segment == placeholder)
                    .count()
                    > 1
                {
                    segments.retain(|segment| *segment != placeholder);
                }
            }
            segments.extend(last);
            if segments.is_empty() {
                vec![""]
            } else {
                segments
            }
        })
}

fn query() -> impl Strategy<Value = Option<Vec<(&'static str, &'static str)>>> {
    let shapes = || select(vec!["int", "[int]", "1..5", "[x, y]", "string"]);
    let names = subsequence(vec!["p", "q", "api_key"], 0..3);
    prop::option::of((names, shapes(), shapes()).prop_map(|(names, one, other)| {
        names
            .into_iter()
            .enumerate()
            .map(|(n, name)| (name, if n == 0 { one } else { other }))
            .collect()
    }))
}

fn rule() -> impl Strategy<Value = Rule> {
    let methods = prop_oneof![Just(vec!["*"]), subsequence(vec!["GET", "PUT"], 1..=2),];
    (
        prop::bool::weighted(0.2),
        methods,
        segments(),
        query(),
        any::<bool>(),
    )
        .prop_map(|(deny, methods, segments, query, strip)| Rule {
            deny,
            methods,
            segments,
            query,
            strip,
        })
}

fn model() -> impl Strategy<Value = Model> {
    let role = prop::collection::vec((0..3_usize, rule()), 0..6);
    let grant = (0..3_usize, 0..4_usize, any::<bool>());
    (
        prop::collection::vec(role, 4),
        prop::collection::vec(grant, 0..8),
    )
        .prop_map(|(roles, mut grants)| {
            // The same role granted twice is one grant, in the stricter mode.
            grants.sort();
            grants.dedup_by_key(|(workload, role, _)| (*workload, *role));
            Model { roles, grants }
        })
}

fn asked() -> impl Strategy<Value = Asked> {
    let segments = prop::collection::vec(
        select(vec!["a", "b", "1", "01", "ab", "a:b", "a%3Ab"]),
        0..4,
    );
    let query = prop::collection::vec(
        (
            select(vec!["p", "q", "r", "api_key"]),
            select(vec!["1", "9", "x", "z", ""]),
        ),
        0..3,
    );
    (
        0..3_usize,
        select(vec!["a.com", "x.b.com", "y.b.com", "b.com", "c.com"]),
        select(vec!["GET", "PUT", "TRACE", "CONNECT"]),
        (segments, any::<bool>()),
        query,
    )
        .prop_map(|(workload, host, method, (segments, slash), query)| {
            let mut path: String = segments
                .iter()
                .map(|segment| format!("/{segment}"))
                .collect();
            if slash || path.is_empty() {
                path.push('/');
            }
            Asked {
                workload,
                host,
                method,
                path,
                query,
            }
        })
}

fn ask(policy: &Policy, asked: &Asked) -> (bool, bool) {
    let query: Vec<String> = asked
        .query
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let url = format!("https://{}{}?{}", asked.host, asked.path, query.join("&"));
    let decision = call(WORKLOADS[asked.workload], asked.method, &url).decide(policy);
    (
        decision.verdict == Verdict::Allow,
        decision.mode == crate::Mode::Observe,
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 384, max_shrink_iters: 2_000, ..ProptestConfig::default() })]

    #[test]
    fn agrees_with_the_naive_evaluator(model in model(), asked in prop::collection::vec(asked(), 64)) {
        let policy = compiled(&model.document()).policy;
        for asked in asked {
            prop_assert_eq!(ask(&policy, &asked), model.decide(&asked), "{:?}\n{}", asked, model.document());
        }
    }

    #[test]
    fn adding_an_allow_never_shuts_out_and_a_deny_never_lets_in(
        model in model(), role in 0..4_usize, api in 0..3_usize, rule in rule(),
        asked in prop::collection::vec(asked(), 32),
    ) {
        let before = compiled(&model.document()).policy;
        let deny = rule.deny;
        let mut more = model;
        more.roles[role].push((api, rule));
        let after = compiled(&more.document()).policy;
        for asked in asked {
            let (was, is) = (ask(&before, &asked).0, ask(&after, &asked).0);
            prop_assert!(if deny { was || !is } else { is || !was }, "{:?}", asked);
        }
    }

    #[test]
    fn order_and_files_do_not_matter(
        model in model(), asked in prop::collection::vec(asked(), 32),
    ) {
        let forward = compiled(&model.document()).policy;
        let mut turned = model.clone();
        turned.roles.iter_mut().for_each(|rules| rules.reverse());
        turned.grants.reverse();
        let text = turned.document();
        let (head, grants) = text.split_once("grants:").unwrap();
        let grants = source("a.yaml", &format!("version: 1\ngrants:{grants}"));
        let backward = compile(&[grants, source("z.yaml", head)]).unwrap().policy;
        for asked in asked {
            prop_assert_eq!(ask(&forward, &asked), ask(&backward, &asked), "{:?}", asked);
            prop_assert_eq!(route(&forward, &asked), route(&backward, &asked), "{:?}", asked);
        }
    }

    /// Any text that is nearly a policy gives a policy or faults.
    #[test]
    fn broken_documents_give_faults(cut in 0..POLICY.len(), junk in "[-{}\\[\\]:,\"'*/. \n0-9a-z~|é]{0,6}", skip in 0..12_usize) {
        if POLICY.is_char_boundary(cut) {
            let tail = POLICY.get(cut + skip..).unwrap_or("");
            let text = format!("{}{junk}{tail}", &POLICY[..cut]);
            match compile(&[source("p.yaml", &text)]) {
                Ok(compiled) => prop_assert!(!compiled.warnings.has_errors()),
                Err(faults) => {
                    prop_assert!(faults.has_errors());
                    prop_assert!(faults.to_string().contains("p.yaml:"));
                }
            }
        }
    }
}

/// The route of the rule that decides.
fn route(policy: &Policy, asked: &Asked) -> Option<String> {
    let url = format!("https://{}{}", asked.host, asked.path);
    let decision = call(WORKLOADS[asked.workload], asked.method, &url).decide(policy);
    decision.rule.map(|rule| rule.label.to_string())
}
