//! Which names a workload may look up.
use super::*;
use crate::Mode;

const NAMES: &str = r#"version: 1
workloads: { builder: {}, watcher: {}, mixed: {}, idle: {} }
identities: { alice: { token: tgi_alice } }
apis:
  web: { hosts: [a.com, "*.a.com"] }
  again: { hosts: [a.com], port: 8443 }
  pinned: { sni: [pin.com] }
  late: { hosts: [late.com] }
  ours: { hosts: [ours.com] }
  shut: { hosts: [shut.com] }
  cache: { tcp: ["10.0.0.7:6379"] }
  plain: { hosts: [ledger, 192.0.2.7] }
roles:
  web: [{ api: web, allow: [{ route: GET /x }] }]
  pinned: [{ api: pinned }]
  late: [{ api: late, allow: [{ route: GET /x }] }]
  still: [{ api: late, deny: [{ route: "* /**" }] }]
  ours: [{ api: ours, allow: [{ route: GET /x }] }]
  shut: [{ api: shut, deny: [{ route: "* /**" }] }]
  cache: [{ api: cache }]
  plain: [{ api: plain, allow: [{ route: GET /x }] }]
grants:
  - { role: web, to: { workload: builder } }
  - { role: pinned, to: { workload: builder } }
  - { role: late, to: { workload: builder }, until: 2026-06-01 }
  - { role: still, to: { workload: builder } }
  - { role: shut, to: { workload: builder } }
  - { role: cache, to: { workload: builder } }
  - { role: ours, to: { workload: builder, identity: alice } }
  - { role: plain, to: { workload: watcher }, mode: observe }
  - { role: web, to: { workload: mixed }, mode: observe }
  - { role: ours, to: { workload: mixed, identity: alice } }
"#;

/// 2026-06-01, its last second.
const END: i64 = NOW + 86_399;

fn name(policy: &Policy, workload: &str, host: &str, now: i64) -> Result<(), crate::Unnamed> {
    policy.name(workload, &Host::parse(host).unwrap(), now)
}

#[test]
fn names_of_what_is_granted() {
    let policy = compiled(NAMES).policy;
    for (workload, host) in [
        ("builder", "a.com"),
        ("builder", "A.com."),
        ("builder", "b.a.com"),
        ("builder", "pin.com"),
        ("builder", "late.com"),
        // Who will call is not known yet.
        ("builder", "ours.com"),
        ("watcher", "ledger"),
        ("watcher", "192.0.2.7"),
        ("mixed", "a.com"),
    ] {
        assert_eq!(name(&policy, workload, host, NOW), Ok(()), "{host}");
    }
}

#[test]
fn other_names_with_the_reason() {
    let policy = compiled(NAMES).policy;
    for (workload, host, said) in [
        (
            "builder",
            "b.com",
            "no api of the policy has the host `b.com`",
        ),
        ("builder", "c.b.a.com", "no api"),
        ("builder", "com", "no api"),
        ("builder", "10.0.0.7", "no api"),
        (
            "builder",
            "ledger",
            "no grant gives workload `builder` a role on api `plain`",
        ),
        ("builder", "shut.com", "may do nothing on api `shut`"),
        ("watcher", "a.com", "no grant"),
        ("idle", "a.com", "no grant"),
        ("nobody", "a.com", "no grant"),
    ] {
        let unnamed = name(&policy, workload, host, NOW).unwrap_err();
        assert_eq!(unnamed.reason.code, "dns_name");
        let detail = &unnamed.reason.detail;
        assert!(detail.contains(said), "{workload} {host}: {detail}");
    }
}

#[test]
fn a_name_is_had_as_long_as_its_grant() {
    let policy = compiled(NAMES).policy;
    assert_eq!(name(&policy, "builder", "late.com", END), Ok(()));
    let unnamed = name(&policy, "builder", "late.com", END + 1).unwrap_err();
    assert!(
        unnamed
            .reason
            .detail
            .contains("may do nothing on api `late`")
    );
    assert!(unnamed.reason.hint.contains("until"));
}

#[test]
fn a_refusal_stands_unless_all_that_is_granted_is_observed() {
    let policy = compiled(NAMES).policy;
    for (workload, mode) in [
        ("builder", Mode::Enforce),
        ("watcher", Mode::Observe),
        ("mixed", Mode::Enforce),
        ("idle", Mode::Enforce),
    ] {
        let unnamed = name(&policy, workload, "nowhere.com", NOW).unwrap_err();
        assert_eq!(unnamed.mode, mode, "{workload}");
        assert_eq!(unnamed.effective_mode(Mode::Enforce), mode);
        assert_eq!(unnamed.effective_mode(Mode::Observe), Mode::Observe);
    }
}
