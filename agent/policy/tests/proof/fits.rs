//! What the semantics say of query and headers, and of a plan.
use crate::flaws::Flaw;
use crate::meaning::{
    HEADERS, Header, PATTERNS, integer, is_credential_parameter, is_method_parameter, is_number,
    is_uuid,
};
use crate::model::{Carries, Literal, Rule, Shape};
use crate::naive::{Answer, Naive, Placed};
use crate::request::{Asked, Pair, SeenPlan};

impl Naive<'_> {
    pub(crate) fn query_faults(
        &self,
        placed: &Placed,
        rule: &Rule,
        asked: &Asked,
    ) -> Vec<&'static str> {
        let mut faults = Vec::new();
        let declared = rule.query.as_deref().unwrap_or(&[]);
        for (index, pair) in asked.query.iter().enumerate() {
            let Some(parameter) = declared.iter().find(|known| known.name == pair.name) else {
                let refused = rule.query.is_some() && !self.is_stripped(placed, pair);
                if refused && !self.has(Flaw::ExtraIgnored) {
                    faults.push("query_extra");
                }
                continue;
            };
            let before = asked.query[..index].iter();
            let twice = before.clone().any(|earlier| earlier.name == pair.name);
            let list = matches!(parameter.shape, Shape::List(_));
            if twice && !list && !self.has(Flaw::DuplicatesPass) {
                faults.push("query_duplicate");
            }
            if !self.text_fits(&parameter.shape, &pair.value) {
                faults.push("query_value");
            }
        }
        for parameter in declared.iter().filter(|parameter| parameter.required) {
            let there = asked.query.iter().any(|pair| pair.name == parameter.name);
            if !there && !self.has(Flaw::RequiredIgnored) {
                faults.push("query_missing");
            }
        }
        faults
    }

    /// Whether a parameter is taken out instead of passed or denied.
    pub(crate) fn is_stripped(&self, placed: &Placed, pair: &Pair) -> bool {
        let rule = placed.rule.as_ref().unwrap();
        let declared = rule.query.as_deref().unwrap_or(&[]);
        if declared.iter().any(|known| known.name == pair.name) {
            return false;
        }
        let credential = is_credential_parameter(&pair.name)
            && placed.entry.credential != Carries::Client
            && !self.has(Flaw::CredentialParametersPass);
        is_method_parameter(&pair.name) || credential || (rule.query.is_some() && rule.strip)
    }

    pub(crate) fn header_faults(&self, rule: &Rule, asked: &Asked) -> Vec<&'static str> {
        let mut faults = Vec::new();
        for (name, shape) in &rule.headers.require {
            let sent = asked.headers.iter().filter(|(sent, _)| sent == name);
            let values: Vec<&String> = sent.map(|(_, value)| value).collect();
            let fits = |value: &&String| self.text_fits(shape, value);
            match values.as_slice() {
                [] if self.has(Flaw::RequiredIgnored) => {}
                [] => faults.push("header_missing"),
                [value] if fits(value) => {}
                [_, ..] if self.has(Flaw::HeaderTwicePasses) && values.iter().all(fits) => {}
                _ => faults.push("header_value"),
            }
        }
        faults
    }

    /// Whether a text, as in a query, header or form, is of this shape.
    pub(crate) fn text_fits(&self, shape: &Shape, text: &str) -> bool {
        match shape {
            Shape::Any | Shape::Text => true,
            Shape::Int => integer(text).is_some(),
            Shape::Number => is_number(text),
            Shape::Bool => text == "true" || text == "false",
            Shape::Uuid => is_uuid(text),
            Shape::Range(low, high) => integer(text).is_some_and(|value| {
                *low <= value && (value < *high || (value == *high && !self.has(Flaw::RangeOpen)))
            }),
            Shape::Pattern(number) => (PATTERNS[*number].means)(text),
            Shape::OneOf(literals) => literals.iter().any(|literal| match literal {
                Literal::Text(known) => known == text,
                Literal::Int(number) => number.to_string() == text,
                Literal::Bool(value) => value.to_string() == text,
                Literal::Null => false,
            }),
            Shape::List(item) => self.text_fits(item, text),
            Shape::Object(_) => false,
        }
    }

    /// What is done with a request that this rule decides.
    pub(crate) fn plan(
        &self,
        answer: &Answer<'_>,
        placed: Option<&Placed>,
        asked: &Asked,
    ) -> SeenPlan {
        let passing = |test: &dyn Fn(&str, Header) -> bool| {
            let known = HEADERS.iter().enumerate();
            let passing = known.filter(|(_, (name, kind))| test(name, *kind));
            passing.map(|(index, _)| 1 << index).sum()
        };
        let unchanged = SeenPlan {
            api: answer.api.clone(),
            credential: None,
            client: true,
            query: None,
            stripped: Vec::new(),
            response_strip: Vec::new(),
            response_max: None,
            passing: passing(&|_, kind| kind != Header::Never),
        };
        let Some((placed, rule)) = placed.and_then(|placed| Some((placed, placed.rule.as_ref()?)))
        else {
            return unchanged;
        };
        if !answer.allow {
            return unchanged;
        }
        let client = placed.entry.credential == Carries::Client;
        let credential = match &placed.entry.credential {
            Carries::Injected(name)
                if asked.method != "OPTIONS" || self.has(Flaw::InjectedOnOptions) =>
            {
                Some(name.clone())
            }
            _ => None,
        };
        let (mut kept, mut stripped) = (Vec::new(), Vec::new());
        for pair in &asked.query {
            if self.is_stripped(placed, pair) {
                stripped.push(pair.name.clone());
            } else {
                let mut text = String::new();
                asked.write_pair(pair, &mut text);
                kept.push(text);
            }
        }
        stripped.sort();
        stripped.dedup();
        let headers = &rule.headers;
        let listed = |list: &[String], name: &str| list.iter().any(|known| known == name);
        let allowed = |name: &str| {
            listed(&headers.allow, name) || headers.require.iter().any(|(known, _)| known == name)
        };
        SeenPlan {
            credential,
            client,
            query: (!stripped.is_empty()).then(|| (!kept.is_empty()).then(|| kept.join("&"))),
            stripped,
            response_strip: placed.entry.response_strip.clone(),
            response_max: placed.entry.response_max,
            passing: passing(&|name, kind| {
                let dropped = listed(&headers.strip, name) && !self.has(Flaw::HeaderStripIgnored);
                !dropped
                    && match kind {
                        Header::Needed => true,
                        Header::Other => allowed(name),
                        Header::Credential => client,
                        Header::Never => false,
                    }
            }),
            ..unchanged
        }
    }

    /// In clear, nothing that carries a credential is let pass by observing.
    pub(crate) fn observed(&self, answer: &Answer<'_>, placed: Option<&Placed>) -> bool {
        let carries = placed.is_some_and(|placed| placed.entry.credential != Carries::None);
        let bound = answer.codes == ["cleartext"] && carries;
        answer.observe && (!bound || self.has(Flaw::ClearObserved))
    }
}
