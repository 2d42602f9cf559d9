//! The one thread that writes.
use super::chain::{self, Hash};
use super::journal::Journal;
use super::log::{Log, Shared};
use super::record::Record;
use super::segment::{self, Segment, Tail};
use super::sink::{Message, QUEUE, Sink};
use super::syncer::Syncer;
use super::{Error, line};
use crate::config::AuditLimits;
use jiff::Timestamp;
use std::collections::VecDeque;
use std::fs::{DirBuilder, File, TryLockError};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::{Duration, Instant};

/// Records held in memory while the log cannot be written, besides those in the queue.
const BACKLOG: usize = 65_536;
/// Bytes encoded before they are written.
const BATCH: usize = 256 * 1024;
/// Between two attempts to write.
const RETRY: Duration = Duration::from_millis(250);
/// Between two syncs.
const SYNC: Duration = Duration::from_secs(1);
/// Taken records gather so long before the queue is looked at again. While it lasts nobody has to wake the writer:
/// a data plane under load pays for no system call.
const GATHER: Duration = Duration::from_millis(1);

/// The log's writer. Exists only as its thread.
#[derive(Debug)]
pub struct Writer {
    _private: (),
}

impl Writer {
    /// Opens the log in `dir` (made 0700 where it is not there), cuts off a line that a crash tore, and starts the
    /// writer's thread. Refusals are told to `journal` too, where there is one.
    ///
    /// # Errors
    /// The directory cannot be written, or another agent writes there.
    pub fn start(
        dir: &Path,
        limits: &AuditLimits,
        journal: Option<Journal>,
    ) -> Result<(Sink, Log), Error> {
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .map_err(Error::io("create", dir))?;
        let lock = lock(dir)?;
        let tail = segment::resume(dir)?;
        let healed = tail.healed;
        if healed > 0 {
            tracing::warn!(
                bytes = healed,
                "cut off the decision log's last line: a crash tore it"
            );
        }
        let syncer = Syncer::start(File::sync_data).map_err(Error::Thread)?;
        let mut files = Files::new(dir.to_owned(), limits, tail, syncer, lock);
        files.ready().map_err(Error::io("open a segment in", dir))?;

        let (queue, receiver) = sync_channel(QUEUE);
        let shared = Arc::new(Shared::new());
        let worker = Worker::new(receiver, Arc::clone(&shared), files, journal);
        let thread = std::thread::Builder::new()
            .name("audit".into())
            .spawn(move || worker.run())
            .map_err(Error::Thread)?;
        let sink = Sink {
            queue: SyncSender::clone(&queue),
            shared: Arc::clone(&shared),
        };
        Ok((
            sink,
            Log::new(dir.to_owned(), shared, queue, healed, thread),
        ))
    }
}

/// Two writers would tear each other's chain.
fn lock(dir: &Path) -> Result<File, Error> {
    let path = dir.join("decisions.lock");
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_NOFOLLOW)
        .open(&path)
        .map_err(Error::io("open", &path))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => Err(Error::InUse {
            path: dir.to_owned(),
        }),
        Err(TryLockError::Error(error)) => Err(Error::io("lock", &path)(error)),
    }
}

/// The segment being written and where the chain stands.
struct Files {
    dir: PathBuf,
    segment_bytes: u64,
    /// At least two: the newest may be empty, and then the one before holds the chain's end.
    segments: usize,
    current: Option<(Segment, File)>,
    /// Bytes in the current segment.
    length: u64,
    /// `seq` of the next record to encode, and the hash it must carry.
    next: u64,
    prev: Hash,
    /// Encoded lines; those up to `written_to` are in the file.
    buffer: Vec<u8>,
    written_to: usize,
    /// Written since the last sync began.
    dirty: bool,
    syncer: Syncer,
    synced: Instant,
    _lock: File,
}

impl Files {
    fn new(dir: PathBuf, limits: &AuditLimits, tail: Tail, syncer: Syncer, lock: File) -> Self {
        let (current, length) = match tail.newest {
            Some((segment, file, length)) => (Some((segment, file)), length),
            None => (None, 0),
        };
        Self {
            dir,
            segment_bytes: limits.segment_bytes.max(1),
            segments: limits.segments.max(2),
            current,
            length,
            next: tail.next,
            prev: tail.prev,
            buffer: Vec::with_capacity(BATCH + 4096),
            written_to: 0,
            dirty: false,
            syncer,
            synced: Instant::now(),
            _lock: lock,
        }
    }

    /// Room for another line in this segment and this batch.
    fn has_room(&self) -> bool {
        self.buffer.len() < BATCH && self.length + (self.buffer.len() as u64) < self.segment_bytes
    }

    fn encode(&mut self, record: &Record) {
        let start = self.buffer.len();
        line::encode_chained(record, self.next, &self.prev, &mut self.buffer);
        let encoded = self.buffer.get(start..self.buffer.len().saturating_sub(1));
        self.prev = chain::hash(encoded.unwrap_or_default());
        self.next = self.next.saturating_add(1);
    }

