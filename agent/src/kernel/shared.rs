//! Maps that the agent and the hooks write at the same time: mapped into memory, and written word by word, atomically.
use super::{Error, pins::Pins, sys};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use tollgate_common::recognise::{MAX_PROCESSES, Mark, SHAPES, Scope, Shape, place};

/// Where the words of `Scope` are.
const RULES_AT: usize = std::mem::offset_of!(Scope, rules) / 8;
/// See [`RULES_AT`].
const SHAPES_AT: usize = std::mem::offset_of!(Scope, shapes) / 8;

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

    /// Has the hooks look for paths of these shapes. One that they look for already stays in its place, so that it is
    /// looked for at every moment.
    pub(super) fn set_shapes(&self, wanted: &[Shape]) {
        let old: Vec<Shape> = (0..SHAPES).map(|at| self.shape(at)).collect();
        let stays = |old: Shape| wanted.iter().find(|shape| shape.is_like(old)).copied();
        let mut places: Vec<Option<Shape>> = old.iter().map(|old| stays(*old)).collect();
        let new = wanted
            .iter()
            .filter(|new| !old.iter().any(|old| new.is_like(*old)));
        // The first place must not be empty while another is not: that is how the hooks see that there is nothing.
        for shape in new {
            let free = places
                .iter_mut()
                .zip(&old)
                .find(|(place, old)| place.is_none() && old.0 == 0);
            match free {
                Some((place, _)) => *place = Some(*shape),
                None => places.push(Some(*shape)),
            }
        }
        let mut more = places.split_off(SHAPES).into_iter();
        for (at, place) in places.iter().enumerate() {
            let word = place.or_else(|| more.next().flatten()).unwrap_or(Shape(0));
            self.put(SHAPES_AT + at, word.0);
        }
    }

    /// The generation of the shapes that are there.
    pub(super) fn generation(&self) -> u32 {
        let shapes = (0..SHAPES).map(|at| self.shape(at));
        let last = shapes.filter(|shape| shape.0 != 0).map(Shape::generation);
        last.last().unwrap_or(0)
    }

    /// Has the hooks ask the rules anew.
    pub(super) fn set_rules(&self, flags: u64) {
        let random = u64::from(uuid::Uuid::new_v4().as_fields().0);
        let generation = if flags == 0 { 0 } else { random << 32 };
        self.put(RULES_AT, flags | generation);
    }

    /// Has every process that was asked for in vain asked for again.
    pub(super) fn ask_again(&self) {
        let old = self
            .0
            .get(RULES_AT)
            .map_or(0, |word| word.load(Ordering::SeqCst));
        self.set_rules(old & u64::from(u32::MAX));
    }

    fn shape(&self, at: usize) -> Shape {
        let word = self.0.get(SHAPES_AT + at);
        Shape(word.map_or(0, |word| word.load(Ordering::SeqCst)))
    }

    fn put(&self, at: usize, to: u64) {
        if let Some(word) = self.0.get(at) {
            word.store(to, Ordering::SeqCst);
        }
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
