//! Asking both policies the same.
use super::lines::{Known, Route};
use super::places::{Place, Sample};
use super::requests::{Attempt, attempts};
use super::{Change, Kind, Side, Witness};
use crate::canonical::Target;
use crate::grants::Caller;
use crate::meaning;
use crate::model::{Body, Connection, Coverage, Decision, Mode, Outcome, Scheme, Subject, Verdict};
use crate::policy::{Policy, RuleData};
use crate::tools::call::Call;
use std::collections::{BTreeMap, BTreeSet};

/// Questions to both policies in one comparison at most.
const MOST: usize = 1_000_000;
/// Rules of a place that a differing one is crossed with at most.
const MOST_OTHERS: usize = 256;
/// Callers and moments that are tried at most.
const MOST_CALLERS: usize = 16;
const MOST_MOMENTS: usize = 8;

/// The first request of each kind.
#[derive(Default)]
pub(super) struct Found {
    pub(super) lets_in: Option<Witness>,
    pub(super) shuts_out: Option<Witness>,
    pub(super) changes: Option<Witness>,
}

impl Found {
    pub(super) fn into_witnesses(self) -> Vec<Witness> {
        let changes = match (&self.lets_in, &self.shuts_out) {
            (None, None) => self.changes,
            _ => None,
        };
        self.lets_in
            .into_iter()
            .chain(self.shuts_out)
            .chain(changes)
            .collect()
    }
}

/// Both policies, and how much may still be asked.
pub(super) struct Probe<'p> {
    old: &'p Policy,
    new: &'p Policy,
    now: i64,
    left: usize,
    pub(super) known: Known,
}

/// Who asks, when.
struct Asker<'a> {
    workload: &'a str,
    identity: Option<&'a str>,
    now: i64,
}

/// What one policy says: verdict as a word, and what would be done.
#[derive(PartialEq, Eq)]
struct Answer {
    verdict: Option<Verdict>,
    mode: Mode,
    does: String,
}

impl Answer {
    fn word(&self) -> &'static str {
        match (self.verdict, self.mode) {
            (Some(Verdict::Allow), _) => "ALLOW",
            (Some(Verdict::Deny), Mode::Enforce) => "DENY",
            (Some(Verdict::Deny), Mode::Observe) => "WOULD-DENY",
            (None, _) => "INSPECTED",
        }
    }
}

impl<'p> Probe<'p> {
    pub(super) fn new(old: &'p Policy, new: &'p Policy, now: i64) -> Self {
        Self {
            old,
            new,
            now,
            left: MOST,
            known: Known::default(),
        }
    }

    pub(super) fn policies(&self) -> [&'p Policy; 2] {
        [self.old, self.new]
    }

    pub(super) fn limited(&self) -> bool {
        self.left == 0
    }

