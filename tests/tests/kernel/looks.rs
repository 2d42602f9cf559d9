//! Ways by which a process that was governed while it ran kept what it had, or by which others lost theirs.
use crate::before::{IPS, is_served, look};
use crate::exit::{at, heard, receiver};
use crate::listen::{SERVE, dial, hears};
use crate::support::*;
use std::io::{ErrorKind, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use tollgate::kernel::{Fence, Openings, Outcome, Recognition};

/// Goes on as soon as it is told to, and says the ports that it serves at then.
const SERVES_LATER: &str = "
sys.stdin.readline()
say(*[start(ip) for ip in ('127.0.0.1', '::1')])
";

/// Says whether datagrams leave, whenever it is told to.
const SENDS: &str = "
for line in sys.stdin: say(*[name(lambda: s.sendto(b'x', a)) for s, a in zip(u, RECEIVERS)])
";

/// Listeners over both families, with what it says.
const LISTENS: &str = "
l = [socket.create_server((ip, 0), family=family(ip)) for ip in ('127.0.0.1', '::1')]
say(*[s.getsockname()[1] for s in l])
";

/// The ports that it says.
fn ports(process: &mut Running) -> Vec<(&'static str, u16)> {
    let said = process.line();
    let ports = said.split(' ').map(|port| port.parse().unwrap());
    IPS.into_iter().cycle().zip(ports).collect()
}

fn are_served(all: &[(&str, u16)]) -> bool {
    all.iter().all(|(ip, port)| is_served(ip, *port))
}

/// Is none of them connected to? The kernel connects over loopback within the call, or not until it asks again.
fn are_held(all: &[(&str, u16)]) -> bool {
    all.iter().all(|(ip, port)| {
        let at = SocketAddr::new(ip.parse().unwrap(), *port);
        TcpStream::connect_timeout(&at, PATIENCE / 100).is_err()
    })
}

fn are_free_without(mut stand: Stand, all: &[(&str, u16)]) {
    stand.lift();
    eventually("it is the fence that holds them", || are_served(all));
}

fn lets_listen(fence: &Fence, workload: &str, all: &[(&str, u16)]) {
    let openings = Openings {
        workload: workload.to_owned(),
        listen: all.iter().map(|(_, port)| *port).collect(),
        unix: Vec::new(),
    };
    fence.permit(&[openings]).unwrap();
}

/// Governs a process that nobody governed.
pub fn enrol(fence: &Fence, process: &Running, workload: &str) {
    let newly = fence.enrol(process.pid(), workload, 3).unwrap();
    assert_eq!(newly, [process.pid()]);
}

/// Looks as the agent does: it asks the marks who is to be looked at. Returns what came of connections.
pub fn looks(fence: &Fence, listen: &[(&str, u16)]) -> Vec<Outcome> {
    let listen: Vec<u16> = listen.iter().map(|(_, port)| *port).collect();
    look(fence, &[], &listen).1
}

pub fn ended(stream: &mut TcpStream) -> bool {
    let read = stream.read(&mut [0]).map_err(|error| error.kind());
    read == Err(ErrorKind::ConnectionReset)
}

fn receivers() -> ([UdpSocket; 2], String) {
    let receivers = [receiver("127.0.0.9"), receiver("::1")];
    let script = format!("RECEIVERS = {}, {}\n", at(&receivers[0]), at(&receivers[1]));
    let made = "u = [socket.socket(family(a[0]), socket.SOCK_DGRAM) for a in RECEIVERS]\n";
    (receivers, script + made)
}

#[test]
fn what_was_made_as_one_workload_is_held_as_the_next() {
    let stand = Stand::new();
    let fence = stand.fence();
    fence.recognise(&Recognition::default()).unwrap();
    let script = format!("{SERVE}{SERVES_LATER}sys.stdin.read()");
    let mut server = Running::start_outside(&script);
    enrol(fence, &server, "late");
    server.send("\n");
    let all = ports(&mut server);
    assert!(are_held(&all));
    fence.forget_workloads(|name| name != "late").unwrap();
    assert!(are_served(&all), "nobody has it");
    enrol(fence, &server, "other");
    looks(fence, &[]);
    assert!(are_held(&all));
    are_free_without(stand, &all);
    server.finish();
}

/// Its sockets are of a cgroup that is governed no longer, and itself is in another one.
#[test]
fn what_was_made_in_one_cgroup_is_held_as_of_the_next() {
    let stand = Stand::new();
    let fence = stand.fence();
    fence.recognise(&Recognition::default()).unwrap();
    let [first, next] = [(); 2].map(|()| Cgroup::new(fence.cgroup_root(), unique()));
    let id = fence.govern(&first.name, "first").unwrap().cgroup_id;
    fence.govern(&next.name, "next").unwrap();
    let (receivers, made) = receivers();
    let script = format!(
        "{SERVE}{made}say(*[start(ip) for ip in ('127.0.0.1', '::1')])
sys.stdin.readline(); enter({:?}); say('there'){SENDS}",
        next.path().to_str().unwrap()
    );
    let mut server = Running::start(&first, &script);
    let all = ports(&mut server);
    server.send("\n");
    assert_eq!(server.line(), "there");
    assert!(are_held(&all));
    fence.release(id).unwrap();
    fence.forget_workloads(|name| name != "first").unwrap();
    let processes = fence.governed_processes().unwrap();
    let of = processes.iter().find(|of| of.pid == server.pid());
    assert_eq!(of.unwrap().workload, "next");
    server.send("\n");
    assert_eq!(server.line(), "EPERM EPERM");
    assert!(receivers.iter().all(|receiver| heard(receiver) == 0));
    assert!(are_held(&all));
    lets_listen(fence, "next", &all);
    assert!(are_served(&all), "they are not the next one's");
    lets_listen(fence, "first", &all);
    assert!(are_held(&all));
    are_free_without(stand, &all);
    server.send("\n");
    assert_eq!(server.line(), "ok ok");
    server.finish();
}

/// Nobody can tell of a process what it had once it has ended, and who it made has that too.
#[test]
fn who_forks_and_ends_before_the_look_is_found() {
    let stand = Stand::new();
    let fence = stand.fence();
    let servers = IPS.map(Elsewhere::new);
    let script = format!(
        "{SERVE}s = [tcp('127.0.0.1', {})[0], tcp('::1', {})[0]]{LISTENS}
for line in sys.stdin:
    if line == 'fork\\n':
        if os.fork(): os._exit(0)
        [threading.Thread(target=serve, args=(x,), daemon=True).start() for x in l]
    say(os.getpid(), *[name(lambda: x.send(b'x')) for x in s])",
        servers[0].address.port(),
        servers[1].address.port()
    );
    let mut process = Running::start_outside(&script);
    let all = ports(&mut process);
    let mut peers = servers.each_ref().map(|server| accept(&server.listener));
    enrol(fence, &process, "late");
    process.send("fork\n");
    let said = process.line();
    let (child, said) = said.split_once(' ').unwrap();
    assert_eq!(said, "ok ok", "before anybody looked");
    assert_ne!(child, process.pid().to_string());
    for peer in &mut peers {
        assert_eq!(peer.read(&mut [0; 8]).unwrap(), 1);
    }
    assert!(are_served(&all));
    looks(fence, &[]);
    assert!(peers.iter_mut().all(ended));
    process.send("\n");
    let told = process.line();
    let told = told.strip_prefix(&format!("{child} "));
    assert!(told.is_some_and(are_ended), "{told:?}");
    assert!(are_held(&all));
    are_free_without(stand, &all);
    process.finish();
}

/// Who serves each connection in a process of its own.
const FORKS: &str = "
import signal; signal.signal(signal.SIGCHLD, signal.SIG_IGN)
while True:
    for ready in select.select([sys.stdin, *l], [], [])[0]:
        if ready is sys.stdin: sys.exit()
        c, _ = ready.accept()
        if os.fork() == 0:
            [s.close() for s in l]; echo(c); os._exit(0)
        c.close()
";

#[test]
fn what_a_forking_server_took_before_the_look_is_ended() {
    let stand = Stand::new();
    let fence = stand.fence();
    let mut server = Running::start_outside(&format!("{SERVE}{LISTENS}{FORKS}"));
    let all = ports(&mut server);
    enrol(fence, &server, "late");
    let mut open = [0, 1].map(|at| dial(all[at].0, all[at].1).unwrap());
    for stream in &mut open {
        assert!(hears(stream), "before anybody looked");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    looks(fence, &[]);
    assert!(open.iter_mut().all(ended));
    assert!(are_held(&all));
    are_free_without(stand, &all);
    drop(open);
    server.finish();
}

/// Whose a connection is that nobody has accepted cannot be told where two serve at a port.
#[test]
fn who_serves_at_the_port_over_the_other_family_loses_nobody() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    let ways = [["0.0.0.0", "127.0.0.1", "::1"], ["::", "::1", "127.0.0.1"]];
    let held = ways.map(|[any, own, other]| {
        let script = format!(
            "{SERVE}l = socket.create_server(('{any}', 0), family=family('{any}'))
say(l.getsockname()[1]); taken = l.accept()[0]; taken.sendall(b'hello'); sys.stdin.read()"
        );
        // A port may be somebody's over the other family.
        let (server, listener) = (0..16)
            .find_map(|_| {
                let mut server = Running::start_outside(&script);
                let port: u16 = server.line().parse().unwrap();
                Some((server, TcpListener::bind((other, port)).ok()?))
            })
            .unwrap();
        let port = listener.local_addr().unwrap().port();
        let mut taken = dial(own, port).unwrap();
        assert!(hears(&mut taken) && dial(own, port).is_some());
        let mut client = dial(other, port).unwrap();
        enrol(fence, &server, "late");
        assert_eq!(looks(fence, &[]), [Outcome::Destroyed], "{other}");
        assert!(ended(&mut taken), "{own}");
        assert!(are_held(&[(own, port)]));
        listener.accept().unwrap().0.write_all(b"hello").unwrap();
        assert!(hears(&mut client), "{other}");
        assert!(dial(other, port).is_some());
        (server, listener, own)
    });
    stand.lift();
    for (server, listener, own) in held {
        let port = listener.local_addr().unwrap().port();
        eventually("it is the fence that holds it", || {
            dial(own, port).is_some()
        });
        server.finish();
    }
}

/// Clients of a group: enough for each of two to have some.
const CLIENTS: usize = 24;

/// Says its name to each that it accepts, once it may.
const IN_GROUP: &str = "
l = socket.socket(family(IP)); l.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
l.bind((IP, PORT)); l.listen(64); say(l.getsockname()[1]); sys.stdin.readline()
def take():
    while True: all.append(l.accept()[0]); name(lambda: all[-1].sendall(NAME))
import threading
all = []; threading.Thread(target=take, daemon=True).start(); sys.stdin.read()
";

/// What each client hears.
fn heard_by(clients: &mut [TcpStream]) -> Vec<u8> {
    let each = clients.iter_mut().map(|client| {
        let mut said = [0];
        client.read_exact(&mut said).unwrap();
        said[0]
    });
    each.collect()
}

/// Those that nobody has taken before the look are found by the next, as the agent makes it.
#[test]
fn who_serves_in_a_group_with_a_governed_one_loses_nobody() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    let held = IPS.map(|ip| {
        let member = |name: &str, port: u16| {
            let known = format!("IP, PORT, NAME = '{ip}', {port}, b'{name}'");
            let mut member = Running::start_outside(&format!("{known}{IN_GROUP}"));
            let port: u16 = member.line().parse().unwrap();
            (member, port)
        };
        let (mut governed, port) = member("g", 0);
        let (mut free, _) = member("f", port);
        let connect = |_: usize| dial(ip, port).unwrap();
        let mut clients: Vec<_> = (0..CLIENTS).map(connect).collect();
        enrol(fence, &governed, "late");
        assert_eq!(looks(fence, &[]), [], "{ip}: nobody has accepted them");
        governed.send("\n");
        free.send("\n");
        let before = heard_by(&mut clients);
        let own = before.iter().filter(|by| **by == b'g').count();
        assert!((1..CLIENTS).contains(&own), "{ip}: {before:?}");
        assert_eq!(looks(fence, &[]), vec![Outcome::Destroyed; own], "{ip}");
        for (client, by) in clients.iter_mut().zip(&before) {
            client.set_nonblocking(true).unwrap();
            assert_eq!(ended(client), *by == b'g', "{ip}");
        }
        // Those who come now and are led to the governed one get nowhere.
        let mut later: Vec<TcpStream> = std::thread::scope(|scope| {
            let dials: Vec<_> = (0..CLIENTS)
                .map(|_| scope.spawn(|| dial(ip, port)))
                .collect();
            let dials = dials.into_iter();
            dials
                .filter_map(|dialled| dialled.join().unwrap())
                .collect()
        });
        let after = heard_by(&mut later);
        assert!((1..CLIENTS).contains(&after.len()), "{ip}: {after:?}");
        assert!(!after.contains(&b'g'), "{ip}: {after:?}");
        (governed, free, port)
    });
    stand.lift();
    for (ip, (governed, free, port)) in std::iter::zip(IPS, held) {
        eventually("it is the fence that holds the one", || {
            let clients = (0..CLIENTS).map(|_| dial(ip, port));
            let mut clients: Vec<_> = clients.flatten().collect();
            clients.len() == CLIENTS && heard_by(&mut clients).contains(&b'g')
        });
        governed.finish();
        free.finish();
    }
}

