//! What `tollgate run` says at its end. Many programs print of a refusal no more than its status: this leads to the rule.
use super::super::output::{self, Colour, Paint};
use crate::audit::{Counts, Coverage, Filter, Record, Repeated, Verdict};
use crate::daemon::admin::client;
use crate::daemon::admin::wire::{Enrolled, Reply, Request};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// For what the kernel reported last to reach the log.
const REPORTED: Duration = Duration::from_millis(100);
/// A path on record that is this long may have been longer.
const PATH: usize = 2_040;

/// What was decided for processes of a run.
#[derive(Debug)]
pub(super) struct Decided {
    counts: Counts,
    /// Newest last.
    kinds: Vec<Repeated>,
}

impl Decided {
    /// None where there is no agent any more.
    pub(super) fn ask(socket: &Path, enrolled: &Enrolled, since: jiff::Timestamp) -> Option<Self> {
        std::thread::sleep(REPORTED);
        let filter = Filter {
            since: Some(since),
            workload: Some(enrolled.workload.clone()),
            cgroup: Some(enrolled.cgroup.clone()),
            ..Filter::default()
        };
        let mut kinds = Vec::new();
        for reply in client::ask(socket, Request::Tally { filter }).ok()? {
            match reply.ok()? {
                Reply::Repeated(kind) => kinds.push(kind),
                Reply::Counts(counts) => return Some(Self { counts, kinds }),
                _ => {}
            }
        }
        None
    }
}

/// Where more of a decision can be seen once the run has ended.
#[derive(Debug)]
pub(super) enum Further {
    /// By its id: the agent has it on record.
    OnRecord,
    /// Its agent's log is gone with that agent; the policy, which was read from here, can be asked again.
    Gone(Vec<PathBuf>),
}

/// Says it, or nothing where nothing was asked for.
pub(super) fn tell(enrolled: &Enrolled, decided: Option<&Decided>, further: &Further) {
    let workload = output::escape(&enrolled.workload);
    match decided {
        None => tell!(
            "tollgate: the agent is gone: what {workload} tried since was refused by the kernel"
        ),
        Some(decided) => {
            for line in lines(&workload, decided, further, Paint::stderr()) {
                tell!("{line}");
            }
        }
    }
}

fn lines(workload: &str, decided: &Decided, further: &Further, paint: Paint) -> Vec<String> {
    let Decided { counts, kinds } = decided;
    if *counts == Counts::default() {
        return Vec::new();
    }
    let mut told = vec![
        format!("{} allowed", counts.allowed),
        format!("{} denied", counts.denied),
    ];
    for (count, noun) in [
        (counts.would_deny, "would be denied"),
        (counts.failed, "failed"),
    ] {
        if count > 0 {
            told.push(format!("{count} {noun}"));
        }
    }
    let mut lines = vec![format!("tollgate: {workload}: {}", told.join(", "))];
    if counts.other_kinds > 0 {
        let others = format!("  of {} more kinds, older than these", counts.other_kinds);
        lines.push(match further {
            Further::OnRecord => {
                format!("{others}: tollgate decisions --denied --workload {workload}")
            }
            Further::Gone(_) => others,
        });
    }
    for kind in kinds {
        entry(&mut lines, kind, further, paint);
    }
    lines
}

/// One kind of refusal: the call, how often, why, what to do, where there is more.
fn entry(lines: &mut Vec<String>, kind: &Repeated, further: &Further, paint: Paint) {
    let record = &kind.last;
    let (name, colour) = match record.verdict {
        Verdict::WouldDeny => ("WOULD-DENY", Colour::Yellow),
        Verdict::Limit => ("LIMIT", Colour::Red),
        Verdict::Error => ("ERROR", Colour::Yellow),
        Verdict::Allow | Verdict::Deny => ("DENY", Colour::Red),
    };
    let method = record.request.as_ref().map(|r| r.method.as_str());
    let status = record.response.map(|r| r.status).filter(|s| *s != 0);
    let process = record.process.as_ref().map(|process| {
        let program = process.exe.rsplit('/').next().unwrap_or_default();
        format!("by {program}({})", process.pid)
    });
    let words = [
        method.map(str::to_owned),
        record.place(),
        status.map(|status| status.to_string()),
        process,
    ];
    let words: Vec<String> = words.into_iter().flatten().collect();
    let words = words.iter().filter(|word| !word.is_empty());
    let call = words.map(|word| output::escape(word)).collect::<Vec<_>>();
    let often = match kind.times {
        0 | 1 => String::new(),
        times => format!(", the last of {times}"),
    };
    lines.push(format!(
        "  {} {} {}{often}",
        paint.paint(Colour::Dim, &output::local(record.time)),
        paint.paint(colour, name),
        call.join(" ")
    ));
    if let Some(reason) = &record.reason {
        let why = format!("{} ({})", reason.detail, reason.code);
        lines.push(format!("    {}", output::escape(&why)));
        if !reason.hint.is_empty() {
            lines.push(format!("    {}", output::escape(&reason.hint)));
        }
    }
    lines.extend(command(record, further).map(|command| format!("    {command}")));
}

