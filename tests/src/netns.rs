//! Processes that hold namespaces, and ways into them.
use anyhow::{Context as _, Result, bail};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::ffi::OsStr;
use std::fs::File;
use std::os::fd::AsFd as _;
use std::os::unix::fs::MetadataExt as _;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// A process that does nothing but hold a network and a mount namespace (and, for servers, a pid
/// namespace, whose processes end with it). It ends with the thread that made it.
#[derive(Debug)]
pub struct Holder {
    child: Child,
    pid: u32,
    pids_apart: bool,
}

impl Holder {
    /// Makes the namespaces. With `pids_apart`, processes entered by [`Holder::command`] die with the holder.
    ///
    /// # Errors
    /// Not root, or `unshare` and `setpriv` of util-linux are missing.
    pub fn new(pids_apart: bool) -> Result<Self> {
        let mut command = Command::new("setpriv");
        command.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount"]);
        if pids_apart {
            command.args(["--pid", "--fork", "--kill-child=KILL", "--mount-proc"]);
        }
        command.args(["--", "sleep", "infinity"]).process_group(0);
        let child = command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .context("cannot start setpriv (package util-linux)")?;
        let mut holder = Self {
            pid: child.id(),
            child,
            pids_apart,
        };
        let asleep = crate::eventually(Duration::from_secs(5), || holder.sleeper());
        match asleep {
            Some(pid) => holder.pid = pid,
            None => bail!("no namespaces could be made: run this as root, with CAP_SYS_ADMIN"),
        }
        Ok(holder)
    }

    /// The process inside the namespaces, once it sleeps.
    fn sleeper(&self) -> Option<u32> {
        let outer = self.child.id();
        let pid = if self.pids_apart {
            let children = std::fs::read_to_string(format!("/proc/{outer}/task/{outer}/children"));
            children.ok()?.trim().parse().ok()?
        } else {
            outer
        };
        let name = std::fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
        (name.trim() == "sleep").then_some(pid)
    }

    /// The pid inside which the namespaces can be found: `/proc/PID/ns/…`.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// `program`, to be started in these namespaces. It is killed if the calling thread ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command.args([
            "--pdeathsig",
            "KILL",
            "nsenter",
            "--target",
            &self.pid.to_string(),
        ]);
        command.args(["--net", "--mount"]);
        if self.pids_apart {
            command.arg("--pid");
        }
        command.arg("--").arg(program);
        command
            .env_remove("SSL_CERT_FILE")
            .env_remove("REQUESTS_CA_BUNDLE");
        command
            .env_remove("CURL_CA_BUNDLE")
            .env_remove("NODE_EXTRA_CA_CERTS");
        for proxy in ["http_proxy", "https_proxy", "all_proxy", "no_proxy"] {
            command.env_remove(proxy).env_remove(proxy.to_uppercase());
        }
        command
    }

    /// Runs a shell script in the namespaces.
    ///
    /// # Errors
    /// It failed; says what it printed.
    pub fn script(&self, text: &str) -> Result<()> {
        let output = self
            .command("sh")
            .args(["-ec", text])
            .stdin(Stdio::null())
            .output()?;
        if !output.status.success() {
            bail!(
                "{}\nin\n{text}",
                String::from_utf8_lossy(&output.stderr).trim()
            );
        }
        Ok(())
    }

    /// Runs `work` on a new thread in the network namespace; sockets and threads it makes stay there.
    ///
    /// # Errors
    /// The namespace could not be entered.
    pub fn enter<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> Result<T> {
        let namespace = self.namespace()?;
        let thread = std::thread::spawn(move || -> Result<T> {
            move_into_link_name_space(namespace.as_fd(), Some(LinkNameSpaceType::Network))?;
            Ok(work())
        });
        match thread.join() {
            Ok(result) => result,
            Err(_) => bail!("the thread in the namespace panicked"),
        }
    }

    fn namespace(&self) -> Result<File> {
        let path = format!("/proc/{}/ns/net", self.pid);
        File::open(&path).with_context(|| format!("cannot open {path}"))
    }

    /// Inode of the network namespace.
    ///
    /// # Errors
    /// The holder is gone.
    pub fn inode(&self) -> Result<u64> {
        Ok(self.namespace()?.metadata()?.ino())
    }

    /// Whether a TCP socket listens on `port`.
    pub fn listens(&self, port: u16) -> bool {
        let wanted = format!(":{port:04X}");
        ["tcp", "tcp6"].iter().any(|table| {
            let path = format!("/proc/{}/net/{table}", self.pid);
            std::fs::read_to_string(path).is_ok_and(|text| {
                text.lines().any(|line| {
                    let mut words = line.split_whitespace().skip(1);
                    let here = words.next().is_some_and(|local| local.ends_with(&wanted));
                    here && words.nth(1) == Some("0A")
                })
            })
        })
    }

    /// Bytes and packets that came in on an interface.
    ///
    /// # Errors
    /// There is no such interface.
    pub fn received(&self, interface: &str) -> Result<Received> {
        let path = format!("/proc/{}/net/dev", self.pid);
        let table = std::fs::read_to_string(&path)?;
        let name = format!("{interface}:");
        let line = table
            .lines()
            .map(str::trim_start)
            .find_map(|line| line.strip_prefix(&name));
        let mut numbers = line
            .with_context(|| format!("no interface {interface} in {path}"))?
            .split_whitespace()
            .map(|number| number.parse().unwrap_or(0));
        Ok(Received {
            bytes: numbers.next().unwrap_or(0),
            packets: numbers.next().unwrap_or(0),
        })
    }
}

/// What an interface received since it was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Received {
    /// Bytes of frames.
    pub bytes: u64,
    /// Frames.
    pub packets: u64,
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Kills every process in the network namespaces with these inodes, and waits until they are gone.
pub fn kill_all(inodes: &[u64]) {
    let _ = crate::eventually(Duration::from_secs(5), || {
        let found = inhabitants(inodes);
        for pid in &found {
            if let Some(pid) = rustix::process::Pid::from_raw(pid.cast_signed()) {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
        found.is_empty().then_some(())
    });
}

/// Processes in these network namespaces; those already dead and not yet reaped do not count.
pub fn inhabitants(inodes: &[u64]) -> Vec<u32> {
    let own = std::process::id();
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry
            .file_name()
            .to_str()
            .and_then(|name| name.parse().ok())
        else {
            continue;
        };
        let namespace: PathBuf = entry.path().join("ns/net");
        let inside = std::fs::metadata(namespace).is_ok_and(|m| inodes.contains(&m.ino()));
        if inside && pid != own {
            found.push(pid);
        }
    }
    found
}
