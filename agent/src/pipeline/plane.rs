//! The running data plane: a thread per worker, and the things ever said to them: the policy changed, listen here too,
//! listen there no longer, stop.
use super::worker::{self, Door, Signals};
use super::{Listeners, Shared};
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// The running data plane: one current-thread runtime per worker.
#[derive(Debug)]
pub struct Plane {
    workers: Vec<JoinHandle<()>>,
    changed: watch::Sender<u64>,
    stop: watch::Sender<bool>,
    open: Arc<AtomicUsize>,
    beats: Vec<Arc<AtomicU64>>,
    read_up_to: ReadUpTo,
    doors: Doors,
}

/// When each socket that is asked for names had nothing unread last. Touched as sockets open and close, and by the
/// control plane; a socket's own moment is an atomic.
#[derive(Debug, Clone, Default)]
pub(super) struct ReadUpTo(Arc<Mutex<Vec<Weak<AtomicU64>>>>);

impl ReadUpTo {
    /// One more socket, for as long as this is held.
    pub(super) fn add(&self) -> Arc<AtomicU64> {
        let moment = Arc::new(AtomicU64::new(0));
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.retain(|other| other.strong_count() > 0);
        all.push(Arc::downgrade(&moment));
        moment
    }

    /// The earliest; 0 where there is none.
    fn of_all(&self) -> u64 {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let moments = all.iter().filter_map(Weak::upgrade);
        moments
            .map(|moment| moment.load(Ordering::Relaxed))
            .min()
            .unwrap_or(0)
    }
}

/// Workers at most that listen in a network namespace other than the agent's own: each costs descriptors.
const SPREAD: usize = 4;

/// Opens and closes listeners of the running data plane.
#[derive(Debug, Clone, Default)]
pub struct Doors(Vec<mpsc::UnboundedSender<Door>>);

impl Doors {
    /// How many sets of listeners a network namespace other than the agent's own is to have.
    pub fn spread(&self) -> usize {
        self.0.len().clamp(1, SPREAD)
    }

    /// Serves these listeners from here on, until [`Self::close`] is called with the same key.
    pub fn open(&self, key: u64, listeners: Vec<Listeners>) {
        // Not always the same workers.
        let first = usize::try_from(key).unwrap_or(0);
        for (number, listeners) in listeners.into_iter().enumerate() {
            let at = first.wrapping_add(number) % self.0.len().max(1);
            if let Some(worker) = self.0.get(at) {
                // A worker that is gone drops them, which closes them: the hooks refuse then.
                let _ = worker.send(Door::Open(key, listeners));
            }
        }
    }

    /// Closes the listeners that were opened with this key; connections go on.
    pub fn close(&self, key: u64) {
        for worker in &self.0 {
            let _ = worker.send(Door::Close(key));
        }
    }
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
            doors: Doors::default(),
            read_up_to: ReadUpTo::default(),
        };
        for (index, listeners) in listeners.into_iter().enumerate() {
            let beat = Arc::new(AtomicU64::new(0));
            plane.beats.push(Arc::clone(&beat));
            let signals = Signals {
                changes: changes.clone(),
                stop: stops.clone(),
                open: Arc::clone(&open),
                beat,
                read_up_to: plane.read_up_to.clone(),
            };
            let (door, doors) = mpsc::unbounded_channel();
            plane.doors.0.push(door);
            let shared = Arc::clone(&shared);
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()?;
            let thread = std::thread::Builder::new().name(format!("worker-{index}"));
            plane.workers.push(
                thread.spawn(move || worker::run(&runtime, shared, (listeners, doors), signals))?,
            );
        }
        Ok(plane)
    }

    /// Connections open now.
    pub fn connections(&self) -> usize {
        self.open.load(Ordering::Relaxed)
    }

    /// A way to have it listen elsewhere too.
    pub fn doors(&self) -> Doors {
        self.doors.clone()
    }

    /// One counter per worker that goes up at least once a second while its thread answers.
    pub fn beats(&self) -> Vec<u64> {
        self.beats
            .iter()
            .map(|beat| beat.load(Ordering::Relaxed))
            .collect()
    }

    /// All queries for names that reached a worker before this have been read, in nanoseconds since boot.
    pub fn names_read_up_to(&self) -> u64 {
        self.read_up_to.of_all()
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
