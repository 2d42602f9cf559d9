//! Copies of sockets that others have open. By the time that it is copied, a descriptor may be of another file: to close that, or to ask
//! what it is, waits for as long as whoever serves it (FUSE) likes, and who waits so cannot be killed: it is done by a process of its
//! own ([`super::aside`]). What comes back is a socket, and the process has it open as well until the agent has closed it: the last to
//! close one waits until it has sent what it has to (`SO_LINGER`).
use super::aside::{self, Aside, Left};
use super::bounded;
use super::holders::Holder;
use super::processes;
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::connect_unspec;
use rustix::net::sockopt::socket_domain;
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashSet;
use std::io;
use std::os::fd::{IntoRawFd, OwnedFd};
use std::time::Instant;

/// What the process says of a descriptor that is no socket; it ends then.
const NO_SOCKET: Errno = Errno::NOTSOCK;

/// What is wanted, process, descriptor, and the socket's inode.
type Request = [u8; 16];
/// A copy.
const COPY: u32 = 1;
/// That it has no peer any more.
const DISCONNECT: u32 = 2;

/// Asks to have a socket without its peer; of a thread that has a table of its own, it cannot be had before Linux 6.9.
pub(super) fn to_disconnect(holder: Holder, inode: u32) -> Option<Request> {
    request(DISCONNECT, holder, inode)
}

fn request(what: u32, holder: Holder, inode: u32) -> Option<Request> {
    let number = holder.descriptor?.cast_unsigned();
    let mut request: Request = Default::default();
    let words = [what, holder.process, number, inode].map(u32::to_ne_bytes);
    for (to, from) in request.iter_mut().zip(words.iter().flatten()) {
        *to = *from;
    }
    Some(request)
}

/// Has copies made, for the length of a look.
#[derive(Debug, Default)]
pub(super) struct Copies {
    aside: Option<Aside>,
    /// The user of whose socket that has a copy still, until it is asked for the next.
    held: Option<Option<u32>>,
    /// There is no process to be had: rather by a thread of this one than by nobody.
    is_without: bool,
    /// Processes of which there was none in time.
    silent: HashSet<u32>,
}

