//! Copies of sockets that processes have open, had by a process of its own, `tollgate copies`. By the time that it is copied, a descriptor
//! may be of another file: to close that, or to ask what it is, waits for as long as whoever serves it (FUSE) likes, and who waits so
//! cannot be killed. It would keep the agent's descriptors, its port among them. What comes back is a socket, and the process has it open
//! as well until the agent has closed it: the last to close one waits until it has sent what it has to (`SO_LINGER`).
use super::bounded;
use super::holders::Holder;
use super::processes;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::fstat;
use rustix::io::Errno;
use rustix::net::sockopt::socket_domain;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use rustix::process::{Pid, PidfdFlags, PidfdGetfdFlags, pidfd_getfd, pidfd_open};
use std::collections::HashSet;
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, IntoRawFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long an answer is waited for.
const ANSWER: Timespec = Timespec {
    tv_sec: 1,
    tv_nsec: 0,
};
/// How long one may take to end before that is left to the next call.
const END: Duration = Duration::from_millis(100);
/// Of those that have not ended, how many there may be for the sake of one user's processes, of all users' but root's, and of root's.
const HUNG_OF_ONE: usize = 4;
const HUNG: usize = 64;
/// What the process says of a descriptor that is no socket; it ends then.
const NO_SOCKET: Errno = Errno::NOTSOCK;

/// Process, descriptor, and the socket's inode.
type Request = [u8; 12];

/// The program that has the verb: this one.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Says which program has the verb `copies`, where that is not this one.
pub fn copies_by(program: PathBuf) {
    let _ = PROGRAM.set(program);
}

/// Has copies made, for the length of a look.
#[derive(Debug, Default)]
pub(super) struct Copies {
    maker: Option<Maker>,
    /// The user of whose socket that has a copy still, until it is asked for the next.
    held: Option<Option<u32>>,
    /// There is no process to be had: rather by a thread of this one than by nobody.
    is_without: bool,
    /// Processes of which there was none in time.
    silent: HashSet<u32>,
}

#[derive(Debug)]
struct Maker {
    process: Option<Child>,
    end: OwnedFd,
    /// Of whose descriptor it is that it may never end.
    user: Option<u32>,
}

impl Copies {
    /// A descriptor of this process's own, of a socket, to be closed before the next is asked for.
    ///
    /// # Errors
    /// [`io::ErrorKind::NotFound`]: it is none, or another one; what the kernel says; [`io::ErrorKind::TimedOut`]: it says nothing.
    pub(super) fn of(&mut self, holder: Holder, inode: u32) -> io::Result<OwnedFd> {
        // Of a thread that has a table of its own, it cannot be had before Linux 6.9.
        let number = holder.descriptor.ok_or(io::ErrorKind::Unsupported)?;
        let (user, begun) = (processes::owner(holder.process), Instant::now());
        let is_refused = || too_many(user, &hung()) || !bounded::may_be_asked(user);
        if self.silent.contains(&holder.process) || is_refused() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut request: Request = Default::default();
        let words = [holder.process, number.cast_unsigned(), inode].map(u32::to_ne_bytes);
        for (to, from) in request.iter_mut().zip(words.iter().flatten()) {
            *to = *from;
        }
        let by_thread = || {
            bounded::of(holder.process, move |_| {
                copy(&request).map_err(Failed::kept)
            })?
        };
        if self.is_without {
            return by_thread();
        }
        let mut maker = match self.maker.take().map_or_else(Maker::start, Ok) {
            Ok(maker) => maker,
            Err(_) => {
                self.is_without = true;
                return by_thread();
            }
        };
        let (answer, before) = (maker.ask(&request, inode), self.held.take());
        if let (Answer::Silence, Some(other)) = (&answer, before) {
            // It may be that of the socket before that is being closed for so long, its owner having closed it meanwhile
            // (`SO_LINGER`): whose doing it is shows when this one is asked for anew.
            maker.user = user;
            drop(maker);
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
                self.maker = Some(maker);
                self.held = Some(user);
                return Ok(copy);
            }
            Answer::None(code) if code != NO_SOCKET => {
                self.maker = Some(maker);
                return Err(code.into());
            }
            Answer::None(_) => io::ErrorKind::NotFound,
            // One may be under way still.
            Answer::Silence => io::ErrorKind::TimedOut,
        };
        // Who does so once may do so with each: it costs a process, which may never end.
        self.silent.insert(holder.process);
        maker.user = user;
        drop(maker);
        bounded::was_silent(user, begun.elapsed());
        Err(kind.into())
    }
}

