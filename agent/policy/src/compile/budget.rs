//! Budgets: whose each is, and what models cost.
use super::names::Names;
use crate::budget::{Budget, Price};
use crate::document::{self, Document, Named};
use crate::payload::Glob;
use crate::syntax::{Decoder, quote};
use std::collections::{BTreeSet, HashMap};

/// Identities in the lists of all budgets together, at most.
const MAX_HOLDERS: usize = 100_000;
/// Budgets that the agent counts, times workloads, at most: each workload has a list of those it fits.
const MAX_COUNTED: usize = 1_000_000;

/// Resolves all budgets, in order of name.
pub(super) fn budgets(
    decoder: &mut Decoder,
    names: &Names,
    document: &Document<'_>,
    groups: &[Vec<String>],
) -> Vec<Budget> {
    let members = members(document, groups);
    let mut all: Vec<&Named<document::Budget>> = document.budgets.iter().collect();
    all.sort_by_key(|budget| budget.name.span);
    let mut holders = 0;
    let mut budgets = Vec::with_capacity(all.len());
    for budget in &all {
        let of = &budget.value;
        let resolved = resolve(decoder, names, &members, of);
        holders += resolved.identities.as_ref().map_or(0, Vec::len);
        if holders > MAX_HOLDERS {
            decoder
                .error(
                    budget.name.span,
                    "the budgets have more than 100000 identities together",
                )
                .help("say `each: identity` once, without naming them");
            break;
        }
        budgets.push(Budget {
            name: budget.name.text.to_string(),
            workloads: resolved.workloads,
            identities: resolved.identities,
            each: of.each,
            limits: of.limits,
            at: decoder.location(budget.name.span),
        });
    }
    one_limit_each(decoder, &all, &budgets);
    warn(decoder, document, &all);
    budgets.sort_by(|one, other| one.name.cmp(&other.name));
    budgets
}

struct Holders {
    workloads: Vec<String>,
    identities: Option<Vec<String>>,
}

/// The identities of each group, by its name.
fn members<'d>(
    document: &'d Document<'_>,
    groups: &'d [Vec<String>],
) -> HashMap<&'d str, BTreeSet<&'d str>> {
    let mut members: HashMap<&str, BTreeSet<&str>> = HashMap::new();
    for (identity, of) in document.identities.iter().zip(groups) {
        for group in of {
            members
                .entry(group)
                .or_default()
                .insert(&identity.name.text);
        }
    }
    members
}

/// Whose it is: every kind that is there must fit, as in a grant.
fn resolve(
    decoder: &mut Decoder,
    names: &Names,
    members: &HashMap<&str, BTreeSet<&str>>,
    budget: &document::Budget,
) -> Holders {
    let mut workloads = BTreeSet::new();
    for name in &budget.workloads {
        if names.workloads.resolve(decoder, name).is_some() {
            workloads.insert(&*name.text);
        }
    }
    let mut named = BTreeSet::new();
    for name in &budget.identities {
        if names.identities.resolve(decoder, name).is_some() {
            named.insert(&*name.text);
        }
    }
    let mut grouped = BTreeSet::new();
    for name in &budget.groups {
        if names.groups.resolve(decoder, name).is_some() {
            grouped.extend(members.get(&*name.text).into_iter().flatten().copied());
        }
    }
    let identities = match (budget.identities.is_empty(), budget.groups.is_empty()) {
        (true, true) => None,
        (false, true) => Some(named),
        (true, false) => Some(grouped),
        (false, false) => Some(named.intersection(&grouped).copied().collect()),
    };
    let owned = |names: BTreeSet<&str>| names.into_iter().map(str::to_owned).collect();
    Holders {
        workloads: owned(workloads),
        identities: identities.map(owned),
    }
}

