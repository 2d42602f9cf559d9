//! The gate before a real hyper server: nothing passes that hyper then refuses by itself, or reads in another way.
use super::rules::request;
use crate::gate::{Gate, Handle, Kind};
use ::hyper::server::conn::http1;
use ::hyper::service::service_fn;
use ::hyper::{Request, Response, body::Incoming};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use proptest::prelude::*;
use std::cell::RefCell;
use std::convert::Infallible;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, DuplexStream};

const HEAD_BYTES: usize = 64 * 1024;
const HEAD_FIELDS: usize = 100;

/// What the service saw.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Seen {
    Request {
        method: String,
        target: String,
        body: Result<usize, Option<Kind>>,
    },
    Violation(Kind),
}

#[derive(Debug)]
pub(super) struct Served {
    pub(super) seen: Vec<Seen>,
    pub(super) answers: String,
    pub(super) unclaimed: Option<Kind>,
    pub(super) passed: u64,
}

async fn service(
    handle: Handle,
    seen: &RefCell<Vec<Seen>>,
    request: Request<Incoming>,
) -> Result<Response<String>, Infallible> {
    let answer = Response::builder().header("x-by", "service");
    if let Some(violation) = handle.violation(request.uri().path()) {
        seen.borrow_mut().push(Seen::Violation(violation.kind));
        return Ok(answer.status(violation.status).body(String::new()).unwrap());
    }
    let (head, body) = request.into_parts();
    let body = match body.collect().await {
        Ok(body) => Ok(body.to_bytes().len()),
        Err(_) => Err(handle.body_violation().map(|violation| violation.kind)),
    };
    seen.borrow_mut().push(Seen::Request {
        method: head.method.to_string(),
        target: head.uri.to_string(),
        body,
    });
    Ok(answer.body(String::new()).unwrap())
}

/// Sends `data`, closes, and reads all answers.
pub(super) fn serve(data: &[u8]) -> Served {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let (server, client) = tokio::io::duplex(1 << 20);
        let (mut answers, mut requests) = tokio::io::split(client);
        let mut text = String::new();
        let talk = async {
            // hyper may close before it has read all.
            let _ = requests.write_all(data).await;
            let _ = requests.shutdown().await;
            answers.read_to_string(&mut text).await.unwrap();
        };
        let connection = run(server);
        let both = async { tokio::join!(talk, connection).1 };
        let (seen, handle) = tokio::time::timeout(Duration::from_secs(10), both)
            .await
            .unwrap_or_else(|_| panic!("hangs on {}", data.escape_ascii()));
        let unclaimed = handle.unclaimed().map(|violation| violation.kind);
        Served {
            seen,
            answers: text,
            unclaimed,
            passed: handle.requests(),
        }
    })
}

async fn run(server: DuplexStream) -> (Vec<Seen>, Handle) {
    let seen = RefCell::new(Vec::new());
    let gate = Gate::new(server, HEAD_BYTES, HEAD_FIELDS);
    let handle = gate.handle();
    // The harness ends its half when it has sent all, and waits for the answers.
    let _ = http1::Builder::new()
        .half_close(true)
        .max_headers(HEAD_FIELDS)
        .max_buf_size(HEAD_BYTES + 8192)
        .serve_connection(
            TokioIo::new(gate),
            service_fn(|request| service(handle.clone(), &seen, request)),
        )
        .await;
    (seen.into_inner(), handle)
}

/// Answers that hyper gave on its own.
fn own_answers(answers: &str) -> usize {
    let all = answers.matches("HTTP/1.1 ").count() + answers.matches("HTTP/1.0 ").count();
    all - answers.matches("HTTP/1.1 100 ").count() - answers.matches("x-by: service").count()
}

#[track_caller]
pub(super) fn assert_agreed(data: &[u8]) -> Served {
    let served = serve(data);
    let what = || format!("{served:?} on {}", data.escape_ascii());
    assert_eq!(
        own_answers(&served.answers),
        0,
        "hyper refused by itself: {}",
        what()
    );
    let requests = served
        .seen
        .iter()
        .filter(|seen| matches!(seen, Seen::Request { .. }))
        .count();
    // Fewer where an answer closed the connection before all was read.
    assert!(requests as u64 <= served.passed, "{}", what());
    if served.passed > 0 || !data.is_empty() {
        assert!(
            !served.seen.is_empty() || served.unclaimed.is_some(),
            "nothing known of it: {}",
            what()
        );
    }
    served
}

