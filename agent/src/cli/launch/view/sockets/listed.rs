//! All sockets that the kernel tells of, in every network namespace: a path leads from one into another.
use super::super::Mounted;
use super::For;
use super::places::Places;
use crate::kernel::bounded;
use crate::kernel::local::{self, Local};
use crate::kernel::namespaces::Network;
use anyhow::Context;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, ErrorKind};
use std::path::Path;

/// The kernel's table where it has no `unix_diag`; of the network namespace that the thread is in.
const TABLE: &str = "/proc/thread-self/net/unix";
/// Bits of a listener's flags there: it accepts connections.
const ACCEPTS: &[u8] = b"00010000";
/// `SOCK_DGRAM`
const DATAGRAM: &[u8] = b"0002";

/// Reads in a row that have to tell of nothing new. Each passes over some where others end while it goes on, and who ends his own can
/// see to that; but not to which, nor to when.
const CALM: usize = 3;
/// Reads at most: what comes after them is covered in another round.
const READS: usize = 16;
/// Network namespaces that are looked at. Anybody can make thousands.
const NAMESPACES: usize = 512;
/// Processes by which one is entered: some may have ended.
const WAYS: usize = 32;

/// What reads tell of that is not in `known`, in which it is entered.
pub(super) fn settled(
    known: &mut BTreeSet<Local>,
    command: For<'_>,
    mut read: impl FnMut() -> anyhow::Result<Vec<Local>>,
) -> anyhow::Result<Vec<Local>> {
    let (mut new, mut calm) = (Vec::new(), 0);
    for _ in 0..READS {
        let mut fresh = read()?;
        fresh.retain(|socket| known.insert(socket.clone()));
        // What a stranger has made meanwhile keeps nobody waiting.
        let is_calm = !fresh.iter().any(|socket| command.is_firm(socket));
        new.append(&mut fresh);
        calm = if is_calm { calm + 1 } else { 0 };
        if calm == CALM {
            break;
        }
    }
    Ok(new)
}

/// By what a network namespace is entered, and whether root or the user has a process there.
#[derive(Default)]
struct Entered {
    firm: bool,
    by: Vec<String>,
}

/// The network namespaces of this host that somebody is in, or that are mounted somewhere.
pub(super) struct Namespaces {
    /// Whether there is no run without what it tells, and itself.
    all: Vec<(bool, Network)>,
    /// How many there was no room for, or told nothing.
    pub(super) left_out: usize,
}

impl Namespaces {
    pub(super) fn find<'a>(
        command: For<'_>,
        mounts: impl Iterator<Item = &'a Mounted>,
    ) -> anyhow::Result<Self> {
        let own = inode(Path::new("/proc/self/ns/net"));
        let own = own.context("local daemons' sockets are not known: /proc/self/ns/net")?;
        let mut found: BTreeMap<String, Entered> = BTreeMap::new();
        let at = |process| format!("/proc/{process}/ns/net");
        let all = crate::kernel::all_processes()?;
        let inodes = bounded::each(all.clone(), move |process| inode(Path::new(&at(process))));
        for (process, inode) in all.into_iter().zip(inodes) {
            // It has ended, or is in `execve` for long, and serves nobody.
            let Some(inode) = inode.flatten() else {
                continue;
            };
            let is_own = inode == own || process == 1;
            let entered = found.entry(inode).or_default();
            entered.firm = entered.firm || is_own || is_of(process, command.user);
            if entered.by.len() < WAYS {
                entered.by.push(at(process));
            }
        }
        for mount in mounts.filter(|mount| mount.kind == "nsfs") {
            let inode = mount.root.to_string_lossy();
            if inode.starts_with("net:[") && mount.is_reachable()? {
                let entered = found.entry(inode.into_owned()).or_default();
                entered.firm = true;
                entered.by.push(mount.path.to_string_lossy().into_owned());
            }
        }
        Self::open(command, found.into_values().collect())
    }

    fn open(command: For<'_>, mut found: Vec<Entered>) -> anyhow::Result<Self> {
        found.sort_by_key(|entered| !entered.firm);
        let firm = found.iter().filter(|entered| entered.firm).count();
        if firm > NAMESPACES && !command.held {
            anyhow::bail!(
                "processes of root and user {} are in {firm} network namespaces, of which {NAMESPACES} can be looked at",
                command.user
            );
        }
        let left_out = found.len().saturating_sub(NAMESPACES);
        found.truncate(NAMESPACES);
        // One that all have left since has no sockets that anybody needs.
        let all = found.iter().filter_map(|entered| {
            let mut by = entered.by.iter();
            let network = by.find_map(|at| Network::at(Path::new(at)).ok())?;
            Some((entered.firm && !command.held, network))
        });
        let all = all.collect();
        Ok(Self { all, left_out })
    }

    /// One read of all of them.
    pub(super) fn sockets(&mut self, places: &Places) -> anyhow::Result<Vec<Local>> {
        let mut all = self.listed(read)?;
        for socket in &mut all {
            if socket.owner.is_none() {
                socket.owner = places.owner_of(socket)?;
            }
        }
        Ok(all)
    }

    /// A stranger's that cannot be read counts as one not looked at: what keeps it from telling may be his doing.
    fn listed(
        &mut self,
        read: impl Fn() -> io::Result<Vec<Local>> + Sync,
    ) -> anyhow::Result<Vec<Local>> {
        let (mut all, mut failed) = (Vec::new(), Vec::new());
        for (at, (is_firm, network)) in self.all.iter().enumerate() {
            match network.look(&read) {
                Ok(found) => all.extend(found),
                Err(e) if *is_firm => {
                    return Err(e).context("local daemons' sockets are not known");
                }
                Err(_) => failed.push(at),
            }
        }
        for at in failed.into_iter().rev() {
            self.all.remove(at);
            self.left_out += 1;
        }
        Ok(all)
    }
}

