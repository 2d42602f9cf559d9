//! From the embedded object to programs in the kernel and links at the cgroup root.
use super::{
    Error,
    btf::Kernel,
    hooks::{HOOKS, Hook, LSM, TRACEPOINT, TYPED_TRACEPOINT},
    log::HookLog,
    pins::{self, Held, Pins},
    probe::{self, CgroupRoot},
    raw::{self, Raw},
    sys,
};
use aya::programs::{Program, ProgramError};
use aya::{Ebpf, EbpfError, EbpfLoader};
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use tollgate_common::settings::Offsets;

/// The eBPF object that `cargo xtask build` made.
static OBJECT: &[u8] = aya::include_bytes_aligned!(env!("TOLLGATE_BPF_OBJECT"));

/// A hook's program in the kernel.
#[derive(Debug)]
pub(super) struct Loaded {
    /// Where it belongs.
    pub(super) hook: &'static Hook,
    /// The kernel's id of it.
    pub(super) id: u32,
    pub(super) fd: OwnedFd,
}

/// A hook that is not to be had, and what the kernel said.
#[derive(Debug)]
pub(super) struct Absent {
    pub(super) hook: &'static Hook,
    /// This kernel has no such hook. One that it has, and does not take the program for, is missed.
    pub(super) is_beyond: bool,
    pub(super) why: String,
}

impl Absent {
    fn of(hook: &'static Hook, since: &str, error: &io::Error) -> Self {
        let is_beyond = matches!(
            error.kind(),
            io::ErrorKind::Unsupported | io::ErrorKind::NotFound
        );
        let why = match is_beyond {
            true => format!("the kernel does not take it ({error}); it needs {since}"),
            false => format!("the kernel has this hook, and did not take the program: {error}"),
        };
        Self {
            hook,
            is_beyond,
            why,
        }
    }
}

/// The programs that the kernel took, and those that it need not take.
#[derive(Debug)]
pub(super) struct Programs {
    pub(super) loaded: Vec<Loaded>,
    pub(super) absent: Vec<Absent>,
    pub(super) listing: Listing,
    /// The maps that they use and that are pinned.
    pub(super) maps: Vec<Held>,
}

/// The program that lists what clients' sockets carry.
#[derive(Debug)]
pub(super) enum Listing {
    /// It goes through the map of that.
    Carried(OwnedFd),
    /// It goes through the files that somebody has open: a kernel may keep maps from being gone through (`EPERM`).
    Opened(OwnedFd),
}

impl Programs {
    /// Did the kernel take it?
    pub(super) fn has(&self, hook: &str) -> bool {
        self.loaded.iter().any(|program| program.hook.name == hook)
    }

    /// Did it take another one in its stead?
    pub(super) fn stand_in(&self, hook: &Hook) -> bool {
        let mut loaded = self.loaded.iter();
        loaded.any(|program| program.hook.stands_in_for() == Some(hook.name))
    }
}

/// Makes or adopts the pinned maps and loads the programs, with the log that these write to: it is
/// not pinned, since each agent's programs have their own. Nothing is attached yet.
pub(super) fn programs(
    kernel: &Kernel,
    pins: &Pins,
    counts: bool,
) -> Result<(Programs, HookLog), Error> {
    let Kernel { offsets, types } = kernel;
    let btf = types.as_ref();
    let paths: Vec<(&str, PathBuf)> = pins.maps().collect();
    let mut loader = EbpfLoader::new();
    loader.btf(btf);
    let counts = u32::from(counts);
    loader.override_global("OFFSETS", offsets, true);
    loader.override_global("COUNTS", &counts, true);
    for (name, path) in &paths {
        loader.map_pin_path(name, path.as_path());
    }
    let mut ebpf = loader.load(OBJECT).map_err(|source| object(source, pins))?;
    let mut programs = Programs {
        loaded: Vec::new(),
        absent: Vec::new(),
        listing: listing(&mut ebpf, btf)?,
        maps: held(&ebpf, pins)?,
    };
    let raw = Raw::relocate(OBJECT, &ebpf, pins)?;
    for hook in HOOKS {
        if hook
            .stands_in_for()
            .is_some_and(|other| programs.has(other))
        {
            continue;
        }
        match hook.since {
            None => programs.loaded.push(load(&mut ebpf, hook, btf)?),
            Some(since) => match described(hook, offsets)
                .and_then(|()| if_there(&mut ebpf, &raw, hook, btf, &programs.loaded))
            {
                Ok((fd, id)) => programs.loaded.push(Loaded { hook, id, fd }),
                Err(error) => programs.absent.push(Absent::of(hook, since, &error)),
            },
        }
    }
    Ok((programs, HookLog::of(&mut ebpf)?))
}

