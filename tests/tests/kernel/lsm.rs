//! The second fence. Where the kernel runs no BPF LSM programs, what is tested is that the fence says so.
use crate::refuse::counted;
use crate::support::*;
use std::net::TcpListener;
use std::time::Duration;
use tollgate::kernel::{Before, Fate};

/// Layers of BPF LSM programs.
pub const LAYERS: [&str; 9] = [
    "socket_create",
    "ptrace_access_check",
    "task_kill",
    "file_receive",
    "socket_sendmsg",
    "bpf",
    "inode_unlink",
    "inode_rename",
    "sb_umount",
];

/// Those that stand in for the hooks on Unix sockets, where the kernel has none: elsewhere they are not there.
pub const UNIX_LAYERS: [&str; 2] = ["unix_stream_connect", "unix_may_send"];

/// What the script prints in the governed cgroup, then with the hook's program gone, and how often it was refused for
/// `reason` before. `None`: this kernel has no second fence, and the fence says so of all of it.
pub fn with_and_without(layer: &str, reason: &str, script: &str) -> Option<[String; 2]> {
    let stand = Stand::new();
    let found = crate::refuse::layer(stand.fence(), layer);
    if !found.enforcing {
        assert_all_missing(&stand);
        return None;
    }
    let with = stand.run(script);
    assert!(counted(&stand)[reason] > 0, "{reason}: {with}");
    let told = crate::refuse::refusals(stand.fence(), 1).remove(0);
    assert_eq!(told.reason, reason, "{told:?}");
    std::fs::remove_file(stand.options.pin_dir.join("links").join(layer)).unwrap();
    Some([with, stand.run(script)])
}

/// None of it is there, and the fence says so and what that leaves open.
fn assert_all_missing(stand: &Stand) {
    for name in LAYERS {
        let layer = crate::refuse::layer(stand.fence(), name);
        assert!(!layer.enforcing && !layer.needed, "{layer:?}");
        assert!(layer.why.unwrap().contains("security modules"), "{name}");
        assert!(!layer.leaves_open.is_empty(), "{name}");
    }
}

/// Over each family, as a workload of its own, with all programs there.
fn over_both(test: impl Fn(&Stand, &str)) {
    let mut stand = Stand::new();
    for ip in ["127.0.0.1", "::1"] {
        stand.renew();
        stand.fence().mend();
        test(&stand, ip);
    }
}

#[test]
fn nobody_looks_into_a_process_that_is_not_the_workloads() {
    let outside = Running::start_outside("say('here'); sys.stdin.readline()");
    let script = format!(
        "import ctypes
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *words):
    r = libc.syscall(number, *[ctypes.c_long(word) for word in words])
    if r < 0: raise OSError(ctypes.get_errno(), '')
    return r
def take(process):
    pidfd = call(434, process, 0)
    os.close(call(438, pidfd, 0, 0))
# Of an address where nothing is: what is asked first is whether one may.
def look(number):
    vector = (ctypes.c_long * 2)(ctypes.addressof(ctypes.create_string_buffer(8)), 8)
    far = (ctypes.c_long * 2)(1, 8)
    return lambda process: call(number, process, ctypes.addressof(vector), 1, ctypes.addressof(far), 1, 0)
def trace(process):
    call(101, 16, process, 0, 0)
    os.waitpid(process, 0x40000000)
    call(101, 17, process, 0, 0)
child = os.fork()
if child == 0:
    time.sleep(60); os._exit(0)
for process in {0}, child:
    # By its descriptors, its memory both ways, its registers.
    say(*[name(lambda: way(process)) for way in (take, look(310), look(311), trace)])
os.kill(child, 9); os.wait()",
        outside.pid()
    );
    if let Some([with, without]) = with_and_without("ptrace_access_check", "trace", &script) {
        let free = "ok EFAULT EFAULT ok";
        assert_eq!(with, format!("EPERM EPERM EPERM EPERM\n{free}"));
        assert_eq!(without, format!("{free}\n{free}"));
    }
}

