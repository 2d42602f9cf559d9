//! `tollgate test`: cases that a policy must decide as its author expects.
use super::output::{self, Colour, Form, Format, Paint};
use super::{Context, Outcome};
use crate::daemon;
use anyhow::{Context as _, bail};
use std::collections::{HashMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use tollgate_policy::Policy;
use tollgate_policy::syntax::{Location, Source};
use tollgate_policy::tools::cases::{CaseResult, Suite};
use tollgate_policy::tools::coverage::{Coverage, Use};

/// Bytes of a file of cases, and of a body, at most.
const FILE: u64 = 4 << 20;

/// Hold a policy against cases: requests, and what must come of them
///
/// A file of cases names its policy, relative to itself, unless --policy does:
///
///   policy: [policy.yaml]
///   cases:
///     - name: triage reads issues
///       workload: report-builder
///       request: GET https://api.github.com/repos/acme/app/issues?state=open
///       expect: allow
///     - workload: report-builder
///       identity: alice
///       request: POST https://api.github.com/repos/acme/app/issues
///       json: { title: x }              # or body: TEXT, or file: NAME
///       headers: { accept: application/json }
///       expect: { verdict: deny, code: method }
///
/// An expectation may have `verdict`, `code`, `rule` (its route, label or file:line), `mode`, `credential` (or none) and
/// `stripped` (all of it). `now: 2026-06-01T00:00:00Z` sets the clock, which is 2026-01-01 otherwise. What a case says
/// in `identity` is taken as proven.
///
/// Prints which rules no case reached. Exit code 0: all as expected; 1: drift, or less coverage than asked for; 2: a
/// file is wrong.
#[derive(Debug, clap::Args)]
#[command(verbatim_doc_comment)]
#[allow(
    rustdoc::bare_urls,
    reason = "a terminal shows this, and shows brackets as brackets"
)]
pub(super) struct Args {
    /// Files of cases
    #[arg(value_name = "FILE", required = true)]
    files: Vec<PathBuf>,
    /// Policy files and directories, instead of those that the files of cases name
    #[arg(short, long, value_name = "FILE")]
    policy: Vec<PathBuf>,
    /// Fail if the cases reach less than so many percent of a policy's rules
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u8).range(0..=100))]
    min_coverage: Option<u8>,
    #[command(flatten)]
    form: Form,
}

/// The cases of one policy, and what they came to.
#[derive(serde::Serialize)]
struct Report {
    /// The policy's files.
    policy: Vec<String>,
    policy_hash: String,
    cases: Vec<CaseResult>,
    coverage: Covered,
}

#[derive(serde::Serialize)]
struct Covered {
    percent: usize,
    hit: usize,
    rules: usize,
    /// Rules that decided no case.
    never: Vec<Use>,
}

/// Suites that are held against one policy.
struct Group {
    paths: Vec<PathBuf>,
    policy: Policy,
    coverage: Coverage,
    cases: Vec<CaseResult>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let mut groups: Vec<Group> = Vec::new();
    for file in &args.files {
        let source = Source {
            name: file.display().to_string(),
            text: text(file)?,
        };
        let suite = match Suite::read(&source) {
            Ok(suite) => suite,
            Err(faults) => {
                tell!("{}", output::escape_lines(&faults.to_string()));
                return Ok(Outcome::Fault);
            }
        };
        let beside = file.parent().unwrap_or(Path::new(""));
        let paths = policy_of(context, args, &suite, beside)?;
        let bodies = bodies(&suite, beside)?;
        let known = groups.iter().position(|group| group.paths == paths);
        let index = match known {
            Some(index) => index,
            None => {
                let sources = daemon::read_policy(&paths)?;
                let compiled = daemon::compile(&sources).map_err(daemon::Error::PolicyFaults)?;
                groups.push(Group {
                    paths,
                    coverage: Coverage::new(&compiled.policy),
                    policy: compiled.policy,
                    cases: Vec::new(),
                });
                groups.len() - 1
            }
        };
        if let Some(group) = groups.get_mut(index) {
            let results = suite.run(&group.policy, &bodies, &mut group.coverage);
            group.cases.extend(results);
        }
    }
    let reports: Vec<Report> = groups.into_iter().map(report).collect();
    let few = |report: &Report| {
        args.min_coverage
            .is_some_and(|least| report.coverage.percent < usize::from(least))
    };
    match args.form.format {
        Format::Table => reports.iter().for_each(|report| print(report, few(report))),
        format => output::print_json(format, &reports)?,
    }
    let drift = |report: &Report| report.cases.iter().any(|case| !case.passed);
    Ok(
        if reports.iter().any(|report| drift(report) || few(report)) {
            Outcome::No
        } else {
            Outcome::Done
        },
    )
}

