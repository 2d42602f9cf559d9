//! The decision on one request.
//!
//! Deny is the default. Of the workload's grants on the api, a deny rule that matches wins; else the
//! most specific allow rule of which everything holds decides, and says how the request is forwarded.
//! A rule is found by walking a tree over path segments; no rule is looked at whose route does not match.
mod body;
mod connection;
mod explain;
mod header;
mod message;
mod name;
mod query;
mod reason;
mod who;

use crate::body::{BodyFault, Edited};
use crate::grants::{ALWAYS, Caller, Clause};
use crate::model::{
    Api, Coverage, Decision, HeaderRules, Mode, Outcome, Plan, Request, Rule, Scheme, Subject,
    Verdict,
};
use crate::payload::{PayloadFault, is_grpc};
use crate::policy::{CredentialUse, Policy, RuleData, RuleSet};
use crate::websocket::is_websocket;
use crate::work::Count;
use body::{Looked, Trees};
use query::Stripped;
use std::borrow::Cow;

pub use who::{Ability, Who};

/// A question: what is asked, by whom, and when.
struct Ask<'a> {
    subject: &'a Subject<'a>,
    request: &'a Request<'a>,
    /// It opens a WebSocket.
    websocket: bool,
    caller: Caller,
    trees: Trees,
}

