//! The types at the crate's border: what a compiled policy offers, what a request looks like, what a decision says.
mod credential;

pub use credential::{AwsKeys, Credential, CredentialForm, HeaderTemplate, SecretRef};

use crate::body::Redactor;
use crate::budget::Meter;
use crate::canonical::{Host, Target};
use crate::headers;
use crate::syntax::Location;

/// Something that runs on the host and is governed as one.
#[derive(Debug)]
pub struct Workload {
    /// Its name in the policy.
    pub name: String,
    /// Any of these recognises it; none means only `tollgate run --workload`.
    pub selectors: Vec<Selector>,
    /// TCP ports that others may connect to it on, in order; on any other nothing comes in.
    pub listen: Vec<u16>,
    /// Unix sockets of this host that it may speak to, in order.
    pub unix: Vec<SocketName>,
    /// What becomes of connections that its processes had before they were governed.
    pub established: Established,
    /// Where it is defined.
    pub at: Location,
}

/// What becomes of connections from before their process was governed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Established {
    /// They are ended, both peers are told, and each is on record.
    #[default]
    Destroy,
    /// They go on, and each is on record.
    Report,
}

impl Established {
    /// As the policy writes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Destroy => "destroy",
            Self::Report => "report",
        }
    }
}

/// A Unix socket as programs name it: a path, or `@` and an abstract name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SocketName {
    /// The name, or how it begins.
    pub name: String,
    /// Whatever follows is meant too.
    pub any_rest: bool,
}

impl std::fmt::Display for SocketName {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}{}", self.name, if self.any_rest { "**" } else { "" })
    }
}

/// How a workload is recognised by the kernel: every condition that is there must hold, and one is there.
#[derive(Debug, Clone, Default, PartialEq, Eq, Hash)]
pub struct Selector {
    /// Cgroup path glob below the cgroup2 root, e.g. `/user.slice/**`. `*` is one segment, `**` any rest.
    pub cgroup: Option<String>,
    /// A systemd unit name; matches the cgroup directory of that name below a slice.
    pub unit: Option<String>,
    /// A container's name, with `*` for any text.
    pub container: Option<String>,
    /// Labels of a container or its pod and their values, with `*` for any text; in order of name.
    pub labels: Vec<(String, String)>,
    /// A user's name, or a numeric id.
    pub user: Option<String>,
    /// Absolute path of the executable.
    pub exe: Option<String>,
    /// SHA-256 of the executable: 64 lower-case hexadecimal digits.
    pub sha256: Option<String>,
    /// Where it stands.
    pub at: Location,
}

impl Selector {
    /// Does it mean containers, which only their engine can tell apart?
    #[must_use]
    pub fn is_of_containers(&self) -> bool {
        self.container.is_some() || !self.labels.is_empty()
    }

    /// Its labels, for a person: `app=web tier=*`.
    #[must_use]
    pub fn shown_labels(&self) -> Option<String> {
        let each = self.labels.iter();
        let each: Vec<String> = each
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        (!each.is_empty()).then(|| each.join(" "))
    }
}

/// Someone or something that calls, and how it proves that.
#[derive(Debug)]
pub struct Identity {
    /// Its name in the policy.
    pub name: String,
    /// What it shows to the agent.
    pub proof: Proof,
    /// Where it is defined.
    pub at: Location,
}

/// How an identity is proven.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Proof {
    /// The public half of a token that the agent issued: `tgi_…`.
    Token(String),
    /// A signed JWT (RFC 7519).
    Jwt {
        /// `iss`, exactly.
        issuer: String,
        /// Among `aud`.
        audience: String,
        /// Further claims and their values, exactly; in order of name.
        claims: Vec<(String, String)>,
        /// Own keys instead of the issuer's published ones.
        keys: Option<SecretRef>,
    },
}

/// A place requests may be sent to.
#[derive(Debug)]
pub struct Api {
    /// Its name in the policy.
    pub name: String,
    /// Host patterns as written: exact, or `*.suffix` (exactly one label).
    pub hosts: Vec<String>,
    /// TCP port: 443 unless said, 80 in clear.
    pub port: u16,
    /// How it is reached: [`Scheme::Http`] only where the policy says so.
    pub scheme: Scheme,
    /// Own CA instead of the system roots.
    pub ca: Option<SecretRef>,
    /// What the agent shows to the upstream, where that asks for a client certificate.
    pub certificate: Option<ClientCertificate>,
    /// Address ranges that are allowed though they are not public.
    pub addresses: Vec<ipnet::IpNet>,
    /// How much of a connection to it is seen.
    pub coverage: Coverage,
    /// Addresses and ports of an api that is known by them ([`Coverage::Tcp`]).
    pub tcp: Vec<(ipnet::IpNet, u16)>,
    /// How its answers tell what they cost.
    pub meter: Option<Meter>,
    /// Where it is defined.
    pub at: Location,
}

/// A certificate that the agent has, and its key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ClientCertificate {
    /// The chain in PEM, the agent's own first.
    pub chain: SecretRef,
    /// Its private key in PEM.
    pub key: SecretRef,
}

