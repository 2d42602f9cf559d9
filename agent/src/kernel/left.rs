//! What an agent left in force, asked of the kernel without one.
use super::{
    hooks::{HOOKS, Hook, LSM, TRACEPOINT, TYPED_TRACEPOINT},
    sys,
};
use std::io;
use std::path::Path;

/// What the pins of an instance hold while no agent runs.
#[derive(Debug)]
pub enum Left {
    /// No hook's link is there.
    Nothing,
    /// Every hook that is needed on every kernel is in force.
    Whole,
    /// These are not.
    Without(Vec<&'static str>),
    /// It could not be asked.
    Unknown(io::Error),
}

/// Asks about the pins in `pin_dir`. What not every kernel has is not asked about: only an agent knows whether this one has it.
pub fn left(pin_dir: &Path) -> Left {
    let needed: Vec<&Hook> = HOOKS
        .iter()
        .filter(|hook| hook.holds && hook.since.is_none())
        .collect();
    let mut missing = Vec::new();
    for hook in &needed {
        match holds(hook, &pin_dir.join("links").join(hook.name)) {
            Ok(true) => {}
            Ok(false) => missing.push(hook.name),
            Err(error) => return Left::Unknown(error),
        }
    }
    match missing.len() {
        0 => Left::Whole,
        all if all == needed.len() => Left::Nothing,
        _ => Left::Without(missing),
    }
}

/// Does the link that is pinned there hold a program at the hook?
fn holds(hook: &Hook, pin: &Path) -> io::Result<bool> {
    let link = match sys::open_pin(pin).and_then(sys::link_info) {
        Ok(link) => link,
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            // Of a file that is no pin the kernel says the same.
            return match rustix::process::geteuid().is_root() {
                true => Ok(false),
                false => Err(error),
            };
        }
        Err(error) if sys::is_shortage(&error) => return Err(error),
        Err(_) => return Ok(false),
    };
    Ok(match hook.attach {
        TRACEPOINT | TYPED_TRACEPOINT => link.kind == sys::LINK_TRACEPOINT,
        LSM => link.kind == sys::LINK_TRACING,
        // One that was detached by force is there, and at no cgroup.
        attach => link.kind == sys::LINK_CGROUP && link.attach == attach && link.cgroup != 0,
    })
}
