//! What the policy language can say and this version's agent cannot hold: found before anything is decided by it.
use super::conditions::{CONDITIONS, Conditions};
use super::selectors::{Selectors, has_cgroup};
use crate::kernel::{Bits, MOST_WORKLOADS, UNSETTLED_NAME};
use tollgate_policy::syntax::{Fault, Faults, Severity, Source};
use tollgate_policy::{Compiled, Policy, Selector};

/// Compiles `sources`, and refuses what the agent could not keep. The one way from policy files to a policy, so that
/// what `tollgate check` calls valid is what the agent takes.
///
/// # Errors
/// Every fault.
pub fn compile(sources: &[Source]) -> Result<Compiled, Faults> {
    tollgate_policy::compile_for(sources, |policy| {
        let mut faults = selectors(policy, sources);
        faults.extend(workloads(policy, sources));
        faults.extend(reserved(policy, sources));
        faults
    })
}

/// The hooks have no room for so many, whatever policies came before.
fn workloads(policy: &Policy, sources: &[Source]) -> Option<Fault> {
    let mut beyond = policy.workloads().iter().skip(MOST_WORKLOADS);
    let message = format!("more than {MOST_WORKLOADS} workloads");
    let mut fault = Fault::found(Severity::Error, beyond.next()?.at.clone(), message, sources);
    fault.help = Some("the kernel has no room for more: have one recognise several".to_owned());
    Some(fault)
}

/// What a selector says that cannot be held, and what is wider than it looks.
fn selectors(policy: &Policy, sources: &[Source]) -> Vec<Fault> {
    let all = policy.workloads().iter().flat_map(|w| &w.selectors);
    let mut combined = Conditions::default();
    let numbered = Selectors::of(policy, &Selectors::default(), &Bits::default());
    let unfollowed = numbered.unfollowed().map(|(selector, error)| {
        let (at, message) = (selector.at.clone(), error.to_string());
        let mut fault = Fault::found(Severity::Error, at, message, sources);
        fault.help = Some("write wider paths, or units of one slice".to_owned());
        fault
    });
    let remarks = all.filter_map(|selector| {
        combined.place(selector);
        let (severity, message, help) = remark(selector, combined.len())?;
        let mut fault = Fault::found(severity, selector.at.clone(), message, sources);
        fault.help = Some(help.to_owned());
        Some(fault)
    });
    remarks.chain(unfollowed).collect()
}

/// Accounts and records would say of the workload what is said of nobody's.
fn reserved(policy: &Policy, sources: &[Source]) -> Option<Fault> {
    let mut all = policy.workloads().iter();
    let named = all.find(|workload| workload.name == UNSETTLED_NAME)?;
    let message = format!("`{UNSETTLED_NAME}` is who is refused until it is known whose they are");
    let mut fault = Fault::found(Severity::Error, named.at.clone(), message, sources);
    fault.help = Some("choose another name for the workload".to_owned());
    Some(fault)
}

/// Programs that run other programs: each of those is the interpreter to the kernel.
const INTERPRETERS: [&str; 12] = [
    "python", "node", "perl", "ruby", "php", "java", "sh", "bash", "dash", "busybox", "deno",
    "ld-linux",
];

