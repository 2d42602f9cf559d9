//! What Debian packages.
use super::Need;
use crate::sh;
use anyhow::{Context as _, Result, bail};
use std::path::Path;

/// A Debian package, or the program that stands for it.
pub(super) struct Package {
    pub(super) name: &'static str,
    pub(super) why: &'static str,
    need: Need,
    known_by: KnownBy,
}

/// How to tell that a package is not needed any more.
enum KnownBy {
    /// dpkg says that it is installed.
    Dpkg,
    /// dpkg says that it is installed, at least in this version.
    Version(&'static str),
    /// Any program of this name will do, wherever it came from.
    Program(&'static str),
    /// This file is there.
    File(&'static str),
    /// Debian's Python can make virtual environments.
    Venv,
}

const fn package(name: &'static str, need: Need, known_by: KnownBy, why: &'static str) -> Package {
    Package {
        name,
        why,
        need,
        known_by,
    }
}

const PACKAGES: &[Package] = &[
    package(
        "build-essential",
        Need::Build,
        KnownBy::Program("g++"),
        "compiles C dependencies",
    ),
    package(
        "rustc-web",
        Need::Build,
        KnownBy::Version("1.96"),
        "compiles the eBPF programs",
    ),
    package(
        "libstd-rust-web-dev-bpf",
        Need::Build,
        KnownBy::Version("1.96"),
        "its core for BPF",
    ),
    package(
        "llvm-22-dev",
        Need::Build,
        KnownBy::Dpkg,
        "the LLVM that bpf-linker uses",
    ),
    package("libpolly-22-dev", Need::Build, KnownBy::Dpkg, "part of it"),
    package("libzstd-dev", Need::Build, KnownBy::Dpkg, "part of it"),
    package("zlib1g-dev", Need::Build, KnownBy::Dpkg, "part of it"),
    package(
        "nginx-light",
        Need::Demo,
        KnownBy::Program("nginx"),
        "the server called in tests",
    ),
    package(
        "iproute2",
        Need::Demo,
        KnownBy::Program("ip"),
        "makes test networks",
    ),
    package(
        "util-linux",
        Need::Demo,
        KnownBy::Program("nsenter"),
        "enters test networks",
    ),
    package(
        "bpftool",
        Need::Everything,
        KnownBy::Program("bpftool"),
        "shows what is attached and pinned, to the kernel tests",
    ),
    package(
        "crun",
        Need::Everything,
        KnownBy::Program("crun"),
        "runs containers",
    ),
    package(
        "containerd",
        Need::Everything,
        KnownBy::Program("containerd"),
        "runs pods",
    ),
    package(
        "runc",
        Need::Everything,
        KnownBy::Program("runc"),
        "runs their containers",
    ),
    package(
        "docker.io",
        Need::Everything,
        KnownBy::Program("dockerd"),
        "runs Docker's containers",
    ),
    package(
        "podman",
        Need::Everything,
        KnownBy::Program("podman"),
        "runs Podman's containers",
    ),
    package("curl", Need::Demo, KnownBy::Program("curl"), "a client"),
    package(
        "ca-certificates",
        Need::Demo,
        KnownBy::File("/etc/ssl/certs/ca-certificates.crt"),
        "the public roots",
    ),
    package("nodejs", Need::Demo, KnownBy::Program("node"), "a client"),
    package(
        "python3",
        Need::Demo,
        KnownBy::File("/usr/bin/python3"),
        "a client",
    ),
    package(
        "python3-venv",
        Need::Demo,
        KnownBy::Venv,
        "installs Python clients apart",
    ),
    package(
        "git",
        Need::Everything,
        KnownBy::File("/usr/bin/git"),
        "a client",
    ),
    package(
        "wget",
        Need::Everything,
        KnownBy::Program("wget"),
        "a client",
    ),
    package(
        "chromium",
        Need::Everything,
        KnownBy::Program("chromium"),
        "a client",
    ),
    package(
        "openjdk-17-jdk-headless",
        Need::Everything,
        KnownBy::File("/usr/lib/jvm/java-17-openjdk-amd64/bin/javac"),
        "a client",
    ),
    package(
        "npm",
        Need::Everything,
        KnownBy::Program("npm"),
        "installs Node clients",
    ),
    package(
        "rust-web-clippy",
        Need::Everything,
        KnownBy::Version("1.96"),
        "lints for BPF",
    ),
    package(
        "systemd",
        Need::Everything,
        KnownBy::Program("systemd-analyze"),
        "checks the units",
    ),
    package(
        "qemu-system-x86",
        Need::Everything,
        KnownBy::Program("qemu-system-x86_64"),
        "the machine with another kernel",
    ),
    package(
        "seabios",
        Need::Everything,
        KnownBy::File("/usr/share/seabios/bios-256k.bin"),
        "its firmware",
    ),
    package(
        "mmdebstrap",
        Need::Everything,
        KnownBy::Program("mmdebstrap"),
        "makes its root file system",
    ),
    package(
        "e2fsprogs",
        Need::Everything,
        KnownBy::Program("mke2fs"),
        "makes its disks",
    ),
    package(
        "busybox-static",
        Need::Everything,
        KnownBy::Dpkg,
        "the first program in it, and all that is in pods",
    ),
    package(
        "kmod",
        Need::Everything,
        KnownBy::Program("depmod"),
        "orders its kernel's modules",
    ),
    package(
        "xz-utils",
        Need::Everything,
        KnownBy::Program("xz"),
        "unpacks those of newer kernels",
    ),
    package(
        "zstd",
        Need::Everything,
        KnownBy::Program("zstd"),
        "unpacks those of newer kernels",
    ),
];

/// The packages that `need` lacks.
pub(super) fn missing(need: Need) -> Result<Vec<&'static Package>> {
    if sh::find("dpkg-query").is_none() {
        bail!(
            "this is not a Debian system: install by hand what xtask/src/setup/debian.rs lists, \
             or run in a Debian 12 container"
        );
    }
    let installed = installed()?;
    let absent = |package: &&Package| match package.known_by {
        KnownBy::Dpkg => version(&installed, package.name).is_none(),
        KnownBy::Version(least) => {
            version(&installed, package.name).is_none_or(|v| numbers(v) < numbers(least))
        }
        KnownBy::Program(program) => sh::find(program).is_none(),
        KnownBy::File(path) => !Path::new(path).is_file(),
        KnownBy::Venv => !has_venv(),
    };
    Ok(PACKAGES
        .iter()
        .filter(|p| p.need <= need)
        .filter(absent)
        .collect())
}

/// Names, to print in a command.
pub(super) fn names(packages: &[&Package]) -> String {
    packages
        .iter()
        .map(|p| p.name)
        .collect::<Vec<_>>()
        .join(" ")
}

/// Lines of `name version` of the packages of our list that are installed.
fn installed() -> Result<String> {
    let mut query = sh::command("dpkg-query");
    query.args(["-W", "-f", "${db:Status-Status} ${Package} ${Version}\n"]);
    query.args(PACKAGES.iter().map(|p| p.name));
    // It exits 1 when one of the names is unknown; the others are still listed.
    Ok(String::from_utf8_lossy(&sh::output(query)?.stdout).into_owned())
}

fn version<'a>(installed: &'a str, name: &str) -> Option<&'a str> {
    installed.lines().find_map(|line| {
        let mut words = line.split(' ');
        (words.next() == Some("installed") && words.next() == Some(name)).then(|| words.next())?
    })
}

