//! What a change of policy lets in and shuts out: `tollgate diff`.
//!
//! Two policies are compared by what they mean: for each workload and place, which rules it has, under which
//! conditions, with which credential. Names of roles, of places in a path, of apis and files, and the order of anything
//! mean nothing. Each difference is then proven by a request made up for it that the two policies decide differently.
//! Where none was found, the change may have no effect, or one that only a body or condition shows: it is told as
//! [`Kind::Unproven`], never left out.
mod lines;
mod places;
mod probe;
mod requests;

use crate::model::{Proof, Selector, Workload};
use crate::policy::Policy;
use crate::syntax::Location;
use std::collections::BTreeMap;

/// What a change does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something passes that did not.
    LetsIn,
    /// Something no longer passes.
    ShutsOut,
    /// Both of these.
    Both,
    /// What passes still does, in another way: another credential, other headers.
    Changes,
    /// Something is written otherwise, and no request was found that is decided differently.
    Unproven,
}

/// One difference.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Change {
    /// What it does.
    pub kind: Kind,
    /// The workloads that it concerns.
    pub workloads: Vec<String>,
    /// The identities that it concerns; empty where it does not matter who was proven.
    pub identities: Vec<String>,
    /// Where requests go: `https://api.github.com`; empty where it is not about a place.
    pub places: Vec<String>,
    /// What is different: `allow GET /repos/*/issues`, `denials`, `recognised by`.
    pub what: String,
    /// How it was, where it was.
    pub old: Vec<Side>,
    /// How it is.
    pub new: Vec<Side>,
    /// Requests that are decided differently.
    pub witnesses: Vec<Witness>,
}

/// What one of the policies says.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Side {
    /// In words.
    pub says: String,
    /// Where.
    pub at: Option<Location>,
}

/// A request that the two policies decide differently.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Witness {
    /// Who asks.
    pub workload: String,
    /// Who was proven.
    pub identity: Option<String>,
    /// When, in seconds since 1970 (UTC).
    pub now: i64,
    /// `GET https://api.github.com/repos/x/issues?state=open`; `connect 10.0.0.7:6379` for a connection.
    pub request: String,
    /// Its headers.
    pub headers: Vec<(String, String)>,
    /// Its body.
    pub body: Option<String>,
    /// What the old policy says: `ALLOW`, `DENY`, or `WOULD-DENY` where a denial is only observed.
    pub old: &'static str,
    /// What the new one says.
    pub new: &'static str,
}

/// All differences.
#[derive(Debug, serde::Serialize)]
pub struct Difference {
    /// What lets in comes first.
    pub changes: Vec<Change>,
    /// Whether the policies are so large that not everything was tried.
    pub limited: bool,
}

