//! The control plane's end: queries, the live feed, counters, closing.
use super::Error;
use super::query::{self, Filter};
use super::record::Record;
use super::sink::Message;
use super::tally::{Counts, Repeated, Tally};
use jiff::Timestamp;
use std::collections::{HashSet, VecDeque};
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::Release};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use tokio::sync::broadcast;

/// Records a subscriber may lag behind before it misses some.
const FEED: usize = 4096;
/// How long a query waits for the writer to have taken what was submitted before it.
const PATIENCE: Duration = Duration::from_millis(250);

/// What sinks, log and writer share. The data plane touches its atomics only.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) healthy: AtomicBool,
    pub(super) closing: AtomicBool,
    pub(super) dropped: AtomicU64,
    pub(super) written: AtomicU64,
    pub(super) untold: AtomicU64,
    /// Taken by the writer and not yet in a file, oldest first. Locked for as long as it takes to push, or to
    /// copy pointers; never while a file is touched.
    pub(super) queued: Mutex<VecDeque<Arc<Record>>>,
    pub(super) trouble: Mutex<Trouble>,
    pub(super) feed: broadcast::Sender<Arc<Record>>,
}

#[derive(Debug, Clone, Default)]
pub(super) struct Trouble {
    pub(super) failing_since: Option<Timestamp>,
    pub(super) last_error: Option<String>,
}

impl Shared {
    pub(super) fn new() -> Self {
        Self {
            healthy: AtomicBool::new(true),
            closing: AtomicBool::new(false),
            dropped: AtomicU64::new(0),
            written: AtomicU64::new(0),
            untold: AtomicU64::new(0),
            queued: Mutex::default(),
            trouble: Mutex::default(),
            feed: broadcast::Sender::new(FEED),
        }
    }

    pub(super) fn queued(&self) -> MutexGuard<'_, VecDeque<Arc<Record>>> {
        self.queued.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn trouble(&self) -> MutexGuard<'_, Trouble> {
        self.trouble.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How the writer is doing.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Stats {
    /// As [`super::Sink::healthy`].
    pub healthy: bool,
    /// Records in files since the start.
    pub written: u64,
    /// Records lost because the queue was full or the writer gone.
    pub dropped: u64,
    /// Lines that the journal was to have of refusals, and did not take.
    #[serde(default)]
    pub untold: u64,
    /// Records taken and not yet in a file.
    pub queued: usize,
    /// Since when writing fails; none while it works.
    pub failing_since: Option<Timestamp>,
    /// The last failure, also when it is over.
    pub last_error: Option<String>,
    /// Bytes of a torn last line cut off at the start.
    pub healed_bytes: u64,
}

/// Reads, follows and closes the log. Clones are the same log; dropping the last one closes it.
#[derive(Debug, Clone)]
pub struct Log(Arc<Inner>);

struct Inner {
    dir: PathBuf,
    shared: Arc<Shared>,
    queue: SyncSender<Message>,
    healed: u64,
    writer: Mutex<Option<JoinHandle<()>>>,
}

impl std::fmt::Debug for Inner {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter
            .debug_struct("Log")
            .field("dir", &self.dir)
            .finish_non_exhaustive()
    }
}

impl Log {
    pub(super) fn new(
        dir: PathBuf,
        shared: Arc<Shared>,
        queue: SyncSender<Message>,
        healed: u64,
        writer: JoinHandle<()>,
    ) -> Self {
        Self(Arc::new(Inner {
            dir,
            shared,
            queue,
            healed,
            writer: Mutex::new(Some(writer)),
        }))
    }

    /// The newest matching records, newest first: those in the files and those still queued, among them everything
    /// submitted before this call while the writer keeps up. Blocks on the disk and up to a quarter of a second on
    /// the writer: not for an async thread.
    ///
    /// # Errors
    /// As [`super::read`].
    pub fn query(&self, filter: &Filter) -> Result<Vec<Arc<Record>>, Error> {
        self.settle();
        // Queued first: a record that reaches its file in between is then seen twice, not never.
        let queued: Vec<_> = self.0.shared.queued().iter().cloned().collect();
        let waiting: HashSet<_> = queued.iter().map(|record| record.id).collect();
        let mut found: Vec<_> = queued
            .into_iter()
            .rev()
            .filter(|record| filter.matches(record))
            .collect();
        let limit = filter.limit();
        found.truncate(limit);
        if found.len() < limit {
            let more = Filter {
                limit: Some(limit.saturating_add(waiting.len())),
                ..filter.clone()
            };
            let mut written = query::read(&self.0.dir, &more)?;
            written.retain(|record| !waiting.contains(&record.id));
            found.append(&mut written);
            found.truncate(limit);
        }
        Ok(found)
    }

