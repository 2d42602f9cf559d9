//! The admin protocol: newline-delimited JSON over a Unix socket, one request per connection.
//!
//! The client sends one [`Envelope`] on one line; the agent answers with lines of [`Reply`], the last of which is a
//! final one ([`Reply::is_final`]). These are wire types: the agent's own types are translated where they differ.
use crate::audit::{Counts, Filter, Record, Repeated, Stats};
use crate::kernel::{
    Counters, FlowAccount, Governed, GovernedProcess, Layer, Process, WorkloadAccount,
};
use serde::{Deserialize, Serialize};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use tollgate_policy::Mode;

/// The protocol's version; the agent refuses any other.
pub const VERSION: u32 = 4;
/// Bytes of a request line at most, its newline included.
pub const REQUEST_BYTES: u64 = 2 << 20;
/// Bytes of a reply line at most, its newline included.
pub const REPLY_BYTES: u64 = 4 << 20;
/// Decisions sent at most, the newest.
pub const DECISIONS: usize = 10_000;
/// Kinds of refusals sent at most, the newest.
pub const KINDS: usize = 10;

/// One request and the version of the protocol it is written in.
#[derive(Debug, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Envelope {
    /// [`VERSION`].
    pub v: u32,
    /// What is asked.
    pub request: Request,
}

/// What can be asked of a running agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "do", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Health; answered by [`Reply::Status`].
    Status,
    /// Live flows and the last ended ones; answered by [`Reply::Flow`]s.
    Flows,
    /// What is governed; answered by [`Reply::Workload`]s, [`Reply::Process`]es and [`Reply::Earlier`]s.
    Workloads,
    /// Kernel accounts per workload; answered by [`Reply::Account`]s.
    Accounts,
    /// Budgets spent and left; answered by [`Reply::Usage`]s.
    Usage,
    /// Decisions on record; answered by [`Reply::Decision`]s.
    Decisions {
        /// Which.
        #[serde(default)]
        filter: Filter,
        /// Keep sending new ones until the client hangs up.
        #[serde(default)]
        follow: bool,
    },
    /// Decisions on record, counted; answered by [`Reply::Repeated`]s, newest last, and then [`Reply::Counts`].
    Tally {
        /// Which; its limit does not count.
        filter: Filter,
    },
    /// Read policy and secrets again; answered by [`Reply::Reloaded`] or a fault.
    Reload,
    /// Decide without sending; answered by [`Reply::Explained`].
    Explain(Question),
    /// Make and govern a cgroup for `tollgate run`; answered by [`Reply::Enrolled`].
    Enrol {
        /// The workload; the only one in the policy if not given.
        workload: Option<String>,
    },
    /// Stop governing a cgroup that `enrol` made, once it is empty; answered by [`Reply::Released`].
    Release {
        /// As [`Reply::Enrolled`] said.
        cgroup_id: u64,
    },
    /// The local CA; answered by [`Reply::Ca`].
    Ca,
    /// Replace the local CA; answered by [`Reply::Ca`], the new one.
    RotateCa {
        /// For how long programs that know only the old one are served, seconds.
        overlap: u64,
    },
}

/// A request to decide on without sending it.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Question {
    /// Exact.
    pub method: String,
    /// `https://host[:port]/path?query` or `http://…`.
    pub url: String,
    /// Who asks.
    pub workload: String,
    /// Identity proven, if any.
    #[serde(default)]
    pub identity: Option<String>,
    /// Names and values.
    #[serde(default)]
    pub headers: Vec<(String, String)>,
    /// Body, if any.
    #[serde(default)]
    pub body: Option<String>,
}

