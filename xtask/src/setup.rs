//! `cargo xtask setup`: finds what is missing, says so, installs it.
//!
//! Debian's packages come from apt; what Debian lacks goes below `target/tools`, which deleting
//! `target` removes again. Nothing is installed that is already there in any form.

mod debian;
mod extra;
mod fleet;

use crate::sh;
use anyhow::{Result, bail};

/// What the caller is about to do: decides what must be there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Need {
    /// Build the eBPF programs and the agent.
    Build,
    /// Also start the demo's servers and clients.
    Demo,
    /// Also check and test.
    Everything,
}

/// Installs what `need` lacks. Under a second when nothing is missing.
pub(crate) fn run(need: Need) -> Result<()> {
    let packages = debian::missing(need)?;
    let extras: Vec<_> = extra::ALL
        .iter()
        .filter(|e| e.need <= need && !e.is_there())
        .collect();
    if packages.is_empty() && extras.is_empty() {
        println!("setup: nothing is missing");
        return Ok(());
    }
    println!("{}", sh::bold("setup: about to install"));
    for package in &packages {
        println!("  {:<26} {} (Debian package)", package.name, package.why);
    }
    for extra in &extras {
        println!("  {:<26} {} ({})", extra.name, extra.why, extra.how);
    }
    if !packages.is_empty() && !sh::is_root() {
        bail!(
            "installing Debian packages needs root: run `sudo apt-get update && sudo apt-get \
             install --no-install-recommends {}`, then this again",
            debian::names(&packages)
        );
    }
    let mut progress = sh::Progress::new(usize::from(!packages.is_empty()) + extras.len());
    if !packages.is_empty() {
        progress.step(&format!("apt-get install {}", debian::names(&packages)));
        debian::install(&packages)?;
    }
    for extra in extras {
        progress.step(extra.name);
        (extra.install)()?;
        if !extra.is_there() {
            bail!(
                "{} was installed and still is not found: {}",
                extra.name,
                extra.how
            );
        }
    }
    println!("setup: done");
    Ok(())
}
