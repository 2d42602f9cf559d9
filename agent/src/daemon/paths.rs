//! What lies at the paths by which a policy names executables, now and since the agent started. A file that has left its path
//! unchanged comes back so too (a link is turned, a directory above it renamed, a filesystem mounted), and the hooks see nothing of it.
use super::digests::{look, state};
use super::mounts::{mounted, table};
use crate::kernel::FileState;
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags};
use std::collections::{BTreeMap, VecDeque};
use std::ffi::OsString;
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

/// Files and names that are remembered of one path: who may turn it puts out others' of that path alone.
const REMEMBERED: usize = 64;

/// Directories that systemd gives services of their own (`PrivateTmp=`).
const PRIVATE: [&str; 2] = ["/tmp", "/var/tmp"];

/// Links that the kernel follows from one path.
const LINKS: usize = 40;

/// What is known of each path that is named.
#[derive(Debug, Default)]
pub(super) struct Paths {
    now: BTreeMap<PathBuf, Lying>,
    /// Files that lay there and lie at no path now.
    former: BTreeMap<PathBuf, VecDeque<FileState>>,
    /// What files there were called where they have another name than the path.
    names: BTreeMap<PathBuf, VecDeque<String>>,
    /// Why it is not known what lies there now.
    unread: BTreeMap<PathBuf, String>,
}

/// A file at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Lying {
    pub(super) state: FileState,
    /// Its own name: the path may be a link, or a mount.
    pub(super) name: String,
}

impl Paths {
    /// Looks at what lies there now; whether it is something else than before.
    pub(super) fn look<'a>(&mut self, wanted: impl Iterator<Item = &'a PathBuf>) -> bool {
        self.look_beside(&own(), wanted)
    }

    /// `own`: directories of the agent's service's own.
    fn look_beside<'a>(&mut self, own: &[&str], wanted: impl Iterator<Item = &'a PathBuf>) -> bool {
        let before = std::mem::take(&mut self.now);
        let mut is_called_else = false;
        self.unread.clear();
        for path in wanted {
            let known = before.get(path).cloned();
            let hidden = leads_into(path, own);
            if let Some((_, place)) = &hidden {
                is_called_else |= self.may_be_called(path, place);
            }
            let found = match hidden.map_or_else(|| lying_at(path), |(own, _)| Err(of_its_own(own)))
            {
                Ok(found) => Some(found),
                Err(error) if is_absent(&error) => None,
                // What lies there now cannot be told.
                Err(error) => {
                    self.unread.insert(path.clone(), error.to_string());
                    known
                }
            };
            if let Some(found) = found {
                self.now.insert(path.clone(), found);
            }
        }
        let has_changed = self.now != before;
        if has_changed {
            self.remember(before);
        }
        has_changed || is_called_else
    }

    /// Notes what a file is called to which a path leads and that cannot be looked at; whether that is new.
    fn may_be_called(&mut self, path: &Path, place: &Path) -> bool {
        let name = place.file_name().unwrap_or_default().to_string_lossy();
        let known = self.names.get(path);
        let is_known = known.is_some_and(|names| names.iter().any(|known| *known == name));
        if is_known || is_called(path, &name) {
            return false;
        }
        let names = self.names.entry(path.to_owned()).or_default();
        push(names, name.into_owned());
        true
    }

    /// Forgets paths that are named no more.
    pub(super) fn keep(&mut self, is_wanted: impl Fn(&Path) -> bool) {
        self.now.retain(|path, _| is_wanted(path));
        self.former.retain(|path, _| is_wanted(path));
        self.names.retain(|path, _| is_wanted(path));
    }

    fn remember(&mut self, before: BTreeMap<PathBuf, Lying>) {
        let now = &self.now;
        // What lies somewhere is what it is there, and nothing besides.
        let lies = |state: &FileState| now.values().any(|one| is_same(&one.state, state));
        for files in self.former.values_mut() {
            files.retain(|state| !lies(state));
        }
        for (path, was) in before {
            if !lies(&was.state) {
                push(self.former.entry(path).or_default(), was.state);
            }
        }
        for (path, found) in now {
            if !is_called(path, &found.name) {
                push(
                    self.names.entry(path.clone()).or_default(),
                    found.name.clone(),
                );
            }
        }
    }

    /// Takes up that this file lay there, as an earlier agent has seen.
    pub(super) fn has_seen(&mut self, path: &Path, state: FileState) {
        if !self.now.values().any(|one| is_same(&one.state, &state)) {
            push(self.former.entry(path.to_owned()).or_default(), state);
        }
    }

    /// Does this file lie there, or did it when it was last at any path? One that was changed since is another.
    pub(super) fn has(&self, path: &Path, state: &FileState) -> bool {
        let is_there = self.now.get(path);
        let was_there = self.former.get(path);
        is_there.is_some_and(|one| is_same(&one.state, state))
            || was_there.is_some_and(|files| files.contains(state))
    }

    /// Is it known of each path what lies there?
    pub(super) fn are_known(&self) -> bool {
        let mut unread = self.unread.keys();
        unread.all(|path| self.now.contains_key(path))
    }

    /// Is it unknown whether a file that is called so lies at a path?
    pub(super) fn may_have(&self, name: &str) -> bool {
        let mut unknown = self.unread.keys();
        let is_called_else = |path| {
            let names = self.names.get(path);
            names.is_some_and(|names| names.iter().any(|known| known == name))
        };
        unknown.any(|path| {
            !self.now.contains_key(path) && (is_called(path, name) || is_called_else(path))
        })
    }

    /// All files that are or were there.
    pub(super) fn files(&self) -> impl Iterator<Item = (&Path, FileState)> {
        let now = self.now.iter().map(|(path, one)| (&**path, one.state));
        let former = self.former.iter();
        now.chain(former.flat_map(|(path, files)| files.iter().map(|state| (&**path, *state))))
    }

    /// What files there are or were called where that is not the path's own name.
    pub(super) fn other_names(&self) -> impl Iterator<Item = &String> {
        self.names.values().flatten()
    }

    /// What a person should know of a path: that nothing is recognised by it, or not all the time.
    pub(super) fn trouble(&self, path: &Path) -> Option<String> {
        let found = self.now.get(path);
        match (self.unread.get(path), found) {
            (Some(why), Some(_)) => Some(format!(
                "it cannot be looked at ({why}): what lay there last counts"
            )),
            (Some(why), None) => Some(format!("it cannot be looked at: {why}")),
            (None, None) => {
                Some("no file lies there: nobody is recognised by it until one does".to_owned())
            }
            (None, Some(found)) => (!is_called(path, &found.name)).then(|| {
                format!(
                    "it is another name of a file called {}: one of yet another name is free for up to a second after it comes there, and while no agent runs. Name the file itself",
                    found.name
                )
            }),
        }
    }
}

