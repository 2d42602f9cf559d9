//! The harness keeps its word: names resolve, servers serve, nothing is left.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]

use harness::dns::Answer;
use harness::{Site, World, netns};
use std::io::{Read as _, Write as _};
use std::process::Stdio;
use std::time::Duration;

/// curl on the client side, trusting the servers' CA.
fn curl(world: &World, arguments: &[&str]) -> (i32, String) {
    let mut command = world.client("curl");
    command
        .args(["-sS", "--max-time", "5", "-H", "authorization: Bearer x"])
        .arg("--cacert")
        .arg(world.ca_file())
        .args(arguments);
    let output = command.output().unwrap();
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    (
        output.status.code().unwrap_or(-1),
        said + &String::from_utf8_lossy(&output.stderr),
    )
}

#[test]
fn nginx_serves_by_name_over_both_families_and_protocols() {
    let world = World::new().unwrap();
    for (family, remote) in [("-4", "93.184.216.34"), ("-6", "2606:2800:220:1::34")] {
        for (protocol, version) in [("--http1.1", "1.1"), ("--http2", "2")] {
            let format = ["-w", "%{remote_ip} %{http_version}", "-o", "/dev/null"];
            let url = ["https://api.orders.example/v1/orders"];
            let (status, said) = curl(&world, &[&[family, protocol], &format[..], &url].concat());
            assert_eq!((status, said), (0, format!("{remote} {version}")));
        }
    }
    assert!(world.dns.queries_for("api.orders.example") >= 4);
    assert_eq!(world.nginx.requests().unwrap().len(), 4);
}

#[test]
fn the_log_tells_what_arrived() {
    let world = World::new().unwrap();
    let url = "https://api.orders.example/v1/orders/7?a=1";
    let arguments = ["--http1.1", "-X", "PATCH", "-d", "hello", url];
    assert_eq!(curl(&world, &arguments).0, 0);
    let request = world.nginx.requests_after(0).unwrap().remove(0);
    assert_eq!(request.method, "PATCH");
    assert_eq!(request.target, "/v1/orders/7?a=1");
    assert_eq!(request.authorization, "Bearer x");
    assert_eq!(request.host, "api.orders.example");
    assert_eq!(request.status, 200);
    assert!(request.request_length > 100);
}

#[test]
fn the_api_wants_a_credential() {
    let world = World::new().unwrap();
    let mut command = world.client("curl");
    command.args(["-sS", "--cacert"]).arg(world.ca_file());
    let output = command
        .arg("https://api.orders.example/v1/orders")
        .output()
        .unwrap();
    assert_eq!(
        String::from_utf8_lossy(&output.stdout),
        "{\"error\":\"no credential\"}\n"
    );
    assert_eq!(world.nginx.requests_after(0).unwrap().remove(0).status, 401);
}

#[test]
fn certificates_are_for_their_host_and_from_an_unknown_authority() {
    let world = World::new().unwrap();
    let mut command = world.client("curl");
    let unknown = command
        .args(["-sS", "https://api.orders.example/"])
        .output()
        .unwrap();
    assert_eq!(
        unknown.status.code(),
        Some(60),
        "curl must not trust the CA by itself"
    );
    let resolve = [
        "--resolve",
        "other.example:443:93.184.216.34",
        "https://other.example/",
    ];
    assert_eq!(
        curl(&world, &resolve).0,
        60,
        "the certificate must not fit another host"
    );
}

#[test]
fn names_answer_as_the_test_says() {
    let world = World::new().unwrap();
    assert_eq!(
        curl(&world, &["https://nowhere.example/"]).0,
        6,
        "an unknown name"
    );
    world.dns.set("broken.example", Answer::Failure);
    assert_eq!(
        curl(&world, &["https://broken.example/"]).0,
        6,
        "a failing name"
    );
    world.dns.set(
        "Moved.example",
        Answer::Addresses(vec![Site::PAYROLL.v4.into()]),
    );
    let (status, said) = curl(&world, &["-w", "%{remote_ip}", "http://moved.example/"]);
    assert_eq!(status, 0, "{said}");
    assert!(said.ends_with("93.184.216.35"), "{said}");
    world.dns.set("silent.example", Answer::Silence);
    assert_eq!(
        curl(&world, &["--max-time", "1", "https://silent.example/"]).0,
        28
    );
}

