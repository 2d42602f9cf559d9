//! What the agent gives up before it holds anything worth taking.
use super::Error;
use rustix::process::{DumpableBehavior, Resource, Rlimit};

/// Descriptors without which it does not begin: with fewer it would fail somewhere on the way, or serve nobody. Maps,
/// programs and links take a hundred, each connection two.
const FEWEST_FILES: u64 = 1024;

/// Files it makes are its own, it leaves no core dump, others of its user cannot read its memory, and it may open
/// as many descriptors as the system lets it.
///
/// # Errors
/// The system's word; each of these is allowed to any process, so a failure means a sandbox is in the way. Or the system
/// lets it open too few.
pub(super) fn harden() -> Result<(), Error> {
    give_up().map_err(|errno| Error::Harden(errno.into()))?;
    match rustix::process::getrlimit(Resource::Nofile).current {
        Some(files) if files < FEWEST_FILES => Err(Error::FewFiles {
            files,
            fewest: FEWEST_FILES,
        }),
        _ => Ok(()),
    }
}

fn give_up() -> rustix::io::Result<()> {
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
    )
}