fn push<T: PartialEq>(all: &mut VecDeque<T>, one: T) {
    all.retain(|known| *known != one);
    if all.len() >= REMEMBERED {
        all.pop_front();
    }
    all.push_back(one);
}

/// Is it the same file, changed or not?
fn is_same(one: &FileState, other: &FileState) -> bool {
    (one.device, one.inode) == (other.device, other.inode)
}

fn is_called(path: &Path, name: &str) -> bool {
    path.file_name().is_some_and(|own| own == name)
}

/// Does nothing lie there? Whatever else fails says nothing of that.
fn is_absent(error: &io::Error) -> bool {
    [io::ErrorKind::NotFound, io::ErrorKind::NotADirectory].contains(&error.kind())
}

/// What lies at a path. A link into another process's view of the files is not followed: who may write there could have one lead to
/// files that it serves itself.
pub(super) fn lying_at(path: &Path) -> io::Result<Lying> {
    let (flags, links) = (OFlags::PATH | OFlags::CLOEXEC, ResolveFlags::NO_MAGICLINKS);
    let file = rustix::fs::openat2(CWD, path, flags, Mode::empty(), links)?;
    let found = look(&file, "")?;
    let table = table("self")?;
    let shown = std::fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))?;
    let shown = shown.to_string_lossy();
    let shown = Path::new(shown.strip_suffix(" (deleted)").unwrap_or(&shown));
    let mount = mounted(&table, found.stx_mnt_id);
    // A file that is mounted by itself is shown as what it is mounted on.
    let by_itself = mount.as_ref().filter(|mount| mount.point == shown);
    let own = by_itself.map_or(shown, |mount| &mount.root);
    let name = own.file_name().unwrap_or_default();
    Ok(Lying {
        state: state(&found, mount.as_ref().map(|mount| mount.device)),
        name: name.to_string_lossy().into_owned(),
    })
}