/// How much of the traffic to an api is seen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Coverage {
    /// Every request: TLS ends at the agent.
    Inspected,
    /// The name in the TLS hello, and bytes. `hosts` are the names.
    Sni,
    /// The address, and bytes.
    Tcp,
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
    /// Read whole, or one byte further than was asked for.
    Read(&'a [u8]),
    /// None: the request is the handshake of a WebSocket, and this is a message that the client sends on it.
    Message(Message<'a>),
}

/// A message of a WebSocket, put together from its frames.
#[derive(Debug, Clone, Copy)]
pub enum Message<'a> {
    /// UTF-8.
    Text(&'a str),
    /// Anything; it is not looked at.
    Binary(&'a [u8]),
}

impl Message<'_> {
    /// Its length in bytes.
    pub fn len(&self) -> usize {
        match self {
            Self::Text(text) => text.len(),
            Self::Binary(bytes) => bytes.len(),
        }
    }

    /// Whether it has no bytes.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
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
    /// The time of the decision, in seconds since 1970 (UTC).
    pub now: i64,
}

/// A connection that is not inspected.
#[derive(Debug, Clone, Copy)]
pub enum Connection<'a> {
    /// To this address, whatever is spoken.
    Address(std::net::SocketAddr),
    /// With this name in the TLS hello, to this port.
    Name(&'a Host, u16),
}

/// What deciding came to.
#[derive(Debug)]
#[expect(
    clippy::large_enum_variant,
    reason = "a box for each decision would be an allocation on the hot path"
)]
pub enum Outcome<'p> {
    /// Decided.
    Decided(Decision<'p>),
    /// A rule must see the body: read at most `max` bytes, then decide again. Longer bodies: pass what was
    /// read (`max + 1` bytes). No rule that looks at the body takes them; one that does not look may still
    /// allow, and then what was read and the rest are sent.
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
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize,
)]
#[serde(rename_all = "lowercase")]
pub enum Mode {
    /// It stands.
    Enforce,
    /// A denial is recorded and the request passes.
    Observe,
}

/// A rule of a role.
#[derive(Debug, PartialEq, Eq)]
pub struct Rule {
    /// For records and people: `role:issue-triage allow GET /repos/acme/{repo}/issues`.
    pub label: std::sync::Arc<str>,
    /// The route as written.
    pub route: std::sync::Arc<str>,
    /// Where it is defined.
    pub at: Location,
}

/// A decision and what to do when it lets the request pass.
///
/// `mode` is that of the subject's grants: a denial is only observed if every grant of the workload that
/// concerns the api is in observe mode, or, where none does or no api has the host, if the workload has
/// grants and all of them are. Grants count that have expired or are for other identities; one must hold. A request in clear that would carry a credential is always enforced.
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

impl Decision<'_> {
    /// Whether the verdict stands, given the mode of the whole agent. `Observe` there overrides grants,
    /// but not the refusal to send a credential in clear.
    pub fn effective_mode(&self, agent: Mode) -> Mode {
        let cleartext = self
            .reason
            .as_ref()
            .is_some_and(|reason| reason.code == "cleartext");
        match (self.mode, agent) {
            (Mode::Enforce, Mode::Observe) if !cleartext => Mode::Observe,
            (mode, _) => mode,
        }
    }
}

/// Why a request was denied.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Reason {
    /// Stable code: `unknown_host`, `no_grant`, `identity_required`, `identity`, `expired`, `uninspected`, `no_route`, `method`,
    /// `denied_by_rule`, `query_extra`, `query_value`, `query_duplicate`, `query_missing`, `header_missing`, `header_value`,
    /// `dns_name`, `body_type`, `body_encoding`, `body_too_large`, `body_invalid`, `body_field`, `condition`, `work`, `cleartext`, `websocket`; of
    /// messages on one `message_type`, `message_too_large`, `message_invalid`, `message_field`, `message_schema`, `message_condition`; of payloads
    /// `graphql_…`, `grpc_type`, `mcp_…`, `llm_…`; and that of [`crate::Policy::refuse_all`].
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
    /// Body to send where it differs from the request's (`strip`, `extra: strip`).
    pub body: Option<Vec<u8>>,
    /// What was cut out of the body: fields and JSON pointers.
    pub stripped_body: Vec<String>,
    /// Response headers to drop, lower-case, besides those always dropped.
    pub response_strip: &'p [String],
    /// What to take out of the response's body, which then must be JSON.
    pub response_redact: Option<&'p Redactor>,
    /// Bytes of the response's body at most.
    pub response_max: Option<u64>,
    /// Which request headers pass.
    pub headers: HeaderRules<'p>,
    /// Where a WebSocket may be opened: bytes of a message on it at most.
    pub websocket: Option<usize>,
}

/// Which request headers pass.
#[derive(Debug, Clone, Copy)]
pub struct HeaderRules<'p> {
    /// The client's credential slots pass.
    pub client_credentials: bool,
    /// Headers off the default list pass too: only for an observed denial, which changes nothing it need not.
    pub unlisted: bool,
    /// More headers that the rule lets pass, lower-case.
    pub allow: &'p [String],
    /// Headers that the rule drops, lower-case.
    pub strip: &'p [String],
}

impl HeaderRules<'_> {
    /// Whether the header `name` (lower-case) may go upstream.
    ///
    /// Never pass: headers of one connection (`host` and `transfer-encoding` among them; the agent makes
    /// its own), headers that ask for another method, host or path, and names with `_`. `content-length`
    /// passes: making it true is the sender's business.
    pub fn passes(&self, name: &str) -> bool {
        if headers::never_passes(name) || self.strip.iter().any(|dropped| dropped == name) {
            return false;
        }
        if headers::is_credential_header(name) {
            return self.client_credentials;
        }
        self.unlisted
            || headers::is_needed(name)
            || self.allow.iter().any(|allowed| allowed == name)
    }
}

/// A name that a workload may not look up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unnamed {
    /// Of the workload's grants, as in a [`Decision`].
    pub mode: Mode,
    /// Code `dns_name`.
    pub reason: Reason,
}

impl Unnamed {
    /// Whether that stands, given the mode of the whole agent.
    pub fn effective_mode(&self, agent: Mode) -> Mode {
        match agent {
            Mode::Observe => Mode::Observe,
            Mode::Enforce => self.mode,
        }
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
