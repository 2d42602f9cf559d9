//! Local daemons' sockets, as the kernel lists them: what a command under `tollgate run` is not to find.
//!
//! Where the kernel has hooks for Unix sockets these hold by themselves. Covering the sockets too leaves nothing to
//! look up by another name, and is all there is where the kernel has no such hooks.
//!
//! Anybody can bind any number of sockets, and a newline in the name of one begins a line of the kernel's table. So
//! only what is a socket is covered, and first those that no stranger can make more of.
use anyhow::{Context, bail};
use rustix::fs::{AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount;
use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

/// Sockets of this network namespace, and of the host's: a path leads into another one too.
const TABLES: [&str; 2] = ["/proc/net/unix", "/proc/1/net/unix"];
/// Sockets covered at most: each is a mount.
const MAX: usize = 4096;
/// Bits of a listener's flags: it accepts connections.
const ACCEPTS: &[u8] = b"00010000";
/// `SOCK_DGRAM`
const DATAGRAM: &[u8] = b"0002";

/// Covers every socket that has a path and that `open` does not name, for a command of this user's.
pub(super) fn cover(open: &[String], user: u32) -> anyhow::Result<()> {
    let mut listed = BTreeSet::new();
    for table in TABLES {
        let text = std::fs::read(table)
            .with_context(|| format!("local daemons' sockets are not known: {table}"))?;
        listed.extend(paths(&text, open));
    }
    // Who binds a socket may call others by any number of names.
    let (mut found, mut unreachable) = (BTreeMap::<_, Vec<PathBuf>>::new(), 0_usize);
    for path in listed {
        match look(&path)? {
            Looked::Socket { owner, place, .. } => {
                found.entry((owner, place)).or_default().push(path);
            }
            Looked::Nothing => {}
            Looked::Unreachable => unreachable += 1,
        }
    }
    if unreachable > 0 {
        tell!(
            "tollgate: {unreachable} sockets are not covered: root may not look where they are (FUSE, NFS), or they are named by way of another process's files"
        );
    }
    let found = found.into_iter();
    let found = found.map(|((owner, place), names)| (owner, (place, names)));
    for (place, names) in chosen(found.collect(), user, MAX)? {
        // A name may lead elsewhere by now, and what it led to is covered by another.
        for path in names {
            if let Looked::Socket {
                socket, place: now, ..
            } = look(&path)?
                && now == place
            {
                cover_one(&socket).with_context(|| format!("cannot hide {path:?}"))?;
            }
        }
    }
    Ok(())
}

/// Each line is `address: references protocol flags type state inode path`.
fn paths<'a>(table: &'a [u8], open: &'a [String]) -> impl Iterator<Item = PathBuf> + 'a {
    let lines = table.split(|byte| *byte == b'\n').skip(1);
    let paths = lines.filter_map(|line| {
        let mut fields = line.splitn(8, |byte| *byte == b' ').skip(3);
        let (flags, kind) = (fields.next()?, fields.next()?);
        let path = line.windows(2).position(|two| two == b" /")? + 1;
        (flags == ACCEPTS || kind == DATAGRAM).then(|| line.get(path..))?
    });
    let is_open = |path: &[u8]| {
        open.iter().any(|name| match name.strip_suffix("**") {
            Some(begin) => path.starts_with(begin.as_bytes()),
            None => path == name.as_bytes(),
        })
    };
    let closed = paths.filter(move |path| !is_open(path));
    closed.map(|path| Path::new(OsStr::from_bytes(path)).to_owned())
}

/// A socket's mount, and its device and inode there.
type Place = (u64, (u32, u32), u64);

/// What is at a path.
enum Looked {
    Socket {
        socket: OwnedFd,
        owner: u32,
        place: Place,
    },
    /// No socket, or one that is nowhere in this view of the mounts.
    Nothing,
    /// On a filesystem that keeps it from root.
    Unreachable,
}

fn look(path: &Path) -> anyhow::Result<Looked> {
    let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    // `/proc/PID/root` leads to mounts of another view, over which nothing can be mounted.
    let links = ResolveFlags::NO_MAGICLINKS;
    let wanted = StatxFlags::TYPE | StatxFlags::UID | StatxFlags::INO | StatxFlags::MNT_ID;
    let opened = rustix::fs::openat2(CWD, path, flags, Mode::empty(), links);
    let looked = opened.and_then(|socket| {
        let found = rustix::fs::statx(&socket, "", AtFlags::EMPTY_PATH, wanted)?;
        Ok((found, socket))
    });
    match looked {
        Ok((found, socket)) => Ok(match FileType::from_raw_mode(found.stx_mode.into()) {
            FileType::Socket => Looked::Socket {
                socket,
                owner: found.stx_uid,
                place: (
                    found.stx_mnt_id,
                    (found.stx_dev_major, found.stx_dev_minor),
                    found.stx_ino,
                ),
            },
            _ => Looked::Nothing,
        }),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Looked::Nothing),
        Err(e @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
            Err(e).context("local daemons' sockets cannot be looked at")
        }
        Err(_) => Ok(Looked::Unreachable),
    }
}

