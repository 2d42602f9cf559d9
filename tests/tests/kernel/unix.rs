//! Unix sockets: a workload speaks to those that its policy names.
use crate::refuse::{counted, refusals};
use crate::support::*;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram, UnixListener};
use std::path::PathBuf;
use tollgate::kernel::Layer;

/// A local daemon: a stream socket, a datagram socket and an abstract one.
struct Daemon {
    directory: PathBuf,
    name: String,
    stream: UnixListener,
    datagram: UnixDatagram,
    hidden: UnixListener,
}

impl Daemon {
    fn new() -> Self {
        let name = unique();
        let directory = std::env::temp_dir().join(&name);
        std::fs::create_dir(&directory).unwrap();
        let stream = UnixListener::bind(directory.join("stream")).unwrap();
        let datagram = UnixDatagram::bind(directory.join("datagram")).unwrap();
        let hidden = SocketAddr::from_abstract_name(&name).unwrap();
        let hidden = UnixListener::bind_addr(&hidden).unwrap();
        stream.set_nonblocking(true).unwrap();
        hidden.set_nonblocking(true).unwrap();
        datagram.set_nonblocking(true).unwrap();
        Self {
            directory,
            name,
            stream,
            datagram,
            hidden,
        }
    }

    fn path(&self, name: &str) -> String {
        self.directory.join(name).to_str().unwrap().to_owned()
    }

    /// Connections and datagrams that arrived since it was last asked.
    fn heard(&self) -> usize {
        let streams = std::iter::from_fn(|| self.stream.accept().ok()).count();
        let hidden = std::iter::from_fn(|| self.hidden.accept().ok()).count();
        let datagrams = std::iter::from_fn(|| self.datagram.recv(&mut [0; 8]).ok()).count();
        streams + hidden + datagrams
    }

