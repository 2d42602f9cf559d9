//! The files of the log: their names, finding them, opening and healing the newest.
use super::Error;
use super::chain::{Hash, ZERO, hash};
use jiff::Timestamp;
use std::fs::{File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

const PREFIX: &str = "decisions-";
const SUFFIX: &str = ".jsonl";

/// One file of the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Segment {
    /// `seq` of its first record. Segments are ordered by it, not by the time in the name: clocks are set.
    pub(super) first: u64,
    /// Where it is.
    pub(super) path: PathBuf,
}

impl Segment {
    /// The segment that starts with record `first`: `decisions-20260131T120000Z-000000000001.jsonl`.
    pub(super) fn new(dir: &Path, first: u64, now: Timestamp) -> Self {
        let time = now.strftime("%Y%m%dT%H%M%SZ");
        Self {
            first,
            path: dir.join(format!("{PREFIX}{time}-{first:012}{SUFFIX}")),
        }
    }

    fn from_path(path: PathBuf) -> Option<Self> {
        let name = path.file_name()?.to_str()?;
        let (_, first) = name
            .strip_prefix(PREFIX)?
            .strip_suffix(SUFFIX)?
            .rsplit_once('-')?;
        Some(Self {
            first: first.parse().ok()?,
            path,
        })
    }

    /// Opens it to append, makes it where it is not. Never through a symbolic link.
    pub(super) fn open(&self) -> io::Result<File> {
        let file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .mode(0o600)
            .custom_flags(libc::O_NOFOLLOW)
            .open(&self.path)?;
        if !file.metadata()?.is_file() {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "not a regular file",
            ));
        }
        Ok(file)
    }
}

/// The log's segments, oldest first. None where the directory is not there.
pub(super) fn list(dir: &Path) -> Result<Vec<Segment>, Error> {
    let entries = match std::fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(error) => return Err(Error::io("read", dir)(error)),
    };
    let mut segments = Vec::new();
    for entry in entries {
        let path = entry.map_err(Error::io("read", dir))?.path();
        segments.extend(Segment::from_path(path));
    }
    segments.sort_by(|a, b| (a.first, &a.path).cmp(&(b.first, &b.path)));
    Ok(segments)
}

/// Where a log goes on.
#[derive(Debug)]
pub(super) struct Tail {
    /// The newest segment, open to append; none where the log is empty.
    pub(super) newest: Option<(Segment, File, u64)>,
    /// `seq` of the next record.
    pub(super) next: u64,
    /// Hash of the last line.
    pub(super) prev: Hash,
    /// Bytes of a torn last line that were cut off.
    pub(super) healed: u64,
}

/// Finds the log's end and cuts off a line that a crash tore.
pub(super) fn resume(dir: &Path) -> Result<Tail, Error> {
    let mut tail = Tail {
        newest: None,
        next: 1,
        prev: ZERO,
        healed: 0,
    };
    let mut segments = list(dir)?;
    // An empty newest segment (a crash just after it was made) leaves the chain's end in the one before.
    while let Some(segment) = segments.pop() {
        let mut file = segment.open().map_err(Error::io("open", &segment.path))?;
        let end = last_line(&mut file).map_err(Error::io("read", &segment.path))?;
        let length = end.terminated;
        if tail.newest.is_none() {
            tail.next = segment.first;
            if end.torn > 0 {
                file.set_len(length)
                    .map_err(Error::io("truncate", &segment.path))?;
                file.sync_data().map_err(Error::io("sync", &segment.path))?;
                tail.healed = end.torn;
            }
        }
        if let Some(line) = &end.line {
            tail.prev = hash(line);
            tail.next = super::chain::seq_of(line)
                .map_or(segment.first.saturating_add(end.lines), |seq| {
                    seq.saturating_add(1)
                });
        }
        if tail.newest.is_none() {
            tail.newest = Some((segment, file, length));
        }
        if end.line.is_some() {
            break;
        }
    }
    Ok(tail)
}

struct End {
    /// The last whole line, without its newline.
    line: Option<Vec<u8>>,
    /// Whole lines.
    lines: u64,
    /// Bytes up to and with the last newline.
    terminated: u64,
    /// Bytes after it.
    torn: u64,
}

/// Reads a file once, in blocks, and keeps its last line (at most [`super::line::MAX_LINE`] of it).
fn last_line(file: &mut File) -> io::Result<End> {
    let size = file.seek(SeekFrom::End(0))?;
    file.seek(SeekFrom::Start(0))?;
    let mut block = vec![0; 1 << 16];
    let (mut line, mut current) = (None, Vec::new());
    let (mut lines, mut terminated) = (0, 0);
    let mut at = 0_u64;
    loop {
        let count = file.read(&mut block)?;
        let Some(mut rest) = block.get(..count).filter(|block| !block.is_empty()) else {
            break;
        };
        while let Some(newline) = memchr::memchr(b'\n', rest) {
            let (before, after) = rest.split_at(newline);
            current.extend_from_slice(before);
            line = Some(std::mem::take(&mut current));
            lines += 1;
            at += newline as u64 + 1;
            terminated = at;
            rest = after.get(1..).unwrap_or_default();
        }
        at += rest.len() as u64;
        // Longer than any line the writer makes: whatever it is, it is not kept in memory.
        if current.len() <= super::line::MAX_LINE {
            current.extend_from_slice(rest);
        }
    }
    Ok(End {
        line,
        lines,
        terminated,
        torn: size.saturating_sub(terminated),
    })
}

/// Whether an open segment is no longer where its name says: deleted or moved while open.
pub(super) fn is_detached(file: &File, path: &Path) -> bool {
    let (Ok(open), Ok(named)) = (file.metadata(), std::fs::symlink_metadata(path)) else {
        return true;
    };
    (open.dev(), open.ino()) != (named.dev(), named.ino())
}
