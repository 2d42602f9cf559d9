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
        assert_eq!(budget.name, "one");
        let of_a = ["a".to_owned()];
        let expected = (&of_a[..], Quota { amount, window });
        assert_eq!(budget.kernel_bytes(), Some(expected));
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
            "{ for: { workload: a }, limits: {} }",
            "4:40: `limits` needs one of `bytes`, `requests`, `tokens` and `usd`",
        ),
        (
            "{ for: { workload: a }, limits: { requests: 60/s } }",
            "4:52: `60/s` is no number of requests in a time",
        ),
        (
            "{ for: { workload: a }, limits: { requests: 060/min } }",
            "4:52: `060/min` is no number of requests in a time",
        ),
        (
            "{ for: { workload: a }, limits: { tokens: 2m/day } }",
            "4:50: `2m/day` is no number of tokens in a time",
        ),
        (
            "{ for: { workload: a }, limits: { usd: 1e3/day } }",
            "4:47: `1e3/day` is no amount of US dollars in a time",
        ),
        (
            "{ for: { workload: a }, limits: { usd: 1000001/day } }",
            "4:47: `1000001/day` is no amount of US dollars in a time",
        ),
        (
            "{ for: { workload: a }, limits: { usd: 0.0000001/day } }",
            "4:47: `0.0000001/day` is no amount of US dollars in a time",
        ),
        (
            "{ for: {}, limits: { bytes: 1/day } }",
            "4:15: the budget's `for` needs `workload`, `identity` or `group`",
        ),
        (
            "{ for: { workload: a, identity: i }, limits: { bytes: 1/day } }",
            "4:40: there is no identity `i`",
        ),
        (
            "{ for: { workload: a, group: g }, limits: { bytes: 1/day } }",
            "4:37: there is no group `g`",
        ),
        (
            "{ for: { workload: a }, each: identities, limits: { bytes: 1/day } }",
            "4:38: expected one of `identity`, `workload`, found `identities`",
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
        "5:47: workload `a` has a limit on bytes already, in budget `z`"
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

const WHO: &str = "
version: 1
workloads: { a: {}, b: {}, c: {} }
identities: { alice: { token: tgi_a }, bob: { token: tgi_b }, ci: { token: tgi_c } }
groups: { oncall: [bob, ci] }
apis: { m: { hosts: [m.com], meter: anthropic } }
roles: { r: [{ api: m, allow: [{ route: GET /x }] }] }
grants: [{ role: r, to: { workload: [a, b, c] } }]
";

fn policy(rest: &str) -> Compiled {
    let text = format!("{WHO}{rest}");
    compile(&[source("p.yaml", &text)]).unwrap_or_else(|faults| panic!("{faults}"))
}

#[test]
fn whose_each_is() {
    let policy = policy(
        "budgets:
  by-workload: { for: { workload: [b, a] }, limits: { requests: 1/min } }
  by-identity: { for: { identity: alice }, limits: { requests: 1/min } }
  by-group: { for: { group: oncall }, limits: { requests: 1/min } }
  both: { for: { identity: [alice, ci], group: oncall, workload: c }, each: identity, limits: { tokens: 2k/day } }
  kernels: { for: { workload: a }, limits: { bytes: 1/day } }
",
    )
    .policy;
    let of = |workload, identity| {
        let subject = Subject { workload, identity };
        let budgets = policy.budgets_for(subject);
        budgets.map(|(_, budget)| &*budget.name).collect::<Vec<_>>()
    };
    assert_eq!(of("a", None), ["by-workload"]);
    assert_eq!(of("c", None), [""; 0]);
    assert_eq!(of("a", Some("alice")), ["by-identity", "by-workload"]);
    assert_eq!(of("c", Some("bob")), ["by-group"]);
    assert_eq!(of("c", Some("ci")), ["both", "by-group"]);
    assert_eq!(of("nobody", Some("ci")), [""; 0]);
}

/// The kernel counts what it can tell whose it is, and the agent the rest.
#[test]
fn who_counts_bytes() {
    let of_kernel = |whom: &str| {
        let rest =
            format!("budgets: {{ one: {{ for: {{ {whom}, limits: {{ bytes: 7/day }} }} }}\n");
        let policy = policy(&rest).policy;
        let budget = policy.budgets().first().cloned().expect("one");
        let quota = Quota {
            amount: 7,
            window: Window::Day,
        };
        let agents = budget.agent_bytes() == Some(quota);
        let names = budget.kernel_bytes().map(|(names, _)| names.join(","));
        assert_eq!(names.is_none(), agents);
        assert_eq!(policy.is_budgeted("a"), names.is_some(), "{whom}");
        names
    };
    assert_eq!(of_kernel("workload: a }").as_deref(), Some("a"));
    assert_eq!(
        of_kernel("workload: [a, b] }, each: workload").as_deref(),
        Some("a,b")
    );
    assert_eq!(
        of_kernel("workload: a }, each: workload").as_deref(),
        Some("a")
    );
    assert_eq!(of_kernel("workload: [a, b] }"), None);
    assert_eq!(of_kernel("workload: a }, each: identity"), None);
    assert_eq!(of_kernel("workload: a, identity: bob }"), None);
    assert_eq!(of_kernel("group: oncall }, each: workload"), None);
}

#[test]
fn amounts_of_each_kind() {
    let policy = policy(
        "budgets: { one: { for: { workload: a }, limits: { requests: 60/min, tokens: 2M/hour, usd: 0.25/day } } }
prices: { \"gpt-4o*\": { input: 2.5, output: 10.000001 }, gpt-4o-mini: { input: 0.15, output: 0.6, cached: 0.075, cache_write: 1, max_output: 9 }, \"gpt-4*\": { input: 0, output: 0 } }
",
    )
    .policy;
    let limits = policy.budgets().first().expect("one").limits;
    let quota = |amount, window| Some(Quota { amount, window });
    assert_eq!(limits.requests, quota(60, Window::Minute));
    assert_eq!(limits.tokens, quota(2_000_000, Window::Hour));
    assert_eq!(limits.usd, quota(crate::PICODOLLARS / 4, Window::Day));
    assert_eq!(limits.bytes, None);
    let price = |model| {
        let price = policy.price(model)?;
        Some([price.input, price.cached, price.cache_write, price.output])
    };
    assert_eq!(
        price("gpt-4o-mini"),
        Some([150_000, 75_000, 1_000_000, 600_000])
    );
    assert_eq!(
        price("gpt-4o-2024"),
        Some([2_500_000, 2_500_000, 2_500_000, 10_000_001])
    );
    assert_eq!(price("gpt-4.1"), Some([0; 4]));
    assert_eq!(price("gpt-3"), None);
}

#[test]
fn faults_of_prices() {
    for (price, expected) in [
        ("\"*\": { input: 1, output: 1 }", "10:3: `*` names no model"),
        (
            "\"a*b\": { input: 1, output: 1 }",
            "10:3: `a*b` names no model",
        ),
        (
            "\"a b\": { input: 1, output: 1 }",
            "10:3: `a b` names no model",
        ),
        ("m: { input: 1 }", "10:6: the price needs `output`"),
        ("m: { input: -1, output: 1 }", "10:15: `-1` is no price"),
        (
            "m: { input: 1, output: 0.0000001 }",
            "10:26: `0.0000001` is no price",
        ),
        (
            "m: { input: 1, output: 1, max_output: 0 }",
            "10:41: expected an integer from 1 to 100000000, found `0`",
        ),
    ] {
        let text = format!("{WHO}prices:\n  {price}\n");
        let faults = compile(&[source("p.yaml", &text)]).unwrap_err();
        let fault = faults.iter().next().expect("one");
        let found = format!("{}:{}: {}", fault.at.line, fault.at.column, fault.message);
        assert_eq!(found, expected);
    }
}

#[test]
fn warnings_of_budgets() {
    let warned = |rest: &str| policy(rest).warnings.to_string();
    let money =
        "budgets: { one: { for: { identity: alice, group: oncall }, limits: { usd: 1/day } } }\n";
    assert!(warned(money).contains("lets no call to a metered api pass: no model has a price"));
    assert_eq!(
        warned(&format!(
            "{money}prices: {{ m: {{ input: 1, output: 1 }} }}\n"
        )),
        ""
    );
    let text = format!("{WHO}{money}").replace(", meter: anthropic", "");
    let compiled = compile(&[source("p.yaml", &text)]).unwrap();
    let warnings = compiled.warnings.to_string();
    assert!(
        warnings.contains("counts nothing: no api has a `meter`"),
        "{warnings}"
    );
}
