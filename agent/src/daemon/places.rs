//! Where files lie that processes have run, and run no more. Who runs many and takes them away has all of them looked for: others are
//! not to wait for that.
use super::digests::{At, Held, changed, device_of, name_of, own_device, run_by, runs, state};
use super::mounts::{Mount, are_too_many, mounts, table};
use crate::kernel::{FileState, bounded};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use std::collections::{HashMap, HashSet};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Views of the mounts in which one file is looked for: many may have run it, and wait for it.
const VIEWS: usize = 8;
/// How long what was found is not looked for again.
const FRESH: Duration = Duration::from_millis(200);
/// Of that, how long files are looked for in the agent's view of the mounts, and how long in others', whose owners may make that as slow
/// as they like. Whoever has more of them waits for the next time.
const SEARCH: Duration = Duration::from_millis(30);
/// Files that are held at once: each has a descriptor.
const HELD: usize = 64;
/// Mount tables that are remembered, and how long.
const TABLES: usize = 32;
const MOUNTED: Duration = Duration::from_secs(5);
/// Mounts on which one file is looked for: the same may be mounted again and again.
const MOUNTS: usize = 64;
/// How soon a file is looked for again in a view in which it was not found.
const AGAIN: Duration = Duration::from_secs(10);

/// A file that somebody runs: its inode, and when it was changed. Its device may be one that only a hook could tell.
type Run = (u64, (i64, u32));

/// The device that `stat` says of what a process runs, and that process.
type Runner = (u32, u32);
/// Of those with that device and of others, how many are asked whether they run a file.
const RUNNERS: usize = 8;

/// A view of the mounts: the mount and the inode of its root directory.
type View = (u64, u64);

/// What looks at the host have found of late.
#[derive(Debug, Default)]
pub(super) struct Places {
    begun: Option<Instant>,
    /// Of [`SEARCH`], in the agent's view and in others'.
    spent: [Duration; 2],
    /// Who runs which file.
    running: Option<HashMap<Run, Vec<Runner>>>,
    found: HashMap<FileState, At>,
    /// Which view each process has.
    views: HashMap<u32, Result<Option<View>, Silent>>,
    tables: HashMap<View, (Instant, Table)>,
    /// Since when each was looked for in vain, and in which views.
    sought: HashMap<FileState, (Instant, HashSet<View>)>,
}

/// What is mounted in a view, by device.
type Table = HashMap<u32, Vec<Mount>>;

/// What is known of where a file is.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Place {
    At(At),
    Nowhere,
    /// There was no time to look for it.
    NotYet,
}

impl Places {
    /// Before a look: what was found some time ago counts no more.
    pub(super) fn look_again(&mut self) {
        if self.begun.is_some_and(|begun| begun.elapsed() < FRESH) {
            return;
        }
        let mut sought = std::mem::take(&mut self.sought);
        sought.retain(|_, (since, _)| since.elapsed() < AGAIN);
        let mut tables = std::mem::take(&mut self.tables);
        tables.retain(|_, (read, _)| read.elapsed() < MOUNTED);
        *self = Self {
            begun: Some(Instant::now()),
            sought,
            tables,
            ..Self::default()
        };
    }

    /// Forgets files that nobody asks for any more.
    pub(super) fn keep(&mut self, is_wanted: impl Fn(&FileState) -> bool) {
        self.sought.retain(|file, _| is_wanted(file));
    }

    /// Where a file can be read that `process` has run: what somebody runs, or what lies where it was run from. `path`: that, within its
    /// filesystem.
    pub(super) fn of(
        &mut self,
        process: u32,
        file: &FileState,
        path: impl FnOnce() -> Option<String>,
    ) -> Place {
        if let Some(at) = self.found.get(file) {
            return Place::At(at.clone());
        }
        let place = match self.run_still(file) {
            Some(at) => Place::At(at),
            None => self.seek(process, file, path),
        };
        if let Place::At(at) = &place {
            self.found.insert(*file, at.clone());
        }
        place
    }

