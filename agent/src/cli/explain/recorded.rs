//! A decision from the log: what was decided then, and what the policy says now.
use super::super::output::{self, Format, Paint};
use super::super::{Context, Outcome, decisions};
use super::{Args, SHOWN, policy_on_disk};
use crate::audit::{Coverage, Filter, Record, Verdict};
use crate::daemon;
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Reply, Request};
use crate::daemon::explain::check_names;
use anyhow::bail;
use serde::Serialize;
use std::path::Path;
use std::sync::Arc;
use tollgate_policy::canonical::Host;
use tollgate_policy::tools::call::Call;
use tollgate_policy::{Ability, Body, Mode, Policy, Subject};

/// A path on record that is this long may have been longer.
const PATH: usize = 2_040;

/// A record, and what is said of it now.
#[derive(Serialize)]
struct Shown<'r> {
    #[serde(flatten)]
    record: &'r Record,
    again: Again,
}

/// What the policy on disk says of a record.
#[derive(Debug, Serialize)]
struct Again {
    answer: Answer,
    /// Whether that is as it was decided then; none where it cannot be said.
    same: Option<bool>,
    /// The policy that was asked, and whether it is the one that decided then.
    policy_hash: Option<String>,
    same_policy: Option<bool>,
    /// What is not on record, and was not asked about.
    not_on_record: Vec<&'static str>,
}

#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Answer {
    /// Whatever is not on record: this rule allows it.
    Allow { rule: String },
    /// Whatever is not on record: it is denied.
    Deny {
        code: String,
        detail: String,
        mode: Mode,
        /// Rules that came near, where each stands, and what failed in it.
        near: Vec<String>,
    },
    /// Each rule that would allow it, and what would have to hold that is not on record.
    Depends { on: Vec<Depends> },
    /// There is nothing to ask, and why.
    Unknown { why: String },
}

#[derive(Debug, Serialize)]
struct Depends {
    rule: String,
    further: Vec<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let id = &args.method;
    let Ok(id) = id.parse() else {
        bail!("{id}: neither a decision's id, nor a method with a URL after it");
    };
    let filter = Filter {
        id: Some(id),
        ..Filter::default()
    };
    let found = match &args.log {
        Some(directory) => in_log(directory, &filter)?,
        None => from_agent(context, &filter)?,
    };
    let Some(record) = found else {
        tell!(
            "tollgate: no decision {id} in the log: it may be older than the segments kept, or of a `tollgate run` with an agent \
             of its own, whose log went with it; the command that it printed at its end asks its policy again"
        );
        return Ok(Outcome::No);
    };
    let again = match policy_on_disk(context, args) {
        Ok(policy) => again(&policy, &record, jiff::Timestamp::now().as_second()),
        Err(error) => Again {
            answer: Answer::Unknown {
                why: format!("the policy on disk cannot be asked: {error:#}"),
            },
            same: None,
            policy_hash: None,
            same_policy: None,
            not_on_record: Vec::new(),
        },
    };
    let format = args.form.format;
    if format == Format::Table {
        for line in decisions::lines([record.as_ref()], Paint::stdout(), None) {
            show!("{line}");
        }
        output::print_json_one(format, &record)?;
        show_text!("{}", output::escape_lines(&again.text(&record)));
    } else {
        let shown = Shown {
            record: &record,
            again,
        };
        output::print_json_one(format, &shown)?;
    }
    Ok(Outcome::Done)
}

fn in_log(directory: &Path, filter: &Filter) -> anyhow::Result<Option<Arc<Record>>> {
    Ok(crate::audit::read(directory, filter)?.into_iter().next())
}

fn from_agent(context: &Context, filter: &Filter) -> anyhow::Result<Option<Arc<Record>>> {
    let request = Request::Decisions {
        filter: filter.clone(),
        follow: false,
    };
    let mut found = None;
    match client::ask(&context.socket()?, request) {
        Ok(answer) => {
            for reply in answer {
                if let Reply::Decision(record) = reply? {
                    found = Some(record);
                }
            }
            Ok(found)
        }
        Err(client::Error::NoAgent { .. }) => {
            in_log(&daemon::decisions_dir(&context.config()?.state_dir), filter)
        }
        Err(error) => Err(error.into()),
    }
}

/// Decides again what is on record of a request.
fn again(policy: &Policy, record: &Record, now: i64) -> Again {
    let asked = ask(policy, record, now);
    let denied = record.verdict.is_denial() && record.verdict != Verdict::Limit;
    let same = match (&asked, record.verdict) {
        (_, Verdict::Error | Verdict::Limit) => None,
        (Answer::Allow { .. }, _) => Some(record.verdict == Verdict::Allow),
        (Answer::Deny { .. }, _) => Some(denied),
        (Answer::Depends { .. } | Answer::Unknown { .. }, _) => None,
    };
    let mut not_on_record = Vec::new();
    if !matches!(asked, Answer::Unknown { .. }) && record.coverage != Coverage::Dns {
        not_on_record.extend(["headers", "the body"]);
        let keys = record.request.as_ref().map(|request| &request.query_keys);
        if keys.is_some_and(|keys| !keys.is_empty()) {
            not_on_record.push("values of query parameters");
        }
    }
    let then = record.policy.as_ref();
    Again {
        answer: asked,
        same,
        policy_hash: Some(policy.hash().to_owned()),
        same_policy: then.map(|then| then.hash == policy.hash()),
        not_on_record,
    }
}