    /// Each way to it, one word each.
    fn tried(&self) -> String {
        format!(
            "
def unix(kind): return socket.socket(socket.AF_UNIX, kind)
stream, datagram, hidden = {:?}, {:?}, '\\0{}'
def linked():
    s = unix(socket.SOCK_DGRAM); s.connect(datagram); s.send(b'x')
def ways():
    return ' '.join(map(name, [
        lambda: unix(socket.SOCK_STREAM).connect(stream),
        lambda: unix(socket.SOCK_STREAM).connect(hidden),
        lambda: unix(socket.SOCK_DGRAM).sendto(b'x', datagram),
        lambda: unix(socket.SOCK_DGRAM).sendmsg([b'x'], [], 0, datagram),
        linked]))
",
            self.path("stream"),
            self.path("datagram"),
            self.name,
        )
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

/// The layers that hold Unix sockets: the kernel's own hooks, or what stands in for them.
const LAYERS: [&str; 2] = ["connect_unix", "sendmsg_unix"];

/// By what name is judged: the one that is asked for, or the one that the socket was bound to.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Judged {
    Asked,
    Bound,
}

/// Where the kernel has no such hooks, the second fence stands in; where there is none either, the fence says so, and that is
/// all it can do.
fn judged(stand: &Stand) -> Option<Judged> {
    let layers = stand.fence().layers();
    let found = |names: [&str; 2]| names.map(|name| layers.iter().find(|layer| layer.name == name));
    let (own, second) = (found(LAYERS), found(crate::lsm::UNIX_LAYERS));
    let in_force =
        |pair: &[Option<&Layer>; 2]| pair.iter().flatten().filter(|l| l.enforcing).count();
    match (in_force(&own), in_force(&second)) {
        (2, 0) => {
            assert!(second.iter().all(Option::is_none), "nothing stands in");
            return Some(Judged::Asked);
        }
        (0, 2) => {
            assert!(own.iter().all(Option::is_none), "they are stood in for");
            assert!(second.iter().flatten().all(|layer| layer.needed));
            return Some(Judged::Bound);
        }
        found => assert_eq!(found, (0, 0), "half of it: {layers:#?}"),
    }
    assert!(release() < (6, 7), "it has them: {layers:#?}");
    for (layer, part) in own
        .iter()
        .flatten()
        .zip(["6.7"; 2])
        .chain(second.iter().flatten().zip(["security modules"; 2]))
    {
        let why = layer.why.as_deref().unwrap_or_default();
        assert!(why.contains(part), "{}: {why}", layer.name);
    }
    None
}

fn is_held(stand: &Stand) -> bool {
    judged(stand).is_some()
}

#[test]
fn local_daemons_are_not_spoken_to() {
    let mut stand = Stand::new();
    let daemon = Daemon::new();
    let script = format!("{}say(ways())", daemon.tried());
    if !is_held(&stand) {
        assert_eq!(stand.run(&script), ["ok"; 5].join(" "));
        return;
    }
    assert_eq!(stand.run(&script), ["EPERM"; 5].join(" "));
    assert_eq!(daemon.heard(), 0);
    assert_eq!(counted(&stand)["unix"], 5);
    let told = refusals(stand.fence(), 5);
    assert_eq!(told[0].name.as_deref(), Some(&*daemon.path("stream")));
    assert_eq!(told[1].name, Some(format!("@{}", daemon.name)));
    for refusal in &told {
        assert_eq!((refusal.reason, &*refusal.protocol), ("unix", "unix"));
        assert!(refusal.process.exe.contains("python3"));
        assert!(refusal.detail.contains(refusal.name.as_deref().unwrap()));
    }
    let outside = python_outside(&script);
    assert_eq!(outside, ["ok"; 5].join(" "), "nobody else is held");
    assert_eq!(daemon.heard(), 5);
    stand.lift();
    assert_eq!(stand.run(&script), ["ok"; 5].join(" "));
}

fn sockets_that_policy_names_are_spoken_to(stand: &Stand) {
    let daemon = Daemon::new();
    let script = format!("{}say(ways())", daemon.tried());
    if !is_held(stand) {
        return;
    }
    let (stream, datagram) = (daemon.path("stream"), daemon.path("datagram"));
    let hidden = format!("@{}", daemon.name);
    let below = format!("{}/**", daemon.directory.display());
    for (names, expected) in [
        (vec![&*stream], "ok EPERM EPERM EPERM EPERM"),
        (vec![&*hidden], "EPERM ok EPERM EPERM EPERM"),
        (vec![&*datagram], "EPERM EPERM ok ok ok"),
        (vec![&*below], "ok EPERM ok ok ok"),
        (vec![&*hidden, &*below], "ok ok ok ok ok"),
        (vec!["/run/**", "@other"], "EPERM EPERM EPERM EPERM EPERM"),
    ] {
        stand.permit(&[], &names);
        assert_eq!(stand.run(&script), expected, "{names:?}");
    }
    let near = [&stream[..stream.len() - 1], &hidden[..hidden.len() - 1]];
    stand.permit(&[], &near);
    assert_eq!(
        stand.run(&script),
        ["EPERM"; 5].join(" "),
        "a whole name is no beginning"
    );
}

/// The name counts as the host's administrator meant it.
fn names_that_lead_elsewhere_are_refused(stand: &Stand) {
    let daemon = Daemon::new();
    if !is_held(stand) {
        return;
    }
    let directory = daemon.directory.display();
    stand.permit(&[], &[&format!("{directory}/inner/**"), "@allowed"]);
    let script = format!(
        "{}
def to(path): return name(lambda: unix(socket.SOCK_STREAM).connect(path))
os.mkdir('{directory}/inner')
say(to('{directory}/inner/../stream'), to('\\0allowed\\0' + 'x'), to('{directory}//inner/../../x'))
os.chdir('{directory}'); say(to('stream'), to('./stream'))
os.link('{directory}/stream', '{directory}/inner/mine')
say(to('{directory}/inner/mine'))
import ctypes
assert ctypes.CDLL(None).unshare(0x10000000) == 0
say(to('{directory}/inner/mine'))",
        daemon.tried()
    );
    // What is judged by the name that it was bound to has been looked up, and leads nowhere.
    let expected = match judged(stand) {
        Some(Judged::Bound) => "EPERM ECONNREFUSED ENOENT\nEPERM EPERM\nEPERM\nEPERM",
        _ => "EPERM EPERM EPERM\nEPERM EPERM\nok\nEPERM",
    };
    assert_eq!(
        stand.run(&script),
        expected,
        "and who has a user namespace of its own can make any name mean anything"
    );
}

/// An abstract name that policy allows is no path that is written like it: whoever makes a link of that name would reach any
/// socket by it.
#[test]
fn a_path_is_not_taken_for_an_abstract_name() {
    let mut stand = Stand::new();
    let daemon = Daemon::new();
    let abstract_name = format!("@{}", daemon.name);
    let [datagram, own, below] =
        ["datagram", "own", "below"].map(|part| format!("{abstract_name}-{part}"));
    for (name, to) in [
        (&abstract_name, "stream"),
        (&datagram, "datagram"),
        (&below, "."),
    ] {
        std::os::unix::fs::symlink(to, daemon.path(name)).unwrap();
    }
    stand.permit(
        &[],
        &[&abstract_name, &datagram, &own, &format!("{below}/**")],
    );
    let script = format!(
        "{}
os.chdir({:?}); at = {abstract_name:?}
if os.path.lexists(at + '-own'): os.unlink(at + '-own')
own = unix(socket.SOCK_STREAM); own.bind(at + '-own'); own.listen()
def stream_to(to): return name(lambda: unix(socket.SOCK_STREAM).connect(to))
def linked_to(to): return name(lambda: unix(socket.SOCK_DGRAM).connect(to))
say(stream_to(hidden), stream_to(hidden + '-below/none'))
others = [unix(socket.SOCK_STREAM) for _ in range(2)]
for other, more in zip(others, ('\\0', '\\0\\0')): other.bind(hidden + more); other.listen()
say(stream_to(hidden + '\\0'), stream_to(hidden + '\\0\\0'))
say(stream_to(at), stream_to(at + '-below/stream'), stream_to(at + '-own'), linked_to(at + '-below/datagram'),
    name(lambda: unix(socket.SOCK_DGRAM).sendto(b'x', at + '-datagram')))",
        daemon.tried(),
        daemon.directory,
    );
    if is_held(&stand) {
        assert_eq!(
            stand.run(&script),
            "ok ECONNREFUSED\nEPERM EPERM\nEPERM EPERM EPERM EPERM EPERM",
            "a name that ends in NUL is another one"
        );
        assert_eq!(daemon.heard(), 1, "the abstract one");
        let told = refusals(stand.fence(), 7);
        let expected = match judged(&stand) {
            Some(Judged::Bound) => daemon.path("stream"),
            _ => format!("./{abstract_name}"),
        };
        assert_eq!(told[2].name, Some(expected), "people can tell them apart");
    }
    stand.lift();
    eventually("it is the fence that refuses them", || {
        stand.run(&script) == "ok ECONNREFUSED\nok ok\nok ok ok ok ok"
    });
}

/// They are connected to as streams are, and carry datagrams.
#[test]
fn sequenced_packets_are_held_too() {
    let mut stand = Stand::new();
    let directory = tempfile::tempdir().unwrap();
    let places = format!("[{:?}, '\\0{}']", directory.path().join("daemon"), unique());
    let mut daemon = Running::start_outside(&format!(
        "import select
def bound(place):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.bind(place); s.listen(); return s
daemons = [bound(place) for place in {places}]
say('up')
for line in sys.stdin: say(*[s.accept()[0].recv(8).decode() for s in select.select(daemons, [], [], 0.1)[0]])"
    ));
    assert_eq!(daemon.line(), "up");
    let mut heard = || {
        daemon.send("\n");
        daemon.line()
    };
    let script = format!(
        "def call(place):
    s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET); s.connect(place); s.send(b'heard')
say(*[name(lambda: call(place)) for place in {places}])"
    );
    if is_held(&stand) {
        assert_eq!(stand.run(&script), "EPERM EPERM");
        assert_eq!(heard(), "");
        assert_eq!(counted(&stand)["unix"], 2);
    }
    stand.lift();
    assert_eq!(stand.run(&script), "ok ok");
    assert_eq!(heard(), "heard heard");
}