/// The command that tells more, to be copied into a shell.
fn command(record: &Record, further: &Further) -> Option<String> {
    let policy = match further {
        Further::OnRecord => return Some(format!("tollgate explain {}", record.id)),
        Further::Gone(policy) => policy,
    };
    let (request, workload) = (record.request.as_ref()?, record.workload.as_deref()?);
    let asked = record.coverage == Coverage::Request && !request.method.is_empty();
    if !asked || request.path.len() >= PATH || policy.is_empty() {
        return None;
    }
    // The values of parameters are not on record: whoever asks again has them.
    let keys: Vec<String> = request
        .query_keys
        .iter()
        .map(|k| format!("{k}=…"))
        .collect();
    let query = match keys.is_empty() {
        true => String::new(),
        false => format!("?{}", keys.join("&")),
    };
    let url = format!(
        "{}://{}:{}{}{query}",
        request.scheme, request.host, request.port, request.path
    );
    let default = [(":443/", "https://"), (":80/", "http://")];
    let url = match default.iter().find(|(_, scheme)| url.starts_with(scheme)) {
        Some((port, _)) => url.replacen(port, "/", 1),
        None => url,
    };
    let mut words = vec!["tollgate".to_owned(), "explain".to_owned()];
    words.extend([&request.method, &url].map(|word| quoted(word)));
    words.extend(["--workload".to_owned(), quoted(workload)]);
    if let Some(identity) = &record.identity {
        words.extend(["--identity".to_owned(), quoted(identity)]);
    }
    for path in policy {
        words.extend(["--policy".to_owned(), quoted(&path.to_string_lossy())]);
    }
    Some(words.join(" "))
}

/// A word as a shell takes it literally: paths are the program's to choose, and this is to be copied.
fn quoted(word: &str) -> String {
    let word = output::escape(word);
    let plain = |c: char| c.is_ascii_alphanumeric() || "/:._-%@+=,".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        return word;
    }
    format!("'{}'", word.replace('\'', "'\\''"))
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::indexing_slicing)]
mod tests {
    use super::super::super::tests::record;
    use super::*;
    use std::sync::Arc;

    fn kind(times: u64, change: impl FnOnce(&mut Record)) -> Repeated {
        let mut last = record();
        change(&mut last);
        Repeated {
            times,
            last: Arc::new(last),
        }
    }

    fn told(counts: Counts, kinds: Vec<Repeated>, further: &Further) -> String {
        lines(
            "report",
            &Decided { counts, kinds },
            further,
            Paint::never(),
        )
        .join("\n")
    }

    #[test]
    fn nothing_is_said_of_nothing() {
        assert_eq!(told(Counts::default(), Vec::new(), &Further::OnRecord), "");
        let allowed = Counts {
            allowed: 2,
            ..Counts::default()
        };
        assert_eq!(
            told(allowed, Vec::new(), &Further::OnRecord),
            "tollgate: report: 2 allowed, 0 denied"
        );
    }

    #[test]
    fn a_kind_of_refusal_says_why_and_where_there_is_more() {
        let denied = Counts {
            denied: 12,
            other_kinds: 3,
            ..Counts::default()
        };
        let said = |further| {
            let kind = kind(12, |record| {
                let reason = record.reason.as_mut().unwrap();
                "widen it at p.yaml:7".clone_into(&mut reason.hint);
                let request = record.request.as_mut().unwrap();
                "/o'clock/$(reboot)".clone_into(&mut request.path);
                request.query_keys = vec!["since".into()];
            });
            told(denied, vec![kind], &further)
        };
        let text = said(Further::OnRecord);
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "tollgate: report: 0 allowed, 12 denied");
        assert_eq!(
            lines[1],
            "  of 3 more kinds, older than these: tollgate decisions --denied --workload report"
        );
        assert!(
            lines[2].ends_with("DENY GET api.example/o'clock/$(reboot) 403, the last of 12"),
            "{text}"
        );
        assert_eq!(lines[3], "    no rule (no_route)");
        assert_eq!(lines[4], "    widen it at p.yaml:7");
        assert_eq!(
            lines[5],
            format!("    tollgate explain {}", uuid::Uuid::nil())
        );
        // Whose agent has gone with its log is pointed at the policy, and a shell reads no more into it.
        let text = said(Further::Gone(vec!["my policy.yaml".into()]));
        assert!(!text.contains("tollgate decisions"), "{text}");
        assert!(
            text.ends_with(
                "tollgate explain GET 'https://api.example/o'\\''clock/$(reboot)?since=…' --workload report \
                 --policy 'my policy.yaml'"
            ),
            "{text}"
        );
    }

    #[test]
    fn what_the_program_chose_stays_text() {
        let kind = kind(1, |_| {});
        let denied = Counts {
            denied: 1,
            ..Counts::default()
        };
        for further in [Further::OnRecord, Further::Gone(vec!["p".into()])] {
            let text = told(denied, vec![kind.clone()], &further);
            assert!(
                !text.contains('\u{1b}') && !text.contains('\u{202e}'),
                "{text}"
            );
            assert_eq!(text.lines().count(), 4, "{text}");
        }
    }
}
