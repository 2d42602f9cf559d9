#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;
use crate::config::AuditLimits;
use crate::kernel::Process;
use proptest::prelude::*;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::Mode;

const SMALL: AuditLimits = AuditLimits {
    segment_bytes: 8 * 1024,
    segments: 1000,
};

fn process() -> Arc<Process> {
    Arc::new(Process {
        pid: 4242,
        start: u64::MAX,
        exe: "/usr/bin/curl".into(),
        exe_dev: 1,
        exe_inode: 2,
        sha256: Some("a1".repeat(32)),
        uid: 1000,
        cgroup: "/system.slice/app.service".into(),
        unit: Some("app.service".into()),
    })
}

/// Allowed, with everything there is to say.
fn full() -> Record {
    Record {
        id: uuid::Uuid::now_v7(),
        time: jiff::Timestamp::now(),
        verdict: Verdict::Allow,
        mode: Mode::Enforce,
        workload: Some("ci".into()),
        identity: Some("bot".into()),
        process: Some(process()),
        request: Some(RequestRecord {
            method: "GET".into(),
            scheme: "https".into(),
            host: "api.example.com".into(),
            port: 443,
            path: "/repos/acme/tool/issues".into(),
            route: Some("/repos/acme/{repo}/issues".into()),
            query_keys: vec!["page".into()],
            bytes: 0,
        }),
        response: Some(ResponseRecord {
            status: 200,
            bytes: 1234,
        }),
        rule: Some("role:triage allow GET /repos/acme/{repo}/issues".into()),
        reason: None,
        policy: Some(Arc::new(PolicyStamp {
            version: 1,
            hash: "00ff".into(),
        })),
        credential: Some("github-bot".into()),
        stripped: vec!["authorization".into()],
        injected: vec!["authorization".into()],
        budget: Some("daily".into()),
        upstream: Some(UpstreamRecord {
            address: "198.51.100.7:443".into(),
            tls: Some("TLSv1.3 h2".into()),
        }),
        coverage: Coverage::Request,
        timing: Timing {
            total_us: 900,
            policy_us: 3,
            upstream_us: 800,
        },
    }
}

/// Refused by the kernel, with as little to say as there can be.
fn bare() -> Record {
    Record {
        verdict: Verdict::Deny,
        workload: None,
        identity: None,
        process: None,
        request: None,
        response: None,
        rule: None,
        policy: None,
        credential: None,
        stripped: vec![],
        injected: vec![],
        budget: None,
        upstream: None,
        coverage: Coverage::Kernel,
        timing: Timing::default(),
        ..full()
    }
}

fn denied(host: &str) -> Record {
    Record {
        verdict: Verdict::Deny,
        request: Some(RequestRecord {
            host: host.into(),
            ..full().request.unwrap()
        }),
        response: Some(ResponseRecord {
            status: 403,
            bytes: 99,
        }),
        reason: Some(ReasonRecord {
            code: "no_route".into(),
            detail: "no rule has this path".into(),
        }),
        upstream: None,
        ..full()
    }
}

fn every_kind() -> Vec<Record> {
    let reason = |code: &'static str| {
        Some(ReasonRecord {
            code: code.into(),
            detail: "…".into(),
        })
    };
    vec![
        full(),
        bare(),
        denied("other.example"),
        Record {
            verdict: Verdict::WouldDeny,
            mode: Mode::Observe,
            ..denied("o.example")
        },
        Record {
            verdict: Verdict::Limit,
            reason: reason("rate"),
            ..full()
        },
        Record {
            verdict: Verdict::Error,
            reason: reason("upstream_tls"),
            upstream: Some(UpstreamRecord {
                address: "[2001:db8::1]:80".into(),
                tls: None,
            }),
            coverage: Coverage::Connection,
            ..full()
        },
    ]
}

fn json(record: &Record) -> serde_json::Value {
    let mut line = Vec::new();
    encode(record, &mut line);
    serde_json::from_slice(&line).unwrap()
}

fn write(dir: &Path, limits: &AuditLimits, records: impl IntoIterator<Item = Record>) -> Stats {
    let (sink, log) = Writer::start(dir, limits).unwrap();
    records.into_iter().for_each(|record| sink.submit(record));
    log.close()
}

