//! The agent's configuration: file → validated.
mod read;
#[cfg(test)]
mod tests;
mod vault;

pub use vault::{Address, Kv, Vault};

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::Duration;
use tollgate_policy::Mode;

/// Everything the agent is told at start. Read from YAML; unknown keys are faults with the nearest known one.
#[derive(Debug, Clone)]
pub struct Config {
    /// Port of the data plane's listeners on 127.0.0.1 and ::1; 0 lets the kernel choose (private agents only).
    pub port: u16,
    /// Policy files and directories (`*.yaml` in them, sorted).
    pub policy: Vec<PathBuf>,
    /// Where `file:NAME` secrets and CAs are.
    pub secrets_dir: PathBuf,
    /// Where `vault:PATH#FIELD` secrets are.
    pub vault: Option<Vault>,
    /// CA key, decisions.
    pub state_dir: PathBuf,
    /// Admin socket, CA bundle.
    pub runtime_dir: PathBuf,
    /// Directory in a bpffs for pins; the bpffs is mounted if absent.
    pub pin_dir: PathBuf,
    /// cgroup2 mount; found if not given.
    pub cgroup_root: Option<PathBuf>,
    /// Who is asked for containers that policy names.
    pub container_engines: Vec<ContainerEngine>,
    /// How often the agent looks whether its programs are in force, and puts back what was taken away.
    pub fence_check: Duration,
    /// For the whole agent; `Observe` overrides `Enforce` grants.
    pub mode: Mode,
    /// Resolvers of the agent, which looks names up for itself and for governed workloads; from `/etc/resolv.conf` if empty.
    pub dns_servers: Vec<IpAddr>,
    /// Data plane threads; one per core unless given.
    pub workers: usize,
    /// Bounds on everything off the wire.
    pub limits: Limits,
    /// Whether refusals of units are told to systemd's journal, where there is one, beside the units' own lines.
    pub journal: bool,
    /// Bytes after which a decisions segment is closed, and segments kept.
    pub audit: AuditLimits,
    /// What else `tollgate run` keeps from commands: the directories of the configured agent, where this one has others. Not read.
    pub hidden: Vec<PathBuf>,
}

/// One that knows containers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ContainerEngine {
    /// `cri:PATH`: a socket of a runtime that speaks Kubernetes' CRI.
    Cri(PathBuf),
    /// A socket of an engine with Docker's API, or a directory in which a runtime keeps `ID/config.json`.
    Path(PathBuf),
}

impl ContainerEngine {
    /// Where it is.
    #[must_use]
    pub fn path(&self) -> &Path {
        match self {
            Self::Cri(path) | Self::Path(path) => path,
        }
    }
}

/// Where the configuration is read from unless it is named.
pub const DEFAULT_PATH: &str = "/etc/tollgate/config.yaml";
/// Bytes of a configuration file at most.
const FILE_BYTES: u64 = 1 << 20;

impl Default for Config {
    fn default() -> Self {
        Self {
            port: 15400,
            policy: vec!["/etc/tollgate/policy.d".into()],
            secrets_dir: "/etc/tollgate/secrets".into(),
            vault: None,
            state_dir: "/var/lib/tollgate".into(),
            runtime_dir: "/run/tollgate".into(),
            pin_dir: "/sys/fs/bpf/tollgate".into(),
            cgroup_root: None,
            container_engines: vec![
                ContainerEngine::Path("/run/docker.sock".into()),
                ContainerEngine::Path("/run/podman/podman.sock".into()),
                ContainerEngine::Cri("/run/containerd/containerd.sock".into()),
                ContainerEngine::Cri("/run/crio/crio.sock".into()),
                ContainerEngine::Path(
                    "/run/containerd/io.containerd.runtime.v2.task/k8s.io".into(),
                ),
                ContainerEngine::Path("/run/containers/storage/overlay-containers".into()),
            ],
            fence_check: Duration::from_secs(1),
            mode: Mode::Enforce,
            dns_servers: Vec::new(),
            workers: std::thread::available_parallelism().map_or(1, usize::from),
            limits: Limits::default(),
            journal: true,
            audit: AuditLimits::default(),
            hidden: Vec::new(),
        }
    }
}