#[test]
fn nobody_signals_the_agent() {
    // Ignored by whoever does not wait for it.
    let script = format!(
        "def signal(number): return name(lambda: os.kill({}, number))
say(signal(0), signal(23), name(lambda: os.kill(os.getpid(), 23)))",
        std::process::id()
    );
    if let Some([with, without]) = with_and_without("task_kill", "signal", &script) {
        assert_eq!(with, "ok EPERM ok");
        assert_eq!(without, "ok ok ok");
    }
}

/// A socket that is passed: connected by somebody who is not governed, connected by nobody, and a file.
fn passed(stand: &Stand, ip: &str) {
    let server = TcpListener::bind((ip, 0)).unwrap();
    let port = server.local_addr().unwrap().port();
    let script = |cgroup: &str| {
        format!(
            "here, there = socket.socketpair()
def receive(s):
    data, fds, flags, _ = socket.recv_fds(s, 1, 1)
    return len(fds)
if os.fork() == 0:
    connected = socket.create_connection(('{ip}', {port}))
    for one in [connected, socket.socket(), open('/dev/null'), connected]:
        socket.send_fds(there, [b'x'], [one.fileno()])
        there.recv(1)
    os._exit(0)
enter('{cgroup}')
for _ in range(4):
    say(receive(here)); here.send(b'y')
os.wait()"
        )
    };
    let path = stand.cgroup.path();
    let script = script(path.to_str().unwrap());
    if !crate::refuse::layer(stand.fence(), "file_receive").enforcing {
        // Then they are received, which is what is left open.
        assert_all_missing(stand);
        assert_eq!(python_outside(&script), "1\n1\n1\n1", "{ip}");
        return;
    }
    assert_eq!(python_outside(&script), "0\n1\n1\n0", "{ip}");
    assert_eq!(counted(stand)["passed"], 2);
    std::fs::remove_file(stand.options.pin_dir.join("links/file_receive")).unwrap();
    assert_eq!(python_outside(&script), "1\n1\n1\n1", "{ip}");
}

#[test]
fn connected_sockets_of_others_are_not_received() {
    over_both(passed);
}

/// What `script`, which starts outside, says at first, and once the program that looks at what is sent is gone; whether it
/// was there. Where it never was, what it is for is open from the start, and the fence says so.
fn sends(stand: &Stand, script: &str) -> (bool, [String; 2]) {
    let there = crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing;
    let mut process = Running::start_outside(script);
    assert_eq!(process.line(), "ok ok ok", "they may be its own");
    let first = process.line();
    if there {
        nobody_looks_at_what_is_sent(stand);
        std::thread::sleep(harness::at_most(Duration::from_millis(100)));
    } else {
        assert_all_missing(stand);
    }
    process.send("go on\n");
    (there, [first, process.line()])
}

/// What scripts here begin with: `become` goes on with `code` as another program, which has `sockets` as `others`.
const SENDS: &str = "
def tried(): return [name(lambda: s.send(b'x')) for s in others]
def become(sockets, code):
    fds = [s.fileno() for s in sockets]
    for fd in fds: os.set_inheritable(fd, True)
    os.environ['BECOME'] = 'others = [socket.socket(fileno=fd) for fd in %r]\\n%s' % (fds, code)
    os.execv(sys.executable, sys.orig_argv)
if 'BECOME' in os.environ:
    exec(os.environ.pop('BECOME')); sys.exit()
";