/// Why what lies in a directory of the agent's service's own cannot be told.
fn of_its_own(directory: &str) -> io::Error {
    io::Error::other(format!(
        "the agent's service has a {directory} of its own: have it lie elsewhere, or set PrivateTmp=no for tollgate.service"
    ))
}

/// The directories that the agent's service has of its own.
fn own() -> Vec<&'static str> {
    let all = PRIVATE.into_iter();
    all.filter(|directory| !is_the_hosts(directory)).collect()
}

/// Which of the agent's own directories a path leads into, by itself or by links, and where there: what others find behind that is
/// not what the agent does.
fn leads_into<'o>(path: &Path, own: &[&'o str]) -> Option<(&'o str, PathBuf)> {
    if own.is_empty() {
        return None;
    }
    let parts = |path: &Path| -> Vec<OsString> {
        let all = path.components().rev();
        all.map(|part| part.as_os_str().to_owned()).collect()
    };
    let (mut at, mut rest, mut links) = (PathBuf::new(), parts(path), 0);
    while let Some(part) = rest.pop() {
        match part == ".." {
            true => drop(at.pop()),
            false => at.push(part), // Of an absolute one the first leads to the root.
        }
        if let Some(found) = own.iter().find(|own| at.starts_with(own)) {
            at.extend(rest.iter().rev());
            return Some((found, at));
        }
        if let Ok(to) = std::fs::read_link(&at) {
            links += 1;
            at.pop();
            rest.extend(parts(&to));
        }
        if links > LINKS {
            return None; // Nor does the kernel follow them.
        }
    }
    None
}

