//! From documents to a policy: names resolved, rules ordered, lookups built.
mod budget;
mod instances;
mod names;
mod place;
mod rules;
mod subjects;
mod warn;

use crate::document::{Document, Named, Patterns, Reading, VERSION};
use crate::policy::{Policy, RuleData};
use crate::syntax::{Decoder, Fault, Faults, Node, Source};
use crate::when::When;
use instances::Instances;
use names::Names;
use sha2::{Digest, Sha256};
use std::collections::BTreeSet;

/// A compiled policy and what its compiler warned of.
#[derive(Debug)]
pub struct Compiled {
    /// The immutable snapshot.
    pub policy: Policy,
    /// Warnings only.
    pub warnings: Faults,
}

/// Compiles documents that together make one policy; order does not matter. No document at all makes the
/// policy that denies everything.
///
/// ```
/// use tollgate_policy::{compile, syntax::Source};
///
/// let text = r#"
/// version: 1
/// workloads:
///   report-builder: { match: { unit: report-builder.service } }
/// apis:
///   github: { hosts: [api.github.com] }
/// credentials:
///   github-bot:
///     secret: "file:github-bot"
///     header: { authorization: "Bearer {secret}" }
///     to: [github]
/// roles:
///   issue-triage:
///     - api: github
///       credential: github-bot
///       allow:
///         - route: GET /repos/acme/{repo}/issues
///           query: { state: [open, closed, all], per_page: 1..100, page: int }
///         - route: PATCH /repos/acme/{repo}/issues/{number:int}
///           body: { fields: { state: [open, closed], labels: [string] }, max: 16KiB }
///       deny:
///         - route: "* /repos/acme/payroll/**"
///       response: { strip: [set-cookie] }
/// grants:
///   - { role: issue-triage, to: { workload: report-builder } }
/// "#;
/// let source = Source { name: "policy.yaml".into(), text: text.into() };
/// let compiled = compile(&[source]).expect("a policy without faults");
/// assert_eq!(compiled.policy.apis().len(), 1);
/// assert!(compiled.warnings.is_empty());
/// ```
///
/// # Errors
/// Every fault of every document.
pub fn compile(sources: &[Source]) -> Result<Compiled, Faults> {
    compile_for(sources, |_| Vec::new())
}

/// As [`compile`], for an agent that finds more to say: `remarks` is asked also where there are faults, of a policy with
/// gaps in their places, so that all are told in one pass.
///
/// # Errors
/// Every fault of every document, and every remark, if any of them is an error.
pub fn compile_for(
    sources: &[Source],
    remarks: impl FnOnce(&Policy) -> Vec<Fault>,
) -> Result<Compiled, Faults> {
    let mut decoder = Decoder::new();
    let roots: Vec<Node> = sources
        .iter()
        .filter_map(|source| decoder.parse(source))
        .collect();
    let mut patterns = Patterns::default();
    let mut reading = Reading {
        decoder: &mut decoder,
        patterns: &mut patterns,
    };
    let mut document = Document::default();
    for root in &roots {
        document.add(&mut reading, root);
    }
    let policy = assemble(&mut reading, document, hash(sources));
    let remarks = remarks(&policy);
    let (Ok(mut faults) | Err(mut faults)) = decoder.finish();
    if !remarks.is_empty() {
        faults.0.extend(remarks);
        faults.0.sort_by(|one, other| one.at.cmp(&other.at));
    }
    if faults.has_errors() {
        return Err(faults);
    }
    Ok(Compiled {
        policy,
        warnings: faults,
    })
}

/// Resolves and builds. Where there are faults, the policy is not used; building it finds the rest of them.
fn assemble(reading: &mut Reading<'_>, mut document: Document<'_>, hash: String) -> Policy {
    // By name, so that nothing depends on the order of files.
    by_name(&mut document.workloads);
    by_name(&mut document.identities);
    by_name(&mut document.groups);
    by_name(&mut document.apis);
    by_name(&mut document.credentials);
    by_name(&mut document.roles);
    let names = Names::collect(reading.decoder, &document);
    let hosts = place::hosts(reading.decoder, &document.apis);
    let tcp = place::tcp(reading.decoder, &document.apis);
    place::check_selectors(reading.decoder, &document.workloads);
    place::check_proofs(reading.decoder, &document.identities);
    let mut instances = Instances::new(reading, &names, &document.roles);
    let granted = subjects::resolve(reading, &names, &document, &mut instances);
    let mut instances = instances.into_made();
    let closures: Vec<_> = instances
        .iter_mut()
        .map(|instance| std::mem::take(&mut instance.all))
        .collect();
    let decoder = &mut *reading.decoder;
    let groups = subjects::groups_of(&names, &document);
    let budgets = budget::budgets(decoder, &names, &document, &groups);
    let counted = budget::counted(decoder, &budgets, &document);
    let bindings = rules::Bindings::resolve(decoder, &names, &document.credentials, &document.apis);
    let ruled = rules::build(decoder, &names, &bindings, &document.apis, instances);
    let subjects = subjects::build(decoder, &ruled, &document.workloads, &granted);
    warn::warn(
        decoder,
        &warn::Whole {
            document: &document,
            ruled: &ruled,
            closures: &closures,
            granted: &granted,
        },
    );
    let identities = place::identities(decoder, document.identities);
    Policy {
        hash,
        version: VERSION,
        workloads: place::workloads(decoder, document.workloads),
        identity_numbers: place::numbers(&identities),
        identities,
        groups,
        apis: place::apis(decoder, document.apis),
        credentials: rules::credentials(decoder, document.credentials),
        headers_read: headers_read(&ruled.rules),
        rules: ruled.rules,
        entries: ruled.entries,
        hosts,
        tcp,
        subjects: subjects.grants,
        guards: subjects.guards,
        budgeted: budget::budgeted(&budgets),
        refusing: None,
        counted,
        prices: budget::prices(document.prices),
        budgets,
    }
}

fn headers_read(rules: &[RuleData]) -> Vec<String> {
    let required = rules.iter().flat_map(|rule| &rule.headers.require);
    let required = required.map(|(name, _)| name.as_str());
    let conditions = rules.iter().filter_map(|rule| rule.when.as_deref());
    let names: BTreeSet<&str> = required.chain(conditions.flat_map(When::headers)).collect();
    names.into_iter().map(str::to_owned).collect()
}

fn by_name<T>(things: &mut [Named<T>]) {
    things.sort_by(|one, other| one.name.text.cmp(&other.name.text));
}

/// The digest of the sorted digests of the texts.
fn hash(sources: &[Source]) -> String {
    let mut digests: Vec<_> = sources
        .iter()
        .map(|source| Sha256::digest(source.text.as_bytes()))
        .collect();
    digests.sort_unstable();
    let mut whole = Sha256::new();
    for digest in digests {
        whole.update(digest);
    }
    whole
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