fn segments(dir: &Path) -> Vec<PathBuf> {
    segment::list(dir)
        .unwrap()
        .into_iter()
        .map(|segment| segment.path)
        .collect()
}

fn lines(path: &Path) -> Vec<String> {
    std::fs::read_to_string(path)
        .unwrap()
        .lines()
        .map(str::to_owned)
        .collect()
}

fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(
            start.elapsed() < Duration::from_secs(20),
            "not within 20 s: {what}"
        );
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn validator() -> jsonschema::Validator {
    let schema = serde_json::from_str(SCHEMA).unwrap();
    jsonschema::draft202012::meta::validate(&schema).unwrap();
    jsonschema::draft202012::options()
        .should_validate_formats(true)
        .build(&schema)
        .unwrap()
}

#[test]
fn every_kind_of_record_fits_the_schema_in_memory_and_on_disk() {
    let schema = validator();
    let dir = tempfile::tempdir().unwrap();
    for record in every_kind() {
        schema.validate(&json(&record)).unwrap();
    }
    write(dir.path(), &AuditLimits::default(), every_kind());
    let lines = lines(&segments(dir.path())[0]);
    assert_eq!(lines.len(), every_kind().len());
    for line in lines {
        schema
            .validate(&serde_json::from_str(&line).unwrap())
            .unwrap();
    }
}

#[test]
fn the_schema_names_exactly_the_keys_of_a_record() {
    let schema = validator();
    let whole = json(&Record {
        reason: denied("x").reason,
        ..full()
    });
    for (key, value) in whole.as_object().unwrap() {
        let mut without = whole.clone();
        without.as_object_mut().unwrap().remove(key);
        assert!(!schema.is_valid(&without), "{key} is not required");
        for inner in value
            .as_object()
            .into_iter()
            .flat_map(serde_json::Map::keys)
        {
            let mut without = whole.clone();
            without[key].as_object_mut().unwrap().remove(inner);
            assert!(!schema.is_valid(&without), "{key}.{inner} is not required");
        }
        if value.is_object() {
            let mut with = whole.clone();
            with[key]["cookie"] = "x".into();
            assert!(!schema.is_valid(&with), "{key} takes any key");
        }
    }
    let mut with = whole.clone();
    with["authorization"] = "x".into();
    assert!(!schema.is_valid(&with));
    assert_eq!(
        json(&bare()).as_object().unwrap().len(),
        whole.as_object().unwrap().len(),
        "nulls are written"
    );
}

#[test]
fn terminals_cannot_be_reached_through_a_record() {
    let nasty = "a\nb\r\u{1b}[2J\u{9b}31m\u{7f}\u{202e}\u{2028}\0\"\\é";
    let mut line = Vec::new();
    encode(&denied(nasty), &mut line);
    let text = String::from_utf8(line).unwrap();
    assert!(
        text.chars()
            .all(|c| !c.is_control() && c != '\u{202e}' && c != '\u{2028}'),
        "{text:?}"
    );
    assert!(
        text.contains("\\u001b[2J\\u009b31m\\u007f\\u202e\\u2028"),
        "{text}"
    );
    let back: Record = serde_json::from_str(&text).unwrap();
    assert_eq!(back.request.unwrap().host, nasty);
}

fn record_of(text: Vec<String>, numbers: [u64; 3]) -> Record {
    let at = |index: usize| text[index % text.len()].clone();
    let arc = |index: usize| Some(Arc::<str>::from(at(index)));
    Record {
        workload: arc(0),
        identity: arc(1),
        process: Some(Arc::new(Process {
            exe: at(2),
            cgroup: at(3),
            sha256: Some(at(4)),
            unit: Some(at(5)),
            start: numbers[0],
            exe_dev: 0,
            exe_inode: 0,
            ..(*process()).clone()
        })),
        request: Some(RequestRecord {
            method: at(6),
            scheme: at(7),
            host: at(8),
            port: 1,
            path: at(9),
            route: arc(10),
            query_keys: text.clone(),
            bytes: numbers[1],
        }),
        rule: arc(11),
        reason: Some(ReasonRecord {
            code: at(12).into(),
            detail: at(13),
        }),
        policy: Some(Arc::new(PolicyStamp {
            version: 7,
            hash: at(14),
        })),
        credential: arc(15),
        stripped: text.clone(),
        injected: text.clone(),
        budget: Some(at(16)),
        upstream: Some(UpstreamRecord {
            address: at(17),
            tls: Some(at(18)),
        }),
        timing: Timing {
            total_us: numbers[2],
            policy_us: 0,
            upstream_us: 1,
        },
        ..full()
    }
}