/// Is a directory what the host's first process has there, as far as that can be told?
fn is_the_hosts(directory: &str) -> bool {
    let place = |at: String| rustix::fs::stat(at).map(|found| (found.st_dev, found.st_ino));
    let both = (
        place(directory.to_owned()),
        place(format!("/proc/1/root{directory}")),
    );
    !matches!(both, (Ok(own), Ok(hosts)) if own != hosts)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::fs::symlink;

    fn turn(link: &Path, to: &Path) {
        let _ = std::fs::remove_file(link);
        symlink(to, link).unwrap();
    }

    /// Two releases, and paths to them.
    fn scene() -> (
        tempfile::TempDir,
        [PathBuf; 2],
        [PathBuf; 2],
        [FileState; 2],
    ) {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let releases = [at("r1"), at("r2")];
        for release in &releases {
            std::fs::create_dir(release).unwrap();
            std::fs::write(release.join("app"), "").unwrap();
        }
        let states = ["r1/app", "r2/app"].map(|path| lying_at(&at(path)).unwrap().state);
        let links = [at("live"), at("next")];
        (folder, releases, links, states)
    }

    #[test]
    fn a_file_that_left_its_path_unchanged_still_is_what_it_was() {
        let (_folder, [r1, r2], [live, next], [first, second]) = scene();
        let all = [live.join("app"), next.join("app")];
        let mut paths = Paths::default();
        let has = |paths: &Paths, state| all.each_ref().map(|path| paths.has(path, state));
        turn(&live, &r1);
        turn(&next, &r2);
        assert!(paths.look(all.iter()));
        assert!(!paths.look(all.iter()));
        assert_eq!(has(&paths, &first), [true, false]);
        // What lies at another path is nothing besides.
        turn(&live, &r2);
        turn(&next, &r1);
        assert!(paths.look(all.iter()));
        assert_eq!(has(&paths, &first), [false, true]);
        assert_eq!(has(&paths, &second), [true, false]);
        turn(&next, &r2);
        assert!(paths.look(all.iter()));
        assert_eq!(has(&paths, &first), [false, true], "left");
        assert_eq!(has(&paths, &second), [true, true]);
        let changed = FileState {
            changed: (0, 0),
            ..first
        };
        assert_eq!(has(&paths, &changed), [false, false], "another");
        assert_eq!(paths.files().count(), 3);
        paths.keep(|path| path.starts_with(&live));
        paths.look(all.iter().take(1));
        assert_eq!(has(&paths, &first), [false, false], "named no more");

        // Seen by an earlier agent; what lies somewhere is that.
        paths.has_seen(&all[0], first);
        paths.has_seen(&all[1], second);
        assert_eq!(has(&paths, &first), [true, false]);
        assert_eq!(has(&paths, &second), [true, false]);
    }

    #[test]
    fn what_cannot_be_looked_at_is_what_it_was() {
        let (_folder, [r1, _], [live, _], [first, _]) = scene();
        let path = live.join("app");
        let mut paths = Paths::default();
        let look = |paths: &mut Paths| paths.look(std::iter::once(&path));
        turn(&live, Path::new("live"));
        assert!(!look(&mut paths));
        assert!(!paths.are_known() && paths.may_have("app") && !paths.may_have("other"));
        turn(&live, &r1);
        assert!(look(&mut paths) && paths.trouble(&path).is_none());
        turn(&live, Path::new("live"));
        assert!(!look(&mut paths), "a link that leads nowhere is no answer");
        assert!(paths.are_known() && paths.has(&path, &first) && !paths.may_have("app"));
        assert!(
            paths
                .trouble(&path)
                .unwrap()
                .contains("cannot be looked at")
        );
        std::fs::remove_file(&live).unwrap();
        assert!(look(&mut paths) && !paths.may_have("app"));
        assert!(paths.trouble(&path).unwrap().contains("no file lies there"));
        assert!(paths.has(&path, &first), "it may come back");
    }

    #[test]
    fn other_names_are_told() {
        let (folder, _, _, _) = scene();
        let (path, file) = (folder.path().join("tool"), folder.path().join("tool 2"));
        std::fs::write(&file, "").unwrap();
        turn(&path, &file);
        let mut paths = Paths::default();
        assert!(paths.look(std::iter::once(&path)));
        assert!(paths.trouble(&path).unwrap().contains("called tool 2"));
        turn(&path, Path::new("r1/app"));
        assert!(paths.look(std::iter::once(&path)));
        let names: Vec<_> = paths.other_names().collect();
        assert_eq!(names, ["tool 2", "app"]);
    }

    #[test]
    fn a_link_into_a_directory_of_the_agents_own_is_no_answer() {
        let (folder, _, [live, next], _) = scene();
        let at = |name: &str| folder.path().join(name);
        let own = at("r1").display().to_string();
        let own = [&*own];
        let leads = |path: &Path| leads_into(path, &own).map(|(_, place)| place);
        turn(&live, Path::new("r2/../next"));
        turn(&next, &at("r1"));
        // Be something there or not.
        assert_eq!(leads(&live.join("app")), Some(at("r1/app")));
        assert_eq!(leads(&live.join("no/one")), Some(at("r1/no/one")));
        assert_eq!(leads(&at("r1/app")), Some(at("r1/app")));
        assert_eq!(leads(&at("r2/app")), None);
        assert!(leads_into(&at("r1/app"), &[]).is_none());
        let (mut paths, path) = (Paths::default(), at("tool"));
        turn(&path, &at("r1/nothing"));
        let look = |paths: &mut Paths| paths.look_beside(&own, std::iter::once(&path));
        assert!(look(&mut paths) && !look(&mut paths), "another name");
        assert!(!paths.are_known() && paths.may_have("nothing") && paths.may_have("tool"));
        assert!(!paths.may_have("app") && paths.other_names().eq(["nothing"]));
        assert!(paths.trouble(&path).unwrap().contains("PrivateTmp=no"));
        turn(&at("r2/app"), Path::new("app"));
        assert_eq!(leads(&at("r2/app")), None, "it leads nowhere");
    }

    #[test]
    fn former_files_of_a_path_are_bounded() {
        let mut all = VecDeque::new();
        (0..100).for_each(|one| push(&mut all, one));
        push(&mut all, 50);
        assert_eq!((all.len(), all.back()), (REMEMBERED, Some(&50)));
    }
}
