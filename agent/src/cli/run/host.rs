//! The agent that governs a run: the one that runs already, or one for this run alone.
use super::super::Context;
use super::super::agent::private_pin_dir;
use super::Args;
use crate::daemon::PRIVATE_PREFIX;
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Enrolled, Reply, Request};
use crate::kernel::{self, Fence, Options};
use anyhow::Context as _;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// For an agent with nothing left to govern to be gone.
const GONE: Duration = Duration::from_secs(10);

/// The agent that governs a run.
#[derive(Debug)]
pub(super) enum Host {
    /// It ran before, and stays.
    Running {
        socket: PathBuf,
    },
    Private(Private),
}

/// An agent for one run. It ends when its standard input does and nothing it governs is left.
#[derive(Debug)]
pub(super) struct Private {
    child: Child,
    directory: PathBuf,
    socket: PathBuf,
    fence: Options,
}

impl Host {
    /// Starts a private agent and waits until it is ready. `None`: it did not come up, and said why.
    pub(super) fn start(context: &Context, args: &Args) -> anyhow::Result<Option<Self>> {
        let name = format!("{PRIVATE_PREFIX}{}", uuid::Uuid::now_v7().simple());
        let directory = Path::new("/run").join(&name);
        // Workloads pass through to the trust files, and cannot list what else is there.
        let made = std::fs::DirBuilder::new().mode(0o711).create(&directory);
        made.with_context(|| format!("cannot make {}", directory.display()))?;
        let config = context.config()?;
        let fence = Options {
            pin_dir: private_pin_dir(&config.pin_dir, &name),
            cgroup_root: config.cgroup_root,
            counts: true,
        };
        let mut child = spawn(context, args, &directory)?;
        let mut line = String::new();
        if let Some(out) = child.stdout.take() {
            BufReader::new(out)
                .read_line(&mut line)
                .context("the private agent's output")?;
        }
        let socket = client::socket_path(&directory.join("run"));
        if line.trim() == "ready" {
            return Ok(Some(Self::Private(Private {
                child,
                directory,
                socket,
                fence,
            })));
        }
        child.wait().context("the private agent")?;
        let _ = std::fs::remove_dir_all(&directory);
        Ok(None)
    }

    pub(super) fn socket(&self) -> &Path {
        match self {
            Self::Running { socket } => socket,
            Self::Private(private) => &private.socket,
        }
    }

    /// Ends the run; returns how many of its processes are left, where the agent can tell.
    pub(super) fn release(&self, enrolled: &Enrolled) -> Option<usize> {
        let request = || Request::Release {
            cgroup_id: enrolled.cgroup_id,
        };
        let mut left = None;
        // A process that ended an instant ago may still be listed.
        for _ in 0..5 {
            match client::ask_one(self.socket(), request()) {
                Ok(Reply::Released { left: 0 }) => return Some(0),
                Ok(Reply::Released { left: some }) => left = Some(some),
                Ok(_) => return None,
                Err(_) => {
                    // Nobody else would remove it until an agent starts; one with processes in it cannot be.
                    let _ = remove_cgroup(&enrolled.directory);
                    return None;
                }
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        left
    }

    /// Lets a private agent go. With processes left it stays for as long as they do.
    pub(super) fn end(self, enrolled: Option<&Enrolled>, left: Option<usize>) {
        if let Self::Private(private) = self {
            private.end(enrolled.map(|e| e.directory.as_path()), left);
        }
    }
}

fn spawn(context: &Context, args: &Args, directory: &Path) -> anyhow::Result<Child> {
    let mut command = Command::new("/proc/self/exe");
    command.arg("agent").arg("--private").arg(directory);
    if let Some(config) = &context.config {
        command.arg("--config").arg(config);
    }
    for policy in &args.policy {
        command.arg("--policy").arg(policy);
    }
    if let Some(secrets) = &args.secrets_dir {
        command.arg("--secrets-dir").arg(secrets);
    }
    if args.observe {
        command.arg("--observe");
    }
    // Its own process group: the terminal's keys are for the command.
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .process_group(0);
    command.spawn().context("cannot start a private agent")
}

impl Private {
    fn end(mut self, cgroup: Option<&Path>, left: Option<usize>) {
        drop(self.child.stdin.take());
        if left.is_some_and(|left| left > 0) {
            return tell!(
                "tollgate: its agent (pid {}) ends when they do",
                self.child.id()
            );
        }
        let patience = Instant::now();
        while patience.elapsed() < GONE {
            match self.child.try_wait() {
                Ok(Some(status)) if status.success() => return,
                Ok(None) => std::thread::sleep(Duration::from_millis(10)),
                Ok(Some(_)) | Err(_) => return self.clean_up(cgroup),
            }
        }
        tell!(
            "tollgate: the private agent (pid {}) does not end; its fence stays up",
            self.child.id()
        );
    }

    /// The agent was ended by somebody: its fence refuses everything. It goes once nobody is behind it, and not before.
    fn clean_up(&self, cgroup: Option<&Path>) {
        let pins = self.fence.pin_dir.display();
        if let Some(cgroup) = cgroup
            && let Err(e) = remove_cgroup(cgroup)
            && e.kind() != std::io::ErrorKind::NotFound
        {
            tell!(
                "tollgate: the private agent was ended, and processes of the command still run: they can reach \
                 nothing. Once they ended, remove {} and {pins}",
                cgroup.display()
            );
            return;
        }
        match Fence::open(&self.fence).and_then(lift) {
            Ok(0) => {}
            Ok(left) => tell!(
                "tollgate: the private agent was ended, and processes that have left the command's cgroup still run ({left}): \
                 they can reach nothing. Once they ended, remove {pins}"
            ),
            Err(e) => tell!(
                "tollgate: the private agent was ended and its fence stays up: {e}: remove {pins}"
            ),
        }
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// Takes the fence down, unless there is somebody behind it: how many.
fn lift(fence: Fence) -> Result<usize, kernel::Error> {
    match fence.strays() {
        0 => fence.lift().map(|()| 0),
        left => Ok(left),
    }
}

/// Removes a run's cgroup, and the directory of all runs if it was the last.
fn remove_cgroup(directory: &Path) -> std::io::Result<()> {
    std::fs::remove_dir(directory)?;
    if let Some(runs) = directory.parent() {
        let _ = std::fs::remove_dir(runs);
    }
    Ok(())
}
