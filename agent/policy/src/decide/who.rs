//! Which subjects could make a call, by which rule, and what else would have to hold.
use super::{Ask, Failure, query};
use crate::canonical::Target;
use crate::grants::Clause;
use crate::headers::{ParameterKind, parameter_kind};
use crate::meaning;
use crate::model::{Body, Connection, Coverage, Mode, Request, Rule, Scheme, Subject, Verdict};
use crate::payload::is_grpc;
use crate::policy::{CredentialUse, Extra, Policy, RuleData, RuleSet};
use std::collections::BTreeSet;

/// A subject that could make a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ability<'p> {
    /// The workload.
    pub workload: &'p str,
    /// Who must be proven.
    pub who: Who<'p>,
    /// By which rule; `None` where it is denied and the denial is only recorded.
    pub rule: Option<&'p Rule>,
    /// Of the grants: `Observe` where denials are only recorded.
    pub mode: Mode,
    /// The last second at which it could; `None` where that does not end.
    pub until: Option<i64>,
    /// Whose credential would be sent: a name, or `client`.
    pub credential: Option<&'p str>,
    /// What else would have to hold, each in words.
    pub further: Vec<String>,
}

/// Identities.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Who<'p> {
    /// Also nobody proven; all but these.
    Anybody {
        /// Those who could not.
        but: Vec<&'p str>,
    },
    /// These.
    These(Vec<&'p str>),
}

/// What is known of a request, and what is not.
#[derive(Clone, Copy)]
struct Known<'a> {
    /// Names of query parameters whose values are not known.
    parameters: &'a [String],
    /// Whether a header that is not there might have been.
    headers: bool,
}

impl Policy {
    /// Every subject that could make a call like this at its time. What a rule asks for and the request does not have
    /// (required parameters and headers, a body that is absent or unread) is told as a further condition; what it has
    /// must fit. Each subject's rules are listed up to the first that asks for nothing more. In clear nothing is
    /// allowed.
    pub fn who_can<'p>(&'p self, request: &Request<'_>) -> Vec<Ability<'p>> {
        let index = self.api_index(request.host, request.port);
        let known = Known {
            parameters: &[],
            headers: true,
        };
        let mut abilities = Vec::new();
        for workload in &self.workloads {
            let Some(grants) = self.subjects.get(workload.name.as_str()) else {
                continue;
            };
            let granted = index.and_then(|index| grants.apis.get(&index));
            let clauses = grants.modes.clauses().iter();
            let clauses = clauses.chain(granted.into_iter().flat_map(|of| of.modes.clauses()));
            let numbers: BTreeSet<u32> = clauses
                .filter_map(|clause| clause.callers.as_ref().map(|callers| &*callers.identities))
                .flatten()
                .copied()
                .collect();
            let named = numbers.into_iter().filter_map(|number| {
                let identity = self.identities.get(usize::try_from(number).ok()?)?;
                Some(identity.name.as_str())
            });
            let callers: Vec<Option<&str>> = [None].into_iter().chain(named.map(Some)).collect();
            let mut found: Vec<(Ability<'p>, Vec<Option<&'p str>>)> = Vec::new();
            for caller in &callers {
                let subject = Subject {
                    workload: &workload.name,
                    identity: *caller,
                };
                for ability in self.abilities(&workload.name, &subject, request, known) {
                    match found.iter_mut().find(|(same, _)| *same == ability) {
                        Some((_, who)) => who.push(*caller),
                        None => found.push((ability, vec![*caller])),
                    }
                }
            }
            abilities.extend(found.into_iter().map(|(ability, who)| Ability {
                who: group(&callers, &who),
                ..ability
            }));
        }
        abilities
    }