/// The sockets to cover, each with its owner: root's and those of the command's user first, without which there is no run. Of
/// the others, of whom anybody may be, those that fit: the services' own users have the lowest ids.
fn chosen<T: Ord>(
    mut found: Vec<(u32, T)>,
    user: u32,
    max: usize,
) -> anyhow::Result<impl Iterator<Item = T>> {
    for (owner, _) in &mut found {
        if *owner == user {
            *owner = 0;
        }
    }
    found.sort();
    let firm = found.iter().filter(|(owner, _)| *owner == 0).count();
    if firm > max {
        bail!(
            "root and user {user} have {firm} sockets that the command is not to find, and {max} can be covered: end what is not needed (`ss -xl` lists them)"
        );
    }
    if let Some((owner, _)) = found.get(max) {
        tell!(
            "tollgate: {} sockets of user {owner} and of users after are not covered: {max} are at most",
            found.len() - max
        );
    }
    Ok(found.into_iter().take(max).map(|(_, socket)| socket))
}

/// By a descriptor: what a name leads to may be something else by now.
fn cover_one(socket: &OwnedFd) -> Result<(), Errno> {
    match mount::mount_bind("/dev/null", format!("/proc/self/fd/{}", socket.as_raw_fd())) {
        // It was removed, or is in no mount of this view.
        Err(Errno::NOENT | Errno::INVAL) => Ok(()),
        done => done,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;

    fn names(paths: impl Iterator<Item = PathBuf>) -> String {
        let texts: Vec<String> = paths.map(|path| path.display().to_string()).collect();
        texts.join("|")
    }

    #[test]
    fn listeners_and_datagram_sockets_with_a_path() {
        let table = b"Num       RefCount Protocol Flags    Type St Inode Path\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 100 /run/docker.sock\n\
            0000000000000000: 00000002 00000000 00000000 0002 01   101 /dev/log\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 102 /run/docker.sock\n\
            0000000000000000: 00000003 00000000 00000000 0001 03 103\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 104 @/tmp/.X11-unix/X0\n\
            0000000000000000: 00000002 00000000 00010000 0001 01 105 /run/my dir/s\n";
        let found = |open: &[&str]| {
            let open: Vec<String> = open.iter().map(|name| (*name).to_owned()).collect();
            names(paths(table, &open))
        };
        assert_eq!(found(&[]), "/run/docker.sock|/dev/log|/run/my dir/s");
        assert_eq!(found(&["/dev/log"]), "/run/docker.sock|/run/my dir/s");
        assert_eq!(found(&["/run/**"]), "/dev/log");
        assert_eq!(found(&["/run/docker"]), found(&[]));
        let latin = b"Num\n0: 00000002 00000000 00010000 0001 01 1 /\xe4\n";
        let found: Vec<PathBuf> = paths(latin, &[]).collect();
        assert_eq!(found, [Path::new(OsStr::from_bytes(b"/\xe4"))]);
    }

    #[test]
    fn only_what_is_a_socket() {
        let folder = tempfile::tempdir().unwrap();
        // The kernel's own table has two lines of it then, the second with the path of a directory.
        let forged = "s\nx: 0 0 00010000 0001 01 1 ";
        std::fs::create_dir(folder.path().join(forged)).unwrap();
        let name = folder.path().join(forged).join("usr");
        let _socket = UnixListener::bind(&name).unwrap();
        let table = std::fs::read("/proc/net/unix").unwrap();
        assert!(paths(&table, &[]).any(|path| path == Path::new("/usr")));
        for (path, is_socket) in [
            (&*name, true),
            (Path::new("/usr"), false),
            (folder.path(), false),
            (Path::new("/proc/self/root"), false),
            (
                &Path::new("/proc/self/root").join(name.strip_prefix("/").unwrap()),
                false,
            ),
            (Path::new("/no such file"), false),
        ] {
            let looked = look(path).unwrap();
            assert_eq!(matches!(looked, Looked::Socket { .. }), is_socket);
        }
    }

    #[test]
    fn who_binds_many_uncovers_nobody_elses() {
        let flood = (0..9).map(|n| (1001, format!("/a/{n}")));
        let all = [
            (0, "/run/docker.sock"),
            (33, "/run/www"),
            (1000, "/tmp/agent"),
        ];
        let all = all.map(|(owner, path)| (owner, path.to_owned()));
        let all = flood.chain(all).map(|(owner, path)| (owner, path.into()));
        let all: Vec<(u32, PathBuf)> = all.collect();
        let covered = chosen(all.clone(), 1000, 4).map(names);
        let covered = covered.unwrap();
        assert_eq!(covered, "/run/docker.sock|/tmp/agent|/run/www|/a/0");
        assert!(chosen(all.clone(), 1000, 1).is_err());
        assert!(chosen(all, 1001, 9).is_err());
    }
}
