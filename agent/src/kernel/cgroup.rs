//! Cgroups by path and by id. An id is the inode of the cgroup's directory and is never used again.
use super::missed::unless_short;
use super::{Error, probe::CgroupRoot};
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;
use tollgate_common::limits::MAX_LEVEL;

/// A subtree that is to be governed.
#[derive(Debug, Clone)]
pub(super) struct Subtree {
    /// Id of its root.
    pub(super) id: u64,
    /// Depth of its root below the cgroup root.
    pub(super) level: u32,
    /// Its path below the cgroup root.
    pub(super) path: PathBuf,
    dir: Arc<OwnedFd>,
}

impl Subtree {
    /// Was it removed since it was looked up? Such a one has no files any more, and had them when it could be opened.
    pub(super) fn is_gone(&self) -> bool {
        let flags = OFlags::PATH | OFlags::CLOEXEC;
        let file = fs::openat(&*self.dir, "cgroup.procs", flags, Mode::empty());
        matches!(file, Err(Errno::NOENT | Errno::NODEV))
    }
}

/// Looks a subtree up by its path below the cgroup root, to govern it.
pub(super) fn subtree_of_others(root: &CgroupRoot, path: &Path) -> Result<Subtree, Error> {
    let is_own = normal(path).map_or(Ok(false), |relative| is_above_self(&relative));
    match is_own {
        Ok(true) => Err(Error::GovernsItself {
            path: path.to_owned(),
        }),
        Ok(false) => subtree(root, path),
        Err(source) => Err(Error::Cgroup {
            path: "/proc/self/cgroup".into(),
            source,
        }),
    }
}

/// Looks a subtree up by its path below the cgroup root.
pub(super) fn subtree(root: &CgroupRoot, path: &Path) -> Result<Subtree, Error> {
    let failed = |source| Error::Cgroup {
        path: path.to_owned(),
        source,
    };
    let relative = normal(path).ok_or_else(|| failed(io::ErrorKind::InvalidInput.into()))?;
    let level = relative.components().count();
    let level = match u32::try_from(level) {
        Ok(short) if short < MAX_LEVEL => short,
        _ => {
            return Err(Error::TooDeep {
                path: path.to_owned(),
                level,
                limit: MAX_LEVEL,
            });
        }
    };
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let dir = fs::openat(&root.fd, &relative, flags, Mode::empty())
        .map_err(|errno| failed(errno.into()))?;
    let id = fs::fstat(&dir)
        .map_err(|errno| failed(errno.into()))?
        .st_ino;
    Ok(Subtree {
        id,
        level,
        path: relative,
        dir: Arc::new(dir),
    })
}

/// The path without a leading slash and without anything that leads elsewhere.
fn normal(path: &Path) -> Option<PathBuf> {
    let mut normal = PathBuf::new();
    for part in path.components() {
        match part {
            Component::RootDir | Component::CurDir => {}
            Component::Normal(name) => normal.push(name),
            Component::ParentDir | Component::Prefix(_) => return None,
        }
    }
    Some(normal)
}

/// Does this process run in the subtree? It would be steered to itself.
fn is_above_self(relative: &Path) -> io::Result<bool> {
    let table = std::fs::read("/proc/self/cgroup")?;
    let own = table
        .split(|&byte| byte == b'\n')
        .find_map(|line| line.strip_prefix(b"0::/"));
    Ok(own.is_some_and(|own| Path::new(std::ffi::OsStr::from_bytes(own)).starts_with(relative)))
}

/// `FILEID_KERNFS`: a handle that is an id.
const KERNFS_HANDLE: libc::c_int = 0xfe;

/// `struct file_handle` with room for an id.
#[repr(C)]
struct Handle {
    bytes: libc::c_uint,
    kind: libc::c_int,
    id: [u8; 8],
}

/// Why a cgroup's path is not known.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Pathless {
    /// There is no such cgroup any more. Otherwise it could not be asked for: for want of descriptors or memory, or because
    /// this process may not open by handle (CAP_DAC_READ_SEARCH).
    pub(super) is_gone: bool,
}

