//! The caller's side of the admin socket: blocking, one request per connection.
use super::wire::{Envelope, Fault, REPLY_BYTES, Reply, Request, VERSION};
use rustix::net::sockopt::socket_peercred;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no answer.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// Nobody listens.
    #[error(
        "no agent answers on {path}: {source}: start it with `systemctl start tollgate` or `tollgate agent`"
    )]
    NoAgent {
        /// The socket.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The socket is there and this user may not use it.
    #[error(
        "the agent's socket {path} is for root and the agent's own user only: run this with sudo; a governed process may not ask it at all"
    )]
    Forbidden {
        /// The socket.
        path: String,
    },
    /// The agent hung up or sent what is no reply.
    #[error("the agent's answer broke off: {0}: see its log (`journalctl -u tollgate`)")]
    Broken(String),
    /// It took the request and says nothing.
    #[error(
        "the agent on {path} did not answer within {} s: it is stopped, or busy with other callers: see its log (`journalctl -u tollgate`), or end it with SIGKILL and start it anew",
        .patience.as_secs()
    )]
    Silent {
        /// The socket.
        path: String,
        /// What was waited.
        patience: Duration,
    },
    /// It would take the request, and is not let run.
    #[error(
        "the agent on {path}, process {process}, is stopped (SIGSTOP): have it go on with `kill -CONT {process}`"
    )]
    Stopped {
        /// The socket.
        path: String,
        /// The agent.
        process: i32,
    },
    /// The agent could not serve the request.
    #[error("{}", .0.message)]
    Fault(Fault),
}

/// Where the agent of a runtime directory listens.
pub fn socket_path(runtime_dir: &Path) -> PathBuf {
    runtime_dir.join("admin.sock")
}

/// An answer being read, line by line; ends after its final reply.
#[derive(Debug)]
pub struct Answer {
    lines: BufReader<UnixStream>,
    socket: PathBuf,
    patience: Option<Duration>,
    done: bool,
}

/// Sends `request` to the agent at `socket`.
///
/// # Errors
/// See [`Error`].
pub fn ask(socket: &Path, request: Request) -> Result<Answer, Error> {
    let follows = matches!(request, Request::Decisions { follow: true, .. });
    // A reload reads files and compiles; a minute is far beyond any real one.
    let patience = (!follows).then_some(Duration::from_secs(60));
    ask_within(socket, request, patience)
}

fn ask_within(
    socket: &Path,
    request: Request,
    patience: Option<Duration>,
) -> Result<Answer, Error> {
    let path = socket.display().to_string();
    let mut stream = UnixStream::connect(socket).map_err(|source| match source.kind() {
        std::io::ErrorKind::PermissionDenied => Error::Forbidden { path },
        _ => Error::NoAgent { path, source },
    })?;
    if let Some(process) = stopped(&stream) {
        let path = socket.display().to_string();
        return Err(Error::Stopped { path, process });
    }
    let mut line = serde_json::to_vec(&Envelope {
        v: VERSION,
        request,
    })
    .map_err(|e| Error::Broken(e.to_string()))?;
    line.push(b'\n');
    stream
        .set_read_timeout(patience)
        .and_then(|()| stream.set_write_timeout(Some(Duration::from_secs(10))))
        .and_then(|()| stream.write_all(&line))
        .map_err(|e| Error::Broken(e.to_string()))?;
    Ok(Answer {
        lines: BufReader::new(stream),
        socket: socket.to_owned(),
        patience,
        done: false,
    })
}

/// The process at the other end, if it is stopped.
fn stopped(stream: &UnixStream) -> Option<i32> {
    let agent = socket_peercred(stream).ok()?.pid.as_raw_nonzero().get();
    let status = std::fs::read_to_string(format!("/proc/{agent}/status")).ok()?;
    status.contains("\nState:\tT").then_some(agent)
}

/// Sends `request` and returns its only reply.
///
/// # Errors
/// See [`Error`].
pub fn ask_one(socket: &Path, request: Request) -> Result<Reply, Error> {
    ask(socket, request)?
        .next()
        .unwrap_or_else(|| Err(Error::Broken("no reply".to_owned())))
}

impl Answer {
    fn failed(&self, error: &std::io::Error) -> Error {
        match self.patience {
            Some(patience) if error.kind() == std::io::ErrorKind::WouldBlock => Error::Silent {
                path: self.socket.display().to_string(),
                patience,
            },
            _ => Error::Broken(error.to_string()),
        }
    }

    fn read_reply(&mut self) -> Result<Reply, Error> {
        let mut line = Vec::new();
        let read = self
            .lines
            .by_ref()
            .take(REPLY_BYTES)
            .read_until(b'\n', &mut line);
        match read {
            Err(e) => Err(self.failed(&e)),
            Ok(_) if line.last() != Some(&b'\n') => {
                Err(Error::Broken("connection closed in mid-reply".to_owned()))
            }
            Ok(_) => serde_json::from_slice(&line).map_err(|e| Error::Broken(e.to_string())),
        }
    }
}

impl Iterator for Answer {
    type Item = Result<Reply, Error>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        match self.read_reply() {
            Ok(Reply::End) => {
                self.done = true;
                None
            }
            Ok(Reply::Fault(fault)) => {
                self.done = true;
                Some(Err(Error::Fault(fault)))
            }
            Ok(reply) => {
                self.done = reply.is_final();
                Some(Ok(reply))
            }
            Err(e) => {
                self.done = true;
                Some(Err(e))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// One that is stopped has its socket still, and the kernel takes callers for it.
    #[test]
    fn who_is_not_answered_is_told_so() {
        let folder = tempfile::tempdir().unwrap();
        let socket = socket_path(folder.path());
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        let patience = Some(Duration::from_millis(50));
        let mut answer = ask_within(&socket, Request::Status, patience).unwrap();
        let error = answer.next().unwrap().unwrap_err();
        assert!(matches!(error, Error::Silent { .. }), "{error}");
        assert!(answer.next().is_none());
    }
}
