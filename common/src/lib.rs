//! The ABI between the eBPF programs and the agent: plain data, padding explained, sizes asserted.
//!
//! Everything here is shared memory between two programs that are replaced one after the other, so
//! any change of a layout or of a meaning raises [`ABI`]: an agent never adopts pins of another one.
#![no_std]

pub mod event;
pub mod flow;
pub mod limits;
pub mod openings;
pub mod quota;
pub mod recognise;
pub mod rules;
pub mod settings;

/// Version of everything in this crate; kept in [`settings::Settings::abi`].
pub const ABI: u32 = 8;

/// Implements `aya::Pod` for plain ABI structs.
macro_rules! pod {
    ($($name:ty),+ $(,)?) => {$(
        const _: () = assert!(align_of::<$name>() <= 8);
        // SAFETY: needed to pass the struct through map and ring-buffer reads. Sound because it is
        // `repr(C)`, `Copy`, made of integers only, and its padding is spelled out as fields.
        #[cfg(feature = "user")]
        #[allow(unsafe_code)]
        unsafe impl aya::Pod for $name {}
    )+};
}
pub(crate) use pod;
