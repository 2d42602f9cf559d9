//! Names, answered within policy: a governed workload learns the addresses of hosts that it may reach, and what it
//! asks about others goes nowhere.
//!
//! ```text
//! query ─▶ UDP: the hook's record of who asked ─┐
//!          TCP: the flow's owner ───────────────┴▶ message ─▶ policy ─▶ the worker's resolver ─▶ message
//!                                                               └─▶ no such name, on record
//! ```
//!
//! - A name is looked up by the agent's own query: of the client's, only the canonical host goes on, and of its type
//!   only whether it is A or AAAA. Other types are answered with nothing, without asking anybody.
//! - What is refused does not exist (NXDOMAIN). To REFUSED, C libraries either ask all servers all over again and report a
//!   passing failure, or wait for a better answer until time is up; programs are to fail at once, and for good.
mod message;
mod refused;
mod tcp;
mod udp;

#[cfg(test)]
mod tests;

pub(crate) use tcp::converse;
pub(crate) use udp::serve;

use crate::audit::Verdict;
use crate::kernel::Flow;
use crate::pipeline::Shared;
use crate::snapshot::Snapshot;
use crate::upstream::{Family, Named, Resolver};
use message::{Answer, Kind, Over, Question, Read};
use refused::Refusals;
use std::cell::RefCell;
use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use tollgate_policy::Mode;
use tollgate_policy::canonical::Host;

/// The port whose connections and datagrams are DNS.
pub(crate) const PORT: u16 = 53;
/// Lookups of one workload under way in one worker.
const LOOKUPS: usize = 128;
/// Lookups of all of them.
const ALL_LOOKUPS: usize = 1024;

/// A worker's answers to queries.
pub(crate) struct Responder {
    shared: Arc<Shared>,
    resolver: Rc<Resolver>,
    refusals: RefCell<Refusals>,
    lookups: RefCell<HashMap<Arc<str>, usize>>,
}

/// A query that was read and decided on.
enum Begun {
    /// Answered.
    Answered(Vec<u8>),
    /// To be answered once the name is looked up.
    Lookup(Box<Lookup>),
    /// Not to be answered.
    Ignored,
}

/// A name to look up, with its place among those under way.
struct Lookup {
    question: Question,
    host: Host,
    family: Family,
    over: Over,
    _place: Place,
}

impl Responder {
    pub(crate) fn new(shared: Arc<Shared>, resolver: Rc<Resolver>) -> Self {
        Self {
            shared,
            resolver,
            refusals: RefCell::default(),
            lookups: RefCell::default(),
        }
    }

    /// The answer to a query of `flow`'s; `None`: there is none to give.
    async fn answer(self: &Rc<Self>, flow: &Flow, bytes: &[u8], over: Over) -> Option<Vec<u8>> {
        match self.begin(flow, bytes, over) {
            Begun::Answered(bytes) => Some(bytes),
            Begun::Lookup(lookup) => self.finish(*lookup).await,
            Begun::Ignored => None,
        }
    }

