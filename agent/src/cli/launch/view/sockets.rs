//! Local daemons' sockets, as the kernel lists them: what a command under `tollgate run` is not to find.
//!
//! Where the kernel has hooks for Unix sockets these hold by themselves. Covering the sockets too leaves nothing to
//! look up by another name, and is all there is where the kernel has no such hooks.
//!
//! Anybody can bind any number of sockets, and call them by any name in a view of the mounts that is his own. So only
//! the file that a socket lies in is covered, and first those that no stranger can make more of.
mod listed;
mod places;

use super::mounts;
use crate::kernel::local::Local;
use anyhow::{Context, bail};
use listed::{Namespaces, settled};
use places::{Found, Looked, Place, Places, Spot};
use rustix::io::Errno;
use rustix::mount;
use std::collections::{BTreeMap, BTreeSet};
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Sockets covered at most, each at each of its places: every one is a mount.
const MAX: usize = 4096;
/// Times that sockets which came up meanwhile are covered too.
const ROUNDS: usize = 16;

/// Whom sockets are covered for.
#[derive(Clone, Copy)]
pub(in super::super) struct For<'a> {
    /// What policy lets it speak to.
    pub(in super::super) open: &'a [String],
    pub(in super::super) user: u32,
    /// Whether the kernel refuses it all others, covered or not.
    pub(in super::super) held: bool,
}

/// Covers every socket that has a path and that policy does not name.
pub(super) fn cover(command: For<'_>) -> anyhow::Result<()> {
    let (mut known, mut left) = (BTreeSet::new(), Left::default());
    let mut room = MAX;
    for _ in 0..ROUNDS {
        let mut places = Places::of_this_view(mounts()?);
        let mut namespaces = Namespaces::find(command, places.mounts())?;
        let new = settled(&mut known, command, || namespaces.sockets(&places))?;
        left.namespaces = namespaces.left_out;
        let is_over = command.held || !new.iter().any(|socket| command.is_firm(socket));
        let hidden = command.choose(new, room, &mut left, |socket| places.find(socket))?;
        let uncovered = command.hide(&hidden, &mut left, |name| places.look(name))?;
        room = (room + uncovered.len()).saturating_sub(hidden.len());
        // Another round looks for them again.
        for socket in &uncovered {
            known.remove(socket);
        }
        if is_over {
            left.tell(command);
            return Ok(());
        }
    }
    bail!(
        "sockets of root and user {} come up or move faster than they are covered: try again, or end what makes them (`ss -xl` lists them)",
        command.user
    )
}

impl For<'_> {
    /// One without which there is no run.
    fn is_firm(self, socket: &Local) -> bool {
        self.rank(socket) <= 1
    }

    /// Root's come first, then the user's, who can have any number. Of others anybody may be: the services' own users have the lowest ids.
    fn rank(self, socket: &Local) -> u32 {
        match socket.owner {
            Some(0) => 0,
            Some(owner) if owner == self.user => 1,
            Some(owner) => owner.saturating_add(1),
            None => u32::MAX,
        }
    }

    fn is_open(self, path: &[u8]) -> bool {
        self.open.iter().any(|name| match name.strip_suffix("**") {
            Some(begin) => path.starts_with(begin.as_bytes()),
            None => path == name.as_bytes(),
        })
    }

    /// Where sockets are to be covered, as many as there is room for.
    fn choose(
        self,
        mut sockets: Vec<Local>,
        room: usize,
        left: &mut Left,
        mut find: impl FnMut(&Local) -> anyhow::Result<Found>,
    ) -> anyhow::Result<Hidden> {
        sockets.retain(|socket| !self.is_open(&socket.name));
        sockets.sort_by_cached_key(|socket| (self.rank(socket), socket.clone()));
        let mut hidden = BTreeMap::new();
        for socket in sockets {
            let mut fits = hidden.len() < room;
            if fits {
                let mut found = find(&socket)?;
                left.unreachable += usize::from(found.unreachable);
                left.lost += usize::from(found.lost);
                // It may have been renamed, or linked, to what policy names.
                let is_open = |name: &PathBuf| self.is_open(name.as_os_str().as_bytes());
                found.at.retain(|_, (_, name)| !is_open(name));
                for (spot, (place, name)) in found.at {
                    fits &= hidden.len() < room || hidden.contains_key(&spot);
                    if fits {
                        hidden.insert(spot, (place, name, socket.clone()));
                    }
                }
            }
            left.beyond += usize::from(!fits);
            if !fits && self.is_firm(&socket) && !self.held {
                bail!(
                    "root and user {} have more sockets than the {MAX} that can be kept from the command: end what is not needed (`ss -xl` lists them)",
                    self.user
                );
            }
        }
        Ok(hidden)
    }

    /// Covers them; tells those that are not covered, and without which there is no run.
    fn hide(
        self,
        hidden: &Hidden,
        left: &mut Left,
        look: impl Fn(&Path) -> anyhow::Result<Looked>,
    ) -> anyhow::Result<Vec<Local>> {
        let mut uncovered = Vec::new();
        for (place, name, socket) in hidden.values() {
            if hide(look(name)?, *place, name)? {
                continue;
            }
            if self.is_firm(socket) && !self.held {
                uncovered.push(socket.clone());
            } else {
                left.lost += 1;
            }
        }
        Ok(uncovered)
    }
}