fn remark(selector: &Selector, combined: usize) -> Option<(Severity, String, &'static str)> {
    if combined > CONDITIONS {
        let message = format!(
            "more than {CONDITIONS} conditions on cgroups stand beside `user`, `exe` or `sha256`"
        );
        return Some((
            Severity::Error,
            message,
            "leave the cgroup out, or name a wider one",
        ));
    }
    let by_user_alone =
        !has_cgroup(selector) && selector.exe.is_none() && selector.sha256.is_none();
    if by_user_alone && matches!(selector.user.as_deref(), Some("root" | "0")) {
        let message = "all that root runs would be governed, the host's own services and this agent's administration included";
        return Some((
            Severity::Error,
            message.to_owned(),
            "add `unit`, `cgroup` or `exe`",
        ));
    }
    let exe = selector.exe.as_deref()?;
    let name = exe.rsplit('/').next()?;
    let stem = name.trim_end_matches(|c: char| c.is_ascii_digit() || c == '.');
    let is_interpreter = INTERPRETERS.contains(&stem) || name.starts_with("ld-");
    (is_interpreter && !has_cgroup(selector) && selector.user.is_none()).then(|| {
        let message =
            format!("`{name}` runs other programs: this is every program that it runs, whoever's");
        (Severity::Warning, message, "add `user`, `unit` or `cgroup`")
    })
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
    fn what_cannot_be_held_or_is_too_wide_is_told_with_its_place() {
        for (condition, severity, told) in [
            (
                "[{ unit: a.service }, { user: root }]",
                Severity::Error,
                "administration",
            ),
            (
                "{ exe: /usr/bin/python3.11 }",
                Severity::Warning,
                "every program",
            ),
        ] {
            let found = match compile(&source(condition, "")) {
                Ok(compiled) => compiled.warnings,
                Err(faults) => faults,
            };
            let found = found
                .iter()
                .find(|f| f.severity == severity && f.message.contains(told));
            assert!(found.is_some_and(|fault| fault.at.line == 4), "{condition}");
        }
        for good in [
            "{ unit: a.service, cgroup: /a }",
            "{ container: image-1 }",
            "{ labels: { app: web } }",
            "{ labels: { app: web }, user: intern }",
            "{ container: image-1, user: intern }",
            "{ user: intern, cgroup: /a }",
            "{ user: root, exe: /usr/bin/python3.11 }",
            "{ exe: /usr/bin/curl }",
        ] {
            let compiled = compile(&source(good, "")).unwrap();
            let remarks = compiled
                .warnings
                .iter()
                .filter(|f| f.at.line == 4 && f.message.contains("runs"));
            assert_eq!(remarks.count(), 0, "{good}");
        }
    }

    #[test]
    fn no_workload_is_called_as_who_is_nobodys_yet() {
        let faults = compile(&source("{ unit: a.service }", "  unsettled: {}\n")).unwrap_err();
        let mut errors = faults.iter().filter(|f| f.severity == Severity::Error);
        assert_eq!(errors.next().unwrap().at.line, 5, "{faults}");
        assert!(errors.next().is_none(), "{faults}");
    }

    #[test]
    fn workloads_are_bounded() {
        let many = |count: usize| {
            let each = (0..count).map(|n| format!("  other-{n}: {{}}\n"));
            compile(&source("{ unit: a.service }", &each.collect::<String>()))
        };
        assert!(many(MOST_WORKLOADS - 1).is_ok());
        let faults = many(MOST_WORKLOADS).unwrap_err();
        let told = faults.to_string();
        assert!(told.contains("more than 16384 workloads"), "{told}");
    }

    #[test]
    fn it_is_told_beside_the_faults_of_the_language() {
        let more = "grants: [{ role: nothing, to: { workload: w } }]\n";
        let faults = compile(&source("{ user: root }", more)).unwrap_err();
        let lines: Vec<u32> = faults.iter().map(|fault| fault.at.line).collect();
        assert_eq!(lines, [4, 5], "{faults}");
    }

    #[test]
    fn shapes_of_paths_are_bounded() {
        let many = |count: usize| {
            let each = (0..count).map(|n| format!("{{ cgroup: {}/c }}", "/d".repeat(n)));
            format!(
                "[{}, {{ user: intern }}]",
                each.collect::<Vec<_>>().join(", ")
            )
        };
        // So many names deep, without and with any name somewhere.
        let stars = |count: usize| {
            let each = (0..count).map(|n| format!("{{ cgroup: {}/*/c }}", "/d".repeat(n)));
            format!("[{}]", each.collect::<Vec<_>>().join(", "))
        };
        assert!(compile(&source(&many(20), "")).is_ok());
        let both = many(20).replace(']', ", ") + &stars(20).replace('[', "");
        let faults = compile(&source(&both, "")).unwrap_err();
        let found = faults.iter().find(|fault| fault.message.contains("shapes"));
        assert!(found.is_some_and(|fault| fault.at.line == 4), "{faults}");
    }

    #[test]
    fn conditions_beside_others_are_bounded() {
        let many = |count: usize| {
            let each = (0..count).map(|n| format!("{{ user: u, cgroup: /c{n} }}"));
            format!("[{}]", each.collect::<Vec<_>>().join(", "))
        };
        assert!(compile(&source(&many(CONDITIONS), "")).is_ok());
        assert!(compile(&source(&many(CONDITIONS + 1), "")).is_err());
    }
}