#[test]
fn earlier_requests_are_answered_first_then_the_violation_then_nothing() {
    let data = b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nPOST /2 HTTP/1.1\r\nHost: a\r\nContent-Length: 3\r\n\r\nabc\
                 GET /3 HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\nGET /4 HTTP/1.1\r\nHost: a\r\n\r\n";
    let served = assert_agreed(data);
    let ok = |method: &str, target: &str, body| Seen::Request {
        method: method.into(),
        target: target.into(),
        body: Ok(body),
    };
    let expected = [
        ok("GET", "/1", 0),
        ok("POST", "/2", 3),
        Seen::Violation(Kind::Host),
    ];
    assert_eq!(served.seen, expected);
    assert!(
        served.answers.rfind("HTTP/1.1 400").unwrap()
            > served.answers.rfind("HTTP/1.1 200").unwrap()
    );
    assert!(served.answers.ends_with("\r\n\r\n") && served.answers.contains("connection: close"));
}

#[test]
fn a_violation_in_a_body_fails_the_body_and_is_told_apart_from_an_end() {
    let head = "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (body, expected) in [
        ("3\r\nabc\r\n0\r\n\r\n", Ok(3)),
        ("3\r\nabc\r\n0\r\nA: b\r\n\r\n", Err(Some(Kind::Trailer))),
        ("3\r\nabcd", Err(Some(Kind::ChunkEnd))),
        ("3\r\nabc\r\n", Err(None)),
        ("3\r\nab", Err(None)),
        ("3", Err(None)),
    ] {
        let served = assert_agreed(format!("{head}{body}").as_bytes());
        let [Seen::Request { body: seen, .. }] = &served.seen[..] else {
            panic!("{served:?}")
        };
        assert_eq!(*seen, expected, "{body:?}");
        assert_eq!(served.unclaimed, None);
    }
}

#[test]
fn whatever_target_passes_hyper_takes_as_it_was() {
    let mut taken = 0;
    for byte in 0x00..=0xff_u8 {
        for prefix in ["/", "/a", "/?", "/?a="] {
            let mut data = format!("GET {prefix}").into_bytes();
            data.push(byte);
            data.extend_from_slice(b"z HTTP/1.1\r\nHost: a\r\n\r\n");
            let served = assert_agreed(&data);
            if let Some(Seen::Request { target, .. }) = served.seen.first() {
                assert_eq!(*target, format!("{prefix}{}z", char::from(byte)));
                taken += 1;
            }
        }
    }
    assert_eq!(taken, 4 * 89, "visible ASCII but five");
}

#[test]
fn whatever_field_passes_hyper_takes() {
    for byte in 0x00..=0xff_u8 {
        for (before, after) in [
            ("A", ": b"),
            ("", ": b"),
            ("A: b", "c"),
            ("A:", ""),
            ("Host2: ", ""),
        ] {
            let mut data = format!("GET / HTTP/1.1\r\nHost: a\r\n{before}").into_bytes();
            data.push(byte);
            data.extend_from_slice(format!("{after}\r\n\r\n").as_bytes());
            assert_agreed(&data);
        }
    }
    let most = format!(
        "GET / HTTP/1.1\r\nHost: a\r\n{}\r\n",
        "A: b\r\n".repeat(HEAD_FIELDS - 1)
    );
    assert_eq!(assert_agreed(most.as_bytes()).passed, 1);
    let rest = "GET / HTTP/1.1\r\nHost: a\r\nA: \r\n\r\n".len();
    let largest = format!(
        "GET / HTTP/1.1\r\nHost: a\r\nA: {}\r\n\r\n",
        "b".repeat(HEAD_BYTES - rest)
    );
    assert_eq!(assert_agreed(largest.as_bytes()).passed, 1);
    let path = format!(
        "GET /{} HTTP/1.1\r\nHost: a\r\n\r\n",
        "a".repeat(crate::gate::TARGET_BYTES - 1)
    );
    assert_eq!(assert_agreed(path.as_bytes()).passed, 1);
    let longer = path.replacen("/a", "/aa", 1);
    assert_eq!(
        assert_agreed(longer.as_bytes()).seen,
        [Seen::Violation(Kind::TargetTooLong)]
    );
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(500))]

    #[test]
    fn hyper_agrees_with_the_gate_on_any_requests(parts in proptest::collection::vec(request(), 1..4)) {
        assert_agreed(parts.concat().as_bytes());
    }

    #[test]
    fn hyper_agrees_with_the_gate_on_any_bytes(data in proptest::collection::vec(any::<u8>(), 0..200)) {
        assert_agreed(&data);
    }
}

fn gated() -> (Gate<DuplexStream>, Handle, DuplexStream) {
    let (server, client) = tokio::io::duplex(4096);
    let gate = Gate::new(server, HEAD_BYTES, HEAD_FIELDS);
    let handle = gate.handle();
    (gate, handle, client)
}

