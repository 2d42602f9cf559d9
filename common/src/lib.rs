//! The ABI between the eBPF programs and the agent: plain data, padding explained, sizes asserted.
#![no_std]
