//! `tollgate content`: what the agent has a process of its own for, see [`crate::daemon::content`].
use super::Outcome;
use crate::daemon::content;
use crate::kernel::FileState;
use std::path::PathBuf;

/// Reads a file for the agent
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    path: PathBuf,
    /// Its filesystem's, as it is to be.
    device: u32,
    /// As it is to be.
    inode: u64,
    /// When it was changed last, as it is to be.
    #[arg(allow_negative_numbers = true)]
    seconds: i64,
    nanoseconds: u32,
    /// The agent's process, with which this one ends
    agent: u32,
}

/// Says the file's digest, or why there is none; nothing where it is another one by now.
pub(super) fn run(args: &Args) -> Outcome {
    let state = FileState {
        device: args.device,
        inode: args.inode,
        changed: (args.seconds, args.nanoseconds),
    };
    // Nobody waits for it otherwise.
    if !matches!(content::end_with(args.agent), Ok(true)) {
        return Outcome::No;
    }
    match content::read(&args.path, &state) {
        Some(content) => {
            show!("{content}");
            Outcome::Done
        }
        None => Outcome::No,
    }
}
