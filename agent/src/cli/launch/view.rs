//! What the command sees of the host's mounts: none by which it could leave its cgroup, change the fence or read what
//! is the agent's alone.
//!
//! - Every cgroup2 mount shows the command's own cgroup as its root, read-only. To make the whole hierarchy read-only
//!   would not do: `clone3(CLONE_INTO_CGROUP)` asks for a directory's descriptor and does not look at the mount.
//! - Mounts of cgroup v1 are read-only.
//! - bpffs mounts, and the agent's directories of secrets and state, are covered by an empty directory; the sockets of
//!   local daemons by a device that is no socket.
//! - For root, what the kernel lets uid 0 write without any capability is read-only too: /proc/sys (`core_pattern` runs
//!   a program as full root, outside of every cgroup), sysfs and its like.
//!
//! - The system's trust bundle is the agent's, with its CA in it; Chromium and its kin find a policy beside the host's own.
//!
//! Undoing any of it takes `CAP_SYS_ADMIN` in the initial user namespace. In a user namespace made by the command the
//! kernel locks these mounts together as they are, and a new mount of cgroup2 starts at the command's own cgroup.
mod sockets;
mod trust;

use crate::kernel::namespaces;
use anyhow::{Context, bail};
use rustix::fs::{AtFlags, CWD, Mode, OFlags, StatxFlags};
use rustix::io::Errno;
use rustix::mount::{self, MountFlags, MountPropagationFlags};
pub(super) use sockets::For;
use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsRawFd;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

const BARE: MountFlags = MountFlags::RDONLY
    .union(MountFlags::NOSUID)
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);
/// Filesystems that are the kernel's own switches.
const SWITCHES: [&str; 9] = [
    "sysfs",
    "debugfs",
    "tracefs",
    "securityfs",
    "selinuxfs",
    "configfs",
    "efivarfs",
    "pstore",
    "binfmt_misc",
];
/// The same in a procfs.
const PROC_SWITCHES: [&str; 7] = [
    "sys",
    "sysrq-trigger",
    "irq",
    "bus",
    "fs",
    "acpi",
    "latency_stats",
];

/// Enters the view. The process is in `cgroup` already, and still has all privileges.
pub(super) fn enter(
    cgroup: &Path,
    hidden: &[PathBuf],
    sockets: For<'_>,
    (bundle, browsers): (&Path, &Path),
) -> anyhow::Result<()> {
    let cwd = rustix::process::getcwd(Vec::new()).context("the working directory")?;
    let cwd = PathBuf::from(OsString::from_vec(cwd.into_bytes()));
    let hidden = real(hidden)?;
    if let Some(secret) = hidden.iter().find(|h| cwd.starts_with(h)) {
        bail!(
            "the working directory is in {}, which is kept from the command: run it from elsewhere",
            secret.display()
        );
    }
    namespaces::leave_the_hosts_view().context("a mount namespace takes CAP_SYS_ADMIN")?;
    // Private, so that neither side sees what the other mounts later.
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::mount_change("/", private).context("mounts cannot be made private")?;
    let mounts = mounts()?;
    narrow_cgroups(cgroup, &mounts)?;
    for found in mounts.iter().filter(|m| m.kind == "bpf") {
        found.change(cover)?;
    }
    if sockets.user == 0 {
        hold_switches(&mounts)?;
    }
    trust::lay_over(bundle, browsers);
    for directory in &hidden {
        cover(directory).with_context(|| format!("cannot hide {}", directory.display()))?;
    }
    sockets::cover(sockets)?;
    // The working directory may be below what was covered: by its name it is what the command is to see.
    if mounts
        .iter()
        .any(|m| m.is_covered() && cwd.starts_with(&m.path))
    {
        rustix::process::chdir(&cwd).with_context(|| {
            format!(
                "the working directory {} is hidden from the command: run it from elsewhere",
                cwd.display()
            )
        })?;
    }
    Ok(())
}

/// The paths that those lead to. One that is not there has nothing to hide.
fn real(hidden: &[PathBuf]) -> anyhow::Result<Vec<PathBuf>> {
    let real = hidden.iter().map(|path| match path.canonicalize() {
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(None),
        real => real
            .map(Some)
            .with_context(|| format!("cannot hide {}", path.display())),
    });
    real.filter_map(Result::transpose).collect()
}

fn narrow_cgroups(cgroup: &Path, mounts: &[Mounted]) -> anyhow::Result<()> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let own = rustix::fs::open(cgroup, flags, Mode::empty()).context("the command's cgroup")?;
    // By descriptor: its path is covered as soon as the first mount is.
    let own = format!("/proc/self/fd/{}", own.as_raw_fd());
    for found in mounts {
        match found.kind.as_str() {
            "cgroup2" => found.change(|at| bind(Path::new(&own), at))?,
            "cgroup" => found.change(read_only)?,
            _ => {}
        }
    }
    Ok(())
}

fn hold_switches(mounts: &[Mounted]) -> anyhow::Result<()> {
    for found in mounts {
        if SWITCHES.contains(&found.kind.as_str()) {
            found.change(read_only)?;
        }
        if found.kind == "proc" {
            found.change(|proc| {
                let switches = PROC_SWITCHES.map(|name| proc.join(name));
                let mut there = switches.iter().filter(|at| at.exists());
                there.try_for_each(|at| bind(at, at))
            })?;
        }
    }
    Ok(())
}

fn bind(from: &Path, at: &Path) -> Result<(), Errno> {
    mount::mount_bind(from, at)?;
    read_only(at)
}

fn read_only(at: &Path) -> Result<(), Errno> {
    mount::mount_remount(at, MountFlags::BIND | BARE, "")
}

