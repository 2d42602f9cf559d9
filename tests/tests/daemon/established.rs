//! Connections that a workload's processes had before there was an agent: what policy says becomes of them.
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::Signal;
use serde_json::Value;
use std::io::{ErrorKind, Read};
use std::net::{TcpListener, TcpStream};
use std::process::{Command, Stdio};

/// A process of the job with a connection to each listener, over which it sends without end.
pub(crate) struct Talker {
    _process: Ended,
    peers: Vec<TcpStream>,
}

impl Talker {
    pub(crate) fn new(place: &Place) -> Self {
        let listeners = ["127.0.0.1:0", "[::1]:0"].map(|at| TcpListener::bind(at).unwrap());
        let ports = listeners
            .iter()
            .map(|l| l.local_addr().unwrap().port().to_string());
        let script = format!(
            "import os, socket, sys, time
open('{}/cgroup.procs', 'w').write(str(os.getpid()))
all = [socket.create_connection(to) for to in zip(('127.0.0.1', '::1'), map(int, sys.argv[1:]))]
while True:
    for s in list(all):
        try: s.send(b'x')
        except OSError: all.remove(s)
    time.sleep(0.01)",
            place.cgroup.display()
        );
        let process = Command::new("python3")
            .args(["-c", &script])
            .args(ports)
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        let peers = listeners.iter().map(|listener| {
            let peer = listener.accept().unwrap().0;
            peer.set_read_timeout(Some(START)).unwrap();
            peer
        });
        Self {
            peers: peers.collect(),
            _process: Ended(process),
        }
    }

    /// What came, after all that was under way.
    pub(crate) fn says(&mut self) -> Vec<Result<(), ErrorKind>> {
        let next = |peer: &mut TcpStream| {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let mut waiting = vec![0; 1 << 20];
            let _ = peer.read(&mut waiting).map_err(|e| e.kind())?;
            match peer.read(&mut [0]) {
                Ok(0) => Err(ErrorKind::UnexpectedEof),
                Ok(_) => Ok(()),
                Err(error) => Err(error.kind()),
            }
        };
        self.peers.iter_mut().map(next).collect()
    }
}

fn earlier(place: &Place) -> (u64, u64) {
    let all = place.workloads();
    let job = all.iter().find(|workload| workload["workload"] == "job");
    let earlier = job.map_or(&Value::Null, |job| &job["earlier"]);
    let count = |key: &str| earlier[key].as_u64().unwrap_or(0);
    (count("destroyed"), count("open"))
}

fn table(place: &Place) -> String {
    text(&place.output(&["workloads"]).stdout)
}

/// Verdicts on record of connections from before.
fn recorded(place: &Place) -> Vec<String> {
    let output = place.output(&["decisions", "-o", "json", "--workload", "job"]);
    let all: Vec<Value> = serde_json::from_slice(&output.stdout).unwrap();
    all.iter()
        .filter(|decision| decision["reason"]["code"] == "established")
        .map(|decision| {
            assert!(decision["process"]["pid"].as_u64() > Some(0), "{decision}");
            decision["verdict"].as_str().unwrap().to_owned()
        })
        .collect()
}

#[test]
fn they_are_ended_and_on_record() {
    let mut place = Place::new();
    let mut talker = Talker::new(&place);
    assert_eq!(talker.says(), [Ok(()); 2], "before there is an agent");
    place.start();
    let ended = eventually(START, || (earlier(&place) == (2, 0)).then_some(()));
    assert!(ended.is_some(), "{:?}", earlier(&place));
    assert_eq!(talker.says(), [Err(ErrorKind::ConnectionReset); 2]);
    assert_eq!(recorded(&place), ["DENY", "DENY"]);
    assert!(table(&place).contains("2 ended"), "{}", table(&place));
    let status = place.status();
    let layers = status["layers"].as_array().unwrap();
    let layer = layers.iter().find(|layer| layer["name"] == "established");
    assert_eq!(layer.unwrap()["enforcing"], true, "{layer:?}");
}

#[test]
fn where_policy_says_so_they_go_on_until_it_says_so_no_longer() {
    let mut place = Place::new();
    let report = POLICY.replace("\"CGROUP/**\" }", "\"CGROUP/**\" }, established: report");
    place.write_policy(&report);
    let mut talker = Talker::new(&place);
    place.start();
    let open = eventually(START, || (earlier(&place) == (0, 2)).then_some(()));
    assert!(open.is_some(), "{:?}", earlier(&place));
    assert_eq!(talker.says(), [Ok(()); 2]);
    assert_eq!(recorded(&place), ["WOULD-DENY", "WOULD-DENY"]);
    assert!(table(&place).contains("2 open"), "{}", table(&place));
    // What is made anew is held to the scope.
    assert_eq!(place.ask(), forbidden());
    // The next agent knows of them, and with none they go on.
    place.end(Signal::KILL);
    assert_eq!(talker.says(), [Ok(()); 2]);
    place.start();
    assert_eq!(earlier(&place), (0, 2));
    assert_eq!(talker.says(), [Ok(()); 2]);

    place.write_policy(POLICY);
    assert_eq!(place.output(&["reload"]).status.code(), Some(0));
    let ended = eventually(START, || (earlier(&place) == (2, 0)).then_some(()));
    assert!(ended.is_some(), "{:?}", earlier(&place));
    assert_eq!(talker.says(), [Err(ErrorKind::ConnectionReset); 2]);
}

#[test]
fn an_agent_that_observes_ends_none() {
    let mut place = Place::new();
    place.write_config("mode: observe\n");
    let mut talker = Talker::new(&place);
    place.start();
    let open = eventually(START, || (earlier(&place) == (0, 2)).then_some(()));
    assert!(open.is_some(), "{:?}", earlier(&place));
    assert_eq!(talker.says(), [Ok(()); 2]);
}