/// One line of an answer.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "reply", content = "with", rename_all = "snake_case")]
pub enum Reply {
    /// The request could not be served. Final.
    Fault(Fault),
    /// No more lines. Final.
    End,
    /// Health. Final.
    Status(Box<Status>),
    /// A flow, live or ended.
    Flow(Box<Flow>),
    /// A subtree under governance.
    Workload(Governed),
    /// A process under governance.
    Process(Recognised),
    /// What came of connections that a workload's processes had before.
    Earlier(Earlier),
    /// A workload's account.
    Account(WorkloadAccount),
    /// A budget.
    Usage(Usage),
    /// A decision.
    Decision(Arc<Record>),
    /// What did not pass, and how often.
    Repeated(Repeated),
    /// Decisions by what became of them. Final.
    Counts(Counts),
    /// While following: so many decisions were left out because the reader was too slow. They are in the log.
    Missed(u64),
    /// Policy and secrets were applied. Final.
    Reloaded {
        /// SHA-256 of the policy now in force.
        hash: String,
        /// Whether it differs from before.
        changed: bool,
        /// Warnings of the compiler, and selectors by which nobody is recognised now, or not all the time.
        warnings: Vec<String>,
        /// What the kernel does not hold of it, for a person.
        #[serde(default)]
        unheld: Vec<String>,
    },
    /// How a request would be decided. Final.
    Explained(Box<Explained>),
    /// A governed cgroup to run in. Final.
    Enrolled(Enrolled),
    /// Whether the cgroup is gone. Final.
    Released {
        /// Processes still in it; it stays governed until they end.
        left: usize,
    },
    /// The local CA. Final.
    Ca(Ca),
}

impl Reply {
    /// Whether this ends an answer.
    pub fn is_final(&self) -> bool {
        !matches!(
            self,
            Self::Flow(_)
                | Self::Workload(_)
                | Self::Process(_)
                | Self::Earlier(_)
                | Self::Account(_)
                | Self::Usage(_)
                | Self::Decision(_)
                | Self::Repeated(_)
                | Self::Missed(_)
        )
    }
}

/// Why a request could not be served.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Fault {
    /// What kind; decides the exit code.
    pub kind: FaultKind,
    /// What happened and what to do, for a person.
    pub message: String,
}

/// Kinds of [`Fault`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FaultKind {
    /// The request is wrong in itself.
    Usage,
    /// The caller may not ask this.
    Forbidden,
    /// Policy or secrets are wrong; the running ones stay.
    Configuration,
    /// What was named is not there.
    NotFound,
    /// The agent could not do it.
    Failed,
}

/// What is spent and what is left of a budget.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Its name in the policy.
    pub budget: String,
    /// Who has an amount of its own.
    pub holder: Holder,
    /// Whose it is, where each workload has its own.
    pub workload: Option<String>,
    /// Whose it is, where each identity has its own; none there for all calls without one.
    pub identity: Option<String>,
    /// Of what: `bytes`, `requests`, `tokens` or `usd`.
    pub unit: String,
    /// How much there is in a window.
    pub limit: Amount,
    /// The window: `min`, `hour` or `day`.
    pub window: String,
    /// Spent in this one.
    pub spent: Amount,
    /// Left in it.
    pub left: Amount,
    /// When the next one begins.
    pub until: jiff::Timestamp,
}

impl Usage {
    /// Where it stands in a list.
    pub fn place(&self) -> (&str, &str, Option<&str>, Option<&str>) {
        let (workload, identity) = (self.workload.as_deref(), self.identity.as_deref());
        (&self.budget, &self.unit, workload, identity)
    }
}

/// Who has an amount of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Holder {
    /// Nobody: all who fit share it.
    Shared,
    /// Each workload.
    Workload,
    /// Each identity.
    Identity,
}

/// How much: a whole number, or, of US dollars, a decimal in text.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Amount {
    /// Of bytes, requests and tokens.
    Whole(u64),
    /// Of dollars: no reader rounds it.
    Decimal(String),
}

/// A process under governance, and why it is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Recognised {
    /// The process.
    #[serde(flatten)]
    pub process: GovernedProcess,
    /// SHA-256 of its executable in hex, where it was taken.
    pub sha256: Option<String>,
    /// The selector, or the cgroup, by which it or its ancestor was recognised, for a person.
    pub by: String,
}

/// What came of connections that a workload's processes had before they were governed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Earlier {
    /// The workload.
    pub workload: String,
    /// Ended since the agent started.
    pub destroyed: u64,
    /// Going on: nothing on them is decided on.
    pub open: usize,
}

/// A flow, live or ended.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Flow {
    /// Kernel's id of the client's socket.
    pub cookie: u64,
    /// The workload.
    pub workload: String,
    /// Who connected.
    pub process: Process,
    /// Where to.
    pub destination: SocketAddr,
    /// When it began.
    pub opened: Option<jiff::Timestamp>,
    /// When it ended; none while it lives.
    pub ended: Option<jiff::Timestamp>,
    /// Bytes and packets.
    #[serde(flatten)]
    pub counters: Counters,
}

