//! What the policy language can say and this version's agent cannot hold: found before anything is decided by it.
use super::cgroups::unrecognised;
use tollgate_policy::syntax::{Fault, Faults, Severity, Source};
use tollgate_policy::{Compiled, Policy};

/// Compiles `sources`, and refuses what the agent could not keep. The one way from policy files to a policy, so that
/// what `tollgate check` calls valid is what the agent takes.
///
/// # Errors
/// Every fault.
pub fn compile(sources: &[Source]) -> Result<Compiled, Faults> {
    let Compiled { policy, warnings } = tollgate_policy::compile(sources)?;
    let mut faults = warnings.0;
    faults.extend(selectors(&policy, sources));
    faults.sort_by(|one, other| one.at.cmp(&other.at));
    let faults = Faults(faults);
    if faults.has_errors() {
        return Err(faults);
    }
    Ok(Compiled {
        policy,
        warnings: faults,
    })
}

/// A selector that is not understood would leave ungoverned what it means.
fn selectors(policy: &Policy, sources: &[Source]) -> Vec<Fault> {
    let all = policy.workloads().iter().flat_map(|w| &w.selectors);
    all.filter_map(|selector| {
        let condition = unrecognised(selector)?;
        let message = format!(
            "this version recognises workloads by `unit` and `cgroup`; `{condition}` cannot be held yet"
        );
        let mut fault = Fault::found(Severity::Error, selector.at.clone(), message, sources);
        fault.help = Some(
            "recognise it by `unit` or `cgroup`, or leave `match` out and start it with `tollgate run --workload`"
                .to_owned(),
        );
        Some(fault)
    })
    .collect()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn source(matching: &str, more: &str) -> [Source; 1] {
        [Source {
            name: "p.yaml".into(),
            text: format!("version: 1\nworkloads:\n  w:\n    match: {matching}\n{more}"),
        }]
    }

    #[test]
    fn what_the_kernel_half_does_not_recognise_is_refused_with_its_place() {
        for (condition, name) in [
            ("{ user: intern, cgroup: /a }", "user"),
            ("{ exe: /usr/bin/python3, cgroup: /a }", "exe"),
            ("{ container: image-1 }", "container"),
            (
                "[{ unit: a.service }, { user: intern, cgroup: /a }]",
                "user",
            ),
        ] {
            let faults = compile(&source(condition, "")).unwrap_err();
            let error = faults
                .iter()
                .find(|f| f.severity == Severity::Error)
                .unwrap();
            assert!(
                error
                    .message
                    .contains(&format!("`{name}` cannot be held yet")),
                "{error}"
            );
            assert_eq!(error.at.line, 4, "{error}");
            assert!(error.line_text.contains(name), "{error}");
        }
        assert!(compile(&source("{ unit: a.service, cgroup: /a }", "")).is_ok());
    }
}
