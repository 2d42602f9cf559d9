//! Whose a socket is, where neither the cgroup that it was made in tells nor who uses it.
use crate::exit::{heard, receiver};
use crate::support::*;
use std::net::UdpSocket;
use std::time::Duration;

/// Somebody else's, over each family, and where a script finds them.
fn both_receivers() -> ([UdpSocket; 2], String) {
    let receivers = [receiver("127.0.0.9"), receiver("::1")];
    let [four, six] = receivers
        .each_ref()
        .map(|receiver| receiver.local_addr().unwrap().port());
    let ports = format!("PORT = {{socket.AF_INET: {four}, socket.AF_INET6: {six}}}");
    (receivers, ports)
}

/// Leaves a cgroup below the governed one's place and removes it; what was made there is used on.
const LEFT_AND_REMOVED: &str = "
s = {f: socket.socket(f, socket.SOCK_DGRAM) for f in (socket.AF_INET, socket.AF_INET6)}
l = socket.create_server(('::', 0), family=socket.AF_INET6, dualstack_ipv6=True)
say(l.getsockname()[1])
for f, ip in (socket.AF_INET, '127.0.0.9'), (socket.AF_INET6, '::1'): s[f].connect((ip, PORT[f]))
def tried():
    sent = [name(lambda: s[f].send(b'x')) for f in s]
    try: sent.append(l.accept()[0] and 'served')
    except TimeoutError: sent.append('silent')
    say(*sent)
for line in sys.stdin:
    if line == 'leave\\n': enter(OUTSIDE); os.rmdir(INSIDE)
    l.settimeout(5 if line == 'free\\n' else 1)
    tried()
";

/// A socket is its maker's when the cgroup that it was made in is gone.
#[test]
fn what_was_made_in_a_cgroup_that_is_gone_is_held() {
    let mut stand = Stand::new();
    let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
    let inside = outside.child("inside");
    stand.fence().govern(&inside.name, "inside").unwrap();
    let (receivers, ports_of_them) = both_receivers();
    let script = format!(
        "{ports_of_them}
OUTSIDE, INSIDE = {:?}, {:?}
{LEFT_AND_REMOVED}",
        outside.path(),
        inside.path()
    );
    let mut client = Running::start(&inside, &script);
    let listens: u16 = client.line().parse().unwrap();
    let tried = |ip: &str, what: &str, client: &mut Running| {
        let at = std::net::SocketAddr::new(ip.parse().unwrap(), listens);
        let wait = match what {
            "free\n" => Duration::from_secs(5),
            _ => Duration::from_millis(500),
        };
        let call = std::thread::spawn(move || {
            let _ = std::net::TcpStream::connect_timeout(&at, wait);
        });
        client.send(what);
        let came = client.line();
        call.join().unwrap();
        came
    };
    for (ip, what) in [
        ("127.0.0.1", "stay\n"),
        ("::1", "stay\n"),
        ("127.0.0.1", "leave\n"),
        ("::1", "gone\n"),
    ] {
        let came = tried(ip, what, &mut client);
        assert_eq!(came, "EPERM EPERM silent", "{ip}: {what}");
    }
    assert!(!inside.path().exists());
    for receiver in &receivers {
        assert_eq!(heard(receiver), 0);
    }
    stand.lift();
    // The kernel may take the programs away a moment later.
    for ip in ["127.0.0.1", "::1"] {
        eventually("it is free", || {
            tried(ip, "free\n", &mut client) == "ok ok served"
        });
    }
    client.finish();
}

/// Uses what was made outside: by nobody of a governed cgroup, as one who is governed all the same.
const MADE_OUTSIDE: &str = "
made = {f: (socket.socket(f, socket.SOCK_DGRAM), socket.socket(f, socket.SOCK_STREAM)) for f in (socket.AF_INET, socket.AF_INET6)}
LOCAL = {socket.AF_INET: '127.0.0.9', socket.AF_INET6: '::1'}
enter(GOVERNED); enter(OUTSIDE)
for f in made: made[f][0].connect((LOCAL[f], PORT[f]))
enter(GOVERNED)
asked = [name(lambda: made[f][0].sendto(b'ask', (LOCAL[f], 53))) for f in made]
ports = []
for f in made:
    l = made[f][1]; l.bind((LOCAL[f], 0)); l.listen(); ports.append(l.getsockname()[1])
enter(OUTSIDE); say(*asked, *ports)
for wait in sys.stdin:
    came = [name(lambda: made[f][0].send(b'x')) for f in made]
    for f in made:
        made[f][1].settimeout(int(wait))
        try: came.append(made[f][1].accept()[0] and 'served')
        except TimeoutError: came.append('silent')
    say(*came)
";

/// Neither a query for a name nor a socket's age takes away what holds it.
#[test]
fn what_was_made_outside_is_held_once_it_was_used() {
    let mut stand = Stand::new();
    let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
    let (receivers, ports_of_them) = both_receivers();
    let script = format!(
        "{ports_of_them}
OUTSIDE, GOVERNED = {:?}, {:?}
{MADE_OUTSIDE}",
        outside.path(),
        stand.cgroup.path()
    );
    let mut client = Running::start_outside(&script);
    let said = client.line();
    let said: Vec<&str> = said.split(' ').collect();
    assert_eq!(said[..2], ["ok", "ok"], "{said:?}");
    let ports: Vec<u16> = said[2..].iter().map(|port| port.parse().unwrap()).collect();
    let tried = |seconds: u64, client: &mut Running| {
        let at = [
            std::net::SocketAddr::from(([127, 0, 0, 9], ports[0])),
            std::net::SocketAddr::from((std::net::Ipv6Addr::LOCALHOST, ports[1])),
        ];
        let calls = at.map(|at| {
            std::thread::spawn(move || {
                let wait = Duration::from_secs(2 * seconds);
                let _ = std::net::TcpStream::connect_timeout(&at, wait);
            })
        });
        client.send(&format!("{seconds}\n"));
        let came = client.line();
        calls.into_iter().for_each(|call| call.join().unwrap());
        came
    };
    assert_eq!(tried(1, &mut client), "EPERM EPERM silent silent");
    for receiver in &receivers {
        assert_eq!(heard(receiver), 0);
    }
    stand.lift();
    // The kernel may take the programs away a moment later.
    eventually("it is free", || {
        tried(5, &mut client) == "ok ok served served"
    });
    client.finish();
}
