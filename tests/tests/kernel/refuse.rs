//! What is not steered is refused, counted and told.
use crate::support::*;
use std::collections::BTreeMap;
use std::time::Duration;
use tollgate::kernel::{Event, Fence, Refusal};

/// Events of `fence` until `enough`.
pub fn events(fence: &Fence, mut enough: impl FnMut(&[Event]) -> bool) -> Vec<Event> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    let seen = std::sync::Mutex::new(Vec::new());
    runtime.block_on(async {
        let mut sink = |event| seen.lock().unwrap().push(event);
        let waiting = fence.events(&mut sink);
        let watching = async {
            let deadline = std::time::Instant::now() + PATIENCE;
            while !enough(&seen.lock().unwrap()) {
                assert!(
                    std::time::Instant::now() < deadline,
                    "events missing: {:?}",
                    seen.lock().unwrap()
                );
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        };
        tokio::select! { () = waiting => panic!("events ended"), () = watching => {} }
    });
    seen.into_inner().unwrap()
}

pub fn refusals(fence: &Fence, count: usize) -> Vec<Refusal> {
    let events = events(fence, |events| events.len() >= count);
    events
        .into_iter()
        .filter_map(|event| match event {
            Event::Refused(refusal) => Some(refusal),
            _ => None,
        })
        .collect()
}

pub fn counted(stand: &Stand) -> BTreeMap<String, u64> {
    stand.account().refusals
}

/// Connects and measures; prints the error and milliseconds.
fn timed(ip: &str, port: u16) -> String {
    format!(
        "t = time.monotonic(); r = tcp('{ip}', {port})[1]; say(r, (time.monotonic() - t) * 1000)"
    )
}

pub fn assert_refused_at_once(output: &str) {
    let (error, milliseconds) = output.split_once(' ').unwrap();
    assert_eq!(error, "ECONNREFUSED");
    let limit = harness::at_most(Duration::from_millis(10));
    assert!(
        milliseconds.parse::<f64>().unwrap() < limit.as_secs_f64() * 1000.0,
        "took {milliseconds} ms"
    );
}

#[test]
fn without_a_listener_connections_are_refused_at_once() {
    let mut stand = Stand::new();
    let servers = servers();
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0")); // The admitted ones close.
    let addresses = ["198.51.100.7", "2001:db8::7", "::ffff:198.51.100.7"];
    for ip in addresses {
        assert_refused_at_once(&stand.run(&timed(ip, 443)));
    }
    assert_eq!(
        counted(&stand),
        BTreeMap::from([("agent_down".to_owned(), 3)])
    );
    for (refusal, ip) in refusals(stand.fence(), 3).iter().zip(addresses) {
        assert_eq!(refusal.reason, "agent_down");
        assert_eq!(refusal.protocol, "tcp");
        assert_eq!(&*refusal.workload, stand.workload());
        let destination = refusal.destination.unwrap();
        assert_eq!(
            destination.ip(),
            ip.parse::<std::net::IpAddr>().unwrap().to_canonical()
        );
        assert_eq!(destination.port(), 443);
        assert!(
            refusal.process.exe.contains("python3"),
            "{:?}",
            refusal.process
        );
        assert!(refusal.time.elapsed().unwrap() < PATIENCE);
    }
    assert!(stand.fence().flows().unwrap().is_empty());
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ECONNREFUSED");
        assert_quiet(&server.listener);
    }
    let listener = layer(stand.fence(), "listener");
    let why = listener.why.unwrap();
    assert!(!listener.enforcing && why.contains("127.0.0.1"), "{why}");
    stand.admit();
    assert!(layer(stand.fence(), "listener").enforcing);
    stand.agent6 = listen("[::1]:0");
    let why = layer(stand.fence(), "listener").why.unwrap();
    assert!(why.contains("[::1]"), "one of two is missing: {why}");
    stand.lift();
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ok");
        accept(&server.listener);
    }
}

/// Where there is no room to count a refusal, it is told of as lost, and refused all the same.
#[test]
fn a_refusal_that_there_is_no_room_to_count_is_lost_and_refused() {
    let mut stand = Stand::new();
    (stand.agent4, stand.agent6) = (listen("127.0.0.1:0"), listen("[::1]:0"));
    fill(&stand, "REFUSALS");
    let before = stand.fence().lost_events();
    let servers = servers();
    for (server, script) in &servers {
        assert_eq!(stand.run(script), "ECONNREFUSED");
        assert_quiet(&server.listener);
    }
    assert!(counted(&stand).is_empty());
    assert_eq!(stand.fence().lost_events(), before + 2);
    stand.lift();
    for (server, script) in &servers {
        reaches(server, || stand.run(script));
    }
}