    /// How one subject could make a call of which only method, host, path and the names of parameters are known.
    pub fn could<'p>(
        &'p self,
        subject: &Subject<'_>,
        request: &Request<'_>,
        parameters: &[String],
    ) -> Vec<Ability<'p>> {
        let workload = self
            .workloads
            .iter()
            .find(|known| known.name == subject.workload);
        let known = Known {
            parameters,
            headers: true,
        };
        workload.map_or_else(Vec::new, |workload| {
            self.abilities(&workload.name, subject, request, known)
        })
    }

    /// Of one caller; `who` is not said yet.
    fn abilities<'p>(
        &'p self,
        workload: &'p str,
        subject: &Subject<'_>,
        request: &Request<'_>,
        known: Known<'_>,
    ) -> Vec<Ability<'p>> {
        let bare = |mode| Ability {
            workload,
            who: Who::These(Vec::new()),
            rule: None,
            mode,
            until: None,
            credential: None,
            further: Vec::new(),
        };
        let to = Connection::Name(request.host, request.port);
        let connection = match request.scheme {
            Scheme::Https => self.connect(subject, to, request.now),
            Scheme::Http => None,
        };
        if let Some(decision) = connection.filter(|known| known.verdict == Verdict::Allow) {
            let passes = "the connection is not inspected: any request passes".to_owned();
            return vec![Ability {
                rule: decision.rule,
                further: vec![passes],
                ..bare(decision.mode)
            }];
        }
        let ask = self.ask(subject, request);
        let plain = self
            .api_for(request.host, request.port)
            .map_or(Scheme::Https, |api| api.scheme);
        if request.scheme != plain {
            return Vec::new();
        }
        let scope = match self.scope(&ask) {
            Ok(scope) => scope,
            Err(denial) => {
                let inspected = |api: &crate::model::Api| api.coverage == Coverage::Inspected;
                let seen = denial.plan.api.is_none_or(inspected);
                let observed = seen && denial.mode == Mode::Observe;
                return observed.then(|| bare(Mode::Observe)).into_iter().collect();
            }
        };
        let mut abilities = Vec::new();
        if let Some(unless) = self.unless(scope.rules, &ask) {
            let mut matches = scope.rules.allow.matches(&request.target.path);
            matches.sort_unstable();
            for number in matches {
                let Some(rule) = self.rule(number) else {
                    continue;
                };
                let had = self.has(scope.rules, number, ask.caller);
                let Some(mut further) = self.still(rule, &ask, known).filter(|_| had) else {
                    continue;
                };
                further.extend_from_slice(&unless);
                let last = further.is_empty();
                let clauses = self.clauses(scope.rules, number).iter();
                let held = clauses.filter(|clause| clause.holds(ask.caller));
                abilities.push(Ability {
                    rule: Some(&rule.public),
                    until: last_end(held),
                    credential: match self.credential_use(rule) {
                        CredentialUse::None => None,
                        CredentialUse::Client => Some("client"),
                        CredentialUse::Inject(number) => self
                            .credentials
                            .get(number)
                            .map(|known| known.name.as_str()),
                    },
                    further,
                    ..bare(scope.mode)
                });
                if last {
                    return abilities;
                }
            }
        }
        if scope.mode == Mode::Observe {
            abilities.push(bare(Mode::Observe));
        }
        abilities
    }

    /// What must not hold, lest a deny rule does; `None` where one does.
    fn unless(&self, rules: &RuleSet, ask: &Ask<'_>) -> Option<Vec<String>> {
        let path = &ask.request.target.path;
        let path = path.strip_suffix('/').unwrap_or(path);
        let mut unless = Vec::new();
        for number in rules.deny.matches(path) {
            let Some(rule) = self.rule(number) else {
                continue;
            };
            if !rule.methods.deny(ask.request.method) || !self.has(rules, number, ask.caller) {
                continue;
            }
            match &rule.when {
                // What is not given might be sent.
                Some(when) if when.text().contains("headers") => {
                    unless.push(format!("not: {}", when.text()));
                }
                Some(when) if self.condition(rule, when, ask, None) == Ok(false) => {}
                _ => return None,
            }
        }
        Some(unless)
    }

    /// What a rule, whose path matches, still asks for; `None` where it cannot hold.
    fn still(&self, rule: &RuleData, ask: &Ask<'_>, known: Known<'_>) -> Option<Vec<String>> {
        let request = ask.request;
        if !rule.methods.allow(request.method) {
            return None;
        }
        let mut further = Vec::new();
        self.still_of_query(rule, request.target, known, &mut further)?;
        for (name, shape) in &rule.headers.require {
            let (mut count, mut fits) = (0_usize, false);
            request.headers.each(name, &mut |value| {
                count += 1;
                fits = std::str::from_utf8(value).is_ok_and(|text| shape.accepts_text(text));
            });
            match count {
                0 if known.headers => {
                    further.push(format!("header {name} is {}", meaning::notation(shape)));
                }
                1 if fits => {}
                _ => return None,
            }
        }
        if rule.grpc && !is_grpc(request.headers) {
            let mut typed = false;
            request.headers.each("content-type", &mut |_| typed = true);
            if typed {
                return None;
            }
            further.push("it is gRPC".to_owned());
        }
        match &rule.websocket {
            Some(messages) if !ask.websocket => {
                let asks = meaning::asks_of_messages(messages);
                further.push(format!("it opens a WebSocket, {asks}"));
            }
            None if ask.websocket => return None,
            _ => {}
        }
        if let Body::Read(_) = request.body {
            self.look(rule, ask).ok()?;
            return Some(further);
        }
        if let Some(body) = &rule.body {
            let asks = meaning::asks_of_body(body);
            let protocol = match rule.payload {
                Some(_) => ", and what the rule says of its protocol",
                None => "",
            };
            further.push(format!("the body fits: {asks}{protocol}"));
        }
        match &rule.when {
            None => {}
            Some(when) if when.needs_body() || when.text().contains("headers") => {
                further.push(format!("when {}", when.text()));
            }
            Some(when) if !known.parameters.is_empty() && when.text().contains("query") => {
                further.push(format!("when {}", when.text()));
            }
            Some(when) => {
                let holds = self.condition(rule, when, ask, None) == Ok(true);
                holds.then_some(())?;
            }
        }
        Some(further)
    }

    fn still_of_query(
        &self,
        rule: &RuleData,
        target: &Target<'_>,
        known: Known<'_>,
        further: &mut Vec<String>,
    ) -> Option<()> {
        let client = self.credential_use(rule) == CredentialUse::Client;
        match query::check(rule.query.as_ref(), client, target) {
            Ok(_) | Err(Failure::QueryMissing(_)) => {}
            Err(_) => return None,
        }
        let Some(spec) = &rule.query else {
            return Some(());
        };
        let mut named = |name: &str, shape: &crate::shape::Shape| {
            further.push(format!("parameter {name} is {}", meaning::notation(shape)));
        };
        for name in known.parameters {
            let declared = spec
                .parameters
                .iter()
                .find(|parameter| *parameter.name == **name);
            match declared {
                Some(parameter) => named(name, &parameter.shape),
                None => {
                    let dropped = match parameter_kind(name) {
                        ParameterKind::Method => true,
                        ParameterKind::Credential => !client,
                        ParameterKind::Plain => false,
                    };
                    (dropped || spec.extra == Extra::Strip).then_some(())?;
                }
            }
        }
        let given = |name: &str| {
            target.pairs().any(|pair| pair.name == name)
                || known.parameters.iter().any(|known| known == name)
        };
        for parameter in spec
            .parameters
            .iter()
            .filter(|parameter| parameter.required)
        {
            if !given(&parameter.name) {
                named(&parameter.name, &parameter.shape);
            }
        }
        Some(())
    }
}

fn last_end<'c>(clauses: impl Iterator<Item = &'c Clause>) -> Option<i64> {
    let ends = clauses.map(|clause| clause.until.unwrap_or(i64::MAX));
    ends.max().filter(|end| *end != i64::MAX)
}

fn group<'p>(all: &[Option<&'p str>], who: &[Option<&'p str>]) -> Who<'p> {
    if who.contains(&None) {
        let but = all.iter().filter(|caller| !who.contains(caller));
        return Who::Anybody {
            but: but.copied().flatten().collect(),
        };
    }
    Who::These(who.iter().copied().flatten().collect())
}
