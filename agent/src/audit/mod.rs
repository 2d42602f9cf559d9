//! Decisions on record: one per request and per kernel refusal.
//!
//! ```text
//! pipeline ──Sink::submit──▶ bounded queue ──▶ writer thread ──▶ decisions-….jsonl
//!                                                   │                  │
//!                                  Log::subscribe ◀─┘   Log::query ◀───┘ (and what is queued)
//! ```
//!
//! [`Writer::start`] makes the three parts. [`Sink::submit`] never blocks and takes no lock; one
//! thread encodes, chains and writes; readers read the files. A log that cannot be written makes
//! [`Sink::healthy`] false, and the pipeline refuses new requests until it can: what would have been
//! accepted without a record is not accepted.
//!
//! The writer tells refusals to systemd's journal as well ([`Journal`]), as far as that takes them without waiting.
//!
//! Each line is one JSON object, described by [`SCHEMA`], and carries `seq` and `prev`: see [`verify`].

mod allowance;
mod chain;
mod journal;
mod line;
mod log;
mod pace;
mod query;
mod record;
mod segment;
mod sink;
mod syncer;
mod tally;
#[cfg(test)]
mod tests;
mod words;
mod writer;

pub(crate) use allowance::Allowance;
pub use chain::{Bad, Report, verify};
pub use journal::Journal;
pub use line::encode;
pub use log::{Feed, Live, Log, Stats};
pub use query::{Filter, MAX_RESULTS, each, read};
pub use record::{
    Coverage, PolicyStamp, ReasonRecord, Record, RequestRecord, ResponseRecord, Timing,
    UpstreamRecord, Verdict,
};
pub use sink::Sink;
pub use tally::{Counts, Repeated};
pub use writer::Writer;

use std::path::PathBuf;

/// JSON Schema (draft 2020-12) of a record and of a line of the log.
pub const SCHEMA: &str = include_str!("../../schema/decision.schema.json");

/// What keeps the log from being opened or read. Each message says what to do.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The directory or a file in it could not be used.
    #[error("cannot {doing} {path}: {source}; check that it exists, its owner, and free space")]
    Io {
        /// What was tried: `create`, `open`, `read`, ….
        doing: &'static str,
        /// On what.
        path: PathBuf,
        /// Why not.
        source: std::io::Error,
    },
    /// Another writer has it.
    #[error(
        "another agent writes decisions to {path}; stop it, or give this one its own state_dir"
    )]
    InUse {
        /// The directory.
        path: PathBuf,
    },
    /// No thread could be started.
    #[error(
        "cannot start the audit writer's thread: {0}; check the limit on processes and threads"
    )]
    Thread(std::io::Error),
}

impl Error {
    fn io(doing: &'static str, path: &std::path::Path) -> impl FnOnce(std::io::Error) -> Self {
        let path = path.to_owned();
        move |source| Self::Io {
            doing,
            path,
            source,
        }
    }
}