/// `1.96.0+dfsg1-1` → `[1, 96, 0]`.
fn numbers(version: &str) -> Vec<u32> {
    version
        .split(['.', '+', '-', '~'])
        .map_while(|part| part.parse().ok())
        .collect()
}

fn has_venv() -> bool {
    // Finding the modules' files is ten times quicker than importing them.
    const LOOK: &str = "from importlib.util import find_spec as f; \
                        raise SystemExit(not (f('venv') and f('ensurepip')))";
    let mut python = sh::command(super::extra::PYTHON);
    python.args(["-Sc", LOOK]);
    super::extra::clients_are_there() || sh::output(python).is_ok_and(|o| o.status.success())
}

/// Installs them with apt, fetching its lists first where they are absent or too old.
pub(super) fn install(packages: &[&Package]) -> Result<()> {
    let _idle = NoServices::hold(packages)?;
    if !lists_are_there() {
        update()?;
    }
    apt_install(packages).or_else(|fault| {
        println!("{fault:#}: trying again with new package lists");
        update()?;
        apt_install(packages)
    })?;
    disable_services(packages);
    Ok(())
}

fn lists_are_there() -> bool {
    std::fs::read_dir("/var/lib/apt/lists").is_ok_and(|entries| {
        entries
            .flatten()
            .any(|e| e.file_name().to_string_lossy().contains("_Packages"))
    })
}

