//! The mount tables of processes, which are as long as their owners make them.
use crate::kernel::{bounded, unescape};
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
/// Times that it is read in that while for mounts of which it says something else than `stat` does: of more it is not known.
const READS: usize = 16;
/// How long others' tables are read in each period: who has many namespaces, with many mounts in each, keeps nobody waiting.
const SPENT: Duration = Duration::from_millis(250);
const PERIOD: Duration = Duration::from_secs(1);
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

/// The mount namespace of a process; `None`: it is gone, or the kernel does not say.
fn namespace(of: u32) -> Option<PathBuf> {
    let ask = |of| std::fs::read_link(format!("/proc/{of}/ns/mnt")).ok();
    bounded::of(of, ask).ok().flatten()
}

/// The mount of this number.
pub(super) fn mounted(table: &[u8], number: u64) -> Option<Mount> {
    mounts(table).find(|mount| mount.number == number)
}

/// The device of a mount's filesystem, as the mount table has it, or that of a process through whose view of the mounts a file was
/// found; `own`: the device that `stat` says of the file. That is it, unless the kernel has made it up.
pub(super) fn device(mount: u64, own: u32, of: u32) -> Option<u32> {
    if own >= 1 << 20 {
        return Some(own);
    }
    KNOWN.with_borrow_mut(|known| {
        // Its process's first: of most it is the agent's own.
        let tables = [of.to_string(), "self".to_owned()];
        tables.iter().find_map(|of| known.device((mount, own), of))
    })
}

/// Is it the device of what somebody sees mounted as the agent does, as far as that can be told?
pub(super) fn is_seen(device: u32) -> bool {
    table("self").map_or(true, |table| {
        mounts(&table).any(|mount| mount.device == device)
    })
}

/// Was there no time of late to look for one? Then one that is not known may be known soon.
pub(super) fn are_too_many() -> bool {
    KNOWN.with_borrow(|known| known.missed.is_some_and(|at| at.elapsed() < FRESH))
}

thread_local! {
    static KNOWN: RefCell<Known> = RefCell::default();
}

/// Mount tables that were read, by their namespaces.
#[derive(Default)]
struct Known {
    tables: HashMap<PathBuf, Table>,
    /// Since when, and for how long, others' were read.
    spent: Option<(Instant, Duration)>,
    /// When one was not, for want of time.
    missed: Option<Instant>,
}

struct Table {
    read: Instant,
    devices: HashMap<u64, u32>,
    /// Those mounts, with what `stat` said, for which the table was read: the number of one may have come again since.
    sure: HashSet<(u64, u32)>,
}

impl Known {
    fn device(&mut self, (mount, own): (u64, u32), of: &str) -> Option<u32> {
        let agents = std::fs::read_link("/proc/self/ns/mnt").ok();
        let namespace = match of {
            "self" => agents.clone(),
            _ => namespace(of.parse().ok()?),
        };
        let is_own = namespace == agents;
        let namespace = namespace?;
        self.tables.retain(|_, table| table.read.elapsed() < FRESH);
        if let Some(table) = self.tables.get(&namespace) {
            let device = table.devices.get(&mount).copied();
            if device == Some(own) || table.sure.contains(&(mount, own)) {
                return device;
            }
            if table.sure.len() >= READS {
                self.missed = Some(Instant::now());
                return None;
            }
        }
        let text = self.read(of, is_own)?;
        let devices = mounts(&text).map(|mount| (mount.number, mount.device));
        if self.tables.len() >= NAMESPACES {
            self.tables.clear();
        }
        let table = self.tables.entry(namespace).or_insert_with(|| Table {
            read: Instant::now(),
            devices: HashMap::new(),
            sure: HashSet::new(),
        });
        table.devices = devices.collect();
        table.sure.insert((mount, own));
        table.devices.get(&mount).copied()
    }

    /// Reads a table, of others within [`SPENT`].
    fn read(&mut self, of: &str, is_own: bool) -> Option<Vec<u8>> {
        let now = Instant::now();
        let is_over = |(since, _): &(Instant, Duration)| now.duration_since(*since) > PERIOD;
        let (since, spent) = self
            .spent
            .filter(|all| !is_over(all))
            .unwrap_or((now, Duration::ZERO));
        if spent >= SPENT && !is_own {
            self.missed = Some(now);
            return None;
        }
        let text = table(of).ok()?;
        let took = if is_own {
            Duration::ZERO
        } else {
            now.elapsed()
        };
        self.spent = Some((since, spent + took));
        Some(text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn others_tables_are_read_for_so_long_and_then_a_device_is_not_known() {
        let mut known = Known {
            spent: Some((Instant::now(), SPENT)),
            ..Known::default()
        };
        let of = std::process::id().to_string();
        assert_eq!(known.read(&of, false), None);
        assert!(known.missed.take().is_some());
        // The agent's own is read all the same, and others' after that.
        assert_eq!(known.device((u64::MAX, 7), &of), None);
        assert!(known.tables.len() == 1 && known.missed.is_none());
        let before = Instant::now().checked_sub(PERIOD * 2);
        known.spent = before.map(|at| (at, SPENT));
        assert!(known.read(&of, false).is_some() && known.missed.is_none());
        // What a disk's file says of itself needs none.
        assert_eq!(device(u64::MAX, 8 << 20 | 1, 0), Some(8 << 20 | 1));
    }

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