/// Each of the two holds what it is there for, and once it is gone nothing else does.
fn each_hook_holds_its_own(stand: &Stand) {
    let daemon = Daemon::new();
    let script = format!("{}say(ways())", daemon.tried());
    let Some(judged) = judged(stand) else { return };
    let [streams, datagrams] = match judged {
        Judged::Asked => LAYERS,
        Judged::Bound => crate::lsm::UNIX_LAYERS,
    };
    let links = stand.options.pin_dir.join("links");
    assert_eq!(stand.run(&script), "EPERM EPERM EPERM EPERM EPERM");
    std::fs::remove_file(links.join(datagrams)).unwrap();
    // A hook on the address holds the connect of a datagram socket; what stands in for it holds that with each datagram.
    let without = match judged {
        Judged::Asked => "EPERM EPERM ok ok EPERM",
        Judged::Bound => "EPERM EPERM ok ok ok",
    };
    eventually("datagrams pass", || stand.run(&script) == without);
    std::fs::remove_file(links.join(streams)).unwrap();
    eventually("all of it passes", || {
        stand.run(&script) == "ok ok ok ok ok"
    });
    daemon.heard();
}

/// What was connected before, or by others, is none of the hooks' business, also where they see each datagram.
fn what_is_connected_stays_connected(stand: &Stand) {
    let daemon = Daemon::new();
    let script = format!(
        "{}
s, d = unix(socket.SOCK_STREAM), unix(socket.SOCK_DGRAM)
s.connect(stream); d.connect(datagram); enter({:?})
say(name(lambda: s.send(b'x')), name(lambda: d.send(b'x')))",
        daemon.tried(),
        stand.cgroup.path()
    );
    assert_eq!(python_outside(&script), "ok ok");
    assert_eq!(daemon.heard(), 2);
}

