//! The real agent, started the way a unit starts it.
use crate::World;
use crate::client::Running;
use anyhow::{Context as _, Result, bail};
use rustix::process::Signal;
use serde_json::Value;
use std::ffi::OsStr;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _};
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

/// Port of the agent's listeners; the client side's network is its own, so any is free.
const PORT: u16 = 15001;
/// A start that takes longer has failed.
const START: Duration = Duration::from_secs(20);

/// The agent's files, and the agent while it runs.
#[derive(Debug)]
pub struct Agent {
    program: PathBuf,
    directory: PathBuf,
    running: Option<Running>,
}

/// The `tollgate` program as `cargo xtask build` leaves it; `TOLLGATE_BIN` names another.
///
/// # Errors
/// It is not built.
pub fn program() -> Result<PathBuf> {
    if let Some(named) = std::env::var_os("TOLLGATE_BIN") {
        return Ok(named.into());
    }
    // This program is in target/PROFILE or target/PROFILE/deps.
    let own = std::env::current_exe()?;
    let beside = own
        .ancestors()
        .skip(1)
        .take(2)
        .map(|directory| directory.join("tollgate"));
    beside
        .into_iter()
        .find(|path| path.is_file())
        .context("tollgate is not built: run `cargo xtask build`")
}

impl Agent {
    /// Writes configuration, policy and the servers' CA into the world; nothing runs yet.
    ///
    /// The policy can name the secret `file:orders-bot` and the CA `file:server-ca.pem`.
    ///
    /// # Errors
    /// The program is not built, or a file cannot be written.
    pub fn new(world: &World, policy: &str) -> Result<Self> {
        let directory = world.directory().join("agent");
        // Governed programs of other users pass through here to the CA bundle; secrets are not theirs.
        for (name, mode) in [("", 0o755), ("policy.d", 0o755), ("secrets", 0o700)] {
            let path = directory.join(name);
            std::fs::DirBuilder::new()
                .recursive(true)
                .mode(mode)
                .create(path)?;
        }
        let agent = Self {
            program: program()?,
            directory,
            running: None,
        };
        agent.write_policy(policy)?;
        agent.write_secret("server-ca.pem", &world.ca.pem())?;
        agent.write_secret("orders-bot", "first-orders-bot-key")?;
        std::fs::write(agent.config(), agent.settings(world))?;
        Ok(agent)
    }

    fn settings(&self, world: &World) -> String {
        let at = self.directory.display();
        format!(
            "port: {PORT}\npolicy: [{at}/policy.d]\nsecrets_dir: {at}/secrets\nstate_dir: {at}/state\n\
             runtime_dir: {at}/run\npin_dir: {}\ndns_servers: [{}]\nworkers: 2\n",
            world.pins().display(),
            world.resolver(),
        )
    }

    /// The configuration file.
    pub fn config(&self) -> PathBuf {
        self.directory.join("config.yaml")
    }

    /// The policy file.
    pub fn policy(&self) -> PathBuf {
        self.directory.join("policy.d/policy.yaml")
    }

    /// The program.
    pub fn program(&self) -> &Path {
        &self.program
    }

