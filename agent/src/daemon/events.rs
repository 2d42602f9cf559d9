//! What the kernel did on its own: refusals become records, ended flows are kept for a while.
use super::admin::wire;
use super::namespaces::Look;
use super::unseen::Unseen;
use crate::audit::{Allowance, Coverage, ReasonRecord, Record, RequestRecord, Timing, Verdict};
use crate::kernel::{Counters, Event, Flow, Refusal};
use crate::pipeline::Shared;
use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Instant, SystemTime};

/// Ended flows kept for `tollgate flows`.
const ENDED: usize = 1024;
/// What the C library asks for with every look-up, there or not: a record of each would say nothing of the program.
const PROBED: &str = "/var/run/nscd/socket";

/// What is kept of the kernel's events.
#[derive(Debug, Default)]
pub(super) struct Seen {
    ended: Mutex<VecDeque<wire::Flow>>,
    unrecorded: AtomicU64,
}

impl Seen {
    /// The last flows that ended, oldest first.
    pub(super) fn ended(&self) -> Vec<wire::Flow> {
        self.ended
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    /// Refusals that were counted and not recorded.
    pub(super) fn unrecorded(&self) -> u64 {
        self.unrecorded.load(Ordering::Relaxed)
    }

    /// One more was.
    pub(super) fn left_unrecorded(&self) {
        self.unrecorded.fetch_add(1, Ordering::Relaxed);
    }

    fn closed(&self, flow: Flow, opened: SystemTime, counters: Counters) {
        let flow = wire::Flow {
            cookie: flow.cookie,
            workload: flow.workload.to_string(),
            process: (*flow.process).clone(),
            destination: flow.destination,
            opened: opened.try_into().ok(),
            ended: Some(jiff::Timestamp::now()),
            counters,
        };
        let mut ended = self.ended.lock().unwrap_or_else(PoisonError::into_inner);
        if ended.len() >= ENDED {
            ended.pop_front();
        }
        ended.push_back(flow);
    }
}

/// Takes the kernel's events one by one.
#[derive(Debug)]
pub(super) struct Recorder {
    seen: Arc<Seen>,
    shared: Arc<Shared>,
    strangers: Look,
    unseen: Arc<Unseen>,
    allowances: HashMap<Arc<str>, Allowance>,
}

impl Recorder {
    /// `strangers` and `unseen`: where processes go that are in a namespace without the agent, or run what has to be
    /// looked at.
    pub(super) fn new(
        seen: Arc<Seen>,
        shared: Arc<Shared>,
        strangers: Look,
        unseen: Arc<Unseen>,
    ) -> Self {
        Self {
            seen,
            shared,
            strangers,
            unseen,
            allowances: HashMap::new(),
        }
    }

    /// Takes one.
    pub(super) fn take(&mut self, event: Event) {
        match event {
            Event::Closed {
                flow,
                opened,
                counters,
            } => self.seen.closed(flow, opened, counters),
            Event::Refused(refusal) => self.refused(refusal),
            Event::Overspent { workload } => self.shared.overspent.add(workload),
            Event::Stranger { pid, workload } => self.strangers.at(pid, workload),
            Event::Unseen { pid, file } => self.unseen.add(pid, file),
        }
    }

    fn refused(&mut self, refusal: Refusal) {
        let now = Instant::now();
        let allowance = self
            .allowances
            .entry(Arc::clone(&refusal.workload))
            .or_insert_with(|| Allowance::new(now));
        if refusal.name.as_deref() == Some(PROBED) || !allowance.spend(now) {
            return self.seen.left_unrecorded();
        }
        let snapshot = self.shared.live.load();
        self.shared
            .sink
            .submit(record(refusal, Verdict::Deny, &snapshot));
    }
}

/// The record of a kernel refusal: scheme is the protocol, host the address or name.
pub(super) fn record(
    refusal: Refusal,
    verdict: Verdict,
    snapshot: &crate::snapshot::Snapshot,
) -> Record {
    let destination = refusal.destination;
    Record {
        id: uuid::Uuid::now_v7(),
        time: jiff::Timestamp::try_from(refusal.time).unwrap_or_else(|_| jiff::Timestamp::now()),
        verdict,
        mode: snapshot.mode,
        workload: Some(refusal.workload),
        identity: None,
        process: Some(refusal.process),
        request: Some(RequestRecord {
            scheme: refusal.protocol,
            host: destination
                .map(|d| d.ip().to_string())
                .or(refusal.name)
                .unwrap_or_default(),
            port: destination.map_or(0, |d| d.port()),
            ..RequestRecord::default()
        }),
        response: None,
        rule: None,
        reason: Some(ReasonRecord::new(refusal.reason, refusal.detail)),
        policy: Some(Arc::clone(&snapshot.stamp)),
        credential: None,
        stripped: Vec::new(),
        injected: Vec::new(),
        redacted: Vec::new(),
        budget: None,
        upstream: None,
        coverage: Coverage::Kernel,
        timing: Timing::default(),
    }
}
