//! Tables of descriptors, and the sockets in them: each is read once, however many threads share it, and all of them within
//! bounds. What is beyond is as if its process did not have it open, and the log says so; of whom not even a few could be read another
//! look does.
use super::super::bounded;
use super::{Holder, unless_short};
use crate::kernel::processes::{self, real_user};
use rustix::fs::{CWD, Dir, Mode, OFlags, openat, readlinkat_raw};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::RawFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Descriptors of a process that are read before more are of anybody: who has many keeps nobody else from being looked at.
const FEW: usize = 1 << 10;
/// Descriptors of a process that are read, in all its tables: as many as one may have where nobody has set more.
const MANY: usize = 1 << 19;
/// Descriptors that are read of all processes together, whatever they are of: there may be any number of one socket.
const ALL: usize = 1 << 20;
/// How long they are read. Whoever asks for the look waits for it, and others for that.
const TIME: Duration = Duration::from_secs(5);
/// Processes of which it is remembered that the log has told of them.
const TOLD: usize = 1 << 10;

/// Processes that are asked at once: what they have open is remembered until all of them have answered.
const AT_ONCE: usize = 64;

/// What may still be read in one look.
#[derive(Debug)]
pub(in crate::kernel) struct Reading {
    left: usize,
    time: Duration,
    /// Of whom not all was read.
    missed: BTreeSet<u32>,
}

impl Default for Reading {
    fn default() -> Self {
        Self {
            left: ALL,
            time: TIME,
            missed: BTreeSet::new(),
        }
    }
}

/// Lists the threads of a process of which the tables are read.
type Threads = fn(u32) -> io::Result<Vec<u32>>;

/// What one process has open, as far as it was read.
type Open = (Vec<(Holder, u32)>, Extent);

/// How far that is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Extent {
    All,
    /// It has more than were to be read of it.
    Few,
    /// Others have left no room, or no time, for more.
    Cut,
}

impl Reading {
    /// Finds the sockets, and their inodes, that threads of processes have open. `short`: told of whom not all could be read, for
    /// want of descriptors or memory, or of an answer.
    pub(super) fn find(
        &mut self,
        processes: impl Iterator<Item = u32>,
        threads: Threads,
        found: &mut dyn FnMut(Holder, u32),
        short: &mut dyn FnMut(u32, &io::Error),
    ) {
        let until = Instant::now() + self.time;
        let bounds = Arc::new(Bounds {
            left: AtomicUsize::new(self.left),
            until,
        });
        let mut read = |processes: &[u32], most| {
            let mut have_more = Vec::new();
            for some in processes.chunks(AT_ONCE) {
                for (process, open) in bounds.read(some, threads, most) {
                    match open {
                        // Who cannot be read now is read with the next look.
                        Err(error) => short(process, &error),
                        Ok((open, extent)) => {
                            open.into_iter()
                                .for_each(|(holder, inode)| found(holder, inode));
                            match extent {
                                Extent::All => {}
                                Extent::Cut if most == FEW => short(process, &others_have_many()),
                                Extent::Few | Extent::Cut => have_more.push(process),
                            }
                        }
                    }
                }
            }
            have_more
        };
        let processes = in_turns(processes.collect(), user_of);
        let have_many = read(&processes, FEW);
        let missed = read(&have_many, MANY);
        self.missed.extend(missed);
        self.left = bounds.left.load(Ordering::Relaxed);
        self.time = until.saturating_duration_since(Instant::now());
        self.tell();
    }

    /// Says of whom not all was read, and of nobody twice.
    fn tell(&mut self) {
        static SAID: Mutex<BTreeSet<u32>> = Mutex::new(BTreeSet::new());
        let mut said = SAID.lock().unwrap_or_else(PoisonError::into_inner);
        let missed = std::mem::take(&mut self.missed);
        let new: Vec<u32> = missed.difference(&said).copied().collect();
        let Some(first) = new.first() else { return };
        tracing::error!(
            pid = first,
            processes = new.len(),
            "more descriptors are open than are looked at ({MANY} of a process, {ALL} in all, for {} s): sockets beyond count \
             as not open there",
            TIME.as_secs()
        );
        if said.len() + new.len() > TOLD {
            said.clear();
        }
        said.extend(new.into_iter().take(TOLD));
    }
}

/// What may still be read, by however many threads.
#[derive(Debug)]
struct Bounds {
    left: AtomicUsize,
    until: Instant,
}