#[tokio::test]
async fn the_handle_tells_where_the_stream_stands() {
    let (mut gate, handle, mut client) = gated();
    let mut out = [0; 256];
    let stands = |handle: &Handle| {
        (
            handle.idle(),
            handle.in_head(),
            handle.in_body(),
            handle.requests(),
        )
    };
    let pause = Duration::from_millis(10);
    assert_eq!(stands(&handle), (true, false, false, 0));
    client.write_all(b"POST / HT").await.unwrap();
    tokio::time::timeout(pause, gate.read(&mut out))
        .await
        .unwrap_err();
    assert_eq!(stands(&handle), (false, true, false, 0));
    client
        .write_all(b"TP/1.1\r\nHost: a\r\nContent-Length: 4\r\n\r\n")
        .await
        .unwrap();
    assert_eq!(gate.read(&mut out).await.unwrap(), 47);
    assert_eq!(stands(&handle), (false, false, true, 1));
    // The body's end, a whole request, and the beginning of a third.
    client
        .write_all(b"bodyGET /2 HTTP/1.1\r\nHost: a\r\n\r\nGE")
        .await
        .unwrap();
    assert_eq!(gate.read(&mut out).await.unwrap(), 4);
    assert_eq!(stands(&handle), (true, false, false, 1));
    assert_eq!(gate.read(&mut out).await.unwrap(), 28);
    assert_eq!(
        stands(&handle),
        (true, false, false, 2),
        "what waits behind a request is not late"
    );
    tokio::time::timeout(pause, gate.read(&mut out))
        .await
        .unwrap_err();
    assert_eq!(stands(&handle), (false, true, false, 2));
}

#[tokio::test]
async fn a_head_that_takes_too_long_is_answered_in_order() {
    let (server, mut client) = tokio::io::duplex(4096);
    client
        .write_all(b"GET /1 HTTP/1.1\r\nHost: a\r\n\r\nDELETE /2 HTTP/1.1\r\nHo")
        .await
        .unwrap();
    let seen = RefCell::new(Vec::new());
    let gate = Gate::new(server, HEAD_BYTES, HEAD_FIELDS);
    let handle = gate.handle();
    assert!(!handle.expire(), "nothing has begun");
    let connection = http1::Builder::new().serve_connection(
        TokioIo::new(gate),
        service_fn(|request| service(handle.clone(), &seen, request)),
    );
    let deadline = async {
        tokio::time::sleep(Duration::from_millis(20)).await;
        assert!(handle.expire());
    };
    let (result, ()) = tokio::time::timeout(Duration::from_secs(10), async {
        tokio::join!(connection, deadline)
    })
    .await
    .expect("the deadline wakes the connection");
    result.unwrap();
    assert_eq!(seen.borrow()[1..], [Seen::Violation(Kind::TimedOut)]);
    let mut answers = String::new();
    client.read_to_string(&mut answers).await.unwrap();
    assert!(answers.contains("HTTP/1.1 408 "), "{answers}");
    assert!(!handle.in_head() && !handle.expire());
}

#[tokio::test]
async fn a_client_cannot_name_a_violation_and_nothing_of_it_passes_after_one() {
    let (mut gate, handle, mut client) = gated();
    assert_eq!(handle.violation("/"), None);
    client
        .write_all(b"garbage\r\n\r\nGET /later HTTP/1.1\r\nHost: a\r\n\r\n")
        .await
        .unwrap();
    let mut out = vec![0; 4096];
    let count = gate.read(&mut out).await.unwrap();
    let text = std::str::from_utf8(&out[..count]).unwrap();
    assert!(
        !text.contains("later") && text.starts_with("GET /"),
        "{text}"
    );
    let path = text.split(' ').nth(1).unwrap();
    assert_eq!(path.len(), 33);
    assert_eq!(handle.violation("/later"), None);
    assert!(handle.unclaimed().is_some());
    assert_eq!(handle.violation(path).unwrap().kind, Kind::Method);
    assert_eq!(handle.unclaimed(), None);
    tokio::time::timeout(Duration::from_millis(10), gate.read(&mut out))
        .await
        .unwrap_err();
    // What the client sent since is thrown away, so that the answer is not lost to a reset.
    client.write_all(&[b'x'; 3000]).await.unwrap();
    gate.write_all(b"answer").await.unwrap();
    gate.shutdown().await.unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert_eq!(answer, "answer");
}

#[tokio::test]
async fn long_bodies_pass_whole_and_what_follows_is_judged() {
    let (mut gate, handle, mut client) = gated();
    let length = 3_000_000;
    let send = async move {
        let head = format!("PUT / HTTP/1.1\r\nHost: a\r\nContent-Length: {length}\r\n\r\n");
        client.write_all(head.as_bytes()).await.unwrap();
        client.write_all(&vec![b'\n'; length]).await.unwrap();
        client.write_all(b"get").await.unwrap();
        client
    };
    let read = async {
        let (mut total, mut out) = (0, vec![0; 16 * 1024]);
        while handle.unclaimed().is_none() {
            total += gate.read(&mut out).await.unwrap();
        }
        total
    };
    let (_client, total) = tokio::join!(send, read);
    // The head has 49 bytes and the gate's own request 112.
    assert_eq!(total, 49 + length + 112);
    assert_eq!(handle.unclaimed().unwrap().kind, Kind::Method);
}
