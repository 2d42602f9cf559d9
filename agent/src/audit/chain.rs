//! The hash chain: each line names the line before it.
use super::line::MAX_LINE;
use super::{Error, segment};
use sha2::{Digest as _, Sha256};
use std::io::{self, BufRead, BufReader, Read as _};
use std::path::{Path, PathBuf};

/// SHA-256 in lower-case hex.
pub(super) type Hash = [u8; 64];
/// `prev` of the first record of a log.
pub(super) const ZERO: Hash = [b'0'; 64];

/// Hash of a line, without its newline.
pub(super) fn hash(line: &[u8]) -> Hash {
    let mut hex = ZERO;
    for (pair, byte) in hex.chunks_exact_mut(2).zip(Sha256::digest(line)) {
        for (digit, value) in pair.iter_mut().zip([byte >> 4, byte & 15]) {
            *digit = if value < 10 {
                b'0' + value
            } else {
                b'a' + value - 10
            };
        }
    }
    hex
}

#[derive(serde::Deserialize)]
struct Link<'a> {
    seq: u64,
    #[serde(borrow)]
    prev: &'a str,
}

/// `seq` of a line, where it is one.
pub(super) fn seq_of(line: &[u8]) -> Option<u64> {
    serde_json::from_slice::<Link<'_>>(line)
        .ok()
        .map(|link| link.seq)
}

/// What [`verify`] found.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Report {
    /// Lines.
    pub records: u64,
    /// Files.
    pub segments: usize,
    /// `seq` of the first and the last line; above 1 where old segments were deleted by rotation.
    pub range: Option<(u64, u64)>,
    /// SHA-256 of the last line in hex: kept elsewhere, it anchors everything up to here.
    pub head: Option<String>,
    /// Bytes after the last newline: a record being written now, or torn by a crash.
    pub torn: u64,
    /// The first line that does not fit.
    pub first_bad: Option<Bad>,
}

/// A line that does not fit the chain.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Bad {
    /// Its file.
    pub file: PathBuf,
    /// Its number in the file, from 1.
    pub line: u64,
    /// What is wrong.
    pub why: String,
}

/// Checks the chain of the log in `dir`: every line's `seq` is one more than the last one's, and its `prev`
/// is the SHA-256 of the last line's bytes, over all segments and restarts. Editing, removing, inserting or
/// reordering lines shows, as does removing a segment that is not the oldest.
///
/// What it cannot show by itself: a change of the last line or lines missing after it, segments missing at the start (rotation removes
/// those too), and a chain that was computed anew after the change. All three show against a [`Report::head`]
/// that was kept where whoever changed the log cannot write.
///
/// # Errors
/// The directory or a segment cannot be read. What is wrong with the contents is in the report.
pub fn verify(dir: &Path) -> Result<Report, Error> {
    let mut walk = Walk::default();
    for segment in segment::list(dir)? {
        let file = match std::fs::File::open(&segment.path) {
            Ok(file) => file,
            // Rotation removed it since the directory was read: the next one begins the chain.
            Err(error) if error.kind() == io::ErrorKind::NotFound && walk.last.is_none() => {
                continue;
            }
            Err(error) => return Err(Error::io("open", &segment.path)(error)),
        };
        walk.report.segments += 1;
        walk.segment(&segment, BufReader::with_capacity(1 << 16, file))
            .map_err(Error::io("read", &segment.path))?;
    }
    walk.report.head = walk
        .last
        .map(|(_, hash)| String::from_utf8_lossy(&hash).into_owned());
    Ok(walk.report)
}

#[derive(Default)]
struct Walk {
    report: Report,
    /// `seq` and hash of the line before.
    last: Option<(u64, Hash)>,
}

impl Walk {
    fn segment(&mut self, segment: &segment::Segment, mut reader: impl BufRead) -> io::Result<()> {
        if self.report.torn > 0 {
            self.bad(
                segment,
                0,
                format!(
                    "{} bytes of a torn line before this segment",
                    self.report.torn
                ),
            );
            self.report.torn = 0;
        }
        let mut line = Vec::new();
        let mut number = 0;
        while read_line(&mut reader, &mut line)? > 0 {
            number += 1;
            if line.pop_if(|byte| *byte == b'\n').is_none() {
                self.report.torn = line.len() as u64;
                break;
            }
            if let Err(why) = self.line(segment, number, &line) {
                self.bad(segment, number, why);
            }
        }
        Ok(())
    }

    fn line(&mut self, segment: &segment::Segment, number: u64, line: &[u8]) -> Result<(), String> {
        self.report.records += 1;
        let before = self.last;
        let link = serde_json::from_slice::<Link<'_>>(line);
        let seq = link.as_ref().map_or(
            before.map_or(segment.first, |(seq, _)| seq.saturating_add(1)),
            |link| link.seq,
        );
        self.last = Some((seq, hash(line)));
        self.report.range = Some((self.report.range.map_or(seq, |(first, _)| first), seq));
        let link = link.map_err(|error| format!("not a record: {error}"))?;
        if number == 1 && link.seq != segment.first {
            return Err(format!(
                "seq {} in a segment named for {}",
                link.seq, segment.first
            ));
        }
        let (expected_seq, expected_prev) = match before {
            Some((seq, hash)) => (seq.saturating_add(1), hash),
            None if link.seq == 1 => (1, ZERO),
            // The oldest segment left: nothing here tells what came before it.
            None => return Ok(()),
        };
        if link.seq != expected_seq {
            return Err(format!("seq {} where {expected_seq} must follow", link.seq));
        }
        if link.prev.as_bytes() != expected_prev.as_slice() {
            return Err(
                "prev is not the hash of the line before: that line was changed, or this one"
                    .into(),
            );
        }
        Ok(())
    }

    fn bad(&mut self, segment: &segment::Segment, line: u64, why: String) {
        self.report.first_bad.get_or_insert_with(|| Bad {
            file: segment.path.clone(),
            line,
            why,
        });
    }
}

/// Reads a line with its newline, or [`MAX_LINE`] bytes of one: the rest then counts as the next line.
pub(super) fn read_line(reader: &mut impl BufRead, line: &mut Vec<u8>) -> io::Result<usize> {
    line.clear();
    reader
        .by_ref()
        .take(MAX_LINE as u64 + 1)
        .read_until(b'\n', line)
}
