//! Cgroups of `tollgate run`: how they are made, told from others, and removed.
use super::cgroups::is_gone;
use rustix::fs::{self, AtFlags, Dir, FileType, Mode, OFlags};
use std::ffi::CString;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

/// Where cgroups of `tollgate run` are, below the cgroup2 root.
pub(super) const RUNS: &str = "/tollgate";
/// A run's cgroup that is empty this long after the agent first saw it, with nobody about to fill it, is removed.
pub(super) const RUN_GRACE: Duration = Duration::from_secs(10);
/// Steps within a run's cgroups before removing them is left for later.
const STEPS: usize = 1 << 20;

/// Makes a run's cgroup. Another agent may remove their common parent at the same time, for being empty.
pub(super) fn make_run(root: &Path, directory: &Path) -> io::Result<()> {
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
        if age.is_some_and(|age| age > RUN_GRACE) && left(&entry.path()) == 0 {
            let _ = remove_tree(&entry.path());
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

/// How many processes a run has left; one where there may be some that cannot be counted.
///
/// Whoever owns the run makes cgroups below it, deeper than any path goes and as many as he likes, and moves from one into another while
/// they are gone through. So it is the kernel's word for all of them that counts, and processes are counted to be told.
pub(super) fn left(directory: &Path) -> usize {
    match is_populated(directory) {
        Ok(false) => 0,
        Ok(true) | Err(_) => processes(directory).max(1),
    }
}

/// Whether anybody is in a cgroup or below it; nobody is in one that is gone.
fn is_populated(directory: &Path) -> io::Result<bool> {
    match std::fs::read_to_string(directory.join("cgroup.events")) {
        Ok(events) => Ok(!events.lines().any(|line| line == "populated 0")),
        Err(e) if is_gone(&e) => Ok(false),
        Err(e) => Err(e),
    }
}

/// Processes in a cgroup and below it, as far as paths lead.
fn processes(directory: &Path) -> usize {
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

/// Removes a cgroup with all below it; the kernel removes none that somebody is in. By descriptors, from one directory into the next:
/// they may lie deeper than a path goes.
pub(super) fn remove_tree(directory: &Path) -> io::Result<()> {
    let emptied = empty(directory);
    // Only that it is gone itself is enough: of what was below, others may remove some at the same moment.
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(()),
        Err(e) if is_gone(&e) => Ok(()),
        Err(e) => Err(emptied.err().filter(|e| !is_gone(e)).unwrap_or(e)),
    }
}

/// Removes what is below a cgroup.
fn empty(directory: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let mut here = fs::open(directory, flags, Mode::empty())?;
    let mut above: Vec<CString> = Vec::new();
    for _ in 0..STEPS {
        if let Some(name) = a_directory_in(&here)? {
            here = fs::openat(&here, &name, flags, Mode::empty())?;
            above.push(name);
            continue;
        }
        let Some(name) = above.pop() else {
            return Ok(());
        };
        here = fs::openat(&here, c"..", flags, Mode::empty())?;
        fs::unlinkat(&here, &name, AtFlags::REMOVEDIR)?;
    }
    Err(io::Error::other("there is no end of cgroups in it"))
}

fn a_directory_in(directory: &OwnedFd) -> io::Result<Option<CString>> {
    for entry in Dir::read_from(directory)? {
        let entry = entry?;
        let name = entry.file_name();
        if entry.file_type() == FileType::Directory && name != c"." && name != c".." {
            return Ok(Some(name.to_owned()));
        }
    }
    Ok(None)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    /// Where there is no such file there is no cgroup; where it cannot be read there may be anybody.
    #[test]
    fn what_cannot_be_counted_counts() {
        let folder = tempfile::tempdir().unwrap();
        let (run, events) = (folder.path(), folder.path().join("cgroup.events"));
        assert_eq!(left(run), 0);
        std::fs::write(&events, "populated 0\nfrozen 0\n").unwrap();
        std::fs::write(run.join("cgroup.procs"), "1\n2\n").unwrap();
        assert_eq!(left(run), 0);
        std::fs::write(&events, "populated 1\nfrozen 0\n").unwrap();
        assert_eq!(left(run), 2);
        std::fs::remove_file(run.join("cgroup.procs")).unwrap();
        assert_eq!(left(run), 1);
        std::fs::remove_file(&events).unwrap();
        std::fs::create_dir(&events).unwrap();
        assert_eq!(left(run), 1);
    }

    #[test]
    fn what_lies_deeper_than_any_path_is_removed() {
        let folder = tempfile::tempdir().unwrap();
        let run = folder.path().join("run");
        std::fs::create_dir(&run).unwrap();
        let flags = OFlags::RDONLY | OFlags::DIRECTORY;
        let mut here = fs::open(&run, flags, Mode::empty()).unwrap();
        let name = "d".repeat(200);
        for _ in 0..40 {
            for name in [&*name, "beside"] {
                fs::mkdirat(&here, name, Mode::RWXU).unwrap();
            }
            here = fs::openat(&here, &*name, flags, Mode::empty()).unwrap();
        }
        remove_tree(&run).unwrap();
        assert!(!run.exists());
        remove_tree(&run).unwrap();
        // What is no directory stays, as a cgroup does that somebody is in.
        std::fs::create_dir(&run).unwrap();
        std::fs::write(run.join("somebody"), "").unwrap();
        assert!(remove_tree(&run).is_err());
    }

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
