#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::server::read_request;
use super::wire::{Envelope, FaultKind, REQUEST_BYTES, Request, VERSION};
use std::time::Duration;
use tokio::io::BufReader;

async fn read(bytes: &[u8]) -> Result<Request, super::wire::Fault> {
    read_request(&mut BufReader::new(bytes), Duration::from_secs(5)).await
}

#[tokio::test]
async fn every_request_survives_the_wire() {
    let requests = [
        Request::Status,
        Request::Flows,
        Request::Decisions {
            filter: crate::audit::Filter::default(),
            follow: true,
        },
        Request::Enrol {
            workload: Some("w".to_owned()),
        },
        Request::Release {
            cgroup_id: u64::MAX,
        },
    ];
    for request in requests {
        let sent = format!("{request:?}");
        let mut line = serde_json::to_vec(&Envelope {
            v: VERSION,
            request,
        })
        .unwrap();
        line.push(b'\n');
        assert_eq!(format!("{:?}", read(&line).await.unwrap()), sent);
    }
}

#[tokio::test]
async fn what_is_no_request_is_a_usage_fault() {
    for line in [
        "\n",
        "hello\n",
        "{}\n",
        "{\"v\":1}\n",
        "{\"v\":1,\"request\":{\"do\":\"launch\"}}\n",
        "{\"v\":1,\"request\":{\"do\":\"status\"},\"more\":1}\n",
        "{\"v\":1,\"request\":{\"do\":\"release\",\"cgroup_id\":-1}}\n",
        "{\"v\":1,\"request\":{\"do\":\"decisions\",\"filter\":{\"hots\":\"a\"}}}\n",
        "{\"v\":1,\"request\":{\"do\":\"status\"}}", // cut off
    ] {
        let line = line.replace("\"v\":1", &format!("\"v\":{VERSION}"));
        assert_eq!(
            read(line.as_bytes()).await.unwrap_err().kind,
            FaultKind::Usage,
            "{line}"
        );
    }
}

#[tokio::test]
async fn another_version_is_told_which_one_this_is() {
    let other = VERSION + 1;
    let line = format!("{{\"v\":{other},\"request\":{{\"do\":\"anything\",\"new\":true}}}}\n");
    let fault = read(line.as_bytes()).await.unwrap_err();
    assert!(
        fault.message.contains(&format!("version {VERSION}"))
            && fault.message.contains(&format!("the caller {other}")),
        "{}",
        fault.message
    );
}

#[tokio::test]
async fn an_endless_line_is_cut_off() {
    let endless = tokio::io::repeat(b'x');
    let fault = read_request(&mut BufReader::new(endless), Duration::from_secs(5))
        .await
        .unwrap_err();
    assert!(
        fault.message.contains(&REQUEST_BYTES.to_string()),
        "{}",
        fault.message
    );
}

#[tokio::test]
async fn a_silent_caller_is_not_waited_for() {
    let (_kept, silent) = tokio::io::duplex(64);
    let patience = Duration::from_millis(20);
    let fault = read_request(&mut BufReader::new(silent), patience)
        .await
        .unwrap_err();
    assert!(
        fault.message.contains("no request within 20ms"),
        "{}",
        fault.message
    );
}
