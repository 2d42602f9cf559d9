//! A view of the host that is one process tree's own.
use rustix::thread::{UnshareFlags, unshare_unsafe};
use std::io;

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
