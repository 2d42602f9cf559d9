//! Syncs a file beside the thread that writes it: a sync takes as long as the disk does, and a record must be in the
//! kernel's hands, safe from the end of this process, a few milliseconds after its answer.
use std::fs::File;
use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TryRecvError, sync_channel};
use std::time::Duration;

/// A disk that takes longer is waited for: what was written must not grow without bound before it is safe.
const PATIENCE: Duration = Duration::from_secs(10);

/// One sync at a time. The thread ends when this is dropped.
#[derive(Debug)]
pub(super) struct Syncer {
    files: SyncSender<File>,
    results: Receiver<io::Result<()>>,
    under_way: Option<std::time::Instant>,
}

impl Syncer {
    /// Starts the thread, which calls `sync` for each file.
    pub(super) fn start(
        sync: impl Fn(&File) -> io::Result<()> + Send + 'static,
    ) -> io::Result<Self> {
        let (files, queue) = sync_channel::<File>(1);
        let (answers, results) = sync_channel(1);
        std::thread::Builder::new()
            .name("audit-sync".into())
            .spawn(move || {
                while let Ok(file) = queue.recv() {
                    if answers.send(sync(&file)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            files,
            results,
            under_way: None,
        })
    }

    pub(super) fn is_busy(&self) -> bool {
        self.under_way.is_some()
    }

    /// Begins to sync what is written to `file` by now. Nothing else may be under way.
    pub(super) fn begin(&mut self, file: &File) -> io::Result<()> {
        self.files.send(file.try_clone()?).map_err(|_| gone())?;
        self.under_way = Some(std::time::Instant::now());
        Ok(())
    }

    /// How the last sync ended, if it has by now; waits for one that takes too long.
    pub(super) fn look(&mut self) -> io::Result<()> {
        match self.under_way {
            Some(since) if since.elapsed() > PATIENCE => self.wait(),
            Some(_) => match self.results.try_recv() {
                Ok(result) => self.ended(result),
                Err(TryRecvError::Empty) => Ok(()),
                Err(TryRecvError::Disconnected) => Err(gone()),
            },
            None => Ok(()),
        }
    }

    /// Waits for the end of what is under way.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        if self.under_way.is_none() {
            return Ok(());
        }
        match self.results.recv_timeout(PATIENCE) {
            Ok(result) => self.ended(result),
            Err(RecvTimeoutError::Timeout) => Err(io::ErrorKind::TimedOut.into()),
            Err(RecvTimeoutError::Disconnected) => Err(gone()),
        }
    }

    fn ended(&mut self, result: io::Result<()>) -> io::Result<()> {
        self.under_way = None;
        result
    }
}

fn gone() -> io::Error {
    io::Error::other("the thread that syncs the decision log has ended")
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn nobody_waits_for_a_slow_disk_and_its_failure_is_told() {
        let (disk, answers) = sync_channel::<io::Result<()>>(0);
        let answers = std::sync::Mutex::new(answers);
        let mut syncer = Syncer::start(move |_| answers.lock().unwrap().recv().unwrap()).unwrap();
        let file = File::open("/dev/null").unwrap();
        syncer.begin(&file).unwrap();
        assert!(syncer.is_busy());
        syncer.look().unwrap();
        assert!(syncer.is_busy(), "looking does not wait");
        disk.send(Ok(())).unwrap();
        syncer.wait().unwrap();
        assert!(!syncer.is_busy());
        syncer.begin(&file).unwrap();
        disk.send(Err(io::ErrorKind::StorageFull.into())).unwrap();
        let error = syncer.wait().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::StorageFull);
        assert!(!syncer.is_busy());
    }
}
