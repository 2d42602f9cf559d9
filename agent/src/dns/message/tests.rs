#![allow(clippy::unwrap_used, clippy::indexing_slicing, clippy::panic)]
use super::*;
use proptest::prelude::*;
use std::net::Ipv6Addr;

const A: u16 = 1;
const AAAA: u16 = 28;

/// A query as it is on the wire: header, questions, and the additional section's bytes with its count.
fn query(questions: &[(&[&[u8]], u16, u16)], additional: (u16, &[u8])) -> Vec<u8> {
    let mut bytes = vec![0xab, 0xcd, 1, 0];
    bytes.extend(u16::try_from(questions.len()).unwrap().to_be_bytes());
    bytes.extend([0; 4]);
    bytes.extend(additional.0.to_be_bytes());
    for (labels, kind, class) in questions {
        for label in *labels {
            bytes.push(u8::try_from(label.len()).unwrap());
            bytes.extend(*label);
        }
        bytes.push(0);
        bytes.extend(kind.to_be_bytes());
        bytes.extend(class.to_be_bytes());
    }
    bytes.extend(additional.1);
    bytes
}

/// An OPT record (RFC 6891) that says how much its sender takes.
fn opt(payload: u16, version: u8) -> Vec<u8> {
    let [high, low] = payload.to_be_bytes();
    vec![0, 0, 41, high, low, 0, version, 0, 0, 0, 0]
}

fn one(labels: &[&[u8]], kind: u16) -> Vec<u8> {
    query(&[(labels, kind, 1)], (0, &[]))
}

fn asked(bytes: &[u8]) -> Question {
    match read(bytes) {
        Read::Asked(question) => *question,
        other => panic!("{other:?}"),
    }
}

/// The response code of what is answered without deciding.
fn refused(bytes: &[u8]) -> u8 {
    match read(bytes) {
        Read::Answer(answer) | Read::Refused(_, answer, _) => {
            assert_eq!(answer[..2], bytes[..2], "the id");
            assert_eq!(answer[2] & 0x80, 0x80, "an answer");
            answer[3] & 0x0f
        }
        other => panic!("{other:?}"),
    }
}

fn host(labels: &[&[u8]]) -> Option<String> {
    let host = asked(&one(labels, A)).host()?;
    Some(host.as_str().to_owned())
}

#[test]
fn a_question_is_read() {
    let question = asked(&one(&[b"Api", b"Example"], AAAA));
    assert_eq!(question.kind(), Kind::Aaaa);
    assert_eq!(question.kind_name(), "AAAA");
    assert_eq!(question.name(), "Api.Example");
    assert_eq!(question.host().unwrap().as_str(), "api.example");
    assert_eq!(asked(&one(&[b"x"], A)).kind(), Kind::A);
    for other in [2, 5, 12, 15, 16, 33, 64, 65, 255, 4711] {
        assert_eq!(asked(&one(&[b"x"], other)).kind(), Kind::Other);
    }
}

#[test]
fn only_hosts_are_hosts() {
    assert_eq!(
        host(&[b"xn--bcher-kva", b"example"]).unwrap(),
        "xn--bcher-kva.example"
    );
    let long = [b'a'; 63];
    for labels in [
        [b"_dmarc".as_slice(), b"example"].as_slice(),
        &[b"a.b", b"example"],
        &[b"a\0", b"example"],
        &[b"\xc3\xa9", b"example"],
        &[b"*", b"example"],
        &[b"-a", b"example"],
        &[b"xn--a", b"example"],
        &[b"192", b"0", b"2", b"7"],
        &[b"0x7f"],
    ] {
        assert_eq!(host(labels), None, "{labels:?}");
        assert!(asked(&one(labels, A)).name().is_ascii());
    }
    // 255 bytes on the wire are 253 characters.
    assert_eq!(
        host(&[&long, &long, &long, &long[..61]]).unwrap().len(),
        253
    );
    assert_eq!(refused(&one(&[&long, &long, &long, &long], A)), 1);
}

