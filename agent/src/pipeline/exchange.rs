//! What is under way: responses, and connections that are not inspected. A policy change reaches them, and so does the end
//! of a grant: each is decided on anew, and cut if it is no longer allowed.
use super::parse::Parsed;
use super::serve::Peer;
use super::splice;
use crate::snapshot::Snapshot;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use tollgate_policy::{Body, Decision, Message, Mode, Outcome, Request, Verdict};

/// What a worker has under way.
#[derive(Default)]
pub(super) struct Exchanges {
    open: RefCell<HashMap<u64, Rc<Exchange>>>,
    next: Cell<u64>,
    /// What was last decided by.
    latest: RefCell<Option<Arc<Snapshot>>>,
    /// When the next grant ends, in seconds since 1970.
    expiry: Cell<Option<i64>>,
}

/// One response or connection under way, and what it was asked with.
pub(super) struct Exchange {
    peer: Rc<Peer>,
    /// What was asked; of a connection that is not inspected, the peer is all there is.
    asked: Option<Parsed>,
    /// Generation of the snapshot that allowed it.
    generation: u64,
    revoked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps an exchange listed while it lives.
pub(super) struct Listed {
    exchanges: Rc<Exchanges>,
    number: u64,
}

impl Exchange {
    pub(super) fn request(peer: Rc<Peer>, parsed: Parsed, generation: u64) -> Rc<Self> {
        Self::of(peer, Some(parsed), generation)
    }

    pub(super) fn connection(peer: Rc<Peer>, generation: u64) -> Rc<Self> {
        Self::of(peer, None, generation)
    }

    fn of(peer: Rc<Peer>, asked: Option<Parsed>, generation: u64) -> Rc<Self> {
        Rc::new(Self {
            peer,
            asked,
            generation,
            revoked: Cell::new(false),
            waker: RefCell::default(),
        })
    }

    /// Whether the policy no longer allows it; if it does, `waker` is woken when that changes.
    pub(super) fn revoked(&self, waker: &Waker) -> bool {
        let mut held = self.waker.borrow_mut();
        if !held.as_ref().is_some_and(|held| held.will_wake(waker)) {
            *held = Some(waker.clone());
        }
        self.revoked.get()
    }

    fn recheck(&self, snapshot: &Snapshot) {
        if self.allowed(snapshot) {
            return;
        }
        self.revoked.set(true);
        if let Some(waker) = self.waker.borrow_mut().take() {
            waker.wake();
        }
    }

    fn allowed(&self, snapshot: &Snapshot) -> bool {
        let passes = |decision: Decision<'_>| {
            decision.verdict == Verdict::Allow
                || decision.effective_mode(snapshot.mode) == Mode::Observe
        };
        match &self.asked {
            Some(parsed) => match self.decide(parsed, snapshot) {
                // The body was decided on when it was there.
                Outcome::NeedsBody { .. } => true,
                Outcome::Decided(decision) => passes(decision),
            },
            // One that is now to be inspected is not.
            None => splice::connect(snapshot, &self.peer.flow, self.peer.name.as_deref())
                .is_some_and(passes),
        }
    }

    /// Completes the answer that opens the WebSocket that was asked for.
    pub(super) fn open_websocket(&self, headers: &mut http::HeaderMap) {
        let asked = self.asked.as_ref();
        if let Some(handshake) = asked.and_then(|parsed| parsed.websocket.as_ref()) {
            handshake.open(headers);
        }
    }

    /// Decides on a message of the WebSocket that it is, by the policy of now.
    pub(super) fn message<'p>(
        &self,
        message: Message<'_>,
        snapshot: &'p Snapshot,
    ) -> Option<Decision<'p>> {
        let parsed = self.asked.as_ref()?;
        match self.ask(parsed, Body::Message(message), snapshot) {
            Outcome::Decided(decision) => Some(decision),
            Outcome::NeedsBody { .. } => None,
        }
    }

    fn decide<'p>(&self, parsed: &Parsed, snapshot: &'p Snapshot) -> Outcome<'p> {
        let body = match parsed.bodiless {
            true => Body::Absent,
            false => Body::Unread(None),
        };
        self.ask(parsed, body, snapshot)
    }

    fn ask<'p>(&self, parsed: &Parsed, body: Body<'_>, snapshot: &'p Snapshot) -> Outcome<'p> {
        let target = parsed.target();
        let request = Request {
            scheme: self.peer.scheme,
            host: &parsed.host,
            port: parsed.port,
            method: parsed.method.as_str(),
            target: &target,
            headers: &super::authorize::HeaderView(&parsed.headers),
            body,
            now: super::authorize::now(),
        };
        let subject = self.peer.subject(parsed.identity.as_deref());
        snapshot.policy.decide(&subject, &request)
    }
}

impl Exchanges {
    /// Lists an exchange that may take long. What changed since it was decided on counts for it too.
    pub(super) fn list(self: &Rc<Self>, exchange: &Rc<Exchange>) -> Listed {
        if let Some(latest) = &*self.latest.borrow()
            && latest.generation > exchange.generation
        {
            exchange.recheck(latest);
        }
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, Rc::clone(exchange));
        Listed {
            exchanges: Rc::clone(self),
            number,
        }
    }

    /// Decides anew on all of them and cuts what is no longer allowed.
    pub(super) fn recheck(&self, snapshot: Arc<Snapshot>) {
        let now = super::authorize::now();
        self.expiry.set(snapshot.policy.next_expiry(now));
        for exchange in self.open.borrow().values() {
            exchange.recheck(&snapshot);
        }
        self.latest.replace(Some(snapshot));
    }

    /// The same once a grant has ended; costs a look at the clock otherwise.
    pub(super) fn expire(&self) {
        let over = |at| super::authorize::now() >= at;
        if self.expiry.get().is_some_and(over) {
            let latest = self.latest.borrow().clone();
            if let Some(latest) = latest {
                self.recheck(latest);
            }
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.exchanges.open.borrow_mut().remove(&self.number);
    }
}