/// What the kernel calls it: `net:[4026531840]`.
fn inode(at: &Path) -> Option<String> {
    let link = std::fs::read_link(at).ok()?;
    Some(link.to_string_lossy().into_owned())
}

/// Its directory in `/proc` may be root's though the process is not.
fn is_of(process: u32, user: u32) -> bool {
    let status = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    let ids = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    let mut ids = ids.unwrap_or_default().split_whitespace();
    ids.any(|id| id == "0" || id == user.to_string())
}

fn read() -> io::Result<Vec<Local>> {
    match local::listening() {
        Err(e) if e.kind() == ErrorKind::NotFound => {
            let table = std::fs::read(TABLE)?;
            Ok(of_table(&table).collect())
        }
        listed => listed,
    }
}

/// Each line is `address: references protocol flags type state inode path`, and a newline in a path begins one too.
fn of_table(table: &[u8]) -> impl Iterator<Item = Local> {
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    lines.filter_map(|line| {
        let mut fields = line.splitn(8, |byte| *byte == b' ').skip(3);
        let (flags, kind) = (fields.next()?, fields.next()?);
        let path = line.windows(2).position(|two| two == b" /")? + 1;
        (flags == ACCEPTS || kind == DATAGRAM).then(|| Local {
            name: line.get(path..).unwrap_or_default().to_vec(),
            file: None,
            owner: None,
        })
    })
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    const COMMAND: For<'_> = For {
        open: &[],
        user: 1000,
        held: false,
    };

    fn local(owner: u32, name: &str) -> Local {
        Local {
            name: name.into(),
            file: None,
            owner: Some(owner),
        }
    }

    #[test]
    fn listeners_and_datagram_sockets_with_a_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/docker.sock\n\
            0000000000000000: 00000002 00000000 00000000 0002 01   101 /dev/log\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 102 /run/docker.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 103\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 104 @/tmp/.X11-unix/X0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 105 /run/\xe4 dir/s\n";
        let found: Vec<Vec<u8>> = of_table(table).map(|socket| socket.name).collect();
        let wanted = [&b"/run/docker.sock"[..], b"/dev/log", b"/run/\xe4 dir/s"];
        assert_eq!(found, wanted);
    }

    /// As the kernel passes over some where others end while it is read.
    #[test]
    fn what_one_read_passes_over_another_finds() {
        let [docker, bus] = [local(0, "/run/docker.sock"), local(1000, "/run/user/bus")];
        let strange = |read: usize| local(1001, &format!("/tmp/{read}"));
        let (mut known, mut read) = (BTreeSet::new(), 0);
        let new = settled(&mut known, COMMAND, || {
            read += 1;
            // A stranger's that come up all the time keep nobody waiting.
            let mut all = vec![strange(read)];
            if read == 3 {
                all.push(docker.clone());
            }
            if read == 5 {
                all.push(bus.clone());
            }
            Ok(all)
        });
        let new = new.unwrap();
        assert!(new.contains(&docker) && new.contains(&bus));
        assert_eq!((read, new.len()), (5 + CALM, 2 + 5 + CALM));
        // What is known is not told again.
        let new = settled(&mut known, COMMAND, || Ok(vec![docker.clone()])).unwrap();
        assert_eq!(new, []);
    }

    #[test]
    fn reads_are_bounded() {
        let mut read = 0;
        let new = settled(&mut BTreeSet::new(), COMMAND, || {
            read += 1;
            Ok(vec![local(0, &format!("/run/{read}"))])
        });
        assert_eq!((read, new.unwrap().len()), (READS, READS));
        let gone = settled(&mut BTreeSet::new(), COMMAND, || anyhow::bail!("gone"));
        assert!(gone.is_err());
    }

    #[test]
    fn namespaces_of_strangers_keep_nobody_waiting() {
        let entered = |firm| Entered {
            firm,
            by: vec!["/proc/self/ns/net".to_owned()],
        };
        let many = |firm| {
            (0..NAMESPACES + 3)
                .map(|_| entered(firm))
                .collect::<Vec<_>>()
        };
        let found = Namespaces::open(COMMAND, many(false)).unwrap();
        assert_eq!((found.all.len(), found.left_out), (NAMESPACES, 3));
        assert!(Namespaces::open(COMMAND, many(true)).is_err());
        let held = For {
            held: true,
            ..COMMAND
        };
        assert_eq!(Namespaces::open(held, many(true)).unwrap().left_out, 3);
    }

    #[test]
    fn a_namespace_that_tells_nothing_keeps_a_run_from_starting_only_if_it_is_no_strangers() {
        let listed = |firm, held| {
            let by = vec!["/proc/self/ns/net".to_owned()];
            let command = For { held, ..COMMAND };
            let mut namespaces = Namespaces::open(command, vec![Entered { firm, by }]).unwrap();
            let listed = namespaces.listed(|| Err(ErrorKind::InvalidData.into()));
            listed.map(|found| (found.len(), namespaces.left_out))
        };
        assert!(listed(true, false).is_err());
        for (firm, held) in [(false, false), (true, true), (false, true)] {
            assert_eq!(listed(firm, held).unwrap(), (0, 1));
        }
    }
}
