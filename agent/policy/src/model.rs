//! The types at the crate's border: what a compiled policy offers, what a request looks like, what a decision says.
use crate::canonical::{Host, Target};
use crate::syntax::{Faults, Location, Source};

/// A compiled policy and what its compiler warned of.
#[derive(Debug)]
pub struct Compiled {
    /// The immutable snapshot.
    pub policy: Policy,
    /// Warnings only.
    pub warnings: Faults,
}

/// Compiles documents that together make one policy; order does not matter.
///
/// # Errors
/// Every fault of every document.
pub fn compile(sources: &[Source]) -> Result<Compiled, Faults> {
    let _ = sources;
    todo!()
}

/// A compiled, immutable policy.
#[derive(Debug)]
pub struct Policy {
    _private: (),
}

impl Policy {
    /// SHA-256 of the sources in hex, independent of their order.
    pub fn hash(&self) -> &str {
        todo!()
    }
    /// The document's `version`.
    pub fn version(&self) -> u32 {
        todo!()
    }
    /// All workloads, in the order of their names.
    pub fn workloads(&self) -> &[Workload] {
        todo!()
    }
    /// All apis, in the order of their names.
    pub fn apis(&self) -> &[Api] {
        todo!()
    }
    /// All credentials, in the order of their names.
    pub fn credentials(&self) -> &[Credential] {
        todo!()
    }
    /// The api that serves this host and port; an exact host wins over a wildcard, the longest wildcard wins.
    pub fn api_for(&self, host: &Host, port: u16) -> Option<&Api> {
        let _ = (host, port);
        todo!()
    }
    /// Decides one request. With [`Body::Unread`] and a rule that must see the body, asks for it.
    pub fn decide<'p>(&'p self, subject: &Subject<'_>, request: &Request<'_>) -> Outcome<'p> {
        let _ = (subject, request);
        todo!()
    }
    /// As [`Policy::decide`], with every rule that came near and the first thing that failed in it.
    pub fn explain<'p>(&'p self, subject: &Subject<'_>, request: &Request<'_>) -> Explanation<'p> {
        let _ = (subject, request);
        todo!()
    }
}

/// Something that runs on the host and is governed as one.
#[derive(Debug)]
pub struct Workload {
    /// Its name in the policy.
    pub name: String,
    /// Any of these recognises it; none means only `tollgate run --workload`.
    pub selectors: Vec<Selector>,
    /// Where it is defined.
    pub at: Location,
}

/// How a workload is recognised by the kernel.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// Cgroup path glob below the cgroup2 root, e.g. `/user.slice/**`. `*` is one segment, `**` any rest.
    Cgroup(String),
    /// A systemd unit name; matches the cgroup directory of that name below a slice.
    Unit(String),
}

/// A reference to a secret: `file:github-bot` is source `file`, key `github-bot`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRef {
    /// The source's kind.
    pub source: String,
    /// What to ask it for.
    pub key: String,
}

/// A place requests may be sent to.
#[derive(Debug)]
pub struct Api {
    /// Its name in the policy.
    pub name: String,
    /// Host patterns as written: exact, or `*.suffix` (exactly one label).
    pub hosts: Vec<String>,
    /// TCP port, 443 unless said.
    pub port: u16,
    /// Own CA instead of the system roots.
    pub ca: Option<SecretRef>,
    /// Address ranges that are allowed though they are not public.
    pub addresses: Vec<ipnet::IpNet>,
    /// Where it is defined.
    pub at: Location,
}

/// A secret, the header it goes into, and the apis it may be sent to.
#[derive(Debug)]
pub struct Credential {
    /// Its name in the policy.
    pub name: String,
    /// Where the secret is.
    pub secret: SecretRef,
    /// Headers to set: name (lower-case) and value with `{secret}` exactly once.
    pub headers: Vec<(String, HeaderTemplate)>,
    /// Where it is defined.
    pub at: Location,
}

/// A header value around a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTemplate {
    /// What stands before `{secret}`.
    pub before: String,
    /// What stands after it.
    pub after: String,
}

/// Who calls.
#[derive(Debug, Clone, Copy)]
pub struct Subject<'a> {
    /// The workload the kernel recognised.
    pub workload: &'a str,
    /// The identity proven at the agent.
    pub identity: Option<&'a str>,
}

/// How a request reached the agent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scheme {
    /// Through TLS.
    Https,
    /// In clear.
    Http,
}

/// The headers of a request, however they are held.
pub trait Headers {
    /// Calls `visit` with each value of `name` (lower-case), in order.
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8]));
}