fn update() -> Result<()> {
    let mut apt = sh::command("apt-get");
    apt.args(["update", "-q"]);
    sh::run(apt)
}

fn apt_install(packages: &[&Package]) -> Result<()> {
    let mut apt = sh::command("apt-get");
    apt.args(["install", "-q", "-y", "--no-install-recommends"])
        .args(packages.iter().map(|p| p.name))
        .env("DEBIAN_FRONTEND", "noninteractive");
    sh::run(apt).context(
        "rustc-web 1.96 and llvm-22 are in Debian 12's security suite: /etc/apt/sources.list must \
         name bookworm-security",
    )
}

/// Packages whose services the tests start themselves, each with all of its own, and what Debian would start of them.
const SERVICES: &[(&str, &[&str])] = &[
    ("nginx-light", &["nginx.service"]),
    ("containerd", &["containerd.service"]),
    ("docker.io", &["docker.socket", "docker.service"]),
    (
        "podman",
        &[
            "podman.socket",
            "podman.service",
            "podman-restart.service",
            "podman-auto-update.timer",
            "podman-auto-update.service",
        ],
    ),
];

/// What Debian starts of these packages.
fn services(packages: &[&Package]) -> Vec<&'static str> {
    let named = |name: &str| packages.iter().any(|package| package.name == name);
    let ours = SERVICES.iter().filter(|(package, _)| named(package));
    ours.flat_map(|(_, units)| units.iter().copied()).collect()
}

/// They must not start at the next boot either.
fn disable_services(packages: &[&Package]) {
    let units = services(packages);
    if !units.is_empty() && sh::find("systemctl").is_some() {
        let mut systemctl = sh::command("systemctl");
        systemctl.args(["--quiet", "disable"]).args(units);
        let _ = sh::output(systemctl);
    }
}

const POLICY: &str = "/usr/sbin/policy-rc.d";

/// While it lives, installing a package starts no service (Debian's own switch for that).
struct NoServices {
    ours: bool,
}

impl NoServices {
    fn hold(packages: &[&Package]) -> Result<Self> {
        let ours = !services(packages).is_empty() && !Path::new(POLICY).exists();
        if ours {
            use std::os::unix::fs::PermissionsExt as _;
            std::fs::write(POLICY, "#!/bin/sh\nexit 101\n")
                .and_then(|()| {
                    std::fs::set_permissions(POLICY, std::fs::Permissions::from_mode(0o755))
                })
                .with_context(|| format!("cannot write {POLICY}"))?;
        }
        Ok(Self { ours })
    }
}

impl Drop for NoServices {
    fn drop(&mut self) {
        if self.ours {
            let _ = std::fs::remove_file(POLICY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_compare_by_number() {
        assert!(numbers("1.96.0+dfsg1-1~deb12u2") > numbers("1.96"));
        assert!(numbers("1.85.0+dfsg3-1~deb12u3") < numbers("1.96"));
        assert!(numbers("1.100.0") > numbers("1.96"));
    }

    #[test]
    fn nothing_that_is_installed_for_tests_is_left_running() {
        let named = |name: &'static str| PACKAGES.iter().filter(move |p| p.name == name);
        let two: Vec<_> = named("docker.io").chain(named("curl")).collect();
        assert_eq!(services(&two), ["docker.socket", "docker.service"]);
        assert!(services(&two[1..]).is_empty());
        for (package, _) in SERVICES {
            assert_eq!(named(package).count(), 1, "{package}");
        }
    }

    #[test]
    fn only_installed_packages_have_a_version() {
        let listed = "installed zlib1g-dev 1:1.2.13\nconfig-files curl 7.88\nnot-installed wrk \n";
        assert_eq!(version(listed, "zlib1g-dev"), Some("1:1.2.13"));
        assert_eq!(version(listed, "curl"), None);
        assert_eq!(version(listed, "wrk"), None);
    }
}
