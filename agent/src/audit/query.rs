//! Reading decisions back, newest first, from the files: with or without an agent running.
use super::chain::read_line;
use super::line::MAX_LINE;
use super::record::Record;
use super::{Error, segment};
use jiff::Timestamp;
use std::fs::File;
use std::io::{self, BufReader, Read as _, Seek as _, SeekFrom};
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;

/// Records one query returns at most, whatever its limit.
pub const MAX_RESULTS: usize = 100_000;

/// Which records; everything that is given must hold.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Filter {
    /// At or after this time.
    pub since: Option<Timestamp>,
    /// Only `DENY`, `WOULD-DENY` and `LIMIT`.
    pub denied: bool,
    /// Of this workload.
    pub workload: Option<String>,
    /// Of this identity.
    pub identity: Option<String>,
    /// To this host in any case, or below it: `*.example.com`.
    pub host: Option<String>,
    /// Of processes in this cgroup or below it, by its path.
    pub cgroup: Option<String>,
    /// This one.
    pub id: Option<uuid::Uuid>,
    /// The newest so many; [`MAX_RESULTS`] where not given.
    pub limit: Option<usize>,
}

impl Filter {
    /// Whether `record` is one of those asked for; the limit aside.
    pub fn matches(&self, record: &Record) -> bool {
        let is = |wanted: &Option<String>, actual: Option<&str>| {
            wanted
                .as_deref()
                .is_none_or(|wanted| actual == Some(wanted))
        };
        self.since.is_none_or(|since| record.time >= since)
            && (!self.denied || record.verdict.is_denial())
            && self.id.is_none_or(|id| record.id == id)
            && is(&self.workload, record.workload.as_deref())
            && is(&self.identity, record.identity.as_deref())
            && self.cgroup.as_deref().is_none_or(|wanted| {
                let process = record.process.as_deref();
                process.is_some_and(|process| is_below(&process.cgroup, wanted))
            })
            && self.host.as_deref().is_none_or(|wanted| {
                record
                    .request
                    .as_ref()
                    .is_some_and(|request| host_matches(wanted, &request.host))
            })
    }

    pub(super) fn limit(&self) -> usize {
        self.limit.unwrap_or(MAX_RESULTS).min(MAX_RESULTS)
    }

    /// A cheap test on the line before it is parsed: a record's id is written in one way only.
    fn may_match(&self, needle: Option<&[u8]>, line: &[u8]) -> bool {
        needle.is_none_or(|needle| memchr::memmem::find(line, needle).is_some())
    }

    fn needle(&self) -> Option<String> {
        self.id.map(|id| id.to_string())
    }

    fn parse(&self, needle: Option<&[u8]>, line: &[u8]) -> Option<Record> {
        if !self.may_match(needle, line) {
            return None;
        }
        // A line that is no record is `verify`'s to report; it hides no other line here.
        serde_json::from_slice(line)
            .ok()
            .filter(|record| self.matches(record))
    }
}

fn is_below(cgroup: &str, root: &str) -> bool {
    let rest = cgroup
        .trim_matches('/')
        .strip_prefix(root.trim_matches('/'));
    rest.is_some_and(|rest| rest.is_empty() || rest.starts_with('/'))
}

fn host_matches(wanted: &str, host: &str) -> bool {
    match wanted.strip_prefix("*.") {
        None => wanted.eq_ignore_ascii_case(host),
        Some(suffix) => host
            .len()
            .checked_sub(suffix.len())
            .and_then(|at| host.split_at_checked(at))
            .is_some_and(|(label, rest)| label.ends_with('.') && rest.eq_ignore_ascii_case(suffix)),
    }
}

/// The newest records of the log in `dir` that match, newest first in the order of writing. Blocks on the disk;
/// memory is bounded by the limit. Works with no agent running.
///
/// # Errors
/// The directory or a segment cannot be read.
pub fn read(dir: &Path, filter: &Filter) -> Result<Vec<Arc<Record>>, Error> {
    let mut found = Vec::new();
    let needle = filter.needle();
    for segment in segment::list(dir)?.iter().rev() {
        if found.len() >= filter.limit() {
            break;
        }
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            // Rotation removed it since the directory was read.
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", &segment.path)(error)),
        };
        if filter.since.is_some_and(|since| is_older(&file, since)) {
            break;
        }
        let mut lines = Backward::new(file).map_err(Error::io("read", &segment.path))?;
        while found.len() < filter.limit() {
            let Some(line) = lines.next().map_err(Error::io("read", &segment.path))? else {
                break;
            };
            let record = filter.parse(needle.as_deref().map(str::as_bytes), &line);
            found.extend(record.map(Arc::new));
            if filter.id.is_some() && !found.is_empty() {
                return Ok(found);
            }
        }
    }
    Ok(found)
}