    /// Where somebody runs a file. Others may run one of another filesystem that says the same of it.
    fn run_still(&mut self, file: &FileState) -> Option<At> {
        let running = self.running.get_or_insert_with(|| {
            let mut all = HashMap::<Run, Vec<Runner>>::new();
            let processes = crate::kernel::all_processes().unwrap_or_default();
            for (process, found) in run_by(processes) {
                if let Some(found) = found {
                    let run = (found.stx_ino, changed(&found));
                    let device = own_device(&found);
                    all.entry(run).or_default().push((device, process));
                }
            }
            all
        });
        let all = running.get(&(file.inode, file.changed))?;
        let is_likely = |runner: &&Runner| runner.0 == file.device;
        let likely = all.iter().filter(is_likely).take(RUNNERS);
        let rest = all.iter().filter(|runner| !is_likely(runner)).take(RUNNERS);
        let mut runners = likely.chain(rest);
        runners.find_map(|(_, process)| runs(*process, file))
    }

    /// Looks for a file in the agent's view of the mounts, and in the process's.
    fn seek(
        &mut self,
        process: u32,
        file: &FileState,
        path: impl FnOnce() -> Option<String>,
    ) -> Place {
        let all = self.found.values();
        if all.filter(|at| matches!(at, At::Held(..))).count() >= HELD {
            return Place::NotYet;
        }
        let (mut path, mut within) = (Some(path), None);
        for (kind, of) in [std::process::id(), process].into_iter().enumerate() {
            if self.spent.get(kind).is_none_or(|spent| *spent >= SEARCH) {
                return Place::NotYet;
            }
            let begun = Instant::now();
            let view = *self.views.entry(of).or_insert_with(|| view_of(of));
            let (_, views) = self.sought.entry(*file).or_insert_with(begin);
            let Ok(view) = view else {
                return Place::NotYet;
            };
            // Without one it has ended.
            let view = view.filter(|view| views.len() < VIEWS && !views.contains(view));
            if view.is_some() {
                within = path.take().map_or(within, |path| path());
            }
            let place = view.zip(within.as_ref()).map(|(view, within)| {
                let place = look_in(&mut self.tables, (of, view), process, file, within);
                if place == Place::Nowhere {
                    views.insert(view);
                }
                place
            });
            if let Some(spent) = self.spent.get_mut(kind) {
                *spent += begun.elapsed();
            }
            match place {
                Some(Place::At(at)) => return Place::At(at),
                Some(Place::NotYet) if self.tables.len() >= TABLES => return Place::NotYet,
                _ => {}
            }
        }
        Place::Nowhere
    }
}

fn begin() -> (Instant, HashSet<View>) {
    (Instant::now(), HashSet::new())
}

fn root(of: u32) -> String {
    format!("/proc/{of}/root")
}

/// The kernel does not say.
#[derive(Debug, Clone, Copy)]
struct Silent;

fn view_of(process: u32) -> Result<Option<View>, Silent> {
    bounded::of(process, |process| view(CWD, root(process))).map_err(|_| Silent)
}

fn view(beside: impl AsFd, path: impl rustix::path::Arg) -> Option<View> {
    let flags = AtFlags::STATX_DONT_SYNC | AtFlags::EMPTY_PATH;
    let wanted = StatxFlags::INO | StatxFlags::MNT_ID;
    let found = rustix::fs::statx(beside, path, flags, wanted).ok()?;
    Some((found.stx_mnt_id, found.stx_ino))
}

/// The root of a process that has this view; by now another one may have its id.
fn open_root(of: u32, wanted: View) -> Option<OwnedFd> {
    let flags = OFlags::PATH | OFlags::CLOEXEC | OFlags::DIRECTORY;
    let open = move |of| rustix::fs::open(root(of), flags, Mode::empty());
    let root = bounded::of(of, open).ok()?.ok()?;
    (view(&root, "") == Some(wanted)).then_some(root)
}

/// Looks for a file in the view that `of` has.
fn look_in(
    tables: &mut HashMap<View, (Instant, Table)>,
    (of, view): (u32, View),
    process: u32,
    file: &FileState,
    path: &str,
) -> Place {
    let root = open_root(of, view);
    if !tables.contains_key(&view)
        && tables.len() < TABLES
        && let Some(table) = read(of, view)
    {
        tables.insert(view, (Instant::now(), table));
    }
    match root.zip(tables.get(&view)) {
        Some((root, (_, table))) => held(&root, table, process, file, path),
        None => Place::NotYet,
    }
}

