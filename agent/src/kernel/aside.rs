//! What may wait for as long as somebody likes, and cannot be killed while it does, is done by a process of its own, `tollgate aside`: it is
//! waited for for a second, and left behind if that is not enough. It has none of the agent's descriptors, its port among them.
//!
//! To close a file of a filesystem that does not answer (FUSE) waits so ([`super::copies`]), and so does to end a connection whose
//! owner is in `send()` from memory of such a file ([`super::ends`]).
use super::{bounded, copies, diag};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::{Errno, retry_on_intr};
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
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
/// Bytes of a question at most.
const ROOM: usize = 256;

/// The program that has the verb: this one.
static PROGRAM: OnceLock<PathBuf> = OnceLock::new();

/// Says which program has the verb `aside`, where that is not this one.
pub fn by(program: PathBuf) {
    let _ = PROGRAM.set(program);
}

/// Such a process.
#[derive(Debug)]
pub(super) struct Aside {
    process: Option<Child>,
    end: OwnedFd,
    left: Left,
}

/// Why one may never end.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Left {
    /// For the sake of whose process.
    pub(super) user: Option<u32>,
    /// The cookie of the socket that it is at.
    pub(super) socket: Option<u64>,
    /// Nobody's question about sockets is answered as long, see [`is_diag_held`].
    pub(super) holds_diag: bool,
}

impl Aside {
    pub(super) fn start() -> io::Result<Self> {
        let (kind, flags) = (SocketType::SEQPACKET, SocketFlags::CLOEXEC);
        let (end, other) = socketpair(AddressFamily::UNIX, kind, flags, None)?;
        let program = PROGRAM.get().cloned();
        let mut command = Command::new(program.unwrap_or_else(|| "/proc/self/exe".into()));
        command.arg("aside").env_clear().stdin(Stdio::from(other));
        let process = command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()?;
        Ok(Self {
            process: Some(process),
            end,
            left: Left::default(),
        })
    }

    /// A code, 0 if all went well, and what came with it.
    ///
    /// # Errors
    /// There was no answer in time.
    pub(super) fn ask(
        &self,
        request: &[u8],
        with: Option<BorrowedFd<'_>>,
    ) -> io::Result<(i32, Option<OwnedFd>)> {
        send(self.end.as_fd(), request, with)?;
        let mut code = [0; 4];
        match self.wait(&mut code)? {
            (4, copy) => Ok((i32::from_ne_bytes(code), copy)),
            _ => Err(io::ErrorKind::TimedOut.into()),
        }
    }

    /// The next page of what it was asked to read: its bytes.
    ///
    /// # Errors
    /// There was none in time.
    pub(super) fn page(&self, room: &mut [u8]) -> io::Result<usize> {
        self.wait(room).map(|(bytes, _)| bytes)
    }

    fn wait(&self, room: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
        let mut polled = [PollFd::new(&self.end, PollFlags::IN)];
        if retry_on_intr(|| poll(&mut polled, Some(&ANSWER)))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        match receive(self.end.as_fd(), room)? {
            (0, _) => Err(io::ErrorKind::TimedOut.into()), // It has ended.
            came => Ok(came),
        }
    }

    /// It said nothing in time.
    pub(super) fn leave(mut self, left: Left) {
        self.left = left;
    }
}

/// Those that were told to end, and may have.
static ENDING: Mutex<Vec<(Child, Left)>> = Mutex::new(Vec::new());

fn ending() -> MutexGuard<'static, Vec<(Child, Left)>> {
    ENDING.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Those that have not.
fn hung() -> Vec<Left> {
    let mut ending = ending();
    ending.retain_mut(|(child, _)| child.try_wait().is_ok_and(|status| status.is_none()));
    ending.iter().map(|(_, left)| *left).collect()
}

/// Is nobody answered who asks about sockets (`sock_diag(7)`)? Who asks all the same cannot be killed.
pub(super) fn is_diag_held() -> bool {
    hung().iter().any(|one| one.holds_diag)
}

/// Is nothing to be done for the sake of this user's process now, or with this socket, because of what hangs, or has?
pub(super) fn is_refused(user: Option<u32>, socket: Option<u64>) -> bool {
    let hung = hung();
    let is_at = |one: &Left| socket.is_some() && one.socket == socket;
    too_many(user, &hung) || hung.iter().any(is_at) || !bounded::may_be_asked(user)
}

