//! What an agent left in force, asked of the kernel without one.
use super::{
    hooks::{HOOKS, Hook, LSM, TRACEPOINT, TYPED_TRACEPOINT},
    pins, probe, sys,
};
use std::io;
use std::path::Path;

/// What the pins of an instance hold while no agent runs.
#[derive(Debug)]
pub enum Left {
    /// No hook's link is there.
    Nothing,
    /// Hooks that keep in what is governed are in force.
    Stands(Standing),
    /// It could not be asked.
    Unknown(io::Error),
}

/// The hooks of a fence, by whether they are in force.
#[derive(Debug, Default, serde::Serialize)]
pub struct Standing {
    /// Those that are.
    pub in_force: Vec<&'static str>,
    /// Those that are not, of all that keep something in and that the agent attached: it is whole without any.
    pub missing: Vec<Open>,
    /// Likewise, of the hooks that keep nothing in.
    pub without: Vec<Open>,
    /// Those that the agent did not attach, since this kernel has them not.
    pub beyond: Vec<Open>,
    /// Some were away, and not all that is governed has been looked at since: what was opened then may go on.
    pub unseen: bool,
}

impl Standing {
    /// Is all that keeps something in in force, and was it since everybody was looked at?
    pub fn is_whole(&self) -> bool {
        self.missing.is_empty() && !self.unseen
    }
}

/// A hook that is not in force.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Open {
    /// E.g. `connect4`.
    pub name: &'static str,
    /// What is not stopped without it.
    pub leaves_open: &'static str,
}

impl From<&Hook> for Open {
    fn from(hook: &Hook) -> Self {
        Self {
            name: hook.name,
            leaves_open: hook.leaves_open,
        }
    }
}

/// Asks about the pins in `pin_dir`: of hooks that every kernel has, and of those that the agent found in this one.
pub fn left(pin_dir: &Path) -> Left {
    let attached = |name: &str| pins::attached(pin_dir, name).exists();
    let mut holding = false;
    let mut told = Standing {
        unseen: pins::is_unseen(pin_dir),
        ..Standing::default()
    };
    for hook in HOOKS {
        if hook.since.is_some() && !attached(hook.name) {
            if !is_replaced(hook, attached) {
                told.beyond.push(hook.into());
            }
            continue;
        }
        match holds(hook, &pin_dir.join("links").join(hook.name)) {
            Ok(true) => {
                holding |= hook.holds;
                told.in_force.push(hook.name);
            }
            Ok(false) if hook.holds => told.missing.push(hook.into()),
            Ok(false) => told.without.push(hook.into()),
            Err(error) => return Left::Unknown(error),
        }
    }
    match holding {
        true => Left::Stands(told),
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
        // For want of descriptors it is not known.
        misses.map_or_else(|error| sys::is_shortage(&error), |count| count > 0)
    };
    let traced = HOOKS.iter().filter(|hook| hook.attach == TRACEPOINT);
    let is_whole = |all: &Standing| all.missing.is_empty() && all.without.is_empty();
    let was_whole = matches!(left(pin_dir), Left::Stands(all) if is_whole(&all));
    !was_whole || traced.into_iter().any(has_skipped)
}

/// Is what a hook does another one's to do, on the kernel that the agent found?
fn is_replaced(hook: &Hook, attached: impl Fn(&str) -> bool) -> bool {
    let stands_in = |other: &&Hook| other.stands_in_for() == Some(hook.name);
    let instead = HOOKS.iter().find(stands_in).map(|other| other.name);
    hook.stands_in_for().or(instead).is_some_and(attached)
}

/// Does the link that is pinned there hold the hook's program where it belongs? By the program's name: which one it is, only an agent knows.
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
    let is_there = match hook.attach {
        TRACEPOINT | TYPED_TRACEPOINT => link.kind == sys::LINK_TRACEPOINT,
        LSM => link.kind == sys::LINK_TRACING,
        // One that was detached by force is there, and at no cgroup.
        attach => {
            (link.kind, link.attach, link.cgroup) == (sys::LINK_CGROUP, attach, probe::ROOT_ID)
        }
    };
    if !is_there {
        return Ok(false);
    }
    let program = sys::program(link.program);
    match program.and_then(|program| sys::is_program_called(program, hook.name)) {
        // It went with its link, just now.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(false),
        is_its => is_its,
    }
}