/// What is to be covered, with the socket that each place is of.
type Hidden = BTreeMap<Spot, (Place, PathBuf, Local)>;

/// What is not covered.
#[derive(Default)]
struct Left {
    unreachable: usize,
    lost: usize,
    beyond: usize,
    namespaces: usize,
}

impl Left {
    fn tell(&self, command: For<'_>) {
        if self.beyond > 0 {
            let (whose, anyhow) = match command.held {
                true => ("", "; the kernel refuses them to the command nevertheless"),
                false => (" of other users", ""),
            };
            tell!(
                "tollgate: {} sockets{whose} are not covered: {MAX} are at most{anyhow}",
                self.beyond
            );
        }
        if command.held {
            return;
        }
        if self.unreachable > 0 {
            tell!(
                "tollgate: {} sockets are not covered: root may not look where they are (FUSE, NFS), or they are named by way of another process's files",
                self.unreachable
            );
        }
        if self.lost > 0 {
            tell!(
                "tollgate: {} sockets are not where they were bound, or have names elsewhere too: those that were not removed are not covered",
                self.lost
            );
        }
        if self.namespaces > 0 {
            tell!(
                "tollgate: sockets in {} network namespaces of other users are not covered: there are too many, or they cannot be looked at",
                self.namespaces
            );
        }
    }
}

/// Whether it is covered. Its name may lead elsewhere by now, or nobody says where it leads.
fn hide(looked: Looked, place: Place, name: &Path) -> anyhow::Result<bool> {
    match looked {
        Looked::Socket(found) if found.place == place => {
            cover_one(&found.file).with_context(|| format!("cannot hide {name:?}"))
        }
        _ => Ok(false),
    }
}

/// By a descriptor: what a name leads to may be something else by now.
fn cover_one(socket: &OwnedFd) -> Result<bool, Errno> {
    match mount::mount_bind("/dev/null", format!("/proc/self/fd/{}", socket.as_raw_fd())) {
        // It was removed, or is in no mount of this view.
        Err(Errno::NOENT | Errno::INVAL) => Ok(false),
        done => done.map(|()| true),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn local(owner: u32, name: &str) -> Local {
        Local {
            name: name.into(),
            file: Some((1, 1)),
            owner: Some(owner),
        }
    }

    fn at_its_name(socket: &Local) -> Found {
        let name = PathBuf::from(String::from_utf8(socket.name.clone()).unwrap());
        let mut found = Found::default();
        found.at.insert((1, name.clone()), ((1, (0, 0), 1), name));
        found
    }

    fn names(hidden: Hidden) -> String {
        let names = hidden
            .into_keys()
            .map(|(_, name)| name.display().to_string());
        names.collect::<Vec<_>>().join("|")
    }

    #[test]
    fn who_binds_many_uncovers_nobody_elses() {
        let flood = (0..9).map(|n| local(1001, &format!("/a/{n}")));
        let all = [
            local(0, "/run/docker.sock"),
            local(33, "/run/www"),
            local(1000, "/tmp/agent"),
        ];
        let all: Vec<Local> = flood.chain(all).collect();
        let chosen = |user, held, room| {
            let open = ["/a/1".to_owned(), "/tmp/**".to_owned()];
            let open = if user == 7 { &open[..] } else { &[] };
            let (command, mut left) = (For { open, user, held }, Left::default());
            let hidden = command.choose(all.clone(), room, &mut left, |one| Ok(at_its_name(one)));
            hidden.map(|hidden| (names(hidden), left.beyond))
        };
        let (covered, beyond) = chosen(1000, false, 4).unwrap();
        assert_eq!(covered, "/a/0|/run/docker.sock|/run/www|/tmp/agent");
        assert_eq!(beyond, 8);
        assert_eq!(chosen(7, false, 99).unwrap().0.matches('|').count(), 9);
        assert!(chosen(1000, false, 1).is_err());
        assert!(chosen(1001, false, 9).is_err());
        // Where the kernel holds the command to what policy names, nobody keeps a run from starting.
        let (covered, beyond) = chosen(1001, true, 2).unwrap();
        assert_eq!((covered.as_str(), beyond), ("/a/0|/run/docker.sock", 10));
    }

    #[test]
    fn what_cannot_be_looked_at_counts_as_not_covered() {
        let all = vec![local(0, "/run/docker.sock"), local(33, "/run/www")];
        let uncovered = |held, says| {
            let (command, mut left) = (
                For {
                    open: &[],
                    user: 1000,
                    held,
                },
                Left::default(),
            );
            let hidden = command.choose(all.clone(), 9, &mut left, |one| Ok(at_its_name(one)));
            let look = |_: &Path| places::seen(Err(says));
            let uncovered = command.hide(&hidden.unwrap(), &mut left, look);
            uncovered.map(|uncovered| (uncovered, left.lost))
        };
        for says in [Errno::AGAIN, Errno::NOENT] {
            // Of root's sockets each is looked for again, of a stranger's it is told.
            assert_eq!(uncovered(false, says).unwrap(), (all[..1].to_vec(), 1));
            assert_eq!(uncovered(true, says).unwrap(), (Vec::new(), 2));
        }
        assert!(uncovered(false, Errno::NOMEM).is_err());
    }
}
