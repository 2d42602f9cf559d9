//! A worker's idle upstream connections. Nothing is shared between workers, workloads, identities or credentials.
use super::dial::{Destination, Dialed, Sender, Via};
use super::{Error, Resolver};
use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::canonical::Host;

use crate::audit::UpstreamRecord;

/// Idle HTTP/1.1 connections kept per key; under load fewer would mean a handshake per request.
const IDLE_PER_KEY: usize = 128;
/// Idle for longer than this and the upstream has probably given up on it too.
const IDLE: Duration = Duration::from_secs(60);

/// Keys whose sessions are kept.
const SESSIONS: usize = 1024;

/// What may share a connection: upstreams authenticate some things per connection, so callers never mix.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) host: Rc<Host>,
    pub(crate) port: u16,
    pub(crate) workload: Arc<str>,
    pub(crate) identity: Option<Arc<str>>,
    pub(crate) credential: Option<Arc<str>>,
    /// Snapshot that the trust roots and addresses came from.
    pub(crate) generation: u64,
}

/// A worker's pool.
#[derive(Default)]
pub(crate) struct Pool {
    entries: RefCell<HashMap<Key, Entry>>,
    /// TLS settings with the sessions that each may resume: as with connections, callers never mix.
    sessions: RefCell<HashMap<Key, Via>>,
}

#[derive(Default)]
struct Entry {
    idle: Vec<Idle>,
    shared: Option<(
        hyper::client::conn::http2::SendRequest<crate::pipeline::RequestBody>,
        Arc<UpstreamRecord>,
    )>,
    /// Held while the first connection is made, so that a burst makes one HTTP/2 connection and not many.
    first: Rc<tokio::sync::Mutex<()>>,
    speaks_http1: bool,
}

struct Idle {
    sender: hyper::client::conn::http1::SendRequest<crate::pipeline::RequestBody>,
    facts: Arc<UpstreamRecord>,
    since: Instant,
}

/// A connection on loan. Given back by [`Lease::give_back`] after a clean end; dropped otherwise, which closes HTTP/1.1 ones.
pub(crate) struct Lease {
    pub(crate) sender: Sender,
    pub(crate) facts: Arc<UpstreamRecord>,
    /// Whether it may have gone stale in the pool.
    pub(crate) reused: bool,
    /// It never goes back.
    apart: bool,
    pool: Rc<Pool>,
    key: Key,
}

impl Lease {
    /// Returns the connection for the next request.
    pub(crate) fn give_back(self) {
        let Self {
            sender,
            facts,
            pool,
            key,
            apart,
            ..
        } = self;
        if let Sender::Http1(sender) = sender
            && !apart
            && !sender.is_closed()
            && let Some(entry) = pool.entries.borrow_mut().get_mut(&key)
            && entry.idle.len() < IDLE_PER_KEY
        {
            entry.idle.push(Idle {
                sender,
                facts,
                since: Instant::now(),
            });
        }
    }
}

impl Pool {
    /// A connection for `key`: an idle one unless `fresh`, else a new one.
    pub(crate) async fn lease(
        self: &Rc<Self>,
        key: Key,
        destination: impl FnOnce() -> Destination,
        resolver: &Resolver,
        limit: Duration,
        fresh: bool,
    ) -> Result<Lease, Error> {
        if !fresh && let Some(lease) = self.idle(&key) {
            return Ok(lease);
        }
        let (first, alone) = {
            let mut entries = self.entries.borrow_mut();
            let entry = entries.entry(key.clone()).or_default();
            (Rc::clone(&entry.first), entry.speaks_http1 || fresh)
        };
        let _turn = if alone {
            None
        } else {
            Some(first.lock().await)
        };
        if !alone && let Some(lease) = self.idle(&key) {
            return Ok(lease);
        }
        let mut destination = destination();
        destination.via = self.with_sessions(&key, &destination.via);
        let dialed = destination.dial(resolver, limit).await?;
        Ok(self.lend(key, dialed))
    }