fn object(source: EbpfError, pins: &Pins) -> Error {
    match root_cause(&source) {
        Some(libc::EPERM | libc::EACCES) => Error::NotPermitted,
        Some(libc::EROFS) => Error::ReadOnly {
            path: pins.dir().to_owned(),
        },
        _ => Error::Object {
            source: Box::new(source),
        },
    }
}

/// The errno at the bottom of an error, if there is one.
fn root_cause(error: &(dyn std::error::Error + 'static)) -> Option<i32> {
    let mut error = Some(error);
    while let Some(current) = error {
        if let Some(errno) = current
            .downcast_ref::<io::Error>()
            .and_then(io::Error::raw_os_error)
        {
            return Some(errno);
        }
        error = current.source();
    }
    None
}

/// Variable that asks for the whole of the verifier's log: `1`.
const WHOLE_LOG: &str = "TOLLGATE_VERIFIER_LOG";
/// Lines of it that are shown otherwise.
const LAST_LINES: usize = 30;

/// Why the kernel refused a program.
fn refusal(error: &ProgramError) -> String {
    let ProgramError::LoadError {
        io_error,
        verifier_log,
    } = error
    else {
        return error.to_string();
    };
    let log = verifier_log.to_string();
    let is_whole = std::env::var_os(WHOLE_LOG).is_some_and(|value| value == "1");
    format!("{io_error}; {}", shown(&log, is_whole))
}

/// The verifier's log, or its end.
fn shown(log: &str, is_whole: bool) -> String {
    let lines: Vec<&str> = log.trim_end_matches(['\0', '\n']).lines().collect();
    let left_out = match is_whole {
        true => 0,
        false => lines.len().saturating_sub(LAST_LINES),
    };
    let end = lines.get(left_out..).unwrap_or_default().join("\n");
    match left_out {
        0 => format!("the verifier's log:\n{end}"),
        _ => format!(
            "the end of the verifier's log ({WHOLE_LOG}=1 shows {left_out} lines more):\n{end}"
        ),
    }
}

/// Does the kernel have the hook, and describe what its program reads?
fn described(hook: &Hook, offsets: &Offsets) -> io::Result<()> {
    let why = if hook.attach == LSM {
        (hook.stands_in_for().is_some() && offsets.unix_bound == 0)
            .then_some("it does not describe its Unix sockets, which are a module")
    } else {
        // The field came with the hooks for Unix sockets.
        (offsets.address_length == 0).then_some("it has no such hook")
    };
    why.map_or(Ok(()), |why| {
        Err(io::Error::new(io::ErrorKind::Unsupported, why))
    })
}

/// Loads a program for a hook that not every kernel has.
fn if_there(
    ebpf: &mut Ebpf,
    raw: &Raw,
    hook: &'static Hook,
    btf: Option<&aya::Btf>,
    before: &[Loaded],
) -> io::Result<(OwnedFd, u32)> {
    if hook.attach != LSM {
        // All programs of the object have the same types.
        let first = before.first().ok_or(io::ErrorKind::Other)?;
        let types = sys::types_of(&first.fd)?;
        // Whatever the kernel says now is no word on whether it has the hook.
        let loaded = raw.load(hook.name, hook.attach, &types);
        return loaded.map_err(io::Error::other);
    }
    probe::lsm()?;
    let Some(Program::Lsm(program)) = ebpf.program_mut(hook.name) else {
        return Err(io::Error::other("it is not in the object"));
    };
    let btf = btf.ok_or(io::ErrorKind::Unsupported)?;
    program.load(hook.name, btf).map_err(|error| match error {
        ProgramError::LoadError { ref io_error, .. }
            if io_error.raw_os_error() == Some(libc::EPERM) =>
        {
            io::Error::from_raw_os_error(libc::EPERM)
        }
        ProgramError::Btf(error) => io::Error::new(io::ErrorKind::Unsupported, error),
        error => io::Error::other(refusal(&error)),
    })?;
    let program = program.fd().map_err(io::Error::other)?;
    let program = program.as_fd().try_clone_to_owned()?;
    let id = sys::program_id(&program)?;
    Ok((program, id))
}

fn held(ebpf: &Ebpf, pins: &Pins) -> Result<Vec<Held>, Error> {
    let hold = |(name, _)| {
        let map = ebpf.map(name).and_then(raw::descriptor);
        pins.hold(name, map.ok_or(Error::MissingPart { what: name })?)
    };
    pins.maps().map(hold).collect()
}

/// Loads the program that lists what clients' sockets carry.
fn listing(ebpf: &mut Ebpf, btf: Option<&aya::Btf>) -> Result<Listing, Error> {
    let through_map = iterator(ebpf, "list_clients", "bpf_sk_storage_map", btf);
    match through_map {
        Err(Error::NotPermitted) => {
            let through_files = iterator(ebpf, "list_opened", "task_file", btf)?;
            tracing::info!(
                "this kernel lets nobody go through a map: `tollgate flows` lists what is going on over sockets that somebody has open"
            );
            Ok(Listing::Opened(through_files))
        }
        found => found.map(Listing::Carried),
    }
}

fn iterator(
    ebpf: &mut Ebpf,
    name: &'static str,
    over: &str,
    btf: Option<&aya::Btf>,
) -> Result<OwnedFd, Error> {
    let missing = Error::MissingPart { what: name };
    let Some(Program::Iter(program)) = ebpf.program_mut(name) else {
        return Err(missing);
    };
    program
        .load(over, btf.ok_or(missing)?)
        .and_then(|()| cloned(program.fd()?.as_fd()))
        .map_err(|error| refused(name, &error))
}

fn cloned(fd: BorrowedFd<'_>) -> Result<OwnedFd, ProgramError> {
    fd.try_clone_to_owned().map_err(ProgramError::IOError)
}

fn refused(program: &'static str, error: &ProgramError) -> Error {
    match root_cause(error) {
        Some(libc::EPERM) => Error::NotPermitted,
        _ => Error::Refused {
            program,
            why: refusal(error),
        },
    }
}

fn load(ebpf: &mut Ebpf, hook: &'static Hook, btf: Option<&aya::Btf>) -> Result<Loaded, Error> {
    let missing = Error::MissingPart { what: hook.name };
    let Some(program) = ebpf.program_mut(hook.name) else {
        return Err(missing);
    };
    match program {
        Program::CgroupSockAddr(program) => program.load(),
        Program::CgroupSock(program) => program.load(),
        Program::CgroupSkb(program) => program.load(),
        Program::BtfTracePoint(program) => program.load(hook.name, btf.ok_or(missing)?),
        Program::RawTracePoint(program) => program.load(),
        _ => return Err(Error::MissingPart { what: hook.name }),
    }
    .map_err(|error| refused(hook.name, &error))?;
    let fd = program.fd().and_then(|fd| cloned(fd.as_fd()));
    let fd = fd.map_err(|error| refused(hook.name, &error))?;
    let id = program
        .info()
        .map_err(|error| refused(hook.name, &error))?
        .id();
    Ok(Loaded { hook, id, fd })
}

/// Puts each program in force: into the link that an earlier agent left, in one step for the kernel,
/// or through a new one. At no moment is a hook without a program. The link of a tracepoint or a security hook takes no other program: for an
/// instant it has two of them, which write the same.
pub(super) fn attach(pins: &Pins, root: &CgroupRoot, programs: &[Loaded]) -> Result<(), Error> {
    programs.iter().try_for_each(|program| {
        attach_one(pins, root, program)?;
        // An agent that was ended while it put one in another's place leaves it beside that.
        let left = sys::beside(&pins.link(program.hook.name));
        pins::remove_file(&left)
    })
}

fn attach_one(pins: &Pins, root: &CgroupRoot, program: &Loaded) -> Result<(), Error> {
    let hook = program.hook.name;
    let failed = |source| Error::Attach { hook, source };
    let path = pins.link(hook);
    let pinned = |source, path| Error::Pin {
        action: "pin",
        path,
        source,
    };
    if let TRACEPOINT | TYPED_TRACEPOINT | LSM = program.hook.attach {
        let link = match program.hook.attach {
            TYPED_TRACEPOINT => sys::typed(&program.fd).map_err(failed)?,
            LSM => match sys::typed(&program.fd) {
                Ok(link) => link,
                // The first fence stands without the second; `status` says that it is not in force.
                Err(error) => {
                    tracing::error!("the kernel took {hook}, and does not attach it: {error}");
                    return Ok(());
                }
            },
            _ => sys::tracepoint(&program.fd, hook).map_err(failed)?,
        };
        return sys::pin_over(link, &path).map_err(|source| pinned(source, path));
    }
    if path.exists() {
        let link = sys::open_pin(&path).map_err(failed)?;
        return match sys::link_update(link, &program.fd) {
            // It was detached by force: it takes no program any more.
            Err(error) if error.raw_os_error() == Some(libc::ENOLINK) => {
                attach_anew(pins, root, program)
            }
            updated => updated.map_err(failed),
        };
    }
    let link = sys::link_create(&program.fd, &root.fd, program.hook.attach).map_err(failed)?;
    sys::pin(link, &path).map_err(|source| pinned(source, path))
}

/// Attaches a program whose link is gone or does not hold it, and pins the new link in its place. Where the old one is still
/// attached the program is there twice for an instant, and never not at all.
pub(super) fn attach_anew(pins: &Pins, root: &CgroupRoot, program: &Loaded) -> Result<(), Error> {
    let hook = program.hook;
    let link = match hook.attach {
        LSM | TYPED_TRACEPOINT => sys::typed(&program.fd),
        TRACEPOINT => sys::tracepoint(&program.fd, hook.name),
        attach => sys::link_create(&program.fd, &root.fd, attach),
    };
    let link = link.map_err(|source| Error::Attach {
        hook: hook.name,
        source,
    })?;
    let path = pins.link(hook.name);
    sys::pin_over(link, &path).map_err(|source| Error::Pin {
        action: "pin",
        path,
        source,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Whatever else keeps a program from being loaded, its hook is missed: only a kernel without it may do without.
    #[test]
    fn only_a_kernel_without_the_hook_may_do_without() {
        let hook = HOOKS.iter().find(|hook| hook.since.is_some());
        let hook = hook.expect("there are some");
        let mut offsets = Offsets::default();
        let absent = described(hook, &offsets).expect_err("nothing is described");
        assert!(Absent::of(hook, "6.7", &absent).is_beyond);
        offsets.address_length = 8;
        assert!(described(hook, &offsets).is_ok());
        for errno in [
            libc::ENOMEM,
            libc::EACCES,
            libc::EINVAL,
            libc::EPERM,
            libc::EMFILE,
        ] {
            let error = io::Error::from_raw_os_error(errno);
            assert!(!Absent::of(hook, "6.7", &error).is_beyond, "{error}");
        }
        let refused = io::Error::other("the verifier's log");
        assert!(!Absent::of(hook, "6.7", &refused).is_beyond);
    }

    #[test]
    fn the_end_of_a_log_is_shown_once() {
        let log: String = (0..100).map(|n| format!("line {n}\n")).collect();
        let end = shown(&log, false);
        assert!(
            end.contains("70 lines more") && end.contains(WHOLE_LOG),
            "{end}"
        );
        assert!(end.ends_with("line 98\nline 99"), "{end}");
        assert!(
            !end.contains("line 69\n") && end.contains("line 70\n"),
            "{end}"
        );
        assert_eq!(shown(&log, true).lines().count(), 101);
        assert_eq!(shown("a\nb\n\0", false), "the verifier's log:\na\nb");
    }
}