impl Bounds {
    fn read(
        self: &Arc<Self>,
        processes: &[u32],
        threads: Threads,
        most: usize,
    ) -> Vec<(u32, io::Result<Open>)> {
        let bounds = Arc::clone(self);
        let ask = move |process| bounds.read_process(process, threads, most);
        // Few are read in no time.
        let more = match most {
            FEW => Duration::ZERO,
            _ => self.until.saturating_duration_since(Instant::now()),
        };
        let answers = bounded::each_within(bounded::DEADLINE + more, processes.to_vec(), ask);
        let silent = || Err(bounded::silent());
        let each = processes.iter().copied().zip(answers);
        each.map(|(process, answer)| (process, answer.unwrap_or_else(silent)))
            .collect()
    }

    /// Reads the tables of one process.
    fn read_process(&self, process: u32, threads: Threads, mut most: usize) -> io::Result<Open> {
        let (mut read, mut found) = (Vec::new(), Vec::new());
        for thread in threads(process)? {
            // Asked after the other's was read: who has one in common now had it in common then.
            if read.iter().any(|other| share(*other, thread)) {
                continue;
            }
            let extent = self.read_table((process, thread), &mut most, &mut found)?;
            if extent != Extent::All {
                return Ok((found, extent));
            }
            read.push(thread);
        }
        Ok((found, Extent::All))
    }

    /// Reads one table.
    fn read_table(
        &self,
        (process, thread): (u32, u32),
        most: &mut usize,
        found: &mut Vec<(Holder, u32)>,
    ) -> io::Result<Extent> {
        let path = format!("/proc/{process}/task/{thread}/fd");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let opened = openat(CWD, path, flags, Mode::empty()).and_then(Dir::new);
        // It has ended, or may not be looked at.
        let Some(mut table) = unless_short(opened.map_err(Into::into))? else {
            return Ok(Extent::All);
        };
        while let Some(entry) = table.read() {
            let Some(entry) = unless_short(entry.map_err(Into::into))? else {
                break;
            };
            if *most == 0 {
                return Ok(Extent::Few);
            }
            if Instant::now() >= self.until || !self.takes_one() {
                return Ok(Extent::Cut);
            }
            *most -= 1;
            let Some((number, inode)) = socket(&table, entry.file_name())? else {
                continue;
            };
            let holder = Holder {
                process,
                descriptor: (thread == process).then_some(number),
            };
            found.push((holder, inode));
        }
        Ok(Extent::All)
    }

    fn takes_one(&self) -> bool {
        let less = |left: usize| left.checked_sub(1);
        let taken = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, less);
        taken.is_ok()
    }
}

/// So that those of each user take turns: who has many processes leaves room and time for a few descriptors of everybody else's.
pub(super) fn in_turns(mut processes: Vec<u32>, user: impl Fn(u32) -> Option<u32>) -> Vec<u32> {
    if processes.len() <= AT_ONCE {
        return processes;
    }
    let mut turns = BTreeMap::new();
    processes.sort_by_cached_key(|process| {
        let turn = turns.entry(user(*process)).or_insert(0_usize);
        *turn += 1;
        *turn
    });
    processes
}

/// Of whom not even a few could be read.
fn others_have_many() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "others have more open than is read, or answer late",
    )
}

/// The threads of a process that are looked at.
pub(super) fn threads(process: u32) -> io::Result<Vec<u32>> {
    Ok(unless_short(processes::threads(process))?.unwrap_or_default())
}

/// Whose a process is; the kernel's threads are nobody's: they would take root's turns.
pub(super) fn user_of(process: u32) -> Option<u32> {
    real_user(process).ok().flatten()
}

/// The number and the inode, if it is a socket's.
fn socket(table: &Dir, name: &std::ffi::CStr) -> io::Result<Option<(RawFd, u32)>> {
    // No file's name begins as a socket's does, and no socket's is longer.
    let mut link = [0; 32];
    let read = readlinkat_raw(table.fd()?, name, &mut link[..]);
    let length = unless_short(read.map_err(Into::into))?.unwrap_or_default();
    Ok(link.get(..length).and_then(|link| parse(name, link)))
}

/// A descriptor's name and what it leads to.
fn parse(name: &std::ffi::CStr, link: &[u8]) -> Option<(RawFd, u32)> {
    let link = std::str::from_utf8(link).ok()?;
    let inode = link.strip_prefix("socket:[")?.strip_suffix(']')?;
    Some((name.to_str().ok()?.parse().ok()?, inode.parse().ok()?))
}

