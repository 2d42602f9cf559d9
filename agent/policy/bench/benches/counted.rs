//! Allocations while deciding, and memory per rule: one line of JSON.
#![allow(
    clippy::expect_used,
    reason = "a bench that cannot be set up has no other way to say so"
)]
use allocation_counter::measure;
use std::hint::black_box;
use tollgate_policy::{Body, Verdict};
use tollgate_policy_bench::{SIZES, body, body_call, compiled};

fn main() {
    let size = SIZES.last().expect("a size");
    let text = size.document();
    let mut policy = None;
    // The document itself is dropped: what stays is the policy.
    let kept = measure(|| policy = Some(compiled(text)));
    let policy = policy.expect("a policy");
    let control = measure(|| drop(black_box(vec![1_u8])));
    assert_eq!(control.count_total, 1, "allocations are not counted");

    let hits = size.hits();
    let decide = || {
        let allowed = |call: &_| {
            let call: &tollgate_policy_bench::Call = call;
            call.decide(&policy, Body::Absent).verdict == Verdict::Allow
        };
        assert!(hits.iter().all(allowed));
    };
    // Once before counting: what is made on first use is not the path's cost.
    decide();
    let allow = measure(decide);
    let (call, body) = (body_call(), body());
    let body = Body::Read(body.as_bytes());
    call.decide(&policy, body);
    let bodied = measure(|| drop(black_box(call.decide(&policy, body))));
    let rules = i64::try_from(size.rules).expect("few rules");
    let figures = serde_json::json!({
        "rules": size.rules,
        "allow_decisions": hits.len(),
        "allow_allocations": allow.count_total,
        "body_allocations": bodied.count_total,
        "bytes_per_rule": kept.bytes_current / rules,
        "compile_peak_bytes": kept.bytes_max,
    });
    println!("{figures}");
}