/// A connection, a datagram socket and a raw one, which a parent had that is not governed.
#[test]
fn nothing_is_sent_over_inherited_sockets() {
    over_both(|stand, ip| {
        let server = Elsewhere::new(ip);
        let datagrams = std::net::UdpSocket::bind((ip, 0)).unwrap();
        datagrams.set_nonblocking(true).unwrap();
        let script = format!(
            "{SENDS}
others = [socket.create_connection(('{ip}', {})), socket.socket(family('{ip}'), socket.SOCK_DGRAM), socket.socket(family('{ip}'), socket.SOCK_RAW, 253)]
others[1].connect(('{ip}', {})); others[2].connect(('{ip}', 0))
if os.fork() == 0:
    enter({:?})
    say(*tried())
    become(others, 'say(*tried()); sys.stdin.readline(); say(*tried())')
os.wait()",
            server.address.port(),
            datagrams.local_addr().unwrap().port(),
            stand.cgroup.path()
        );
        let (there, [with, without]) = sends(stand, &script);
        if there {
            assert_eq!(with, "EPERM EPERM EPERM", "{ip}");
            assert_eq!(counted(stand)["passed"], 3);
            let told = crate::refuse::refusals(stand.fence(), 3);
            assert_eq!(told[0].destination, Some(server.address));
            let protocols: Vec<&str> = told.iter().map(|one| &*one.protocol).collect();
            assert_eq!(protocols, ["tcp", "udp", "253"]);
        } else {
            assert_eq!(with, "ok ok ok", "{ip}: said to be open");
        }
        assert_eq!(without, "ok ok ok", "{ip}: the cause is gone");
        // What was sent, and nothing that was refused.
        let arrived = if there { 2 } else { 3 };
        let mut heard = [0; 8];
        let mut stream = accept(&server.listener);
        assert_eq!(
            std::io::Read::read(&mut stream, &mut heard).unwrap(),
            arrived
        );
        let datagrams = std::iter::from_fn(|| datagrams.recv(&mut heard).ok());
        assert_eq!(datagrams.count(), arrived);
    });
}

/// Told once for each socket, and counted each time.
#[test]
fn what_is_sent_again_is_not_told_again() {
    over_both(|stand, ip| {
        let server = TcpListener::bind((ip, 0)).unwrap();
        if !crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing {
            return assert_all_missing(stand);
        }
        let script = format!(
            "{SENDS}
s = socket.create_connection(('{ip}', {})); enter({:?})
become([s], '''s = others[0]
say({{x for _ in range(50) for x in tried()}}, name(lambda: os.write(s.fileno(), b'x')), name(lambda: s.sendmsg([b'x'])))''')",
            server.local_addr().unwrap().port(),
            stand.cgroup.path()
        );
        assert_eq!(python_outside(&script), "{'EPERM'} EPERM EPERM", "{ip}");
        assert_eq!(counted(stand)["passed"], 52);
        let told = crate::refuse::events(stand.fence(), |events| !events.is_empty());
        assert_eq!(told.len(), 1, "{told:?}");
        nobody_looks_at_what_is_sent(stand);
        eventually("it is the program that keeps it", || {
            python_outside(&script) == "{'ok'} ok ok"
        });
    });
}

/// The program that looks at what is sent goes; the kernel takes a moment.
fn nobody_looks_at_what_is_sent(stand: &Stand) {
    std::fs::remove_file(stand.options.pin_dir.join("links/socket_sendmsg")).unwrap();
}

/// What a workload makes itself it sends over: in its cgroup, and recognised by what its process was before.
#[test]
fn what_a_workload_makes_itself_is_its_own() {
    let stand = Stand::new();
    let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
    for leaves in [false, true] {
        for (ip, agent) in [
            ("198.51.100.7", &stand.agent4),
            ("2001:db8::7", &stand.agent6),
        ] {
            let script = format!(
                "made = socket.socket(family('{ip}'), socket.SOCK_STREAM); asking = socket.socket(family('{ip}'), socket.SOCK_DGRAM)
enter({:?})
if {}: enter({:?})
before, after = made, socket.socket(family('{ip}'), socket.SOCK_STREAM)
def used(s): s.settimeout(5); s.connect(('{ip}', 80)); s.sendall(b'x')
def asks(s): s.connect(('{ip}', 53)); s.send(b'query')
def fast(s): s.sendto(b'x', 0x20000000, ('{ip}', 80))
say(name(lambda: used(before)), name(lambda: used(after)), name(lambda: asks(asking)), name(lambda: asks(socket.socket(family('{ip}'), socket.SOCK_DGRAM))), name(lambda: fast(socket.socket(family('{ip}'), socket.SOCK_STREAM))))
if os.fork() == 0:
    say(name(lambda: after.sendall(b'y'))); os._exit(0)
os.wait()",
                stand.cgroup.path(),
                if leaves { "True" } else { "False" },
                outside.path(),
            );
            assert_eq!(
                python_outside(&script),
                "ok ok ok ok ok\nok",
                "{ip} {leaves}"
            );
            for _ in 0..3 {
                accept(agent);
            }
        }
    }
    assert_eq!(counted(&stand).get("passed"), None);
}

