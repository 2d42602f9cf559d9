//! What the system tells of descriptors, and those that a process inherited without having opened them.
use std::io;
use std::os::fd::{AsFd, AsRawFd};

/// Bytes that were written to a connection and have not arrived.
///
/// # Errors
/// It is no connection.
pub fn unsent(socket: &impl AsFd) -> io::Result<u32> {
    let mut bytes: libc::c_int = 0;
    // SAFETY: needed because nobody wraps this call. It writes one integer, which outlives it.
    let done = unsafe { libc::ioctl(socket.as_fd().as_raw_fd(), libc::TIOCOUTQ, &raw mut bytes) };
    if done == 0 {
        Ok(u32::try_from(bytes).unwrap_or(0))
    } else {
        Err(io::Error::last_os_error())
    }
}

/// Marks every descriptor from `first` on to be closed by the next `exec`.
///
/// # Errors
/// The kernel is older than 5.11.
pub fn close_on_exec(first: u32) -> io::Result<()> {
    let (last, flags) = (u32::MAX, libc::CLOSE_RANGE_CLOEXEC);
    // SAFETY: the call takes integers only, and sets a flag on descriptors: it closes none, so that no owner of one in
    // this process is left with a descriptor that is not its own.
    let done = unsafe { libc::syscall(libc::SYS_close_range, first, last, flags) };
    if done == 0 {
        Ok(())
    } else {
        Err(io::Error::last_os_error())
    }
}
