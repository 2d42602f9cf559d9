#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;
use crate::config::AuditLimits;
use crate::kernel::Process;
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::Mode;

mod chaining;
mod logging;
mod records;

const SMALL: AuditLimits = AuditLimits {
    segment_bytes: 8 * 1024,
    segments: 1000,
};

fn process() -> Arc<Process> {
    Arc::new(Process {
        pid: 4242,
        start: u64::MAX,
        exe: "/usr/bin/curl".into(),
        exe_dev: 1,
        exe_inode: 2,
        sha256: Some("a1".repeat(32)),
        uid: 1000,
        cgroup: "/system.slice/app.service".into(),
        unit: Some("app.service".into()),
    })
}

/// Allowed, with everything there is to say.
pub(super) fn full() -> Record {
    Record {
        id: uuid::Uuid::now_v7(),
        time: jiff::Timestamp::now(),
        verdict: Verdict::Allow,
        mode: Mode::Enforce,
        workload: Some("ci".into()),
        identity: Some("bot".into()),
        process: Some(process()),
        request: Some(RequestRecord {
            method: "GET".into(),
            scheme: "https".into(),
            host: "api.example.com".into(),
            port: 443,
            path: "/repos/acme/tool/issues".into(),
            route: Some("/repos/acme/{repo}/issues".into()),
            query_keys: vec!["page".into()],
            bytes: 0,
        }),
        response: Some(ResponseRecord {
            status: 200,
            bytes: 1234,
        }),
        rule: Some("role:triage allow GET /repos/acme/{repo}/issues".into()),
        reason: None,
        policy: Some(Arc::new(PolicyStamp {
            version: 1,
            hash: "00ff".into(),
        })),
        credential: Some("github-bot".into()),
        stripped: vec!["authorization".into()],
        injected: vec!["authorization".into()],
        redacted: vec!["/user/email".into()],
        budget: Some("daily".into()),
        upstream: Some(UpstreamRecord {
            address: "198.51.100.7:443".into(),
            tls: Some("TLSv1.3 h2".into()),
        }),
        coverage: Coverage::Request,
        timing: Timing {
            total_us: 900,
            policy_us: 3,
            upstream_us: 800,
        },
    }
}

/// Refused by the kernel, with as little to say as there can be.
fn bare() -> Record {
    Record {
        verdict: Verdict::Deny,
        workload: None,
        identity: None,
        process: None,
        request: None,
        response: None,
        rule: None,
        policy: None,
        credential: None,
        stripped: vec![],
        injected: vec![],
        redacted: vec![],
        budget: None,
        upstream: None,
        coverage: Coverage::Kernel,
        timing: Timing::default(),
        ..full()
    }
}

pub(super) fn denied(host: &str) -> Record {
    Record {
        verdict: Verdict::Deny,
        request: Some(RequestRecord {
            host: host.into(),
            ..full().request.unwrap()
        }),
        response: Some(ResponseRecord {
            status: 403,
            bytes: 99,
        }),
        reason: Some(ReasonRecord {
            code: "no_route".into(),
            detail: "no rule has this path".into(),
            hint: "ask for another".into(),
        }),
        upstream: None,
        ..full()
    }
}

fn every_kind() -> Vec<Record> {
    let reason = |code: &'static str| Some(ReasonRecord::new(code, "…"));
    vec![
        full(),
        bare(),
        denied("other.example"),
        Record {
            verdict: Verdict::WouldDeny,
            mode: Mode::Observe,
            ..denied("o.example")
        },
        Record {
            verdict: Verdict::Limit,
            reason: reason("rate"),
            ..full()
        },
        Record {
            verdict: Verdict::Error,
            reason: reason("upstream_tls"),
            upstream: Some(UpstreamRecord {
                address: "[2001:db8::1]:80".into(),
                tls: None,
            }),
            coverage: Coverage::Connection,
            ..full()
        },
        Record {
            response: Some(ResponseRecord::default()),
            coverage: Coverage::Tcp,
            ..full()
        },
        Record {
            coverage: Coverage::Sni,
            ..full()
        },
    ]
}

fn json(record: &Record) -> serde_json::Value {
    let mut line = Vec::new();
    encode(record, &mut line);
    serde_json::from_slice(&line).unwrap()
}

fn write(dir: &Path, limits: &AuditLimits, records: impl IntoIterator<Item = Record>) -> Stats {
    let (sink, log) = Writer::start(dir, limits, None).unwrap();
    records.into_iter().for_each(|record| sink.submit(record));
    log.close()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir)
        .unwrap()
        .into_iter()
        .map(|segment| segment.path)
        .collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn validator() -> jsonschema::Validator {
    let schema = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap()
}
