//! Maps that the agent and the hooks write at the same time: mapped into memory, and written word by word, atomically.
use super::{Error, pins::Pins, sys};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use tollgate_common::recognise::{MAX_PROCESSES, Mark, Scope, place};

/// The words of a map of one kind of entry.
#[derive(Debug)]
struct Words {
    start: NonNull<AtomicU64>,
    count: usize,
}

// SAFETY: needed because of the pointer. It leads to memory that this value alone unmaps, and that is only ever
// reached through atomics.
unsafe impl Send for Words {}
// SAFETY: as above.
unsafe impl Sync for Words {}

impl Words {
    fn open(pins: &Pins, name: &'static str, bytes: usize) -> Result<Self, Error> {
        let path = pins.map(name);
        let failed = |source| Error::Pin {
            action: "map into memory",
            path: path.clone(),
            source,
        };
        let map = sys::open_pin(&path).map_err(failed)?;
        let length = NonZeroUsize::new(bytes).ok_or(Error::MissingPart { what: name })?;
        let access = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: needed to reach the map's memory. The kernel chooses an address that nothing is at; the map is
        // `BPF_F_MMAPABLE` and as long as this, or the call fails.
        let start = unsafe {
            mmap(
                std::ptr::null_mut(),
                length.get(),
                access,
                MapFlags::SHARED,
                &map,
                0,
            )
        };
        let start = start.map_err(|errno| failed(errno.into()))?;
        let start = NonNull::new(start.cast()).ok_or(Error::MissingPart { what: name })?;
        Ok(Self {
            start,
            count: bytes / size_of::<AtomicU64>(),
        })
    }

    fn get(&self, at: usize) -> Option<&AtomicU64> {
        // SAFETY: needed to reach the mapped memory. `at` is within it, it is aligned to a page, lives as long as
        // `self`, and whoever else writes it, the hooks included, writes whole words.
        (at < self.count).then(|| unsafe { self.start.add(at).as_ref() })
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: needed to give back what `open` took. Nobody has a reference: they borrow from `self`.
        let _ = unsafe { munmap(self.start.as_ptr().cast(), self.count * size_of::<u64>()) };
    }
}

/// `SCOPE`.
#[derive(Debug)]
pub(super) struct SharedScope(Words);

impl SharedScope {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        Words::open(pins, "SCOPE", size_of::<Scope>()).map(Self)
    }

    /// Has the hooks look for a cgroup.
    pub(super) fn add(&self, cgroup: u64, level: u32) {
        let (word, bit) = place(cgroup);
        // The levels come last: without them nobody looks at the rest.
        self.set(1 + word, bit);
        self.set(0, 1 << level);
    }

    fn set(&self, word: usize, bits: u64) {
        if let Some(word) = self.0.get(word) {
            word.fetch_or(bits, Ordering::SeqCst);
        }
    }
}

/// `PROCESSES`.
#[derive(Debug)]
pub(super) struct Marks(Words);

impl Marks {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let bytes = MAX_PROCESSES as usize * size_of::<Mark>();
        Words::open(pins, "PROCESSES", bytes).map(Self)
    }

    /// A process's mark.
    pub(super) fn get(&self, process: u32) -> Mark {
        let word = self.0.get(process as usize);
        Mark(word.map_or(0, |word| word.load(Ordering::SeqCst)))
    }

    /// Sets a process's mark to `new`, if it still is `old`.
    pub(super) fn replace(&self, process: u32, old: Mark, new: Mark) -> bool {
        let swap = |word: &AtomicU64| {
            word.compare_exchange(old.0, new.0, Ordering::SeqCst, Ordering::SeqCst)
                .is_ok()
        };
        self.0.get(process as usize).is_some_and(swap)
    }

    /// Takes every mark away that `of` holds for.
    pub(super) fn clear(&self, of: impl Fn(Mark) -> bool) {
        for process in 0..MAX_PROCESSES {
            let old = self.get(process);
            if old.0 != 0 && of(old) {
                // Lost to a hook that wrote a newer one: look again.
                while of(self.get(process)) && !self.replace(process, self.get(process), Mark(0)) {}
            }
        }
    }
}
