//! What the service manager is told. Without one, nothing happens.
use sd_notify::NotifyState;

fn tell(states: &[NotifyState<'_>]) {
    if let Err(e) = sd_notify::notify(states) {
        tracing::debug!("service manager not told: {e}");
    }
}

/// Up, or up again after a reload.
pub(super) fn ready() {
    tell(&[NotifyState::Ready]);
}

/// Not up yet, and at work: what a start looks at is bounded, part by part.
pub(super) fn starting() {
    tell(&[NotifyState::ExtendTimeoutUsec(A_PART)]);
}

/// Microseconds that the next part of a start may take: as long as the unit lets a start without a word.
const A_PART: u32 = 60_000_000;

/// A change is being read. `Type=notify-reload` wants the time of it.
pub(super) fn reloading() {
    match NotifyState::monotonic_usec_now() {
        Ok(now) => tell(&[NotifyState::Reloading, now]),
        Err(_) => tell(&[NotifyState::Reloading]),
    }
}

/// Draining.
pub(super) fn stopping() {
    tell(&[NotifyState::Stopping]);
}

/// Draining goes on for this long at most.
pub(super) fn draining(at_most: std::time::Duration) {
    // `ExtendTimeoutUsec` takes an hour at most.
    let microseconds = (at_most + AFTERWARDS).as_micros();
    tell(&[NotifyState::Custom(&format!(
        "EXTEND_TIMEOUT_USEC={microseconds}"
    ))]);
}

/// What is left to do after that takes less: as much as the unit lets a stop without a word.
const AFTERWARDS: std::time::Duration = std::time::Duration::from_secs(30);

/// One line for `systemctl status`.
pub(super) fn status(line: &str) {
    tell(&[NotifyState::Status(line)]);
}

/// Alive.
pub(super) fn watchdog() {
    tell(&[NotifyState::Watchdog]);
}

/// How often [`watchdog`] is expected, if at all.
pub(super) fn watchdog_interval() -> Option<std::time::Duration> {
    sd_notify::watchdog_enabled()
}
