//! What the hooks say in their own words: rare, about a host that is short of something. It comes
//! through aya-log's ring, which is not pinned: it belongs to the programs of one agent, and those of
//! the next bring theirs. What is said between two agents is not kept; refusals and counters are.
use super::Error;
use aya::Ebpf;
use aya_log::EbpfLogger;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// Lines passed on in one [`WINDOW`]. A workload can make a hook complain with every connection, and
/// must not fill the agent's log.
const LINES: u32 = 20;
/// See [`LINES`].
const WINDOW: Duration = Duration::from_secs(10);

/// The hooks' log, until somebody reads it.
pub(super) struct HookLog(Mutex<Option<EbpfLogger<ToTracing>>>);

impl std::fmt::Debug for HookLog {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("HookLog")
    }
}

impl HookLog {
    /// The log of programs that are about to be loaded.
    pub(super) fn of(ebpf: &mut Ebpf) -> Result<Self, Error> {
        let logger = EbpfLogger::init_with_logger(ebpf, ToTracing::default());
        let logger = logger.map_err(|_| Error::MissingPart { what: "AYA_LOGS" })?;
        Ok(Self(Mutex::new(Some(logger))))
    }

    /// Passes on what the hooks say, until cancelled; then it can be called again.
    pub(super) async fn pass_on(&self) {
        let mut taken = Taken {
            of: self,
            logger: self.take(),
        };
        let Some(logger) = taken.logger.as_mut() else {
            return std::future::pending().await; // Somebody else does, or it cannot be waited for.
        };
        loop {
            let Ok(mut ready) = logger.readable_mut().await else {
                return std::future::pending().await;
            };
            ready.get_inner_mut().flush();
            ready.clear_ready();
        }
    }

    fn take(&self) -> Option<AsyncFd<EbpfLogger<ToTracing>>> {
        let logger = self.slot().take()?;
        // SAFETY: needed because the trait `AsRawFd` promises less than this asks. The logger's ring
        // owns its descriptor, returns the same one each time, and closes it only when dropped.
        unsafe { AsyncFd::register_with_interest(logger, Interest::READABLE) }
            .inspect_err(|error| tracing::error!(%error, "cannot wait for the hooks' log"))
            .ok()
    }

    fn slot(&self) -> std::sync::MutexGuard<'_, Option<EbpfLogger<ToTracing>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Holds the log while somebody waits for it, and puts it back when they stop.
struct Taken<'a> {
    of: &'a HookLog,
    logger: Option<AsyncFd<EbpfLogger<ToTracing>>>,
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        if let Some(logger) = self.logger.take() {
            *self.of.slot() = Some(logger.into_inner());
        }
    }
}

/// Passes records of the `log` crate, which aya-log speaks, to `tracing`, which the agent speaks.
#[derive(Debug, Default)]
struct ToTracing(Mutex<Allowance>);

#[derive(Debug, Default)]
struct Allowance {
    since: Option<Instant>,
    passed: u32,
    held_back: u64,
}

impl Allowance {
    /// May another line pass? With how many were held back before it.
    fn spend(&mut self, now: Instant) -> Option<u64> {
        if self
            .since
            .is_none_or(|since| now.duration_since(since) >= WINDOW)
        {
            (self.since, self.passed) = (Some(now), 0);
        }
        if self.passed == LINES {
            self.held_back += 1;
            return None;
        }
        self.passed += 1;
        Some(std::mem::take(&mut self.held_back))
    }
}

impl log::Log for ToTracing {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &log::Record<'_>) {
        let mut allowance = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(held_back) = allowance.spend(Instant::now()) else {
            return;
        };
        drop(allowance);
        let said = record.args();
        match record.level() {
            log::Level::Error => tracing::error!(target: TARGET, held_back, "{said}"),
            log::Level::Warn => tracing::warn!(target: TARGET, held_back, "{said}"),
            _ => tracing::info!(target: TARGET, held_back, "{said}"),
        }
    }

    fn flush(&self) {}
}

/// What the hooks say is filtered by.
const TARGET: &str = "tollgate::kernel::hooks";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_of_lines_is_cut_and_counted() {
        let mut allowance = Allowance::default();
        let now = Instant::now();
        let passed = (0..100).filter_map(|_| allowance.spend(now)).count();
        assert_eq!(passed, LINES as usize);
        let later = allowance.spend(now + WINDOW);
        assert_eq!(later, Some(100 - u64::from(LINES)));
        assert_eq!(allowance.spend(now + WINDOW), Some(0));
    }
}