impl From<FlowAccount> for Flow {
    fn from(live: FlowAccount) -> Self {
        Self {
            cookie: live.cookie,
            workload: live.workload,
            process: live.process,
            destination: live.destination,
            opened: Some(live.opened),
            ended: None,
            counters: live.counters,
        }
    }
}

/// A governed cgroup for `tollgate run`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Enrolled {
    /// Kernel id, for [`Request::Release`].
    pub cgroup_id: u64,
    /// Its directory.
    pub directory: PathBuf,
    /// Its path below the cgroup2 root.
    pub cgroup: String,
    /// The workload it is governed as.
    pub workload: String,
    /// Where the trust files are.
    pub trust: Trust,
    /// Directories of the agent's own, secrets and state, that the command must not see.
    #[serde(default)]
    pub hidden: Vec<PathBuf>,
    /// Unix sockets that it may speak to, as policy writes them: those with a path that are not among them are covered.
    #[serde(default)]
    pub unix: Vec<String>,
    /// Whether the kernel holds it to those by itself: then a socket that is not covered leads nowhere either. `None`: the agent is of a
    /// version that does not say.
    #[serde(default)]
    pub unix_held: Option<bool>,
}

/// Files that clients are pointed at.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Trust {
    /// The CA's certificate alone.
    pub ca: PathBuf,
    /// The system's roots and the CA.
    pub bundle: PathBuf,
    /// The same as a PKCS #12 file for Java.
    pub java: PathBuf,
    /// A directory to lay over the settings of Chromium and its kin.
    pub browsers: PathBuf,
}

/// The local CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ca {
    /// The certificate, PEM.
    pub certificate: String,
    /// SHA-256 of it, hex.
    pub fingerprint: String,
    /// When it expires.
    pub not_after: jiff::Timestamp,
    /// Until when programs that know only the CA before it are served.
    pub overlap: Option<jiff::Timestamp>,
    /// The certificate good for nothing but `names`, PEM: for programs that are not governed.
    pub constrained: String,
    /// What the policy inspects.
    pub names: Vec<String>,
    /// Where the trust files are.
    pub trust: Trust,
}

/// How a request would be decided, and why.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Explained {
    /// `allow` or `deny`.
    pub verdict: Answer,
    /// Whether the verdict stands.
    pub mode: Mode,
    /// The rule that decided.
    pub rule: Option<RuleRef>,
    /// Why it is denied.
    pub reason: Option<Why>,
    /// Rules that came near, nearest first.
    pub near: Vec<Near>,
    /// The api that serves the host.
    pub api: Option<String>,
    /// The credential that would be put in.
    pub credential: Option<String>,
    /// Headers that would be set.
    pub injected: Vec<String>,
    /// What would be taken out of the request: headers, `?parameter`, `body:/pointer`.
    pub stripped: Vec<String>,
    /// Headers that would be taken out of the response, besides those that always are.
    #[serde(default)]
    pub response_stripped: Vec<String>,
    /// JSON pointers to what would be redacted in the response.
    #[serde(default)]
    pub response_redacted: Vec<String>,
    /// Bytes that the response may have.
    #[serde(default)]
    pub response_max: Option<u64>,
    /// Budgets that the agent would count it in, where it passes.
    #[serde(default)]
    pub budgets: Vec<String>,
    /// The policy that was asked.
    pub policy_hash: String,
}

/// Allowed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// It would pass.
    Allow,
    /// It would not.
    Deny,
}

/// A rule and where it is written.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct RuleRef {
    /// As records name it.
    pub label: String,
    /// `file:line:column`.
    pub at: String,
}

/// Why something did not match.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Why {
    /// Stable code.
    pub code: String,
    /// For a person.
    pub detail: String,
    /// What to do next.
    pub hint: String,
}

/// A rule that did not match.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Near {
    /// The rule.
    pub rule: RuleRef,
    /// The first thing that failed.
    pub failed: Why,
}