/// Why there is no configuration.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The file cannot be read.
    #[error("configuration {path}: {source}: {}", unread(source))]
    Unreadable {
        /// Path.
        path: String,
        /// The system's word.
        source: std::io::Error,
    },
    /// The file is wrong.
    #[error("{0}the configuration is refused whole: mend what is marked above")]
    Faults(tollgate_policy::syntax::Faults),
}

impl Config {
    /// Reads `path`; without one, [`DEFAULT_PATH`] if it is there, else the defaults.
    ///
    /// # Errors
    /// The file cannot be read, or every fault in it.
    pub fn load(path: Option<&Path>) -> Result<Self, Error> {
        let default = Path::new(DEFAULT_PATH);
        let path = match path {
            Some(path) => path,
            None if default.exists() => default,
            None => return Ok(Self::default()),
        };
        let name = path.display().to_string();
        let text = read_bounded(path).map_err(|source| Error::Unreadable {
            path: name.clone(),
            source,
        })?;
        Self::parse(name, text).map_err(Error::Faults)
    }

    /// Reads a configuration from `text`; `name` is what to call it in faults.
    ///
    /// # Errors
    /// Every fault, with its place.
    pub fn parse(name: String, text: String) -> Result<Self, tollgate_policy::syntax::Faults> {
        read::parse(&tollgate_policy::syntax::Source { name, text })
    }
}

/// What to do where it cannot be read for this reason.
fn unread(source: &std::io::Error) -> &'static str {
    match source.kind() {
        std::io::ErrorKind::InvalidData => "a configuration is text, in UTF-8",
        std::io::ErrorKind::Other => "is it the right file?",
        _ => "name one with --config, or leave it out to run on defaults",
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(FILE_BYTES + 1)
        .read_to_string(&mut text)?;
    if text.len() as u64 > FILE_BYTES {
        return Err(std::io::Error::other(format!(
            "larger than {FILE_BYTES} bytes"
        )));
    }
    Ok(text)
}

/// Bounds on what a client or an upstream may make the agent hold or wait for.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Connections per worker.
    pub connections: usize,
    /// Bytes of a request head.
    pub head_bytes: usize,
    /// Header fields of a request.
    pub head_fields: usize,
    /// Bytes of responses that are held whole because values have to be taken out of them, in all workers together.
    pub held_bytes: u64,
    /// From accept to the first complete TLS handshake.
    pub handshake: Duration,
    /// From first byte of a request head to its last.
    pub head: Duration,
    /// Between two reads of a request body.
    pub body_idle: Duration,
    /// Resolve, connect and handshake to the upstream.
    pub connect: Duration,
    /// From the request sent to the response's head.
    pub response_head: Duration,
    /// Between two reads of a response body.
    pub response_idle: Duration,
    /// Nothing in either direction of a connection that is not inspected.
    pub uninspected_idle: Duration,
    /// A connection with no request.
    pub idle: Duration,
    /// Grace given to requests under way when the agent stops.
    pub drain: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            head_bytes: 64 * 1024,
            head_fields: 100,
            held_bytes: 256 << 20,
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            body_idle: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            response_head: Duration::from_secs(600),
            response_idle: Duration::from_secs(600),
            uninspected_idle: Duration::from_secs(3600),
            idle: Duration::from_secs(90),
            drain: Duration::from_secs(10),
        }
    }
}

/// How much of the decision log is kept.
#[derive(Debug, Clone)]
pub struct AuditLimits {
    /// A segment is closed at this size.
    pub segment_bytes: u64,
    /// Oldest segments beyond this many are deleted.
    pub segments: usize,
}

impl Default for AuditLimits {
    fn default() -> Self {
        Self {
            segment_bytes: 64 << 20,
            segments: 16,
        }
    }
}
