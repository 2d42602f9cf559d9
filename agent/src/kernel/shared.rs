//! Maps that the agent and the hooks write at the same time: mapped into memory, and written word by word, atomically.
use super::{Error, pins::Pins, sys};
use rustix::mm::{MapFlags, ProtFlags, mmap, munmap};
use std::num::NonZeroUsize;
use std::ptr::NonNull;
use std::sync::atomic::{AtomicU64, Ordering};
use tollgate_common::recognise::{
    self, BEYOND_WORDS, MAX_PROCESSES, Mark, SHAPES, Scope, Shape, place,
};

/// Passes over all marks, each of which takes some milliseconds.
const PASSES: usize = 16;
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

    /// Has the hooks look for paths of these shapes.
    pub(super) fn set_shapes(&self, wanted: &[Shape]) {
        let old: Vec<Shape> = (0..SHAPES).map(|at| self.shape(at)).collect();
        for (at, shape) in arranged(&old, wanted).iter().enumerate() {
            self.put(SHAPES_AT + at, shape.0);
        }
    }

    /// The generation of the shapes that are there.
    pub(super) fn generation(&self) -> u32 {
        let shapes = (0..SHAPES).map(|at| self.shape(at));
        let there = shapes.filter(|shape| shape.0 != 0);
        there.map(Shape::generation).max().unwrap_or(0)
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

/// `BEYOND`.
#[derive(Debug)]
pub(super) struct SharedBeyond {
    words: Words,
    /// How often this agent found no room.
    added: AtomicU64,
}

/// Cgroups that there was no room to govern, at one moment.
#[derive(Debug)]
pub struct Beyond {
    bits: Vec<u64>,
    added: u64,
}

impl SharedBeyond {
    pub(super) fn open(pins: &Pins) -> Result<Self, Error> {
        let bytes = size_of::<recognise::Beyond>();
        Ok(Self {
            words: Words::open(pins, "BEYOND", bytes)?,
            added: AtomicU64::new(0),
        })
    }

    /// Has the hooks refuse a cgroup.
    pub(super) fn add(&self, cgroup: u64) {
        let (word, bit) = recognise::Beyond::place(cgroup);
        if let Some(word) = self.words.get(word) {
            word.fetch_or(bit, Ordering::SeqCst);
        }
        self.added.fetch_add(1, Ordering::SeqCst);
    }

    /// All that are refused now.
    pub(super) fn all(&self) -> Beyond {
        let words = (0..BEYOND_WORDS).filter_map(|at| self.words.get(at));
        Beyond {
            added: self.added.load(Ordering::SeqCst),
            bits: words.map(|word| word.load(Ordering::SeqCst)).collect(),
        }
    }

    /// Refuses `settled` no longer, unless there was no room again since.
    pub(super) fn remove(&self, settled: &Beyond) {
        if self.added.load(Ordering::SeqCst) != settled.added {
            return;
        }
        let there = settled.bits.iter().enumerate();
        for (at, bits) in there.filter(|(_, bits)| **bits != 0) {
            if let Some(word) = self.words.get(at) {
                word.fetch_and(!bits, Ordering::SeqCst);
            }
        }
    }
}

impl Beyond {
    /// How many there are.
    pub fn count(&self) -> u32 {
        self.bits.iter().map(|bits| bits.count_ones()).sum()
    }
}

/// Where shapes go: one that is there already stays in its place, so that it is looked for at every moment, and new ones
/// come into empty places before those of old ones. The first place is taken if any is: by that the hooks see
/// whether there is anything to look for.
fn arranged(old: &[Shape], wanted: &[Shape]) -> Vec<Shape> {
    let mut left: Vec<Shape> = wanted.to_vec();
    let mut stays = |old: &Shape| {
        let at = left.iter().position(|new| new.is_like(*old))?;
        Some(left.swap_remove(at))
    };
    let mut places: Vec<Option<Shape>> = old.iter().map(&mut stays).collect();
    for was_empty in [true, false] {
        let free = places.iter_mut().zip(old);
        let free = free.filter(|(place, old)| place.is_none() && (old.0 == 0) == was_empty);
        for (place, _) in free {
            *place = left.pop();
        }
    }
    let last = places.iter().rposition(Option::is_some);
    if let (Some(None), Some(last)) = (places.first(), last) {
        // In both places until the next change: found twice, it is what it is.
        let shape = places.get(last).copied().flatten();
        if let Some(first) = places.first_mut() {
            *first = shape;
        }
    }
    places
        .into_iter()
        .map(|place| place.unwrap_or(Shape(0)))
        .collect()
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

    /// Makes a mark what `to` makes of it; `None`: it stays.
    pub(super) fn change(&self, process: u32, to: impl Fn(Mark) -> Option<Mark>) {
        loop {
            let old = self.get(process);
            let Some(new) = to(old) else { return };
            if self.replace(process, old, new) || process >= MAX_PROCESSES {
                return;
            }
        }
    }

    /// Takes every mark away that `of` holds for. A child has its parent's, and can get it from one that is still to come, in a
    /// place that is done already: it goes on until nothing is found, but not for ever after whoever forks faster.
    pub(super) fn clear(&self, of: impl Fn(Mark) -> bool) {
        self.clear_but(MAX_PROCESSES, of);
    }

    /// The same, but for one process.
    pub(super) fn clear_but(&self, other: u32, of: impl Fn(Mark) -> bool) {
        clear_until_none(|| self.clear_once(other, &of));
    }

    /// One pass; returns whether it found any.
    fn clear_once(&self, other: u32, of: impl Fn(Mark) -> bool) -> bool {
        let mut found = false;
        for process in (0..MAX_PROCESSES).filter(|process| *process != other) {
            let old = self.get(process);
            if old.0 != 0 && of(old) {
                found = true;
                // Lost to a hook that wrote a newer one: look again.
                while of(self.get(process)) && !self.replace(process, self.get(process), Mark(0)) {}
            }
        }
        found
    }
}

/// Makes passes until one finds nothing.
fn clear_until_none(pass: impl FnMut() -> bool) {
    let _ = std::iter::repeat_with(pass)
        .take(PASSES)
        .find(|found| !found);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_are_cleared_until_none_is_found() {
        let passes = |found: usize| {
            let mut made = 0;
            clear_until_none(|| {
                made += 1;
                made <= found
            });
            made
        };
        assert_eq!(passes(0), 1);
        assert_eq!(passes(2), 3);
        assert_eq!(passes(usize::MAX), PASSES);
    }

    fn shape(depth: u32, generation: u32) -> Shape {
        Shape::new(depth, 0, false, generation)
    }

    #[test]
    fn shapes_stay_where_they_are_and_the_first_place_is_taken() {
        let none = Shape(0);
        let first = arranged(&[none; 4], &[shape(1, 0), shape(2, 0)]);
        assert_eq!(first.iter().filter(|shape| shape.0 != 0).count(), 2);
        assert_ne!(first.first(), Some(&none));
        let old = [shape(1, 0), shape(2, 0), none, none];
        let next = arranged(&old, &[shape(2, 1), shape(3, 1)]);
        assert_eq!(next, [shape(3, 1), shape(2, 1), shape(3, 1), none]);
        assert_eq!(arranged(&old, &[]), [none; 4]);
        let full = [shape(1, 0), shape(2, 0)];
        assert_eq!(
            arranged(&full, &[shape(2, 1), shape(3, 1)]),
            [shape(3, 1), shape(2, 1)]
        );
        // Twice there, once wanted.
        let twice = [shape(3, 0), none, shape(3, 0)];
        let once = arranged(&twice, &[shape(3, 1)]);
        assert_eq!(once, [shape(3, 1), none, none]);
    }
}
