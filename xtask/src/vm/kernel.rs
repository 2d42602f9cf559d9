//! Debian's kernel, unpacked beside the host's and not installed there.
use super::{answer, folder, images};
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Which of Debian's kernels.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kernel {
    /// The release's own, 6.1.
    #[default]
    Stable,
    /// The newest that is offered for the release.
    Backports,
}

/// The package that depends on the newest kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";
/// The release of Debian that the machine runs.
pub(super) const RELEASE: &str = "bookworm";
/// What it takes to reach a disk, in the order of their dependencies.
const MODULES: &[&str] = &[
    "virtio_ring",
    "virtio",
    "virtio_pci_modern_dev",
    "virtio_pci_legacy_dev",
    "virtio_pci",
    "virtio_blk",
];

/// A kernel that is ready to boot.
pub(super) struct Installed {
    /// As `uname -r` says it.
    pub(super) release: String,
    pub(super) image: PathBuf,
    pub(super) initrd: PathBuf,
    /// File system of its modules.
    pub(super) modules: PathBuf,
}

/// The kernel, made ready unless it is.
pub(super) fn ready(kernel: Kernel) -> Result<Installed> {
    let apt = Apt::of(kernel)?;
    let mut package = apt.newest();
    if package.is_err() {
        apt.update()?;
        package = apt.newest();
    }
    let package = package?;
    let directory = folder().join("kernels").join(&package);
    if !directory.is_dir() {
        println!("      unpacking {package}");
        make(&apt, &package, &directory)
            // The archive forgets a version when there is a newer one: the lists are too old.
            .or_else(|_| {
                apt.update()?;
                make(&apt, &apt.newest()?, &directory)
            })?;
    }
    let release = std::fs::read_to_string(directory.join("release"))
        .with_context(|| format!("remove {} and try again", directory.display()))?;
    Ok(Installed {
        release,
        image: directory.join("vmlinuz"),
        initrd: directory.join("initrd"),
        modules: directory.join("modules.ext4"),
    })
}