/// Connections that the workload accepts are its own to serve where its policy has it listen, whoever made the listener. A datagram
/// socket that it was handed is not, at the same port.
#[test]
fn what_is_accepted_is_sent_over_where_policy_has_the_workload_listen() {
    over_both(|stand, ip| {
        let there = crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing;
        let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
        let script = format!(
            "{SENDS}
def listener(): return socket.create_server(('{ip}', 0), family=family('{ip}'))
given, other = listener(), listener()
datagrams = socket.socket(family('{ip}'), socket.SOCK_DGRAM)
datagrams.bind(given.getsockname()); datagrams.connect(given.getsockname())
enter({:?})
own = listener()
enter({:?})
left = listener()
all = [given, own, left, other]
say(*[s.getsockname()[1] for s in all])
become(all + [datagrams], '''sys.stdin.readline()
others = [s if s.type == socket.SOCK_DGRAM else s.accept()[0] for s in others]
say(*tried())
for line in sys.stdin: say(*tried())''')",
            stand.cgroup.path(),
            outside.path(),
        );
        let mut process = Running::start_outside(&script);
        let ports = process.line();
        let ports: Vec<u16> = ports.split(' ').map(|port| port.parse().unwrap()).collect();
        stand.permit(&ports[..3], &[]);
        process.send("\n");
        let mut connected = Vec::new();
        for port in ports {
            connected.push(std::net::TcpStream::connect((ip, port)).unwrap());
        }
        let other = if there { "EPERM" } else { "ok" };
        assert_eq!(process.line(), format!("ok ok ok {other} {other}"), "{ip}");
        if there {
            nobody_looks_at_what_is_sent(stand);
            eventually("it is the program that keeps it", || {
                process.send("\n");
                process.line() == "ok ok ok ok ok"
            });
        }
    });
}

/// What ran before it was governed goes on with what it has, if policy lets it; as another program, only with that.
#[test]
fn what_goes_on_from_before_is_sent_over() {
    over_both(|stand, ip| {
        let server = Elsewhere::new(ip);
        let there = crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing;
        let later = Cgroup::new(stand.fence().cgroup_root(), unique());
        let mut process = Running::start_outside(&format!(
            "{SENDS}
others = [socket.create_connection(('{ip}', {}))]; enter({:?})
say('up')
sys.stdin.readline(); say(*tried())
sys.stdin.readline(); become(others, 'say(*tried())\\nfor line in sys.stdin: say(*tried())')",
            server.address.port(),
            later.path()
        ));
        assert_eq!(process.line(), "up");
        let fares = |process: &mut Running| {
            process.send("\n");
            process.line()
        };
        let newly = stand.fence().govern(&later.name, "later").unwrap().newly;
        assert_eq!(newly, [process.pid()]);
        assert_eq!(fares(&mut process), "ok", "{ip}: nobody has looked yet");
        let keep = |_: &str| {
            Some(Before {
                fate: Fate::Keep,
                listen: Vec::new(),
            })
        };
        let found = stand.fence().end_earlier(&newly, &keep).found;
        assert_eq!(found.len(), 1, "{found:?}");
        assert_eq!(fares(&mut process), "ok", "{ip}: it goes on");
        stand.fence().review_kept(&|_: &str| None);
        let expected = if there { "EPERM" } else { "ok" };
        assert_eq!(fares(&mut process), expected, "{ip}: nothing lets it");
        if there {
            nobody_looks_at_what_is_sent(stand);
            eventually("it is the program that keeps it", || {
                fares(&mut process) == "ok"
            });
        }
    });
}

