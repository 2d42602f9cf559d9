//! Names that were refused, on record; but who asks for one over and over, or for no end of them, does not fill the log
//! that everybody's requests depend on.
use super::PORT;
use super::message::Question;
use crate::audit::{Allowance, Coverage, ReasonRecord, Record, RequestRecord, Timing, Verdict};
use crate::kernel::Flow;
use crate::snapshot::Snapshot;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::Mode;

/// The same name of the same workload is recorded again after this.
const AGAIN: Duration = Duration::from_secs(1);
/// Names remembered for that.
const REMEMBERED: usize = 1024;

/// What was recorded of late.
#[derive(Debug, Default)]
pub(super) struct Refusals {
    names: HashMap<(Arc<str>, String), Instant>,
    allowances: HashMap<Arc<str>, Allowance>,
}

impl Refusals {
    /// Whether this refusal is to be recorded; else it is only counted.
    pub(super) fn is_news(&mut self, workload: &Arc<str>, name: &str) -> bool {
        self.is_news_at(workload, name, Instant::now())
    }

    pub(super) fn is_news_at(&mut self, workload: &Arc<str>, name: &str, now: Instant) -> bool {
        let old = |at: &Instant| now.saturating_duration_since(*at) >= AGAIN;
        let key = (Arc::clone(workload), name.to_ascii_lowercase());
        if self.names.get(&key).is_some_and(|at| !old(at)) {
            return false;
        }
        let allowance = self.allowances.entry(Arc::clone(workload));
        if !allowance.or_insert_with(|| Allowance::new(now)).spend(now) {
            return false;
        }
        if self.names.len() >= REMEMBERED {
            self.names.retain(|_, at| !old(at));
        }
        if self.names.len() < REMEMBERED {
            self.names.insert(key, now);
        }
        true
    }
}

/// The record of a name: the method is the type that was asked for, the path is empty.
pub(super) fn record(
    flow: &Flow,
    question: &Question,
    snapshot: &Snapshot,
    (verdict, mode): (Verdict, Mode),
    why: String,
) -> Record {
    Record {
        id: uuid::Uuid::now_v7(),
        time: jiff::Timestamp::now(),
        verdict,
        mode,
        workload: Some(Arc::clone(&flow.workload)),
        identity: None,
        process: Some(Arc::clone(&flow.process)),
        request: Some(RequestRecord {
            method: question.kind_name(),
            scheme: "dns".into(),
            host: question.name(),
            port: PORT,
            ..RequestRecord::default()
        }),
        response: None,
        rule: None,
        reason: Some(ReasonRecord::new("dns_name", why)),
        policy: Some(Arc::clone(&snapshot.stamp)),
        credential: None,
        stripped: Vec::new(),
        injected: Vec::new(),
        redacted: Vec::new(),
        budget: None,
        upstream: None,
        coverage: Coverage::Dns,
        timing: Timing::default(),
    }
}