/// The first thing of a rule that does not hold, in the order of checking.
#[derive(Debug)]
enum Failure<'a> {
    Route,
    Method,
    QueryExtra(Cow<'a, str>),
    QueryValue {
        name: &'a str,
        expected: String,
    },
    QueryDuplicate(&'a str),
    QueryMissing(&'a str),
    HeaderMissing(&'a str),
    HeaderValue {
        name: &'a str,
        expected: String,
    },
    GrpcType,
    /// Only one of the two, request and rule, is about a WebSocket.
    WebSocket,
    /// A message on a WebSocket.
    Message(BodyFault),
    Body(BodyFault),
    Payload(PayloadFault),
    /// The condition, and why it could not be evaluated, if so.
    Condition(&'a str, Option<String>),
    /// The same, of a message.
    MessageCondition(&'a str, Option<String>),
    /// All of the rule holds, and nobody who calls now has it.
    Guard(Lack),
}

/// Why a grant does not hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lack {
    /// It names identities, and none was proven.
    Proof,
    /// It names other identities.
    Identity,
    /// It has expired.
    Time,
}

impl Failure<'_> {
    /// How far the rule got.
    fn stage(&self) -> u8 {
        match self {
            Self::Route => 0,
            Self::Method => 1,
            Self::QueryExtra(_)
            | Self::QueryValue { .. }
            | Self::QueryDuplicate(_)
            | Self::QueryMissing(_) => 2,
            Self::HeaderMissing(_) | Self::HeaderValue { .. } | Self::GrpcType => 3,
            Self::WebSocket => 3,
            Self::Body(_) | Self::Message(_) => 4,
            Self::Payload(_) => 5,
            Self::Condition(..) | Self::MessageCondition(..) => 6,
            Self::Guard(_) => 7,
        }
    }
}

/// What of a request is not sent as it came.
#[derive(Debug, Default)]
struct Changes {
    query: Option<Stripped>,
    body: Option<Edited>,
}

/// What comes of holding one rule against a request.
enum Held<'a> {
    /// Everything holds.
    Yes(Changes),
    /// All but the body holds, which must be read.
    NeedsBody(usize),
    No(Failure<'a>),
}

/// Where a request is going, and what is granted there.
struct Scope<'p> {
    api: &'p Api,
    rules: &'p RuleSet,
    mode: Mode,
}

impl Policy {
    /// Decides one request. With [`Body::Unread`](crate::Body::Unread) and a rule that must see the body, asks for it.
    pub fn decide<'p>(&'p self, subject: &Subject<'_>, request: &Request<'_>) -> Outcome<'p> {
        if let Some(reason) = &self.refusing {
            return Outcome::Decided(denial(None, Mode::Enforce, None, reason.clone()));
        }
        let ask = self.ask(subject, request);
        let scope = match self.scope(&ask) {
            Ok(scope) => scope,
            Err(denial) => return Outcome::Decided(*denial),
        };
        let work = Count::begin();
        let denied = self.denied(scope.rules, &ask);
        let outcome = match denied {
            Some(rule) => {
                let reason = reason::denied_by_rule(rule);
                Outcome::Decided(deny(&scope, Some(&rule.public), reason))
            }
            None => self.weigh(&scope, &ask),
        };
        // A pattern that was not tried may be one of a deny rule.
        if denied.is_none() && work.is_used_up() {
            return Outcome::Decided(deny(&scope, None, reason::too_much_work()));
        }
        outcome
    }

    fn ask<'a>(&self, subject: &'a Subject<'a>, request: &'a Request<'a>) -> Ask<'a> {
        Ask {
            subject,
            request,
            websocket: is_websocket(request.headers),
            caller: self.caller(subject, request.now),
            trees: Trees::default(),
        }
    }

    fn caller(&self, subject: &Subject<'_>, now: i64) -> Caller {
        Caller {
            identity: subject.identity.and_then(|name| self.identity_number(name)),
            now,
        }
    }

    /// The api and the grants on it, or the denial for want of either.
    fn scope<'p>(&'p self, ask: &Ask<'_>) -> Result<Scope<'p>, Box<Decision<'p>>> {
        let grants = self.subjects.get(ask.subject.workload);
        let mode = grants.and_then(|grants| grants.modes.mode(ask.caller));
        let mode = mode.unwrap_or(Mode::Enforce);
        let Some(index) = self.api_index(ask.request.host, ask.request.port) else {
            let reason = reason::unknown_host(self, ask.request);
            return Err(Box::new(denial(None, mode, None, reason)));
        };
        let api = self.apis.get(index);
        let granted = grants.and_then(|grants| grants.apis.get(&index));
        let (Some(api), Some(granted)) = (api, granted) else {
            let reason = reason::no_grant(ask.subject, api, grants.is_some());
            return Err(Box::new(denial(api, mode, None, reason)));
        };
        let Some(held) = granted.modes.mode(ask.caller) else {
            let lack = lack(granted.modes.clauses(), ask.caller);
            let reason = reason::of_lack(lack, ask.subject, &format!("api {}", api.name));
            return Err(Box::new(denial(Some(api), mode, None, reason)));
        };
        if api.coverage != Coverage::Inspected {
            let reason = reason::uninspected(api);
            return Err(Box::new(denial(Some(api), held, None, reason)));
        }
        Ok(Scope {
            api,
            rules: &granted.rules,
            mode: held,
        })
    }

    /// Whether the caller has the rule, which is in the set.
    fn has(&self, rules: &RuleSet, rule: u32, caller: Caller) -> bool {
        self.lack(rules, rule, caller).is_none()
    }

    /// Why the caller does not have the rule, which is in the set.
    fn lack(&self, rules: &RuleSet, rule: u32, caller: Caller) -> Option<Lack> {
        let place = rules
            .guarded
            .binary_search_by_key(&rule, |(number, _)| *number);
        let number = place.ok().and_then(|place| rules.guarded.get(place));
        let number = number.map_or(ALWAYS, |(_, guard)| *guard);
        let guard = self.guards.get(usize::try_from(number).ok()?)?;
        (!guard.holds(caller)).then(|| lack(&guard.0, caller))
    }

    /// The most specific deny rule that matches. A trailing slash makes no difference to it: to many
    /// servers it makes none.
    fn denied<'p>(&'p self, rules: &RuleSet, ask: &Ask<'_>) -> Option<&'p RuleData> {
        let path = &ask.request.target.path;
        let path = path.strip_suffix('/').unwrap_or(path);
        let matches = rules.deny.matches(path);
        let denying = |number: &u32| {
            self.rule(*number).is_some_and(|rule| {
                rule.methods.deny(ask.request.method) && self.forbids(rule, ask)
            }) && self.has(rules, *number, ask.caller)
        };
        self.rule(matches.into_iter().filter(denying).min()?)
    }

    /// Whether the condition of a deny rule holds. One that cannot be evaluated does.
    fn forbids(&self, rule: &RuleData, ask: &Ask<'_>) -> bool {
        let when = rule.when.as_ref();
        when.is_none_or(|when| self.condition(rule, when, ask, None) != Ok(false))
    }

    /// Holds every allow rule whose route matches against the request, the most specific first.
    fn weigh<'p>(&'p self, scope: &Scope<'p>, ask: &Ask<'_>) -> Outcome<'p> {
        let mut matches = scope.rules.allow.matches(&ask.request.target.path);
        matches.sort_unstable();
        let numbered = || {
            let all = matches.iter();
            all.filter_map(|number| Some((*number, self.rule(*number)?)))
        };
        let mut nearest: Option<(&RuleData, Failure<'_>)> = None;
        for (number, rule) in numbered() {
            let lack = self.lack(scope.rules, number, ask.caller);
            let failure = match (self.hold(rule, ask), lack) {
                (Held::No(failure), _) => failure,
                (_, Some(lack)) => Failure::Guard(lack),
                (Held::Yes(changes), None) => {
                    let mut decision = self.allow(scope, rule, ask.request, changes);
                    if rule.websocket.is_some() && decision.verdict == Verdict::Allow {
                        let lengths = numbered().filter_map(|(number, rule)| {
                            let held = self.has(scope.rules, number, ask.caller);
                            self.message_length(rule, ask).filter(|_| held)
                        });
                        decision.plan.websocket = lengths.max();
                    }
                    return Outcome::Decided(decision);
                }
                (Held::NeedsBody(_), None) => {
                    let wanted = numbered().filter_map(|(number, rule)| {
                        match (
                            self.hold(rule, ask),
                            self.has(scope.rules, number, ask.caller),
                        ) {
                            (Held::NeedsBody(max), true) => Some(max),
                            _ => None,
                        }
                    });
                    return Outcome::NeedsBody {
                        max: wanted.max().unwrap_or(0),
                    };
                }
            };
            let further = |(_, known): &(_, Failure<'_>)| failure.stage() > known.stage();
            if nearest.as_ref().is_none_or(further) {
                nearest = Some((rule, failure));
            }
        }
        let reason = match &nearest {
            Some((rule, failure)) => reason::of_failure(rule, failure, ask),
            None => reason::no_route(ask.subject, scope.api, ask.request),
        };
        Outcome::Decided(deny(scope, None, reason))
    }

    /// Holds one rule, whose route matches, against a request.
    fn hold<'a>(&'a self, rule: &'a RuleData, ask: &'a Ask<'_>) -> Held<'a> {
        let request = ask.request;
        if !rule.methods.allow(request.method) {
            return Held::No(Failure::Method);
        }
        let client = self.credential_use(rule) == CredentialUse::Client;
        let query = match query::check(rule.query.as_ref(), client, request.target) {
            Ok(stripped) => stripped,
            Err(failure) => return Held::No(failure),
        };
        if let Err(failure) = header::check(&rule.headers, request.headers) {
            return Held::No(failure);
        }
        if rule.grpc && !is_grpc(request.headers) {
            return Held::No(Failure::GrpcType);
        }
        if rule.websocket.is_some() != ask.websocket {
            return Held::No(Failure::WebSocket);
        }
        let body = match self.look(rule, ask) {
            Ok(Looked::Good(body)) => body,
            Ok(Looked::Needs(max)) => return Held::NeedsBody(max),
            Err(failure) => return Held::No(failure),
        };
        match self.hold_message(rule, ask) {
            Ok(edited) => Held::Yes(Changes {
                query,
                body: body.or(edited),
            }),
            Err(failure) => Held::No(failure),
        }
    }

    fn credential_use(&self, rule: &RuleData) -> CredentialUse {
        self.entry(rule)
            .map_or(CredentialUse::None, |entry| entry.credential)
    }

    /// The rule holds: allowed, unless it came in clear.
    fn allow<'p>(
        &'p self,
        scope: &Scope<'p>,
        rule: &'p RuleData,
        request: &Request<'_>,
        changes: Changes,
    ) -> Decision<'p> {
        let credential = self.credential_use(rule);
        if request.scheme != scope.api.scheme {
            let mut refused = deny(scope, Some(&rule.public), reason::cleartext(scope.api));
            if credential != CredentialUse::None || scope.api.scheme == Scheme::Http {
                refused.mode = Mode::Enforce;
            }
            return refused;
        }
        Decision {
            verdict: Verdict::Allow,
            mode: scope.mode,
            rule: Some(&rule.public),
            reason: None,
            plan: self.plan(scope.api, rule, request, changes),
        }
    }

    fn plan<'p>(
        &'p self,
        api: &'p Api,
        rule: &'p RuleData,
        request: &Request<'_>,
        changes: Changes,
    ) -> Plan<'p> {
        let credential = self.credential_use(rule);
        let client = credential == CredentialUse::Client;
        let (query, stripped_query) = match changes.query {
            Some(stripped) => (Some(stripped.query), stripped.names),
            None => (None, Vec::new()),
        };
        let (body, stripped_body) = match changes.body {
            Some(edited) => (Some(edited.body), edited.stripped),
            None => (None, Vec::new()),
        };
        // OPTIONS may be answered with the request's own headers.
        let injected = match credential {
            CredentialUse::Inject(number) if request.method != "OPTIONS" => {
                self.credentials.get(number)
            }
            _ => None,
        };
        let entry = self.entry(rule);
        Plan {
            api: Some(api),
            credential: injected,
            client_credentials: client,
            query,
            stripped_query,
            body,
            stripped_body,
            response_strip: entry.map_or(&[], |entry| &entry.response_strip),
            response_redact: entry.and_then(|entry| entry.response_redact.as_ref()),
            response_max: entry.and_then(|entry| entry.response_max),
            headers: HeaderRules {
                client_credentials: client,
                unlisted: false,
                allow: &rule.headers.allow,
                strip: &rule.headers.strip,
            },
            websocket: None,
        }
    }
}