#[test]
fn what_is_no_plain_question_is_refused() {
    let name: &[&[u8]] = &[b"a", b"example"];
    let (form_error, not_implemented, no) = (1, 4, 5);
    assert_eq!(refused(&query(&[], (0, &[]))), form_error);
    assert_eq!(
        refused(&query(&[(name, A, 1), (name, AAAA, 1)], (0, &[]))),
        form_error,
        "two questions"
    );
    for class in [2, 3, 4, 254, 255, 0x8001] {
        assert_eq!(
            refused(&query(&[(name, A, class)], (0, &[]))),
            no,
            "{class}"
        );
    }
    for transfer in [251, 252] {
        assert_eq!(refused(&one(name, transfer)), no);
    }
    assert_eq!(refused(&one(&[], 2)), no, "the root");
    // On record by what was asked for.
    for (query, shown) in [
        (one(name, 252), ("a.example", "AXFR")),
        (query(&[(name, A, 3)], (0, &[])), ("a.example", "A")),
        (
            query(&[(name, A, 1)], (1, &opt(4096, 1))),
            ("a.example", "A"),
        ),
        (one(&[], 2), (".", "NS")),
    ] {
        let Read::Refused(question, ..) = read(&query) else {
            panic!("{query:?}");
        };
        assert_eq!((&*question.name(), &*question.kind_name()), shown);
    }
    for opcode in [1, 2, 4, 5, 6, 15] {
        let mut bytes = one(name, A);
        bytes[2] |= opcode << 3;
        assert_eq!(refused(&bytes), not_implemented, "{opcode}");
    }
    let mut with_answer = one(name, A);
    with_answer[7] = 1;
    with_answer.extend(b"\xc0\x0c\0\x01\0\x01\0\0\0\x01\0\x04\x01\x02\x03\x04");
    assert_eq!(refused(&with_answer), form_error);
    let whole = one(name, A);
    for end in 12..whole.len() {
        assert_eq!(refused(&whole[..end]), form_error, "{end}");
    }
    let mut itself = one(&[], A);
    itself.splice(12..13, [0xc0, 12]);
    assert_eq!(refused(&itself), form_error, "a name that points to itself");
    assert_eq!(
        refused(&query(&[(name, A, 1)], (1, b"\0\0\x29\x04"))),
        form_error
    );
}

#[test]
fn what_could_be_an_answer_is_ignored() {
    let mut answer = one(&[b"a"], A);
    answer[2] |= 0x80;
    assert!(matches!(read(&answer), Read::Ignore));
    for end in 0..12 {
        assert!(matches!(read(&answer[..end]), Read::Ignore));
    }
}

#[test]
fn a_later_edns_is_told_which_is_known() {
    let bytes = query(&[(&[b"a", b"example"], A, 1)], (1, &opt(4096, 1)));
    let Read::Refused(_, answer, _) = read(&bytes) else {
        panic!("asked");
    };
    let message = Message::from_vec(&answer).unwrap();
    assert_eq!(message.metadata.response_code.low(), 0);
    assert_eq!(message.edns.unwrap().rcode_high(), 1);
}

fn answered(question: &Question, answer: &Answer<'_>, over: Over) -> Message {
    let bytes = question.answer(answer, over).unwrap();
    Message::from_vec(&bytes).unwrap()
}

#[test]
fn an_answer_has_what_was_asked_for() {
    let bytes = one(&[b"aPi", b"eXample"], A);
    let question = asked(&bytes);
    let addresses = ["192.0.2.1".parse().unwrap(), "192.0.2.2".parse().unwrap()];
    let answer = question
        .answer(&Answer::Addresses(&addresses, 60), Over::Udp)
        .unwrap();
    assert_eq!(answer[..2], [0xab, 0xcd]);
    assert_eq!(
        answer[12..bytes.len()],
        bytes[12..],
        "the question as it came"
    );
    let message = Message::from_vec(&answer).unwrap();
    assert!(message.metadata.recursion_desired && message.metadata.recursion_available);
    assert!(!message.metadata.authoritative && !message.metadata.truncation);
    let found: Vec<_> = message
        .answers
        .iter()
        .map(|record| (record.ttl, record.data.clone()))
        .collect();
    let expected =
        [[192, 0, 2, 1], [192, 0, 2, 2]].map(|[a, b, c, d]| (60, RData::A(A::new(a, b, c, d))));
    assert_eq!(found, expected);
    assert!(message.edns.is_none());
    let code = |answer| {
        answered(&question, &answer, Over::Udp)
            .metadata
            .response_code
    };
    assert_eq!(code(Answer::Addresses(&[], 0)), ResponseCode::NoError);
    assert_eq!(code(Answer::NoName), ResponseCode::NXDomain);
    assert_eq!(code(Answer::Refused("why")), ResponseCode::NXDomain);
    assert_eq!(code(Answer::Failed), ResponseCode::ServFail);
}

