//! `tollgate flows`: each connection and what the kernel counted of it, against what TCP itself says at its two ends.
use crate::load::targets;
use crate::support::*;
use harness::client::Running;
use harness::eventually;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::process::Command;

/// Bytes that a client sends, and those that it is answered with.
const SENT: usize = 800_000;
const ANSWERED: usize = 300_000;
/// Of IP and of TCP with timestamps.
const HEADERS: [u64; 2] = [20 + 32, 40 + 32];

/// Takes what is sent, answers, and waits for the end.
fn server(ip: &str) -> (String, u16) {
    let listener = TcpListener::bind((ip, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            stream.read_exact(&mut vec![0; SENT]).unwrap();
            stream.write_all(&vec![0; ANSWERED]).unwrap();
            let _ = stream.read(&mut [0]);
        }
    });
    (ip.to_owned(), port)
}

/// Has a transfer over each family, then ends the one that it is told to, and says what TCP knows of both (`tcp_info`).
const CLIENT: &str = r#"
import json, socket, sys
def ends(s):
    told = s.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 208)
    at = lambda begin, size: int.from_bytes(told[begin:begin + size], sys.byteorder)
    return {"port": s.getsockname()[1], "packets_out": at(136, 4), "packets_in": at(140, 4), "sent": at(200, 8)}
all = [socket.create_connection(to, 20) for to in TARGETS]
for s in all:
    s.sendall(bytes(SENT))
    left = ANSWERED
    while left:
        got = len(s.recv(left))
        assert got, "the connection ended"
        left -= got
said = [None, None]
for line in sys.stdin:
    if line.strip():
        s, all[int(line)] = all[int(line)], None
        s.shutdown(socket.SHUT_WR)
        assert s.recv(1) == b""
        said[int(line)] = ends(s)
        s.close()
    said = [ends(s) if s else before for s, before in zip(all, said)]
    print(json.dumps(said), flush=True)
"#;

fn client(place: &Place, servers: [&(String, u16); 2]) -> Running {
    let script = format!(
        "SENT, ANSWERED = {SENT}, {ANSWERED}\n{}{CLIENT}",
        targets(&servers)
    );
    let mut command = Command::new("sh");
    let enter = format!("echo $$ > {}/cgroup.procs", place.cgroup.display());
    command.args(["-c", &format!("{enter} && exec python3 -c \"$0\""), &script]);
    Running::start(command).unwrap()
}

