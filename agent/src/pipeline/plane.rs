//! The running data plane: a thread per worker, and the two things ever said to them: the policy changed, stop.
use super::worker::{self, Signals};
use super::{Listeners, Shared};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::watch;

/// The running data plane: one current-thread runtime per worker.
#[derive(Debug)]
pub struct Plane {
    workers: Vec<JoinHandle<()>>,
    changed: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    beats: Vec<Arc<AtomicU64>>,
}

impl Plane {
    /// Starts a thread per set of listeners.
    ///
    /// # Errors
    /// A thread or runtime could not be made.
    pub fn start(shared: Arc<Shared>, listeners: Vec<Listeners>) -> io::Result<Self> {
        let (changed, changes) = watch::channel(0);
        let (stop, stops) = watch::channel(false);
        let open = Arc::new(AtomicUsize::new(0));
        let mut plane = Self {
            workers: Vec::new(),
            changed,
            stop,
            open: Arc::clone(&open),
            beats: Vec::new(),
        };
        for (index, listeners) in listeners.into_iter().enumerate() {
            let beat = Arc::new(AtomicU64::new(0));
            plane.beats.push(Arc::clone(&beat));
            let signals = Signals {
                changes: changes.clone(),
                stop: stops.clone(),
                open: Arc::clone(&open),
                beat,
            };
            let shared = Arc::clone(&shared);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            plane
                .workers
                .push(thread.spawn(move || worker::run(&runtime, shared, listeners, signals))?);
        }
        Ok(plane)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// One counter per worker that goes up at least once a second while its thread answers.
    pub fn beats(&self) -> Vec<u64> {
        self.beats
            .iter()
            .map(|beat| beat.load(Ordering::Relaxed))
            .collect()
    }

    /// Whether a worker's thread has ended though nobody asked it to.
    pub fn broken(&self) -> bool {
        self.workers.iter().any(JoinHandle::is_finished)
    }

    /// Tells open connections that the snapshot changed, so that those no longer allowed are closed.
    pub fn snapshot_changed(&self) {
        self.changed.send_modify(|generation| *generation += 1);
    }

    /// Stops accepting, lets requests under way finish for `limits.drain`, then closes. Blocks.
    pub fn drain(self) {
        self.stop.send_replace(true);
        for worker in self.workers {
            if worker.join().is_err() {
                tracing::error!("a worker had panicked");
            }
        }
    }

    /// How long between two beats.
    pub const BEAT: Duration = Duration::from_secs(1);
}
