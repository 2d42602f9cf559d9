//! What each hook is there for is what is open without it, and closed again once it is put back. Here are those whose absence no
//! other test looks at.
use crate::account::ends_told;
use crate::exit::{DATAGRAM, heard};
use crate::names::{agents, asker, query};
use crate::refuse::layer;
use crate::rules::{INTERN, case};
use crate::support::*;
use std::collections::BTreeSet;
use std::fmt::Debug;
use std::io::Read;
use std::net::{SocketAddr, TcpListener, UdpSocket};
use std::process::Command;
use std::time::Duration;
use tollgate::kernel::{Recognition, Runs};

/// Somewhere that only what is steered comes from, over each family.
const FAR: [&str; 2] = ["198.51.100.7", "2001:db8::7"];
const LOOPBACK: [&str; 2] = ["127.0.0.1", "::1"];

/// It comes to the one with all hooks, to the other without these, and to the one again.
fn matters<T: PartialEq + Debug>(
    stand: &Stand,
    hooks: &[&str],
    [with, without]: [T; 2],
    mut comes_to: impl FnMut() -> T,
) {
    assert_eq!(comes_to(), with, "with {hooks:?}");
    for hook in hooks {
        std::fs::remove_file(stand.options.pin_dir.join("links").join(hook)).unwrap();
    }
    let mut came = None;
    let deadline = std::time::Instant::now() + PATIENCE;
    // A newer kernel takes it away a moment later.
    while came.as_ref() != Some(&without) {
        assert!(
            std::time::Instant::now() < deadline,
            "without {hooks:?}: {came:?}; {}",
            standing(stand, hooks)
        );
        came = Some(comes_to());
    }
    let mended: BTreeSet<&str> = stand.fence().mend().iter().map(|one| one.layer).collect();
    assert_eq!(mended, hooks.iter().copied().collect());
    assert_eq!(comes_to(), with, "with {hooks:?} again");
}

/// What the kernel says of these hooks, and of connections.
fn standing(stand: &Stand, hooks: &[&str]) -> String {
    let layers = hooks.iter().map(|hook| layer(stand.fence(), hook));
    let layers: Vec<_> = layers.map(|one| (one.enforcing, one.why)).collect();
    let sockets = Command::new("ss").args(["-tanoieH"]).output().unwrap();
    format!("{layers:?}\n{}", String::from_utf8_lossy(&sockets.stdout))
}

/// The two of a family.
fn of_family(hook: &str, ip: &str) -> String {
    format!("{hook}{}", if ip.contains(':') { 6 } else { 4 })
}

/// The agent cannot tell whose its connections are, and the client sees whom it is connected to.
fn getpeername(stand: &Stand) {
    for (far, own) in FAR.into_iter().zip(LOOPBACK) {
        let script =
            format!("s, r = tcp('{far}', 443); say(r, s.getpeername()[0]); sys.stdin.read()");
        let seen = |ip: &str, is_known| (format!("ok {ip}"), is_known);
        matters(
            stand,
            &[&of_family("getpeername", far)],
            [seen(far, true), seen(own, false)],
            || {
                let mut client = Running::start(&stand.cgroup, &script);
                let accepted = accept(stand.agent(far));
                let is_known = stand.fence().flow_of(&accepted).is_some();
                (client.line(), is_known)
            },
        );
    }
}

/// The agent's answer comes from the agent.
fn recvmsg(stand: &Stand) {
    for (far, own) in FAR.into_iter().zip(LOOPBACK) {
        let script = format!(
            "{DATAGRAM}
s = datagram('{far}'); s.settimeout(5); s.sendto(b'a1', ('{far}', 53))
answer, sender = s.recvfrom(64); say(answer.decode(), sender[0])"
        );
        let heard = |ip: &str| format!("yes {ip}");
        matters(
            stand,
            &[&of_family("recvmsg", far)],
            [heard(far), heard(own)],
            || {
                let client = Running::start(&stand.cgroup, &script);
                let agent = agents(stand, far);
                let (message, from) = query(agent);
                assert!(asker(stand, agent, &message, from).is_some());
                agent.send_to(b"yes", from).unwrap();
                client.finish()
            },
        );
    }
}

/// What a connection moved is not told, and whose one is that its client has closed before the agent asked.
fn ends(stand: &Stand) {
    for far in FAR {
        ends_told(stand);
        let reset = format!(
            "import struct
s, r = tcp('{far}', 443); say(r)
s.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack('ii', 1, 0))"
        );
        matters(stand, &["tcp_destroy_sock"], [1, 0], || {
            assert_eq!(stand.run(&reset), "ok");
            drop(accept(stand.agent(far)));
            ends_told(stand).len()
        });
        let closed = format!("s, r = tcp('{far}', 443); say(r); s.close()");
        matters(stand, &["sock_release"], [true, false], || {
            assert_eq!(stand.run(&closed), "ok");
            // The client's socket is there, and says it all, until its end is acknowledged: that may wait so long (`TCP_DELACK_MAX`).
            std::thread::sleep(Duration::from_millis(250));
            let accepted = accept(stand.agent(far));
            stand.fence().flow_of(&accepted).is_some()
        });
    }
}

