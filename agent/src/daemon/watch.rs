//! Watches the host: cgroups that come and go, and secrets that are written.
use super::agent::{Agent, lock};
use super::unseen::Unseen;
use super::vital;
use rustix::fs::inotify::{self, CreateFlags, WatchFlags};
use rustix::io::Errno;
use std::collections::HashSet;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use tokio::net::unix::pipe::Receiver;

/// The tree is walked this often even if nothing was heard: runs that are over are removed then, and a watch that
/// could not be set is made up for.
const WALK: Duration = Duration::from_secs(1);
/// How soon after a change the tree is walked: many cgroups are made at once.
const SETTLE: Duration = Duration::from_millis(2);
/// How soon where changes do not cease: who may make cgroups is not to keep the agent walking.
const BUSY: Duration = Duration::from_millis(20);
/// So many times as long as the walk was, before the next begins, if that is not longer than [`WALK`]: of time, walks have a quarter
/// at most.
const REST: u32 = 3;
/// Without a change for so long they have ceased.
const CALM: Duration = Duration::from_millis(50);
/// How often Vault is asked at least while it gives nothing.
const VAULT_DOWN: Duration = Duration::from_secs(10);
/// How often the files behind secrets are looked at.
const SECRETS: Duration = Duration::from_millis(400);

/// Keeps what is governed true to the host, until that panics.
pub(super) async fn cgroups(agent: Arc<Agent>) {
    let (mut watch, mut known, mut pace) = (None, Vec::new(), Pace(SETTLE));
    let learned = lock(&agent.enrolments).learned();
    loop {
        // Without one, the walks alone find what is new.
        watch = watch.or_else(|| Watch::new().ok().map(Arc::new));
        let (settling, watching) = (Arc::clone(&agent), watch.clone());
        let began = Instant::now();
        let walked = vital::blocking("looking for cgroups", move || {
            let directories = settling.settle();
            let is_whole = watching.is_some_and(|watch| watch.set(&directories));
            settling.note_watched(is_whole);
            directories
        });
        let Some(mut directories) = walked.await else {
            return;
        };
        directories.sort_unstable();
        let is_known = std::mem::replace(&mut known, directories) == known;
        let (since, took) = (Instant::now(), began.elapsed());
        let changed = async {
            match &watch {
                Some(watch) => watch.changed().await,
                None => std::future::pending().await,
            }
        };
        // What was made between the walk and its watch was seen by neither: else it is walked again.
        if is_known {
            tokio::select! {
                _ = tokio::time::timeout(WALK, changed) => {}
                () = agent.containers.learned.notified() => {}
                () = learned.notified() => {}
            }
        }
        tokio::time::sleep(pace.after(since.elapsed(), took)).await;
        if let Some(watch) = &watch {
            watch.drain();
        }
    }
}

impl Agent {
    /// Notes whether new cgroups are heard of at once.
    fn note_watched(&self, is_whole: bool) {
        if self.unwatched.swap(!is_whole, Ordering::Relaxed) != is_whole {
            return;
        }
        match is_whole {
            true => tracing::info!("all cgroups are watched again"),
            false => tracing::warn!(
                "not all cgroups can be watched: new ones are found within a second instead of at once; raise fs.inotify.max_user_instances and fs.inotify.max_user_watches"
            ),
        }
    }
}

/// How long the next pause between two walks is: there always is one, and the longer the more they follow each other, and the
/// longer they take.
struct Pace(Duration);

