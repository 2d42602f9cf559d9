//! Debian's kernel, unpacked beside the host's and not installed there.
use super::apt::Apt;
use super::{folder, images};
use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::path::{Path, PathBuf};

/// Which of Debian's kernels.
#[derive(Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(super) enum Kernel {
    /// The release's own, 6.1.
    #[default]
    Stable,
    /// The newest that the archive has for any release.
    Newer,
}

/// What it takes to reach a disk and its file system, unless it is built in.
const MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

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
    let mut packages = apt.newest();
    if packages.is_err() {
        apt.update()?;
        packages = apt.newest();
    }
    let packages = packages?;
    let mut directory = place(&packages)?;
    if !directory.is_dir() {
        println!("      unpacking {}", packages.join(" "));
        // The archive forgets a version when there is a newer one: the lists are too old.
        if make(&apt, &packages, &directory).is_err() {
            apt.update()?;
            let packages = apt.newest()?;
            directory = place(&packages)?;
            make(&apt, &packages, &directory)?;
        }
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

/// Where the kernel of these packages is kept.
fn place(packages: &[String]) -> Result<PathBuf> {
    let first = packages.first().context("a kernel is in no package")?;
    Ok(folder().join("kernels").join(first))
}

fn make(apt: &Apt, packages: &[String], directory: &Path) -> Result<()> {
    // No extension of its name: there is a dot in the version.
    let fresh = folder().join("kernels/new");
    images::empty(&fresh)?;
    let files = fresh.join("files");
    for package in packages {
        apt.download(package, &fresh)?;
    }
    for deb in entries(&fresh)?.filter(|path| path.extension().is_some_and(|e| e == "deb")) {
        let mut unpack = sh::command("dpkg-deb");
        unpack.arg("-x").arg(&deb).arg(&files);
        sh::run(unpack)?;
        std::fs::remove_file(deb)?;
    }
    // Debian 12 has them in `/lib`, later ones where `/lib` leads.
    if !files.join("lib").exists() {
        std::os::unix::fs::symlink("usr/lib", files.join("lib"))?;
    }
    let modules = files.join("lib/modules");
    let release = entries(&modules)?
        .find_map(|path| path.file_name()?.to_str().map(str::to_owned))
        .with_context(|| format!("{} hold no modules", packages.join(" ")))?;
    unpacked(&modules)?;
    let mut depmod = sh::command("depmod");
    depmod.arg("-b").arg(&files).arg(&release);
    sh::run(depmod)?;
    images::ext4(&modules, &fresh.join("modules.ext4"), 1)?;
    initrd(&modules.join(&release), &fresh)?;
    // Newer packages leave it beside the modules, for a hook to copy.
    let places = [
        files.join(format!("boot/vmlinuz-{release}")),
        modules.join(&release).join("vmlinuz"),
    ];
    let image = places.iter().find(|place| place.is_file());
    let image = image.with_context(|| format!("{} hold no kernel", packages.join(" ")))?;
    std::fs::rename(image, fresh.join("vmlinuz"))?;
    std::fs::write(fresh.join("release"), &release)?;
    std::fs::remove_dir_all(&files)?;
    std::fs::rename(&fresh, directory)
        .with_context(|| format!("cannot make {}", directory.display()))
}

/// Unpacks modules that are compressed, which the first program could not load.
fn unpacked(modules: &Path) -> Result<()> {
    for (ending, program) in [("xz", "xz"), ("zst", "zstd")] {
        let mut find = sh::command("find");
        find.arg(modules).args(["-name", &format!("*.ko.{ending}")]);
        match program {
            "zstd" => find.args(["-exec", program, "-dq", "--rm", "{}", "+"]),
            _ => find.args(["-exec", program, "-dq", "{}", "+"]),
        };
        sh::run(find).with_context(|| format!("cannot unpack modules with {program}"))?;
    }
    Ok(())
}

/// What runs first: finds the disks and hands over to systemd on the first of them.
const INIT: &str = r#"#!/bin/busybox sh
b=/bin/busybox
$b mkdir -p /proc /dev /new
$b mount -t proc proc /proc
$b mount -t devtmpfs dev /dev
for module in MODULES; do $b insmod /modules/$module; done
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

/// The first file system: a shell, and the modules below `modules`, which are one release's, that it loads.
fn initrd(modules: &Path, into: &Path) -> Result<()> {
    let root = into.join("initrd.d");
    for folder in ["bin", "modules"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy("/bin/busybox", root.join("bin/busybox"))
        .context("cannot copy /bin/busybox (package busybox-static)")?;
    let read = |name: &str| {
        std::fs::read_to_string(modules.join(name)).with_context(|| format!("cannot read {name}"))
    };
    let (needs, builtin) = (read("modules.dep")?, read("modules.builtin")?);
    let loaded = order(MODULES, &needs, &builtin)?;
    for path in &loaded {
        let to = root.join("modules").join(file(path));
        std::fs::copy(modules.join(path), to).with_context(|| format!("cannot copy {path}"))?;
    }
    let names: Vec<&str> = loaded.iter().map(|path| file(path)).collect();
    let init = root.join("init");
    std::fs::write(&init, INIT.replace("MODULES", &names.join(" ")))?;
    let mut pack = sh::command("sh");
    pack.arg("-ec")
        .arg("chmod 755 init; find . | busybox cpio -o -H newc 2>/dev/null | gzip -1 > ../initrd")
        .current_dir(&root);
    sh::run(pack)?;
    Ok(std::fs::remove_dir_all(root)?)
}

/// Paths of the modules to load, each behind those that it needs; `needs` and `builtin` as depmod and the kernel's makefile
/// write them.
fn order<'a>(wanted: &[&str], needs: &'a str, builtin: &str) -> Result<Vec<&'a str>> {
    let is = |path: &str, name: &str| file(path).strip_suffix(".ko") == Some(name);
    let mut order = Vec::new();
    for name in wanted {
        let lines = needs.lines().filter_map(|line| line.split_once(':'));
        match lines.into_iter().find(|(path, _)| is(path, name)) {
            // What is needed first stands last.
            Some((path, needed)) => {
                for path in needed.split_whitespace().rev().chain([path]) {
                    if !order.contains(&path) {
                        order.push(path);
                    }
                }
            }
            None if builtin.lines().any(|path| is(path, name)) => {}
            None => bail!("the kernel has no {name}, neither built in nor as a module"),
        }
    }
    Ok(order)
}

fn file(path: &str) -> &str {
    path.rsplit('/').next().unwrap_or(path)
}

fn entries(directory: &Path) -> Result<impl Iterator<Item = PathBuf>> {
    let read = std::fs::read_dir(directory)
        .with_context(|| format!("cannot list {}", directory.display()))?;
    Ok(read.flatten().map(|entry| entry.path()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn modules_are_loaded_behind_what_they_need() -> Result<()> {
        let needs = "kernel/b/virtio.ko: kernel/b/ring.ko\n\
                     kernel/b/virtio_pci.ko: kernel/b/virtio.ko kernel/b/ring.ko\n\
                     kernel/b/ring.ko:\n\
                     kernel/b/virtio_blk.ko: kernel/b/virtio.ko kernel/b/ring.ko\n";
        let found = order(MODULES, needs, "kernel/fs/ext4/ext4.ko\n")?;
        let names: Vec<&str> = found.into_iter().map(file).collect();
        let expected = ["ring.ko", "virtio.ko", "virtio_pci.ko", "virtio_blk.ko"];
        assert_eq!(names, expected);
        assert!(order(MODULES, needs, "").is_err());
        Ok(())
    }
}