/// What is mounted in a view, which a process has.
fn read(of: u32, wanted: View) -> Option<Table> {
    let text = table(&of.to_string()).ok()?;
    let mut all = Table::new();
    for mount in mounts(&text) {
        all.entry(mount.device).or_default().push(mount);
    }
    let view = view_of(of).ok().flatten();
    (view == Some(wanted)).then_some(all)
}

/// A file that has this path within its filesystem, as what is mounted there shows it.
fn held(root: &OwnedFd, table: &Table, of: u32, file: &FileState, path: &str) -> Place {
    let flags = OFlags::PATH | OFlags::CLOEXEC;
    // Whose names are not all known to the kernel itself would be asked for them, and might never answer.
    let links = ResolveFlags::NO_MAGICLINKS | ResolveFlags::IN_ROOT | ResolveFlags::CACHED;
    let mounts = table.get(&file.device).into_iter().flatten();
    let mut place = Place::Nowhere;
    let paths = mounts.filter_map(|mount| mount.place_of(file.device, Path::new(path)));
    for path in paths.take(MOUNTS) {
        match rustix::fs::openat2(root, path, flags, Mode::empty(), links) {
            Ok(open) => {
                let Some((found, name)) = name_of(&open) else {
                    continue;
                };
                let device = device_of(&found, of);
                if device.is_none() && are_too_many() {
                    place = Place::NotYet;
                } else if state(&found, device) == *file {
                    return Place::At(At::Held(Held(Arc::new(open)), name));
                }
            }
            // The kernel could know them the next time; or there are no more descriptors.
            Err(Errno::AGAIN | Errno::MFILE | Errno::NFILE) => place = Place::NotYet,
            Err(_) => {}
        }
    }
    place
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used, clippy::indexing_slicing)]
    use super::*;

    fn nowhere(inode: u64) -> FileState {
        let own = rustix::fs::stat("/").unwrap().st_dev;
        FileState {
            device: (rustix::fs::major(own) << 20) | rustix::fs::minor(own),
            inode,
            changed: (1, 1),
        }
    }

    /// All who wait for it ask, again and again.
    #[test]
    fn a_file_that_is_nowhere_is_looked_for_once() {
        let (mut places, mut looked) = (Places::default(), 0);
        for _ in 0..1_000 {
            let path = || {
                looked += 1;
                Some("/nowhere".to_owned())
            };
            let place = places.of(std::process::id(), &nowhere(u64::MAX), path);
            assert_eq!(place, Place::Nowhere);
            places.begun = None;
            places.look_again();
        }
        assert_eq!(looked, 1);
        places.keep(|_| false);
        places.of(std::process::id(), &nowhere(u64::MAX), || {
            looked += 1;
            None
        });
        assert_eq!(looked, 2, "asked for anew");
    }

    /// Whoever runs many files, each another one, takes the agent no more time than one look has.
    #[test]
    fn many_files_that_are_nowhere_have_one_table_read_and_wait_for_time() {
        let mut places = Places::default();
        let (mut looked, mut looks, mut next) = (0, 0, 0);
        // Each look begins where the one before had no more time.
        while next < 10_000 {
            places.begun = None;
            places.look_again();
            looks += 1;
            let before = next;
            for inode in before..10_000 {
                let path = || {
                    looked += 1;
                    Some(format!("/nowhere/{inode}"))
                };
                match places.of(std::process::id(), &nowhere(u64::MAX - inode), path) {
                    Place::NotYet => break,
                    place => assert_eq!(place, Place::Nowhere),
                }
                next = inode + 1;
            }
            assert!(places.tables.len() <= 1, "one view, and one table");
            assert!(next > before, "nothing was done in a look");
            assert!(
                next == 10_000 || places.spent[0] >= SEARCH,
                "there was time"
            );
        }
        assert_eq!(looked, 10_000, "in {looks} looks");

        places.spent[0] = SEARCH;
        let place = places.of(std::process::id(), &nowhere(1), || unreachable!());
        assert_eq!(place, Place::NotYet);
    }
}