/// What is said of who is not waited for any longer.
pub(super) fn held() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "somebody is in a call on a socket that does not end, or too many are: nothing leaves it, and it ends with that call",
    )
}

/// Are there too many for one more of this user?
fn too_many(user: Option<u32>, hung: &[Left]) -> bool {
    let of = |is: &dyn Fn(Option<u32>) -> bool| hung.iter().filter(|one| is(one.user)).count();
    match user {
        Some(0) => of(&|one| one == Some(0)) >= HUNG,
        _ => of(&|one| one == user) >= HUNG_OF_ONE || of(&|one| one != Some(0)) >= HUNG,
    }
}

impl Drop for Aside {
    fn drop(&mut self) {
        let Some(mut process) = self.process.take() else {
            return;
        };
        // It has nothing to end in order.
        let _ = process.kill();
        let until = Instant::now() + END;
        while process.try_wait().is_ok_and(|status| status.is_none()) {
            if Instant::now() >= until {
                return ending().push((process, self.left));
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

/// The process: does what it is asked by whoever has the other end of its standard input, one thing after the other.
///
/// # Errors
/// What it was to copy is no socket, or the other end is gone.
pub fn serve() -> io::Result<()> {
    let asked = io::stdin();
    let mut request = [0; ROOM];
    // Until the other's is closed.
    let mut last = None;
    loop {
        let (bytes, with) = receive(asked.as_fd(), &mut request)?;
        let request = request.get(..bytes).unwrap_or_default();
        drop(last.take());
        if request.is_empty() {
            return Ok(());
        }
        if let Some(socket) = with {
            let code = code_of(&diag::pass_on(&socket, request));
            send(asked.as_fd(), &code.to_ne_bytes(), None)?;
            if code == 0 {
                diag::read_for(&socket, request, |page| send(asked.as_fd(), page, None))?;
            }
            continue;
        }
        match copies::serve(request) {
            Ok(copy) => {
                send(asked.as_fd(), &[0; 4], copy.as_ref().map(AsFd::as_fd))?;
                last = copy;
            }
            Err(failed) => {
                send(
                    asked.as_fd(),
                    &failed.code.raw_os_error().to_ne_bytes(),
                    None,
                )?;
                if failed.other.is_some() {
                    // To close it may take for ever: the next is asked of another process.
                    return Err(failed.code.into());
                }
            }
        }
    }
}

fn code_of(done: &io::Result<()>) -> i32 {
    let unnamed = Errno::IO.raw_os_error();
    done.as_ref()
        .err()
        .map_or(0, |error| error.raw_os_error().unwrap_or(unnamed))
}

fn send(to: BorrowedFd<'_>, bytes: &[u8], with: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut beside = SendAncillaryBuffer::new(&mut space);
    if with.is_some() {
        beside.push(SendAncillaryMessage::ScmRights(with.as_slice()));
    }
    sendmsg(to, &[IoSlice::new(bytes)], &mut beside, SendFlags::NOSIGNAL)?;
    Ok(())
}

/// How many bytes came, and the descriptor that came with them.
fn receive(from: BorrowedFd<'_>, room: &mut [u8]) -> io::Result<(usize, Option<OwnedFd>)> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut with = RecvAncillaryBuffer::new(&mut space);
    let mut slices = [IoSliceMut::new(room)];
    let got = recvmsg(from, &mut slices, &mut with, RecvFlags::CMSG_CLOEXEC)?;
    let copy = with.drain().find_map(|message| match message {
        RecvAncillaryMessage::ScmRights(mut all) => all.next(),
        _ => None,
    });
    Ok((got.bytes, copy))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_hangs_for_one_user_leaves_room_for_others() {
        let of = |user| Left {
            user,
            ..Left::default()
        };
        let [one, other, root] = [1_000, 1_001, 0].map(Some);
        let mut hung = vec![of(one); HUNG_OF_ONE];
        let each = |hung: &[_]| [one, other, root].map(|user| too_many(user, hung));
        assert_eq!(each(&hung[1..]), [false; 3]);
        assert_eq!(each(&hung), [true, false, false]);
        // As many users as somebody has ids.
        hung.extend((2_000..).map(|id| of(Some(id))).take(HUNG - HUNG_OF_ONE));
        assert_eq!(each(&hung), [true, true, false]);
        assert_eq!(each(&[of(root); HUNG]), [false, false, true]);
    }
}
