//! The decision on one request.
//!
//! Deny is the default. Of the workload's grants on the api, a deny rule that matches wins; else the
//! most specific allow rule of which everything holds decides, and says how the request is forwarded.
//! A rule is found by walking a tree over path segments; no rule is looked at whose route does not match.
mod explain;
mod query;
mod reason;

use crate::body::{BodyFault, Media};
use crate::model::{
    Api, Body, Decision, HeaderRules, Mode, Outcome, Plan, Request, Rule, Scheme, Subject, Verdict,
};
use crate::policy::{CredentialUse, Policy, RuleData, RuleSet};
use query::Stripped;
use std::borrow::Cow;

/// The first thing of a rule that does not hold, in the order of checking.
#[derive(Debug)]
enum Failure<'a> {
    Route,
    Method,
    QueryExtra(Cow<'a, str>),
    QueryValue { name: &'a str, expected: String },
    QueryDuplicate(&'a str),
    QueryMissing(&'a str),
    Body(BodyFault),
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
            Self::Body(_) => 3,
        }
    }
}

/// What comes of holding one rule against a request.
enum Held<'a> {
    /// Everything holds; what is stripped of the query.
    Yes(Option<Stripped>),
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
    /// Decides one request. With [`Body::Unread`] and a rule that must see the body, asks for it.
    pub fn decide<'p>(&'p self, subject: &Subject<'_>, request: &Request<'_>) -> Outcome<'p> {
        let scope = match self.scope(subject, request) {
            Ok(scope) => scope,
            Err(denial) => return Outcome::Decided(*denial),
        };
        if let Some(rule) = self.denied(scope.rules, request) {
            return Outcome::Decided(deny(
                &scope,
                Some(&rule.public),
                reason::denied_by_rule(rule),
            ));
        }
        self.weigh(&scope, subject, request)
    }

    /// The api and the grants on it, or the denial for want of either.
    fn scope<'p>(
        &'p self,
        subject: &Subject<'_>,
        request: &Request<'_>,
    ) -> Result<Scope<'p>, Box<Decision<'p>>> {
        let grants = self.subjects.get(subject.workload);
        let whole = grants.map_or(Mode::Enforce, |grants| grants.mode);
        let Some(index) = self.api_index(request.host, request.port) else {
            let reason = reason::unknown_host(self, request);
            return Err(Box::new(denial(None, whole, None, reason)));
        };
        let api = self.apis.get(index);
        match (api, grants.and_then(|grants| grants.apis.get(&index))) {
            (Some(api), Some(granted)) => Ok(Scope {
                api,
                rules: &granted.rules,
                mode: granted.mode,
            }),
            _ => {
                let reason = reason::no_grant(subject, api, grants.is_some());
                Err(Box::new(denial(api, whole, None, reason)))
            }
        }
    }

    /// The most specific deny rule that matches. A trailing slash makes no difference to it: to many
    /// servers it makes none.
    fn denied<'p>(&'p self, rules: &RuleSet, request: &Request<'_>) -> Option<&'p RuleData> {
        let path = request
            .target
            .path
            .strip_suffix('/')
            .unwrap_or(&request.target.path);
        let matches = rules.deny.matches(path);
        let denying = |number: &u32| {
            self.rule(*number)
                .is_some_and(|rule| rule.methods.deny(request.method))
        };
        self.rule(matches.into_iter().filter(denying).min()?)
    }

    /// Holds every allow rule whose route matches against the request, the most specific first.
    fn weigh<'p>(
        &'p self,
        scope: &Scope<'p>,
        subject: &Subject<'_>,
        request: &Request<'_>,
    ) -> Outcome<'p> {
        let mut matches = scope.rules.allow.matches(&request.target.path);
        matches.sort_unstable();
        let candidates = || matches.iter().filter_map(|number| self.rule(*number));
        let mut nearest: Option<(&RuleData, Failure<'_>)> = None;
        for rule in candidates() {
            match self.hold(rule, request) {
                Held::Yes(stripped) => {
                    return Outcome::Decided(self.allow(scope, rule, request, stripped));
                }
                Held::NeedsBody(_) => {
                    let wanted = candidates().filter_map(|rule| match self.hold(rule, request) {
                        Held::NeedsBody(max) => Some(max),
                        _ => None,
                    });
                    return Outcome::NeedsBody {
                        max: wanted.max().unwrap_or(0),
                    };
                }
                Held::No(failure) => {
                    let further = |(_, known): &(_, Failure<'_>)| failure.stage() > known.stage();
                    if nearest.as_ref().is_none_or(further) {
                        nearest = Some((rule, failure));
                    }
                }
            }
        }
        let reason = match &nearest {
            Some((rule, failure)) => reason::of_failure(rule, failure, request),
            None => reason::no_route(subject, scope.api, request),
        };
        Outcome::Decided(deny(scope, None, reason))
    }

    /// Holds one rule, whose route matches, against a request.
    fn hold<'a>(&'a self, rule: &'a RuleData, request: &'a Request<'_>) -> Held<'a> {
        if !rule.methods.allow(request.method) {
            return Held::No(Failure::Method);
        }
        let client = self.credential_use(rule) == CredentialUse::Client;
        let stripped = match query::check(rule.query.as_ref(), client, request.target) {
            Ok(stripped) => stripped,
            Err(failure) => return Held::No(failure),
        };
        match check_body(rule, request) {
            Ok(None) => Held::Yes(stripped),
            Ok(Some(max)) => Held::NeedsBody(max),
            Err(fault) => Held::No(Failure::Body(fault)),
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
        stripped: Option<Stripped>,
    ) -> Decision<'p> {
        let credential = self.credential_use(rule);
        if request.scheme == Scheme::Http {
            let mut refused = deny(scope, Some(&rule.public), reason::cleartext(scope.api));
            if credential != CredentialUse::None {
                refused.mode = Mode::Enforce;
            }
            return refused;
        }
        let client = credential == CredentialUse::Client;
        let (query, stripped_query) = match stripped {
            Some(stripped) => (Some(stripped.query), stripped.names),
            None => (None, Vec::new()),
        };
        // OPTIONS may be answered with the request's own headers.
        let injected = match credential {
            CredentialUse::Inject(number) if request.method != "OPTIONS" => {
                self.credentials.get(number)
            }
            _ => None,
        };
        Decision {
            verdict: Verdict::Allow,
            mode: scope.mode,
            rule: Some(&rule.public),
            reason: None,
            plan: Plan {
                api: Some(scope.api),
                credential: injected,
                client_credentials: client,
                query,
                stripped_query,
                response_strip: self.entry(rule).map_or(&[], |entry| &entry.response_strip),
                headers: HeaderRules {
                    client_credentials: client,
                    unlisted: false,
                    allow: &rule.headers,
                },
            },
        }
    }
}

/// Checks the body where a rule declares one; `Some` is how much of it must be read first.
fn check_body(rule: &RuleData, request: &Request<'_>) -> Result<Option<usize>, BodyFault> {
    let Some(spec) = &rule.body else {
        return Ok(None);
    };
    if matches!(request.body, Body::Absent) {
        return Err(BodyFault::Absent);
    }
    let media: Media = spec.media(request.headers)?;
    match request.body {
        Body::Absent => Err(BodyFault::Absent),
        Body::Read(body) => match spec.check(media, body)?.edits {
            None => Ok(None),
            // A plan cannot say yet that another body is sent.
            Some(_) => Err(BodyFault::Undeclared("to be cut out".into())),
        },
        Body::Unread(length) => {
            let max = u64::try_from(spec.max).unwrap_or(u64::MAX);
            match length {
                Some(length) if length > max => Err(BodyFault::TooLarge(spec.max)),
                _ => Ok(Some(spec.max)),
            }
        }
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
            response_strip: &[],
            headers: HeaderRules {
                client_credentials: true,
                unlisted: true,
                allow: &[],
            },
        },
    }
}