    /// An open segment with room, with what is encoded at its right place: rotates only between batches.
    fn ready(&mut self) -> io::Result<()> {
        let full = self.buffer.is_empty() && self.length >= self.segment_bytes;
        if self.current.is_some() && !full {
            return Ok(());
        }
        self.sync()?;
        // The segment is named for the first line that will be in it.
        let lines = memchr::memchr_iter(b'\n', &self.buffer).count() as u64;
        let segment = Segment::new(&self.dir, self.next.saturating_sub(lines), Timestamp::now());
        let file = segment.open()?;
        File::open(&self.dir)?.sync_all()?;
        self.length = file.metadata()?.len();
        self.current = Some((segment, file));
        self.retire();
        Ok(())
    }

    /// Deletes the oldest segments beyond those to keep.
    fn retire(&self) {
        let Ok(segments) = segment::list(&self.dir) else {
            return;
        };
        let excess = segments.len().saturating_sub(self.segments);
        for segment in segments.iter().take(excess) {
            if let Err(error) = std::fs::remove_file(&segment.path) {
                tracing::warn!(path = %segment.path.display(), %error, "cannot delete an old segment of decisions");
            }
        }
    }

    /// Writes what is encoded, from where the last attempt stopped.
    fn write(&mut self) -> io::Result<()> {
        self.ready()?;
        while let Some(rest) = self
            .buffer
            .get(self.written_to..)
            .filter(|rest| !rest.is_empty())
        {
            let Some((_, file)) = &mut self.current else {
                break;
            };
            match file.write(rest) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(count) => {
                    self.written_to += count;
                    self.length += count as u64;
                    self.dirty = true;
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    /// Forgets the lines that are whole in the file, and says how many: after a failure, those before the torn one.
    fn settle(&mut self) -> usize {
        let written = self.buffer.get(..self.written_to).unwrap_or_default();
        let lines = memchr::memchr_iter(b'\n', written).count();
        let whole = memchr::memrchr(b'\n', written).map_or(0, |newline| newline + 1);
        self.buffer.drain(..whole);
        self.written_to -= whole;
        lines
    }

    /// Makes what was written last through a power cut, and waits until it is. After a failure the kernel may have
    /// forgotten which pages were meant: what was written since the last sync is then only as safe as the disk is.
    fn sync(&mut self) -> io::Result<()> {
        self.synced = Instant::now();
        let before = self.syncer.wait();
        self.unless_failed(before)?;
        if let Some((_, file)) = &self.current
            && self.dirty
        {
            file.sync_data()?;
            self.dirty = false;
        }
        self.leave_deleted();
        Ok(())
    }

    /// As [`Self::sync`], but waits for nothing: how it ended is told by a later call.
    fn sync_beside(&mut self) -> io::Result<()> {
        let before = self.syncer.look();
        self.unless_failed(before)?;
        if !self.sync_due() || self.syncer.is_busy() {
            return Ok(());
        }
        self.synced = Instant::now();
        if let Some((_, file)) = &self.current
            && self.dirty
        {
            self.syncer.begin(file)?;
            self.dirty = false;
        }
        self.leave_deleted();
        Ok(())
    }

    /// What a sync beside did not make safe is for the next one.
    fn unless_failed(&mut self, before: io::Result<()>) -> io::Result<()> {
        self.dirty |= before.is_err();
        before
    }

    /// Someone deleted the segment: write where readers can see, not into a nameless file. A line begun there is
    /// written whole in the new one.
    fn leave_deleted(&mut self) {
        if let Some((segment, file)) = &self.current
            && segment::is_detached(file, &segment.path)
        {
            tracing::warn!(path = %segment.path.display(), "the decision log's segment is gone: starting another");
            self.current = None;
            self.length = 0;
            self.written_to = 0;
        }
    }

    /// How long nothing has to be done for the disk's sake.
    fn until_sync(&self) -> Duration {
        let due = SYNC.saturating_sub(self.synced.elapsed());
        match (self.syncer.is_busy(), self.dirty) {
            (true, _) => due.max(SYNC / 10),
            (false, true) => due,
            (false, false) => SYNC,
        }
    }

    fn sync_due(&self) -> bool {
        self.synced.elapsed() >= SYNC
    }
}

struct Worker {
    queue: Receiver<Message>,
    shared: Arc<Shared>,
    files: Files,
    journal: Option<Journal>,
    /// Taken, not yet encoded. [`Shared::queued`] is this and what is encoded but not in the file.
    backlog: VecDeque<Arc<Record>>,
    /// Records in the buffer of `files`.
    encoded: usize,
    /// When to try again after a failure.
    retry: Option<Instant>,
    closing: bool,
}

/// Makes the sinks unhealthy when the thread ends in any way.
struct LastWord(Arc<Shared>);

impl Drop for LastWord {
    fn drop(&mut self) {
        self.0.healthy.store(false, Release);
    }
}

impl Worker {
    fn new(
        queue: Receiver<Message>,
        shared: Arc<Shared>,
        files: Files,
        journal: Option<Journal>,
    ) -> Self {
        Self {
            queue,
            shared,
            files,
            journal,
            backlog: VecDeque::new(),
            encoded: 0,
            retry: None,
            closing: false,
        }
    }

    fn run(mut self) {
        let _last_word = LastWord(Arc::clone(&self.shared));
        while !self.closing {
            self.receive();
            if self.retry.is_none_or(|at| at <= Instant::now()) {
                self.flush();
            }
            self.tell_journal(Journal::sweep);
            self.closing |= self.shared.closing.load(Acquire);
        }
        // What came in beside the word to close; at most a queue full.
        while let Ok(message) = self.queue.try_recv() {
            self.take(message, &mut Vec::new());
        }
        self.flush();
        if let Err(error) = self.files.sync() {
            self.failed(&error);
        }
        let lost = self.encoded + self.backlog.len();
        if lost > 0 {
            tracing::error!(
                records = lost,
                "decisions lost: the log could not be written before the end"
            );
        }
    }

    /// Waits for something to do, then takes what is there as far as memory allows.
    fn receive(&mut self) {
        let wait = match self.retry {
            Some(at) => at.saturating_duration_since(Instant::now()),
            None => self.files.until_sync(),
        };
        if self.backlog.len() >= BACKLOG {
            std::thread::sleep(wait);
            return;
        }
        let mut barriers = Vec::new();
        match self.queue.recv_timeout(wait) {
            Ok(first) => {
                self.take(first, &mut barriers);
                if barriers.is_empty() && !self.closing {
                    std::thread::sleep(GATHER);
                }
                self.drain(&mut barriers);
            }
            Err(RecvTimeoutError::Timeout) => {}
            Err(RecvTimeoutError::Disconnected) => self.closing = true,
        }
        for barrier in barriers {
            // Whoever asked may have given up.
            let _ = barrier.try_send(());
        }
    }

    fn drain(&mut self, barriers: &mut Vec<SyncSender<()>>) {
        while self.backlog.len() < BACKLOG && !self.closing {
            match self.queue.try_recv() {
                Ok(message) => self.take(message, barriers),
                Err(TryRecvError::Empty) => break,
                Err(TryRecvError::Disconnected) => self.closing = true,
            }
        }
    }

    fn take(&mut self, message: Message, barriers: &mut Vec<SyncSender<()>>) {
        match message {
            Message::Record(record) => {
                self.shared.queued().push_back(Arc::clone(&record));
                if self.shared.feed.receiver_count() > 0 {
                    // Fails only when the last subscriber has just left.
                    let _ = self.shared.feed.send(Arc::clone(&record));
                }
                self.tell_journal(|journal, now| journal.tell(&record, now));
                self.backlog.push_back(record);
            }
            Message::Barrier(answer) => barriers.push(answer),
            Message::Close => self.closing = true,
        }
    }

    /// Has the journal told something, if there is one, and counts the lines that it did not take.
    fn tell_journal(&mut self, tell: impl FnOnce(&mut Journal, Instant) -> u64) {
        if let Some(journal) = &mut self.journal {
            let lost = tell(journal, Instant::now());
            self.shared.untold.fetch_add(lost, Relaxed);
        }
    }

    /// Writes everything taken; on a failure keeps it and says so.
    fn flush(&mut self) {
        match self.write_all() {
            Ok(()) => self.recovered(),
            Err(error) => self.failed(&error),
        }
    }

    fn write_all(&mut self) -> io::Result<()> {
        if self.retry.is_some() {
            self.files.sync()?;
        } else {
            self.files.sync_beside()?;
        }
        loop {
            self.files.ready()?;
            while self.files.has_room() {
                let Some(record) = self.backlog.pop_front() else {
                    break;
                };
                self.files.encode(&record);
                self.encoded += 1;
            }
            if self.encoded == 0 {
                return Ok(());
            }
            let outcome = self.files.write();
            let written = self.files.settle();
            self.shared.queued().drain(..written);
            self.shared.written.fetch_add(written as u64, Relaxed);
            self.encoded -= written;
            outcome?;
        }
    }

    fn recovered(&mut self) {
        if self.retry.take().is_some() {
            self.shared.trouble().failing_since = None;
            tracing::info!("decisions can be written again; everything accepted is in the log");
        }
        self.shared.healthy.store(true, Release);
    }

    fn failed(&mut self, error: &io::Error) {
        self.shared.healthy.store(false, Release);
        let mut trouble = self.shared.trouble();
        if trouble.failing_since.is_none() {
            trouble.failing_since = Some(Timestamp::now());
            tracing::error!(%error, dir = %self.files.dir.display(), "decisions cannot be written: no new request is let through until they can");
        }
        trouble.last_error = Some(error.to_string());
        drop(trouble);
        self.retry = Some(Instant::now() + RETRY);
    }
}