fn make(apt: &Apt, package: &str, directory: &Path) -> Result<()> {
    let fresh = directory.with_extension("new");
    images::empty(&fresh)?;
    apt.download(package, &fresh)?;
    let files = fresh.join("files");
    let deb = entries(&fresh)?
        .find(|path| path.extension().is_some_and(|e| e == "deb"))
        .with_context(|| format!("apt-get downloaded no {package}"))?;
    let mut unpack = sh::command("dpkg-deb");
    unpack.arg("-x").arg(&deb).arg(&files);
    sh::run(unpack)?;
    let release = entries(&files.join("lib/modules"))?
        .find_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .with_context(|| format!("{package} holds no modules"))?;
    let mut depmod = sh::command("depmod");
    depmod.arg("-b").arg(&files).arg(&release);
    sh::run(depmod)?;
    let modules = files.join("lib/modules");
    images::ext4(&modules, &fresh.join("modules.ext4"), 1)?;
    initrd(&modules, &fresh)?;
    std::fs::rename(
        files.join(format!("boot/vmlinuz-{release}")),
        fresh.join("vmlinuz"),
    )?;
    std::fs::write(fresh.join("release"), &release)?;
    std::fs::remove_dir_all(&files)?;
    std::fs::remove_file(deb)?;
    std::fs::rename(&fresh, directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

/// What runs first: finds the disks and hands over to systemd on the first of them.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev /new
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in MODULES; do $b insmod /modules/$module.ko; done
$b mount -t ext4 /dev/vda /new &&
    $b mount -t ext4 -o ro /dev/vdb /new/usr/lib/modules &&
    $b mount -t ext4 -o ro /dev/vdc /new/payload || {
    echo "the machine's disks cannot be mounted"
    exec $b poweroff -f
}
$b umount /proc
$b mount --move /dev /new/dev
exec $b switch_root /new /sbin/init
"#;

fn initrd(modules: &Path, into: &Path) -> Result<()> {
    let root = into.join("initrd.d");
    for folder in ["bin", "modules"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("cannot copy /bin/busybox (package busybox-static)")?;
    for module in MODULES {
        let name = format!("{module}.ko");
        let found = find(modules, &name)?.with_context(|| format!("the kernel has no {name}"))?;
        std::fs::copy(found, root.join("modules").join(name))?;
    }
    let init = root.join("init");
    std::fs::write(&init, INIT.replace("MODULES", &MODULES.join(" ")))?;
    let mut pack = sh::command("sh");
    pack.arg("-ec")
        .arg("chmod 755 init; find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > ../initrd")
        .current_dir(&root);
    sh::run(pack)?;
    Ok(std::fs::remove_dir_all(root)?)
}

fn find(below: &Path, name: &str) -> Result<Option<PathBuf>> {
    for path in entries(below)? {
        let found = if path.is_dir() && !path.is_symlink() {
            find(&path, name)?
        } else {
            path.ends_with(name).then_some(path)
        };
        if found.is_some() {
            return Ok(found);
        }
    }
    Ok(None)
}

fn entries(directory: &Path) -> Result<impl Iterator<Item = PathBuf>> {
    let read = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(read.flatten().map(|entry| entry.path()))
}

/// apt with the host's package lists, or with lists of its own for what the host does not follow.
struct Apt {
    options: Vec<String>,
}

impl Apt {
    fn of(kernel: Kernel) -> Result<Self> {
        if kernel == Kernel::Stable {
            return Ok(Self {
                options: Vec::new(),
            });
        }
        let own = folder().join("apt");
        std::fs::create_dir_all(own.join("lists/partial"))?;
        let sources = own.join("sources.list");
        let archive = archive()?;
        std::fs::write(
            &sources,
            format!("deb {archive} {RELEASE}-backports main\n"),
        )?;
        Ok(Self {
            options: vec![
                format!("Dir::Etc::sourcelist={}", sources.display()),
                "Dir::Etc::sourceparts=-".to_owned(),
                format!("Dir::State::lists={}", own.join("lists").display()),
                // Its own, too: they are made from the lists.
                format!("Dir::Cache::pkgcache={}", own.join("packages").display()),
                format!("Dir::Cache::srcpkgcache={}", own.join("sources").display()),
            ],
        })
    }

    fn command(&self, program: &str) -> Command {
        let mut command = sh::command(program);
        for option in &self.options {
            command.arg("-o").arg(option);
        }
        command
    }

    fn update(&self) -> Result<()> {
        let mut apt = self.command("apt-get");
        apt.args(["update", "-q"]);
        sh::run(apt)
    }

    /// `NAME=VERSION` of the newest kernel.
    fn newest(&self) -> Result<String> {
        let mut depends = self.command("apt-cache");
        depends.args(["depends", "--important", META]);
        let said = answer(depends)?;
        let name = said
            .lines()
            .find_map(|line| line.trim().strip_prefix("Depends: "))
            .with_context(|| format!("apt knows no {META}"))?
            .to_owned();
        let mut show = self.command("apt-cache");
        show.args(["show", "--no-all-versions", &name]);
        let said = answer(show)?;
        let version = said.lines().find_map(|line| line.strip_prefix("Version: "));
        let version = version.with_context(|| format!("apt knows no version of {name}"))?;
        Ok(format!("{name}={version}"))
    }

    fn download(&self, package: &str, into: &Path) -> Result<()> {
        let mut apt = self.command("apt-get");
        apt.args(["download", "-q", package]).current_dir(into);
        answer(apt).map(drop)
    }
}

/// Where the host takes the release's packages from.
pub(super) fn archive() -> Result<String> {
    let mut apt = sh::command("apt-get");
    apt.args(["indextargets", "--format", "$(RELEASE) $(REPO_URI)"])
        .arg("Created-By: Packages");
    let said = answer(apt)?;
    let found = said
        .lines()
        .find_map(|line| line.strip_prefix(&format!("{RELEASE} ")));
    Ok(found
        .with_context(|| format!("apt has no source of {RELEASE}: the machine runs Debian 12"))?
        .to_owned())
}
