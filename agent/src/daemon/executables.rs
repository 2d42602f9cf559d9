//! Which of the executables that a policy names a file is: by its device and inode, and by its content, which is read
//! once and again when the file was changed.
use super::content::Content;
use super::digests::{At, Digests, Owner};
use super::paths::Paths;
use crate::kernel::FileState;
use sha2::{Digest, Sha256};
use std::collections::{BTreeMap, HashSet};
use std::path::{Path, PathBuf};

/// Classes, after which the hooks have no more numbers.
const CLASSES: u16 = 60_000;
/// Of files for whose class there is no number: no rule has it, and they stay unknown.
const NUMBERLESS: u16 = CLASSES;

/// An executable as a selector names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Wants {
    pub(super) exe: Option<PathBuf>,
    pub(super) sha256: Option<String>,
}

/// What is known of files.
#[derive(Debug, Default)]
pub(super) struct Executables {
    wants: Vec<Wants>,
    /// The files at the paths that are named.
    pub(super) paths: Paths,
    /// Which of `wants` the files of each class are.
    pub(super) classes: BTreeMap<u16, Vec<usize>>,
    pub(super) digests: Digests,
}

impl Executables {
    /// From here on these are named.
    pub(super) fn want(&mut self, wants: &[Wants]) {
        self.wants = wants.to_vec();
        self.classes.clear();
        let is_wanted = |path: &Path| wants.iter().any(|one| one.exe.as_deref() == Some(path));
        self.paths.keep(is_wanted);
        self.look_at_paths();
    }

    /// Takes up which files an earlier agent has seen at the named paths: `known` are classes that it told of files.
    pub(super) fn take_over(&mut self, known: &[(FileState, Option<u16>)]) {
        let all = self.wants.iter().enumerate();
        for (number, path) in all.filter_map(|(number, one)| Some((number, one.exe.as_ref()?))) {
            let class = self.first_class(&[number]);
            for (state, _) in known.iter().filter(|(_, known)| *known == Some(class)) {
                self.paths.has_seen(path, *state);
            }
        }
    }

    /// Looks at what lies at the named paths now; whether it is something else than before.
    pub(super) fn look_at_paths(&mut self) -> bool {
        let named = self.wants.iter().filter_map(|wants| wants.exe.as_ref());
        // Whatever runs from there is asked for soon.
        self.paths.look(named)
    }

    /// The files that lie at the named paths, or did.
    pub(super) fn named(&self) -> Vec<(At, FileState)> {
        let all = self.paths.files();
        all.map(|(path, state)| (At::Path(path.to_owned()), state))
            .collect()
    }

    /// Which of the named executables this file is, as the indices of what names it. `None`: that depends on what is in it, which
    /// is being read, or on what lies at a path.
    pub(super) fn fulfils(&mut self, at: &At, state: &FileState) -> Option<Vec<usize>> {
        self.fulfils_for(None, at, state)
    }

    /// The same where another one asks than who runs it there.
    pub(super) fn fulfils_for(
        &mut self,
        owner: Option<Owner>,
        at: &At,
        state: &FileState,
    ) -> Option<Vec<usize>> {
        if self.is_to_be_read(state) {
            self.digests.ask(at, state, owner);
            return None;
        }
        let fulfilled = self.fulfilled(state);
        // Whose name nobody knows any more may be.
        let is_clear = !fulfilled.is_empty() || !self.is_unclear(at.name());
        is_clear.then_some(fulfilled)
    }

    /// Could a file that is called so be one at a path that cannot be looked at?
    pub(super) fn is_unclear(&self, name: Option<&str>) -> bool {
        !self.paths.are_known() && name.is_none_or(|name| self.paths.may_have(name))
    }

    /// Does it depend on what is in a file, or on what it is called, which it is?
    pub(super) fn is_to_be_found(&self, state: &FileState) -> bool {
        let by_name = || !self.paths.are_known() && self.fulfilled(state).is_empty();
        self.is_to_be_read(state) || by_name()
    }

    /// Is a file still of the class that the hooks have of it, as far as that can be said without reading it?
    /// That class has rules again, then.
    pub(super) fn is_still(&mut self, class: Option<u16>, state: &FileState) -> bool {
        let is_known = !self.is_to_be_read(state) && self.paths.are_known();
        is_known && class == self.class(&self.fulfilled(state))
    }

    /// Whether a file, by its device and inode, may be one that is named.
    pub(super) fn may_be_named(&self) -> impl Fn(&FileState) -> bool + use<> {
        let is_anything = self.wants.iter().any(|wants| wants.exe.is_none());
        let place = |state: &FileState| (state.device, state.inode);
        let named: HashSet<(u32, u64)> =
            self.paths.files().map(|(_, state)| place(&state)).collect();
        move |state| is_anything || named.contains(&place(state))
    }

    /// What of the named it is, by all that is known.
    fn fulfilled(&self, state: &FileState) -> Vec<usize> {
        let digest = self.known_digest(state);
        let is = |wants: &Wants| {
            self.is_at(wants, state) && (wants.sha256.is_none() || wants.sha256.as_ref() == digest)
        };
        let all = self.wants.iter().enumerate();
        let fulfilled = all.filter(|(_, wants)| is(wants));
        fulfilled.map(|(number, _)| number).collect()
    }

