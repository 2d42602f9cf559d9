#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::output::{self, Paint};
use super::{Cli, decisions};
use crate::audit::{
    Coverage, ReasonRecord, Record, RequestRecord, ResponseRecord, Timing, Verdict,
};
use clap::{CommandFactory, Parser};

#[test]
fn the_definition_is_sound() {
    Cli::command().debug_assert();
}

#[test]
fn what_is_understood() {
    for line in [
        "agent",
        "agent --config /c.yaml",
        "--config /c.yaml agent",
        "run -- true",
        "run --policy p.yaml --workload w --user 1000 --observe -- curl -v https://a/",
        "check",
        "check a.yaml b.yaml -o json",
        "explain GET https://a/ --workload w --header accept:text/plain --body @f --policy p.yaml",
        "explain GET https://a/ --workload w --all -o json",
        "explain 01890a5d-ac96-774b-bcce-b302099a8057",
        "explain 01890a5d-ac96-774b-bcce-b302099a8057 --log d --policy p.yaml",
        "explain --who-can DELETE https://a/ --policy p.yaml",
        "test a.yaml b.yaml --policy p.yaml --min-coverage 80 -o jsonl",
        "test a.yaml",
        "diff a.yaml b.d --now 2026-06-01T00:00:00Z --all -o json",
        "check --schema",
        "decisions -f --denied --workload w --host *.a --since 10m --limit 5 -o jsonl",
        "flows",
        "workloads -o json",
        "status",
        "reload",
        "ca show",
        "ca export",
        "ca export --constrained",
        "ca rotate",
        "ca rotate --overlap 12h -o json",
        "trust env -o json",
        "trust env -o env",
        "trust install --dry-run",
        "trust uninstall",
        "doctor",
        "completions bash",
        "man",
    ] {
        let parsed = Cli::try_parse_from(std::iter::once("tollgate").chain(line.split(' ')));
        assert!(parsed.is_ok(), "{line}: {}", parsed.unwrap_err());
    }
}

#[test]
fn who_can_in_one_word() {
    let words = ["tollgate", "explain", "--who", "can", "DELETE https://a/x"];
    assert!(Cli::try_parse_from(words).is_ok());
}

#[test]
fn what_is_not() {
    for line in [
        "",
        "frobnicate",
        "run",
        "run curl",
        "run --",
        "explain GET https://a/ --workload w --header nocolon",
        "explain GET https://a/ --who-can --workload w",
        "explain --who is GET",
        "test",
        "test a.yaml --min-coverage 101",
        "diff a.yaml",
        "diff a.yaml b.yaml --now today",
        "check --schema a.yaml",
        "decisions --since 10",
        "decisions --since -1m",
        "decisions --limit many",
        "status -o yaml",
        "ca",
        "completions tcsh",
    ] {
        let words = line.split(' ').filter(|w| !w.is_empty());
        let error = Cli::try_parse_from(std::iter::once("tollgate").chain(words)).expect_err(line);
        assert!(error.use_stderr() || line.is_empty(), "{line}");
    }
}

pub(super) fn record() -> Record {
    Record {
        id: uuid::Uuid::nil(),
        time: jiff::Timestamp::now(),
        verdict: Verdict::Deny,
        mode: tollgate_policy::Mode::Enforce,
        workload: Some("report".into()),
        identity: None,
        process: None,
        request: Some(RequestRecord {
            method: "GET".to_owned(),
            scheme: "https".to_owned(),
            host: "api.example".to_owned(),
            port: 443,
            path: "/a\u{1b}[31m/\u{202e}b\n".to_owned(),
            ..RequestRecord::default()
        }),
        response: Some(ResponseRecord {
            status: 403,
            bytes: 1,
        }),
        rule: None,
        reason: Some(ReasonRecord::new("no_route", "no rule")),
        policy: None,
        credential: None,
        stripped: Vec::new(),
        injected: Vec::new(),
        redacted: Vec::new(),
        budget: None,
        upstream: None,
        coverage: Coverage::Request,
        timing: Timing {
            total_us: 12_345,
            policy_us: 0,
            upstream_us: 0,
        },
    }
}

fn line(record: &Record, terminal: Option<usize>) -> String {
    decisions::lines([record], Paint::never(), terminal).remove(0)
}

#[test]
fn columns_stand_under_each_other_and_reasons_end_with_the_terminal() {
    let (short, mut long) = (record(), record());
    long.workload = Some("a-longer-name".into());
    long.verdict = Verdict::WouldDeny;
    let lines = decisions::lines([&short, &long], Paint::never(), None);
    let column = |line: &str| line.find("no_route").unwrap();
    assert_eq!(column(&lines[0]), column(&lines[1]));
    let whole = line(&short, None).chars().count();
    assert_eq!(line(&short, Some(whole)), line(&short, None));
    let mut wordy = record();
    wordy.reason.as_mut().unwrap().detail = "word ".repeat(40);
    let cut = line(&wordy, Some(120));
    assert!(cut.ends_with('…') && cut.chars().count() == 120, "{cut}");
    assert!(line(&wordy, Some(10)).contains("no_route: word word"));
}

#[test]
fn a_decision_is_one_line_that_cannot_command_the_terminal() {
    let line = &line(&record(), None);
    let (_, rest) = line.split_once(' ').unwrap();
    assert_eq!(
        rest,
        "DENY report - - GET api.example/a\\u{1b}[31m/\\u{202e}b\\n 403 12.3ms no_route: no rule"
    );
    assert!(!line.contains(['\u{1b}', '\n', '\u{202e}']));
}

#[test]
fn a_kernel_refusal_shows_protocol_and_address() {
    let mut record = record();
    record.coverage = Coverage::Kernel;
    record.response = None;
    record.request = Some(RequestRecord {
        scheme: "udp".to_owned(),
        host: "2001:db8::1".to_owned(),
        port: 4433,
        ..RequestRecord::default()
    });
    assert!(line(&record, None).contains(" - UDP to [2001:db8::1]:4433 - - "));
    let request = record.request.as_mut().unwrap();
    (request.scheme, request.host, request.port) = ("262".to_owned(), String::new(), 0);
    assert!(line(&record, None).contains(" MPTCP, not yet to anywhere "));
    record.request.as_mut().unwrap().scheme = "89".to_owned();
    assert!(line(&record, None).contains(" IP protocol 89, "));
}

#[test]
fn sizes_for_people() {
    for (count, text) in [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1.0 KiB"),
        (1536, "1.5 KiB"),
        (u64::MAX, "16777215.9 TiB"),
    ] {
        assert_eq!(output::bytes(count), text);
    }
}

#[test]
fn escaping_keeps_lines_and_letters() {
    assert_eq!(output::escape_lines("é\u{7}\nb\r"), "é\\u{7}\nb\\r");
}