/// The kernel shows processes by their ids.
#[test]
fn a_listener_that_two_workloads_have_is_the_first_ones() {
    let stand = Stand::new();
    let fence = stand.fence();
    let script = format!(
        "{SERVE}{LISTENS}c = os.fork()
for s in l: threading.Thread(target=serve, args=(s,), daemon=True).start()
if c: say(c)
sys.stdin.read()"
    );
    let mut parent = Running::start_outside(&script);
    let all = ports(&mut parent);
    let child: u32 = parent.line().parse().unwrap();
    assert!(are_served(&all));
    assert_eq!(fence.enrol(child, "child", 3).unwrap(), [child]);
    enrol(fence, &parent, "parent");
    looks(fence, &[]);
    assert!(are_held(&all));
    let [first, second] = match parent.pid() < child {
        true => ["parent", "child"],
        false => ["child", "parent"],
    };
    lets_listen(fence, first, &all);
    assert!(are_served(&all));
    lets_listen(fence, second, &all);
    assert!(are_held(&all));
    are_free_without(stand, &all);
    parent.finish();
}

/// What an earlier look or a hook said of a socket is not changed by who has it besides.
#[test]
fn a_listener_stays_whose_it_was_said_to_be() {
    let stand = Stand::new();
    let fence = stand.fence();
    let script = format!(
        "{SERVE}{LISTENS}before = l
sys.stdin.readline(){LISTENS}all = before + l
for s in all: threading.Thread(target=serve, args=(s,), daemon=True).start()
say(*[s.fileno() for s in all]); sys.stdin.read()"
    );
    let mut maker = Running::start_outside(&script);
    let mut all = ports(&mut maker);
    enrol(fence, &maker, "maker");
    looks(fence, &[]);
    fence.has_seen([maker.pid()]);
    maker.send("\n");
    all.extend(ports(&mut maker));
    let copies = format!(
        "import ctypes
call = ctypes.CDLL(None).syscall
process = call(434, {}, 0)
say(min(call(438, process, n, 0) for n in map(int, '{}'.split())) > 0); sys.stdin.read()",
        maker.pid(),
        maker.line()
    );
    let mut holder = Running::start_outside(&copies);
    assert_eq!(holder.line(), "True");
    enrol(fence, &holder, "holder");
    looks(fence, &[]);
    assert!(are_held(&all));
    lets_listen(fence, "maker", &all);
    assert!(are_served(&all));
    lets_listen(fence, "holder", &all);
    assert!(are_held(&all));
    are_free_without(stand, &all);
    maker.finish();
    holder.finish();
}

