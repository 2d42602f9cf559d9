//! apt, for kernels and for where packages come from.
use super::kernel::Kernel;
use super::{answer, folder};
use crate::sh;
use anyhow::{Context as _, Result};
use std::path::Path;
use std::process::Command;

/// The package that depends on the newest kernel for virtual machines.
const META: &str = "linux-image-cloud-amd64";
/// The release of Debian that the machine runs.
pub(super) const RELEASE: &str = "bookworm";
/// Where there are newer kernels. Debian signs them with keys that the release's own `debian-archive-keyring` has.
const NEWER: [&str; 3] = ["trixie", "trixie-backports", "sid"];

/// apt with the host's package lists, or with lists of its own for what the host does not follow.
pub(super) struct Apt {
    options: Vec<String>,
}

impl Apt {
    pub(super) fn of(kernel: Kernel) -> Result<Self> {
        if kernel == Kernel::Stable {
            return Ok(Self {
                options: Vec::new(),
            });
        }
        let own = folder().join("apt");
        for part in ["lists/partial", "cache"] {
            std::fs::create_dir_all(own.join(part))?;
        }
        let sources = own.join("sources.list");
        let archive = archive()?;
        let lines = NEWER.map(|suite| format!("deb {archive} {suite} main\n"));
        std::fs::write(&sources, lines.concat())?;
        Ok(Self {
            options: vec![
                format!("Dir::Etc::sourcelist={}", sources.display()),
                "Dir::Etc::sourceparts=/dev/null".to_owned(),
                format!("Dir::State::lists={}", own.join("lists").display()),
                // Its own, too: they are made from the lists. Not beside what was written: apt tidies up there, and takes
                // away what is called like them.
                format!(
                    "Dir::Cache::pkgcache={}",
                    own.join("cache/packages").display()
                ),
                format!(
                    "Dir::Cache::srcpkgcache={}",
                    own.join("cache/sources").display()
                ),
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

    pub(super) fn update(&self) -> Result<()> {
        let mut apt = self.command("apt-get");
        apt.args(["update", "-q"]);
        sh::run(apt)
    }

    /// `NAME=VERSION` of the newest kernel, and of what its files are in where it is taken apart.
    pub(super) fn newest(&self) -> Result<Vec<String>> {
        let image = self.depends(META)?;
        let image = image
            .into_iter()
            .find(|package| package.starts_with("linux-image-"))
            .with_context(|| format!("{META} depends on no kernel"))?;
        let parts = self.depends(&image)?;
        let parts = parts.into_iter().filter(|package| {
            ["linux-base-", "linux-binary-", "linux-modules-"]
                .iter()
                .any(|part| package.starts_with(part))
        });
        Ok([image.clone()].into_iter().chain(parts).collect())
    }

    /// What the newest version of a package, or the version that is said, depends on in one version, as `NAME=VERSION`.
    fn depends(&self, package: &str) -> Result<Vec<String>> {
        let mut show = self.command("apt-cache");
        show.args(["show", package]);
        let said = answer(show)?;
        // The newest comes first, whatever apt would install.
        let field = said.lines().find_map(|line| line.strip_prefix("Depends: "));
        let field = field.with_context(|| format!("apt knows no {package}"))?;
        Ok(exact(field))
    }

    pub(super) fn download(&self, package: &str, into: &Path) -> Result<()> {
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

/// What is required in just one version, as `NAME=VERSION`.
fn exact(depends: &str) -> Vec<String> {
    let each = depends.split(", ");
    each.filter_map(|one| {
        let (name, version) = one.strip_suffix(')')?.split_once(" (= ")?;
        Some(format!("{name}={version}"))
    })
    .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_of_a_kernel_are_required_in_one_version() {
        let field =
            "dracut | initramfs-tools (>= 0.120), linux-base-9 (= 9-1), linux-modules-9 (= 9-1)";
        assert_eq!(exact(field), ["linux-base-9=9-1", "linux-modules-9=9-1"]);
    }
}
