//! Cgroups of `tollgate run`: how they are made, told from others, and removed.
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Where cgroups of `tollgate run` are, below the cgroup2 root.
pub(super) const RUNS: &str = "/tollgate";
/// A run's cgroup that is empty this long after the agent first saw it, with nobody about to fill it, is removed.
pub(super) const RUN_GRACE: Duration = Duration::from_secs(10);

/// Makes a run's cgroup. Another agent may remove their common parent at the same time, for being empty.
pub(super) fn make_run(root: &Path, directory: &Path) -> std::io::Result<()> {
    let parent = root.join(RUNS.trim_start_matches('/'));
    let make = || std::fs::create_dir_all(&parent).and_then(|()| std::fs::create_dir(directory));
    make().or_else(|_| make())?;
    // Runtimes read their limits there, as whoever the command runs as.
    std::fs::set_permissions(directory, std::fs::Permissions::from_mode(0o755))
}

/// Removes cgroups of runs that are over and whose agent was killed, whichever it was: empty ones that were made a while
/// ago. One that is in use, or about to be, is neither.
pub(super) fn sweep_orphans(root: &Path) {
    let runs = root.join(RUNS.trim_start_matches('/'));
    for entry in std::fs::read_dir(&runs)
        .into_iter()
        .flatten()
        .filter_map(Result::ok)
    {
        let made = entry.file_name().to_str().and_then(made_at);
        let age = made.and_then(|at| std::time::SystemTime::now().duration_since(at).ok());
        if age.is_some_and(|age| age > RUN_GRACE) && processes(&entry.path()) == 0 {
            let _ = remove_tree(&entry.path(), 0);
        }
    }
    let _ = std::fs::remove_dir(runs);
}

/// When a run's cgroup was made: its name says so.
fn made_at(name: &str) -> Option<std::time::SystemTime> {
    let id: uuid::Uuid = name.strip_prefix("run-")?.parse().ok()?;
    let (seconds, nanoseconds) = id.get_timestamp()?.to_unix();
    std::time::UNIX_EPOCH.checked_add(Duration::new(seconds, nanoseconds))
}

pub(super) fn is_run(cgroup: &str) -> bool {
    cgroup
        .strip_prefix(RUNS)
        .is_some_and(|rest| rest.starts_with("/run-"))
}

pub(super) fn alive(pid: i32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}

/// Processes in a cgroup and below it.
pub(super) fn processes(directory: &Path) -> usize {
    let own = std::fs::read_to_string(directory.join("cgroup.procs"))
        .map_or(0, |text| text.lines().count());
    let children = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(Result::ok);
    let below = children
        .filter(|e| e.file_type().is_ok_and(|t| t.is_dir()))
        .map(|e| processes(&e.path()));
    own.saturating_add(below.sum())
}

pub(super) fn remove_tree(directory: &Path, depth: usize) -> std::io::Result<()> {
    if depth < 32 {
        let children = std::fs::read_dir(directory)
            .into_iter()
            .flatten()
            .filter_map(Result::ok);
        for child in children.filter(|e| e.file_type().is_ok_and(|t| t.is_dir())) {
            remove_tree(&child.path(), depth + 1)?;
        }
    }
    match std::fs::remove_dir(directory) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(e),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_runs_name_says_when_it_was_made() {
        let name = format!("run-{}", uuid::Uuid::now_v7().simple());
        let age =
            made_at(&name).and_then(|at| std::time::SystemTime::now().duration_since(at).ok());
        assert!(age.is_some_and(|age| age < Duration::from_secs(5)));
        assert_eq!(made_at("run-1"), None);
        assert_eq!(made_at("other"), None);
    }
}