/// Do two threads have one table in common? Once they have not, they never have again. Where the kernel does not say
/// (`CONFIG_KCMP`), each counts as having its own: that costs a look what is read twice, and hides nothing within its bounds.
fn share(one: u32, other: u32) -> bool {
    const KCMP_FILES: libc::c_int = 2;
    // SAFETY: needed because nobody wraps this call. It takes numbers only, and changes nothing.
    unsafe { libc::syscall(libc::SYS_kcmp, one, other, KCMP_FILES, 0_u64, 0_u64) == 0 }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::thread::{UnshareFlags, gettid, unshare_unsafe};
    use std::collections::BTreeMap;
    use std::net::UdpSocket;
    use std::os::fd::AsFd;
    use std::sync::mpsc::channel;

    fn socket() -> (UdpSocket, u32) {
        let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
        let inode = rustix::fs::fstat(socket.as_fd()).unwrap().st_ino;
        (socket, inode.try_into().unwrap())
    }

    /// How often each socket of this process is found: by its own table, and by those of its threads.
    fn found(reading: &mut Reading) -> BTreeMap<u32, [usize; 2]> {
        let (all, short) = read(reading);
        assert!(!short);
        all
    }

    /// And whether it was told that others left no room for some.
    fn read(reading: &mut Reading) -> (BTreeMap<u32, [usize; 2]>, bool) {
        let mut is_short = false;
        let mut all = BTreeMap::<u32, [usize; 2]>::new();
        let own = std::process::id();
        let mut found = |holder: Holder, inode| {
            assert_eq!(holder.process, own);
            let place = usize::from(holder.descriptor.is_none());
            all.entry(inode).or_default()[place] += 1;
        };
        let mut short = |process, error: &io::Error| {
            assert!(
                process == own && error.kind() == io::ErrorKind::TimedOut,
                "{error}"
            );
            is_short = true;
        };
        reading.find(std::iter::once(own), threads, &mut found, &mut short);
        (all, is_short)
    }

    #[test]
    fn a_shared_table_is_read_once_and_a_threads_own_too() {
        let (_common, common) = socket();
        let (says, said) = channel();
        let (end, ends) = channel::<()>();
        let apart = std::thread::spawn(move || {
            // SAFETY: needed to have a table of its own. What it opens is closed by itself, and what it has of the others' is
            // closed when it ends.
            unsafe { unshare_unsafe(UnshareFlags::FILES) }.unwrap();
            let (_own, own) = socket();
            let thread = u32::try_from(gettid().as_raw_nonzero().get()).unwrap();
            says.send((own, thread)).unwrap();
            let _ = ends.recv();
        });
        let (end_other, ends_other) = channel::<()>();
        let with = std::thread::spawn(move || ends_other.recv());
        let (own, thread) = said.recv().unwrap();
        let process = std::process::id();
        assert!(!share(process, thread));
        let all = found(&mut Reading::default());
        // Where the kernel does not say who shares one, the test's threads are read too.
        if share(process, process) {
            assert_eq!(all[&common], [1, 1]);
        }
        assert_eq!(all[&own], [0, 1]);
        drop((end, end_other));
        apart.join().unwrap();
        let _ = with.join();
        assert!(!found(&mut Reading::default()).contains_key(&own));
    }

    #[test]
    fn what_is_read_is_counted_and_bounded() {
        let _some = [socket(), socket()];
        let of = |left, time| {
            let mut reading = Reading {
                left,
                time,
                ..Reading::default()
            };
            let (all, is_short) = read(&mut reading);
            (all.len(), is_short, reading)
        };
        let (all, is_short, reading) = of(ALL, TIME);
        assert!(!is_short && all >= 2 && reading.left < ALL - 2 && reading.left > ALL - FEW);
        assert!(reading.time < TIME && reading.time > Duration::ZERO);
        // Of whom nothing was read, that is told: it is not as if he had nothing.
        let (found, is_short, _) = of(0, TIME);
        assert_eq!((found, is_short), (0, true));
        let (found, is_short, reading) = of(ALL, Duration::ZERO);
        assert_eq!((found, is_short, reading.left), (0, true, ALL));
    }

    #[test]
    fn who_has_many_processes_has_a_few_of_everybody_elses_read_before() {
        let user = |process| Some(process / 10_000);
        let all: Vec<u32> = (0..2_000).chain(10_000..10_003).chain([30_000]).collect();
        let turns = in_turns(all.clone(), user);
        assert_eq!(turns[..7], [0, 10_000, 30_000, 1, 10_001, 2, 10_002]);
        assert_eq!((turns.len(), turns[2_003]), (all.len(), 1_999));
    }
}
