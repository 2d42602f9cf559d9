//! Exactly one record per request: a tracker is made when the request is read and writes when it is dropped, so the
//! forgotten path is on record too.
use super::body::{BodyError, Moved, add};
use super::charge::Charge;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::serve::Peer;
use super::short::overspent;
use crate::audit::{
    Coverage, ReasonRecord, Record, RequestRecord, ResponseRecord, Sink, Timing, UpstreamRecord,
    Verdict,
};
use crate::snapshot::Snapshot;
use std::borrow::Cow;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::{Mode, Rule};
use uuid::Uuid;

/// A recorded path is cut here.
const PATH_BYTES: usize = 2048;
/// Names of query parameters recorded.
const QUERY_KEYS: usize = 64;

/// Writes one record when dropped.
pub(super) struct Tracker {
    sink: Sink,
    record: Option<Box<Record>>,
    started: Instant,
    sent: Option<Instant>,
    /// Body bytes, counted where they pass.
    pub(super) moved: Rc<Moved>,
    /// What it takes of budgets.
    charge: Option<Box<Charge>>,
    complete: bool,
}

impl Tracker {
    /// Starts the record of a request that has been read.
    pub(super) fn new(sink: &Sink, peer: &Peer, snapshot: &Snapshot) -> Self {
        let mut record = blank(Coverage::Request, snapshot.mode);
        record.workload = Some(Arc::clone(&peer.flow.workload));
        record.process = Some(Arc::clone(&peer.flow.process));
        record.policy = Some(Arc::clone(&snapshot.stamp));
        record.request = Some(RequestRecord {
            scheme: peer.scheme_name().into(),
            host: match &peer.name {
                Some(name) => name.as_str().to_owned(),
                None => peer.flow.destination.ip().to_string(),
            },
            port: peer.flow.destination.port(),
            ..RequestRecord::default()
        });
        Self::of(sink, record)
    }

    /// Starts the record of a connection that is not inspected.
    pub(super) fn uninspected(
        sink: &Sink,
        peer: &Peer,
        snapshot: &Snapshot,
        coverage: Coverage,
    ) -> Self {
        let mut record = blank(coverage, snapshot.mode);
        record.policy = Some(Arc::clone(&snapshot.stamp));
        about(&mut record, &peer.flow);
        if let (Some(request), Some(name)) = (&mut record.request, &peer.name) {
            request.scheme = "tls".into();
            request.host = name.as_str().to_owned();
        }
        Self::of(sink, record)
    }

    fn of(sink: &Sink, record: Record) -> Self {
        Self {
            sink: sink.clone(),
            record: Some(Box::new(record)),
            started: Instant::now(),
            sent: None,
            moved: Rc::default(),
            charge: None,
            complete: false,
        }
    }

    /// The decision's id.
    pub(super) fn id(&self) -> Uuid {
        self.record
            .as_ref()
            .map_or_else(Uuid::nil, |record| record.id)
    }

    fn edit(&mut self, change: impl FnOnce(&mut Record)) {
        if let Some(record) = &mut self.record {
            change(record);
        }
    }

    /// What was asked, before it is known whether it can be understood.
    pub(super) fn raw(&mut self, method: &str, path: &str) {
        self.edit(|record| {
            if let Some(request) = &mut record.request {
                request.method = cut(method, 64);
                request.path = cut(path, PATH_BYTES);
            }
        });
    }

    /// What was asked.
    pub(super) fn asked(&mut self, parsed: &Parsed) {
        let target = parsed.target();
        self.edit(|record| {
            if let Some(request) = &mut record.request {
                request.path = cut(&target.path, PATH_BYTES);
                parsed.host.as_str().clone_into(&mut request.host);
                request.port = parsed.port;
                request.query_keys = target
                    .pairs()
                    .take(QUERY_KEYS)
                    .map(|pair| cut(&pair.name, 128))
                    .collect();
            }
        });
    }