#[test]
fn what_is_bound_before_and_listens_after_is_held() {
    let stand = Stand::new();
    let fence = stand.fence();
    let script = format!(
        "{SERVE}l = [socket.socket(family(ip)) for ip in ('127.0.0.1', '::1')]
for s, ip in zip(l, ('127.0.0.1', '::1')): s.bind((ip, 0))
say(*[s.getsockname()[1] for s in l])
sys.stdin.readline()
for s in l: s.listen(); threading.Thread(target=serve, args=(s,), daemon=True).start()
say('listens'); sys.stdin.read()"
    );
    let mut server = Running::start_outside(&script);
    let all = ports(&mut server);
    enrol(fence, &server, "late");
    looks(fence, &[]);
    server.send("\n");
    assert_eq!(server.line(), "listens");
    assert!(are_held(&all));
    lets_listen(fence, "late", &all);
    assert!(are_served(&all));
    lets_listen(fence, "late", &[]);
    assert!(are_held(&all));
    are_free_without(stand, &all);
    server.finish();
}

/// Somebody else in a namespace: what it hears, and whom it reaches.
pub const THERE: &str = "
import ctypes
assert ctypes.CDLL(None).unshare(0x40000000) == 0
assert os.system('ip link set lo up') == 0
l = [socket.create_server((ip, 0), family=family(ip)) for ip in ('127.0.0.1', '::1')]
say(*[s.getsockname()[1] for s in l])
all = [s.accept()[0] for s in l]
def hears(s):
    s.settimeout(5)
    try: return s.recv(8).decode()
    except OSError as e: return errno.errorcode.get(e.errno, 'nothing')
