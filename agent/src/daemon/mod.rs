//! The agent as a process: an ordered start, a control plane beside the data plane, an ordered stop.
//!
//! Everything that can fail by configuration fails before anything is steered: see `start.rs`.
pub mod admin;
mod agent;
mod budgets;
mod cgroups;
mod conditions;
mod containers;
pub mod content;
mod control;
mod counters;
mod digests;
mod dirs;
mod earlier;
mod enrol;
mod error;
mod events;
mod executables;
pub mod explain;
mod fit;
mod harden;
mod kept;
mod mend;
mod mounts;
mod namespaces;
mod notify;
mod paths;
mod places;
mod policy;
mod rules;
mod runs;
mod selectors;
mod skipped;
mod start;
mod status;
mod troubles;
mod trust;
mod unseen;
pub mod users;
mod vital;
mod watch;

pub use error::Error;
pub use fit::compile;
pub use policy::read as read_policy;
pub use trust::trust;

/// Writes a file that everybody may read, whole or not at all.
///
/// # Errors
/// The system's word.
pub fn publish(path: &Path, contents: &[u8]) -> std::io::Result<()> {
    dirs::publish(path, contents, 0o644)
}

use crate::config::Config;
use std::path::{Path, PathBuf};

/// How the directory of a private agent is named.
pub const PRIVATE_PREFIX: &str = "tollgate-run-";

/// Where the decision log of an agent with this state directory is.
pub fn decisions_dir(state_dir: &Path) -> PathBuf {
    state_dir.join("decisions")
}

/// How long an agent lives, and what it leaves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Lifetime {
    /// Until it is told to stop; what it governs stays fenced in without it.
    Service,
    /// For one `tollgate run`: until its standard input ends and nothing it governs is left. Then it lifts its fence
    /// and removes this directory. Says `ready` on its standard output.
    Private {
        /// Holds state and runtime directories.
        directory: PathBuf,
    },
}

/// Runs an agent until it is told to stop.
///
/// # Errors
/// It could not start.
pub fn run(config: Config, lifetime: Lifetime) -> Result<(), Error> {
    harden::harden()?;
    if !rustix::process::geteuid().is_root() {
        return Err(Error::NotRoot);
    }
    let lock = dirs::prepare(&config)?;
    let up = start::bring_up(config, lifetime)?;
    let ended = control::run(up);
    drop(lock);
    ended
}
