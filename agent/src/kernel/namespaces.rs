//! Namespaces: a view of the host that is one process tree's own, and sockets in another network.
use super::missed::unless_short;
pub use super::processes::threads;
use super::{bounded, sys};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space, unshare_unsafe};
use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Gives the calling thread its own mount namespace, and makes the cgroup that it is in the root of all cgroups it can
/// see. Mounts are still shared with the host: the caller says how they propagate before it changes any.
///
/// # Errors
/// `EPERM` without `CAP_SYS_ADMIN`.
pub fn leave_the_hosts_view() -> io::Result<()> {
    // SAFETY: needed because rustix has no safe call for it. The danger it names is `UnshareFlags::FILES`, a descriptor
    // table that other threads do not see; these two flags leave descriptors and memory as they are.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS | UnshareFlags::NEWCGROUP) }
        .map_err(io::Error::from)
}

/// A network namespace, kept alive while this is.
#[derive(Debug)]
pub struct Network(File);

impl Network {
    /// The one that a thread is in; `None` for this process's own.
    ///
    /// # Errors
    /// The thread is gone, or may not be looked at; [`io::ErrorKind::TimedOut`]: the kernel does not say.
    pub fn of(pid: u32, thread: u32) -> io::Result<Self> {
        let ask = move |pid| File::open(format!("/proc/{pid}/task/{thread}/ns/net"));
        bounded::of(pid, ask)?.map(Self)
    }

    /// Those that threads of a process are in, each once, by their inodes.
    ///
    /// # Errors
    /// Descriptors or memory are short; [`io::ErrorKind::TimedOut`]: the kernel does not say.
    pub(super) fn all_of(pid: u32, threads: Vec<u32>) -> io::Result<BTreeMap<u64, Self>> {
        bounded::of(pid, move |pid| {
            let mut found = BTreeMap::new();
            for thread in &threads {
                let at = format!("/proc/{pid}/task/{thread}/ns/net");
                let Some(network) = unless_short(File::open(at).map(Self))? else {
                    continue;
                };
                if let Some(inode) = unless_short(network.inode())? {
                    found.entry(inode).or_insert(network);
                }
            }
            Ok(found)
        })?
    }

    /// The one that a socket is in: `SIOCGSKNS`, Linux 4.10.
    ///
    /// # Errors
    /// `EPERM` without `CAP_NET_ADMIN` there.
    pub(super) fn of_socket(socket: BorrowedFd<'_>) -> io::Result<Self> {
        const SIOCGSKNS: libc::c_ulong = 0x894c;
        // SAFETY: needed because nobody wraps this call. It takes no argument.
        let made = unsafe { libc::ioctl(socket.as_raw_fd(), SIOCGSKNS as _) };
        if made < 0 {
            return Err(io::Error::last_os_error());
        }
        // SAFETY: the kernel made the descriptor for this call, and nobody else has it.
        Ok(Self(unsafe { File::from_raw_fd(made) }))
    }

    /// Tells it from others for as long as it lives.
    ///
    /// # Errors
    /// None that is known.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.ino())
    }

    /// The one that a file of a nsfs stands for.
    ///
    /// # Errors
    /// The file cannot be opened.
    pub fn at(path: &Path) -> io::Result<Self> {
        File::open(path).map(Self)
    }

    /// Does `work` on a thread of its own that is in this namespace, with its loopback interface up: what it opens stays
    /// there, the caller stays where it is.
    ///
    /// # Errors
    /// The namespace cannot be entered (`EPERM` without `CAP_SYS_ADMIN`), or its loopback not be brought up.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        self.look(|| {
            raise_loopback()?;
            work()
        })
    }

    /// The same, with nothing in the namespace changed.
    ///
    /// # Errors
    /// The namespace cannot be entered.
    pub fn look<T: Send>(&self, work: impl FnOnce() -> io::Result<T> + Send) -> io::Result<T> {
        std::thread::scope(|scope| {
            let thread = std::thread::Builder::new()
                .name("namespace".to_owned())
                .spawn_scoped(scope, || {
                    move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network))?;
                    work()
                })?;
            thread
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("the thread in the namespace panicked")))
        })
    }
}

/// Brings the calling thread's loopback interface up, if it is not: in a new namespace it is down, has no address, and
/// nothing can be bound to it.
fn raise_loopback() -> io::Result<()> {
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::DGRAM, None)?;
    // SAFETY: needed because nobody wraps this call. All zero is a valid request.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = from.cast_signed();
    }
    let up = libc::c_short::try_from(libc::IFF_UP).unwrap_or(1);
    control(&socket, libc::SIOCGIFFLAGS, &mut request)?;
    // SAFETY: the kernel filled in the flags, which are integers.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    if flags & up != 0 {
        return Ok(());
    }
    request.ifr_ifru.ifru_flags = flags | up;
    control(&socket, libc::SIOCSIFFLAGS, &mut request)
}

/// Asks the kernel something about an interface.
fn control(
    socket: &socket2::Socket,
    question: libc::c_ulong,
    request: &mut libc::ifreq,
) -> io::Result<()> {
    // SAFETY: the descriptor is a socket's, and both questions read and write an `ifreq`, which outlives the call.
    let done = unsafe {
        libc::ioctl(
            socket.as_raw_fd(),
            question as _,
            std::ptr::from_mut(request),
        )
    };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}

/// `SO_NETNS_COOKIE`: the kernel's id of a socket's network namespace, never used again.
pub(super) fn cookie(socket: BorrowedFd<'_>) -> io::Result<u64> {
    const SO_NETNS_COOKIE: libc::c_int = 71;
    sys::socket_option(socket, SO_NETNS_COOKIE)
}