def dial(*to):
    try:
        with socket.create_connection(to, 0.1) as s: return hears(s)
    except OSError: return 'nothing'
to = list(zip(('127.0.0.1', '::1'), map(int, sys.stdin.readline().split())))
for line in sys.stdin: say(*[hears(s) for s in all], *[dial(*a) for a in to])
";

#[test]
fn what_is_in_a_namespace_that_its_process_left_is_held() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    let mut there = Running::start_outside(THERE);
    let to = there.line();
    let script = format!(
        "{SERVE}import ctypes
with open('/proc/{}/ns/net') as n: assert ctypes.CDLL(None).setns(n.fileno(), 0) == 0
s = [tcp(*a)[0] for a in zip(('127.0.0.1', '::1'), map(int, '{to}'.split()))]{LISTENS}
assert ctypes.CDLL(None).unshare(0x40000000) == 0
for x in l: threading.Thread(target=serve, args=(x,), daemon=True).start()
for line in sys.stdin: say(*[name(lambda: x.send(b'x')) for x in s])",
        there.pid()
    );
    let mut process = Running::start_outside(&script);
    there.send(&format!("{}\n", process.line()));
    let mut ask = |process: &mut Running| {
        process.send("\n");
        let sent = process.line();
        there.send("\n");
        (sent, there.line())
    };
    let free = ("ok ok".to_owned(), "x x hello hello".to_owned());
    assert_eq!(ask(&mut process), free);
    enrol(fence, &process, "late");
    assert_eq!(ask(&mut process), free, "before anybody looked");
    assert!(looks(fence, &[]).len() >= 2);
    let (sent, hears) = ask(&mut process);
    assert!(are_ended(&sent), "{sent}");
    assert_eq!(hears, "ECONNRESET ECONNRESET nothing nothing");
    stand.lift();
    eventually("it is the fence that holds them", || {
        there.send("\n");
        there.line().ends_with("hello hello")
    });
    process.finish();
    there.finish();
}

