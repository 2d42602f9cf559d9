//! Where files lie that processes have run, and run no more.
use super::digests::{At, Held, changed, device_of, name_of, run_by, running, state};
use super::mounts::{mounts, table};
use crate::kernel::FileState;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;

/// Processes by whose view of the mounts one file is looked for: many may have run it, and wait for it.
const VIEWS: u32 = 8;

/// A file that somebody runs: its inode, and when it was changed. Its device may be one that only a hook could tell.
type Run = (u64, (i64, u32));

/// What one look at the host has found: who waits is not looked for by each.
#[derive(Default)]
pub(super) struct Places {
    /// Who runs which file.
    running: Option<HashMap<Run, u32>>,
    /// In how many views each was looked for, and where it is.
    found: HashMap<FileState, (u32, Option<At>)>,
}

impl Places {
    /// Where a file can be read that `process` has run: what somebody runs, or what lies where it was run from. `path`: that, within its
    /// filesystem.
    pub(super) fn of(
        &mut self,
        process: u32,
        file: &FileState,
        path: impl FnOnce() -> Option<String>,
    ) -> Option<At> {
        let runner = self.running().get(&(file.inode, file.changed)).copied();
        let is_it = |state: &FileState| (state.inode, state.changed) == (file.inode, file.changed);
        // It may run something else by now.
        let runner = runner.and_then(running).filter(|(_, state)| is_it(state));
        if let Some((at, _)) = runner {
            return Some(at);
        }
        let (views, found) = self.found.entry(*file).or_default();
        if found.is_none() && *views < VIEWS {
            *views += 1;
            *found = path().and_then(|path| held(process, file, &path));
        }
        found.clone()
    }

    fn running(&mut self) -> &HashMap<Run, u32> {
        self.running.get_or_insert_with(|| {
            let all = crate::kernel::processes().into_iter();
            let runs = |process| {
                let found = run_by(process)?;
                Some(((found.stx_ino, changed(&found)), process))
            };
            all.filter_map(runs).collect()
        })
    }
}

/// A file, as the agent's view of the mounts has it or the process's.
fn held(process: u32, file: &FileState, path: &str) -> Option<At> {
    let own = held_in("self", "/", process, file, path);
    own.or_else(|| {
        let (of, root) = (process.to_string(), format!("/proc/{process}/root"));
        held_in(&of, &root, process, file, path)
    })
}

fn held_in(view: &str, root: &str, of: u32, file: &FileState, path: &str) -> Option<At> {
    let table = table(view).ok()?;
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    let root = rustix::fs::open(root, flags | OFlags::DIRECTORY, Mode::empty()).ok()?;
    // Whose names are not all known to the kernel itself would be asked for them, and might never answer.
    let links = ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT | ResolveFlags::CACHED;
    let open = |path| rustix::fs::openat2(&root, path, flags, Mode::empty(), links).ok();
    let is_it = |open: OwnedFd| {
        let (found, name) = name_of(&open)?;
        let is_it = state(&found, device_of(&found, of)) == *file;
        is_it.then(|| At::Held(Held(Arc::new(open)), name))
    };
    let mut found = mounts(&table)
        .filter_map(|mount| mount.place_of(file.device, Path::new(path)))
        .filter_map(open)
        .filter_map(is_it);
    found.next()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// All who wait for it ask.
    #[test]
    fn a_file_that_is_nowhere_is_looked_for_in_few_views() {
        let nowhere = FileState {
            device: 1,
            inode: u64::MAX,
            changed: (1, 1),
        };
        let (mut places, mut looked) = (Places::default(), 0);
        for process in 0..10_000 {
            let path = || {
                looked += 1;
                None
            };
            assert_eq!(places.of(process, &nowhere, path), None);
        }
        assert_eq!(looked, VIEWS);
    }
}
