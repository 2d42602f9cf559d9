//! CPU time of compiling and deciding; the same authorization by cedar-policy beside it.
#![allow(
    missing_docs,
    clippy::expect_used,
    reason = "criterion's macro writes functions; a bench that cannot be set up has no other way to say so"
)]
mod cedar;
mod cpu;

use cpu::CpuTime;
use criterion::{BatchSize, BenchmarkId, Criterion, criterion_group, criterion_main};
use std::hint::black_box;
use tollgate_policy::canonical::Target;
use tollgate_policy::{Body, Policy, Verdict};
use tollgate_policy_bench::{Call, SIZES, body, body_call, compiled};

/// Decides the calls in turn, so that lookups are not always the same.
fn in_turn(
    criterion: &mut Criterion<CpuTime>,
    name: &str,
    rules: usize,
    calls: &[Call],
    decide: impl Fn(&Call) -> Verdict,
) {
    let mut group = criterion.benchmark_group(name);
    group.bench_with_input(
        BenchmarkId::from_parameter(rules),
        calls,
        |bencher, calls| {
            let mut next = calls.iter().cycle();
            bencher.iter(|| decide(black_box(next.next().expect("a cycle"))));
        },
    );
    group.finish();
}

fn expect(policy: &Policy, calls: &[Call], verdict: Verdict) {
    for call in calls {
        let decision = call.decide(policy, Body::Absent);
        assert_eq!(decision.verdict, verdict, "{call:?} {:?}", decision.reason);
    }
}

fn decide(criterion: &mut Criterion<CpuTime>) {
    for size in SIZES {
        let policy = size.policy();
        let (hits, misses, denials) = (size.hits(), size.misses(), size.denials());
        expect(&policy, &hits, Verdict::Allow);
        expect(&policy, &misses, Verdict::Deny);
        expect(&policy, &denials, Verdict::Deny);
        let decide = |call: &Call| call.decide(&policy, Body::Absent).verdict;
        in_turn(criterion, "allow", size.rules, &hits, decide);
        in_turn(criterion, "miss", size.rules, &misses, decide);
        in_turn(criterion, "deny", size.rules, &denials, decide);
        in_turn(criterion, "parse_and_allow", size.rules, &hits, |call| {
            let target = Target::parse(&call.raw).expect("a target");
            call.decide_at(&policy, &target, Body::Absent).verdict
        });
        let (call, body) = (body_call(), body());
        let body = Body::Read(body.as_bytes());
        assert_eq!(call.decide(&policy, body).verdict, Verdict::Allow);
        in_turn(criterion, "body", size.rules, &[call], |call| {
            call.decide(&policy, body).verdict
        });
    }
}

fn compile(criterion: &mut Criterion<CpuTime>) {
    let mut group = criterion.benchmark_group("compile");
    for size in SIZES {
        let text = size.document();
        group.sample_size(if size.rules > 1_000 { 10 } else { 20 });
        group.bench_function(BenchmarkId::from_parameter(size.rules), |bencher| {
            bencher.iter_batched(|| text.clone(), compiled, BatchSize::PerIteration);
        });
    }
    group.finish();
}

fn beside_cedar(criterion: &mut Criterion<CpuTime>) {
    let model = cedar::Model::new();
    let (policy, cedar) = (compiled(model.document()), model.cedar());
    let calls = model.calls();
    let allowed = calls
        .iter()
        .filter(|call| {
            let ours = call.ours.decide(&policy, Body::Absent).verdict == Verdict::Allow;
            assert_eq!(
                ours,
                cedar.decide(&call.request),
                "they differ: {:?}",
                call.ours
            );
            ours
        })
        .count();
    assert!(
        (calls.len() / 4..calls.len()).contains(&allowed),
        "{allowed}"
    );
    let mut group = criterion.benchmark_group("beside");
    let mut next = calls.iter().cycle();
    group.bench_function("tollgate", |bencher| {
        bencher.iter(|| {
            let call = &next.next().expect("a cycle").ours;
            call.decide(&policy, Body::Absent).verdict
        });
    });
    let mut next = calls.iter().cycle();
    group.bench_function("cedar", |bencher| {
        bencher.iter(|| cedar.decide(&next.next().expect("a cycle").request));
    });
    let mut next = calls.iter().cycle();
    group.bench_function("tollgate_from_text", |bencher| {
        bencher.iter(|| {
            let call = &next.next().expect("a cycle").ours;
            let target = Target::parse(&call.raw).expect("a target");
            call.decide_at(&policy, &target, Body::Absent).verdict
        });
    });
    let mut next = calls.iter().cycle();
    group.bench_function("cedar_from_text", |bencher| {
        bencher.iter(|| {
            let call = next.next().expect("a cycle");
            let target = Target::parse(&call.ours.raw).expect("a target");
            cedar.decide(&cedar.request(&call.ours, &target, call.api))
        });
    });
    group.finish();
}

criterion_group! {
    name = benches;
    config = Criterion::default().with_measurement(CpuTime).without_plots();
    targets = decide, compile, beside_cedar
}
criterion_main!(benches);
