//! The machine's root file system: Debian with systemd, made once.
use super::apt::{RELEASE, archive};
use super::{folder, images};
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::{Path, PathBuf};

/// What is in it beside a minimal Debian.
const PACKAGES: &[&str] = &[
    "bpftool",
    "ca-certificates",
    "curl",
    "dbus",
    "iproute2",
    "kmod",
    "nginx-light",
    "procps",
    "python3",
    "systemd-sysv",
];

/// Units that only wait for what this machine does not have, or do what nobody wants here.
const MASKED: &[&str] = &[
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "fstrim.timer",
    "getty.target",
    "nginx.service",
    "proc-sys-fs-binfmt_misc.automount",
    "serial-getty@.service",
    "systemd-binfmt.service",
];

/// Does what the payload says, with the second serial line as its terminal, and switches the machine off.
const UNIT: &str = "\
[Unit]
Description=What this machine was started for
SuccessAction=poweroff-force
FailureAction=poweroff-force

[Service]
Type=oneshot
StandardInput=tty
StandardOutput=tty
StandardError=tty
TTYPath=/dev/ttyS1
TTYReset=yes
ExecStart=/bin/bash /payload/plan

[Install]
WantedBy=multi-user.target
";

/// MiB that a run can write.
const FREE: u64 = 2048;

/// The image, made unless there is one by the same recipe. Runs do not change it.
pub(super) fn ready() -> Result<PathBuf> {
    let (image, note) = (folder().join("root.ext4"), folder().join("root.recipe"));
    let recipe = recipe();
    if image.is_file() && std::fs::read_to_string(&note).is_ok_and(|made| made == recipe) {
        return Ok(image);
    }
    println!("      making a root file system of Debian's packages (a minute or two, once)");
    let root = folder().join("root.d");
    images::empty(&root)?;
    bootstrap(&root)?;
    furnish(&root).context("cannot furnish the machine's root")?;
    images::ext4(&root, &image, FREE)?;
    std::fs::remove_dir_all(&root)?;
    std::fs::write(&note, recipe)?;
    Ok(image)
}

/// All that decides what is in the image.
fn recipe() -> String {
    format!(
        "{RELEASE}\n{}\n{}\n{UNIT}{FREE}\n",
        PACKAGES.join(" "),
        MASKED.join(" ")
    )
}

fn bootstrap(root: &Path) -> Result<()> {
    let mut command = sh::command("mmdebstrap");
    command
        .args(["--quiet", "--mode=root", "--variant=minbase"])
        .arg(format!("--include={}", PACKAGES.join(",")))
        // Pages of documentation are of no use in there.
        .arg("--dpkgopt=path-exclude=/usr/share/man/*")
        .arg("--dpkgopt=path-exclude=/usr/share/doc/*")
        .arg("--dpkgopt=path-exclude=/usr/share/locale/*")
        .arg(RELEASE)
        .arg(root)
        .arg(archive()?);
    sh::run(command)
}

fn furnish(root: &Path) -> Result<()> {
    let units = root.join("etc/systemd/system");
    for unit in MASKED {
        let path = units.join(unit);
        let _ = std::fs::remove_file(&path);
        std::os::unix::fs::symlink("/dev/null", path)?;
    }
    std::fs::write(units.join("payload.service"), UNIT)?;
    let wanted = units.join("multi-user.target.wants");
    std::fs::create_dir_all(&wanted)?;
    std::os::unix::fs::symlink("../payload.service", wanted.join("payload.service"))?;
    for folder in ["payload", "usr/lib/modules"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::write(root.join("etc/hostname"), "tollgate-vm\n")?;
    std::fs::write(root.join("etc/hosts"), "127.0.0.1 localhost tollgate-vm\n")?;
    // The installing host's, and of no use to a machine without a network.
    std::fs::write(root.join("etc/resolv.conf"), "")?;
    Ok(())
}
