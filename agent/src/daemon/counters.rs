//! What the kernel counts of workloads, carried over the end of what counts it: the host starts anew, or the fence of one version is
//! removed for that of another.
use super::agent::lock;
use super::dirs;
use crate::kernel::{Counted, Fence, WorkloadAccount, counted_by_another};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

/// Below the state directory.
const FILE: &str = "counters.json";
/// Bytes of it at most.
const FILE_BYTES: u64 = 64 << 20;
/// Workloads whose accounts are carried on: as many as a fence has at most.
const CARRIED: usize = 1 << 14;

/// Fences of one boot that are told apart: what those have counted that were left before is what fences before this one have.
const OTHERS: usize = 4;

/// The file.
#[derive(Debug, Default, PartialEq, Serialize, Deserialize)]
struct Kept {
    /// The fence that counts.
    fence: String,
    /// What those before it have counted.
    before: Vec<WorkloadAccount>,
    /// What it had counted when this was written.
    since: Vec<WorkloadAccount>,
    /// Likewise, of others of this boot of the host, which may count again (`pin_dir` was changed): not in `before`. The last left last.
    #[serde(default)]
    others: Vec<Other>,
}

/// A fence that this agent does not stand by.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Other {
    fence: String,
    since: Vec<WorkloadAccount>,
}

/// What is counted, of all fences there were.
#[derive(Debug)]
pub(super) struct Counters {
    /// `None`: it cannot be told what is to be written there.
    path: Option<PathBuf>,
    /// What fences before this one have counted.
    before: BTreeMap<String, WorkloadAccount>,
    /// See [`Kept::others`].
    others: Vec<Other>,
    written: Mutex<Kept>,
    failing: AtomicBool,
}

impl Counters {
    /// Reads what an earlier agent kept, for the fence that stands now. Where it cannot be told which one that is, nothing is carried on
    /// and nothing is written: no counter keeps an agent from starting.
    pub(super) fn open(state_dir: &Path, fence: &Fence) -> Self {
        let path = state_dir.join(FILE);
        match fence.counted() {
            Ok(counted) => Self::of(path, &counted.fence),
            Err(error) => {
                tracing::error!("whose the kernel's counters are cannot be told: {error}");
                Self {
                    path: None,
                    before: BTreeMap::new(),
                    others: Vec::new(),
                    written: Mutex::default(),
                    failing: AtomicBool::new(true),
                }
            }
        }
    }

    fn of(path: PathBuf, fence: &str) -> Self {
        let kept = read(&path);
        let (mut before, mut others) = (by_name(kept.before), kept.others);
        if kept.fence != fence {
            others.push(Other {
                fence: kept.fence,
                since: kept.since,
            });
            // It has that itself, and what it has counted since.
            others.retain(|other| other.fence != fence);
            let over = others.len().saturating_sub(OTHERS);
            let (over, there): (Vec<_>, Vec<_>) = others
                .into_iter()
                .enumerate()
                .partition(|(place, other)| *place < over || boot(&other.fence) != boot(fence));
            for account in over.into_iter().flat_map(|(_, other)| other.since) {
                add(&mut before, account);
            }
            while before.len() > CARRIED {
                before.pop_first();
            }
            others = there.into_iter().map(|(_, other)| other).collect();
        }
        Self {
            path: Some(path),
            before,
            others,
            written: Mutex::default(),
            failing: AtomicBool::default(),
        }
    }

    /// Cannot what is counted be written?
    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }

    /// The account of each workload over all fences.
    pub(super) fn all(&self, fence: &Fence) -> Vec<WorkloadAccount> {
        self.with(fence.accounts())
    }

    fn with(&self, since: Vec<WorkloadAccount>) -> Vec<WorkloadAccount> {
        let mut all = self.before.clone();
        let others = self.others.iter().flat_map(|other| other.since.clone());
        for account in others.chain(since) {
            add(&mut all, account);
        }
        all.into_values().collect()
    }

    /// Writes down what was counted, if that is news.
    pub(super) fn write(&self, fence: &Fence) {
        if let Some(path) = &self.path {
            let kept = fence.counted().and_then(|counted| self.keep(path, counted));
            self.note(path, kept);
        }
    }

    fn keep(&self, path: &Path, Counted { fence, accounts }: Counted) -> io::Result<()> {
        let kept = Kept {
            fence,
            before: self.before.values().cloned().collect(),
            since: accounts,
            others: self.others.clone(),
        };
        let mut written = lock(&self.written);
        if *written != kept {
            dirs::publish(path, &serde_json::to_vec(&kept)?, 0o600)?;
            *written = kept;
        }
        Ok(())
    }

    /// It is tried again every few seconds.
    fn note(&self, path: &Path, kept: io::Result<()>) {
        let was_failing = self.failing.swap(kept.is_err(), Ordering::Relaxed);
        if let Err(error) = kept
            && !was_failing
        {
            tracing::error!("{}: {error}: make room", path.display());
        }
    }
}

/// Keeps what the fence of another version has counted, which somebody has to remove before this agent can start.
pub(super) fn keep_anothers(state_dir: &Path, pin_dir: &Path) {
    let Some(counted) = counted_by_another(pin_dir) else {
        tracing::error!(
            "what the fence in {} has counted since its agent ended cannot be read: the counters go on from what that wrote",
            pin_dir.display()
        );
        return;
    };
    let path = state_dir.join(FILE);
    let counters = Counters::of(path.clone(), &counted.fence);
    counters.note(&path, counters.keep(&path, counted));
}