    /// Lends an HTTP/2 connection no more, that its upstream takes no more requests on; whether it is one.
    pub(crate) fn retire(&self, lease: &Lease) -> bool {
        if matches!(lease.sender, Sender::Http1(_)) {
            return false;
        }
        if let Some(entry) = self.entries.borrow_mut().get_mut(&lease.key)
            && entry
                .shared
                .as_ref()
                .is_some_and(|(_, facts)| Arc::ptr_eq(facts, &lease.facts))
        {
            entry.shared = None;
        }
        true
    }

    /// A new connection for HTTP/1.1, that may become something else: it is not shared.
    pub(crate) async fn apart(
        self: &Rc<Self>,
        key: Key,
        mut destination: Destination,
        resolver: &Resolver,
        limit: Duration,
    ) -> Result<Lease, Error> {
        destination.via = self.with_sessions(&key, &destination.via).http1_only();
        let Dialed { sender, facts } = destination.dial(resolver, limit).await?;
        Ok(Lease {
            sender,
            facts,
            reused: false,
            apart: true,
            pool: Rc::clone(self),
            key,
        })
    }

    fn with_sessions(&self, key: &Key, via: &Via) -> Via {
        let mut sessions = self.sessions.borrow_mut();
        if sessions.len() >= SESSIONS && !sessions.contains_key(key) {
            sessions.clear();
        }
        let own = sessions
            .entry(key.clone())
            .or_insert_with(|| via.with_own_sessions());
        own.clone()
    }

    fn lend(self: &Rc<Self>, key: Key, dialed: Dialed) -> Lease {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.entry(key.clone()).or_default();
        match &dialed.sender {
            Sender::Http1(_) => entry.speaks_http1 = true,
            Sender::Http2(sender) => {
                entry.shared = Some((sender.clone(), Arc::clone(&dialed.facts)))
            }
        }
        Lease {
            sender: dialed.sender,
            facts: dialed.facts,
            reused: false,
            apart: false,
            pool: Rc::clone(self),
            key,
        }
    }

    fn idle(self: &Rc<Self>, key: &Key) -> Option<Lease> {
        let mut entries = self.entries.borrow_mut();
        let entry = entries.get_mut(key)?;
        if let Some((sender, facts)) = &entry.shared {
            if !sender.is_closed() {
                return Some(Lease {
                    sender: Sender::Http2(sender.clone()),
                    facts: Arc::clone(facts),
                    reused: true,
                    apart: false,
                    pool: Rc::clone(self),
                    key: key.clone(),
                });
            }
            entry.shared = None;
        }
        // The youngest first: the oldest are the ones to let go. One that is still finishing is passed over.
        let at = entry
            .idle
            .iter()
            .rposition(|idle| idle.sender.is_ready() && idle.since.elapsed() < IDLE)?;
        let Idle { sender, facts, .. } = entry.idle.remove(at);
        Some(Lease {
            sender: Sender::Http1(sender),
            facts,
            reused: true,
            apart: false,
            pool: Rc::clone(self),
            key: key.clone(),
        })
    }

    /// Lets go of what is closed, old, or of another generation than `generation`.
    pub(crate) fn sweep(&self, generation: u64) {
        self.sessions
            .borrow_mut()
            .retain(|key, _| key.generation == generation);
        self.entries.borrow_mut().retain(|key, entry| {
            entry
                .idle
                .retain(|idle| !idle.sender.is_closed() && idle.since.elapsed() < IDLE);
            if entry
                .shared
                .as_ref()
                .is_some_and(|(sender, _)| sender.is_closed())
            {
                entry.shared = None;
            }
            key.generation == generation
                && (!entry.idle.is_empty()
                    || entry.shared.is_some()
                    || Rc::strong_count(&entry.first) > 1)
        });
    }
}
