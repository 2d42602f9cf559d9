//! Decisions on record: one per request and per kernel refusal.
use crate::kernel::Process;
use std::sync::Arc;

/// `policy{version,hash}` of a record.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct PolicyStamp {
    /// The document's version.
    pub version: u32,
    /// SHA-256 of the policy.
    pub hash: String,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub enum Verdict {
    /// Passed.
    #[serde(rename = "ALLOW")]
    Allow,
    /// Refused.
    #[serde(rename = "DENY")]
    Deny,
    /// Passed, and would have been refused in enforce mode.
    #[serde(rename = "WOULD-DENY")]
    WouldDeny,
    /// Refused for a limit.
    #[serde(rename = "LIMIT")]
    Limit,
    /// Failed for another reason: upstream, protocol, agent.
    #[serde(rename = "ERROR")]
    Error,
}

/// How far the agent could see into what passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coverage {
    /// Method, path, headers; the body where a rule asked.
    Request,
    /// Only that a connection was made.
    Connection,
    /// Refused by the kernel before a byte was sent.
    Kernel,
}

/// One decision. Values of secrets, tokens, cookies, query values and bodies have no field here.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Record {
    /// Unique, sortable by time.
    pub id: uuid::Uuid,
    /// When the request was complete enough to decide.
    pub time: jiff::Timestamp,
    /// What became of it.
    pub verdict: Verdict,
    /// Mode the verdict was taken under.
    pub mode: tollgate_policy::Mode,
    /// The workload the kernel recognised; none for a connection that no hook steered.
    pub workload: Option<Arc<str>>,
    /// Identity proven.
    pub identity: Option<Arc<str>>,
    /// Who called.
    pub process: Option<Arc<Process>>,
    /// What was asked, as far as it was understood.
    pub request: Option<RequestRecord>,
    /// What was answered.
    pub response: Option<ResponseRecord>,
    /// The rule that decided.
    pub rule: Option<Arc<str>>,
    /// Why it did not pass.
    pub reason: Option<ReasonRecord>,
    /// The policy that decided.
    pub policy: Option<Arc<PolicyStamp>>,
    /// Name of the credential put in.
    pub credential: Option<Arc<str>>,
    /// Names of headers and parameters taken out.
    pub stripped: Vec<String>,
    /// Names of headers put in.
    pub injected: Vec<String>,
    /// Budget that applied.
    pub budget: Option<String>,
    /// Where it went.
    pub upstream: Option<UpstreamRecord>,
    /// How far the agent could see.
    pub coverage: Coverage,
    /// How long it took.
    pub timing: Timing,
}

/// What was asked.
#[derive(Debug, Clone, Default, serde::Serialize, serde::Deserialize)]
pub struct RequestRecord {
    /// Method; empty where none was read (a kernel refusal, garbage).
    pub method: String,
    /// `https`, `http`, `tcp`, `udp`, ….
    pub scheme: String,
    /// Host, or the address where no host was read.
    pub host: String,
    /// Port.
    pub port: u16,
    /// Canonical path, at most 2 KiB.
    pub path: String,
    /// Template that matched.
    pub route: Option<Arc<str>>,
    /// Names of the query parameters.
    pub query_keys: Vec<String>,
    /// Body bytes from the client.
    pub bytes: u64,
}

/// What was answered to the client.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct ResponseRecord {
    /// Status.
    pub status: u16,
    /// Body bytes.
    pub bytes: u64,
}

/// Why it did not pass.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct ReasonRecord {
    /// Stable code.
    pub code: std::borrow::Cow<'static, str>,
    /// For a person.
    pub detail: String,
}

/// Where it went.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct UpstreamRecord {
    /// Address and port dialled.
    pub address: String,
    /// TLS version and ALPN, e.g. `TLSv1.3 h2`; none in clear.
    pub tls: Option<String>,
}

/// Microseconds.
#[derive(Debug, Clone, Copy, Default, serde::Serialize, serde::Deserialize)]
pub struct Timing {
    /// Request complete to response complete.
    pub total_us: u64,
    /// Deciding.
    pub policy_us: u64,
    /// Request sent upstream to response head.
    pub upstream_us: u64,
}

/// Where the data plane puts records: a bounded queue to the writer's own thread. Cloned per worker.
#[derive(Debug, Clone)]
pub struct Sink {
    _private: (),
}

impl Sink {
    /// Whether the log can be written now; while it cannot, the pipeline refuses new requests (503).
    pub fn healthy(&self) -> bool {
        todo!()
    }
    /// Queues a record; never blocks. A full queue makes the sink unhealthy and is counted.
    pub fn submit(&self, record: Record) {
        let _ = record;
        todo!()
    }
}
