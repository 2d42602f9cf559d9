//! Programs that keep running and are spoken to line by line.
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::io::{BufRead as _, BufReader, Read, Write as _};
use std::process::{Child, ChildStdin, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::Duration;

/// A running program whose output is read as it comes.
#[derive(Debug)]
pub struct Running {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Receiver<String>,
    stderr: Receiver<String>,
}

impl Running {
    /// Starts it.
    ///
    /// # Errors
    /// It cannot be started.
    pub fn start(mut command: Command) -> Result<Self> {
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {command:?}"))?;
        let stdin = child.stdin.take();
        let stdout = reader(child.stdout.take());
        let stderr = reader(child.stderr.take());
        Ok(Self {
            child,
            stdin,
            stdout,
            stderr,
        })
    }

    /// Sends a line.
    ///
    /// # Errors
    /// The program has ended.
    pub fn tell(&mut self, line: &str) -> Result<()> {
        let stdin = self.stdin.as_mut().context("its input is closed")?;
        writeln!(stdin, "{line}")
            .and_then(|()| stdin.flush())
            .with_context(|| self.complaint())
    }

    /// The next line it prints.
    ///
    /// # Errors
    /// None came within `limit`, or the program has ended; says what it complained of.
    pub fn line(&mut self, limit: Duration) -> Result<String> {
        match self.stdout.recv_timeout(limit) {
            Ok(line) => Ok(line),
            Err(RecvTimeoutError::Timeout) => bail!("silent for {limit:?}; {}", self.complaint()),
            Err(RecvTimeoutError::Disconnected) => bail!("it ended; {}", self.complaint()),
        }
    }

    /// Sends a line and reads the JSON it answers with, at most 30 seconds later.
    ///
    /// # Errors
    /// As [`Running::tell`] and [`Running::line`]; or the answer is no JSON.
    pub fn ask(&mut self, line: &str) -> Result<Value> {
        self.tell(line)?;
        let answer = self.line(Duration::from_secs(30))?;
        serde_json::from_str(&answer).with_context(|| format!("not JSON: {answer}"))
    }

    /// Whether a line is there already.
    pub fn has_line(&mut self) -> Option<String> {
        self.stdout.try_recv().ok()
    }

    /// Closes its input and waits until it ends, at most `limit`.
    ///
    /// # Errors
    /// It did not end.
    pub fn finish(&mut self, limit: Duration) -> Result<ExitStatus> {
        drop(self.stdin.take());
        self.wait(limit)
    }

    /// Waits until it ends, at most `limit`.
    ///
    /// # Errors
    /// It did not end.
    pub fn wait(&mut self, limit: Duration) -> Result<ExitStatus> {
        crate::eventually(limit, || self.child.try_wait().ok().flatten())
            .with_context(|| format!("still running after {limit:?}; {}", self.complaint()))
    }

    /// Whether it has ended; what it wrote stays to be asked for.
    pub fn has_ended(&mut self) -> bool {
        self.child.try_wait().is_ok_and(|ended| ended.is_some())
    }

    /// Sends a signal to the program.
    ///
    /// # Errors
    /// It has ended.
    pub fn signal(&self, signal: rustix::process::Signal) -> Result<()> {
        let pid = rustix::process::Pid::from_child(&self.child);
        Ok(rustix::process::kill_process(pid, signal)?)
    }

    /// Its pid.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to standard error since this was last asked.
    pub fn complaint(&self) -> String {
        let lines: Vec<_> = self.stderr.try_iter().collect();
        if lines.is_empty() {
            "no complaint".to_owned()
        } else {
            lines.join("\n")
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn reader(stream: Option<impl Read + Send + 'static>) -> Receiver<String> {
    let (sender, receiver) = channel();
    if let Some(stream) = stream {
        std::thread::spawn(move || {
            for line in BufReader::new(stream).split(b'\n') {
                let Ok(line) = line else { return };
                if sender
                    .send(String::from_utf8_lossy(&line).into_owned())
                    .is_err()
                {
                    return;
                }
            }
        });
    }
    receiver
}
