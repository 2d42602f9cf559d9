//! Watches the host: cgroups that come and go, and secrets that are written.
use super::agent::{Agent, lock};
use crate::kernel::FileState;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;
use tokio::sync::mpsc;

/// The tree is walked this often even if nothing was heard: runs that are over are removed then, and a watch that
/// could not be set is made up for.
const WALK: Duration = Duration::from_secs(1);
/// How soon after a change the tree is walked: many cgroups are made at once.
const SETTLE: Duration = Duration::from_millis(2);
/// How soon where changes do not cease: who may make cgroups is not to keep the agent walking.
const BUSY: Duration = Duration::from_millis(20);
/// Without a change for so long they have ceased.
const CALM: Duration = Duration::from_millis(50);
/// How often Vault is asked at least while it gives nothing.
const VAULT_DOWN: Duration = Duration::from_secs(10);
/// How often the files behind secrets are looked at.
const SECRETS: Duration = Duration::from_millis(400);

/// Keeps what is governed true to the host, for ever.
pub(super) async fn cgroups(agent: Arc<Agent>) -> io::Result<()> {
    let mut watch = Watch::new()?;
    let (mut known, mut pace) = (Vec::new(), Pace(SETTLE));
    let learned = lock(&agent.enrolments).learned();
    loop {
        let settling = Arc::clone(&agent);
        let walked = tokio::task::spawn_blocking(move || settling.settle()).await;
        let is_known = match walked {
            Ok(mut directories) => {
                watch.add(&directories);
                directories.sort_unstable();
                std::mem::replace(&mut known, directories) == known
            }
            Err(e) => {
                tracing::error!("looking for cgroups failed: {e}");
                true
            }
        };
        let since = Instant::now();
        // What was made between the walk and its watch was seen by neither: else it is walked again.
        if is_known {
            tokio::select! {
                _ = tokio::time::timeout(WALK, watch.changed()) => {}
                () = agent.containers.learned.notified() => {}
                () = learned.notified() => {}
            }
        }
        tokio::time::sleep(pace.after(since.elapsed())).await;
        watch.drain();
    }
}

/// How long the next pause between two walks is: there always is one, and the longer the more they follow each other.
struct Pace(Duration);

impl Pace {
    /// `calm`: for so long nothing had changed.
    fn after(&mut self, calm: Duration) -> Duration {
        if calm >= CALM {
            self.0 = SETTLE;
        }
        let next = (self.0 * 2).min(BUSY);
        std::mem::replace(&mut self.0, next)
    }
}

/// Takes up secrets that change on disk, for ever.
pub(super) async fn secrets(agent: Arc<Agent>) {
    let mut ticks = tokio::time::interval(SECRETS);
    ticks.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let looking = Arc::clone(&agent);
        if let Err(e) = tokio::task::spawn_blocking(move || looking.refresh_secrets()).await {
            tracing::error!("looking for secrets failed: {e}");
        }
    }
}

/// Takes up secrets that change in Vault, for ever.
pub(super) async fn vault(agent: Arc<Agent>) {
    let every = agent.config.vault.as_ref().map(|vault| vault.refresh);
    let Some(every) = every else {
        return std::future::pending().await;
    };
    let mut wait = match lock(&agent.applied).vault_stale {
        None => every,
        Some(_) => every.min(VAULT_DOWN),
    };
    loop {
        tokio::time::sleep(wait).await;
        let looking = Arc::clone(&agent);
        wait = match tokio::task::spawn_blocking(move || looking.refresh_vault()).await {
            Ok(true) => every,
            Ok(false) => every.min(VAULT_DOWN),
            Err(e) => {
                tracing::error!("looking for secrets in Vault failed: {e}");
                every
            }
        };
    }
}

/// Looks at executables that a hook asks for, for ever.
pub(super) async fn unseen(agent: Arc<Agent>, mut asked: mpsc::Receiver<(u32, FileState)>) {
    while let Some((process, file)) = asked.recv().await {
        let looking = Arc::clone(&agent);
        let met = tokio::task::spawn_blocking(move || {
            lock(&looking.enrolments).meet(process, file);
            looking.look_at_earlier();
        });
        if let Err(e) = met.await {
            tracing::error!("looking at an executable failed: {e}");
        }
    }
    std::future::pending().await
}

/// An inotify instance on cgroup directories. To the runtime it is a pipe: something to wait for and to read.
struct Watch {
    events: Receiver,
    full: bool,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            events: Receiver::from_owned_fd_unchecked(fd)?,
            full: false,
        })
    }

    /// Watches `directories`; watching one again changes nothing, and the kernel forgets those that are removed.
    fn add(&mut self, directories: &[PathBuf]) {
        for directory in directories {
            match self.add_one(directory) {
                Err(Errno::NOSPC) if !self.full => {
                    self.full = true;
                    tracing::warn!(
                        "no inotify watches left: new cgroups are found within a second instead of at once"
                    );
                }
                // It vanished, or the warning was given: the walk makes up for it.
                Ok(()) | Err(_) => {}
            }
        }
    }

    fn add_one(&self, directory: &Path) -> Result<(), Errno> {
        let flags =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(self.events.as_fd(), directory, flags).map(|_| ())
    }

    async fn changed(&self) {
        // An error is the same as a change: the walk looks for itself.
        let _ = self.events.readable().await;
    }

    /// What changed does not matter, the walk sees it; only that the queue is empty again.
    fn drain(&self) {
        let mut buffer = [0; 4096];
        while self.events.try_read(&mut buffer).is_ok_and(|n| n > 0) {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_makes_cgroups_without_end_does_not_keep_the_agent_walking() {
        let mut pace = Pace(SETTLE);
        let mut pauses = |calm| (0..6).map(|_| pace.after(calm)).collect::<Vec<_>>();
        let busy = [2, 4, 8, 16, 20, 20].map(Duration::from_millis);
        assert_eq!(pauses(Duration::ZERO), busy);
        assert_eq!(pauses(CALM), [SETTLE; 6]);
    }
}