    /// Looks for requests that rules of these numbers, which only one of the policies has, decide.
    pub(super) fn prove(
        &mut self,
        workload: &str,
        place: &Place,
        route: &Route,
        [old, new]: [Vec<u32>; 2],
        callers: &[Option<String>],
        ends: &BTreeSet<i64>,
    ) -> Found {
        let attempts = match &place.sample {
            Sample::Address(_) => Vec::new(),
            Sample::Name(..) => {
                let of = |policy: &'p Policy, numbers: Vec<u32>| {
                    let rules = numbers.into_iter().filter_map(|number| policy.rule(number));
                    rules.collect::<Vec<_>>()
                };
                let mut rules = of(self.old, old);
                rules.extend(of(self.new, new));
                let mut others = of(self.old, allows(self.old, place.old, workload));
                others.extend(of(self.new, allows(self.new, place.new, workload)));
                let meeting = |other: &&RuleData| {
                    rules.iter().any(|rule| {
                        crate::route::meet(
                            rule.template.without_trailing_slash(),
                            other.template.without_trailing_slash(),
                        )
                        .is_some()
                    })
                };
                others.retain(meeting);
                others.truncate(MOST_OTHERS);
                attempts(route, &rules, &others)
            }
        };
        let ends = ends.iter().flat_map(|end| [*end, end.saturating_add(1)]);
        let moments: Vec<i64> = [self.now]
            .into_iter()
            .chain(ends)
            .take(MOST_MOMENTS)
            .collect();
        let mut found = Found::default();
        for identity in callers.iter().take(MOST_CALLERS) {
            for now in &moments {
                let asker = Asker {
                    workload,
                    identity: identity.as_deref(),
                    now: *now,
                };
                self.connect(&asker, place, &mut found);
                for attempt in &attempts {
                    if self.left == 0 || (found.lets_in.is_some() && found.shuts_out.is_some()) {
                        return found;
                    }
                    self.ask(&asker, place, attempt, &mut found);
                }
            }
        }
        found
    }

    fn ask(&mut self, asker: &Asker<'_>, place: &Place, attempt: &Attempt, found: &mut Found) {
        self.left = self.left.saturating_sub(1);
        let Some(call) = call(place, attempt) else {
            return;
        };
        let body = attempt.body.as_deref();
        let [old, new] = [self.old, self.new].map(|policy| decide(policy, asker, &call, body));
        let witness = || {
            let (host, port) = (call.host.as_str(), call.port);
            let port = if port == 443 {
                String::new()
            } else {
                format!(":{port}")
            };
            Witness {
                request: format!("{} https://{host}{port}{}", call.method, call.target),
                headers: call.headers.clone(),
                body: attempt.body.clone(),
                ..asker.witness(&old, &new)
            }
        };
        note(found, &old, &new, witness);
    }

    /// Connections that at least one of the policies does not inspect.
    fn connect(&mut self, asker: &Asker<'_>, place: &Place, found: &mut Found) {
        self.left = self.left.saturating_sub(1);
        let to = match &place.sample {
            Sample::Address(address) => Connection::Address(*address),
            Sample::Name(host, port) => Connection::Name(host, *port),
        };
        let [old, new] = [self.old, self.new].map(|policy| {
            let decision = policy.connect(&asker.subject(), to, asker.now);
            Answer {
                verdict: decision.as_ref().map(|decision| decision.verdict),
                mode: decision.map_or(Mode::Enforce, |decision| decision.mode),
                does: String::new(),
            }
        });
        if old.verdict.is_none() && new.verdict.is_none() {
            return;
        }
        let witness = || Witness {
            request: match &place.sample {
                Sample::Address(address) => format!("connect {address}"),
                Sample::Name(host, port) => format!("connect {host}:{port}"),
            },
            ..asker.witness(&old, &new)
        };
        note(found, &old, &new, witness);
    }

    /// Whether denials at a place stand for one policy and are only observed for the other.
    pub(super) fn compare_mode(
        &mut self,
        workload: &str,
        place: &Place,
        changes: &mut Vec<Change>,
    ) {
        if let Sample::Name(..) = place.sample {
            self.compare_mode_at(workload, Some(place), changes);
        }
    }

    /// The same where no api has the host.
    pub(super) fn compare_modes_elsewhere(&mut self, changes: &mut Vec<Change>) {
        let names = self.old.workloads.iter().chain(&self.new.workloads);
        let names: BTreeSet<&str> = names.map(|workload| workload.name.as_str()).collect();
        for name in names {
            self.compare_mode_at(name, None, changes);
        }
    }

    fn compare_mode_at(
        &mut self,
        workload: &str,
        place: Option<&Place>,
        changes: &mut Vec<Change>,
    ) {
        let sides = [
            (self.old, place.and_then(|place| place.old)),
            (self.new, place.and_then(|place| place.new)),
        ];
        let (mut names, mut moments) = (BTreeSet::from([None]), BTreeSet::from([self.now]));
        for (policy, _) in sides {
            let grants = policy.subjects.get(workload);
            for clause in grants.into_iter().flat_map(|grants| grants.modes.clauses()) {
                for number in clause
                    .callers
                    .iter()
                    .flat_map(|callers| callers.identities.iter())
                {
                    let number = usize::try_from(*number).ok();
                    let identity = number.and_then(|number| policy.identities.get(number));
                    names.extend(identity.map(|identity| Some(identity.name.as_str())));
                }
                moments.extend(
                    clause
                        .until
                        .iter()
                        .flat_map(|end| [*end, end.saturating_add(1)]),
                );
            }
        }
        let mut told: BTreeMap<(Mode, Mode), (Vec<String>, Vec<Witness>)> = BTreeMap::new();
        for identity in names.iter().take(MOST_CALLERS) {
            for now in moments.iter().take(MOST_MOMENTS) {
                let asker = Asker {
                    workload,
                    identity: *identity,
                    now: *now,
                };
                let [was, is] = sides.map(|(policy, api)| mode(policy, api, &asker));
                if was == is {
                    continue;
                }
                let (who, witnesses) = told.entry((was, is)).or_default();
                who.extend(identity.map(str::to_owned));
                if witnesses.is_empty() {
                    witnesses.extend(self.denied(&asker, place));
                }
            }
        }
        for ((was, is), (mut identities, witnesses)) in told {
            identities.dedup();
            let kind = match (witnesses.is_empty(), is) {
                (true, _) => Kind::Unproven,
                (false, Mode::Observe) => Kind::LetsIn,
                (false, Mode::Enforce) => Kind::ShutsOut,
            };
            let side = |mode| {
                let says = match mode {
                    Mode::Enforce => "denials stand",
                    Mode::Observe => "denials are only recorded: what is denied passes",
                };
                vec![Side {
                    says: says.to_owned(),
                    at: None,
                }]
            };
            changes.push(Change {
                kind,
                workloads: vec![workload.to_owned()],
                identities,
                places: place.map_or_else(
                    || vec!["everywhere else".to_owned()],
                    |place| place.names.clone(),
                ),
                what: "denials".to_owned(),
                old: side(was),
                new: side(is),
                witnesses,
            });
        }
    }

    /// A request that both deny, one of them only on record.
    fn denied(&mut self, asker: &Asker<'_>, place: Option<&Place>) -> Option<Witness> {
        let targets = ["/tollgate-diff", "/"];
        let methods = ["TOLLGATE", "GET", "TRACE"];
        let tries = targets
            .iter()
            .flat_map(|target| methods.map(|method| (method, *target)));
        for (method, target) in tries {
            let attempt = Attempt {
                method: method.to_owned(),
                target: target.to_owned(),
                headers: Vec::new(),
                body: None,
            };
            let call = match place {
                Some(place) => call(place, &attempt)?,
                None => {
                    Call::new(method, &format!("https://tollgate-diff.invalid{target}")).ok()?
                }
            };
            let [old, new] = [self.old, self.new].map(|policy| decide(policy, asker, &call, None));
            let denied = [&old, &new].map(|answer| answer.verdict == Some(Verdict::Deny));
            if denied == [true, true] && old.mode != new.mode {
                let host = &call.host;
                let port = if call.port == 443 {
                    String::new()
                } else {
                    format!(":{}", call.port)
                };
                return Some(Witness {
                    request: format!("{method} https://{host}{port}{target}"),
                    ..asker.witness(&old, &new)
                });
            }
        }
        None
    }
}