impl Pace {
    /// `calm`: for so long nothing had changed since a walk that `took` so long.
    fn after(&mut self, calm: Duration, took: Duration) -> Duration {
        if calm >= CALM {
            self.0 = SETTLE;
        }
        let next = (self.0 * 2).min(BUSY);
        let pause = std::mem::replace(&mut self.0, next);
        pause.max((took * REST).saturating_sub(calm)).min(WALK)
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

/// Looks at executables that a hook asks for, until that panics.
pub(super) async fn unseen(agent: Arc<Agent>, waiting: Arc<Unseen>) {
    loop {
        let (process, file) = waiting.next().await;
        let looking = Arc::clone(&agent);
        let met = vital::blocking("looking at an executable", move || {
            lock(&looking.enrolments).meet(process, file);
            looking.look_at_earlier_if_nobody_does();
        });
        if met.await.is_none() {
            return;
        }
    }
}

/// An inotify instance on cgroup directories. To the runtime it is a pipe: something to wait for and to read.
struct Watch {
    events: Receiver,
    /// Numbers of the directories.
    set: Mutex<HashSet<i32>>,
}

impl Watch {
    fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        Ok(Self {
            events: Receiver::from_owned_fd_unchecked(fd)?,
            set: Mutex::default(),
        })
    }

    /// Watches `directories`, and nothing else any more: the kernel does not forget a cgroup that is removed while it is watched.
    /// Whether all are. To watch one again changes nothing, and is how it is known that it is the same one. Blocks.
    fn set(&self, directories: &[PathBuf]) -> bool {
        let (mut set, mut is_whole) = (HashSet::with_capacity(directories.len()), true);
        for directory in directories {
            match self.add(directory) {
                Ok(number) => {
                    set.insert(number);
                }
                // It vanished.
                Err(Errno::NOENT | Errno::NODEV) => {}
                Err(_) => is_whole = false,
            }
        }
        let mut before = lock(&self.set);
        for gone in before.difference(&set) {
            let _ = inotify::remove_watch(self.events.as_fd(), *gone);
        }
        *before = set;
        is_whole
    }

    fn add(&self, directory: &Path) -> Result<i32, Errno> {
        let flags =
            WatchFlags::CREATE | WatchFlags::DELETE | WatchFlags::MOVED_TO | WatchFlags::ONLYDIR;
        inotify::add_watch(self.events.as_fd(), directory, flags)
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
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    #[test]
    fn who_makes_cgroups_without_end_does_not_keep_the_agent_walking() {
        let mut pace = Pace(SETTLE);
        let mut pauses = |calm| {
            let pauses = (0..6).map(|_| pace.after(calm, Duration::ZERO));
            pauses.collect::<Vec<_>>()
        };
        let busy = [2, 4, 8, 16, 20, 20].map(Duration::from_millis);
        assert_eq!(pauses(Duration::ZERO), busy);
        assert_eq!(pauses(CALM), [SETTLE; 6]);
        // Who has made many, neither.
        let long = Duration::from_millis(100);
        assert_eq!(pace.after(Duration::ZERO, long), 3 * long);
        assert_eq!(pace.after(long, long), 2 * long);
        assert_eq!(pace.after(4 * long, long), SETTLE);
        // As soon as ever, where a walk had to wait.
        assert_eq!(pace.after(Duration::ZERO, 10 * WALK), WALK);
    }

    #[tokio::test]
    async fn what_is_gone_is_watched_no_more() {
        let folder = tempfile::tempdir().unwrap();
        let all = ["a", "b", "c"].map(|name| folder.path().join(name));
        let [a, b, c] = all.each_ref();
        for directory in [a, b] {
            std::fs::create_dir(directory).unwrap();
        }
        let watch = Watch::new().unwrap();
        let watched = || {
            let info = format!("/proc/self/fdinfo/{}", watch.events.as_raw_fd());
            let info = std::fs::read_to_string(info).unwrap();
            let lines = info.lines().filter(|line| line.starts_with("inotify"));
            lines.count()
        };
        for (directories, count) in [(&all[..2], 2), (&all[..2], 2), (&all[1..], 1), (&all, 2)] {
            assert!(watch.set(directories));
            assert_eq!(watched(), count);
        }
        watch.drain();
        std::fs::create_dir(b.join("new")).unwrap();
        watch.changed().await;
        std::fs::write(c, "").unwrap();
        assert!(!watch.set(&all));
        assert!(watch.set(&all[..2]));
    }
}
