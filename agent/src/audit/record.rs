//! What one decision looks like, in memory and as JSON.
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

impl Verdict {
    /// Whether the policy said no, also where that only went on record.
    pub fn is_denial(self) -> bool {
        matches!(self, Self::Deny | Self::WouldDeny | Self::Limit)
    }
}

/// How far the agent could see into what passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Coverage {
    /// Method, path, headers; the body where a rule asked.
    Request,
    /// The name in the TLS hello, and how many bytes: an api that is not inspected.
    Sni,
    /// The address, and how many bytes: an api that is not inspected.
    Tcp,
    /// Only that a connection was made.
    Connection,
    /// Only a name that was asked for.
    Dns,
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
    #[serde(with = "wire_process")]
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
    /// Names of headers taken out, of parameters as `?name`, places in the body as `body:/pointer`.
    pub stripped: Vec<String>,
    /// Names of headers put in.
    pub injected: Vec<String>,
    /// JSON pointers to what was made unreadable in the response.
    #[serde(default)]
    pub redacted: Vec<String>,
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
    /// Method; empty where none was read (a kernel refusal, garbage); of a name, the type of record that was asked for.
    pub method: String,
    /// `https`, `http`, `dns`, `tls`, `tcp`, `udp`, ….
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
    /// Status; 0 where none was read, of an api that is not inspected.
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
    /// What to do about it, which often names the rule that came near; empty where there is nothing to say.
    #[serde(default)]
    pub hint: String,
}

impl ReasonRecord {
    /// With nothing to do about it.
    pub(crate) fn new(
        code: impl Into<std::borrow::Cow<'static, str>>,
        detail: impl Into<String>,
    ) -> Self {
        Self {
            code: code.into(),
            detail: detail.into(),
            hint: String::new(),
        }
    }
}

impl From<&tollgate_policy::Reason> for ReasonRecord {
    fn from(reason: &tollgate_policy::Reason) -> Self {
        Self {
            code: reason.code.into(),
            detail: reason.detail.clone(),
            hint: reason.hint.clone(),
        }
    }
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

/// `process{pid,start,exe,sha256,uid,cgroup,unit}`: the names of a record are stable and few, whatever
/// else the kernel half comes to know of a process.
mod wire_process {
    use super::{Arc, Process};
    use serde::{Deserialize, Deserializer, Serialize, Serializer};
    use std::borrow::Cow;

    #[derive(Serialize, Deserialize)]
    struct Wire<'a> {
        pid: u32,
        start: u64,
        exe: Cow<'a, str>,
        sha256: Option<Cow<'a, str>>,
        uid: u32,
        cgroup: Cow<'a, str>,
        unit: Option<Cow<'a, str>>,
    }

    pub(super) fn serialize<S: Serializer>(
        process: &Option<Arc<Process>>,
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let wire = process.as_deref().map(|process| Wire {
            pid: process.pid,
            start: process.start,
            exe: Cow::Borrowed(&process.exe),
            sha256: process.sha256.as_deref().map(Cow::Borrowed),
            uid: process.uid,
            cgroup: Cow::Borrowed(&process.cgroup),
            unit: process.unit.as_deref().map(Cow::Borrowed),
        });
        wire.serialize(serializer)
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Arc<Process>>, D::Error> {
        let wire = Option::<Wire<'_>>::deserialize(deserializer)?;
        Ok(wire.map(|wire| {
            Arc::new(Process {
                pid: wire.pid,
                start: wire.start,
                exe: wire.exe.into_owned(),
                // Not on record.
                exe_dev: 0,
                exe_inode: 0,
                sha256: wire.sha256.map(Cow::into_owned),
                uid: wire.uid,
                cgroup: wire.cgroup.into_owned(),
                unit: wire.unit.map(Cow::into_owned),
            })
        }))
    }
}