    /// Everything that matches, counted, and the last `kinds` kinds of what did not pass, newest last; the filter's limit
    /// does not count. Blocks as [`Self::query`] does, for as long as it takes to read what is kept since then.
    ///
    /// # Errors
    /// As [`super::each`].
    pub fn tally(&self, filter: &Filter, kinds: usize) -> Result<(Counts, Vec<Repeated>), Error> {
        self.settle();
        // Queued first, as in a query.
        let queued: Vec<_> = self.0.shared.queued().iter().cloned().collect();
        let waiting: HashSet<_> = queued.iter().map(|record| record.id).collect();
        let mut tally = Tally::default();
        query::each(&self.0.dir, filter, |record| {
            if !waiting.contains(&record.id) {
                tally.add(record);
            }
            ControlFlow::Continue(())
        })?;
        let queued = queued.iter().filter(|record| filter.matches(record));
        queued.for_each(|record| tally.add((**record).clone()));
        Ok(tally.finish(kinds))
    }

    /// Waits until the writer has taken everything submitted before this call, or a quarter of a second.
    fn settle(&self) {
        let (answer, taken) = sync_channel(1);
        if self.0.queue.try_send(Message::Barrier(answer)).is_ok() {
            // Late or never: the query then lacks what is still in the queue.
            let _ = taken.recv_timeout(PATIENCE);
        }
    }

    /// Everything from now on, as it happens.
    pub fn subscribe(&self) -> Feed {
        Feed(self.0.shared.feed.subscribe())
    }

    /// How the writer is doing.
    pub fn stats(&self) -> Stats {
        let shared = &self.0.shared;
        let trouble = shared.trouble().clone();
        Stats {
            healthy: shared.healthy.load(Relaxed),
            written: shared.written.load(Relaxed),
            dropped: shared.dropped.load(Relaxed),
            untold: shared.untold.load(Relaxed),
            queued: shared.queued().len(),
            failing_since: trouble.failing_since,
            last_error: trouble.last_error,
            healed_bytes: self.0.healed,
        }
    }

    /// Has the writer ended though nobody has closed the log? Then nothing more is written.
    pub fn has_ended(&self) -> bool {
        let writer = self.0.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.as_ref().is_some_and(JoinHandle::is_finished)
    }

    /// Writes what was accepted, syncs it, ends the writer, and says how it went. Where the log cannot be written it
    /// tries once more; `queued` then tells what was lost. Records submitted later are dropped and counted.
    pub fn close(&self) -> Stats {
        self.0.close();
        self.stats()
    }
}

impl Inner {
    fn close(&self) {
        let writer = self
            .writer
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .take();
        if let Some(writer) = writer {
            // The flag is enough; the message wakes a waiting writer, and a writer behind a full queue is awake.
            self.shared.closing.store(true, Release);
            let _ = self.queue.try_send(Message::Close);
            let _ = writer.join();
        }
    }
}

impl Drop for Inner {
    fn drop(&mut self) {
        self.close();
    }
}

/// Decisions as they happen.
#[derive(Debug)]
pub struct Feed(broadcast::Receiver<Arc<Record>>);

/// What a [`Feed`] brings.
#[derive(Debug, Clone)]
pub enum Live {
    /// A decision.
    Record(Arc<Record>),
    /// The reader was too slow: so many were left out here. They are in the log.
    Missed(u64),
}

impl Feed {
    /// The next one; none when the log was closed.
    pub async fn next(&mut self) -> Option<Live> {
        match self.0.recv().await {
            Ok(record) => Some(Live::Record(record)),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Live::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