#[test]
fn dns_answers_over_tcp() {
    let world = World::new().unwrap();
    let reply = world
        .clients
        .enter(|| {
            let mut stream = std::net::TcpStream::connect("203.0.113.53:53").unwrap();
            let mut query = vec![0, 36, 7, 7, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0];
            for label in ["api", "orders", "example"] {
                query.push(u8::try_from(label.len()).unwrap());
                query.extend(label.as_bytes());
            }
            query.extend([0, 0, 1, 0, 1]);
            stream.write_all(&query).unwrap();
            let mut reply = Vec::new();
            stream.read_to_end(&mut reply).unwrap();
            reply
        })
        .unwrap();
    assert_eq!(&reply[2..4], &[7, 7]);
    assert_eq!(reply[8..10], [0, 1], "one answer");
    assert!(reply.ends_with(&[93, 184, 216, 34]));
}

#[test]
fn events_come_one_by_one() {
    let world = World::new().unwrap();
    let mut command = world.client("curl");
    command
        .args(["-sSN", "-H", "authorization: Bearer x", "--cacert"])
        .arg(world.ca_file());
    command.arg("https://api.orders.example/v1/events");
    let mut client = harness::client::Running::start(command).unwrap();
    harness::eventually(Duration::from_secs(5), || {
        (world.events.streams() == 1).then_some(())
    })
    .expect("the stream opens");
    for number in 1..=3 {
        assert_eq!(world.events.emit(&format!("event {number}")), 1);
        assert_eq!(
            client.line(Duration::from_secs(2)).unwrap(),
            format!("data: event {number}")
        );
        assert_eq!(client.line(Duration::from_secs(2)).unwrap(), "");
        assert_eq!(client.has_line(), None, "nothing is sent ahead");
    }
    world.events.end();
    assert!(client.wait(Duration::from_secs(5)).unwrap().success());
}

#[test]
fn the_wire_is_silent_when_nobody_speaks() {
    let world = World::new().unwrap();
    // Joining a multicast group is announced twice within the first seconds of an interface's life.
    std::thread::sleep(Duration::from_secs(3));
    let before = world.servers.received("s0").unwrap();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(world.servers.received("s0").unwrap(), before);
    assert_eq!(curl(&world, &["https://api.orders.example/"]).0, 0);
    assert!(world.servers.received("s0").unwrap().bytes > before.bytes + 500);
}

#[test]
fn nothing_is_left() {
    let world = World::new().unwrap();
    let directory = world.directory().to_owned();
    let namespaces = [
        world.servers.inode().unwrap(),
        world.clients.inode().unwrap(),
    ];
    // One that would outlive its starter: it left the process group and ignores SIGTERM.
    let mut stray = world.client("setsid");
    stray
        .args(["sh", "-c", "trap '' TERM; sleep 60 & wait"])
        .stdout(Stdio::null());
    let mut stray = stray.spawn().unwrap();
    assert!(directory.is_dir());
    assert!(netns::inhabitants(&namespaces).len() >= 4);
    drop(world);
    stray.wait().unwrap();
    assert_eq!(netns::inhabitants(&namespaces), Vec::<u32>::new());
    assert!(!directory.exists());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap();
    assert!(!mounts.contains(directory.to_str().unwrap()));
}

#[test]
fn a_killed_run_leaves_nothing_either() {
    for (signal, swept_later) in [
        (rustix::process::Signal::TERM, false),
        (rustix::process::Signal::KILL, true),
    ] {
        let program = std::process::Command::new(env!("CARGO_BIN_EXE_world"));
        let mut other = harness::client::Running::start(program).unwrap();
        let standing = other.line(Duration::from_secs(20)).unwrap();
        let words: Vec<_> = standing.split(' ').collect();
        let namespaces: Vec<u64> = words[1..]
            .iter()
            .map(|word| word.parse().unwrap())
            .collect();
        assert!(!netns::inhabitants(&namespaces).is_empty());
        other.signal(signal).unwrap();
        other.wait(Duration::from_secs(10)).unwrap();
        let gone = harness::eventually(Duration::from_secs(5), || {
            netns::inhabitants(&namespaces).is_empty().then_some(())
        });
        assert!(
            gone.is_some(),
            "{signal:?}: {:?} live on",
            netns::inhabitants(&namespaces)
        );
        if swept_later {
            drop(World::new().unwrap());
        }
        assert!(
            !std::path::Path::new(words[0]).exists(),
            "{signal:?}: {} stays",
            words[0]
        );
    }
}
