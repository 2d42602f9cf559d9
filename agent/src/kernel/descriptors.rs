//! Descriptors that a process inherited without having opened them.
use std::io;

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
