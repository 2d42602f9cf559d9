//! The kernel's keys that a process has with it.
use std::io;

/// `KEYCTL_JOIN_SESSION_KEYRING`
const JOIN_SESSION: libc::c_long = 1;

/// Gives this process a new session keyring of its user's, with nothing in it. What holds a keyring may read what is in it, whoever it has
/// become since: the caller's would stay with it through `exec`.
///
/// # Errors
/// The user has no room for a keyring, or may have none. Where the kernel has no keys there is nothing to leave.
pub fn leave_session() -> io::Result<()> {
    let anonymous = std::ptr::null::<libc::c_char>();
    // SAFETY: needed because nobody wraps this call. It takes a number and a name, of which there is none.
    let done = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION, anonymous) };
    match done {
        0.. => Ok(()),
        _ => match io::Error::last_os_error() {
            none if none.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            e => Err(e),
        },
    }
}