    /// Does it depend on what is in a file which it is, and was that not read?
    pub(super) fn is_to_be_read(&self, state: &FileState) -> bool {
        let by_digest = |wants: &Wants| wants.sha256.is_some() && self.is_at(wants, state);
        self.wants.iter().any(by_digest) && self.digests.known(state).is_none()
    }

    fn is_at(&self, wants: &Wants, state: &FileState) -> bool {
        let path = wants.exe.as_ref();
        path.is_none_or(|path| self.paths.has(path, state))
    }

    /// The number of the class of files that are these; `None` for those that are nothing that is named. A class's number
    /// comes of what it is, so that another agent gives it the same.
    pub(super) fn class(&mut self, fulfilled: &[usize]) -> Option<u16> {
        if fulfilled.is_empty() {
            return None;
        }
        let known = self.classes.iter().find(|(_, known)| *known == fulfilled);
        if let Some((class, _)) = known {
            return Some(*class);
        }
        let first = u32::from(self.first_class(fulfilled));
        let numbers = (0..u32::from(CLASSES)).map(|more| (first + more) % u32::from(CLASSES));
        let class = numbers
            .filter_map(|number| u16::try_from(number).ok())
            .find(|number| !self.classes.contains_key(number));
        let Some(class) = class else {
            return Some(NUMBERLESS);
        };
        self.classes.insert(class, fulfilled.to_vec());
        Some(class)
    }

    /// The class that these have, unless others have it.
    fn first_class(&self, fulfilled: &[usize]) -> u16 {
        let mut text = Sha256::new();
        for number in fulfilled {
            text.update(format!("{:?}\n", self.wants.get(*number)));
        }
        let digest = text.finalize();
        let first = digest
            .iter()
            .take(2)
            .fold(0, |sum, byte| sum * 256 + u16::from(*byte));
        first % CLASSES
    }

    /// The digest of a file that was read while it was in `state`, if it was.
    pub(super) fn known_digest(&self, state: &FileState) -> Option<&String> {
        match self.digests.known(state)? {
            Content::Sha256(digest) => Some(digest),
            Content::Long => None,
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use crate::daemon::paths::lying_at;
    use rustix::fs::{FileType, Mode};
    use std::time::{Duration, Instant};

    const ABC: &str = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";

    fn look(executables: &mut Executables, path: &Path) -> Vec<usize> {
        let state = lying_at(path).unwrap().state;
        let (at, begun) = (At::Path(path.to_owned()), Instant::now());
        if let Some(known) = executables.fulfils(&at, &state) {
            return known;
        }
        let read = executables.digests.wait(begun, Duration::from_secs(10));
        assert_eq!(read, [(at.clone(), state)]);
        executables.fulfils(&at, &state).unwrap()
    }

    #[test]
    fn a_file_for_whose_class_there_is_no_number_is_not_nobodys() {
        let mut known = Executables {
            classes: (0..CLASSES).map(|class| (class, Vec::new())).collect(),
            ..Executables::default()
        };
        let class = known.class(&[0]);
        assert!(class.is_some_and(|class| !known.classes.contains_key(&class)));
        assert_eq!(known.class(&[]), None);
    }

    #[test]
    fn files_are_known_by_inode_and_by_content() {
        let folder = tempfile::tempdir().unwrap();
        let [named, link, copy] = ["named", "link", "copy"].map(|name| folder.path().join(name));
        std::fs::write(&named, "abc").unwrap();
        std::fs::hard_link(&named, &link).unwrap();
        std::fs::copy(&named, &copy).unwrap();
        let wants = |exe: Option<&Path>, sha256: Option<&str>| Wants {
            exe: exe.map(Path::to_owned),
            sha256: sha256.map(str::to_owned),
        };
        let mut known = Executables::default();
        known.digests.reader = crate::daemon::content::read;
        known.want(&[
            wants(Some(&named), None),
            wants(None, Some(ABC)),
            wants(Some(&copy), Some(&ABC.replace('b', "c"))),
        ]);
        assert_eq!(look(&mut known, &named), [0, 1]);
        assert_eq!(look(&mut known, &link), [0, 1], "another name for the same");
        assert_eq!(look(&mut known, &copy), [1], "the same content");
        let (both, one) = (known.class(&[0, 1]).unwrap(), known.class(&[1]).unwrap());
        assert_ne!(both, one);
        assert_eq!(known.class(&[1]), Some(one));
        assert_eq!(known.class(&[]), None);

        std::fs::write(&copy, "abd").unwrap();
        assert!(look(&mut known, &copy).is_empty(), "changed");
        std::fs::rename(&copy, &named).unwrap();
        assert!(look(&mut known, &named).is_empty(), "not looked at yet");
        assert!(known.look_at_paths());
        assert_eq!(look(&mut known, &named), [0], "replaced");
        assert!(!known.look_at_paths());

        // Nobody writes to it: to open it would never end.
        std::fs::remove_file(&named).unwrap();
        rustix::fs::mknodat(rustix::fs::CWD, &named, FileType::Fifo, Mode::RUSR, 0).unwrap();
        assert!(known.look_at_paths());
        assert!(lying_at(&named).is_err());
    }
}
