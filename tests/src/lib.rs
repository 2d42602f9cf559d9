//! A small internet in two network namespaces, to hold the real agent against real servers and clients.
//!
//! A [`World`] has a client side and a server side joined by a virtual cable. On the server side are
//! a real nginx behind TLS on public-looking addresses ([`nginx`]), a DNS server ([`dns`]) and a
//! source of server-sent events ([`events`]); on the client side run the agent ([`agent`]) and the
//! programs it governs ([`client`]). Nothing leaves the two namespaces.
//!
//! Namespaces and mounts belong to two processes and have no name on the host, so they vanish with
//! them: when the `World` is dropped, on SIGINT, SIGTERM and SIGHUP, and when this process is killed
//! (the processes are told by the kernel). A `World` must be made by a thread that outlives it.

pub mod agent;
pub mod certs;
pub mod cleanup;
pub mod client;
pub mod dns;
pub mod events;
pub mod everything;
pub mod netns;
pub mod nginx;
pub mod process;
mod world;

pub use world::{Site, World};

use std::time::{Duration, Instant};

/// Polls until `done` gives a value; `None` after `limit`.
pub fn eventually<T>(limit: Duration, mut done: impl FnMut() -> Option<T>) -> Option<T> {
    let until = Instant::now() + limit;
    loop {
        if let Some(value) = done() {
            return Some(value);
        }
        if Instant::now() >= until {
            return None;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

/// How many times slower this machine is than what promises are made for: 1, but where `TOLLGATE_TESTS_SLOWER` says that
/// it is emulated.
pub fn slower() -> u32 {
    let slower = std::env::var("TOLLGATE_TESTS_SLOWER");
    let times = slower.ok().and_then(|times| times.parse().ok());
    times.map_or(1, |times: u32| times.max(1))
}

/// What a promise of at most `limit` allows on this machine.
pub fn at_most(limit: Duration) -> Duration {
    limit * slower()
}

/// What `systemd-analyze security` may find at most, in tenths of 0 to 100; it is what it is, so that a directive that
/// goes has to be noticed.
pub const EXPOSURE: &str = "--threshold=37";

/// The repository's root.
pub fn repository() -> &'static std::path::Path {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}