impl Maker {
    fn start() -> io::Result<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (end, other) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let program = PROGRAM.get().cloned();
        let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
        command.arg("copies").env_clear().stdin(Stdio::from(other));
        let process = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            process: Some(process),
            end,
            user: None,
        })
    }

    fn ask(&self, request: &Request, inode: u32) -> Answer {
        match self.answer(request) {
            Ok((0, Some(copy))) if is_it(&copy, inode) => Answer::Copy(copy),
            Ok((code, None)) if code != 0 => Answer::None(Errno::from_raw_os_error(code)),
            _ => Answer::Silence,
        }
    }

    /// A code, and what came with it.
    fn answer(&self, request: &Request) -> io::Result<(i32, Option<OwnedFd>)> {
        sendmsg(
            &self.end,
            &[IoSlice::new(request)],
            &mut SendAncillaryBuffer::default(),
            SendFlags::NOSIGNAL,
        )?;
        let mut polled = [PollFd::new(&self.end, PollFlags::IN)];
        if poll(&mut polled, Some(&ANSWER))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut with = RecvAncillaryBuffer::new(&mut space);
        let mut code = [0; 4];
        let mut slices = [IoSliceMut::new(&mut code)];
        let got = recvmsg(&self.end, &mut slices, &mut with, RecvFlags::CMSG_CLOEXEC)?;
        let copy = with.drain().find_map(|message| match message {
            RecvAncillaryMessage::ScmRights(mut all) => all.next(),
            _ => None,
        });
        match got.bytes {
            4 => Ok((i32::from_ne_bytes(code), copy)),
            // It has ended.
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
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

/// Those that were told to end, and may have, with whose descriptors they had.
static ENDING: Mutex<Vec<(Child, Option<u32>)>> = Mutex::new(Vec::new());

/// The users of those that have not.
fn hung() -> Vec<Option<u32>> {
    let mut ending = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
    ending.retain_mut(|(child, _)| child.try_wait().is_ok_and(|status| status.is_none()));
    ending.iter().map(|(_, user)| *user).collect()
}

/// Are there too many for one more of this user?
fn too_many(user: Option<u32>, hung: &[Option<u32>]) -> bool {
    let of = |is: fn(Option<u32>) -> bool| hung.iter().filter(|one| is(**one)).count();
    match user {
        Some(0) => of(|one| one == Some(0)) >= HUNG,
        _ => {
            let own = hung.iter().filter(|one| **one == user).count();
            own >= HUNG_OF_ONE || of(|one| one != Some(0)) >= HUNG
        }
    }
}

impl Drop for Maker {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // It has nothing to end in order.
        let _ = process.kill();
        let until = Instant::now() + END;
        while process.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() >= until {
                // It waits for a file to be closed.
                let mut ending = ENDING.lock().unwrap_or_else(PoisonError::into_inner);
                return ending.push((process, self.user));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The process: makes copies for whoever has the other end of its standard input.
///
/// # Errors
/// It is no socket, or the other end is gone.
pub fn make() -> io::Result<()> {
    let asked = io::stdin();
    let mut request: Request = Default::default();
    // Until the other's is closed.
    let mut last = None;
    loop {
        let mut slices = [IoSliceMut::new(&mut request)];
        let mut none = RecvAncillaryBuffer::default();
        if recvmsg(&asked, &mut slices, &mut none, RecvFlags::empty())?.bytes != request.len() {
            return Ok(());
        }
        drop(last.take());
        match copy(&request) {
            Ok(copy) => {
                answer(asked.as_fd(), 0, Some(&copy))?;
                last = Some(copy);
            }
            Err(Failed { code, other }) => {
                answer(asked.as_fd(), code.raw_os_error(), None)?;
                if other.is_some() {
                    return Err(code.into()); // To close it may take for ever: the next is asked of another process.
                }
            }
        }
    }
}

fn answer(to: BorrowedFd<'_>, code: i32, copy: Option<&OwnedFd>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = SendAncillaryBuffer::new(&mut space);
    let copies = copy.map(AsFd::as_fd);
    if copies.is_some() {
        with.push(SendAncillaryMessage::ScmRights(copies.as_slice()));
    }
    let code = code.to_ne_bytes();
    sendmsg(to, &[IoSlice::new(&code)], &mut with, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// There is no copy.
#[derive(Debug)]
struct Failed {
    code: Errno,
    /// What is no socket, open until somebody has been told.
    other: Option<OwnedFd>,
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
    let mut words = request
        .chunks_exact(4)
        .map(|word| word.try_into().unwrap_or_default());
    let mut word = || u32::from_ne_bytes(words.next().unwrap_or_default());
    let (process, number, inode) = (word(), word(), word());
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

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::net::TcpListener;
    use std::os::fd::AsRawFd;

    fn request(number: i32, inode: u64) -> Request {
        let words = [
            std::process::id(),
            number.cast_unsigned(),
            inode.try_into().unwrap(),
        ];
        let bytes: Vec<u8> = words.iter().flat_map(|word| word.to_ne_bytes()).collect();
        bytes.try_into().unwrap()
    }

    #[test]
    fn what_hangs_for_one_user_leaves_room_for_others() {
        let [one, other, root] = [1_000, 1_001, 0].map(Some);
        let mut hung = vec![one; HUNG_OF_ONE];
        let each = |hung: &[_]| [one, other, root].map(|user| too_many(user, hung));
        assert_eq!(each(&hung[1..]), [false; 3]);
        assert_eq!(each(&hung), [true, false, false]);
        // As many users as somebody has ids.
        hung.extend((2_000..).map(Some).take(HUNG - HUNG_OF_ONE));
        assert_eq!(each(&hung), [true, true, false]);
        assert_eq!(each(&[root; HUNG]), [false, false, true]);
    }

    #[test]
    fn only_the_socket_that_was_meant_is_copied() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let inode = fstat(&listener).unwrap().st_ino;
        let copied = copy(&request(listener.as_raw_fd(), inode)).unwrap();
        assert_eq!(fstat(&copied).unwrap().st_ino, inode);
        let another = copy(&request(listener.as_raw_fd(), inode + 1));
        assert_eq!(another.unwrap_err().code, Errno::NOENT);
        let file = tempfile::tempfile().unwrap();
        let no_socket = copy(&request(file.as_raw_fd(), inode));
        let no_socket = no_socket.unwrap_err();
        assert!(no_socket.code == NO_SOCKET && no_socket.other.is_some());
        assert_eq!(
            copy(&request(1 << 20, inode)).unwrap_err().code,
            Errno::BADF
        );
    }
}