/// Who was governed, and has become another program since, is not as if from before for entering a cgroup again.
#[test]
fn entering_again_changes_nothing() {
    over_both(|stand, ip| {
        let server = TcpListener::bind((ip, 0)).unwrap();
        if !crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing {
            return assert_all_missing(stand);
        }
        let nested = stand.cgroup.child("nested");
        let outside = Cgroup::new(stand.fence().cgroup_root(), unique());
        let path = stand.cgroup.path();
        let script = format!(
            "{SENDS}
s = socket.create_connection(('{ip}', {})); enter({path:?})
become([s], '''enter({:?}); enter({path:?}); say(*tried())
if os.fork() == 0:
    say(*tried()); os._exit(0)
os.wait()
enter({:?}); say(*tried())''')",
            server.local_addr().unwrap().port(),
            nested.path(),
            outside.path(),
        );
        assert_eq!(python_outside(&script), "EPERM\nEPERM\nEPERM", "{ip}");
        nobody_looks_at_what_is_sent(stand);
        eventually("it is the program that keeps it", || {
            python_outside(&script) == "ok\nok\nok"
        });
    });
}

/// Of a disk behind a network the kernel asks in the name of whoever reads a file, over a socket that somebody else made.
fn a_disk_is_read(stand: &Stand, ip: &str) {
    if !crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing {
        return assert_all_missing(stand);
    }
    let loaded = std::process::Command::new("modprobe").arg("nbd").status();
    assert!(loaded.unwrap().success(), "this kernel has such disks");
    let script = format!(
        "{SENDS}
import fcntl, struct
DISK = '/dev/nbd0'
there, here = socket.create_server(('{ip}', 0), family=family('{ip}')), socket.socket(family('{ip}'))
here.connect(there.getsockname())
disk = os.open(DISK, os.O_RDWR)
for call, value in ((0xab01, 4096), (0xab07, 16), (0xab00, here.fileno())): fcntl.ioctl(disk, call, value)
def all_of(s, n):
    read = b''
    while len(read) < n: read += s.recv(n - len(read)) or sys.exit()
    return read
server = os.fork()
if server == 0:
    s = there.accept()[0]
    while True:
        magic, kind, handle, at, length = struct.unpack('>IIQQI', all_of(s, 28))
        if kind == 2: os._exit(0)
        s.sendall(struct.pack('>IIQ', 0x67446698, 0, handle) + b'd' * length)
client = os.fork()
if client == 0:
    fcntl.ioctl(disk, 0xab03); os._exit(0)
reader = os.fork()
if reader == 0:
    enter({:?})
    become([], '''import mmap
page, fd = mmap.mmap(-1, 4096), os.open(\"/dev/nbd0\", os.O_RDONLY | os.O_DIRECT)
for _ in range(200):
    try: read = os.preadv(fd, [page], 0)
    except OSError as error: read = errno.errorcode[error.errno]
    if read == 4096: break
    time.sleep(0.01)
say(read, page[:1])''')
os.waitpid(reader, 0)
fcntl.ioctl(disk, 0xab08); os.waitpid(client, 0); os.waitpid(server, 0)
fcntl.ioctl(disk, 0xab04)",
        stand.cgroup.path()
    );
    assert_eq!(python_outside(&script), "4096 b'd'", "{ip}");
}

#[test]
fn a_disk_behind_a_network_is_read() {
    over_both(a_disk_is_read);
}

