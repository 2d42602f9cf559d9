//! Budgets: what is read, and what is refused.
use super::*;
use crate::syntax::Severity;
use crate::{Quota, Window};

const BASE: &str = "version: 1\nworkloads: { a: {}, b: {} }\nbudgets:\n";

fn with(budgets: &str) -> Result<Compiled, String> {
    let text = format!("{BASE}{budgets}");
    compile(&[source("p.yaml", &text)]).map_err(|faults| {
        let each = faults
            .iter()
            .filter(|fault| fault.severity == Severity::Error);
        let each: Vec<String> = each
            .map(|f| format!("{}:{}: {}", f.at.line, f.at.column, f.message))
            .collect();
        each.join("\n")
    })
}

#[test]
fn amounts_in_windows() {
    for (text, amount, window) in [
        ("1GiB/day", 1 << 30, Window::Day),
        ("512/min", 512, Window::Minute),
        ("16KiB/hour", 16 << 10, Window::Hour),
        ("1048576TiB/day", 1 << 60, Window::Day),
    ] {
        let policy = with(&format!(
            "  one: {{ for: {{ workload: a }}, limits: {{ bytes: {text} }} }}"
        ))
        .unwrap()
        .policy;
        let [budget] = policy.budgets() else {
            panic!("{:?}", policy.budgets())
        };
        assert_eq!((&*budget.name, &*budget.workload), ("one", "a"));
        assert_eq!(budget.bytes, Quota { amount, window });
        assert_eq!(budget.at.line, 4);
    }
}

#[test]
fn faults_of_budgets() {
    for (budget, expected) in [
        (
            "{ for: { workload: c }, limits: { bytes: 1GiB/day } }",
            "4:27: there is no workload `c`",
        ),
        ("{ for: { workload: a } }", "4:8: the budget needs `limits`"),
        (
            "{ limits: { bytes: 1/day } }",
            "4:8: the budget needs `for`",
        ),
        (
            "{ for: { workload: a }, limits: { bytes: 1GiB } }",
            "4:49: `1GiB` is no amount of bytes in a time",
        ),
        (
            "{ for: { workload: a }, limits: { bytes: 0/day } }",
            "4:49: `0/day` is no amount of bytes in a time",
        ),
        (
            "{ for: { workload: a }, limits: { bytes: 1GB/day } }",
            "4:49: `1GB/day` is no amount of bytes in a time",
        ),
        (
            "{ for: { workload: a }, limits: { bytes: 1/week } }",
            "4:49: `1/week` is no amount of bytes in a time",
        ),
        (
            "{ for: { workload: a }, limits: { bytes: 1048577TiB/day } }",
            "4:49: `1048577TiB/day` is no amount of bytes in a time",
        ),
        (
            "{ for: { workload: a }, limits: { requests: 60/min } }",
            "4:42: `requests` is not supported by this version",
        ),
        (
            "{ for: { workload: a, identity: i }, limits: { bytes: 1/day } }",
            "4:30: `identity` is not supported by this version",
        ),
    ] {
        assert_eq!(
            with(&format!("  one: {budget}")).unwrap_err(),
            expected,
            "{budget}"
        );
    }
}

#[test]
fn a_workload_has_one_limit_on_bytes_wherever_it_is_written() {
    let budget = |name: &str, workload: &str| {
        format!("  {name}: {{ for: {{ workload: {workload} }}, limits: {{ bytes: 1/day }} }}\n")
    };
    let two = with(&format!("{}{}", budget("z", "a"), budget("y", "a"))).unwrap_err();
    assert_eq!(
        two,
        "5:25: workload `a` has a limit on bytes already, in budget `z`"
    );
    let twice = with(&budget("x", "a")).unwrap();
    assert_eq!(twice.policy.budgets().len(), 1);
    let each = with(&format!("{}{}", budget("z", "a"), budget("y", "b"))).unwrap();
    let names: Vec<&str> = each.policy.budgets().iter().map(|b| &*b.name).collect();
    assert_eq!(names, ["y", "z"]);
    // The same name in another file.
    let other = format!("version: 1\nbudgets:\n{}", budget("z", "b"));
    let sources = [
        source("p.yaml", &format!("{BASE}{}", budget("z", "a"))),
        source("q.yaml", &other),
    ];
    let faults = compile(&sources).unwrap_err().to_string();
    assert!(faults.contains("budget `z` is defined twice"), "{faults}");
}
