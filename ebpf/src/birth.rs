//! Cgroups as they are made: governed before anybody can enter them, whether there is an agent or not.
//!
//! The tracepoint is passed before the new directory can be seen. Paths that workloads are recognised by
//! are kept as a tree of names; which of them have names that may be any is said by their shapes.
//!
//! What one step leaves to the next lies in the room: none has the stack for it.
// A name by value would pass over the stack, which has no room for it; indices are masked to the array's bounds.
#![allow(clippy::needless_borrows_for_generic_args, clippy::indexing_slicing)]
use crate::{
    atomic::{and, fetch_or},
    attribute::{OFFSETS, pointer, read},
    maps::{BEYOND, GOVERNED, NAMES, ROOM, Room, STEPS},
    repeat::{GO_ON, STOP, repeat},
    select,
};
use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_probe_read_kernel_str};
use tollgate_common::{
    limits::MAX_LEVEL,
    recognise::{
        ANY_NAME, BEYOND_WORDS, BY_CONTAINER, Beyond, CGROUP_NAME, EXEMPT, FILTER_WORDS, NODES,
        SHAPES, Scope, Shape, Step, Subtree, UNSETTLED, place,
    },
};

/// Hexadecimal digits of a container's id.
const ID_DIGITS: u32 = 64;

/// A cgroup is being made.
#[inline(always)]
pub(crate) fn made(cgroup: u64) -> Option<()> {
    let at = OFFSETS.load();
    let scope = select::scope()?.cast_mut();
    let by_container = select::rules(scope) & BY_CONTAINER != 0;
    if (shape(scope, 0)?.0 == 0 && !by_container) || !is_of_v2(cgroup)? {
        return None;
    }
    // SAFETY: reads through a helper that checks the address.
    let level: u32 = unsafe { read(cgroup, at.cgroup_level)? };
    if level == 0 || level >= MAX_LEVEL {
        return None; // Too deep for the hooks to look.
    }
    let room = ROOM.get_ptr_mut(0)?;
    // SAFETY: the room is a live map value.
    unsafe { core::ptr::write_volatile(&raw mut (*room).level, level) };
    read_path(room, cgroup)?;
    match_path(room);
    if by_container && names_container(room) {
        // SAFETY: as above.
        unsafe {
            if core::ptr::read_volatile(&raw const (*room).found.workload) == 0 {
                core::ptr::write_volatile(&raw mut (*room).found.workload, u32::from(UNSETTLED));
            }
        }
    }
    govern(scope, room, cgroup)
}

/// A cgroup is gone; it was empty.
#[inline(always)]
pub(crate) fn gone(cgroup: u64) -> Option<()> {
    if is_of_v2(cgroup)? {
        let id = id(cgroup)?;
        let _ = GOVERNED.remove(id);
        let (word, bit) = beyond(id)?;
        // SAFETY: `beyond` gives a word of a live map value.
        unsafe {
            if core::ptr::read_volatile(word) & bit != 0 {
                and(word, !bit);
            }
        }
    }
    Some(())
}

/// Version 1 has hierarchies of its own, with ids of their own.
#[inline(always)]
fn is_of_v2(cgroup: u64) -> Option<bool> {
    let at = OFFSETS.load();
    // SAFETY: reads through a helper that checks the address.
    let hierarchy: u32 = unsafe { read(pointer(cgroup, at.cgroup_root)?, at.root_hierarchy)? };
    Some(hierarchy == 0)
}

#[inline(always)]
fn id(cgroup: u64) -> Option<u64> {
    let at = OFFSETS.load();
    // SAFETY: as above.
    unsafe { read(pointer(cgroup, at.cgroup_node)?, at.node_id) }
}

/// A path that is being read.
struct Path {
    cgroup: u64,
    /// Not 0: a part of it could not be read.
    failed: u64,
}

/// Reads the names from the root to `cgroup`, the last of which stays in the room. `None`: one cannot be read.
#[inline(always)]
fn read_path(room: *mut Room, cgroup: u64) -> Option<()> {
    // SAFETY: the room is a live map value.
    unsafe { core::ptr::write_volatile(&raw mut (*room).slices, 1) };
    let mut path = Path { cgroup, failed: 0 };
    repeat(MAX_LEVEL - 1, read_next, &mut path);
    (path.failed == 0).then_some(())
}

