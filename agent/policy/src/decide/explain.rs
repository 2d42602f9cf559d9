//! A decision with every rule that came near.
use super::{Ask, Failure, Held, reason};
use crate::model::{Body, Explanation, NearMiss, Outcome, Request, Subject};
use crate::policy::{Policy, RuleData};
use std::cmp::Reverse;

impl Policy {
    /// As [`Policy::decide`], with every rule that came near and the first thing that failed in it.
    /// A body that is unread is taken as absent: who asks has it at hand, or there is none.
    pub fn explain<'p>(&'p self, subject: &Subject<'_>, request: &Request<'_>) -> Explanation<'p> {
        let body = match request.body {
            Body::Unread(_) => Body::Absent,
            known => known,
        };
        let request = Request { body, ..*request };
        let ask = self.ask(subject, &request);
        let decision = match self.decide(subject, &request) {
            Outcome::Decided(decision) => decision,
            // Not reached: only an unread body is asked for.
            Outcome::NeedsBody { .. } => super::denial(
                None,
                crate::model::Mode::Enforce,
                None,
                reason::body_unread(),
            ),
        };
        Explanation {
            decision,
            near: self.near_misses(&ask),
        }
    }

    fn near_misses<'p>(&'p self, ask: &Ask<'_>) -> Vec<NearMiss<'p>> {
        let Ok(scope) = self.scope(ask) else {
            return Vec::new();
        };
        if self.refusing.is_some() {
            return Vec::new();
        }
        let path = &ask.request.target.path;
        let matching = scope.rules.allow.matches(path);
        let mut near: Vec<(Nearness, NearMiss<'p>)> = Vec::new();
        for number in &scope.rules.allows {
            let Some(rule) = self.rule(*number) else {
                continue;
            };
            let lack = self.lack(scope.rules, *number, ask.caller);
            let held = matching.contains(number).then(|| self.hold(rule, ask));
            let failure = match (held, lack) {
                (None, _) => Failure::Route,
                (Some(Held::No(failure)), _) => failure,
                (Some(_), Some(lack)) => Failure::Guard(lack),
                (Some(_), None) => continue,
            };
            let failed = reason::of_failure(rule, &failure, ask);
            near.push((
                nearness(rule, &failure, ask.request),
                NearMiss {
                    rule: &rule.public,
                    failed,
                },
            ));
        }
        // Rules are numbered by how specific they are, and the sort keeps that order.
        near.sort_by_key(|(nearness, _)| *nearness);
        near.into_iter().map(|(_, near)| near).collect()
    }
}

/// Smaller is nearer: how far the checks got, then how much of the path and whether the method fits.
type Nearness = (Reverse<u8>, Reverse<usize>, bool);

fn nearness(rule: &RuleData, failure: &Failure<'_>, request: &Request<'_>) -> Nearness {
    let prefix = rule.template.matched_prefix(&request.target.path);
    (
        Reverse(failure.stage()),
        Reverse(prefix),
        !rule.methods.allow(request.method),
    )
}