/// Pairs and inherited sockets have no name to be asked for.
fn sockets_without_a_name_work(stand: &Stand) {
    let script = "
a, b = socket.socketpair(); a.send(b'x'); say(b.recv(1))
c, d = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM); c.send(b'y'); say(d.recv(1))
r, w = os.pipe(); socket.send_fds(a, [b'f'], [r]); _, (got,), _, _ = socket.recv_fds(b, 1, 1)
os.write(w, b'z'); say(os.read(got, 1))";
    assert_eq!(stand.run(script), "b'x'\nb'y'\nb'z'");
    assert!(counted(stand).is_empty());
}

/// Resolvers that answer over Unix sockets would look up any name: what the C library asks, and systemd's, on files of the
/// test's own over the host's.
#[test]
fn local_resolvers_are_not_asked() {
    let mut stand = Stand::new();
    let script = format!(
        "
import ctypes, select
libc = ctypes.CDLL(None, use_errno=True)
assert libc.unshare(0x20000) == 0
assert libc.mount(b'none', b'/', None, 0x44000, None) == 0
assert libc.mount(b'tmpfs', b'/run', b'tmpfs', 0, None) == 0
os.environ['RES_OPTIONS'] = 'timeout:1 attempts:1'
resolvers = ['/run/nscd/socket', '/run/systemd/resolve/io.systemd.Resolve']
listeners = []
for path in resolvers:
    os.makedirs(os.path.dirname(path), exist_ok=True)
    s = socket.socket(socket.AF_UNIX); s.bind(path); s.listen(); listeners.append(s)
def heard(governed):
    child = os.fork()
    if child == 0:
        if governed: enter({:?})
        try: socket.getaddrinfo('nowhere.invalid', 80)
        except OSError: pass
        for path in resolvers:
            name(lambda: socket.socket(socket.AF_UNIX).connect(path))
        os._exit(0)
    found, over = [0, 0], False
    while True:
        over = over or os.waitpid(child, os.WNOHANG)[0] != 0
        ready = select.select(listeners, [], [], 0 if over else 0.05)[0]
        for s in ready: s.accept()[0].close(); found[listeners.index(s)] += 1
        if over and not ready: return found
# The first is asked twice, by the C library and by its path; what the former does when it is hung up on is a matter of time.
def asked(governed): return any(n[0] >= 2 and n[1] >= 1 for n in (heard(governed) for _ in range(5)))
say(*heard(True))
say(asked(False))
sys.stdin.readline()
say(asked(True))",
        stand.cgroup.path()
    );
    let held = is_held(&stand);
    let mut process = Running::start_outside(&script);
    let heard = process.line();
    assert_eq!(heard == "0 0", held, "{heard}");
    assert_eq!(process.line(), "True", "who is not governed asks");
    stand.lift();
    process.send("\n");
    assert_eq!(process.line(), "True", "the cause is gone");
}

#[test]
fn sockets_are_spoken_to_as_policy_says() {
    under_one_fence(&[
        sockets_that_policy_names_are_spoken_to,
        names_that_lead_elsewhere_are_refused,
        each_hook_holds_its_own,
        what_is_connected_stays_connected,
        sockets_without_a_name_work,
    ]);
}