/// The path below the root of the cgroup with this id.
pub(super) fn path(root: &CgroupRoot, id: u64) -> Result<PathBuf, Pathless> {
    let unknown = Pathless { is_gone: false };
    let mut handle = Handle {
        bytes: 8,
        kind: KERNFS_HANDLE,
        id: id.to_ne_bytes(),
    };
    // SAFETY: needed because nobody wraps this call. The handle has the layout of `file_handle`, says
    // its own size, and outlives the call; the descriptor is the cgroup mount's.
    let fd = unsafe {
        libc::open_by_handle_at(
            root.fd.as_raw_fd(),
            std::ptr::from_mut(&mut handle).cast(),
            libc::O_PATH | libc::O_CLOEXEC,
        )
    };
    if fd < 0 {
        let code = io::Error::last_os_error().raw_os_error();
        let is_gone = matches!(code, Some(libc::ESTALE | libc::ENOENT));
        return Err(Pathless { is_gone });
    }
    // SAFETY: the kernel just made this descriptor for us, nobody else owns it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    let link = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let absolute = std::fs::read_link(link).map_err(|_| unknown)?;
    let relative = absolute.strip_prefix(&root.path).map_err(|_| unknown)?;
    // A removed directory's link names it with this at its end.
    let is_gone = relative.as_os_str().as_bytes().ends_with(b" (deleted)") && !absolute.exists();
    match is_gone {
        true => Err(Pathless { is_gone }),
        false => Ok(relative.to_owned()),
    }
}

/// Processes in a cgroup and below it, but for what goes away meanwhile.
///
/// # Errors
/// Descriptors or memory are short.
pub(super) fn members(directory: &Path) -> io::Result<Vec<u32>> {
    let mut found = Vec::new();
    let mut todo = vec![directory.to_owned()];
    while let Some(directory) = todo.pop() {
        // A threaded cgroup does not list processes: its domain above it does.
        let listed = unless_short(std::fs::read_to_string(directory.join("cgroup.procs")))?;
        let listed = listed.unwrap_or_default();
        found.extend(listed.lines().filter_map(|line| line.parse::<u32>().ok()));
        let children = unless_short(std::fs::read_dir(&directory))?;
        for child in children.into_iter().flatten() {
            let Some(child) = unless_short(child)? else {
                continue;
            };
            if child.file_type().is_ok_and(|kind| kind.is_dir()) {
                todo.push(child.path());
            }
        }
    }
    Ok(found)
}

/// Kinds of units that have cgroups.
const UNITS: [&str; 6] = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];

/// The innermost systemd unit that a cgroup path names. Systemd puts `_` before a name that would
/// collide with one of the kernel's files.
pub(super) fn unit(path: &str) -> Option<String> {
    path.rsplit('/')
        .map(|part| part.strip_prefix('_').unwrap_or(part))
        .find(|part| {
            UNITS
                .iter()
                .any(|suffix| part.len() > suffix.len() && part.ends_with(suffix))
        })
        .map(str::to_owned)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn units_of_paths() {
        assert_eq!(
            unit("/system.slice/nginx.service").unwrap(),
            "nginx.service"
        );
        assert_eq!(
            unit("/system.slice/nginx.service/worker").unwrap(),
            "nginx.service"
        );
        assert_eq!(
            unit("/user.slice/user-1000.slice/user@1000.service/app.slice/app-x.scope").unwrap(),
            "app-x.scope"
        );
        assert_eq!(unit("/machine.slice").unwrap(), "machine.slice");
        assert_eq!(
            unit("/system.slice/_cgroup.service").unwrap(),
            "cgroup.service"
        );
        assert_eq!(unit("/build/.service"), None);
        assert_eq!(unit("/"), None);
    }

    #[test]
    fn paths_that_lead_elsewhere_are_refused() {
        assert_eq!(normal(Path::new("/a/./b")).unwrap(), Path::new("a/b"));
        assert_eq!(normal(Path::new("/")).unwrap(), Path::new(""));
        assert_eq!(normal(Path::new("a/../b")), None);
        assert!(
            is_above_self(Path::new("")).unwrap(),
            "the root is above everybody"
        );
    }
}
