//! The data plane's end of the queue.
use super::log::Shared;
use super::record::Record;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::{SyncSender, TrySendError};

/// Records that wait at most for the writer to take them.
pub(super) const QUEUE: usize = 65_536;

/// What the writer's thread is told.
pub(super) enum Message {
    /// A decision.
    Record(Arc<Record>),
    /// Answer when everything sent before is in the file or in [`Shared::queued`].
    Barrier(SyncSender<()>),
    /// Write what there is, sync, end.
    Close,
}

/// Where the data plane puts records: a bounded queue to the writer's own thread. Cloned per worker.
#[derive(Clone)]
pub struct Sink {
    pub(super) queue: SyncSender<Message>,
    pub(super) shared: Arc<Shared>,
}

impl Sink {
    /// Whether the log can be written now; while it cannot, the pipeline refuses new requests (503).
    pub fn healthy(&self) -> bool {
        self.shared.healthy.load(Acquire)
    }

    /// Queues a record; never blocks. A full queue makes the sink unhealthy and is counted.
    pub fn submit(&self, record: Record) {
        match self.queue.try_send(Message::Record(Arc::new(record))) {
            Ok(()) => {}
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => {
                self.shared.dropped.fetch_add(1, Relaxed);
                // The writer sets it again once it has caught up; a writer that ended never does.
                self.shared.healthy.store(false, Release);
            }
        }
    }
}

impl std::fmt::Debug for Sink {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Sink")
            .field("healthy", &self.healthy())
            .finish_non_exhaustive()
    }
}
