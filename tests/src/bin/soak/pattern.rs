//! Bodies of which no part is like another, and what they come to.
use anyhow::{Context as _, Result, ensure};
use sha2::{Digest as _, Sha256};
use std::fmt::{self, Display};
use std::io::{ErrorKind, Read, Write};
use std::str::FromStr;

/// Bytes that are made at a time.
pub(crate) const BLOCK: usize = 64 * 1024;

/// A body's blocks: the same noise in each, under the block's number.
pub(crate) struct Blocks {
    noise: Vec<u8>,
    number: u64,
    left: u64,
}

impl Blocks {
    pub(crate) fn new(bytes: u64) -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_le_bytes()
        });
        Self {
            noise: noise.take(BLOCK / 8).flatten().collect(),
            number: 0,
            left: bytes,
        }
    }

    /// The next block, until there is none.
    pub(crate) fn next(&mut self) -> Option<&[u8]> {
        if self.left == 0 {
            return None;
        }
        for (byte, number) in self.noise.iter_mut().zip(self.number.to_le_bytes()) {
            *byte = number;
        }
        self.number += 1;
        let length = usize::try_from(self.left).unwrap_or(BLOCK).min(BLOCK);
        self.left -= length as u64;
        self.noise.get(..length)
    }
}

/// Writes a body; a reader that leaves ends it.
pub(crate) fn send(to: &mut impl Write, bytes: u64) -> Result<()> {
    let mut blocks = Blocks::new(bytes);
    while let Some(block) = blocks.next() {
        match to.write_all(block) {
            Err(e) if e.kind() == ErrorKind::BrokenPipe => return Ok(()),
            other => other?,
        }
    }
    Ok(to.flush()?)
}

/// How long a body was, and its hash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Digest {
    bytes: u64,
    sha256: String,
}

/// One that is being made.
#[derive(Default)]
pub(crate) struct Digesting {
    bytes: u64,
    hash: Sha256,
}

impl Digesting {
    pub(crate) fn add(&mut self, part: &[u8]) {
        self.bytes += part.len() as u64;
        self.hash.update(part);
    }

    pub(crate) fn done(self) -> Digest {
        let sha256 = self.hash.finalize();
        let sha256 = sha256.iter().map(|byte| format!("{byte:02x}")).collect();
        Digest {
            bytes: self.bytes,
            sha256,
        }
    }
}

impl Digest {
    /// Of all that comes.
    pub(crate) fn of(from: &mut impl Read) -> Result<Self> {
        let mut digesting = Digesting::default();
        let mut buffer = vec![0; BLOCK];
        loop {
            match from.read(&mut buffer)? {
                0 => return Ok(digesting.done()),
                length => digesting.add(buffer.get(..length).context("a read beyond its buffer")?),
            }
        }
    }

    /// Of a body of `bytes`.
    pub(crate) fn expected(bytes: u64) -> Result<Self> {
        let mut digesting = Digesting::default();
        let mut blocks = Blocks::new(bytes);
        while let Some(block) = blocks.next() {
            digesting.add(block);
        }
        let digest = digesting.done();
        ensure!(digest.bytes == bytes, "{} bytes were made", digest.bytes);
        Ok(digest)
    }
}

impl Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.bytes, self.sha256)
    }
}

impl FromStr for Digest {
    type Err = anyhow::Error;

    fn from_str(text: &str) -> Result<Self> {
        let (bytes, sha256) = text.split_once(' ').context("BYTES SHA256")?;
        Ok(Self {
            bytes: bytes.parse()?,
            sha256: sha256.to_owned(),
        })
    }
}