/// Reads one name.
extern "C" fn read_next(turn: u64, path: *mut Path) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let path = unsafe { &mut *path };
    let Some(room) = ROOM.get_ptr_mut(0) else {
        return STOP;
    };
    let (depth, level) = (turn as u32 + 1, level_of(room));
    if depth > level {
        return STOP;
    }
    let at = OFFSETS.load();
    // SAFETY: the room is a live map value, `depth` within its numbers; what is the kernel's is read through a
    // helper that checks the address.
    unsafe {
        let slot = at.cgroup_ancestors.wrapping_add(depth * 8);
        let name = pointer(path.cgroup, slot)
            .and_then(|above| pointer(above, at.cgroup_node))
            .and_then(|node| pointer(node, at.node_name));
        let Some(name) = name else {
            path.failed = 1;
            return STOP;
        };
        let length = read_name(room, name);
        let number = NAMES.get_ptr(&(*room).name).map_or(0, |number| *number);
        (*room).numbers[(depth & 31) as usize] = number;
        if depth != level && !is_slice(room, length) {
            core::ptr::write_volatile(&raw mut (*room).slices, 0);
        }
    }
    GO_ON
}

#[inline(always)]
fn level_of(room: *const Room) -> u32 {
    // SAFETY: the room is a live map value.
    unsafe { core::ptr::read_volatile(&raw const (*room).level) }
}

/// Reads a name, zeros behind it; its length with one of them, or 0.
#[inline(always)]
unsafe fn read_name(room: *mut Room, name: u64) -> u32 {
    // SAFETY: the room is a live map value, and all writes are within its name.
    unsafe {
        let words = (&raw mut (*room).name).cast::<u64>();
        for word in 0..CGROUP_NAME / 8 {
            core::ptr::write_volatile(words.add(word), 0);
        }
        let to = (&raw mut (*room).name).cast();
        let length = bpf_probe_read_kernel_str(to, CGROUP_NAME as u32, name as *const _);
        if length > 0 { length as u32 } else { 0 }
    }
}

/// Does the name in the room, of this length, end in `.slice`?
#[inline(always)]
unsafe fn is_slice(room: *const Room, length: u32) -> bool {
    let end = *b".slice";
    let start = length.wrapping_sub(1 + end.len() as u32);
    let mut ends = length as usize > end.len() + 1;
    for (offset, byte) in end.into_iter().enumerate() {
        let at = start.wrapping_add(offset as u32) as usize & (CGROUP_NAME - 1);
        // SAFETY: within the name.
        let found =
            unsafe { core::ptr::read_volatile((&raw const (*room).name).cast::<u8>().add(at)) };
        ends = ends && found == byte;
    }
    ends
}

/// Is there a container's id in the name in the room?
#[inline(always)]
fn names_container(room: *mut Room) -> bool {
    // SAFETY: the room is a live map value.
    unsafe { core::ptr::write_volatile(&raw mut (*room).digits, 0) };
    let mut found = 0;
    repeat(CGROUP_NAME as u32, count_digit, &mut found);
    found != 0
}

/// Looks at one byte.
extern "C" fn count_digit(turn: u64, found: *mut u64) -> i64 {
    let Some(room) = ROOM.get_ptr_mut(0) else {
        return STOP;
    };
    // SAFETY: the room is a live map value; all is within it. `repeat` passes what it was given.
    unsafe {
        let at = turn as usize & (CGROUP_NAME - 1);
        let byte = core::ptr::read_volatile((&raw const (*room).name).cast::<u8>().add(at));
        let is_digit = byte.wrapping_sub(b'0') < 10 || byte.wrapping_sub(b'a') < 6;
        let digits = &raw mut (*room).digits;
        let seen = match is_digit {
            true => core::ptr::read_volatile(digits) + 1,
            false => 0,
        };
        core::ptr::write_volatile(digits, seen);
        if seen >= ID_DIGITS {
            *found = 1;
            return STOP;
        }
    }
    GO_ON
}

#[inline(always)]
fn shape(scope: *const Scope, number: usize) -> Option<Shape> {
    // SAFETY: the pointer is into a map value and `number` within its shapes; volatile because the agent
    // writes them meanwhile.
    let word = unsafe {
        let words = (&raw const (*scope).shapes).cast::<u64>();
        core::ptr::read_volatile(words.add(number & (SHAPES - 1)))
    };
    Some(Shape(word))
}

