//! The agent's configuration: file → validated.
use std::net::IpAddr;
use std::path::PathBuf;
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
    /// CA key, decisions.
    pub state_dir: PathBuf,
    /// Admin socket, CA bundle.
    pub runtime_dir: PathBuf,
    /// Directory in a bpffs for pins; the bpffs is mounted if absent.
    pub pin_dir: PathBuf,
    /// cgroup2 mount; found if not given.
    pub cgroup_root: Option<PathBuf>,
    /// For the whole agent; `Observe` overrides `Enforce` grants.
    pub mode: Mode,
    /// Resolvers of the agent and of governed workloads; from `/etc/resolv.conf` if empty.
    pub dns_servers: Vec<IpAddr>,
    /// Data plane threads; one per core unless given.
    pub workers: usize,
    /// Bounds on everything off the wire.
    pub limits: Limits,
    /// Bytes after which a decisions segment is closed, and segments kept.
    pub audit: AuditLimits,
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
            handshake: Duration::from_secs(10),
            head: Duration::from_secs(15),
            body_idle: Duration::from_secs(60),
            connect: Duration::from_secs(10),
            response_head: Duration::from_secs(600),
            response_idle: Duration::from_secs(600),
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
        Self { segment_bytes: 64 << 20, segments: 16 }
    }
}
