//! The chain over segments, restarts, crashes and tampering.
use super::*;

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
    let (_sink, log) = Writer::start(dir.path(), &SMALL, None).unwrap();
    assert!(matches!(
        Writer::start(dir.path(), &SMALL, None),
        Err(Error::InUse { .. })
    ));
    log.close();
    drop(log);
    assert!(Writer::start(dir.path(), &SMALL, None).is_ok());
}

#[test]
fn no_segment_is_written_through_a_symbolic_link() {
    let dir = tempfile::tempdir().unwrap();
    let elsewhere = dir.path().join("elsewhere");
    std::fs::write(&elsewhere, "").unwrap();
    let segment = segment::Segment::new(dir.path(), 1, jiff::Timestamp::now());
    std::os::unix::fs::symlink(&elsewhere, &segment.path).unwrap();
    assert!(matches!(
        Writer::start(dir.path(), &SMALL, None),
        Err(Error::Io { .. })
    ));
}