#[test]
fn a_refusal_says_why_to_who_can_read_it() {
    let labels: &[&[u8]] = &[b"a", b"example"];
    let question = asked(&query(&[(labels, A, 1)], (1, &opt(1232, 0))));
    for (why, told) in [
        ("no api has it", "no api has it".to_owned()),
        (&*"é".repeat(200), "é".repeat(100)),
    ] {
        let edns = answered(&question, &Answer::Refused(why), Over::Udp)
            .edns
            .unwrap();
        let option = edns.option(15.into());
        let Some(EdnsOption::Unknown(15, data)) = option else {
            panic!("{option:?}");
        };
        assert_eq!(data[..2], [0, 15]);
        assert_eq!(std::str::from_utf8(&data[2..]).unwrap(), told);
    }
    assert!(
        answered(&asked(&one(labels, A)), &Answer::Refused("why"), Over::Udp)
            .edns
            .is_none()
    );
}

#[test]
fn what_does_not_fit_is_asked_for_over_tcp() {
    let labels: &[&[u8]] = &[&[b'a'; 60], &[b'b'; 60], b"example"];
    let addresses: Vec<IpAddr> = (0..16).map(|n| Ipv6Addr::from(n).into()).collect();
    let answer = Answer::Addresses(&addresses, 1);
    let of = |payload: Option<u16>| match payload {
        None => asked(&one(labels, AAAA)),
        Some(payload) => asked(&query(&[(labels, AAAA, 1)], (1, &opt(payload, 0)))),
    };
    for (payload, fits) in [
        (None, false),
        (Some(0), false),
        (Some(512), false),
        (Some(1232), true),
        (Some(65535), true),
    ] {
        let message = answered(&of(payload), &answer, Over::Udp);
        assert_eq!(message.metadata.truncation, !fits, "{payload:?}");
        assert_eq!(message.answers.len(), if fits { 16 } else { 0 });
        assert_eq!(message.queries.len(), 1);
    }
    let message = answered(&of(None), &answer, Over::Tcp);
    assert!(!message.metadata.truncation && message.answers.len() == 16);
}

/// Whatever comes: no panic, and never an answer that is larger than its way takes.
fn hold(bytes: &[u8]) {
    match read(bytes) {
        Read::Ignore => {}
        Read::Answer(answer) | Read::Refused(_, answer, _) => {
            assert!(answer.len() <= PLAIN && answer[..2] == bytes[..2]);
        }
        Read::Asked(question) => {
            let _ = (question.name(), question.kind_name());
            if let Some(host) = question.host() {
                assert!(host.as_str().len() <= 253);
                assert_eq!(Host::parse(host.as_str()).as_ref(), Ok(&host));
            }
            for answer in [Answer::NoName, Answer::Failed, Answer::Refused("no")] {
                let answer = question.answer(&answer, Over::Udp).unwrap();
                assert!(answer.len() <= PLAIN, "{}", answer.len());
                assert_eq!(answer[..2], bytes[..2]);
            }
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2_000))]

    #[test]
    fn any_bytes(bytes in proptest::collection::vec(any::<u8>(), 0..600)) {
        hold(&bytes);
    }

    /// A query with some bytes changed, cut and added.
    #[test]
    fn nearly_a_query(
        labels in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 1..64), 0..6),
        kind in any::<u16>(),
        changes in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..6),
        cut in any::<prop::sample::Index>(),
        whole in any::<bool>(),
        tail in proptest::collection::vec(any::<u8>(), 0..40),
        edns in any::<bool>(),
    ) {
        let labels: Vec<&[u8]> = labels.iter().map(Vec::as_slice).collect();
        let additional = if edns { (1, opt(1232, 0)) } else { (0, Vec::new()) };
        let mut bytes = query(&[(&labels, kind, 1)], (additional.0, &additional.1));
        for (at, byte) in changes {
            let at = at.index(bytes.len());
            bytes[at] = byte;
        }
        if !whole {
            bytes.truncate(cut.index(bytes.len() + 1));
            bytes.extend(tail);
        }
        hold(&bytes);
    }
}