/// What the kernel asks of a file server it sends over a socket of its own, in the name of whoever mounts or reads.
fn its_server_is_asked(stand: &Stand, ip: &str) {
    if !crate::refuse::layer(stand.fence(), "socket_sendmsg").enforcing {
        return assert_all_missing(stand);
    }
    let loaded = std::process::Command::new("modprobe").arg("nfsv3").status();
    assert!(loaded.unwrap().success(), "this kernel knows such servers");
    let tcp = if ip.contains(':') { "tcp6" } else { "tcp" };
    let patience = harness::at_most(Duration::from_secs(1)).as_secs();
    let script = format!(
        "{SENDS}
s = socket.create_server(('{ip}', 0), family=family('{ip}')); port = s.getsockname()[1]
child = os.fork()
if child == 0:
    enter({:?})
    become([], '''import ctypes
options = b\"vers=3,proto={tcp},nolock,soft,port=%d,mountport=%d,mountproto={tcp},mountaddr={ip},addr={ip}\"
ctypes.CDLL(None).mount(b\"server:/x\", b\"/mnt\", b\"nfs\", 0, options)''' % (port, port))
c = s.accept()[0]; c.settimeout({patience})
say(len(c.recv(8))); os.kill(child, 9); c.close(); s.close(); os.waitpid(child, 0)",
        stand.cgroup.path()
    );
    assert_eq!(python_outside(&script), "8", "{ip}");
    assert_eq!(counted(stand).get("passed"), None);
}

#[test]
fn a_file_server_is_asked() {
    over_both(its_server_is_asked);
}

#[test]
fn programs_and_maps_are_not_reached() {
    let script = "import ctypes
libc = ctypes.CDLL(None, use_errno=True)
attributes = ctypes.create_string_buffer(128)
def asks():
    # BPF_PROG_GET_NEXT_ID; where there is no program at all it says ENOENT.
    if libc.syscall(321, 11, attributes, 128) < 0 and ctypes.get_errno() != 2: raise OSError(ctypes.get_errno(), '')
say(name(asks))";
    if let Some([with, without]) = with_and_without("bpf", "fence", script) {
        assert_eq!(with, "EPERM");
        assert_eq!(without, "ok");
    }
    assert_eq!(python_outside(script), "ok");
}

/// Pins of the test's own fence, by a governed process that is root as on the host.
#[test]
fn pins_stay() {
    let stand = Stand::new();
    if !crate::refuse::layer(stand.fence(), "inode_unlink").enforcing {
        return assert_all_missing(&stand);
    }
    let links = stand.options.pin_dir.join("links");
    let [first, second] = ["getpeername4", "getpeername6"].map(|name| links.join(name));
    let elsewhere = std::env::temp_dir().join(unique());
    let script = format!(
        "say(name(lambda: os.rename({first:?}, {:?})), name(lambda: os.unlink({second:?})))
with open({elsewhere:?}, 'w') as f: pass
os.rename(f.name, f.name + '2'); os.unlink(f.name + '2')",
        links.join("moved"),
    );
    assert_eq!(stand.run(&script), "EPERM EPERM");
    assert_eq!(counted(&stand)["fence"], 2);
    assert!(first.exists() && second.exists());
    for name in ["inode_rename", "inode_unlink"] {
        std::fs::remove_file(links.join(name)).unwrap();
    }
    eventually("nothing keeps them", || {
        stand.run(&script);
        !first.exists() && !second.exists()
    });
    std::fs::remove_file(links.join("moved")).unwrap();
}

/// In a mount namespace of its own, so that nobody's pins are in danger.
#[test]
fn where_pins_are_stays_mounted() {
    let directory = std::env::temp_dir().join(unique());
    std::fs::create_dir(&directory).unwrap();
    let script = format!(
        "import ctypes
libc = ctypes.CDLL(None, use_errno=True)
at = os.fsencode({directory:?})
assert libc.unshare(0x20000) == 0
assert libc.mount(b'none', b'/', None, 0x44000, None) == 0
def unmounted(kind, flags):
    assert libc.mount(kind, at, kind, 0, None) == 0
    if libc.umount2(at, flags) < 0: raise OSError(ctypes.get_errno(), '')
say(name(lambda: unmounted(b'tmpfs', 0)), name(lambda: unmounted(b'bpf', 0)), name(lambda: unmounted(b'bpf', 2)))"
    );
    if let Some([with, without]) = with_and_without("sb_umount", "fence", &script) {
        assert_eq!(with, "ok EPERM EPERM");
        assert_eq!(without, "ok ok ok");
    }
    assert_eq!(python_outside(&script), "ok ok ok");
    std::fs::remove_dir(&directory).unwrap();
}