/// What the paths that are looked for say of the one in the room: whose it is by the lowest rank, and all the
/// conditions that hold.
#[inline(always)]
fn match_path(room: *mut Room) {
    // SAFETY: the room is a live map value.
    unsafe {
        (*room).found.workload = 0;
        (*room).found.conditions = 0;
        core::ptr::write_volatile(&raw mut (*room).found.rank, u32::MAX);
    }
    repeat(SHAPES as u32, match_shape, &mut 0);
}

/// Matches paths of one shape. There is no state but the room.
extern "C" fn match_shape(turn: u64, _: *mut u64) -> i64 {
    let (Some(room), Some(scope)) = (ROOM.get_ptr_mut(0), select::scope()) else {
        return STOP;
    };
    let Some(shape) = shape(scope, turn as usize) else {
        return STOP;
    };
    // SAFETY: the room is a live map value.
    let slices = unsafe { core::ptr::read_volatile(&raw const (*room).slices) } != 0;
    if shape.depth() == level_of(room) && (slices || !shape.slices()) {
        let mut way = Way {
            shape,
            node: u64::from(shape.generation().wrapping_mul(NODES)),
        };
        repeat(MAX_LEVEL - 1, step, &mut way);
    }
    GO_ON
}

/// How far one has come.
struct Way {
    shape: Shape,
    node: u64,
}

/// Goes the way of the path in the room by one name, and takes what stands at its end.
extern "C" fn step(turn: u64, way: *mut Way) -> i64 {
    // SAFETY: `repeat` passes what it was given.
    let way = unsafe { &mut *way };
    let Some(room) = ROOM.get_ptr_mut(0) else {
        return STOP;
    };
    let depth = turn as u32 + 1;
    let any = (way.shape.stars() >> (depth & 31)) & 1 != 0;
    let name = match any {
        true => ANY_NAME,
        // SAFETY: the room is a live map value, and `depth` within its numbers.
        false => unsafe { (*room).numbers[(depth & 31) as usize] },
    };
    let node = way.node as u32;
    let Some(arrival) = STEPS.get_ptr(Step { node, name }) else {
        return STOP;
    };
    // SAFETY: live map values; the memory of a removed one stays readable.
    unsafe {
        if depth >= level_of(room) {
            (*room).found.conditions |= (*arrival).conditions;
            if (*arrival).workload != 0 && (*arrival).rank < (*room).found.rank {
                (*room).found.rank = (*arrival).rank;
                (*room).found.workload = (*arrival).workload;
            }
            return STOP;
        }
        way.node = u64::from((*arrival).node);
    }
    GO_ON
}

/// There is no room for it: it is nobody's, and refused.
#[inline(always)]
fn refuse(id: u64) -> Option<()> {
    let (word, bit) = beyond(id)?;
    // SAFETY: `beyond` gives a word of a live map value.
    unsafe { fetch_or(word, bit) };
    Some(())
}

/// Where it says so of a cgroup: the word, and its bit.
#[inline(always)]
fn beyond(id: u64) -> Option<(*mut u64, u64)> {
    let (word, bit) = Beyond::place(id);
    let words = BEYOND.get_ptr_mut(0)?.cast::<u64>();
    // SAFETY: within the map's value, and aligned to 8.
    Some((unsafe { words.add(word & (BEYOND_WORDS - 1)) }, bit))
}

/// Governs the new cgroup, unless what it is in is the same already.
#[inline(always)]
fn govern(scope: *mut Scope, room: *const Room, cgroup: u64) -> Option<()> {
    // SAFETY: the room is a live map value.
    let found = unsafe { (*room).found };
    // The agent's own is made again with each start of its service.
    if found.workload == u32::from(EXEMPT) || found.workload == 0 && found.conditions == 0 {
        return None;
    }
    if found.conditions == 0
        && select::above(cgroup).is_some_and(|above| above.workload == found.workload)
    {
        return None;
    }
    let id = id(cgroup)?;
    let subtree = Subtree {
        workload: found.workload,
        reserved: 0,
        conditions: found.conditions,
    };
    if GOVERNED.insert(id, subtree, u64::from(BPF_ANY)).is_err() {
        refuse(id)?;
    }
    let (word, bit) = place(id);
    // SAFETY: `scope` is a live map value; both words are within it and aligned to 8.
    unsafe {
        let filter = (&raw mut (*scope).filter).cast::<u64>();
        fetch_or(filter.add(word & (FILTER_WORDS - 1)), bit);
        fetch_or(&raw mut (*scope).levels, 1 << (level_of(room) & 31));
    }
    Some(())
}