/// Why none of these clauses, of which none holds, does: what would be easiest to mend comes first.
fn lack(clauses: &[Clause], caller: Caller) -> Lack {
    if !clauses.iter().any(|clause| clause.lasts(caller.now)) {
        return Lack::Time;
    }
    match caller.identity {
        None => Lack::Proof,
        Some(_) => Lack::Identity,
    }
}

fn deny<'p>(
    scope: &Scope<'p>,
    rule: Option<&'p Rule>,
    reason: crate::model::Reason,
) -> Decision<'p> {
    denial(Some(scope.api), scope.mode, rule, reason)
}

/// A denial. Where it is only observed, the request goes on as it came: nothing is injected.
fn denial<'p>(
    api: Option<&'p Api>,
    mode: Mode,
    rule: Option<&'p Rule>,
    reason: crate::model::Reason,
) -> Decision<'p> {
    Decision {
        verdict: Verdict::Deny,
        mode,
        rule,
        reason: Some(reason),
        plan: Plan {
            api,
            credential: None,
            client_credentials: true,
            query: None,
            stripped_query: Vec::new(),
            body: None,
            stripped_body: Vec::new(),
            response_strip: &[],
            response_redact: None,
            response_max: None,
            headers: HeaderRules {
                client_credentials: true,
                unlisted: true,
                allow: &[],
                strip: &[],
            },
            websocket: None,
        },
    }
}