impl Asker<'_> {
    fn subject(&self) -> Subject<'_> {
        Subject {
            workload: self.workload,
            identity: self.identity,
        }
    }

    fn witness(&self, old: &Answer, new: &Answer) -> Witness {
        Witness {
            workload: self.workload.to_owned(),
            identity: self.identity.map(str::to_owned),
            now: self.now,
            request: String::new(),
            headers: Vec::new(),
            body: None,
            old: old.word(),
            new: new.word(),
        }
    }
}

fn note(found: &mut Found, old: &Answer, new: &Answer, witness: impl Fn() -> Witness) {
    let allowed = |answer: &Answer| answer.verdict == Some(Verdict::Allow);
    let kept = match (allowed(old), allowed(new)) {
        (false, true) => &mut found.lets_in,
        (true, false) => &mut found.shuts_out,
        _ if old.does != new.does => &mut found.changes,
        _ => return,
    };
    if kept.is_none() {
        *kept = Some(witness());
    }
}

/// Numbers of the allow rules of a workload at a place.
fn allows(policy: &Policy, api: Option<usize>, workload: &str) -> Vec<u32> {
    let grants = policy.subjects.get(workload);
    let granted = grants.and_then(|grants| grants.apis.get(&api?));
    granted.map_or_else(Vec::new, |granted| granted.rules.allows.clone())
}

fn call(place: &Place, attempt: &Attempt) -> Option<Call> {
    let Sample::Name(host, port) = &place.sample else {
        return None;
    };
    Some(Call {
        method: attempt.method.clone(),
        scheme: Scheme::Https,
        host: host.clone(),
        port: *port,
        target: Target::parse(&attempt.target).ok()?.into_owned(),
        headers: attempt.headers.clone(),
    })
}

fn decide(policy: &Policy, asker: &Asker<'_>, call: &Call, body: Option<&str>) -> Answer {
    let body = body.map_or(Body::Absent, |body| Body::Read(body.as_bytes()));
    match policy.decide(&asker.subject(), &call.request(body, asker.now)) {
        Outcome::Decided(decision) => Answer {
            verdict: Some(decision.verdict),
            mode: decision.mode,
            does: does(&decision),
        },
        // Not reached: only an unread body is asked for.
        Outcome::NeedsBody { .. } => Answer {
            verdict: None,
            mode: Mode::Enforce,
            does: String::new(),
        },
    }
}

/// What becomes of an allowed request.
fn does(decision: &Decision<'_>) -> String {
    let plan = &decision.plan;
    if decision.verdict == Verdict::Deny
        || plan
            .api
            .is_some_and(|api| api.coverage != Coverage::Inspected)
    {
        return String::new();
    }
    let sorted = |names: &[String]| {
        let mut names = names.to_vec();
        names.sort_unstable();
        names
    };
    format!(
        "{:?} {} {:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        plan.credential.map(meaning::of_credential),
        plan.client_credentials,
        plan.query,
        plan.body,
        sorted(plan.headers.allow),
        sorted(plan.headers.strip),
        sorted(plan.response_strip),
        plan.response_redact.map(|redactor| redactor.pointers()),
        plan.response_max,
    )
}

/// Whether a denial stands.
fn mode(policy: &Policy, api: Option<usize>, asker: &Asker<'_>) -> Mode {
    let caller = Caller {
        identity: asker.identity.and_then(|name| policy.identity_number(name)),
        now: asker.now,
    };
    let Some(grants) = policy.subjects.get(asker.workload) else {
        return Mode::Enforce;
    };
    let granted = api.and_then(|api| grants.apis.get(&api));
    let held = granted.and_then(|granted| granted.modes.mode(caller));
    held.or_else(|| grants.modes.mode(caller))
        .unwrap_or(Mode::Enforce)
}