/// The kernel holds a workload to one limit on bytes: of two, one would never be reached, or both be told apart by nobody.
fn one_limit_each(decoder: &mut Decoder, all: &[&Named<document::Budget>], budgets: &[Budget]) {
    let mut first: HashMap<&str, &Named<document::Budget>> = HashMap::new();
    for (read, budget) in all.iter().zip(budgets) {
        for name in budget.kernel_bytes().map_or(&[][..], |(names, _)| names) {
            let Some(other) = first.get(name.as_str()) else {
                first.insert(name, read);
                continue;
            };
            let place = decoder.location(other.name.span);
            let message = format!(
                "workload {} has a limit on bytes already, in budget {}",
                quote(name),
                quote(&other.name.text)
            );
            decoder
                .error(read.value.bytes_at, message)
                .help(format!("that one is at {place}; keep one of them"));
        }
    }
}

/// Of what can never be counted, and what can never be let pass.
fn warn(decoder: &mut Decoder, document: &Document<'_>, all: &[&Named<document::Budget>]) {
    let metered = document.apis.iter().any(|api| api.value.meter.is_some());
    for budget in all {
        let limits = &budget.value.limits;
        if !metered && (limits.tokens.is_some() || limits.usd.is_some()) {
            let message = format!(
                "budget {} counts nothing: no api has a `meter`",
                quote(&budget.name.text)
            );
            decoder
                .warning(budget.name.span, message)
                .help("say `meter: openai`, `anthropic` or `gemini` at the apis whose answers tell what they cost");
        } else if limits.usd.is_some() && document.prices.is_empty() {
            let message = format!(
                "budget {} lets no call to a metered api pass: no model has a price",
                quote(&budget.name.text)
            );
            decoder.warning(budget.name.span, message).help(
                "write what they cost: `prices: { gpt-4o-mini: { input: 0.15, output: 0.60 } }`",
            );
        }
    }
}

/// The workloads whose bytes the kernel counts against a limit, in order.
pub(super) fn budgeted(budgets: &[Budget]) -> Vec<Box<str>> {
    let named = budgets.iter().filter_map(Budget::kernel_bytes);
    let mut workloads: Vec<Box<str>> = named
        .flat_map(|(names, _)| names)
        .map(|name| name.as_str().into())
        .collect();
    workloads.sort_unstable();
    workloads
}

/// The numbers of the budgets that the agent counts, by workload.
pub(super) fn counted(
    decoder: &mut Decoder,
    budgets: &[Budget],
    document: &Document<'_>,
) -> HashMap<Box<str>, Box<[usize]>> {
    let counted: Vec<(usize, &Budget)> = budgets
        .iter()
        .enumerate()
        .filter(|(_, budget)| budget.is_the_agents())
        .collect();
    if counted.len().saturating_mul(document.workloads.len()) > MAX_COUNTED {
        if let Some(last) = document.budgets.last() {
            decoder.error(
                last.name.span,
                "there are more than 1000000 pairs of a budget and a workload",
            );
        }
        return HashMap::new();
    }
    let mut by_workload = HashMap::new();
    for workload in &document.workloads {
        let name = &workload.name.text;
        let fits = |budget: &Budget| {
            budget.workloads.is_empty()
                || budget
                    .workloads
                    .binary_search_by(|known| known.as_str().cmp(name))
                    .is_ok()
        };
        let numbers: Box<[usize]> = counted
            .iter()
            .filter(|(_, budget)| fits(budget))
            .map(|(number, _)| *number)
            .collect();
        if !numbers.is_empty() {
            by_workload.insert(name.clone(), numbers);
        }
    }
    by_workload
}

/// Prices, the most specific first: a whole name before the beginnings of names, the longest of them first.
pub(super) fn prices(prices: Vec<Named<document::Price>>) -> Vec<Price> {
    let public = |price: Named<document::Price>| {
        Some(Price {
            model: price.name.text.into(),
            // Missing only where there is a fault.
            glob: price.value.glob?,
            input: price.value.input,
            cached: price.value.cached,
            cache_write: price.value.cache_write,
            output: price.value.output,
            max_output: price.value.max_output,
        })
    };
    let mut prices: Vec<Price> = prices.into_iter().filter_map(public).collect();
    prices.sort_by_key(|price| {
        let exact = matches!(price.glob, Glob::Exact(_));
        (
            !exact,
            std::cmp::Reverse(price.model.len()),
            price.model.clone(),
        )
    });
    prices
}