    /// Everything that takes no waiting.
    fn begin(self: &Rc<Self>, flow: &Flow, bytes: &[u8], over: Over) -> Begun {
        let question = match message::read(bytes) {
            Read::Asked(question) => *question,
            Read::Refused(question, bytes, why) => {
                let snapshot = self.shared.live.load();
                self.note(
                    flow,
                    &question,
                    &snapshot,
                    (Verdict::Deny, Mode::Enforce),
                    why,
                );
                return Begun::Answered(bytes);
            }
            // It says of no name that can be read what it asks.
            Read::Answer(bytes) => {
                self.shared.unrecorded.fetch_add(1, Ordering::Relaxed);
                return Begun::Answered(bytes);
            }
            Read::Ignore => return Begun::Ignored,
        };
        let answered = |answer: &Answer<'_>| match question.answer(answer, over) {
            Some(bytes) => Begun::Answered(bytes),
            None => Begun::Ignored,
        };
        if !self.shared.sink.healthy() {
            return answered(&Answer::Failed); // What cannot be recorded is not decided.
        }
        let host = question.host();
        if host.as_ref().is_some_and(is_localhost) {
            return answered(&Answer::Addresses(loopback(question.kind()), HOUR));
        }
        if let Err(why) = self.decide(flow, &question, host.as_ref()) {
            return answered(&Answer::Refused(&why));
        }
        let family = match question.kind() {
            Kind::A => Family::V4,
            Kind::Aaaa => Family::V6,
            Kind::Other => return answered(&Answer::Addresses(&[], 0)),
        };
        match (host, Place::take(self, &flow.workload)) {
            (Some(host), Some(place)) => Begun::Lookup(Box::new(Lookup {
                question,
                host,
                family,
                over,
                _place: place,
            })),
            (Some(_), None) => answered(&Answer::Failed),
            // Under observation too: nothing can be asked about it.
            (None, _) => answered(&Answer::NoName),
        }
    }

    /// Whether the name may be looked up. `Err`: it may not, which is on record; why.
    fn decide(&self, flow: &Flow, question: &Question, host: Option<&Host>) -> Result<(), String> {
        let snapshot = self.shared.live.load();
        let now = crate::pipeline::now();
        let (mode, why) = match host.map(|host| snapshot.policy.name(&flow.workload, host, now)) {
            Some(Ok(())) => return Ok(()),
            Some(Err(unnamed)) => (
                unnamed.effective_mode(snapshot.mode),
                format!("{}: {}", unnamed.reason.detail, unnamed.reason.hint),
            ),
            None => (
                snapshot.mode,
                "no host of an api has such a name".to_owned(),
            ),
        };
        let verdict = match mode {
            Mode::Enforce => Verdict::Deny,
            Mode::Observe => Verdict::WouldDeny,
        };
        self.note(flow, question, &snapshot, (verdict, mode), &why);
        match mode {
            Mode::Enforce => Err(why),
            Mode::Observe => Ok(()),
        }
    }

    /// Has a refusal on record, if it is news.
    fn note(
        &self,
        flow: &Flow,
        question: &Question,
        snapshot: &Snapshot,
        how: (Verdict, Mode),
        why: &str,
    ) {
        let mut refusals = self.refusals.borrow_mut();
        if refusals.is_news(&flow.workload, &question.name()) {
            let record = refused::record(flow, question, snapshot, how, why.to_owned());
            self.shared.sink.submit(record);
        } else {
            self.shared.unrecorded.fetch_add(1, Ordering::Relaxed);
        }
    }

    async fn finish(&self, lookup: Lookup) -> Option<Vec<u8>> {
        let found = self.resolver.named(&lookup.host, lookup.family).await;
        let answer = match &found {
            Named::Addresses(addresses, seconds) => Answer::Addresses(addresses, *seconds),
            Named::NoName => Answer::NoName,
            Named::Failed => Answer::Failed,
        };
        lookup.question.answer(&answer, lookup.over)
    }
}

/// Seconds that what never changes is kept.
const HOUR: u32 = 3600;

/// This host, by its name in every host's (RFC 6761, section 6.3). Where a connection to it goes is decided when it is made.
fn is_localhost(host: &Host) -> bool {
    let name = host.as_str();
    name == "localhost" || name.ends_with(".localhost")
}

fn loopback(kind: Kind) -> &'static [IpAddr] {
    match kind {
        Kind::A => &[IpAddr::V4(Ipv4Addr::LOCALHOST)],
        Kind::Aaaa => &[IpAddr::V6(Ipv6Addr::LOCALHOST)],
        Kind::Other => &[],
    }
}

/// A place among the lookups under way.
struct Place {
    responder: Rc<Responder>,
    workload: Arc<str>,
}

impl Place {
    /// `None`: there are too many, of this workload or of all.
    fn take(responder: &Rc<Responder>, workload: &Arc<str>) -> Option<Self> {
        let mut lookups = responder.lookups.borrow_mut();
        let all: usize = lookups.values().sum();
        let own = lookups.entry(Arc::clone(workload)).or_default();
        if *own >= LOOKUPS || all >= ALL_LOOKUPS {
            return None;
        }
        *own += 1;
        Some(Self {
            responder: Rc::clone(responder),
            workload: Arc::clone(workload),
        })
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut lookups = self.responder.lookups.borrow_mut();
        if let Some(own) = lookups.get_mut(&self.workload) {
            *own = own.saturating_sub(1);
            if *own == 0 {
                lookups.remove(&self.workload);
            }
        }
    }
}
