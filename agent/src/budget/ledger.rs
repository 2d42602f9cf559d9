//! What is spent, on disk: one slot of fixed size for each account, written over whenever it changes.
//!
//! The file lies in the runtime directory, which is in memory: a write costs a system call, and a killed agent has
//! written all it counted. A copy in the state directory is for a reboot.
use super::account::{Holder, Unit};
use sha2::{Digest, Sha256};
use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};

/// Accounts at most.
pub(super) const SLOTS: usize = 65_536;
/// Bytes of one, and of what comes before the first.
const SIZE: usize = 64;
/// Begins the file, and each slot that is used.
const HEADER: &[u8; SIZE] = b"tollgate budgets 1\n0000000000000000000000000000000000000000000\n\n";
const USED: &[u8; 8] = b"spent\0\0\x01";

/// Which account it is: a digest of what tells accounts apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Id([u8; 16]);

impl Id {
    pub(super) fn of(budget: &str, unit: Unit, seconds: u64, holder: &Holder) -> Self {
        let (kind, name) = match holder {
            Holder::Shared => ("shared", ""),
            Holder::Workload(name) => ("workload", &**name),
            Holder::Identity(name) => ("identity", &**name),
            Holder::Nobody => ("nobody", ""),
        };
        let mut digest = Sha256::new();
        for part in [budget, unit.as_str(), &seconds.to_string(), kind, name] {
            digest.update((part.len() as u64).to_le_bytes());
            digest.update(part);
        }
        let digest = digest.finalize();
        let mut id = [0; 16];
        for (to, from) in id.iter_mut().zip(digest) {
            *to = from;
        }
        Self(id)
    }
}

/// What is known of an account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Slot {
    pub(super) id: Id,
    pub(super) window: u64,
    pub(super) seconds: u64,
    pub(super) spent: u64,
}

impl Slot {
    fn bytes(&self) -> [u8; SIZE] {
        let mut bytes = [0; SIZE];
        let parts: [&[u8]; 5] = [
            USED,
            &self.id.0,
            &self.window.to_le_bytes(),
            &self.seconds.to_le_bytes(),
            &self.spent.to_le_bytes(),
        ];
        let sum = checksum(parts.iter().copied().flatten()).to_le_bytes();
        let all = parts.iter().copied().chain([&sum[..]]).flatten();
        for (to, from) in bytes.iter_mut().zip(all) {
            *to = *from;
        }
        bytes
    }

    /// `None` where it is not used.
    fn read(bytes: &[u8]) -> Result<Option<Self>, Damaged> {
        if bytes.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        let (used, rest) = bytes.split_first_chunk::<8>().ok_or(Damaged)?;
        let (id, rest) = rest.split_first_chunk::<16>().ok_or(Damaged)?;
        let (window, rest) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
        let (seconds, rest) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
        let (spent, _) = rest.split_first_chunk::<8>().ok_or(Damaged)?;
        let slot = Self {
            id: Id(*id),
            window: u64::from_le_bytes(*window),
            seconds: u64::from_le_bytes(*seconds),
            spent: u64::from_le_bytes(*spent),
        };
        match used == USED && slot.bytes() == bytes {
            true => Ok(Some(slot)),
            false => Err(Damaged),
        }
    }
}

/// FNV-1a: tells a slot that was written in part.
fn checksum<'b>(bytes: impl Iterator<Item = &'b u8>) -> u64 {
    bytes.fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// It does not say what was spent.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// What a file held.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Kept {
    pub(super) slots: Vec<Slot>,
    /// Something in it cannot be read.
    pub(super) damaged: bool,
}

/// Reads a ledger or a copy of one.
///
/// # Errors
/// It is there and cannot be read, or it is not there.
pub(super) fn read(path: &Path) -> io::Result<Kept> {
    let mut bytes = Vec::new();
    let most = (SLOTS + 2) * SIZE;
    File::open(path)?
        .take(most as u64)
        .read_to_end(&mut bytes)?;
    let Some(rest) = bytes.strip_prefix(HEADER) else {
        return Ok(Kept {
            slots: Vec::new(),
            damaged: true,
        });
    };
    let mut kept = Kept::default();
    for part in rest.chunks(SIZE) {
        match Slot::read(part) {
            Ok(slot) => kept.slots.extend(slot),
            Err(Damaged) => kept.damaged = true,
        }
    }
    Ok(kept)
}

/// The text of a ledger with these slots, in order.
pub(super) fn text(slots: &[Slot]) -> Vec<u8> {
    let slots = slots.iter().flat_map(Slot::bytes);
    HEADER.iter().copied().chain(slots).collect()
}

/// The file that accounts are written into.
#[derive(Debug)]
pub(super) struct Ledger {
    file: File,
    failing: AtomicBool,
}

impl Ledger {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self {
            file,
            failing: AtomicBool::new(false),
        })
    }

    pub(super) fn write(&self, number: usize, slot: &Slot) {
        self.put(number, &slot.bytes());
    }

    pub(super) fn clear(&self, number: usize) {
        self.put(number, &[0; SIZE]);
    }

    /// A file in memory that was long enough before takes this; should it not, what is counted is still held.
    fn put(&self, number: usize, bytes: &[u8; SIZE]) {
        let at = (number as u64 + 1) * SIZE as u64;
        match self.file.write_all_at(bytes, at) {
            Ok(()) => self.failing.store(false, Ordering::Relaxed),
            Err(error) => {
                if !self.failing.swap(true, Ordering::Relaxed) {
                    tracing::error!(
                        "the ledger of budgets cannot be written: {error}: what is spent from now on is forgotten if the agent ends; make room in its runtime directory"
                    );
                }
            }
        }
    }

    pub(super) fn is_failing(&self) -> bool {
        self.failing.load(Ordering::Relaxed)
    }
}