    /// What the policy said, how long it took, and whether that stands.
    pub(super) fn decided(
        &mut self,
        rule: Option<&Rule>,
        verdict: Verdict,
        mode: Mode,
        reason: Option<&tollgate_policy::Reason>,
        took: Duration,
    ) {
        self.edit(|record| {
            record.verdict = verdict;
            record.mode = mode;
            record.rule = rule.map(|rule| Arc::clone(&rule.label));
            record.reason = reason.map(ReasonRecord::from);
            record.timing.policy_us = micros(took);
            if let (Some(request), Some(rule)) = (&mut record.request, rule) {
                request.route = Some(Arc::clone(&rule.route));
            }
        });
    }

    /// Who calls was proven, by what was then taken out.
    pub(super) fn identified(&mut self, identity: Arc<str>, stripped: Vec<String>) {
        self.edit(|record| {
            record.identity = Some(identity);
            record.stripped = stripped;
        });
    }

    /// What was taken out and put in.
    pub(super) fn rewritten(
        &mut self,
        stripped: Vec<String>,
        injected: Vec<String>,
        credential: Option<Arc<str>>,
    ) {
        self.edit(|record| {
            record.stripped.extend(stripped);
            record.injected = injected;
            record.credential = credential;
        });
    }

    /// The budget that it is counted in, or refused for.
    pub(super) fn budgeted(&mut self, name: &str) {
        self.edit(|record| record.budget = Some(name.to_owned()));
    }

    /// This was reserved for it.
    pub(super) fn charged(&mut self, charge: Charge) {
        self.charge = Some(Box::new(charge));
    }

    /// What it takes of budgets, where that is something.
    pub(super) fn charge(&mut self) -> Option<&mut Charge> {
        self.charge.as_deref_mut()
    }

    /// A budget has not enough left, and it passes, since that is only observed.
    pub(super) fn would_limit(&mut self, refusal: &Refusal) {
        self.edit(|record| {
            if record.verdict == Verdict::Allow {
                record.verdict = Verdict::WouldDeny;
                record.reason = Some(refusal.record());
            }
        });
    }

    /// Nothing of the request went out after all.
    pub(super) fn unsent(&mut self) {
        if let Some(charge) = self.charge() {
            charge.sent = false;
        }
    }

    /// The request is on its way.
    pub(super) fn sent(&mut self, upstream: &UpstreamRecord) {
        self.sent = Some(Instant::now());
        if let Some(charge) = self.charge() {
            charge.sent = true;
        }
        self.edit(|record| record.upstream = Some(upstream.clone()));
    }

    /// The response's head is there.
    pub(super) fn answered(&mut self, status: u16) {
        let waited = self.sent.map_or(Duration::ZERO, |sent| sent.elapsed());
        self.edit(|record| {
            record.response = Some(ResponseRecord { status, bytes: 0 });
            record.timing.upstream_us = micros(waited);
        });
    }

    /// Bytes of the agent's own answer.
    pub(super) fn passed(&mut self, bytes: usize) {
        add(&self.moved.down, bytes);
    }

    /// Response body bytes that are to pass.
    pub(super) fn let_through(&mut self, bytes: usize) -> Result<(), BodyError> {
        self.moved.down(bytes)
    }

    /// What the policy said of a connection that is not inspected.
    pub(super) fn ruled(
        &mut self,
        verdict: Verdict,
        mode: Mode,
        (rule, reason): (Option<Arc<str>>, Option<ReasonRecord>),
        took: Duration,
    ) {
        self.edit(|record| {
            record.verdict = verdict;
            record.mode = mode;
            record.rule = rule;
            record.reason = reason;
            record.timing.policy_us = micros(took);
        });
    }

    /// It was dialled; there is no status, only bytes.
    pub(super) fn connected(&mut self, upstream: &UpstreamRecord) {
        self.sent(upstream);
        self.edit(|record| record.response = Some(ResponseRecord::default()));
    }

    /// A part of it was not to pass, and did, since that is only observed.
    pub(super) fn observed(&mut self, reason: &tollgate_policy::Reason) {
        self.edit(|record| {
            if record.verdict == Verdict::Allow {
                record.verdict = Verdict::WouldDeny;
                record.reason = Some(ReasonRecord::from(reason));
            }
        });
    }

