//! What this host offers, asked before anything is changed.
use super::Error;
use rustix::fs::{self, Mode, OFlags};
use rustix::io::Errno;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

/// The oldest kernel that has every helper and link the hooks use and is tested.
const OLDEST: (u32, u32) = (6, 1);
/// `BPF_FS_MAGIC`
const BPFFS: u64 = 0xcafe_4a11;
/// `CGROUP2_SUPER_MAGIC`
const CGROUP2: u64 = 0x6367_7270;
/// Id of the one cgroup that has no parent.
pub(super) const ROOT_ID: u64 = 1;
/// Where a bpffs is by convention.
const USUAL: &str = "/sys/fs/bpf";

/// Refuses a kernel that is too old, so that nobody has to read a verifier's log to find out.
pub(super) fn kernel() -> Result<(), Error> {
    match release() {
        Some(numbers) if numbers < OLDEST => Err(Error::KernelTooOld {
            release: release_name(),
        }),
        _ => Ok(()),
    }
}

/// Its version's first two numbers; `None` where it does not say.
pub(super) fn release() -> Option<(u32, u32)> {
    let name = release_name();
    let mut numbers = name.split(['.', '-', '+']).map(str::parse::<u32>);
    numbers.next()?.ok().zip(numbers.next()?.ok())
}

fn release_name() -> String {
    let system = rustix::system::uname();
    system.release().to_string_lossy().into_owned()
}

/// Refuses a process without the capabilities, where the kernel's own answer would be a bare EPERM.
pub(super) fn capabilities() -> Result<(), Error> {
    use caps::{CapSet::Effective, Capability};
    let has = |capability| caps::has_cap(None, Effective, capability).unwrap_or(false);
    let admin = has(Capability::CAP_SYS_ADMIN);
    let enough = has(Capability::CAP_NET_ADMIN)
        && (admin || (has(Capability::CAP_BPF) && has(Capability::CAP_PERFMON)));
    if enough {
        Ok(())
    } else {
        Err(Error::NotPermitted)
    }
}

/// `PROC_PID_INIT_INO`
const INITIAL_PIDS: u64 = 0xEFFF_FFFC;

/// Refuses a process to which processes have other ids than to the hooks: another than itself would be the agent to them.
pub(super) fn pid_namespace() -> Result<(), Error> {
    match fs::stat("/proc/self/ns/pid") {
        Ok(stat) if stat.st_ino == INITIAL_PIDS => Ok(()),
        Ok(_) => Err(Error::PidNamespace),
        Err(errno) => Err(Error::Pin {
            action: "look at",
            path: "/proc/self/ns/pid".into(),
            source: errno.into(),
        }),
    }
}

/// Where the kernel lists the security modules that it asks.
const MODULES: &str = "/sys/kernel/security/lsm";

/// Refuses a host that would not ask BPF LSM programs: its kernel may take them all the same, and never call them.
pub(super) fn lsm() -> io::Result<()> {
    let modules = std::fs::read_to_string(MODULES).map_err(|error| {
        let why = format!("{MODULES} cannot be read ({error}): is securityfs mounted?");
        io::Error::new(error.kind(), why)
    })?;
    if is_asked(&modules) {
        return Ok(());
    }
    let modules = modules.trim();
    let why = format!("`bpf` is not in {MODULES}: boot with lsm={modules},bpf");
    Err(io::Error::new(io::ErrorKind::Unsupported, why))
}

/// Is BPF among these modules?
fn is_asked(modules: &str) -> bool {
    modules.trim().split(',').any(|module| module == "bpf")
}

/// The cgroup2 mount and a descriptor of it.
#[derive(Debug)]
pub(super) struct CgroupRoot {
    /// Where it is mounted.
    pub(super) path: PathBuf,
    /// The directory, to attach to and to resolve ids at.
    pub(super) fd: OwnedFd,
}

