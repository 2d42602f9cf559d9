//! The body and the conditions of a rule against a request.
use super::{Ask, Failure};
use crate::body::{BodyFault, BodySpec, Checked, Edited, Media, tree};
use crate::model::{Body, Scheme};
use crate::policy::{Policy, RuleData};
use crate::when::{Facts, When};
use serde_json::Value;
use std::borrow::Cow;
use std::cell::OnceCell;

/// What came of looking at a body.
pub(super) enum Looked {
    /// It must be read first: at most so many bytes.
    Needs(usize),
    /// It is as the rule says, and sent like this where something is to be cut out.
    Good(Option<Edited>),
}

/// The body as a tree, made once for all rules that look at it as it came.
#[derive(Default)]
pub(super) struct Trees(OnceCell<Result<Value, BodyFault>>);

impl Trees {
    fn json(&self, body: &[u8]) -> Result<&Value, BodyFault> {
        let made = self.0.get_or_init(|| tree(body));
        made.as_ref().map_err(Clone::clone)
    }
}

impl Policy {
    /// Holds body, payload and condition of a rule against a request of which all else holds. They look at
    /// what is to be sent.
    pub(super) fn look<'a>(
        &self,
        rule: &'a RuleData,
        ask: &Ask<'_>,
    ) -> Result<Looked, Failure<'a>> {
        let when = rule.when.as_ref();
        if let Some(when) = when.filter(|when| !when.needs_body()) {
            self.must_hold(rule, when, ask, None)?;
        }
        let Some(spec) = &rule.body else {
            return Ok(Looked::Good(None));
        };
        let (media, bytes) = match begin(rule, spec, ask).map_err(Failure::Body)? {
            Begun::Needs(max) => return Ok(Looked::Needs(max)),
            Begun::Read(media, bytes) => (media, bytes),
        };
        let Checked { edits, tree } = spec.check(media, bytes).map_err(Failure::Body)?;
        let when = when.filter(|when| when.needs_body());
        if rule.payload.is_none() && when.is_none() {
            return Ok(Looked::Good(edits));
        }
        let tree = match (tree, &edits, media) {
            (Some(tree), _, _) => Ok(Cow::Owned(tree)),
            (None, None, Media::Json) => ask.trees.json(bytes).map(Cow::Borrowed),
            (None, Some(edited), _) => spec.tree(media, &edited.body).map(Cow::Owned),
            (None, None, Media::Form) => spec.tree(media, bytes).map(Cow::Owned),
        };
        let tree = tree.map_err(Failure::Body)?;
        if let Some(payload) = &rule.payload {
            payload.check(&tree).map_err(Failure::Payload)?;
        }
        if let Some(when) = when {
            self.must_hold(rule, when, ask, Some((media, &tree)))?;
        }
        Ok(Looked::Good(edits))
    }

    fn must_hold<'a>(
        &self,
        rule: &'a RuleData,
        when: &'a When,
        ask: &Ask<'_>,
        body: Option<(Media, &Value)>,
    ) -> Result<(), Failure<'a>> {
        match self.condition(rule, when, ask, body) {
            Ok(true) => Ok(()),
            Ok(false) => Err(Failure::Condition(when.text(), None)),
            Err(trouble) => Err(Failure::Condition(when.text(), Some(trouble))),
        }
    }

    /// Whether a condition holds, or why that cannot be said.
    pub(super) fn condition(
        &self,
        rule: &RuleData,
        when: &When,
        ask: &Ask<'_>,
        body: Option<(Media, &Value)>,
    ) -> Result<bool, String> {
        let request = ask.request;
        let of = |media: Media| body.filter(|(is, _)| *is == media).map(|(_, tree)| tree);
        let groups = ask
            .subject
            .identity
            .map_or(&[][..], |identity| self.groups_of(identity));
        let groups: Vec<&str> = groups.iter().map(String::as_str).collect();
        when.holds(&Facts {
            method: request.method,
            scheme: match request.scheme {
                Scheme::Https => "https",
                Scheme::Http => "http",
            },
            host: request.host.as_str(),
            port: request.port,
            path: &request.target.path,
            parameters: &rule.template.parameters(&request.target.path),
            query: request.target,
            headers: request.headers,
            json: of(Media::Json),
            form: of(Media::Form),
            workload: ask.subject.workload,
            identity: ask.subject.identity,
            groups: &groups,
            now: request.now,
        })
    }
}

/// A body before it is checked.
enum Begun<'a> {
    Needs(usize),
    Read(Media, &'a [u8]),
}

/// What can be said of a body before looking into it.
fn begin<'a>(rule: &RuleData, spec: &BodySpec, ask: &Ask<'a>) -> Result<Begun<'a>, BodyFault> {
    if matches!(ask.request.body, Body::Absent | Body::Message(_)) {
        return Err(BodyFault::Absent);
    }
    let media = spec.media(ask.request.headers)?;
    let (json, form) = rule.when.as_ref().map_or((false, false), |when| {
        (when.needs_json(), when.needs_form())
    });
    let wrong = match media {
        Media::Json => form && !json && rule.payload.is_none(),
        Media::Form => rule.payload.is_some() || (json && !form),
    };
    if wrong {
        return Err(BodyFault::Type);
    }
    match ask.request.body {
        Body::Absent | Body::Message(_) => Err(BodyFault::Absent),
        Body::Read(body) => Ok(Begun::Read(media, body)),
        Body::Unread(length) => {
            let max = u64::try_from(spec.max).unwrap_or(u64::MAX);
            match length {
                Some(length) if length > max => Err(BodyFault::TooLarge(spec.max)),
                _ => Ok(Begun::Needs(spec.max)),
            }
        }
    }
}
