//! What a run may leave behind, counted before and after.
use crate::sh;
use std::collections::BTreeSet;
use std::path::Path;

/// Processes, mounts, network namespaces, pins and cgroups of ours that exist at one moment.
pub(super) struct Snapshot(BTreeSet<String>);

impl Snapshot {
    /// Looks now.
    pub(super) fn take() -> Self {
        let mut found = BTreeSet::new();
        found.extend(processes());
        found.extend(mounts());
        for directory in ["/run/netns", "/sys/fs/bpf", "/tmp"] {
            found.extend(entries(Path::new(directory)).filter(|path| path.contains("tollgate")));
        }
        for root in ["/sys/fs/cgroup", "/sys/fs/cgroup/unified"] {
            found.extend(entries(Path::new(root)).filter(|path| path.contains("tollgate")));
        }
        Self(found)
    }

    /// What is there now and was not before.
    pub(super) fn left_behind(&self) -> Option<String> {
        let new: Vec<_> = Self::take()
            .0
            .difference(&self.0)
            .filter(|it| !others(it))
            .cloned()
            .collect();
        (!new.is_empty()).then(|| new.join(", "))
    }
}

fn entries(directory: &Path) -> impl Iterator<Item = String> + use<> {
    let entries = std::fs::read_dir(directory).into_iter().flatten().flatten();
    entries.map(|entry| entry.path().to_string_lossy().into_owned())
}

/// Processes that run something built here (not us), by pid and program.
fn processes() -> impl Iterator<Item = String> {
    let built = sh::root().join("target");
    let own = std::process::id().to_string();
    entries(Path::new("/proc")).filter_map(move |directory| {
        let pid = Path::new(&directory).file_name()?.to_str()?.to_owned();
        let program = std::fs::read_link(Path::new(&directory).join("exe")).ok()?;
        (pid != own && program.starts_with(&built))
            .then(|| format!("process {pid} ({})", program.display()))
    })
}

fn mounts() -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let points = table.lines().filter_map(|line| line.split(' ').nth(1));
    points
        .filter(|point| point.contains("tollgate") || *point == "/sys/fs/bpf")
        .map(|p| format!("mount {p}"))
        .collect()
}

/// Whether a name that carries its maker's pid belongs to a process that still lives: another run.
fn others(name: &str) -> bool {
    let numbers = name
        .split(|c: char| !c.is_ascii_digit())
        .filter(|n| !n.is_empty());
    !name.starts_with("process")
        && numbers
            .into_iter()
            .any(|n| Path::new("/proc").join(n).exists())
}
