//! What the agent gives up before it holds anything worth taking.
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use std::io;

/// Files it makes are its own, it leaves no core dump, others of its user cannot read its memory, and it may open
/// as many descriptors as the system lets it.
///
/// # Errors
/// The system's word; each of these is allowed to any process, so a failure means a sandbox is in the way.
pub(super) fn harden() -> io::Result<()> {
    rustix::process::umask(rustix::fs::Mode::RWXG | rustix::fs::Mode::RWXO);
    rustix::process::setrlimit(
        Resource::Core,
        Rlimit {
            current: Some(0),
            maximum: Some(0),
        },
    )?;
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    let files = rustix::process::getrlimit(Resource::Nofile);
    rustix::process::setrlimit(
        Resource::Nofile,
        Rlimit {
            current: files.maximum,
            maximum: files.maximum,
        },
    )?;
    Ok(())
}