/// Of the host, on which a fence stands or stood: its name begins with that.
fn boot(fence: &str) -> Option<&str> {
    fence.split_once('/').map(|(boot, _)| boot)
}

fn by_name(accounts: Vec<WorkloadAccount>) -> BTreeMap<String, WorkloadAccount> {
    let named = accounts.into_iter();
    named
        .map(|account| (account.workload.clone(), account))
        .collect()
}

fn add(all: &mut BTreeMap<String, WorkloadAccount>, account: WorkloadAccount) {
    match all.get_mut(&account.workload) {
        Some(known) => known.add(&account),
        None => drop(all.insert(account.workload.clone(), account)),
    }
}

/// What was kept. What is damaged is put aside, for people, and told.
fn read(path: &Path) -> Kept {
    let error = match read_file(path) {
        Ok(kept) => return kept,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Kept::default(),
        Err(error) => error,
    };
    let aside = path.with_extension("damaged");
    let moved = std::fs::rename(path, &aside).is_ok();
    tracing::error!(
        "{}: {error}: what was counted before this fence stood is not known{}",
        path.display(),
        match moved {
            true => format!("; the file is {} now", aside.display()),
            false => String::new(),
        }
    );
    Kept::default()
}

fn read_file(path: &Path) -> io::Result<Kept> {
    let mut text = Vec::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES)
        .read_to_end(&mut text)?;
    Ok(serde_json::from_slice(&text)?)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::kernel::Counters as Traffic;

    fn account(workload: &str, connections: u64, refused: u64) -> WorkloadAccount {
        WorkloadAccount {
            workload: workload.to_owned(),
            connections,
            refusals: BTreeMap::from([("udp".to_owned(), refused)]),
            counters: Traffic {
                bytes_out: 10 * connections,
                ..Traffic::default()
            },
        }
    }

    fn counted(fence: &str, accounts: &[WorkloadAccount]) -> Counted {
        Counted {
            fence: fence.to_owned(),
            accounts: accounts.to_vec(),
        }
    }

    #[test]
    fn what_is_counted_goes_on_over_fences_and_is_not_counted_twice() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let of = |fence| Counters::of(path.clone(), fence);
        let first = of("a");
        let now = [account("job", 3, 1), account("other", 1, 0)];
        assert_eq!(first.with(now.to_vec()), now);
        first.keep(&path, counted("a", &now)).unwrap();
        // Another agent, over the same fence: the kernel has it all.
        let more = [account("job", 4, 1), account("other", 1, 0)];
        assert_eq!(of("a").with(more.to_vec()), more);
        of("a").keep(&path, counted("a", &more)).unwrap();
        for _ in 0..2 {
            let next = of("b");
            let all = next.with(vec![account("job", 2, 5)]);
            assert_eq!(all, [account("job", 6, 6), account("other", 1, 0)]);
            next.keep(&path, counted("b", &[account("job", 2, 5)]))
                .unwrap();
        }
        let third = of("c").with(vec![account("new", 1, 1)]);
        let all = [
            account("job", 6, 6),
            account("new", 1, 1),
            account("other", 1, 0),
        ];
        assert_eq!(third, all);
    }

    /// The pins of an instance may be moved, and back, while the host is up.
    #[test]
    fn what_a_fence_has_counted_is_not_counted_twice_when_it_is_stood_by_again() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        let stand_by = |fence: &str, count| {
            let counters = Counters::of(path.clone(), fence);
            let now = [account("job", count, 0)];
            counters.keep(&path, counted(fence, &now)).unwrap();
            let all = counters.with(now.to_vec());
            all.iter().map(|account| account.connections).sum::<u64>()
        };
        assert_eq!(stand_by("boot/1", 3), 3);
        assert_eq!(stand_by("boot/2", 10), 13);
        assert_eq!(stand_by("boot/1", 4), 14);
        assert_eq!(stand_by("boot/2", 11), 15);
        // Those that are told apart are bounded, and no other boot's fence counts again.
        for fence in 3..30 {
            assert_eq!(stand_by(&format!("boot/{fence}"), 1), 13 + fence);
        }
        assert_eq!(stand_by("later/1", 5), 47);
        assert!(Counters::of(path.clone(), "later/1").others.is_empty());
    }

    #[test]
    fn what_is_damaged_is_put_aside_and_what_cannot_be_written_is_told() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(FILE);
        for damaged in ["", "[{", "{\"fence\":7}"] {
            std::fs::write(&path, damaged).unwrap();
            assert!(Counters::of(path.clone(), "a").before.is_empty());
            let aside = path.with_extension("damaged");
            assert_eq!(std::fs::read_to_string(aside).unwrap(), damaged);
        }
        let counters = Counters::of(path.clone(), "a");
        let keep = || {
            counters.note(
                &path,
                counters.keep(&path, counted("a", &[account("job", 1, 0)])),
            )
        };
        std::fs::create_dir(&path).unwrap();
        keep();
        assert!(counters.is_failing());
        std::fs::remove_dir(&path).unwrap();
        keep();
        assert!(!counters.is_failing());
    }

    #[test]
    fn what_is_carried_is_bounded() {
        let folder = tempfile::tempdir().unwrap();
        let all: Vec<_> = (0..CARRIED + 5)
            .map(|n| account(&format!("{n:06}"), 1, 0))
            .collect();
        let path = folder.path().join(FILE);
        let counters = Counters::of(path.clone(), "boot/1");
        counters.keep(&path, counted("boot/1", &all)).unwrap();
        assert_eq!(Counters::of(path.clone(), "later/1").before.len(), CARRIED);
    }
}
