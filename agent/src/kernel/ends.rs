//! Ends connections, by a process of its own ([`super::aside`]): the kernel waits for whoever is in a call on the socket, and who sends
//! from memory that a file of somebody's (FUSE) is in is in it for as long as that one does not answer.
use super::aside::{self, Left};
use super::copies;
use super::diag::{self, Diag, Socket};
use super::holders::Holder;
use std::io;

/// Ends a connection; `holder` has it open, if anybody has. Its process and its peer are told.
///
/// # Errors
/// The kind `NotFound`: it was over already; `TimedOut`: somebody is in a call on it that does not end, it ends with that; the kernel's word.
pub(super) fn end(diag: &Diag, socket: &Socket, holder: Option<Holder>) -> io::Result<()> {
    let left = Left {
        user: socket.user(),
        socket: Some(socket.cookie()),
        holds_diag: false,
    };
    if aside::is_refused(left.user, left.socket) {
        return Err(aside::held());
    }
    // Who waits for it so holds up nobody else; where it cannot be had, or not so, the kernel finds it.
    let request = holder.filter(|_| diag::is_held_up_by_one());
    let request = request.and_then(|holder| copies::to_disconnect(holder, socket.inode));
    if let Some(request) = request
        && diag.aside(&request, None, left)? == 0
    {
        return Ok(());
    }
    diag.destroy(socket, left)
}