/// A cgroup is entered for one run and has its workload for as long as it is there, whatever policy says by then.
#[test]
fn a_run_of_a_workload_that_policy_dropped_stays_held() {
    let mut stand = Stand::new();
    let fence = stand.fence();
    fence.recognise(&Recognition::default()).unwrap();
    let run = Cgroup::new(fence.cgroup_root(), unique());
    let id = fence.govern(&run.name, "run").unwrap().cgroup_id;
    let (receivers, made) = receivers();
    let script = format!("{SERVE}{made}say(*[start(ip) for ip in ('127.0.0.1', '::1')]){SENDS}");
    let left = script.replacen(
        "say(",
        &format!("enter({:?}); say(", run.root.to_str().unwrap()),
        1,
    );
    let mut processes = [script, left].map(|script| Running::start(&run, &script));
    let all: Vec<_> = processes.iter_mut().flat_map(ports).collect();
    let governed = |pid: u32| {
        fence
            .governed_processes()
            .unwrap()
            .iter()
            .any(|of| of.pid == pid)
    };
    fence.forget_workloads(|name| name != "run").unwrap();
    assert!(are_held(&all));
    for process in &mut processes {
        assert!(governed(process.pid()));
        process.send("\n");
        assert_eq!(process.line(), "EPERM EPERM");
    }
    assert!(receivers.iter().all(|receiver| heard(receiver) == 0));
    // The run is over: that is what they were held for.
    fence.release(id).unwrap();
    fence.forget_workloads(|name| name != "run").unwrap();
    assert!(are_served(&all));
    for process in &mut processes {
        assert!(!governed(process.pid()));
        process.send("\n");
        assert_eq!(process.line(), "ok ok");
    }
    // Or the fence is lifted that held it.
    fence.govern(&run.name, "run").unwrap();
    assert!(are_held(&all[..2]));
    processes[0].send("\n");
    assert_eq!(processes[0].line(), "EPERM EPERM");
    stand.lift();
    eventually("it is the fence that holds them", || {
        processes[0].send("\n");
        processes[0].line() == "ok ok" && are_served(&all)
    });
    for process in processes {
        process.finish();
    }
}

#[test]
fn a_port_that_is_no_longer_under_listen_serves_nobody_from_before() {
    let stand = Stand::new();
    let fence = stand.fence();
    let script =
        format!("{SERVE}say(*[start(ip) for ip in ('127.0.0.1', '::1')]); sys.stdin.read()");
    let mut server = Running::start_outside(&script);
    let all = ports(&mut server);
    let mut open = [0, 1].map(|at| dial(all[at].0, all[at].1).unwrap());
    assert!(open.iter_mut().all(hears));
    lets_listen(fence, "late", &all);
    enrol(fence, &server, "late");
    assert_eq!(looks(fence, &all), []);
    let echoes = |stream: &mut TcpStream| stream.write_all(b"again").is_ok() && hears(stream);
    assert!(open.iter_mut().all(echoes), "its policy lets it");
    lets_listen(fence, "late", &[]);
    for stream in &mut open {
        stream.set_read_timeout(Some(PATIENCE / 100)).unwrap();
        assert!(!echoes(stream));
    }
    assert!(are_held(&all));
    are_free_without(stand, &all);
    server.finish();
}