impl Copies {
    /// A descriptor of this process's own, of a socket, to be closed before the next is asked for.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]: it is none, or another one; what the kernel says; [`io::ErrorKind::TimedOut`]: it says nothing.
    pub(super) fn of(&mut self, holder: Holder, inode: u32) -> io::Result<OwnedFd> {
        let request = request(COPY, holder, inode).ok_or(io::ErrorKind::Unsupported)?;
        let (user, begun) = (processes::owner(holder.process), Instant::now());
        if self.silent.contains(&holder.process) || aside::is_refused(user, None) {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let by_thread = || {
            bounded::of(holder.process, move |_| {
                copy(&request).map_err(Failed::kept)
            })?
        };
        if self.is_without {
            return by_thread();
        }
        let aside = match self.aside.take().map_or_else(Aside::start, Ok) {
            Ok(aside) => aside,
            Err(_) => {
                self.is_without = true;
                return by_thread();
            }
        };
        let (answer, before) = (ask(&aside, &request, inode), self.held.take());
        let left = Left {
            user,
            ..Left::default()
        };
        if let (Answer::Silence, Some(other)) = (&answer, before) {
            // It may be that of the socket before that is being closed for so long, its owner having closed it meanwhile
            // (`SO_LINGER`): whose doing it is shows when this one is asked for anew.
            aside.leave(left);
            let took = begun.elapsed();
            let again = self.of(holder, inode);
            let is_silent = |error: &io::Error| error.kind() == io::ErrorKind::TimedOut;
            if !again.as_ref().is_err_and(is_silent) {
                bounded::was_silent(other, took);
            }
            return again;
        }
        let kind = match answer {
            Answer::Copy(copy) => {
                self.aside = Some(aside);
                self.held = Some(user);
                return Ok(copy);
            }
            Answer::None(code) if code != NO_SOCKET => {
                self.aside = Some(aside);
                return Err(code.into());
            }
            Answer::None(_) => io::ErrorKind::NotFound,
            // One may be under way still.
            Answer::Silence => io::ErrorKind::TimedOut,
        };
        // Who does so once may do so with each: it costs a process, which may never end.
        self.silent.insert(holder.process);
        aside.leave(left);
        bounded::was_silent(user, begun.elapsed());
        Err(kind.into())
    }
}

fn ask(aside: &Aside, request: &Request, inode: u32) -> Answer {
    match aside.ask(request, None) {
        Ok((0, Some(copy))) if is_it(&copy, inode) => Answer::Copy(copy),
        Ok((code, None)) if code != 0 => Answer::None(Errno::from_raw_os_error(code)),
        _ => Answer::Silence,
    }
}

/// What came of a question.
enum Answer {
    Copy(OwnedFd),
    /// The kernel's word.
    None(Errno),
    Silence,
}

fn is_it(socket: &OwnedFd, inode: u32) -> bool {
    fstat(socket).is_ok_and(|found| found.st_ino == u64::from(inode))
}

/// The process: a copy, or `None` where something else was wanted, and has been done.
pub(super) fn serve(request: &[u8]) -> Result<Option<OwnedFd>, Failed> {
    let request: &Request = request.try_into().map_err(|_| Errno::INVAL)?;
    let (what, copy) = (word(request, 0), copy(request)?);
    if what == DISCONNECT {
        connect_unspec(&copy)?;
        return Ok(None);
    }
    Ok(Some(copy))
}

/// There is no copy.
#[derive(Debug)]
pub(super) struct Failed {
    pub(super) code: Errno,
    /// What is no socket, open until somebody has been told.
    pub(super) other: Option<OwnedFd>,
}

impl Failed {
    /// Where it must not be closed: it is left open.
    fn kept(self) -> io::Error {
        let is_other = self.other.map(IntoRawFd::into_raw_fd).is_some();
        match is_other {
            true => io::ErrorKind::NotFound.into(),
            false => self.code.into(),
        }
    }
}

impl From<Errno> for Failed {
    fn from(code: Errno) -> Self {
        Self { code, other: None }
    }
}

/// A copy, if it is this socket.
fn copy(request: &Request) -> Result<OwnedFd, Failed> {
    let [process, number, inode] = [1, 2, 3].map(|at| word(request, at));
    let pid = i32::try_from(process).ok().and_then(Pid::from_raw);
    let process = pidfd_open(pid.ok_or(Errno::SRCH)?, PidfdFlags::empty())?;
    let copy = pidfd_getfd(&process, number.cast_signed(), PidfdGetfdFlags::empty())?;
    // Closed since, and its number given to another? A file's filesystem is not to be asked what it is.
    if socket_domain(&copy) == Err(NO_SOCKET) {
        return Err(Failed {
            code: NO_SOCKET,
            other: Some(copy),
        });
    }
    match is_it(&copy, inode) {
        true => Ok(copy),
        false => Err(Errno::NOENT.into()),
    }
}

fn word(request: &Request, at: usize) -> u32 {
    let word = request.as_chunks().0.get(at).copied();
    u32::from_ne_bytes(word.unwrap_or_default())
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    fn of(number: i32, inode: u64) -> Request {
        let holder = Holder {
            process: std::process::id(),
            descriptor: Some(number),
        };
        request(COPY, holder, inode.try_into().unwrap()).unwrap()
    }

    #[test]
    fn only_the_socket_that_was_meant_is_copied() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fstat(&listener).unwrap().st_ino;
        let copied = copy(&of(listener.as_raw_fd(), inode)).unwrap();
        assert_eq!(fstat(&copied).unwrap().st_ino, inode);
        let another = copy(&of(listener.as_raw_fd(), inode + 1));
        assert_eq!(another.unwrap_err().code, Errno::NOENT);
        let file = tempfile::tempfile().unwrap();
        let no_socket = copy(&of(file.as_raw_fd(), inode));
        let no_socket = no_socket.unwrap_err();
        assert!(no_socket.code == NO_SOCKET && no_socket.other.is_some());
        assert_eq!(copy(&of(1 << 20, inode)).unwrap_err().code, Errno::BADF);
    }
}