/// `--policy`, else what the file says, else the configuration's.
fn policy_of(
    context: &Context,
    args: &Args,
    suite: &Suite,
    beside: &Path,
) -> anyhow::Result<Vec<PathBuf>> {
    if !args.policy.is_empty() {
        return Ok(args.policy.clone());
    }
    if suite.policy.is_empty() {
        return Ok(context.config()?.policy);
    }
    Ok(suite.policy.iter().map(|path| beside.join(path)).collect())
}

fn bodies(suite: &Suite, beside: &Path) -> anyhow::Result<HashMap<String, Vec<u8>>> {
    let names: HashSet<&str> = suite.files().collect();
    let read = |name: &str| {
        let path = beside.join(name);
        Ok((name.to_owned(), contents(&path)?))
    };
    names.into_iter().map(read).collect()
}

fn text(path: &Path) -> anyhow::Result<String> {
    String::from_utf8(contents(path)?).with_context(|| format!("{}: not UTF-8", path.display()))
}

fn contents(path: &Path) -> anyhow::Result<Vec<u8>> {
    let fail = || path.display().to_string();
    let mut contents = Vec::new();
    let file = std::fs::File::open(path).with_context(fail)?;
    if !file.metadata().with_context(fail)?.is_file() {
        bail!("{}: not a file", path.display());
    }
    file.take(FILE + 1)
        .read_to_end(&mut contents)
        .with_context(fail)?;
    if contents.len() as u64 > FILE {
        bail!("{}: larger than {FILE} bytes", path.display());
    }
    Ok(contents)
}

fn report(group: Group) -> Report {
    let (hit, rules) = group.coverage.counts();
    let never = group.coverage.rules().filter(|rule| rule.hits == 0);
    Report {
        policy: group
            .paths
            .iter()
            .map(|path| path.display().to_string())
            .collect(),
        policy_hash: group.policy.hash().to_owned(),
        coverage: Covered {
            percent: group.coverage.percent(),
            hit,
            rules,
            never: never.cloned().collect(),
        },
        cases: group.cases,
    }
}

fn print(report: &Report, few: bool) {
    let paint = Paint::stdout();
    for case in &report.cases {
        let name = output::escape(&case.name);
        if case.passed {
            show!("{} {name}", paint.paint(Colour::Green, "ok  "));
            continue;
        }
        let at = output::escape(&place(&case.at));
        show!("{} {name} ({at})", paint.paint(Colour::Red, "FAIL"));
        for drift in &case.drift {
            show!("       {}", output::escape(drift));
        }
        for why in &case.why {
            show!("       {}", paint.paint(Colour::Dim, &output::escape(why)));
        }
    }
    let failed = report.cases.iter().filter(|case| !case.passed).count();
    let passed = report.cases.len().saturating_sub(failed);
    let covered = &report.coverage;
    let colour = if failed > 0 {
        Colour::Red
    } else {
        Colour::Green
    };
    let told = format!("{passed} ok, {failed} failed");
    let share = format!(
        "{} of {} rules reached, {}%",
        covered.hit, covered.rules, covered.percent
    );
    let share = if few {
        paint.paint(Colour::Red, &share)
    } else {
        share
    };
    show!("{}; {share}", paint.paint(colour, &told));
    for rule in &covered.never {
        let told = format!("never reached: {} ({})", rule.rule, place(&rule.at));
        show!("  {}", paint.paint(Colour::Yellow, &output::escape(&told)));
    }
}

fn place(at: &Location) -> String {
    format!("{}:{}", at.file, at.line)
}