/// Health of a running agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Status {
    /// What the facts below come to.
    pub verdict: Verdict,
    /// The agent.
    pub agent: AgentStatus,
    /// Mode of the whole agent.
    pub mode: Mode,
    /// The policy in force.
    pub policy: PolicyStatus,
    /// Subtrees under governance.
    pub governed: usize,
    /// Processes under governance, wherever they are.
    #[serde(default)]
    pub processes: usize,
    /// Workloads of the policy that nothing on the host matches now: no cgroup and no process.
    pub idle_workloads: Vec<String>,
    /// Selectors of the policy by which nobody is recognised now, or not all the time, and why, for a person.
    #[serde(default)]
    pub unresolved: Vec<String>,
    /// Network namespaces other than the agent's own in which something governed is.
    #[serde(default)]
    pub namespaces: Vec<Namespace>,
    /// Cgroups of containers that are refused because it is not known whose they are, and why.
    #[serde(default)]
    pub containers: std::collections::BTreeMap<String, String>,
    /// Connections open on the data plane.
    pub connections: usize,
    /// The kernel's layers, asked now.
    pub layers: Vec<Layer>,
    /// Layers that another hand took away since the agent started, and how often the agent put each back.
    #[serde(default)]
    pub put_back: std::collections::BTreeMap<String, u64>,
    /// Hooks that the kernel did not call for somebody since the agent started, and how often: all that is governed was then
    /// enrolled again.
    #[serde(default)]
    pub skipped: std::collections::BTreeMap<String, u64>,
    /// What happens when a part fails, and whether it has.
    pub fail_modes: Vec<FailMode>,
    /// The local CA.
    pub ca: CaStatus,
    /// The decision log; while it is not healthy, requests are refused.
    pub audit: Stats,
    /// Kernel events lost because nobody drained them in time.
    pub lost_events: u64,
    /// Kernel refusals counted but not recorded one by one, because a workload made too many.
    pub unrecorded_refusals: u64,
}

/// A network namespace other than the agent's own in which something governed is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Namespace {
    /// Inode of the namespace: `net:[N]` in `/proc/PID/ns/net`.
    pub inode: u64,
    /// Workloads in it.
    pub workloads: Vec<String>,
    /// Since when the agent knows of it.
    pub since: jiff::Timestamp,
    /// Port of the agent's listeners on 127.0.0.1 in it; none: it is refused.
    pub port: Option<u16>,
    /// Whether it listens on ::1 too; where it does not, IPv6 is refused.
    pub ipv6: bool,
    /// Why it is refused.
    pub refused: Option<String>,
}

/// What the facts come to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "state", rename_all = "snake_case")]
pub enum Verdict {
    /// Scopes are held.
    Enforcing,
    /// Everything is recorded and denials pass.
    Observing,
    /// Nothing is allowed, for want of a policy that can be taken up; nothing gets past.
    Refusing {
        /// Why, and what to do.
        why: String,
    },
    /// Something governed can get past.
    NotEnforcing {
        /// Why, each a sentence.
        why: Vec<String>,
    },
}

/// The agent.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct AgentStatus {
    /// Version of the binary.
    pub version: String,
    /// Process id.
    pub pid: u32,
    /// When it was ready.
    pub started: jiff::Timestamp,
    /// Port of the data plane.
    pub port: u16,
    /// Data plane threads.
    pub workers: usize,
}

/// The policy in force.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct PolicyStatus {
    /// The document's version.
    pub version: u32,
    /// SHA-256 of the sources.
    pub hash: String,
    /// Counts up by one per applied change.
    pub generation: u64,
    /// When it was applied.
    pub applied: jiff::Timestamp,
    /// Its files.
    pub files: Vec<String>,
    /// `None`: what is on disk is in force. Else the first fault of what is on disk.
    pub stale: Option<String>,
    /// `None`: secrets are as on disk. Else why the old values are kept.
    pub secrets_stale: Option<String>,
}

/// What happens when a part fails, and whether it has.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct FailMode {
    /// The part and its failure.
    pub when: String,
    /// What the agent does then.
    pub then: String,
    /// Whether it is so now.
    pub now: bool,
}

/// The local CA.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct CaStatus {
    /// SHA-256 of the certificate, hex.
    pub fingerprint: String,
    /// When it expires.
    pub not_after: jiff::Timestamp,
}