proptest! {
    #[test]
    fn any_strings_make_one_inert_line_that_reads_back(
        text in proptest::collection::vec(".*|[\\x00-\\x9f]*|\\PC*", 1..19),
        numbers in any::<[u64; 3]>(),
    ) {
        let record = record_of(text, numbers);
        let mut line = Vec::new();
        encode(&record, &mut line);
        let printed = std::str::from_utf8(&line).unwrap();
        prop_assert!(printed.chars().all(|c| !c.is_control()));
        let back: Record = serde_json::from_slice(&line).unwrap();
        prop_assert_eq!(format!("{back:?}"), format!("{record:?}"));
        let mut again = Vec::new();
        encode(&back, &mut again);
        prop_assert_eq!(again, line);
    }
}

#[test]
fn a_record_beyond_all_bounds_is_shortened_not_lost() {
    let dir = tempfile::tempdir().unwrap();
    let huge = record_of(vec!["\u{1b}é".repeat(400_000)], [0; 3]);
    write(dir.path(), &AuditLimits::default(), [full(), huge, full()]);
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.records, report.first_bad), (3, None));
    assert!(
        lines(&segments(dir.path())[0])
            .iter()
            .all(|line| line.len() <= line::MAX_LINE)
    );
    assert_eq!(read(dir.path(), &Filter::default()).unwrap().len(), 3);
}

#[test]
fn the_chain_holds_over_segments_and_restarts() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let stats = write(dir.path(), &SMALL, (0..40).map(|_| full()));
        assert_eq!((stats.written, stats.dropped, stats.queued), (40, 0, 0));
    }
    let report = verify(dir.path()).unwrap();
    assert_eq!(
        (report.records, report.range, report.torn),
        (120, Some((1, 120)), 0)
    );
    assert_eq!(report.first_bad, None);
    assert!(report.segments > 5, "{report:?}");
    for path in segments(dir.path()) {
        use std::os::unix::fs::PermissionsExt as _;
        let metadata = path.metadata().unwrap();
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
        assert!(
            metadata.len() < SMALL.segment_bytes + 2048,
            "closed late: {}",
            metadata.len()
        );
    }
}

#[test]
fn every_kind_of_tampering_shows_where_it_was_done() {
    type Change = fn(&mut Vec<String>);
    let changes: [(&str, Change, u64); 6] = [
        (
            "a line edited",
            |lines| lines[4] = lines[4].replace("ALLOW", "ERROR"),
            6,
        ),
        ("a line removed", |lines| drop(lines.remove(4)), 5),
        ("two lines swapped", |lines| lines.swap(4, 5), 5),
        (
            "a line repeated",
            |lines| lines.insert(4, lines[4].clone()),
            6,
        ),
        ("a blank line", |lines| lines.insert(4, String::new()), 5),
        (
            "the first line's prev",
            |lines| lines[0] = lines[0].replacen("prev\":\"0", "prev\":\"1", 1),
            1,
        ),
    ];
    for (what, change, bad_line) in changes {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &AuditLimits::default(), (0..10).map(|_| full()));
        let path = segments(dir.path()).remove(0);
        let mut text = lines(&path);
        change(&mut text);
        std::fs::write(&path, text.join("\n") + "\n").unwrap();
        let bad = verify(dir.path())
            .unwrap()
            .first_bad
            .unwrap_or_else(|| panic!("{what}: not seen"));
        assert_eq!(
            (bad.file, bad.line),
            (path, bad_line),
            "{what}: {}",
            bad.why
        );
    }
}

