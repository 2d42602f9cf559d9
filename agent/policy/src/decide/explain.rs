//! A decision with every rule that came near.
use super::{Failure, Held, reason};
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
            near: self.near_misses(subject, &request),
        }
    }

    fn near_misses<'p>(
        &'p self,
        subject: &Subject<'_>,
        request: &Request<'_>,
    ) -> Vec<NearMiss<'p>> {
        let Ok(scope) = self.scope(subject, request) else {
            return Vec::new();
        };
        let matching = scope.rules.allow.matches(&request.target.path);
        let mut near: Vec<(Nearness, NearMiss<'p>)> = Vec::new();
        for number in &scope.rules.allows {
            let Some(rule) = self.rule(*number) else {
                continue;
            };
            let failure = if matching.contains(number) {
                match self.hold(rule, request) {
                    Held::No(failure) => failure,
                    Held::Yes(_) | Held::NeedsBody(_) => continue,
                }
            } else {
                Failure::Route
            };
            let failed = reason::of_failure(rule, &failure, request);
            near.push((
                nearness(rule, &failure, request),
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