/// Calls `visit` with every matching record of the log in `dir`, oldest first, with no limit and one record in
/// memory at a time, until it breaks. For exports and summaries.
///
/// # Errors
/// The directory or a segment cannot be read.
pub fn each(
    dir: &Path,
    filter: &Filter,
    mut visit: impl FnMut(Record) -> ControlFlow<()>,
) -> Result<(), Error> {
    let (needle, mut line) = (filter.needle(), Vec::new());
    for segment in segment::list(dir)? {
        let file = match File::open(&segment.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
            Err(error) => return Err(Error::io("open", &segment.path)(error)),
        };
        if filter.since.is_some_and(|since| is_older(&file, since)) {
            continue;
        }
        let mut reader = BufReader::with_capacity(1 << 16, file);
        while read_line(&mut reader, &mut line).map_err(Error::io("read", &segment.path))? > 0 {
            let record = filter.parse(needle.as_deref().map(str::as_bytes), &line);
            if record.is_some_and(|record| visit(record).is_break()) {
                return Ok(());
            }
        }
    }
    Ok(())
}

/// Whether a segment was last written before `since`: no record in it can be newer than that. Records are in the
/// order they ended, so a record's own time says nothing of those before it.
fn is_older(file: &File, since: Timestamp) -> bool {
    let modified = file
        .metadata()
        .and_then(|metadata| metadata.modified())
        .ok();
    let modified = modified.and_then(|time| Timestamp::try_from(time).ok());
    // A second's grace for file systems that keep whole seconds.
    modified.is_some_and(|time| time.as_second().saturating_add(1) < since.as_second())
}

/// A file's whole lines from the last to the first, a block at a time.
struct Backward {
    file: File,
    /// Where `held` begins in the file.
    at: u64,
    /// Bytes read and not yet given out; ends with a newline unless empty.
    held: Vec<u8>,
}

const BLOCK: u64 = 1 << 16;

impl Backward {
    fn new(mut file: File) -> io::Result<Self> {
        let at = file.seek(SeekFrom::End(0))?;
        let mut lines = Self {
            file,
            at,
            held: Vec::new(),
        };
        // What follows the last newline is being written now, or was torn.
        while lines.fill()? {
            if let Some(newline) = memchr::memrchr(b'\n', &lines.held) {
                lines.held.truncate(newline + 1);
                break;
            }
            lines.held.clear();
        }
        Ok(lines)
    }

    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        loop {
            let body = self.held.len().saturating_sub(1);
            let before = self
                .held
                .get(..body)
                .and_then(|held| memchr::memrchr(b'\n', held));
            if let Some(newline) = before {
                let line = self
                    .held
                    .get(newline + 1..body)
                    .unwrap_or_default()
                    .to_vec();
                self.held.truncate(newline + 1);
                return Ok(Some(line));
            }
            if self.held.len() > MAX_LINE {
                // No line of ours: pass it by without keeping it.
                self.held = vec![b'\n'];
            }
            if !self.fill()? {
                let line = self.held.get(..body).unwrap_or_default().to_vec();
                let ended = self.held.is_empty();
                self.held.clear();
                return Ok((!ended).then_some(line));
            }
        }
    }

    /// Puts the block before what is held in front of it; false at the file's start.
    fn fill(&mut self) -> io::Result<bool> {
        let count = self.at.min(BLOCK);
        if count == 0 {
            return Ok(false);
        }
        self.at -= count;
        self.file.seek(SeekFrom::Start(self.at))?;
        let mut block = Vec::with_capacity(self.held.len() + count as usize);
        self.file.by_ref().take(count).read_to_end(&mut block)?;
        if (block.len() as u64) < count {
            return Err(io::Error::new(
                io::ErrorKind::UnexpectedEof,
                "the segment shrank while it was read",
            ));
        }
        block.append(&mut self.held);
        self.held = block;
        Ok(true)
    }
}
