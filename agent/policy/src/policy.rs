//! The compiled policy: rules in the order of how specific they are, and the ways to find them.
use crate::body::BodySpec;
use crate::canonical::Host;
use crate::model::{Api, Credential, Mode, Rule, Workload};
use crate::route::{Index, Methods, Template};
use crate::shape::Shape;
use std::collections::HashMap;
use std::sync::Arc;

/// A compiled, immutable policy.
#[derive(Debug)]
pub struct Policy {
    pub(crate) hash: String,
    pub(crate) version: u32,
    pub(crate) workloads: Vec<Workload>,
    pub(crate) apis: Vec<Api>,
    pub(crate) credentials: Vec<Credential>,
    /// Most specific first: a rule's place is its precedence.
    pub(crate) rules: Vec<RuleData>,
    pub(crate) entries: Vec<Entry>,
    pub(crate) hosts: Hosts,
    pub(crate) subjects: HashMap<Box<str>, Grants>,
}

/// One rule, allow or deny.
#[derive(Debug)]
pub(crate) struct RuleData {
    pub(crate) public: Rule,
    pub(crate) methods: Methods,
    pub(crate) template: Template,
    pub(crate) query: Option<QuerySpec>,
    pub(crate) body: Option<BodySpec>,
    /// Request headers that pass besides the default ones, lower-case.
    pub(crate) headers: Vec<String>,
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

/// What is granted to one workload.
#[derive(Debug)]
pub(crate) struct Grants {
    /// Observe if all of its grants are.
    pub(crate) mode: Mode,
    /// By number of the api.
    pub(crate) apis: HashMap<usize, ApiGrants>,
}

/// What is granted to one workload on one api.
#[derive(Debug)]
pub(crate) struct ApiGrants {
    /// Observe if all grants that concern the api are.
    pub(crate) mode: Mode,
    /// Shared by all workloads with the same roles.
    pub(crate) rules: Arc<RuleSet>,
}

/// The rules of some roles on one api.
#[derive(Debug, Default)]
pub(crate) struct RuleSet {
    /// Numbers of the allow rules.
    pub(crate) allows: Vec<u32>,
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

    /// All workloads, in the order of their names.
    pub fn workloads(&self) -> &[Workload] {
        &self.workloads
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

    pub(crate) fn rule(&self, number: u32) -> Option<&RuleData> {
        self.rules.get(usize::try_from(number).ok()?)
    }

    pub(crate) fn entry(&self, rule: &RuleData) -> Option<&Entry> {
        self.entries.get(usize::try_from(rule.entry).ok()?)
    }
}
