//! The compiled policy: rules in the order of how specific they are, and the ways to find them.
use crate::body::{BodySpec, Redactor};
use crate::budget::{Budget, Price};
use crate::canonical::Host;
use crate::grants::{ALWAYS, Clause, Grants, Guard, GuardId};
use crate::model::{Api, Credential, Identity, Reason, Rule, Subject, Workload};
use crate::payload::Payload;
use crate::route::{Index, Methods, Template};
use crate::shape::Shape;
use crate::websocket::Messages;
use crate::when::When;
use std::collections::HashMap;

/// A compiled, immutable policy.
#[derive(Debug)]
pub struct Policy {
    pub(crate) hash: String,
    pub(crate) version: u32,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) identities: Vec<Identity>,
    /// Names of the groups of each identity, by its number.
    pub(crate) groups: Vec<Vec<String>>,
    pub(crate) identity_numbers: HashMap<Box<str>, u32>,
    pub(crate) apis: Vec<Api>,
    pub(crate) credentials: Vec<Credential>,
    /// Most specific first: a rule's place is its precedence.
    pub(crate) rules: Vec<RuleData>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hosts: Hosts,
    /// Numbers of apis that are known by address.
    pub(crate) tcp: Vec<usize>,
    pub(crate) subjects: HashMap<Box<str>, Grants>,
    /// By [`GuardId`].
    pub(crate) guards: Vec<Guard>,
    /// Names of the headers that rules look at, sorted, each once.
    pub(crate) headers_read: Vec<String>,
    pub(crate) budgets: Vec<Budget>,
    /// Numbers of the budgets that a workload's requests are counted in, by workload.
    pub(crate) counted: HashMap<Box<str>, Box<[usize]>>,
    pub(crate) prices: Vec<Price>,
    /// The workloads whose bytes the kernel counts against a limit, in order.
    pub(crate) budgeted: Vec<Box<str>>,
    /// Why nothing is allowed, whatever the rules say.
    pub(crate) refusing: Option<Reason>,
}

/// One rule, allow or deny. What few rules have is boxed: there are many rules.
#[derive(Debug)]
pub(crate) struct RuleData {
    pub(crate) public: Rule,
    pub(crate) methods: Methods,
    pub(crate) template: Template,
    pub(crate) query: Option<QuerySpec>,
    pub(crate) headers: HeaderSpec,
    /// What is looked at of the body; there where `payload` or `when` look at it.
    pub(crate) body: Option<Box<BodySpec>>,
    pub(crate) payload: Option<Box<Payload>>,
    /// The request must be gRPC.
    pub(crate) grpc: bool,
    /// The request must open a WebSocket, and this holds for what the client sends on it.
    pub(crate) websocket: Option<Box<Messages>>,
    pub(crate) when: Option<Box<When>>,
    /// The entry of a role that it stands in.
    pub(crate) entry: u32,
}

/// What a rule says of the query.
#[derive(Debug)]
pub(crate) struct QuerySpec {
    /// By name.
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) extra: Extra,
}

/// What a rule says of the request's headers; names are lower-case.
#[derive(Debug, Default)]
pub(crate) struct HeaderSpec {
    /// These pass besides the default ones; the required ones are among them.
    pub(crate) allow: Vec<String>,
    /// These must be there, once and of this shape.
    pub(crate) require: Vec<(String, Shape)>,
    /// These do not pass.
    pub(crate) strip: Vec<String>,
}

/// A declared parameter.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: Box<str>,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
}

/// What becomes of a parameter that is not declared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Extra {
    Deny,
    Strip,
}

/// What the rules of one entry of a role share.
#[derive(Debug)]
pub(crate) struct Entry {
    pub(crate) credential: CredentialUse,
    pub(crate) response_strip: Vec<String>,
    pub(crate) response_redact: Option<Redactor>,
    pub(crate) response_max: Option<u64>,
}

/// Whose credential a request carries.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum CredentialUse {
    None,
    Client,
    /// Number of the credential.
    Inject(usize),
}

/// Which api has a host and port; values are numbers of apis.
#[derive(Debug, Default)]
pub(crate) struct Hosts {
    pub(crate) exact: HashMap<Box<str>, Vec<(u16, usize)>>,
    /// By what follows `*.`.
    pub(crate) wildcard: HashMap<Box<str>, Vec<(u16, usize)>>,
}

/// The rules of some roles on one api.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// Where a rule is not granted unconditionally: its number and under which guard, in order.
    pub(crate) guarded: Vec<(u32, GuardId)>,
    /// Numbers of the allow rules.
    pub(crate) allows: Vec<u32>,
    /// Numbers of the deny rules.
    pub(crate) denies: Vec<u32>,
    pub(crate) allow: Index,
    pub(crate) deny: Index,
}

