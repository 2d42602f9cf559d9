//! What the kernel counted of a workload and of its connection, against what a server says that it sent and received.
use super::*;
use harness::Site;
use harness::nginx::Request;
use std::net::{IpAddr, SocketAddr};

const POLICY: &str = r#"
version: 1
workloads: { four: {}, six: {} }
apis:
  clear: { hosts: [clear.example], scheme: http }
roles:
  user:
    - { api: clear, allow: [{ route: "GET /open/**" }, { route: POST /open/import }] }
grants:
  - { role: user, to: { workload: [four, six] } }
"#;
/// Answers or bodies of 1 MiB each in one round, over one connection.
const CALLS: usize = 256;
const ROUNDS: usize = 3;

/// Gets or puts, then keeps the connection until its input closes.
const CLIENT: &str = r#"
import http.client, sys
to, way, calls = sys.argv[1:]
c = http.client.HTTPConnection(to, 80, 30)
for _ in range(int(calls)):
    how = ("GET", "/open/export", None) if way == "down" else ("POST", "/open/import", bytes(1 << 20))
    c.request(*how, {"Host": "clear.example"})
    answer = c.getresponse()
    assert answer.status == (200 if way == "down" else 204), answer.status
    answer.read()
print("done", flush=True)
sys.stdin.read()
"#;

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
    let (four, six) = (Site::ORDERS.v4.into(), Site::ORDERS.v6.into());
    for (workload, to, header) in [("four", four, 20 + 32), ("six", six, 40 + 32)] {
        for way in ["down", "up"] {
            for _ in 0..ROUNDS {
                is_counted(&world, &agent, (workload, to, header), way);
            }
        }
    }
}

fn is_counted(
    world: &World,
    agent: &Agent,
    (workload, to, header): (&str, IpAddr, u64),
    way: &str,
) {
    let before = account(world, agent, workload);
    let ended = listed(world, agent, "flows").len();
    let (logged, again) = transfer(world, agent, (workload, to), way);
    let flow = eventually(Duration::from_secs(5), || {
        let new = listed(world, agent, "flows").split_off(ended);
        new.first().filter(|flow| !flow["ended"].is_null()).cloned()
    });
    let flow = flow.expect("the kernel tells of the connection's end");
    assert_eq!(flow["destination"], SocketAddr::from((to, 80)).to_string());
    assert_eq!(flow["workload"], workload);
    let payload = |of: &Value| {
        let count = |key: &str| of[key].as_u64().unwrap_or(0);
        match way {
            "down" => count("bytes_in") - count("packets_in") * header,
            _ => count("bytes_out") - count("packets_out") * header,
        }
    };
    // A transfer has one connection, and the workload no other.
    let whole = payload(&account(world, agent, workload)) - payload(&before);
    for (of, counted) in [("workload", whole), ("flow", payload(&flow))] {
        let told = format!(
            "{workload} {way}, {of}: {counted} counted without headers, {logged} logged, {again} of them sent again"
        );
        eprintln!("{told}");
        assert!(
            (counted - again).abs_diff(logged) * 1_000 <= logged,
            "{told}"
        );
    }
}

/// Has the workload move much one way: what nginx logs of it, and what the sender of the two at this connection's ends says that
/// it has sent again, which is on the way twice and in no log.
fn transfer(world: &World, agent: &Agent, (workload, to): (&str, IpAddr), way: &str) -> (u64, u64) {
    let logged = world.nginx.requests().unwrap().len();
    let mut command = agent.governed(world, workload, "python3");
    command.args(["-c", CLIENT, &to.to_string(), way, &CALLS.to_string()]);
    let mut client = Running::start(command).unwrap();
    let said = client.line(Duration::from_secs(120));
    assert_eq!(said.unwrap(), "done", "{workload} {way}");
    let end = if way == "down" { "sport" } else { "dport" };
    let again = sent_again(world, end);
    assert!(client.finish(Duration::from_secs(20)).unwrap().success());
    let moved = eventually(Duration::from_secs(5), || {
        let new = world.nginx.requests().ok()?.split_off(logged);
        let each = |one: &Request| match way {
            "down" => one.bytes_sent,
            _ => one.request_length,
        };
        (new.len() == CALLS).then(|| new.iter().map(each).sum())
    });
    (moved.expect("nginx logged every request"), again)
}

/// Of the one connection to the agent that there is, by the end that has the agent's port there.
fn sent_again(world: &World, end: &str) -> u64 {
    let mut command = world.client("ss");
    command.args(["-tinHO", "state", "established", end, "=", ":15001"]);
    let told = command.output().unwrap().stdout;
    let told = String::from_utf8(told).unwrap();
    assert_eq!(told.lines().count(), 1, "{told}");
    assert!(told.contains(" bytes_sent:"), "{told}");
    let mut words = told.split_whitespace();
    let again = words.find_map(|word| word.strip_prefix("bytes_retrans:"));
    again.map_or(0, |bytes| bytes.parse().unwrap())
}

/// Of flows, those that ended come first, in the order of their ends.
fn listed(world: &World, agent: &Agent, verb: &str) -> Vec<Value> {
    let output = agent.output(world, verb, &["-o", "json"]).unwrap();
    serde_json::from_slice(&output.stdout).unwrap()
}

fn account(world: &World, agent: &Agent, workload: &str) -> Value {
    let all = listed(world, agent, "workloads");
    let of = all.iter().find(|one| one["workload"] == workload);
    of.map_or(Value::Null, |of| of["account"].clone())
}
