//! The mount tables of processes, which are as long as their owners make them.
use crate::kernel::unescape;
use std::cell::RefCell;
use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Bytes of a table that are read: some ten thousand mounts, which take the kernel 50 ms. Of what is mounted behind them, `stat` says
/// the device.
const TABLE: u64 = 1 << 20;
/// How long what was read is not read again: who has many processes has them share a table, and numbers of mounts come again.
const FRESH: Duration = Duration::from_millis(100);
/// Times that it is read in that while for mounts of which it says something else than `stat` does.
const READS: usize = 16;
/// Namespaces whose tables are remembered.
const NAMESPACES: usize = 256;

/// A mount, as a line of the mount table has it.
#[derive(Debug)]
pub(super) struct Mount {
    number: u64,
    pub(super) device: u32,
    /// What of its filesystem is seen there.
    pub(super) root: PathBuf,
    pub(super) point: PathBuf,
}

impl Mount {
    /// `ID parent major:minor root point …`
    fn of(line: &[u8]) -> Option<Self> {
        let mut fields = line.split(|byte| *byte == b' ');
        let number = std::str::from_utf8(fields.next()?).ok()?;
        let (major, minor) = std::str::from_utf8(fields.nth(1)?).ok()?.split_once(':')?;
        let root = fields.next()?;
        Some(Self {
            number: number.parse().ok()?,
            device: (major.parse::<u32>().ok()? << 20) | minor.parse::<u32>().ok()?,
            root: unescape(root.strip_suffix(b"//deleted").unwrap_or(root)),
            point: unescape(fields.next()?),
        })
    }

    /// Where a file of this path within its filesystem lies, if it is to be seen there.
    pub(super) fn place_of(&self, device: u32, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let place = match rest.as_os_str().is_empty() {
            true => self.point.clone(),
            false => self.point.join(rest),
        };
        (device == self.device).then_some(place)
    }
}

/// What a process has mounted, of `/proc/OF/mountinfo`.
pub(super) fn table(of: &str) -> io::Result<Vec<u8>> {
    let mut table = Vec::new();
    let file = File::open(format!("/proc/{of}/mountinfo"))?;
    file.take(TABLE).read_to_end(&mut table)?;
    Ok(table)
}

pub(super) fn mounts(table: &[u8]) -> impl Iterator<Item = Mount> {
    table.split(|byte| *byte == b'\n').filter_map(Mount::of)
}

/// The mount of this number.
pub(super) fn mounted(table: &[u8], number: u64) -> Option<Mount> {
    mounts(table).find(|mount| mount.number == number)
}

/// The device of a mount's filesystem, as the mount table has it, or that of a process through whose view of the mounts a file was
/// found; `own`: the device that `stat` says of the file.
pub(super) fn device(mount: u64, own: u32, of: u32) -> Option<u32> {
    KNOWN.with_borrow_mut(|known| {
        let tables = ["self".to_owned(), of.to_string()];
        tables.iter().find_map(|of| known.device((mount, own), of))
    })
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Mount tables that were read, by their namespaces.
#[derive(Default)]
struct Known(HashMap<PathBuf, Table>);

struct Table {
    read: Instant,
    devices: HashMap<u64, u32>,
    /// Those mounts, with what `stat` said, for which the table was read: the number of one may have come again since.
    sure: HashSet<(u64, u32)>,
}

impl Table {
    /// `None`: the table is to be read for that. `Some(None)`: it has no such mount.
    fn device(&self, mount: u64, own: u32) -> Option<Option<u32>> {
        let device = self.devices.get(&mount).copied();
        let is_sure =
            device == Some(own) || self.sure.contains(&(mount, own)) || self.sure.len() >= READS;
        is_sure.then_some(device)
    }
}

impl Known {
    fn device(&mut self, (mount, own): (u64, u32), of: &str) -> Option<u32> {
        let namespace = std::fs::read_link(format!("/proc/{of}/ns/mnt")).ok()?;
        self.0.retain(|_, table| table.read.elapsed() < FRESH);
        let known = self.0.get(&namespace);
        if let Some(device) = known.and_then(|table| table.device(mount, own)) {
            return device;
        }
        let text = table(of).ok()?;
        let devices = mounts(&text).map(|mount| (mount.number, mount.device));
        if self.0.len() >= NAMESPACES {
            self.0.clear();
        }
        let table = self.0.entry(namespace).or_insert_with(|| Table {
            read: Instant::now(),
            devices: HashMap::new(),
            sure: HashSet::new(),
        });
        table.devices = devices.collect();
        table.sure.insert((mount, own));
        table.devices.get(&mount).copied()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_file_is_found_below_where_its_filesystem_is_mounted() {
        let line = b"30 1 254:1 /sub /mnt/a\\040b rw,noatime shared:1 - ext4 /dev/vda1 rw";
        let device = (254 << 20) | 1;
        let found = |line: &[u8], device, path: &str| {
            Mount::of(line).and_then(|mount| mount.place_of(device, Path::new(path)))
        };
        let at = |path: &str| Some(PathBuf::from(path));
        assert_eq!(found(line, device, "/sub/x/y"), at("/mnt/a b/x/y"));
        assert_eq!(found(line, device, "/sub"), at("/mnt/a b"));
        assert_eq!(found(line, device, "/subway/x"), None);
        assert_eq!(found(line, 7, "/sub/x"), None);
        let whole = b"30 1 254:1 / / rw - ext4 /dev/vda1 rw";
        assert_eq!(found(whole, device, "/x"), at("/x"));
    }
}