impl Hosts {
    /// The apis with this host, by port.
    pub(crate) fn find(&self, host: &Host) -> impl Iterator<Item = (u16, usize)> {
        let exact = self.exact.get(host.as_str());
        // `*` is exactly one label, so that only one wildcard can match; an address has no labels.
        let suffix = host.as_str().split_once('.').map(|(_, suffix)| suffix);
        let wildcard = suffix
            .filter(|_| host.ip().is_none())
            .and_then(|suffix| self.wildcard.get(suffix));
        exact.into_iter().chain(wildcard).flatten().copied()
    }
}

impl Policy {
    /// SHA-256 of the sources in hex, independent of their order.
    pub fn hash(&self) -> &str {
        &self.hash
    }

    /// The document's `version`.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// The same workloads, of which nothing is allowed, for this reason: what a later policy allows is not known.
    #[must_use]
    pub fn refuse_all(self, reason: Reason) -> Self {
        Self {
            refusing: Some(reason),
            ..self
        }
    }

    /// Why nothing is allowed, if so.
    pub fn refusing(&self) -> Option<&Reason> {
        self.refusing.as_ref()
    }

    /// All workloads, in the order of their names.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
    }

    /// All budgets, in the order of their names.
    pub fn budgets(&self) -> &[Budget] {
        &self.budgets
    }

    /// The budgets that a request or connection of `subject` is counted in by the agent, with their numbers.
    pub fn budgets_for<'p>(
        &'p self,
        subject: Subject<'p>,
    ) -> impl Iterator<Item = (usize, &'p Budget)> {
        let numbers = self.counted.get(subject.workload);
        let numbered = numbers.map_or(&[][..], |numbers| numbers);
        numbered
            .iter()
            .filter_map(|number| Some((*number, self.budgets.get(*number)?)))
            .filter(move |(_, budget)| budget.fits(&subject))
    }

    /// What a model costs: by its own name, or the longest beginning of it that has a price.
    pub fn price(&self, model: &str) -> Option<&Price> {
        self.prices.iter().find(|price| price.glob.matches(model))
    }

    /// All prices, the most specific first.
    pub fn prices(&self) -> &[Price] {
        &self.prices
    }

    /// Whether the kernel counts a workload's bytes against a limit.
    pub fn is_budgeted(&self, workload: &str) -> bool {
        let found = self
            .budgeted
            .binary_search_by(|known| (**known).cmp(workload));
        found.is_ok()
    }

    /// All identities, in the order of their names.
    pub fn identities(&self) -> &[Identity] {
        &self.identities
    }

    /// The groups that an identity is in.
    pub fn groups_of(&self, identity: &str) -> &[String] {
        self.identity_number(identity)
            .and_then(|number| self.groups.get(usize::try_from(number).ok()?))
            .map_or(&[], Vec::as_slice)
    }

    pub(crate) fn identity_number(&self, identity: &str) -> Option<u32> {
        self.identity_numbers.get(identity).copied()
    }

    /// All apis, in the order of their names.
    pub fn apis(&self) -> &[Api] {
        &self.apis
    }

    /// All credentials, in the order of their names.
    pub fn credentials(&self) -> &[Credential] {
        &self.credentials
    }

    /// The api that serves this host and port; an exact host wins over a wildcard, the longest wildcard wins.
    pub fn api_for(&self, host: &Host, port: u16) -> Option<&Api> {
        self.apis.get(self.api_index(host, port)?)
    }

    pub(crate) fn api_index(&self, host: &Host, port: u16) -> Option<usize> {
        self.hosts
            .find(host)
            .find(|(on, _)| *on == port)
            .map(|(_, api)| api)
    }

    /// The request headers that rules look at, lower-case, in order: whoever decides again later has to keep them.
    pub fn headers_read(&self) -> &[String] {
        &self.headers_read
    }

    /// The first second after `now` at which a grant that holds now no longer does; `None` where none has an end.
    pub fn next_expiry(&self, now: i64) -> Option<i64> {
        // Those of each role: for the mode, grants that differ in their end alone are one.
        let clauses = self.guards.iter().flat_map(|guard| &guard.0);
        let ends = clauses.filter_map(|clause| clause.until.filter(|until| now <= *until));
        ends.min().map(|until| until.saturating_add(1))
    }

    pub(crate) fn rule(&self, number: u32) -> Option<&RuleData> {
        self.rules.get(usize::try_from(number).ok()?)
    }

    /// The clauses under which a rule of the set is had: any of them will do.
    pub(crate) fn clauses(&self, rules: &RuleSet, rule: u32) -> &[Clause] {
        let place = rules
            .guarded
            .binary_search_by_key(&rule, |(number, _)| *number);
        let guard = place.ok().and_then(|place| rules.guarded.get(place));
        let guard = guard.map_or(ALWAYS, |(_, guard)| *guard);
        let guard = usize::try_from(guard).ok();
        let guard = guard.and_then(|number| self.guards.get(number));
        guard.map_or(&[], |guard| &guard.0)
    }

    pub(crate) fn entry(&self, rule: &RuleData) -> Option<&Entry> {
        self.entries.get(usize::try_from(rule.entry).ok()?)
    }
}
