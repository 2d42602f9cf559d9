//! Tollgate's eBPF programs.
#![no_std]
#![no_main]
#![allow(unsafe_code)]
#[cfg(target_arch = "bpf")]
#[panic_handler]
fn panic(_: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}