    /// What was taken out of the response.
    pub(super) fn redacted(&mut self, what: impl IntoIterator<Item = String>) {
        self.edit(|record| {
            for what in what {
                if !record.redacted.contains(&what) {
                    record.redacted.push(what);
                }
            }
        });
    }

    /// It does not pass.
    pub(super) fn refused(&mut self, refusal: &Refusal, status: u16) {
        if let Some(charge) = self.charge() {
            charge.deaf();
        }
        self.edit(|record| {
            record.verdict = refusal.verdict;
            record.reason = Some(refusal.record());
            record.response = Some(ResponseRecord { status, bytes: 0 });
        });
    }

    /// It failed under way.
    pub(super) fn failed(
        &mut self,
        verdict: Verdict,
        code: impl Into<Cow<'static, str>>,
        detail: String,
    ) {
        self.edit(|record| {
            record.verdict = verdict;
            record.reason = Some(ReasonRecord::new(code, detail));
        });
        self.complete = true;
    }

    /// The last byte of the response is on its way.
    pub(super) fn finish(mut self) {
        self.complete = true;
        if let Some(charge) = self.charge() {
            charge.close(true);
        }
    }

    /// A budget was spent up on the way, and the rest passed, since that is only observed.
    fn note_overspent(&mut self) {
        if let Some((detail, true)) = self.moved.overspent() {
            self.would_limit(&overspent(&detail));
        }
    }
}

impl Drop for Tracker {
    fn drop(&mut self) {
        self.note_overspent();
        let Some(mut record) = self.record.take() else {
            return;
        };
        record.timing.total_us = micros(self.started.elapsed());
        if let Some(request) = &mut record.request {
            request.bytes = self.moved.up.get();
        }
        if let Some(response) = &mut record.response {
            response.bytes = self.moved.down.get();
        }
        if !self.complete && record.reason.is_none() {
            record.reason = Some(ReasonRecord::new(
                "client_gone",
                "the client closed the connection or cancelled the request before the end",
            ));
        }
        self.sink.submit(*record);
    }
}

/// Records a connection that ended before a request could be read.
pub(super) fn connection(
    sink: &Sink,
    flow: Option<&crate::kernel::Flow>,
    snapshot: &Snapshot,
    verdict: Verdict,
    code: &'static str,
    detail: String,
) {
    let mut record = blank(Coverage::Connection, snapshot.mode);
    record.verdict = verdict;
    record.policy = Some(Arc::clone(&snapshot.stamp));
    record.reason = Some(ReasonRecord::new(code, detail));
    if let Some(flow) = flow {
        about(&mut record, flow);
    }
    sink.submit(record);
}

/// Who connected where to.
fn about(record: &mut Record, flow: &crate::kernel::Flow) {
    record.workload = Some(Arc::clone(&flow.workload));
    record.process = Some(Arc::clone(&flow.process));
    record.request = Some(RequestRecord {
        scheme: "tcp".into(),
        host: flow.destination.ip().to_string(),
        port: flow.destination.port(),
        ..RequestRecord::default()
    });
}

fn blank(coverage: Coverage, mode: Mode) -> Record {
    Record {
        id: Uuid::now_v7(),
        time: jiff::Timestamp::now(),
        verdict: Verdict::Error,
        mode,
        workload: None,
        identity: None,
        process: None,
        request: None,
        response: None,
        rule: None,
        reason: None,
        policy: None,
        credential: None,
        stripped: Vec::new(),
        injected: Vec::new(),
        redacted: Vec::new(),
        budget: None,
        upstream: None,
        coverage,
        timing: Timing::default(),
    }
}

fn micros(duration: Duration) -> u64 {
    u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)
}

/// At most `limit` bytes of `text`, at a character's border.
fn cut(text: &str, limit: usize) -> String {
    let mut end = text.len().min(limit);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text.get(..end).unwrap_or_default().to_owned()
}
