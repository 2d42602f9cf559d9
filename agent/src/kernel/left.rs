//! What an agent left in force, asked of the kernel without one.
use super::{
    hooks::{HOOKS, Hook, LSM, TRACEPOINT, TYPED_TRACEPOINT},
    pins, sys,
};
use std::io;
use std::path::Path;

/// What the pins of an instance hold while no agent runs.
#[derive(Debug)]
pub enum Left {
    /// No hook's link is there.
    Nothing,
    /// Hooks that keep in what is governed are in force.
    Stands {
        /// Those that are not, of all that the agent attached: it is whole without any.
        missing: Vec<&'static str>,
        /// Likewise, of the hooks that keep nothing in.
        without: Vec<&'static str>,
    },
    /// It could not be asked.
    Unknown(io::Error),
}

/// Asks about the pins in `pin_dir`: of hooks that every kernel has, and of those that the agent found in this one.
pub fn left(pin_dir: &Path) -> Left {
    let attached = |hook: &&Hook| pins::attached(pin_dir, hook.name).exists();
    let hooks = HOOKS
        .iter()
        .filter(|hook| hook.since.is_none() || attached(hook));
    let (mut holding, mut missing, mut without) = (false, Vec::new(), Vec::new());
    for hook in hooks {
        match holds(hook, &pin_dir.join("links").join(hook.name)) {
            Ok(true) => holding |= hook.holds,
            Ok(false) if hook.holds => missing.push(hook.name),
            Ok(false) => without.push(hook.name),
            Err(error) => return Left::Unknown(error),
        }
    }
    match holding {
        true => Left::Stands { missing, without },
        false => Left::Nothing,
    }
}

/// Is a hook missing of those that stand, or has the kernel left one out for somebody?
pub(super) fn was_open(pin_dir: &Path) -> bool {
    let has_skipped = |hook: &Hook| {
        let link = sys::open_pin(&pin_dir.join("links").join(hook.name));
        let misses = link
            .and_then(sys::link_info)
            .and_then(|link| sys::recursion_misses(sys::program(link.program)?));
        misses.is_ok_and(|count| count > 0)
    };
    let traced = HOOKS.iter().filter(|hook| hook.attach == TRACEPOINT);
    let is_whole = matches!(left(pin_dir), Left::Stands { missing, without } if missing.is_empty() && without.is_empty());
    !is_whole || traced.into_iter().any(has_skipped)
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