fn ask(policy: &Policy, record: &Record, now: i64) -> Answer {
    let unknown = |why: &str| Answer::Unknown {
        why: why.to_owned(),
    };
    let (Some(request), Some(workload)) = (&record.request, &record.workload) else {
        return unknown("no request is on record, or nobody who made it");
    };
    if record.coverage == Coverage::Dns {
        return ask_name(policy, workload, &request.host, now);
    }
    if record.coverage != Coverage::Request || request.method.is_empty() {
        return unknown("it is about a connection, not a request");
    }
    if request.path.len() >= PATH {
        return unknown("the path on record may be cut");
    }
    let identity = record.identity.as_deref();
    if let Err(error) = check_names(policy, workload, identity) {
        return unknown(&error.to_string());
    }
    let url = format!(
        "{}://{}:{}{}",
        request.scheme, request.host, request.port, request.path
    );
    let call = match Call::new(&request.method, &url) {
        Ok(call) => call,
        Err(error) => return unknown(&error.to_string()),
    };
    let subject = Subject { workload, identity };
    let unread = call.request(Body::Unread(None), now);
    let could = policy.could(&subject, &unread, &request.query_keys);
    let by_rule = |ability: Ability<'_>| {
        let rule = ability.rule?;
        Some(Depends {
            rule: format!("{} ({}:{})", rule.label, rule.at.file, rule.at.line),
            further: ability.further,
        })
    };
    let on: Vec<Depends> = could.into_iter().filter_map(by_rule).collect();
    match on.iter().find(|rule| rule.further.is_empty()) {
        Some(rule) => Answer::Allow {
            rule: rule.rule.clone(),
        },
        None if !on.is_empty() => Answer::Depends { on },
        None => {
            let absent = call.request(Body::Absent, now);
            let explanation = policy.explain(&subject, &absent);
            let near = explanation.near.iter().take(SHOWN).map(|near| {
                let (rule, failed) = (near.rule, &near.failed);
                let place = format!("{}:{}", rule.at.file, rule.at.line);
                format!(
                    "{} ({place}): {}: {}",
                    rule.label, failed.code, failed.detail
                )
            });
            let near = near.collect();
            let decision = explanation.decision;
            let reason = decision.reason;
            let (code, detail) = match reason {
                Some(reason) => (reason.code.to_owned(), reason.detail),
                None => (
                    "query_extra".to_owned(),
                    "no rule takes its parameters".to_owned(),
                ),
            };
            Answer::Deny {
                code,
                detail,
                mode: decision.mode,
                near,
            }
        }
    }
}

/// Whether the name could be looked up now.
fn ask_name(policy: &Policy, workload: &str, name: &str, now: i64) -> Answer {
    let Ok(host) = Host::parse(name) else {
        return Answer::Unknown {
            why: "no host of an api has such a name".to_owned(),
        };
    };
    match policy.name(workload, &host, now) {
        Ok(()) => Answer::Allow {
            rule: format!("{workload} has a role on an api with the host {host}"),
        },
        Err(unnamed) => Answer::Deny {
            code: unnamed.reason.code.to_owned(),
            detail: format!("{}: {}", unnamed.reason.detail, unnamed.reason.hint),
            mode: unnamed.mode,
            near: Vec::new(),
        },
    }
}

impl Again {
    fn text(&self, record: &Record) -> String {
        let mut lines = Vec::new();
        let policy = match (&self.policy_hash, self.same_policy) {
            (_, Some(true)) => "by the policy on disk, the same".to_owned(),
            (Some(hash), _) => {
                let short = |hash: &str| hash.chars().take(12).collect::<String>();
                let then = record.policy.as_ref().map(|then| short(&then.hash));
                format!(
                    "by the policy on disk, {} (then {})",
                    short(hash),
                    then.unwrap_or_else(|| "unknown".to_owned())
                )
            }
            _ => String::new(),
        };
        match &self.answer {
            Answer::Allow { rule } => lines.push(format!("now: ALLOW {policy}: {rule}")),
            Answer::Deny {
                code,
                detail,
                mode,
                near,
            } => {
                let verdict = match mode {
                    Mode::Enforce => "DENY",
                    Mode::Observe => "WOULD-DENY",
                };
                lines.push(format!("now: {verdict} {policy}: {code}: {detail}"));
                if !near.is_empty() {
                    lines.push("  near misses:".to_owned());
                }
                lines.extend(near.iter().map(|near| format!("    {near}")));
            }
            Answer::Depends { on } => {
                lines.push(format!("now: depends on what is not on record, {policy}:"));
                for rule in on {
                    lines.push(format!("  {} if {}", rule.rule, rule.further.join("; ")));
                }
            }
            Answer::Unknown { why } => lines.push(format!("now: cannot be decided again: {why}")),
        }
        match self.same {
            Some(true) => lines.push("  as it was decided then".to_owned()),
            Some(false) => lines.push("  other than it was decided then".to_owned()),
            None => {}
        }
        if !self.not_on_record.is_empty() {
            lines.push(format!(
                "  not on record: {}",
                self.not_on_record.join(", ")
            ));
        }
        lines.join("\n") + "\n"
    }
}