/// What is known of a request's body.
#[derive(Debug, Clone, Copy)]
pub enum Body<'a> {
    /// There is none.
    Absent,
    /// Not read yet; its length where declared.
    Unread(Option<u64>),
    /// Read whole.
    Read(&'a [u8]),
}

/// A request to decide on, in canonical form.
pub struct Request<'a> {
    /// How it came.
    pub scheme: Scheme,
    /// Canonical host.
    pub host: &'a Host,
    /// Port the client connected to.
    pub port: u16,
    /// Method, exact.
    pub method: &'a str,
    /// Canonical target.
    pub target: &'a Target<'a>,
    /// Headers.
    pub headers: &'a dyn Headers,
    /// Body.
    pub body: Body<'a>,
}

/// What deciding came to.
#[derive(Debug)]
pub enum Outcome<'p> {
    /// Decided.
    Decided(Decision<'p>),
    /// A rule must see the body: read at most `max` bytes, then decide again. Longer bodies: pass what was read (`max + 1` bytes); the decision denies them.
    NeedsBody {
        /// Bytes to read at most.
        max: usize,
    },
}

/// Allowed or not.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// A grant's rule allows it and none denies it.
    Allow,
    /// Anything else.
    Deny,
}

/// Whether a verdict stands or is only recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It stands.
    Enforce,
    /// A denial is recorded and the request passes.
    Observe,
}

/// A rule of a role.
#[derive(Debug)]
pub struct Rule {
    /// For records and people: `role:issue-triage allow GET /repos/acme/{repo}/issues`.
    pub label: std::sync::Arc<str>,
    /// The route as written.
    pub route: std::sync::Arc<str>,
    /// Where it is defined.
    pub at: Location,
}

/// A decision and what to do when it lets the request pass.
#[derive(Debug)]
pub struct Decision<'p> {
    /// Allowed or not.
    pub verdict: Verdict,
    /// Whether that stands.
    pub mode: Mode,
    /// The rule that allowed or denied it; none where nothing matched.
    pub rule: Option<&'p Rule>,
    /// Why it was denied; `None` exactly when allowed.
    pub reason: Option<Reason>,
    /// How to forward it, also for an observed denial.
    pub plan: Plan<'p>,
}

/// Why a request was denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// Stable code: `unknown_host`, `no_grant`, `no_route`, `method`, `denied_by_rule`, `query_extra`, `query_value`,
    /// `query_duplicate`, `body_type`, `body_encoding`, `body_too_large`, `body_invalid`, `body_field`, `cleartext`.
    pub code: &'static str,
    /// What was missing, for a person. Names may appear, values never.
    pub detail: String,
    /// What to do next.
    pub hint: String,
}

/// How to forward a request.
#[derive(Debug)]
pub struct Plan<'p> {
    /// Where to: none only for an observed denial to a host that no api names.
    pub api: Option<&'p Api>,
    /// What to inject.
    pub credential: Option<&'p Credential>,
    /// The client's own credentials pass (`credential: client`, or an observed denial).
    pub client_credentials: bool,
    /// Query to send where it differs from the request's (`extra: strip`, credential parameters); `Some(None)` drops it whole.
    pub query: Option<Option<String>>,
    /// Names of the parameters that were dropped.
    pub stripped_query: Vec<String>,
    /// Response headers to drop, lower-case, besides those always dropped.
    pub response_strip: &'p [String],
    /// Which request headers pass.
    pub headers: HeaderRules<'p>,
}

/// Which request headers pass.
#[derive(Debug, Clone, Copy)]
pub struct HeaderRules<'p> {
    /// The client's credential slots pass.
    pub client_credentials: bool,
    /// More headers that the rule lets pass, lower-case.
    pub allow: &'p [String],
}

impl HeaderRules<'_> {
    /// Whether the header `name` (lower-case) may go upstream.
    pub fn passes(&self, name: &str) -> bool {
        let _ = name;
        todo!()
    }
}

/// A decision and how near every other rule came.
#[derive(Debug)]
pub struct Explanation<'p> {
    /// The decision.
    pub decision: Decision<'p>,
    /// Rules granted to the subject for that api that did not match, nearest first, and the first thing that failed in each.
    pub near: Vec<NearMiss<'p>>,
}

/// A rule that did not match.
#[derive(Debug)]
pub struct NearMiss<'p> {
    /// The rule.
    pub rule: &'p Rule,
    /// The first thing that failed.
    pub failed: Reason,
}
