//! Records: their shape, on disk and in memory.
use super::*;

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
            hint: at(19),
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
