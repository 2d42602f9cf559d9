//! What the kernel counted of a workload, against what a server says that it sent.
use super::*;
use harness::Site;

const POLICY: &str = r#"
version: 1
workloads: { four: {}, six: {} }
apis:
  clear: { hosts: [clear.example], scheme: http }
roles:
  user:
    - { api: clear, allow: [{ route: "GET /open/**" }] }
grants:
  - { role: user, to: { workload: [four, six] } }
"#;
/// Answers of 1 MiB each.
const ANSWERS: usize = 512;
/// On a busy machine a packet may be sent again, which is on the way twice and in no log.
const ROUNDS: usize = 5;

#[test]
fn bytes_are_those_that_the_server_logged() {
    let world = World::new().unwrap();
    let address = Site::ORDERS.v4.into();
    world
        .dns
        .set("clear.example", Answer::Addresses(vec![address]));
    let mut agent = Agent::new(&world, POLICY).unwrap();
    agent.start(&world).unwrap();
    // Without options, TCP's header has 20 bytes, with timestamps 32.
    for (workload, to, header) in [
        ("four", Site::ORDERS.v4.to_string(), 20 + 32),
        ("six", format!("[{}]", Site::ORDERS.v6), 40 + 32),
    ] {
        let mut seen = Vec::new();
        let is_within = |(counted, sent): &(u64, u64)| counted.abs_diff(*sent) * 1_000 <= *sent;
        while !seen.iter().any(is_within) && seen.len() < ROUNDS {
            seen.push(download(&world, &agent, workload, &to, header));
        }
        assert!(
            seen.iter().any(is_within),
            "{workload}, counted without headers and sent: {seen:?}"
        );
    }
}

/// Bytes that the kernel counts without headers while much is downloaded, and those that nginx logs.
fn download(world: &World, agent: &Agent, workload: &str, to: &str, header: u64) -> (u64, u64) {
    let (logged, counted) = (
        world.nginx.requests().unwrap().len(),
        received(world, agent, workload, header),
    );
    let mut command = agent.governed(world, workload, Path::new("curl"));
    command.args(["-sS", "-o", "/dev/null", "--resolve"]);
    command.arg(format!("clear.example:80:{to}"));
    command.arg(format!("http://clear.example/open/export?[1-{ANSWERS}]"));
    assert!(command.status().unwrap().success(), "{workload}");
    let sent = eventually(Duration::from_secs(5), || {
        let new = world.nginx.requests().ok()?.split_off(logged);
        (new.len() == ANSWERS).then(|| new.iter().map(|one| one.bytes_sent).sum())
    });
    let sent = sent.expect("nginx logged every request");
    (received(world, agent, workload, header) - counted, sent)
}

fn received(world: &World, agent: &Agent, workload: &str, header: u64) -> u64 {
    let output = agent.output(world, "workloads", &["-o", "json"]).unwrap();
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    let of = all.iter().find(|one| one["workload"] == workload);
    let count = |key: &str| of.and_then(|of| of["account"][key].as_u64()).unwrap_or(0);
    count("bytes_in") - count("packets_in") * header
}