pub fn layer(fence: &Fence, name: &str) -> tollgate::kernel::Layer {
    let all = fence.layers();
    all.into_iter().find(|layer| layer.name == name).unwrap()
}

/// What `during` comes to where sockets may have no such memory: nothing can be recorded on one.
fn without_memory<T>(during: impl FnOnce() -> T) -> T {
    // How much a socket may have beside its data.
    let _none = Setting::to("/proc/sys/net/core/optmem_max", "1");
    during()
}

/// What the agent logs while `during` runs.
pub fn logged(during: impl FnOnce()) -> String {
    #[derive(Clone, Default)]
    struct Lines(std::sync::Arc<std::sync::Mutex<Vec<u8>>>);
    impl std::io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let lines = Lines::default();
    let to = lines.clone();
    let subscriber = tracing_subscriber::fmt()
        .with_ansi(false)
        .with_writer(move || to.clone())
        .finish();
    tracing::subscriber::with_default(subscriber, during);
    let bytes = lines.0.lock().unwrap().clone();
    String::from_utf8(bytes).unwrap()
}

/// Refused, counted, told, and said in words, by the first agent and by the one after it.
#[test]
fn what_cannot_be_recorded_is_refused() {
    let mut stand = Stand::new();
    let made_outside = format!(
        "all = [socket.socket(f, socket.SOCK_STREAM) for f in (socket.AF_INET, socket.AF_INET6)]
enter({:?}); say('in'); sys.stdin.readline()
t = time.monotonic()
for s, to in zip(all, ('198.51.100.7', '2001:db8::7')):
    say(name(lambda: s.connect((to, 443))), (time.monotonic() - t) * 1000)
for f in socket.AF_INET, socket.AF_INET6: say(name(lambda: socket.socket(f, socket.SOCK_STREAM)))",
        stand.cgroup.path()
    );
    for taken_over in 1..=2 {
        let mut client = Running::start_outside(&made_outside);
        assert_eq!(client.line(), "in");
        without_memory(|| {
            client.send("\n");
            for _ in 0..2 {
                assert_refused_at_once(&client.line());
            }
            assert_eq!([client.line(), client.line()], ["EPERM"; 2]);
        });
        client.finish();
        assert_eq!(counted(&stand)["unrecorded"], 4 * taken_over);
        let log = logged(|| {
            let told = refusals(stand.fence(), 4);
            assert!(told.iter().all(|refusal| refusal.reason == "unrecorded"));
        });
        let said = log
            .lines()
            .filter(|line| line.contains("was refused: there is no memory"));
        assert_eq!(said.count(), 2, "{log}");
        assert!(log.contains("WARN tollgate::kernel::hooks"), "{log}");
        assert_quiet(&stand.agent4);
        assert_quiet(&stand.agent6);
        drop(stand.fence.take());
        stand.fence = Some(open(&stand.options));
        stand.admit();
    }
    assert_eq!(
        stand.run("say(tcp('198.51.100.7', 443)[1], tcp('2001:db8::7', 443)[1])"),
        "ok ok",
        "with memory it is steered"
    );
    stand.lift();
    without_memory(|| {
        let made = "for f in socket.AF_INET, socket.AF_INET6: say(name(lambda: socket.socket(f, socket.SOCK_STREAM)))";
        assert_eq!(stand.run(made), "ok\nok", "nothing is recorded");
    });
}

#[test]
fn before_a_listener_is_admitted_connections_are_refused() {
    let name = unique();
    let options = tollgate::kernel::Options {
        pin_dir: std::path::Path::new("/sys/fs/bpf").join(&name),
        cgroup_root: None,
        counts: true,
    };
    let fence = open(&options);
    let cgroup = Cgroup::new(fence.cgroup_root(), &name);
    fence.govern(&cgroup.name, "early").unwrap();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        assert_refused_at_once(&python(&cgroup, &timed(ip, 443)));
    }
    let servers = servers();
    for (_, script) in &servers {
        assert_eq!(python(&cgroup, script), "ECONNREFUSED");
    }
    assert!(
        fence
            .layers()
            .iter()
            .any(|layer| layer.name == "listener" && !layer.enforcing)
    );
    fence.lift().unwrap();
    for (server, script) in &servers {
        assert_eq!(python(&cgroup, script), "ok");
        accept(&server.listener);
    }
}

