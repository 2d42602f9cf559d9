//! Budgets: whose each is.
use super::names::Names;
use crate::document::{self, Document, Named};
use crate::model::Budget;
use crate::syntax::{Decoder, quote};
use std::collections::HashMap;

/// Resolves all budgets. A workload has one limit on bytes at most: of two, one would never be reached, or both be
/// told apart by nobody.
pub(super) fn budgets(
    decoder: &mut Decoder,
    names: &Names,
    document: &Document<'_>,
) -> Vec<Budget> {
    let mut first: HashMap<usize, &Named<document::Budget>> = HashMap::new();
    let mut budgets = Vec::new();
    let mut all: Vec<&Named<document::Budget>> = document.budgets.iter().collect();
    all.sort_by_key(|budget| budget.name.span);
    for budget in all {
        let Some(workload) = &budget.value.workload else {
            continue;
        };
        let Some(number) = names.workloads.resolve(decoder, workload) else {
            continue;
        };
        if let Some(other) = first.get(&number) {
            let place = decoder.location(other.name.span);
            let message = format!(
                "workload {} has a limit on bytes already, in budget {}",
                quote(&workload.text),
                quote(&other.name.text)
            );
            decoder
                .error(workload.span, message)
                .help(format!("that one is at {place}; keep one of them"));
            continue;
        }
        first.insert(number, budget);
        if let Some(bytes) = budget.value.bytes {
            budgets.push(Budget {
                name: budget.name.text.to_string(),
                workload: workload.text.to_string(),
                bytes,
                at: decoder.location(budget.name.span),
            });
        }
    }
    budgets.sort_by(|one, other| one.name.cmp(&other.name));
    budgets
}

/// The workloads that have one, in order.
pub(super) fn budgeted(budgets: &[Budget]) -> Vec<Box<str>> {
    let mut workloads: Vec<Box<str>> = budgets.iter().map(|b| b.workload.as_str().into()).collect();
    workloads.sort_unstable();
    workloads
}