fn flows(place: &Place, more: &[&str]) -> Vec<Value> {
    let output = place.output(&[&["flows", "-o", "json"], more].concat());
    assert!(output.status.success(), "{}", text(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

fn number(of: &Value, key: &str) -> u64 {
    of[key].as_u64().unwrap_or_else(|| panic!("{key} in {of}"))
}

/// What the agent's end of a live connection has sent, also what it has sent again.
fn answered(ip: &str, end: &Value) -> u64 {
    let to = match ip.contains(':') {
        true => format!("[{ip}]:{}", end["port"]),
        false => format!("{ip}:{}", end["port"]),
    };
    let output = Command::new("ss").args(["-tinHO", "dst", &to]).output();
    let told = text(&output.unwrap().stdout);
    let mut words = told.split_whitespace();
    let sent = words.find_map(|word| word.strip_prefix("bytes_sent:"));
    sent.unwrap_or_else(|| panic!("{to}: {told}"))
        .parse()
        .unwrap()
}

/// Every packet is counted, and every byte but for the options of a few: within a thousandth.
fn is_counted(flow: &Value, end: &Value, answered: u64, headers: u64) {
    for (direction, payload, least) in [
        ("out", number(end, "sent"), SENT),
        ("in", answered, ANSWERED),
    ] {
        assert!(payload >= least as u64, "{direction}: {payload}: {end}");
        let packets = number(flow, &format!("packets_{direction}"));
        assert_eq!(
            packets,
            number(end, &format!("packets_{direction}")),
            "{flow} {end}"
        );
        let bytes = number(flow, &format!("bytes_{direction}")) - packets * headers;
        let is_so = bytes.abs_diff(payload) * 1000 <= payload;
        assert!(is_so, "{direction}: {bytes} of {payload}: {flow} {end}");
    }
}

/// The table has a line with all that JSON has.
fn is_in_the_table(table: &str, flow: &Value) {
    let destination = flow["destination"].as_str().unwrap();
    let line = table.lines().find(|line| line.contains(destination));
    let line = line.unwrap_or_else(|| panic!("{destination}: {table}"));
    assert!(line.len() <= 100, "{line}");
    let kib = |key| format!("{:.1} KiB", (number(flow, key) * 10 / 1024) as f64 / 10.0);
    let wanted = [
        if flow["ended"].is_null() {
            "live"
        } else {
            "ended"
        }
        .to_owned(),
        "job".to_owned(),
        format!("{}({})", name(flow), flow["process"]["pid"]),
        destination.to_owned(),
        kib("bytes_out"),
        kib("bytes_in"),
        format!("{}/{}", flow["packets_out"], flow["packets_in"]),
    ];
    let mut cells: Vec<&str> = line.split("  ").map(str::trim).collect();
    cells.retain(|cell| !cell.is_empty());
    cells.remove(1); // Since when.
    assert_eq!(cells, wanted, "{table}");
}

fn name(flow: &Value) -> &str {
    let exe = flow["process"]["exe"].as_str().unwrap();
    exe.rsplit('/').next().unwrap()
}

#[test]
fn live_and_ended_flows_are_listed_with_what_they_moved() {
    let servers = ["127.0.0.1", "::1"].map(server);
    let mut place = Place::new();
    let at = servers.each_ref().map(|(ip, port)| match ip.contains(':') {
        true => format!("[{ip}]:{port}"),
        false => format!("{ip}:{port}"),
    });
    place.write_policy(&format!(
        "version: 1\nworkloads: {{ job: {{ match: {{ cgroup: \"CGROUP/**\" }} }} }}\napis: {{ sink: {{ tcp: {at:?} }} }}\n\
         roles: {{ user: [{{ api: sink }}] }}\ngrants: [{{ role: user, to: {{ workload: job }} }}]\n"
    ));
    place.start();
    assert!(eventually(START, || place.governed().then_some(())).is_some());
    let mut client = client(&place, servers.each_ref());
    // A last acknowledgement may be on its way: asked before and after, the client says the same.
    let settled = eventually(START, || {
        let ends = client.ask("").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(100));
        let flows = flows(&place, &[]);
        (client.ask("").unwrap() == ends).then_some((flows, ends))
    });
    let (live, ends) = settled.expect("the client never rests");
    let of = |flows: &[Value], at: &str| -> Value {
        let mut ours = flows.iter().filter(|flow| flow["destination"] == at);
        let flow = ours.next().unwrap_or_else(|| panic!("{at}: {flows:?}"));
        assert!(ours.next().is_none(), "{flows:?}");
        flow.clone()
    };
    assert_eq!(live.len(), 2, "{live:?}");
    let mut sent = Vec::new();
    for (n, (ip, _)) in servers.iter().enumerate() {
        sent.push(answered(ip, &ends[n]));
        let flow = of(&live, &at[n]);
        is_counted(&flow, &ends[n], sent[n], HEADERS[n]);
        assert!(
            flow["ended"].is_null() && flow["workload"] == "job",
            "{flow}"
        );
        is_in_the_table(&text(&place.output(&["flows"]).stdout), &flow);
    }
    // What the workload's table says is the sum.
    let sum = |key| live.iter().map(|flow| number(flow, key)).sum::<u64>();
    let table = text(&place.output(&["workloads"]).stdout);
    let packets = format!(" {}/{} ", sum("packets_out"), sum("packets_in"));
    assert!(table.contains(&packets), "{packets} in {table}");

    for (n, left) in [(0, 1), (1, 0)] {
        let ends = client.ask(&n.to_string()).unwrap();
        let ended = eventually(START, || {
            let all = flows(&place, &[]);
            (!of(&all, &at[n])["ended"].is_null()).then_some(all)
        });
        let all = ended.unwrap_or_else(|| panic!("{:?}", flows(&place, &[])));
        let flow = of(&all, &at[n]);
        is_counted(&flow, &ends[n], sent[n], HEADERS[n]);
        is_in_the_table(&text(&place.output(&["flows"]).stdout), &flow);
        assert_eq!(all.len(), 2, "{all:?}");
        let live = flows(&place, &["--live"]);
        assert_eq!(live.len(), left, "{live:?}");
        if left > 0 {
            of(&live, &at[1]);
        }
    }
    let shown = text(&place.output(&["flows", "--live"]).stdout);
    assert_eq!(shown.lines().count(), 1, "the header alone: {shown}");
    assert!(flows(&place, &["--workload", "other"]).is_empty());
}
