//! One worker: its runtime, its listeners, and what its connections share without locks.
use super::plane::ReadUpTo;
use super::{Listeners, Plane, Shared, exchange::Exchanges, serve};
use crate::dns::{self, Responder};
use crate::kernel::present::Witness;
use crate::tls::LeafCache;
use crate::upstream::{Pool, Resolver};
use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc::UnboundedReceiver;
use tokio::sync::watch;
use tokio::task::JoinSet;

/// What the control plane tells a worker, and what it shows in return.
#[derive(Debug, Clone)]
pub(super) struct Signals {
    pub(super) changes: watch::Receiver<u64>,
    pub(super) stop: watch::Receiver<bool>,
    pub(super) open: Arc<AtomicUsize>,
    pub(super) beat: Arc<AtomicU64>,
    pub(super) read_up_to: ReadUpTo,
}

/// Listeners of other network namespaces, by a key that the control plane gives them.
#[derive(Debug)]
pub(super) enum Door {
    /// Serve these too.
    Open(u64, Listeners),
    /// Close those with this key.
    Close(u64),
}

/// What the connections of one worker share. Never leaves its thread.
pub(super) struct Worker {
    pub(super) shared: Arc<Shared>,
    pub(super) leaves: LeafCache,
    pub(super) pool: Rc<Pool>,
    pub(super) resolver: Rc<Resolver>,
    pub(super) responder: Rc<Responder>,
    pub(super) exchanges: Rc<Exchanges>,
    /// JWTs that held lately.
    pub(super) verified: crate::identity::Cache,
    pub(super) signals: Signals,
    open: Cell<usize>,
}

/// Runs hyper's HTTP/2 tasks on the worker's own thread.
#[derive(Debug, Clone, Copy)]
pub(crate) struct LocalExecutor;

impl<F: Future + 'static> hyper::rt::Executor<F> for LocalExecutor {
    fn execute(&self, future: F) {
        tokio::task::spawn_local(async move {
            future.await;
        });
    }
}

pub(super) fn run(
    runtime: &tokio::runtime::Runtime,
    shared: Arc<Shared>,
    (listeners, doors): (Listeners, UnboundedReceiver<Door>),
    signals: Signals,
) {
    let local = tokio::task::LocalSet::new();
    local.block_on(runtime, async move {
        let resolver = Rc::new(Resolver::new(&shared.dns_servers));
        let responder = Responder::new(Arc::clone(&shared), Rc::clone(&resolver));
        let worker = Rc::new(Worker {
            leaves: LeafCache::new(Arc::clone(&shared.issuing)),
            pool: Rc::new(Pool::default()),
            resolver,
            responder: Rc::new(responder),
            exchanges: Rc::new(Exchanges::default()),
            verified: crate::identity::Cache::default(),
            open: Cell::new(0),
            shared,
            signals,
        });
        worker.exchanges.recheck(worker.shared.live.load_full());
        let mut always = JoinSet::new();
        always.spawn_local(housekeeping(Rc::clone(&worker)));
        always.spawn_local(follow_changes(Rc::clone(&worker)));
        let other = always.spawn_local(follow_doors(Rc::clone(&worker), doors));
        // Otherwise the thread ends, the plane reports itself broken, and the hooks refuse what reaches no listener.
        match beside(accept_all(&worker, listeners), &mut always).await {
            Some(Ok(())) => {}
            Some(Err(error)) => return tracing::error!(%error, "a worker cannot listen"),
            None => return tracing::error!("a worker cannot go on without what it does besides"),
        }
        other.abort();
        drained(&worker).await;
    });
}

/// Does `work`. `None`: one of these, which go on for as long, has ended before, by a panic.
async fn beside<T>(work: impl Future<Output = T>, always: &mut JoinSet<()>) -> Option<T> {
    tokio::select! {
        biased;
        done = work => Some(done),
        _ = always.join_next() => None,
    }
}

/// Opens and closes listeners in other network namespaces as it is told, until the worker stops.
async fn follow_doors(worker: Rc<Worker>, mut doors: UnboundedReceiver<Door>) {
    // Dropped with this task, which ends every task in it and closes their listeners.
    let mut open: HashMap<u64, JoinSet<()>> = HashMap::new();
    while let Some(door) = doors.recv().await {
        match door {
            Door::Open(key, listeners) => {
                let worker = Rc::clone(&worker);
                open.entry(key).or_default().spawn_local(async move {
                    if let Err(error) = accept_all(&worker, listeners).await {
                        tracing::error!(%error, "a worker cannot listen in another network namespace");
                    }
                });
            }
            Door::Close(key) => drop(open.remove(&key)),
        }
    }
}

