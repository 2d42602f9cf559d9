//! What the kernel has counted of a workload goes on over ends and starts of the agent, and is what its traffic was.
use crate::load::*;
use crate::support::*;
use harness::eventually;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::BTreeMap;
use std::fs;
use std::time::Duration;

/// Ends of the agent, the half of them without warning.
const ENDS: u64 = 10;
/// What has to move between two ends.
const MOVED: u64 = 8 << 20;

/// Sends and gets back, connection after connection, in a network namespace of its own, whose loopback interface counts all of
/// that and nothing else.
const TRANSFERS: &str = r#"
import array, ctypes, fcntl, struct, threading
if ctypes.CDLL(None).unshare(0x40000000) != 0: sys.exit("no namespace")
for offload in (0x1f, 0x24):  # TSO and GSO, or it counts as one what holds several.
    off = array.array("B", struct.pack("II", offload, 0))
    fcntl.ioctl(socket.socket(socket.AF_UNIX), 0x8946, struct.pack("16sP", b"lo", off.buffer_info()[0]))
def moved():
    line = [l for l in open("/proc/thread-self/net/dev") if l.strip().startswith("lo:")][0].split()
    return int(line[1]), int(line[2])
def send(s):
    try: s.sendall(bytes(1 << 22)); s.shutdown(socket.SHUT_WR)
    except OSError: pass
before, made, whole, cut = moved(), 0, 0, 0
while not ended(0.002):
    with socket.socket(family(TARGET[0])) as s:
        s.settimeout(20)
        try: s.connect(TARGET)
        except OSError: continue
        made += 1
        sender = threading.Thread(target=send, args=(s,))
        sender.start()
        got = 0
        try:
            while more := len(s.recv(1 << 16)): got += more
        except OSError: pass
        sender.join()
        if got == 1 << 22: whole += 1
        else: cut += 1
time.sleep(0.3)
print(json.dumps({"lo": [now - was for now, was in zip(moved(), before)], "made": made, "whole": whole, "cut": cut}))
"#;

/// Everything that is counted, by `WORKLOAD WHAT`.
type Counts = BTreeMap<String, u64>;

fn counts(place: &Place) -> Counts {
    let mut all = Counts::new();
    for line in place.asked("accounts").lines() {
        let reply: Value = serde_json::from_str(line).unwrap();
        let account = &reply["with"];
        let refusals = account["refusals"].as_object();
        let counted = account.as_object().into_iter().chain(refusals).flatten();
        let counted = counted.filter_map(|(what, count)| Some((what, count.as_u64()?)));
        let name = account["workload"].as_str().unwrap_or_default();
        all.extend(counted.map(|(what, count)| (format!("{name} {what}"), count)));
    }
    all
}

/// The last that was counted.
#[derive(Default)]
pub(crate) struct Counted(Counts);

impl Counted {
    /// Counts again: nothing may have become less.
    pub(crate) fn go_on(&mut self, place: &Place, when: &str) {
        let now = counts(place);
        for (what, before) in &self.0 {
            let is = now.get(what).copied().unwrap_or(0);
            assert!(is >= *before, "{what} was {before} {when}: {now:?}");
        }
        self.0 = now;
    }

    pub(crate) fn of(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }
}

#[test]
fn what_is_counted_over_ten_ends_of_the_agent_is_what_was_sent_and_received() {
    let mut place = Place::new();
    let echoes = [("four", echo("127.0.0.8")), ("six", echo("::1"))];
    let [(_, four), (_, six)] = &echoes;
    place.write_policy(&format!(
        "version: 1
workloads: {{ four: {{ match: {{ cgroup: CGROUP/four }} }}, six: {{ match: {{ cgroup: CGROUP/six }} }} }}
apis: {{ echo: {{ tcp: [\"{}:{}\", \"[{}]:{}\"] }} }}
roles: {{ talker: [{{ api: echo }}] }}
grants: [{{ role: talker, to: {{ workload: four }} }}, {{ role: talker, to: {{ workload: six }} }}]
",
        four.0, four.1, six.0, six.1
    ));
    place.write_config("limits: { drain: 50ms }\n");
    let clients = echoes.map(|(name, (ip, port))| {
        let cgroup = place.cgroup.join(name);
        fs::create_dir(&cgroup).unwrap();
        let script = format!("TARGET = ('{ip}', {port})\n{TRANSFERS}");
        (name, cgroup, script)
    });
    place.start();
    let clients =
        clients.map(|(name, cgroup, script)| (name, Client::start(Some(&cgroup), &script), cgroup));
    let mut counted = Counted::default();
    for end in 0..ENDS {
        let begun = counts(&place);
        let moves = eventually(START, || {
            let now = counts(&place);
            let has_moved = |name| {
                let what = format!("{name} bytes_in");
                let moved = |counts: &Counts| counts.get(&what).copied().unwrap_or(0);
                moved(&now) > moved(&begun) + MOVED
            };
            ["four", "six"]
                .map(has_moved)
                .iter()
                .all(|has| *has)
                .then_some(())
        });
        assert!(moves.is_some(), "nothing moves before end {end}");
        counted.go_on(&place, "while the agent ran");
        place.end(if end % 2 == 0 {
            Signal::TERM
        } else {
            Signal::KILL
        });
        std::thread::sleep(Duration::from_millis(50));
        place.start();
        counted.go_on(&place, "before the agent ended");
    }
    let told = clients.map(|(name, client, cgroup)| (name, client.finish(), cgroup));
    counted.go_on(&place, "before the clients ended");
    for (name, told, cgroup) in told {
        let of = |what: &str| counted.of(&format!("{name} {what}"));
        let number = |value: &Value| value.as_u64().unwrap();
        for (at, what) in ["bytes", "packets"].into_iter().enumerate() {
            let [sent, received] = ["out", "in"].map(|way| of(&format!("{what}_{way}")));
            let moved = number(&told["lo"][at]);
            let is_so = (sent + received).abs_diff(moved) * 1000 <= moved;
            assert!(
                is_so,
                "{name}: counted {sent} + {received} {what}, the interface {moved}"
            );
        }
        let (made, cut) = (number(&told["made"]), number(&told["cut"]));
        assert!(cut > 0 && number(&told["whole"]) > ENDS, "{told}");
        // One that met an agent just then was steered, and not made.
        let connections = of("connections");
        assert!(
            (made..=made + ENDS).contains(&connections),
            "{connections}: {told}"
        );
        let _ = fs::remove_dir(cgroup);
    }
}
