//! What a connection's service and deadlines see of its gate.
use super::violation::Violation;
use std::cell::{Cell, RefCell};
use std::rc::Rc;
use std::task::{Context, Waker};

/// Where the client's stream stands, as far as it was read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Phase {
    Idle,
    Head,
    Body,
}

#[derive(Debug)]
pub(super) struct Shared {
    phase: Cell<Phase>,
    requests: Cell<u64>,
    /// Requests whose answers are on their way, or given up.
    answered: Cell<u64>,
    /// Requests that are being answered.
    owed: Cell<u64>,
    /// What follows is HTTP no more.
    switched: Cell<bool>,
    /// The deadline for the head under way has passed.
    expired: Cell<bool>,
    refused: RefCell<Option<Refused>>,
    reader: RefCell<Option<Waker>>,
}

#[derive(Debug)]
struct Refused {
    /// Path of the request that stands for it; none where the service meets it as an error of the body.
    path: Option<String>,
    violation: Violation,
    claimed: bool,
}

impl Shared {
    pub(super) fn new() -> Rc<Self> {
        Rc::new(Self {
            phase: Cell::new(Phase::Idle),
            requests: Cell::new(0),
            answered: Cell::new(0),
            owed: Cell::new(0),
            switched: Cell::new(false),
            expired: Cell::new(false),
            refused: RefCell::new(None),
            reader: RefCell::new(None),
        })
    }

    pub(super) fn note(&self, phase: Phase, requests: u64) {
        if self.requests.replace(requests) != requests {
            // The head was complete before the deadline could be met.
            self.expired.set(false);
        }
        self.phase.set(phase);
    }

    pub(super) fn take_expired(&self) -> bool {
        self.expired.take()
    }

    /// Keeps the violation, and gives the bytes of a request that stands for it. The name is made now: no client can
    /// have sent it before, and nothing a client sends passes after.
    pub(super) fn refuse(&self, violation: Violation) -> Vec<u8> {
        let token = uuid::Uuid::new_v4().simple().to_string();
        let path = format!("/{token}");
        let bytes = format!("GET {path} HTTP/1.1\r\nhost: {token}\r\nconnection: close\r\n\r\n")
            .into_bytes();
        *self.refused.borrow_mut() = Some(Refused {
            path: Some(path),
            violation,
            claimed: false,
        });
        bytes
    }

    pub(super) fn refuse_body(&self, violation: Violation) {
        *self.refused.borrow_mut() = Some(Refused {
            path: None,
            violation,
            claimed: false,
        });
    }

    pub(super) fn is_refused(&self) -> bool {
        self.refused.borrow().is_some()
    }

    /// Whether not all of `requests` are answered.
    pub(super) fn owes(&self, requests: u64) -> bool {
        self.answered.get() < requests
    }

    /// Whether what follows a request that asks for a WebSocket has to wait: it may be no request.
    pub(super) fn undecided(&self) -> bool {
        self.switched.get() || self.owed.get() > 0
    }

    fn wake(&self) {
        if let Some(waker) = self.reader.borrow_mut().take() {
            waker.wake();
        }
    }

    /// Remembers who waits for bytes of a head.
    pub(super) fn waits(&self, context: &Context<'_>) {
        let mut reader = self.reader.borrow_mut();
        if !reader
            .as_ref()
            .is_some_and(|waker| waker.will_wake(context.waker()))
        {
            *reader = Some(context.waker().clone());
        }
    }
}

/// Asks a connection's gate. Clones ask the same one.
#[derive(Debug, Clone)]
pub struct Handle(pub(super) Rc<Shared>);

impl Handle {
    /// The violation that a request stands for, if it is the gate's own: ask this first of every request, with its
    /// path. The answer ends the connection.
    pub fn violation(&self, uri_path: &str) -> Option<Violation> {
        let mut refused = self.0.refused.borrow_mut();
        let refused = refused
            .as_mut()
            .filter(|refused| refused.path.as_deref() == Some(uri_path))?;
        refused.claimed = true;
        Some(refused.violation.clone())
    }

    /// The violation within a request's body, after reading the body failed.
    pub fn body_violation(&self) -> Option<Violation> {
        let mut refused = self.0.refused.borrow_mut();
        let refused = refused.as_mut().filter(|refused| refused.path.is_none())?;
        refused.claimed = true;
        Some(refused.violation.clone())
    }

    /// A violation that nobody asked for, to record when the connection is over: the client left, or an earlier answer
    /// closed the connection.
    pub fn unclaimed(&self) -> Option<Violation> {
        let refused = self.0.refused.borrow();
        refused
            .as_ref()
            .filter(|refused| !refused.claimed)
            .map(|refused| refused.violation.clone())
    }

    /// Whether the client is between requests: nothing of a next one was read.
    pub fn idle(&self) -> bool {
        self.0.phase.get() == Phase::Idle
    }

    /// Whether a head has begun and is not complete.
    pub fn in_head(&self) -> bool {
        self.0.phase.get() == Phase::Head && !self.0.is_refused()
    }

    /// Whether a body is under way.
    pub fn in_body(&self) -> bool {
        self.0.phase.get() == Phase::Body
    }

    /// Heads that passed so far.
    pub fn requests(&self) -> u64 {
        self.0.requests.get()
    }

    /// The deadline for the head has passed: if one is under way the client is answered 408, in order, like for any
    /// other violation. False if none is.
    pub fn expire(&self) -> bool {
        if !self.in_head() {
            return false;
        }
        self.0.expired.set(true);
        self.0.wake();
        true
    }

    /// A request is being answered, for as long as the result lives: keep it with the answer's body.
    pub fn owed(&self) -> Owed {
        self.0.owed.set(self.0.owed.get() + 1);
        Owed(Rc::clone(&self.0))
    }
}

impl Handle {
    /// The connection is a WebSocket's from the end of the answer under way: the gate gives nothing more to hyper.
    pub fn switch(&self) {
        self.0.switched.set(true);
    }

    /// Whether it is.
    pub fn switched(&self) -> bool {
        self.0.switched.get()
    }
}

/// An answer that a client is still to get.
#[derive(Debug)]
pub struct Owed(Rc<Shared>);

impl Drop for Owed {
    fn drop(&mut self) {
        self.0.answered.set(self.0.answered.get() + 1);
        self.0.owed.set(self.0.owed.get().saturating_sub(1));
        self.0.wake();
    }
}