/// Finds the root of the host's cgroups.
pub(super) fn cgroup_root(given: Option<&Path>) -> Result<CgroupRoot, Error> {
    let path = match given {
        Some(path) => path.to_owned(),
        None => mounted_cgroup2().ok_or(Error::NoCgroup2)?,
    };
    let fd = fs::open(
        &path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .ok()
    .filter(|_| filesystem(&path) == Some(CGROUP2))
    .ok_or_else(|| match given {
        Some(path) => Error::NotCgroup2 {
            path: path.to_owned(),
        },
        None => Error::NoCgroup2,
    })?;
    match fs::fstat(&fd) {
        Ok(stat) if stat.st_ino == ROOT_ID => Ok(CgroupRoot { path, fd }),
        _ => Err(Error::NotCgroupRoot { path }),
    }
}

/// `… - cgroup2 …` in `/proc/self/mountinfo`; the mount point is the fifth field.
fn mounted_cgroup2() -> Option<PathBuf> {
    let table = std::fs::read("/proc/self/mountinfo").ok()?;
    table.split(|&byte| byte == b'\n').find_map(|line| {
        let fields: Vec<&[u8]> = line.split(|&byte| byte == b' ').collect();
        let dash = fields.iter().position(|field| *field == b"-")?;
        (fields.get(dash + 1) == Some(&b"cgroup2".as_slice()))
            .then(|| unescape(fields.get(4).copied().unwrap_or_default()))
    })
}

/// Mount points have blanks and backslashes as three octal digits.
pub(crate) fn unescape(field: &[u8]) -> PathBuf {
    let mut path = Vec::with_capacity(field.len());
    let mut rest = field;
    while let [first, tail @ ..] = rest {
        if let (
            b'\\',
            [
                a @ b'0'..=b'3',
                b @ b'0'..=b'7',
                c @ b'0'..=b'7',
                after @ ..,
            ],
        ) = (first, tail)
        {
            path.push((a - b'0') * 64 + (b - b'0') * 8 + (c - b'0'));
            rest = after;
        } else {
            path.push(*first);
            rest = tail;
        }
    }
    PathBuf::from(std::ffi::OsStr::from_bytes(&path))
}

fn filesystem(path: &Path) -> Option<u64> {
    fs::statfs(path).ok().map(|found| found.f_type as u64)
}

/// Makes sure that `pin_dir` will lie in a bpffs: mounts one at its usual place, or, for a directory
/// elsewhere, on the directory itself.
pub(super) fn bpffs(pin_dir: &Path) -> Result<(), Error> {
    let existing = pin_dir
        .ancestors()
        .find(|path| path.exists())
        .unwrap_or(Path::new("/"));
    if filesystem(existing) == Some(BPFFS) {
        return Ok(());
    }
    let usual = Path::new(USUAL);
    if is_below(pin_dir, usual) {
        return mount(usual);
    }
    std::fs::create_dir_all(pin_dir).map_err(|source| Error::Mount {
        path: pin_dir.to_owned(),
        source,
    })?;
    mount(pin_dir)
}

fn is_below(path: &Path, parent: &Path) -> bool {
    path.starts_with(parent) && !path.components().any(|part| part == Component::ParentDir)
}

/// Mounts a bpffs, unless somebody else does so at the same moment: a second mount on top would hide
/// the pins in the first.
fn mount(path: &Path) -> Result<(), Error> {
    let failed = |source: Errno| Error::Mount {
        path: path.to_owned(),
        source: source.into(),
    };
    let below = fs::open(
        path,
        OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .map_err(failed)?;
    fs::flock(&below, fs::FlockOperation::LockExclusive).map_err(failed)?;
    if filesystem(path) == Some(BPFFS) {
        return Ok(());
    }
    use rustix::mount::{MountFlags, mount};
    let flags = MountFlags::NOSUID | MountFlags::NODEV | MountFlags::NOEXEC;
    match mount("bpf", path, "bpf", flags, Some(c"mode=0700")) {
        Ok(()) => Ok(()),
        Err(Errno::PERM | Errno::ACCESS) => Err(Error::NotPermitted),
        Err(errno) => Err(failed(errno)),
    }
}

/// Is a bpffs mounted on this very path, other than the usual one?
pub(super) fn is_mount_of_bpffs(path: &Path) -> bool {
    let device = |path: &Path| fs::stat(path).ok().map(|stat| stat.st_dev);
    filesystem(path) == Some(BPFFS)
        && path != Path::new(USUAL)
        && path
            .parent()
            .is_some_and(|parent| device(parent) != device(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bpf_is_found_by_its_whole_name() {
        assert!(is_asked("lockdown,capability,landlock,yama,apparmor,bpf\n"));
        assert!(is_asked("bpf"));
        for modules in ["", "lockdown,capability", "capability,bpfx", "xbpf,yama"] {
            assert!(!is_asked(modules), "{modules}");
        }
    }

    #[test]
    fn mount_points_are_unescaped() {
        assert_eq!(unescape(b"/a\\040b\\134"), Path::new("/a b\\"));
        assert_eq!(unescape(b"/a\\04"), Path::new("/a\\04"));
        assert_eq!(unescape(b"/a\\"), Path::new("/a\\"));
    }
}