impl Difference {
    /// Whether the policies mean the same.
    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

/// Compares two policies at a time, in seconds since 1970 (UTC).
pub fn diff(old: &Policy, new: &Policy, now: i64) -> Difference {
    let mut probe = probe::Probe::new(old, new, now);
    let mut changes = subjects(old, new);
    for place in places::places(old, new) {
        places::compare(old, new, &place, &mut changes);
        lines::compare(&mut probe, &place, &mut changes);
    }
    probe.compare_modes_elsewhere(&mut changes);
    changes.sort_by(|one, other| {
        let key = |change: &Change| (change.kind, change.workloads.clone(), change.places.clone());
        key(one)
            .cmp(&key(other))
            .then_with(|| one.what.cmp(&other.what))
    });
    Difference {
        changes,
        limited: probe.limited(),
    }
}

/// How workloads are recognised, and how identities are proven.
fn subjects(old: &Policy, new: &Policy) -> Vec<Change> {
    let recognised = |workload: &Workload| {
        let mut selectors: Vec<String> = workload.selectors.iter().map(selector).collect();
        selectors.sort_unstable();
        let says = match selectors.is_empty() {
            true => "only started by hand".to_owned(),
            false => selectors.join(", or "),
        };
        (workload.name.clone(), (says, workload.at.clone()))
    };
    let proven = |identity: &crate::model::Identity| {
        (
            identity.name.clone(),
            (proof(&identity.proof), identity.at.clone()),
        )
    };
    let mut changes = Vec::new();
    let workloads = [old, new].map(|policy| policy.workloads.iter().map(recognised).collect());
    for (name, old, new) in differing(workloads) {
        changes.push(subject(vec![name], Vec::new(), "recognised by", old, new));
    }
    for what in ["listens on", "may speak to", "connections from before"] {
        let said = |workload: &Workload| {
            let says = match what {
                "listens on" => listed(&workload.listen),
                "may speak to" => listed(&workload.unix),
                _ => workload.established.as_str().to_owned(),
            };
            (workload.name.clone(), (says, workload.at.clone()))
        };
        let workloads = [old, new].map(|policy| policy.workloads.iter().map(said).collect());
        for (name, old, new) in differing(workloads) {
            changes.push(subject(vec![name], Vec::new(), what, old, new));
        }
    }
    let identities = [old, new].map(|policy| policy.identities.iter().map(proven).collect());
    for (name, old, new) in differing(identities) {
        changes.push(subject(Vec::new(), vec![name], "proven by", old, new));
    }
    if [old, new].iter().any(|policy| looks_at_groups(policy)) {
        let grouped = |policy: &Policy| {
            let member = |identity: &crate::model::Identity| {
                let mut groups = policy.groups_of(&identity.name).to_vec();
                groups.sort_unstable();
                (
                    identity.name.clone(),
                    (groups.join(", "), identity.at.clone()),
                )
            };
            policy.identities.iter().map(member).collect()
        };
        for (name, old, new) in differing([grouped(old), grouped(new)]) {
            changes.push(subject(Vec::new(), vec![name], "in groups", old, new));
        }
    }
    changes
}

/// Whether a condition asks which groups an identity is in: elsewhere a group is only its members.
fn looks_at_groups(policy: &Policy) -> bool {
    let mut conditions = policy.rules.iter().filter_map(|rule| rule.when.as_ref());
    conditions.any(|when| when.text().contains("groups"))
}

type Said = (String, Location);

/// What is said of the same name in another way. What only one policy has shows in its grants.
fn differing(both: [BTreeMap<String, Said>; 2]) -> Vec<(String, Said, Said)> {
    let [old, mut new] = both;
    old.into_iter()
        .filter_map(|(name, was)| {
            let is = new.remove(&name)?;
            (was.0 != is.0).then_some((name, was, is))
        })
        .collect()
}

fn subject(
    workloads: Vec<String>,
    identities: Vec<String>,
    what: &str,
    old: Said,
    new: Said,
) -> Change {
    let side = |(says, at): Said| vec![Side { says, at: Some(at) }];
    Change {
        kind: Kind::Changes,
        workloads,
        identities,
        places: Vec::new(),
        what: what.to_owned(),
        old: side(old),
        new: side(new),
        witnesses: Vec::new(),
    }
}

fn listed(items: &[impl ToString]) -> String {
    let items: Vec<String> = items.iter().map(ToString::to_string).collect();
    match items.is_empty() {
        true => "none".to_owned(),
        false => items.join(", "),
    }
}

fn selector(selector: &Selector) -> String {
    let labels = selector.shown_labels();
    let parts = [
        ("cgroup", &selector.cgroup),
        ("container", &selector.container),
        ("exe", &selector.exe),
        ("labels", &labels),
        ("sha256", &selector.sha256),
        ("unit", &selector.unit),
        ("user", &selector.user),
    ];
    let said: Vec<String> = parts
        .iter()
        .filter_map(|(name, value)| Some(format!("{name} {}", value.as_ref()?)))
        .collect();
    said.join(" and ")
}

fn proof(proof: &Proof) -> String {
    match proof {
        Proof::Token(public) => format!("token {public}"),
        Proof::Jwt {
            issuer,
            audience,
            claims,
            keys,
        } => {
            let claims: Vec<String> = claims
                .iter()
                .map(|(name, value)| format!(", {name}: {value}"))
                .collect();
            let keys = keys
                .as_ref()
                .map(|keys| format!(", keys {}:{}", keys.source, keys.key));
            format!(
                "JWT of {issuer} for {audience}{}{}",
                claims.concat(),
                keys.unwrap_or_default()
            )
        }
    }
}
