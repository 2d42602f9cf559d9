//! Cgroups as they are made: governed before anybody can enter them, whether there is an agent or not.
//!
//! The tracepoint is passed before the new directory can be seen. Paths that workloads are recognised by
//! are kept as a tree of names; which of them have names that may be any is said by their shapes.
//!
//! Each step has a stack of its own, and what one leaves to the next lies in the room: the verifier would look at
//! everything apart for each level that the first could end at, and find that "BPF program is too large".
// A name by value would pass over the stack, which has no room for it; indices are masked to the array's bounds.
#![allow(clippy::needless_borrows_for_generic_args, clippy::indexing_slicing)]
use crate::{
    atomic::fetch_or,
    attribute::{OFFSETS, pointer, read},
    maps::{GOVERNED, NAMES, ROOM, Room, STEPS},
    select,
};
use aya_ebpf::{bindings::BPF_ANY, helpers::generated::bpf_probe_read_kernel_str};
use tollgate_common::{
    limits::MAX_LEVEL,
    recognise::{
        ANY_NAME, BY_CONTAINER, CGROUP_NAME, FILTER_WORDS, NODES, SHAPES, Scope, Shape, Step,
        Subtree, UNSETTLED, place,
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
    if read_path(room, cgroup) != READ {
        return None;
    }
    match_path(scope, room);
    if by_container && names_container(room) != 0 {
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
        let _ = GOVERNED.remove(id(cgroup)?);
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

/// What [`read_path`] returns when it has.
const READ: u32 = 1;

/// Reads the names from the root to `cgroup`, the last of which stays in the room.
#[inline(never)]
fn read_path(room: *mut Room, cgroup: u64) -> u32 {
    let at = OFFSETS.load();
    let level = level_of(room);
    // SAFETY: the room is a live map value, `depth` within its numbers; what is the kernel's is read through a
    // helper that checks the address.
    unsafe {
        core::ptr::write_volatile(&raw mut (*room).slices, 1);
        for depth in 1..MAX_LEVEL {
            if depth > level {
                break;
            }
            let slot = at.cgroup_ancestors.wrapping_add(depth * 8);
            let name = pointer(cgroup, slot)
                .and_then(|above| pointer(above, at.cgroup_node))
                .and_then(|node| pointer(node, at.node_name));
            let Some(name) = name else { return 0 };
            let length = read_name(room, name);
            let number = NAMES.get_ptr(&(*room).name).map_or(0, |number| *number);
            (*room).numbers[(depth & 31) as usize] = number;
            if depth != level && !is_slice(room, length) {
                core::ptr::write_volatile(&raw mut (*room).slices, 0);
            }
        }
    }
    READ
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
#[inline(never)]
fn names_container(room: *mut Room) -> u32 {
    // SAFETY: the room is a live map value; all is within it.
    unsafe {
        let digits = &raw mut (*room).digits;
        core::ptr::write_volatile(digits, 0);
        for at in 0..CGROUP_NAME {
            let byte = core::ptr::read_volatile((&raw const (*room).name).cast::<u8>().add(at));
            let is_digit = byte.wrapping_sub(b'0') < 10 || byte.wrapping_sub(b'a') < 6;
            let seen = if is_digit {
                core::ptr::read_volatile(digits) + 1
            } else {
                0
            };
            core::ptr::write_volatile(digits, seen);
            if seen >= ID_DIGITS {
                return 1;
            }
        }
    }
    0
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
#[inline(never)]
fn match_path(scope: *const Scope, room: *mut Room) {
    // SAFETY: the room is a live map value.
    unsafe {
        (*room).found.workload = 0;
        (*room).found.conditions = 0;
        core::ptr::write_volatile(&raw mut (*room).found.rank, u32::MAX);
    }
    for number in 0..SHAPES {
        let Some(shape) = shape(scope, number) else {
            return;
        };
        // SAFETY: as above.
        let slices = unsafe { core::ptr::read_volatile(&raw const (*room).slices) } != 0;
        if shape.depth() == level_of(room) && (slices || !shape.slices()) {
            arrive(room, shape.0);
        }
    }
}

/// Goes the way of the path in the room, as far as it leads, and takes what stands at its end.
#[inline(never)]
fn arrive(room: *mut Room, shape: u64) {
    let shape = Shape(shape);
    let level = level_of(room);
    let mut node = shape.generation().wrapping_mul(NODES);
    for depth in 1..MAX_LEVEL {
        let any = (shape.stars() >> depth) & 1 != 0;
        let name = match any {
            true => ANY_NAME,
            // SAFETY: the room is a live map value, and `depth` within its numbers.
            false => unsafe { (*room).numbers[(depth & 31) as usize] },
        };
        let Some(arrival) = STEPS.get_ptr(Step { node, name }) else {
            return;
        };
        // SAFETY: live map values; the memory of a removed one stays readable.
        unsafe {
            if depth >= level {
                (*room).found.conditions |= (*arrival).conditions;
                if (*arrival).workload != 0 && (*arrival).rank < (*room).found.rank {
                    (*room).found.rank = (*arrival).rank;
                    (*room).found.workload = (*arrival).workload;
                }
                return;
            }
            node = (*arrival).node;
        }
    }
}

/// Governs the new cgroup, unless what it is in is the same already.
#[inline(always)]
fn govern(scope: *mut Scope, room: *const Room, cgroup: u64) -> Option<()> {
    // SAFETY: the room is a live map value.
    let found = unsafe { (*room).found };
    if found.workload == 0 && found.conditions == 0 {
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
    let (word, bit) = place(id);
    GOVERNED.insert(id, subtree, u64::from(BPF_ANY)).ok()?;
    // SAFETY: `scope` is a live map value; both words are within it and aligned to 8.
    unsafe {
        let filter = (&raw mut (*scope).filter).cast::<u64>();
        fetch_or(filter.add(word & (FILTER_WORDS - 1)), bit);
        fetch_or(&raw mut (*scope).levels, 1 << (level_of(room) & 31));
    }
    Some(())
}