#[test]
fn a_missing_segment_shows_and_a_missing_end_shows_against_a_kept_head() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &SMALL, (0..60).map(|_| full()));
    let before = verify(dir.path()).unwrap();
    let paths = segments(dir.path());
    std::fs::remove_file(paths.last().unwrap()).unwrap();
    let cut = verify(dir.path()).unwrap();
    assert_eq!(cut.first_bad, None, "the end alone tells nothing");
    assert_ne!(cut.head, before.head);
    std::fs::remove_file(&paths[1]).unwrap();
    assert_eq!(
        verify(dir.path()).unwrap().first_bad.unwrap().file,
        paths[2]
    );
}

#[test]
fn a_torn_last_line_is_cut_off_at_the_start() {
    for torn in [&b"{\"seq\":4,\"prev\":\"00"[..], &[0; 5000], b"\xff"] {
        let dir = tempfile::tempdir().unwrap();
        write(dir.path(), &AuditLimits::default(), (0..3).map(|_| full()));
        let path = segments(dir.path()).remove(0);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes.extend_from_slice(torn);
        std::fs::write(&path, bytes).unwrap();
        assert_eq!(verify(dir.path()).unwrap().torn, torn.len() as u64);
        assert_eq!(read(dir.path(), &Filter::default()).unwrap().len(), 3);
        let stats = write(dir.path(), &AuditLimits::default(), [full()]);
        assert_eq!(stats.healed_bytes, torn.len() as u64);
        let report = verify(dir.path()).unwrap();
        assert_eq!(
            (report.records, report.torn, report.first_bad),
            (4, 0, None)
        );
    }
}

#[test]
fn a_segment_torn_in_its_first_line_continues_the_chain_of_the_one_before() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &AuditLimits::default(), (0..3).map(|_| full()));
    let next = segment::Segment::new(dir.path(), 4, jiff::Timestamp::now());
    std::fs::write(&next.path, "{\"seq\":4").unwrap();
    write(dir.path(), &AuditLimits::default(), [full()]);
    let report = verify(dir.path()).unwrap();
    assert_eq!(
        (report.records, report.segments, report.first_bad),
        (4, 2, None)
    );
}

#[test]
fn garbage_at_the_end_does_not_keep_the_agent_from_starting_and_is_reported() {
    let dir = tempfile::tempdir().unwrap();
    write(dir.path(), &AuditLimits::default(), (0..3).map(|_| full()));
    let path = segments(dir.path()).remove(0);
    let mut text = lines(&path);
    text[2] = "{\"seq\":18446744073709551615,\"prev\":\"\"}".into();
    std::fs::write(&path, text.join("\n") + "\n").unwrap();
    write(dir.path(), &AuditLimits::default(), [full()]);
    assert_eq!(verify(dir.path()).unwrap().first_bad.unwrap().line, 3);
    assert_eq!(read(dir.path(), &Filter::default()).unwrap().len(), 3);
}

#[test]
fn old_segments_are_deleted_and_the_rest_still_verifies() {
    let dir = tempfile::tempdir().unwrap();
    let limits = AuditLimits {
        segments: 3,
        ..SMALL
    };
    write(dir.path(), &limits, (0..200).map(|_| full()));
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.segments, report.first_bad), (3, None));
    let (first, last) = report.range.unwrap();
    assert!(first > 100 && last == 200, "{first}..{last}");
}

#[test]
fn one_directory_takes_one_writer() {
    let dir = tempfile::tempdir().unwrap();
    let (_sink, log) = Writer::start(dir.path(), &SMALL).unwrap();
    assert!(matches!(
        Writer::start(dir.path(), &SMALL),
        Err(Error::InUse { .. })
    ));
    log.close();
    drop(log);
    assert!(Writer::start(dir.path(), &SMALL).is_ok());
}

#[test]
fn no_segment_is_written_through_a_symbolic_link() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "").unwrap();
    let segment = segment::Segment::new(dir.path(), 1, jiff::Timestamp::now());
    std::os::unix::fs::symlink(&elsewhere, &segment.path).unwrap();
    assert!(matches!(
        Writer::start(dir.path(), &SMALL),
        Err(Error::Io { .. })
    ));
}

