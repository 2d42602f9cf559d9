//! What is defined and never used.
use super::Whole;
use crate::budget::Each;
use crate::document::Named;
use crate::policy::CredentialUse;
use crate::syntax::{Decoder, quote};
use std::collections::HashSet;

pub(super) fn warn(decoder: &mut Decoder, whole: &Whole<'_>) {
    let document = whole.document;
    let mut words = HashSet::new();
    for role in &document.roles {
        if !role.value.parameters.is_empty() {
            role.value.each_text(&mut |text| words.extend([text]));
        }
    }
    let ruled = whole.ruled;
    let apis: HashSet<usize> = ruled
        .roles
        .iter()
        .flatten()
        .map(|place| place.api)
        .collect();
    // A role that was given no arguments was not read: what it mentions may be used.
    let idle = |number: usize, name: &str, used: &HashSet<usize>| {
        !used.contains(&number) && !words.contains(name)
    };
    let of_api = "no role has an entry for it: requests to it are denied";
    report(decoder, "api", &document.apis, of_api, |number, name| {
        idle(number, name, &apis)
    });
    let credentials: HashSet<usize> = ruled
        .entries
        .iter()
        .filter_map(|entry| match entry.credential {
            CredentialUse::Inject(number) => Some(number),
            CredentialUse::None | CredentialUse::Client => None,
        })
        .collect();
    let of_credential = "write `credential:` with its name into the entry of a role";
    report(
        decoder,
        "credential",
        &document.credentials,
        of_credential,
        |number, name| idle(number, name, &credentials),
    );
    people(decoder, whole);
}

/// Identities and groups: named by a grant or a budget, or by a group that is.
fn people(decoder: &mut Decoder, whole: &Whole<'_>) {
    let mut conditions = whole
        .ruled
        .rules
        .iter()
        .filter_map(|rule| rule.when.as_ref());
    if conditions.any(|when| when.text().contains("subject")) {
        // Whoever a condition names is used.
        return;
    }
    let document = whole.document;
    let grants = || document.grants.iter();
    let budgets = || document.budgets.iter().map(|budget| &budget.value);
    let groups: HashSet<&str> = grants()
        .flat_map(|grant| &grant.groups)
        .chain(budgets().flat_map(|budget| &budget.groups))
        .map(|name| &*name.text)
        .collect();
    let members = document
        .groups
        .iter()
        .flat_map(|group| &group.value.members);
    let identities: HashSet<&str> = grants()
        .flat_map(|grant| &grant.identities)
        .chain(budgets().flat_map(|budget| &budget.identities))
        .chain(members)
        .map(|name| &*name.text)
        .collect();
    // Where each identity has an amount of its own, whoever can be told apart counts.
    let own = budgets().any(|budget| {
        budget.each == Some(Each::Identity)
            && budget.identities.is_empty()
            && budget.groups.is_empty()
    });
    let help = "name it in the `to:` of a grant, or remove it";
    report(decoder, "group", &document.groups, help, |_, name| {
        !groups.contains(name)
    });
    report(
        decoder,
        "identity",
        &document.identities,
        help,
        |_, name| !own && !identities.contains(name),
    );
}

fn report<T>(
    decoder: &mut Decoder,
    kind: &str,
    things: &[Named<T>],
    help: &str,
    idle: impl Fn(usize, &str) -> bool,
) {
    for (number, thing) in things.iter().enumerate() {
        if idle(number, &thing.name.text) {
            let message = format!("nothing uses {kind} {}", quote(&thing.name.text));
            decoder.warning(thing.name.span, message).help(help);
        }
    }
}