    /// Replaces the policy file; the agent has to be told with `tollgate reload`.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_policy(&self, text: &str) -> Result<()> {
        Ok(std::fs::write(self.policy(), text)?)
    }

    /// Replaces a secret whole, mode 0600.
    ///
    /// # Errors
    /// It cannot be written.
    pub fn write_secret(&self, name: &str, value: &str) -> Result<()> {
        let path = self.directory.join("secrets").join(name);
        let new = path.with_extension("new");
        let mut options = std::fs::OpenOptions::new();
        options.write(true).create(true).truncate(true).mode(0o600);
        options.open(&new)?.write_all(value.as_bytes())?;
        Ok(std::fs::rename(new, path)?)
    }

    /// Starts the agent and waits until it says that it is ready (`sd_notify`).
    ///
    /// # Errors
    /// It ended or was not ready in time; says what it printed.
    pub fn start(&mut self, world: &World) -> Result<()> {
        let socket = self.directory.join("notify");
        let _ = std::fs::remove_file(&socket);
        let notified = UnixDatagram::bind(&socket)?;
        notified.set_nonblocking(true)?;
        let mut command = world.client(&self.program);
        command
            .arg("agent")
            .arg("--config")
            .arg(self.config())
            .env("NOTIFY_SOCKET", &socket);
        command.env("RUST_BACKTRACE", "1");
        let mut running = Running::start(command)?;
        let ready = crate::eventually(START, || {
            let mut message = [0; 4096];
            let length = notified.recv(&mut message).unwrap_or(0);
            let text = String::from_utf8_lossy(message.get(..length).unwrap_or_default());
            if text.lines().any(|line| line == "READY=1") {
                return Some(true);
            }
            running.has_ended().then_some(false)
        });
        if ready != Some(true) {
            // Its last words may still be on their way through the pipe.
            std::thread::sleep(Duration::from_millis(50));
            bail!("the agent is not ready: {}", running.complaint());
        }
        self.running = Some(running);
        Ok(())
    }

    /// Kills it without warning (SIGKILL) and waits until it is gone.
    ///
    /// # Errors
    /// It does not run.
    pub fn kill(&mut self) -> Result<()> {
        self.end(Signal::KILL)
    }

    /// Stops it as a service manager does (SIGTERM).
    ///
    /// # Errors
    /// It does not run, or did not end within 20 seconds.
    pub fn stop(&mut self) -> Result<()> {
        self.end(Signal::TERM)
    }

    fn end(&mut self, signal: Signal) -> Result<()> {
        let mut running = self.running.take().context("the agent does not run")?;
        running.signal(signal)?;
        running.wait(START)?;
        Ok(())
    }

    /// Pid of the running agent.
    ///
    /// # Errors
    /// It does not run.
    pub fn pid(&self) -> Result<u32> {
        Ok(self
            .running
            .as_ref()
            .context("the agent does not run")?
            .pid())
    }

    /// What the agent logged since this was last asked.
    pub fn log(&self) -> String {
        self.running
            .as_ref()
            .map(Running::complaint)
            .unwrap_or_default()
    }

    /// `tollgate VERB …` on the client side, talking to this agent.
    pub fn verb(&self, world: &World, verb: &str) -> Command {
        let mut command = world.client(&self.program);
        command
            .arg(verb)
            .env("TOLLGATE_CONFIG", self.config())
            .env("NO_COLOR", "1");
        command
    }

    /// `tollgate run --user nobody --workload W -- PROGRAM`, to which arguments may be added. As nobody, because a
    /// test is called by root: what a program without any rights cannot get, it was not given by root's.
    pub fn governed(&self, world: &World, workload: &str, program: impl AsRef<OsStr>) -> Command {
        let mut command = self.verb(world, "run");
        command
            .args(["--user", "nobody", "--workload", workload, "--"])
            .arg(program);
        command
    }

    /// Runs a verb to its end.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn output(&self, world: &World, verb: &str, arguments: &[&str]) -> Result<Output> {
        let mut command = self.verb(world, verb);
        Ok(command.args(arguments).stdin(Stdio::null()).output()?)
    }

    /// Every decision in the log.
    ///
    /// # Errors
    /// `tollgate decisions` failed, or printed what is not JSON.
    pub fn decisions(&self, world: &World) -> Result<Vec<Value>> {
        let output = self.output(world, "decisions", &["-o", "jsonl", "--limit", "10000"])?;
        if !output.status.success() {
            bail!("decisions: {}", String::from_utf8_lossy(&output.stderr));
        }
        let text = String::from_utf8(output.stdout)?;
        text.lines()
            .map(|line| Ok(serde_json::from_str(line)?))
            .collect()
    }
}

impl Drop for Agent {
    fn drop(&mut self) {
        if self.running.is_some() {
            let _ = self.kill();
        }
    }
}