#[test]
fn what_was_submitted_is_seen_by_the_next_query() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &SMALL).unwrap();
    for round in 0..50 {
        let record = full();
        let id = record.id;
        sink.submit(record);
        let found = log
            .query(&Filter {
                id: Some(id),
                ..Filter::default()
            })
            .unwrap();
        assert_eq!(found.len(), 1, "round {round}");
        assert_eq!(found[0].id, id);
    }
}

#[test]
fn queries_filter_and_return_the_newest_first() {
    let dir = tempfile::tempdir().unwrap();
    let mut all: Vec<_> = (0..300)
        .map(|index| match index % 4 {
            0 => denied(&format!("h{index}.example.com")),
            1 => Record {
                workload: Some("other".into()),
                ..full()
            },
            2 => Record {
                identity: None,
                ..full()
            },
            _ => full(),
        })
        .collect();
    all[0].time = "2001-01-01T00:00:00Z".parse().unwrap();
    write(dir.path(), &SMALL, all.clone());
    let all_ids: Vec<_> = all.iter().rev().map(|record| record.id).collect();
    let ids = |filter: &Filter| -> Vec<_> {
        read(dir.path(), filter)
            .unwrap()
            .iter()
            .map(|r| r.id)
            .collect()
    };
    let none = Filter::default();
    assert_eq!(ids(&none), all_ids);
    assert_eq!(
        ids(&Filter {
            limit: Some(7),
            ..none.clone()
        }),
        all_ids[..7]
    );
    assert_eq!(
        ids(&Filter {
            limit: Some(0),
            ..none.clone()
        })
        .len(),
        0
    );
    assert_eq!(
        ids(&Filter {
            denied: true,
            ..none.clone()
        })
        .len(),
        75
    );
    assert_eq!(
        ids(&Filter {
            workload: Some("other".into()),
            ..none.clone()
        })
        .len(),
        75
    );
    assert_eq!(
        ids(&Filter {
            identity: Some("bot".into()),
            ..none.clone()
        })
        .len(),
        225
    );
    assert_eq!(
        ids(&Filter {
            host: Some("H8.example.COM".into()),
            ..none.clone()
        }),
        [all[8].id]
    );
    assert_eq!(
        ids(&Filter {
            host: Some("*.example.com".into()),
            ..none.clone()
        })
        .len(),
        300
    );
    assert_eq!(
        ids(&Filter {
            host: Some("*.h8.example.com".into()),
            ..none.clone()
        })
        .len(),
        0
    );
    assert_eq!(
        ids(&Filter {
            since: Some(all[1].time),
            ..none.clone()
        })
        .len(),
        299
    );
    let future = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(1);
    assert_eq!(
        ids(&Filter {
            since: Some(future),
            ..none.clone()
        })
        .len(),
        0
    );
    let mut oldest_first = Vec::new();
    each(dir.path(), &none, |record| {
        oldest_first.push(record.id);
        if oldest_first.len() == 200 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    })
    .unwrap();
    assert!(oldest_first.iter().eq(all_ids.iter().rev().take(200)));
    assert!(read(&dir.path().join("absent"), &none).unwrap().is_empty());
}

#[tokio::test]
async fn subscribers_get_records_live_and_are_told_what_they_missed() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default()).unwrap();
    let mut feed = log.subscribe();
    let record = full();
    let id = record.id;
    sink.submit(record);
    let Some(Live::Record(seen)) = feed.next().await else {
        panic!("no record")
    };
    assert_eq!(seen.id, id);
    let count = 10_000;
    (0..count).for_each(|_| sink.submit(full()));
    eventually("all written", || log.stats().written == count + 1);
    let Some(Live::Missed(missed)) = feed.next().await else {
        panic!("a slow reader was not told")
    };
    let mut seen = 0;
    while seen + missed < count {
        assert!(matches!(feed.next().await, Some(Live::Record(_))));
        seen += 1;
    }
    drop(sink);
    drop(log);
    assert!(feed.next().await.is_none());
}

