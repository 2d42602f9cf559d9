//! Taking a world down: by `Drop`, by signal, and what an earlier run that was killed left.
use crate::netns;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError, Weak};

/// Directories of worlds are called this, their maker's pid, a dash and a number.
const PREFIX: &str = "tollgate-world-";

static MADE: AtomicU32 = AtomicU32::new(0);
static INTERRUPTED: AtomicBool = AtomicBool::new(false);
static STANDING: Mutex<Vec<Weak<Ground>>> = Mutex::new(Vec::new());

/// What a world stands on: its directory and the inodes of its network namespaces.
#[derive(Debug)]
pub struct Ground {
    directory: PathBuf,
    namespaces: Mutex<Vec<u64>>,
    cleared: AtomicBool,
}

impl Ground {
    /// A fresh directory in the system's place for temporary files; known to the signal handler.
    ///
    /// # Errors
    /// The directory cannot be made.
    pub fn new() -> Result<Arc<Self>> {
        sweep();
        handle_signals();
        let number = MADE.fetch_add(1, Ordering::Relaxed);
        let name = format!("{PREFIX}{}-{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        std::fs::create_dir(&directory)
            .with_context(|| format!("cannot make {}", directory.display()))?;
        let ground = Arc::new(Self {
            directory,
            namespaces: Mutex::default(),
            cleared: AtomicBool::new(false),
        });
        let mut standing = STANDING.lock().unwrap_or_else(PoisonError::into_inner);
        standing.retain(|ground| ground.strong_count() > 0);
        standing.push(Arc::downgrade(&ground));
        Ok(ground)
    }

    /// The directory.
    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Remembers a network namespace, also on disk for a later sweep.
    ///
    /// # Errors
    /// The note cannot be written.
    pub fn holds(&self, inode: u64) -> Result<()> {
        let mut namespaces = self
            .namespaces
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        namespaces.push(inode);
        let text: String = namespaces
            .iter()
            .map(|inode| format!("{inode}\n"))
            .collect();
        std::fs::write(self.directory.join("namespaces"), text)?;
        Ok(())
    }

    /// Kills every process in the namespaces and removes the directory. The second time it does nothing.
    pub fn clear(&self) {
        if !self.cleared.swap(true, Ordering::SeqCst) {
            let namespaces = self
                .namespaces
                .lock()
                .unwrap_or_else(PoisonError::into_inner);
            clear(&namespaces, &self.directory);
        }
    }
}

/// Kills what lives in the namespaces, and removes its cgroups and the directory.
fn clear(namespaces: &[u64], directory: &Path) {
    let cgroups = cgroups_of_runs(&netns::inhabitants(namespaces));
    netns::kill_all(namespaces);
    for cgroup in cgroups {
        let _ = std::fs::remove_dir(&cgroup);
    }
    // The parent goes when it is empty: other agents may have theirs in it.
    let _ = cgroup_root().map(|root| std::fs::remove_dir(root.join("tollgate")));
    let _ = std::fs::remove_dir_all(directory);
}

/// Where cgroup2 is mounted.
fn cgroup_root() -> Option<&'static Path> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    roots
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists())
}

/// Whether a signal is ending this process: what fails then fails for that.
pub fn interrupted() -> bool {
    INTERRUPTED.load(Ordering::SeqCst)
}

/// Directories of the cgroups that `tollgate run` made for these processes.
fn cgroups_of_runs(pids: &[u32]) -> Vec<PathBuf> {
    let roots = ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"].map(Path::new);
    let root = roots
        .into_iter()
        .find(|root| root.join("cgroup.controllers").exists());
    let Some(root) = root else { return Vec::new() };
    let mut found: Vec<_> = pids
        .iter()
        .filter_map(|pid| std::fs::read_to_string(format!("/proc/{pid}/cgroup")).ok())
        .filter_map(|text| {
            text.lines()
                .find_map(|l| l.strip_prefix("0::/").map(str::to_owned))
        })
        .filter(|path| path.starts_with("tollgate/run-"))
        .map(|path| root.join(path))
        .collect();
    found.sort();
    found.dedup();
    found
}

impl Drop for Ground {
    fn drop(&mut self) {
        self.clear();
    }
}

/// On SIGINT, SIGTERM and SIGHUP, clears what stands and exits with 128 and the signal.
fn handle_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
            return;
        };
        std::thread::spawn(move || {
            if let Some(signal) = signals.forever().next() {
                INTERRUPTED.store(true, Ordering::SeqCst);
                let standing: Vec<_> = STANDING
                    .lock()
                    .unwrap_or_else(PoisonError::into_inner)
                    .iter()
                    .filter_map(Weak::upgrade)
                    .collect();
                for ground in standing {
                    ground.clear();
                }
                std::process::exit(128 + signal);
            }
        });
    });
}

/// Clears what was left by runs whose process is gone.
fn sweep() {
    for entry in std::fs::read_dir(std::env::temp_dir())
        .into_iter()
        .flatten()
        .flatten()
    {
        let name = entry.file_name();
        let owner = name
            .to_str()
            .and_then(|n| n.strip_prefix(PREFIX)?.split_once('-'));
        let Some((pid, _)) = owner else { continue };
        if Path::new("/proc").join(pid).exists() {
            continue;
        }
        let listed = std::fs::read_to_string(entry.path().join("namespaces")).unwrap_or_default();
        let namespaces: Vec<_> = listed
            .lines()
            .filter_map(|line| line.parse().ok())
            .collect();
        clear(&namespaces, &entry.path());
    }
}
