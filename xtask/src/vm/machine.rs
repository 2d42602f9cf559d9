//! qemu, for one run.
use super::{folder, kernel};
use crate::sh;
use anyhow::{Result, bail};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Kernel's parameters: all words to the first serial line, no pause after a panic, short waits for readers, of which every
/// fence that is put up or taken down has many, and pages cleared word by word: string instructions cost more here.
const PARAMETERS: &str = "console=ttyS0 root=/dev/vda rw panic=-1 loglevel=4 mitigations=off \
     rcupdate.rcu_expedited=1 clearcpuid=rep_good systemd.show_status=0 systemd.default_timeout_start_sec=60s";

/// Everything that qemu emulates, but what costs it more than it gives: the kernel takes string instructions that are said to be fast
/// for every copy, and they are emulated byte by byte; and a fifth level of page tables is one more to walk.
const PROCESSOR: &str = "max,-erms,-fsrm,-la57";

/// A machine that has not been switched on.
pub(super) struct Machine {
    kernel: PathBuf,
    initrd: PathBuf,
    /// In the order in which the first program looks for them.
    disks: [PathBuf; 3],
    console: PathBuf,
    processors: u32,
}

/// Where what the kernel and systemd of one of the machines say is written.
pub(super) fn console(number: u32) -> PathBuf {
    folder().join(format!("console-{number}.log"))
}

impl Machine {
    pub(super) fn new(
        kernel: &kernel::Installed,
        root: &Path,
        payload: PathBuf,
        number: u32,
        processors: u32,
    ) -> Self {
        Self {
            kernel: kernel.image.clone(),
            initrd: kernel.initrd.clone(),
            disks: [root.to_owned(), kernel.modules.clone(), payload],
            console: console(number),
            processors,
        }
    }

    /// Runs to its end and gives each line of the second serial line to `each`, which may answer with a line.
    pub(super) fn run(
        &self,
        minutes: u32,
        mut each: impl FnMut(&str) -> Option<String>,
    ) -> Result<()> {
        let mut command = self.command(minutes);
        command.args(["-serial", "stdio"]);
        let began = std::time::Instant::now();
        let well = sh::talk(command, |line| each(line.trim_end_matches('\r')))?;
        if !well && began.elapsed().as_secs() >= u64::from(minutes) * 60 {
            bail!(
                "the machine was switched off after {minutes} minutes; {}",
                super::shown(&self.console)
            );
        }
        if !well {
            bail!("qemu failed; {}", super::shown(&self.console));
        }
        Ok(())
    }

    /// Its second serial line on this terminal.
    pub(super) fn shell(&self, minutes: u32) -> Result<()> {
        println!("      leave it with `exit`");
        let mut command = self.command(minutes);
        // Ctrl-C is for who is inside.
        command.args(["-chardev", "stdio,id=line,signal=off"]);
        command.args(["-serial", "chardev:line"]);
        sh::run(command)
    }

    /// qemu with everything but the second serial line, under a deadline.
    fn command(&self, minutes: u32) -> Command {
        let mut command = sh::command("timeout");
        command
            .args(["--foreground", "--kill-after=10"])
            .arg(format!("{minutes}m"))
            .args(["qemu-system-x86_64", "-nodefaults", "-no-user-config"])
            .args(["-machine", "q35", "-accel", "tcg,thread=multi"])
            .args(["-cpu", PROCESSOR, "-m", "3G", "-smp"])
            .arg(self.processors.to_string())
            .args(["-display", "none", "-no-reboot"])
            .arg("-kernel")
            .arg(&self.kernel)
            .arg("-initrd")
            .arg(&self.initrd)
            .args(["-append", PARAMETERS]);
        for disk in &self.disks {
            // What is written goes to a file that has no name and ends with qemu.
            command.arg("-drive");
            command.arg(format!(
                "if=virtio,format=raw,snapshot=on,file={}",
                disk.display()
            ));
        }
        command
            .arg("-serial")
            .arg(format!("file:{}", self.console.display()))
            .env("TMPDIR", folder());
        command
    }
}
