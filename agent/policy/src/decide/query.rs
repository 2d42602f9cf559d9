//! The query against what a rule declares of it.
use super::Failure;
use crate::canonical::{Pair, Target};
use crate::headers::{ParameterKind, parameter_kind};
use crate::policy::{Extra, Parameter, QuerySpec};
use crate::shape::Shape;
use smallvec::SmallVec;

/// A query with parts taken out.
#[derive(Debug)]
pub(super) struct Stripped {
    /// What is left; `None` where nothing is.
    pub(super) query: Option<String>,
    /// Names of what was taken out, each once.
    pub(super) names: Vec<String>,
}

/// Checks every parameter; `Some` where some are to be stripped. Nothing is allocated where none is.
pub(super) fn check<'a>(
    spec: Option<&'a QuerySpec>,
    client: bool,
    target: &'a Target<'_>,
) -> Result<Option<Stripped>, Failure<'a>> {
    let parameters = spec.map_or(&[][..], |spec| &spec.parameters);
    let mut seen: SmallVec<[bool; 32]> = SmallVec::from_elem(false, parameters.len());
    let mut strips = false;
    for pair in target.pairs() {
        match position(parameters, &pair)
            .and_then(|index| parameters.get(index).zip(seen.get_mut(index)))
        {
            Some((parameter, seen)) => {
                if *seen && !matches!(parameter.shape, Shape::List(_)) {
                    return Err(Failure::QueryDuplicate(&parameter.name));
                }
                *seen = true;
                if !parameter.shape.accepts_text(&pair.value) {
                    let expected = parameter.shape.to_string();
                    return Err(Failure::QueryValue {
                        name: &parameter.name,
                        expected,
                    });
                }
            }
            None if is_stripped(spec, client, &pair) => strips = true,
            None if spec.is_some() => return Err(Failure::QueryExtra(pair.name)),
            None => {}
        }
    }
    let missing = parameters
        .iter()
        .zip(&seen)
        .find(|(parameter, seen)| parameter.required && !**seen);
    if let Some((parameter, _)) = missing {
        return Err(Failure::QueryMissing(&parameter.name));
    }
    Ok(strips.then(|| strip(spec, client, target)))
}

fn position(parameters: &[Parameter], pair: &Pair<'_>) -> Option<usize> {
    parameters
        .binary_search_by(|parameter| (*parameter.name).cmp(&pair.name))
        .ok()
}

/// Whether an undeclared parameter is taken out instead of passed or denied.
fn is_stripped(spec: Option<&QuerySpec>, client: bool, pair: &Pair<'_>) -> bool {
    match parameter_kind(&pair.name) {
        ParameterKind::Method => true,
        ParameterKind::Credential if !client => true,
        _ => spec.is_some_and(|spec| spec.extra == Extra::Strip),
    }
}

fn strip(spec: Option<&QuerySpec>, client: bool, target: &Target<'_>) -> Stripped {
    let parameters = spec.map_or(&[][..], |spec| &spec.parameters);
    let (mut kept, mut names) = (String::new(), Vec::new());
    for pair in target.pairs() {
        if position(parameters, &pair).is_none() && is_stripped(spec, client, &pair) {
            names.push(pair.name.into_owned());
            continue;
        }
        if !kept.is_empty() {
            kept.push('&');
        }
        kept.push_str(pair.raw);
    }
    names.sort_unstable();
    names.dedup();
    Stripped {
        query: (!kept.is_empty()).then_some(kept),
        names,
    }
}