/// Accepts until told to stop.
async fn accept_all(worker: &Rc<Worker>, listeners: Listeners) -> io::Result<()> {
    let v4 = TcpListener::from_std(listeners.v4)?;
    let v6 = listeners.v6.map(TcpListener::from_std).transpose()?;
    let witness = Rc::new(listeners.witness);
    // Dropped with the rest of this, which closes their sockets.
    let mut naming = JoinSet::new();
    for socket in std::iter::once(listeners.dns4).chain(listeners.dns6) {
        naming.spawn_local(answer_names(Rc::clone(worker), socket));
    }
    let mut stop = worker.signals.stop.clone();
    loop {
        let accepted = tokio::select! {
            biased;
            _ = stop.wait_for(|stop| *stop) => return Ok(()),
            accepted = v4.accept() => accepted,
            accepted = accept_v6(v6.as_ref()) => accepted,
        };
        match accepted {
            Ok((stream, _)) => open(worker, stream, Rc::clone(&witness)),
            // Whoever may in its network namespace has closed it. The hooks refuse where no listener is.
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                tracing::warn!("a listener was closed from outside (ss -K): no longer served");
                let _ = stop.wait_for(|stop| *stop).await;
                return Ok(());
            }
            // Out of descriptors or memory: the client waits in the backlog; others go on.
            Err(error) => {
                tracing::warn!(%error, "accept");
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
    }
}

/// Answers queries for names until told to stop; then the socket closes, and the hooks refuse.
async fn answer_names(worker: Rc<Worker>, socket: std::net::UdpSocket) {
    let read_up_to = worker.signals.read_up_to.add();
    let mut stop = worker.signals.stop.clone();
    let responder = Rc::clone(&worker.responder);
    tokio::select! {
        _ = stop.wait_for(|stop| *stop) => {}
        ended = dns::serve(responder, socket, read_up_to) => {
            if let Err(error) = ended {
                tracing::error!(%error, "a worker cannot answer queries for names");
            }
        }
    }
}

async fn accept_v6(
    listener: Option<&TcpListener>,
) -> io::Result<(TcpStream, std::net::SocketAddr)> {
    match listener {
        Some(listener) => listener.accept().await,
        None => std::future::pending().await,
    }
}

fn open(worker: &Rc<Worker>, stream: TcpStream, witness: Rc<Option<Witness>>) {
    // Without it a short response waits for the client's delayed acknowledgement.
    let _ = stream.set_nodelay(true);
    let guard = Open::new(worker);
    let worker = Rc::clone(worker);
    tokio::task::spawn_local(async move {
        serve::connection(&worker, (stream, witness), guard.over).await;
        drop(guard);
    });
}

/// Counts a connection while it lives.
struct Open {
    worker: Rc<Worker>,
    /// More than `limits.connections` are open: this one is refused.
    over: bool,
}

impl Open {
    fn new(worker: &Rc<Worker>) -> Self {
        let count = worker.open.get() + 1;
        worker.open.set(count);
        worker.signals.open.fetch_add(1, Ordering::Relaxed);
        Self {
            worker: Rc::clone(worker),
            over: count > worker.shared.limits.connections,
        }
    }
}

impl Drop for Open {
    fn drop(&mut self) {
        self.worker
            .open
            .set(self.worker.open.get().saturating_sub(1));
        self.worker.signals.open.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Shows that the thread answers, ends what a grant that has expired allowed, and lets go of old upstream connections.
async fn housekeeping(worker: Rc<Worker>) {
    loop {
        tokio::time::sleep(Plane::BEAT).await;
        let beat = worker.signals.beat.fetch_add(1, Ordering::Relaxed);
        worker.exchanges.expire();
        if beat.is_multiple_of(10) {
            worker.pool.sweep(worker.shared.live.load().generation);
        }
    }
}

/// Decides anew on what is under way whenever the policy changed.
async fn follow_changes(worker: Rc<Worker>) {
    let mut changes = worker.signals.changes.clone();
    while changes.changed().await.is_ok() {
        let snapshot = worker.shared.live.load_full();
        worker.pool.sweep(snapshot.generation);
        worker.exchanges.recheck(snapshot);
    }
}

/// Waits for open connections, at most `limits.drain`.
async fn drained(worker: &Rc<Worker>) {
    let deadline = tokio::time::Instant::now() + worker.shared.limits.drain;
    while worker.open.get() > 0 && tokio::time::Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_worker_does_not_go_on_without_what_it_does_besides() {
        let mut always = JoinSet::new();
        always.spawn(std::future::pending());
        assert_eq!(beside(async { 7 }, &mut always).await, Some(7));
        always.spawn(async { std::panic::resume_unwind(Box::new(())) });
        let without = beside(std::future::pending::<()>(), &mut always);
        assert_eq!(without.await, None);
    }
}