#[test]
fn a_deleted_segment_is_noticed_and_another_begun() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default()).unwrap();
    sink.submit(full());
    eventually("written", || log.stats().written == 1);
    std::fs::remove_file(&segments(dir.path())[0]).unwrap();
    eventually("another segment", || {
        sink.submit(full());
        segments(dir.path())
            .first()
            .is_some_and(|path| path.metadata().unwrap().len() > 0)
    });
    assert!(sink.healthy());
    log.close();
    assert_eq!(verify(dir.path()).unwrap().first_bad, None);
}

#[test]
fn after_closing_the_sink_is_unhealthy_and_counts_what_it_drops() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &SMALL).unwrap();
    assert!(sink.healthy());
    log.close();
    assert!(!sink.healthy());
    sink.submit(full());
    assert_eq!((log.stats().dropped, log.stats().written), (1, 0));
}

#[test]
fn many_threads_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default()).unwrap();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            let sink = sink.clone();
            scope.spawn(move || (0..5000).for_each(|_| sink.submit(full())));
        }
    });
    let stats = log.close();
    assert_eq!((stats.written, stats.dropped), (20_000, 0));
    let report = verify(dir.path()).unwrap();
    assert_eq!((report.records, report.first_bad), (20_000, None));
}

/// Runs the ignored test below in a mount namespace of its own, with a file system of 256 KiB to fill.
#[test]
fn a_full_disk_makes_the_sink_unhealthy_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let script = "mount -t tmpfs -o size=256k,mode=0700 audit-test \"$1\" && exec \"$2\" --exact --ignored \
                  --nocapture audit::tests::on_a_small_disk";
    let own_user = !rustix::process::geteuid().is_root();
    let output = std::process::Command::new("unshare")
        .args(
            own_user
                .then_some(["--user", "--map-root-user"])
                .into_iter()
                .flatten(),
        )
        .args(["--mount", "sh", "-c", script, "sh"])
        .arg(dir.path())
        .arg(std::env::current_exe().unwrap())
        .env("AUDIT_TEST_DISK", dir.path())
        .output()
        .expect("this test needs util-linux's unshare");
    let text = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success() && text.contains("1 passed"),
        "{text}"
    );
}

#[test]
#[ignore = "the test above runs it on a disk of its own"]
fn on_a_small_disk() {
    let dir =
        PathBuf::from(std::env::var_os("AUDIT_TEST_DISK").expect("started by the test above"));
    let (sink, log) = Writer::start(&dir.join("log"), &SMALL).unwrap();
    let filler = dir.join("filler");
    let mut sent = 0;
    let mut send = |count: u64| {
        (0..count).for_each(|_| sink.submit(full()));
        sent += count;
        sent
    };
    for _ in 0..2 {
        send(20);
        eventually("healthy", || sink.healthy() && log.stats().queued == 0);
        std::fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
        let sent = send(50);
        eventually("unhealthy", || !sink.healthy());
        let stats = log.stats();
        assert!(
            stats.failing_since.is_some() && stats.queued > 0 && stats.written < sent,
            "{stats:?}"
        );
        let error = stats.last_error.unwrap();
        assert!(error.contains("No space"), "{error}");
        assert_eq!(
            log.query(&Filter::default()).unwrap().len() as u64,
            sent,
            "queued ones are seen too"
        );
        std::fs::remove_file(&filler).unwrap();
        let start = Instant::now();
        eventually("healthy again", || {
            sink.healthy() && log.stats().queued == 0
        });
        assert!(
            start.elapsed() < Duration::from_secs(2),
            "slow to recover: {:?}",
            start.elapsed()
        );
        assert_eq!(log.stats().failing_since, None);
    }
    // Closing while it cannot be written neither hangs nor hides the loss.
    std::fs::write(&filler, vec![0; 1 << 20]).unwrap_err();
    send(5000);
    let stats = log.close();
    assert!(stats.queued > 0 && !stats.healthy, "{stats:?}");
    assert_eq!(stats.dropped, 0);
    assert_eq!(stats.written + stats.queued as u64, sent);
    let report = verify(&dir.join("log")).unwrap();
    assert_eq!((report.records, report.first_bad), (stats.written, None));
}