#[test]
fn an_impostor_on_the_agents_port_gets_nothing() {
    let mut stand = Stand::new();
    let impostors = ["127.0.0.1", "::1"].map(|ip| {
        let v4 = ip == "127.0.0.1";
        let agent = if v4 {
            &mut stand.agent4
        } else {
            &mut stand.agent6
        };
        let address = agent.local_addr().unwrap();
        *agent = listen(if v4 { "127.0.0.1:0" } else { "[::1]:0" });
        let impostor = listen(&address.to_string());
        let target = if v4 { "198.51.100.7" } else { "2001:db8::7" };
        assert_refused_at_once(&stand.run(&timed(target, 443)));
        let straight = format!("say(tcp('{ip}', {})[1])", address.port());
        assert_eq!(stand.run(&straight), "EPERM");
        assert_quiet(&impostor);
        (impostor, straight)
    });
    stand.lift();
    for (impostor, straight) in &impostors {
        assert_eq!(stand.run(straight), "ok");
        accept(impostor);
    }
}

#[test]
fn governed_tasks_cannot_talk_to_the_agent_itself() {
    let mut stand = Stand::new();
    let (port4, port6) = (port(&stand.agent4), port(&stand.agent6));
    let script = format!(
        "for ip in '127.0.0.1', '127.1.2.3', '0.0.0.0', '::ffff:127.0.0.1': say(tcp(ip, {port4})[1])
for ip in '::1', '::': say(tcp(ip, {port6})[1])"
    );
    assert_eq!(stand.run(&script), ["EPERM"; 6].join("\n"));
    assert_eq!(counted(&stand), BTreeMap::from([("direct".to_owned(), 6)]));
    assert!(
        refusals(stand.fence(), 6)
            .iter()
            .all(|refusal| refusal.reason == "direct")
    );
    assert_quiet(&stand.agent4);
    assert_quiet(&stand.agent6);
    stand.lift();
    let after = stand.run(&format!(
        "say(tcp('127.0.0.1', {port4})[1], tcp('::1', {port6})[1])"
    ));
    assert_eq!(after, "ok ok");
}

const DATAGRAMS: &str = "
def udp(ip, port):
    def to():
        with socket.socket(family(ip), socket.SOCK_DGRAM) as s: s.sendto(b'x', (ip, port))
    def connected():
        with socket.socket(family(ip), socket.SOCK_DGRAM) as s: s.connect((ip, port)); s.send(b'x')
    return name(to) + ' ' + name(connected)
";

#[test]
fn udp_asks_for_names_only() {
    let mut stand = Stand::new();
    let others = [
        std::net::UdpSocket::bind("127.77.7.7:54").unwrap(),
        std::net::UdpSocket::bind("[::1]:5353").unwrap(),
        // Where QUIC goes.
        std::net::UdpSocket::bind("127.77.7.7:443").unwrap(),
        std::net::UdpSocket::bind("[::1]:443").unwrap(),
    ];
    let refused = format!(
        "{DATAGRAMS}
for ip, port in ('127.77.7.7', 54), ('::1', 5353), ('::ffff:127.77.7.7', 54), ('2001:db8::1', 52): say(udp(ip, port))
for ip, port in ('127.77.7.7', 443), ('::1', 443): say(udp(ip, port))"
    );
    assert_eq!(stand.run(&refused), ["EPERM EPERM"; 6].join("\n"));
    assert_eq!(counted(&stand), BTreeMap::from([("udp".to_owned(), 12)]));
    let refusals = refusals(stand.fence(), 12);
    assert!(
        refusals
            .iter()
            .all(|refusal| (refusal.reason, &*refusal.protocol) == ("udp", "udp"))
    );
    assert_eq!(
        refusals[0].destination.unwrap().to_string(),
        "127.77.7.7:54"
    );
    stand.lift();
    assert!(!stand.run(&refused).contains("EPERM"));
    for other in others {
        other.set_read_timeout(Some(PATIENCE)).unwrap();
        assert_eq!(other.recv(&mut [0; 8]).unwrap(), 1);
    }
}

#[test]
fn what_cannot_be_governed_is_said() {
    let stand = Stand::new();
    let say = |path: &str, workload: &str| {
        stand
            .fence()
            .govern(path.as_ref(), workload)
            .unwrap_err()
            .to_string()
    };
    assert!(say("no/such/cgroup", "w").contains("no/such/cgroup"));
    assert!(say("../..", "w").contains("cannot govern"));
    assert!(say("/", "w").contains("the agent itself"));
    assert!(say(stand.workload(), "").contains("cannot name a workload"));
    let deep = vec!["d"; 33].join("/");
    assert!(say(&deep, "w").contains("33 levels deep"));
}

#[test]
fn errors_of_opening_leave_nothing() {
    let options = tollgate::kernel::Options {
        pin_dir: std::path::Path::new("/sys/fs/bpf").join(unique()),
        cgroup_root: Some("/proc".into()),
        counts: true,
    };
    assert!(matches!(
        Fence::open(&options),
        Err(tollgate::kernel::Error::NotCgroup2 { path }) if path.as_os_str() == "/proc"
    ));
    assert!(!options.pin_dir.exists());
}