/// Somebody else's, who should hear nothing.
struct Canary {
    listener: TcpListener,
    datagrams: UdpSocket,
}

impl Canary {
    fn new(ip: &str) -> Self {
        let (listener, datagrams) = match ip.contains(':') {
            true => both("[::1]:0"),
            false => both("127.0.0.1:0"),
        };
        Self {
            listener,
            datagrams,
        }
    }

    /// Has a connection come, and a datagram?
    fn hears(&self) -> [bool; 2] {
        let datagrams = heard(&self.datagrams) > 0;
        [self.listener.accept().is_ok(), datagrams]
    }
}

/// What `egress` holds too is open without both; on sockets that others made and passed in it is without the one.
fn connect_and_sendmsg(stand: &Stand) {
    for ip in LOOPBACK {
        let canary = Canary::new(ip);
        let port = canary.listener.local_addr().unwrap().port();
        let at = canary.datagrams.local_addr().unwrap().port();
        assert_eq!(port, at);
        let used = format!(
            "s.settimeout(0.3)
name(lambda: s.connect(('{ip}', {port})))
name(lambda: (c.connect(('{ip}', {port})), c.send(b'x')))"
        );
        let sent = format!("name(lambda: c.sendto(b'x', ('{ip}', {port})))");
        let made = format!(
            "s = socket.socket(family('{ip}')); c = socket.socket(family('{ip}'), socket.SOCK_DGRAM)"
        );
        let enter = format!("enter({:?})", stand.cgroup.path());
        let own = |use_it: &str| format!("{enter}\n{made}\n{use_it}");
        let passed_in = |use_it: &str| format!("{made}\n{enter}\n{use_it}");
        let hears = |script: &str| {
            python_outside(script);
            canary.hears()
        };
        let (connect, sendmsg) = (of_family("connect", ip), of_family("sendmsg", ip));
        let (none, both, datagram) = ([false; 2], [true; 2], [false, true]);
        for (hook, use_it, all) in [(&*connect, &used, both), (&*sendmsg, &sent, datagram)] {
            let (own, passed_in) = (own(use_it), passed_in(use_it));
            matters(stand, &[hook], [none, none], || hears(&own));
            matters(stand, &[hook, "egress"], [none, all], || hears(&own));
            matters(stand, &[hook], [none, all], || hears(&passed_in));
        }
        // Of what was steered the agent heard.
        while stand.agent(ip).accept().is_ok() {}
    }
}

/// Whether sockets of other kinds are made, what a raw one hears, and whether each sends.
const OTHER_KINDS: &str = "
def made(*kind): return name(lambda: socket.socket(family(IP), *kind).close())
say(made(socket.SOCK_RAW, ICMP), made(socket.SOCK_DGRAM, ICMP), made(socket.SOCK_RAW, 253), made(socket.SOCK_STREAM, 262))
def using(use, *kind):
    def call():
        with socket.socket(family(IP), *kind) as s: s.settimeout(1); use(s)
    return name(call)
def hear(s): say('listens'); s.recv(64)
say(using(hear, socket.SOCK_RAW, 253))
# What is sent over this one goes well where it does not leave.
echo = bytes([8 if ICMP == 1 else 128, 0, 0, 0, 0, 0, 0, 1]) + b'x'
using(lambda s: s.sendto(echo, (IP, 0)), socket.SOCK_DGRAM, ICMP)
say(using(lambda s: s.sendto(b'x', (IP, 0)), socket.SOCK_RAW, 253),
    using(lambda s: s.connect((IP, PORT)), socket.SOCK_STREAM, 262))
";

/// They are made, and hear; `egress` holds what they send, and streams are steered still.
fn sock_create(stand: &Stand) {
    let _groups = Setting::to("/proc/sys/net/ipv4/ping_group_range", "0 2147483647");
    for (ip, icmp) in LOOPBACK.into_iter().zip([1, 58]) {
        let server = Elsewhere::new(ip);
        let port = server.address.port();
        let script = format!("IP, ICMP, PORT = '{ip}', {icmp}, {port}{OTHER_KINDS}");
        let any = SocketAddr::new(ip.parse().unwrap(), 0);
        let raw = [253, icmp].map(|protocol: i32| {
            let domain = socket2::Domain::for_address(any);
            let raw = socket2::Socket::new(domain, socket2::Type::RAW, Some(protocol.into()));
            let raw = raw.unwrap();
            raw.set_nonblocking(true).unwrap();
            raw
        });
        let hears = |mut raw: &socket2::Socket| {
            let mut bytes = [0; 256];
            let next = std::iter::from_fn(|| {
                raw.read(&mut bytes)
                    .ok()
                    .map(|n| bytes[..n].ends_with(b"x"))
            });
            next.filter(|is_theirs| *is_theirs).count() > 0
        };
        let uses = || {
            let mut client = Running::start(&stand.cgroup, &script);
            let mut said = vec![client.line(), client.line()];
            if said[1] == "listens" {
                raw[0].send_to(b"to all", &any.into()).unwrap();
                said[1] = client.line();
            }
            said.push(client.finish());
            let came = [stand.agent(ip), &server.listener].map(|at| at.accept().is_ok());
            (said.join("\n"), raw.each_ref().map(hears), came)
        };
        let refused = || {
            let all = "EPERM EPERM EPERM EPERM\nEPERM\nEPERM EPERM";
            (all.to_owned(), [false; 2], [false; 2])
        };
        let made = |sends: &str, are_heard: [bool; 2]| {
            let said = format!("ok ok ok ok\nok\n{sends} ok");
            (said, are_heard, [true, false])
        };
        let hook = ["sock_create"];
        let alone = [refused(), made("EPERM", [false; 2])];
        matters(stand, &hook, alone, uses);
        let both = ["sock_create", "egress"];
        matters(stand, &both, [refused(), made("ok", [true; 2])], uses);
    }
}

