//! The log in use: queries, followers, pressure, a full disk.
use super::*;

#[test]
fn what_was_submitted_is_seen_by_the_next_query() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &SMALL, None).unwrap();
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
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default(), None).unwrap();
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
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default(), None).unwrap();
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
    let (sink, log) = Writer::start(dir.path(), &SMALL, None).unwrap();
    assert!(sink.healthy());
    log.close();
    assert!(!sink.healthy());
    sink.submit(full());
    assert_eq!((log.stats().dropped, log.stats().written), (1, 0));
}

#[test]
fn many_threads_lose_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let (sink, log) = Writer::start(dir.path(), &AuditLimits::default(), None).unwrap();
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
                  --nocapture audit::tests::logging::on_a_small_disk";
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
    let (sink, log) = Writer::start(&dir.join("log"), &SMALL, None).unwrap();
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