fn cover(at: &Path) -> Result<(), Errno> {
    if !at.is_dir() {
        return mount::mount_bind("/dev/null", at);
    }
    mount::mount("tmpfs", at, "tmpfs", BARE, Some(c"mode=0,size=4096"))
}

/// A line of `/proc/self/mountinfo`.
#[derive(Debug, PartialEq, Eq)]
struct Mounted {
    id: u64,
    /// Of its filesystem.
    device: u32,
    /// What of that is seen there.
    root: PathBuf,
    path: PathBuf,
    kind: String,
}

impl Mounted {
    fn parse(line: &str) -> Option<Self> {
        let (before, after) = line.split_once(" - ")?;
        let mut fields = before.split(' ');
        let id = fields.next()?.parse().ok()?;
        let (major, minor) = fields.nth(1)?.split_once(':')?;
        Some(Self {
            id,
            device: major.parse::<u32>().ok()? << 20 | minor.parse::<u32>().ok()?,
            root: unescape(fields.next()?),
            path: unescape(fields.next()?),
            kind: after.split(' ').next()?.to_owned(),
        })
    }

    /// Another mount may be on top of it, or of what it is in: what no path leads to is left alone.
    fn is_reachable(&self) -> anyhow::Result<bool> {
        let flags = AtFlags::SYMLINK_NOFOLLOW | AtFlags::NO_AUTOMOUNT;
        match rustix::fs::statx(CWD, &self.path, flags, StatxFlags::MNT_ID) {
            Ok(found) => Ok(found.stx_mnt_id == self.id),
            Err(Errno::NOENT | Errno::NOTDIR) => Ok(false),
            Err(e) => Err(e).with_context(|| self.path.display().to_string()),
        }
    }

    /// Where a file of this path within its filesystem lies, if it is to be seen there.
    fn place_of(&self, device: u32, path: &Path) -> Option<PathBuf> {
        let rest = path.strip_prefix(&self.root).ok()?;
        let place = match rest.as_os_str().is_empty() {
            true => self.path.clone(), // A file can be a mount too.
            false => self.path.join(rest),
        };
        (device == self.device).then_some(place)
    }

    fn change(&self, change: impl FnOnce(&Path) -> Result<(), Errno>) -> anyhow::Result<()> {
        if self.is_reachable()? {
            change(&self.path).with_context(|| {
                format!(
                    "cannot close off the {} at {}",
                    self.kind,
                    self.path.display()
                )
            })?;
        }
        Ok(())
    }

    fn is_covered(&self) -> bool {
        ["cgroup2", "bpf", "proc"].contains(&self.kind.as_str())
    }
}

fn mounts() -> anyhow::Result<Vec<Mounted>> {
    const TABLE: &str = "/proc/self/mountinfo";
    // A path need not be UTF-8; the kernel escapes what would break a line, and nothing else.
    let table = std::fs::read(TABLE).context(TABLE)?;
    let table: String = table.iter().map(|byte| char::from(*byte)).collect();
    table
        .lines()
        .map(|line| Mounted::parse(line).with_context(|| format!("{TABLE}: cannot read: {line}")))
        .collect()
}

/// Bytes as Latin-1 characters, of which the kernel writes some as `\\040`.
fn unescape(text: &str) -> PathBuf {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text;
    while let Some(c) = rest.chars().next() {
        let code = rest.get(1..4).filter(|_| c == '\\');
        if let Some(byte) = code.and_then(|code| u8::from_str_radix(code, 8).ok()) {
            bytes.push(byte);
            rest = rest.get(4..).unwrap_or_default();
        } else {
            bytes.push(u8::try_from(c).unwrap_or(b'?'));
            rest = rest.get(c.len_utf8()..).unwrap_or_default();
        }
    }
    OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::os::unix::ffi::OsStrExt;

    #[test]
    fn what_cannot_be_looked_at_is_not_taken_for_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| vec![folder.path().join(name)];
        std::fs::write(folder.path().join("file"), "").unwrap();
        assert!(real(&at("none")).unwrap().is_empty());
        assert!(real(&at("file/none")).unwrap().is_empty());
        assert_eq!(real(&at("file")).unwrap().len(), 1);
        std::os::unix::fs::symlink("loop", folder.path().join("loop")).unwrap();
        assert!(real(&at("loop")).is_err());
    }

    #[test]
    fn mounts_are_read() {
        let line = r"36 35 98:0 /mnt1 /mnt/a\040b\134c rw,noatime shared:1 master:2 - cgroup2 some\040name rw,nsdelegate";
        let wanted = Mounted {
            id: 36,
            device: 98 << 20,
            root: "/mnt1".into(),
            path: "/mnt/a b\\c".into(),
            kind: "cgroup2".to_owned(),
        };
        let at = |path: &str| Some(PathBuf::from(path));
        let place = |path| wanted.place_of(98 << 20, Path::new(path));
        assert_eq!(place("/mnt1/x/y"), at("/mnt/a b\\c/x/y"));
        assert_eq!(
            (place("/mnt10"), wanted.place_of(98, Path::new("/mnt1/x"))),
            (None, None)
        );
        assert_eq!(Mounted::parse(line), Some(wanted));
        assert_eq!(Mounted::parse("36 35 98:0 / /mnt rw"), None);
        assert_eq!(unescape("/\u{e4}\\04").as_os_str().as_bytes(), b"/\xe4\\04");
        assert!(
            mounts()
                .unwrap()
                .iter()
                .any(|m| m.path == Path::new("/") && m.is_reachable().unwrap())
        );
    }
}