/// While there is no agent, who takes its port is not steered to.
fn post_bind(stand: &mut Stand) {
    let ports = [&stand.agent4, &stand.agent6].map(port);
    let elsewhere = LOOPBACK.map(Elsewhere::new);
    let [four, six] = elsewhere.map(|elsewhere| elsewhere.listener);
    (stand.agent4, stand.agent6) = (four, six);
    let datagrams = LOOPBACK.map(|ip| UdpSocket::bind((ip, 0)).unwrap());
    let [four, six] = datagrams;
    (stand.dns4, stand.dns6) = (four, six);
    for ((own, far), port) in LOOPBACK.into_iter().zip(FAR).zip(ports) {
        let script = format!(
            "s = socket.socket(family('{own}')); s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
say(name(lambda: (s.bind(('{own}', {port})), s.listen())), tcp('{far}', 443)[1])"
        );
        matters(
            stand,
            &[&of_family("post_bind", own)],
            ["EPERM ECONNREFUSED", "ok ECONNREFUSED"].map(str::to_owned),
            || stand.run(&script),
        );
    }
    stand.listen();
}

/// Who is recognised by its user is so when it runs a program, or else when it connects.
fn sched_process_exec(stand: &Stand) {
    let by = Recognition {
        cases: vec![case("interns", Some(INTERN), Runs::Anything, None)],
        ..Recognition::default()
    };
    stand.fence().recognise(&by).unwrap();
    let body = format!(
        "import socket, sys
print('up', flush=True); sys.stdin.readline()
for ip in {FAR:?}: socket.create_connection((ip, 443))
print('connected', flush=True); sys.stdin.read()"
    );
    let script = format!(
        "os.setresuid({INTERN}, {INTERN}, {INTERN})
os.execv('/usr/bin/python3', ['python3', '-ISc', {body:?}])"
    );
    let known = |is_known: bool| is_known.then(|| "interns".to_owned());
    let hook = ["sched_process_exec"];
    matters(stand, &hook, [known(true), known(false)], || {
        let mut process = Running::start_outside(&script);
        assert_eq!(process.line(), "up");
        let known = stand.fence().workload_of(process.pid());
        process.send("\n");
        assert_eq!(process.line(), "connected");
        for far in FAR {
            let flow = stand.fence().flow_of(&accept(stand.agent(far))).unwrap();
            assert_eq!(&*flow.workload, "interns", "when it connects at the latest");
        }
        known
    });
    stand.fence().recognise(&Recognition::default()).unwrap();
}

/// Who enters a governed cgroup and leaves it again.
fn cgroup_attach_task(stand: &Stand) {
    let servers = servers();
    let [connect4, connect6] = servers.each_ref().map(|(_, connect)| connect);
    let script = format!(
        "enter({:?}); enter({:?})\n{connect4}; {connect6}",
        stand.cgroup.path(),
        stand.cgroup.root
    );
    let hook = ["cgroup_attach_task"];
    matters(stand, &hook, [[false; 2], [true; 2]], || {
        assert_eq!(python_outside(&script), "ok\nok");
        let came = servers.each_ref();
        came.map(|(server, _)| server.listener.accept().is_ok())
    });
    // Those that were steered.
    for agent in [&stand.agent4, &stand.agent6] {
        while agent.accept().is_ok() {}
    }
}

/// A cgroup that is gone stays listed.
fn cgroup_rmdir(stand: &Stand) {
    matters(stand, &["cgroup_rmdir"], [false, true], || {
        let child = stand.cgroup.child(&unique());
        stand.fence().govern(&child.name, "child").unwrap();
        let id = child.id();
        drop(child);
        let left = stand.fence().governed();
        left.iter().any(|governed| governed.cgroup_id == id)
    });
}

#[test]
fn what_each_hook_leaves_open_is_so() {
    let mut stand = Stand::new();
    for look in [
        getpeername,
        recvmsg,
        ends,
        connect_and_sendmsg,
        sock_create,
        sched_process_exec,
        cgroup_attach_task,
        cgroup_rmdir,
    ] {
        stand.renew();
        look(&stand);
    }
    post_bind(&mut stand);
}
