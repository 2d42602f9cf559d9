//! Responses under way, so that a policy change reaches them: each is decided on anew, and cut if it is no longer allowed.
use super::parse::Parsed;
use super::serve::Peer;
use crate::snapshot::Snapshot;
use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::rc::Rc;
use std::task::Waker;
use tollgate_policy::{Body, Mode, Outcome, Request, Verdict};

/// A worker's streamed responses.
#[derive(Default)]
pub(super) struct Exchanges {
    open: RefCell<HashMap<u64, Rc<Exchange>>>,
    next: Cell<u64>,
}

/// One response under way and what it was asked with.
pub(super) struct Exchange {
    peer: Rc<Peer>,
    parsed: Parsed,
    revoked: Cell<bool>,
    waker: RefCell<Option<Waker>>,
}

/// Keeps an exchange listed while it lives.
pub(super) struct Listed {
    exchanges: Rc<Exchanges>,
    number: u64,
}

impl Exchange {
    pub(super) fn new(peer: Rc<Peer>, parsed: Parsed) -> Rc<Self> {
        Rc::new(Self {
            peer,
            parsed,
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

    /// A rule that must see the body is taken as allowing: the body was decided on when it was there.
    fn allowed(&self, snapshot: &Snapshot) -> bool {
        let target = self.parsed.target();
        let request = Request {
            scheme: self.peer.scheme,
            host: &self.parsed.host,
            port: self.parsed.port,
            method: self.parsed.method.as_str(),
            target: &target,
            headers: &super::authorize::HeaderView(&self.parsed.headers),
            body: Body::Unread(None),
            now: super::authorize::now(),
        };
        match snapshot.policy.decide(&self.peer.subject(), &request) {
            Outcome::NeedsBody { .. } => true,
            Outcome::Decided(decision) => {
                decision.verdict == Verdict::Allow
                    || decision.effective_mode(snapshot.mode) == Mode::Observe
            }
        }
    }
}

impl Exchanges {
    /// Lists an exchange that may take long.
    pub(super) fn list(self: &Rc<Self>, exchange: &Rc<Exchange>) -> Listed {
        let number = self.next.get();
        self.next.set(number + 1);
        self.open.borrow_mut().insert(number, Rc::clone(exchange));
        Listed {
            exchanges: Rc::clone(self),
            number,
        }
    }

    /// Decides anew on all of them and cuts what is no longer allowed.
    pub(super) fn recheck(&self, snapshot: &Snapshot) {
        for exchange in self.open.borrow().values() {
            if !exchange.allowed(snapshot) {
                exchange.revoked.set(true);
                if let Some(waker) = exchange.waker.borrow_mut().take() {
                    waker.wake();
                }
            }
        }
    }
}

impl Drop for Listed {
    fn drop(&mut self) {
        self.exchanges.open.borrow_mut().remove(&self.number);
    }
}
