//! Deciding allocates nothing where a request is allowed without looking at its body.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::syntax::Source;
use tollgate_policy::{Body, Headers, Outcome, Request, Scheme, Subject, Verdict, compile};

struct None;

impl Headers for None {
    fn each(&self, _: &str, _: &mut dyn FnMut(&[u8])) {}
}

#[test]
fn the_allow_path_allocates_nothing() {
    let mut text = String::from(
        "version: 1\nworkloads: { w: {} }\napis: { a: { hosts: ['*.a.com'] } }\nroles:\n  r:\n    - api: a\n      allow:\n",
    );
    for number in 0..200 {
        text.push_str(&format!("        - route: GET /v1/{{x}}/t{number}/{{n:int}}\n          query: {{ state: [open, closed], page: 1..9 }}\n"));
        text.push_str(&format!(
            "        - route: PUT /v1/{{x}}/t{number}/{{n:int}}\n"
        ));
    }
    text.push_str(
        "      deny: [{ route: '* /v1/payroll/**' }]\ngrants: [{ role: r, to: { workload: w } }]\n",
    );
    let policy = compile(&[Source {
        name: "p.yaml".into(),
        text,
    }])
    .unwrap()
    .policy;
    let host = Host::parse("x.a.com").unwrap();
    let mut verdict = Verdict::Deny;
    let mut decide = || {
        let target = Target::parse("/v1/acme/t150/42?state=open&page=2").unwrap();
        let request = Request {
            scheme: Scheme::Https,
            host: &host,
            port: 443,
            method: "GET",
            target: &target,
            headers: &None,
            body: Body::Absent,
            now: 0,
        };
        let subject = Subject {
            workload: "w",
            identity: Option::None,
        };
        if let Outcome::Decided(decision) = policy.decide(&subject, &request) {
            verdict = decision.verdict;
        }
    };
    // Once before counting: what is made on first use is not the path's cost.
    decide();
    let control = allocation_counter::measure(|| drop(std::hint::black_box(vec![1_u8])));
    assert_eq!(control.count_total, 1, "allocations are counted");
    let counted = allocation_counter::measure(&mut decide);
    assert_eq!(verdict, Verdict::Allow);
    assert_eq!(counted.count_total, 0, "{counted:?}");
}
