//! Ends connections, by a process of its own ([`super::aside`]): the kernel waits for whoever is in a call on the socket, and who sends
//! from memory that a file of somebody's (FUSE) is in is in it for as long as that one does not answer.
use super::aside::{self, Aside, Left};
use super::diag::{Diag, Socket};
use super::holders::Holder;
use super::{bounded, copies, probe, processes};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::OnceLock;
use std::time::Instant;

/// From here on who waits so keeps nobody else's question about sockets waiting.
const ONE_BY_ONE: (u32, u32) = (6, 9);

/// Ends them, for the length of a look.
#[derive(Debug, Default)]
pub(super) struct Ends(Option<Aside>);

/// Does whoever waits for a socket keep all others waiting who ask about any?
fn holds_diag() -> bool {
    static HOLDS: OnceLock<bool> = OnceLock::new();
    *HOLDS.get_or_init(|| probe::release().is_none_or(|release| release < ONE_BY_ONE))
}

impl Ends {
    /// Ends a connection; `holder` has it open, if anybody has. Its process and its peer are told.
    ///
    /// # Errors
    /// The kind `NotFound`: it was over already; `TimedOut`: somebody is in a call on it that does not end, it ends with that;
    /// the kernel's word.
    pub(super) fn end(
        &mut self,
        diag: &Diag,
        socket: &Socket,
        holder: Option<Holder>,
    ) -> io::Result<()> {
        let user = holder.and_then(|holder| processes::owner(holder.process));
        let left = Left {
            user,
            socket: Some(socket.cookie()),
            holds_diag: false,
        };
        if aside::is_refused(user, left.socket) {
            return Err(kept());
        }
        // Nobody else waits for this one; where it cannot be had, or not so, the kernel finds it.
        let request = holder.filter(|_| holds_diag());
        let request = request.and_then(|holder| copies::to_disconnect(holder, socket.inode));
        if let Some(request) = request
            && self.ask(&request, None, left)? == 0
        {
            return Ok(());
        }
        let left = Left {
            holds_diag: holds_diag(),
            ..left
        };
        match self.ask(&diag.ending(socket)?, Some(diag.as_fd()), left)? {
            0 => Ok(()),
            code => Err(io::Error::from_raw_os_error(code)),
        }
    }

    /// Is anybody answered who asks about sockets? Whoever asks where nobody is cannot be killed.
    pub(super) fn is_answered(&mut self, diag: &Diag) -> io::Result<()> {
        if !holds_diag() {
            return Ok(());
        }
        let left = Left {
            holds_diag: true,
            ..Left::default()
        };
        if aside::is_diag_held_now() {
            return Err(kept());
        }
        self.ask(&diag.asking_of_none()?, Some(diag.as_fd()), left)
            .map(drop)
    }

    /// The code of the answer.
    fn ask(&mut self, request: &[u8], with: Option<BorrowedFd<'_>>, left: Left) -> io::Result<i32> {
        let aside = self.0.take().map_or_else(Aside::start, Ok)?;
        let begun = Instant::now();
        let Ok((code, _)) = aside.ask(request, with) else {
            aside.leave(left);
            bounded::was_silent(left.user, begun.elapsed());
            return Err(kept());
        };
        self.0 = Some(aside);
        Ok(code)
    }
}

fn kept() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "somebody is in a call on it that does not end, or too many are: nothing leaves it, and it ends with that call",
    )
}
