//! A fence of its own for each test, processes under it, and the agent's end of their connections.
use std::io::{BufRead, BufReader, Read};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};
use tollgate::kernel::{Error, Fence, Kernel, Openings, Options, SocketName, WorkloadAccount};

/// Longest wait for anything that should happen at once.
pub const PATIENCE: Duration = Duration::from_secs(10);

/// A name that no other test, process or machine user has.
pub fn unique() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    format!(
        "tollgate-test-{}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// A cgroup that removes itself and its children.
pub struct Cgroup {
    pub root: PathBuf,
    pub name: PathBuf,
}

impl Cgroup {
    pub fn new(root: &Path, name: impl AsRef<Path>) -> Self {
        let cgroup = Self {
            root: root.to_owned(),
            name: name.as_ref().to_owned(),
        };
        std::fs::create_dir_all(cgroup.path()).expect("make a cgroup");
        cgroup
    }
    pub fn path(&self) -> PathBuf {
        self.root.join(&self.name)
    }
    pub fn child(&self, name: &str) -> Self {
        Self::new(&self.root, self.name.join(name))
    }
    pub fn id(&self) -> u64 {
        use std::os::unix::fs::MetadataExt;
        self.path().metadata().expect("stat").ino()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let deadline = Instant::now() + PATIENCE;
        // Busy until its last process is reaped.
        while std::fs::remove_dir(self.path()).is_err_and(|e| e.raw_os_error() == Some(libc::EBUSY))
        {
            if Instant::now() > deadline {
                break;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
    }
}

/// A fence with a governed cgroup `tollgate-test-…`, which is also the workload's name, and listeners
/// that are admitted.
pub struct Stand {
    pub fence: Option<Fence>,
    pub cgroup: Cgroup,
    /// Of earlier workloads.
    pub earlier: Vec<Cgroup>,
    pub options: Options,
    pub agent4: TcpListener,
    pub agent6: TcpListener,
    /// Asked for names, at the same ports.
    pub dns4: UdpSocket,
    pub dns6: UdpSocket,
}

impl Stand {
    pub fn new() -> Self {
        let stand = Self::not_admitted();
        let fence = stand.fence();
        fence
            .govern(&stand.cgroup.name, stand.workload())
            .expect("govern");
        stand.admit();
        stand
    }

    /// The same, whose cgroup is not governed: no cgroup ever was since its maps were made.
    pub fn governs_nothing() -> Self {
        let stand = Self::not_admitted();
        stand.admit();
        stand
    }

    fn not_admitted() -> Self {
        let name = unique();
        let options = Options {
            pin_dir: Path::new("/sys/fs/bpf").join(&name),
            cgroup_root: None,
            counts: true,
        };
        let fence = open(&options);
        let cgroup = Cgroup::new(fence.cgroup_root(), &name);
        let ((agent4, dns4), (agent6, dns6)) = both_families();
        Self {
            fence: Some(fence),
            cgroup,
            earlier: Vec::new(),
            options,
            agent4,
            agent6,
            dns4,
            dns6,
        }
    }

    /// Listens at other ports.
    pub fn listen(&mut self) {
        let ((agent4, dns4), (agent6, dns6)) = both_families();
        (self.agent4, self.dns4, self.agent6, self.dns6) = (agent4, dns4, agent6, dns6);
        self.admit();
    }

    pub fn admit(&self) {
        let (port4, port6) = (port(&self.agent4), port(&self.agent6));
        let sockets = [
            self.agent4.as_fd(),
            self.agent6.as_fd(),
            self.dns4.as_fd(),
            self.dns6.as_fd(),
        ];
        self.fence()
            .admit(&sockets, port4, Some(port6))
            .expect("admit");
    }

    pub fn fence(&self) -> &Fence {
        self.fence.as_ref().expect("the fence stands")
    }

    pub fn workload(&self) -> &str {
        self.cgroup.name.to_str().expect("UTF-8")
    }

    /// Governs another workload in the first one's place, under the same fence: nothing was counted of it yet.
    pub fn renew(&mut self) {
        let name = unique();
        let cgroup = Cgroup::new(&self.cgroup.root, &name);
        self.fence().govern(&cgroup.name, &name).expect("govern");
        self.earlier
            .push(std::mem::replace(&mut self.cgroup, cgroup));
    }

    /// What the kernel counted of the workload.
    pub fn account(&self) -> WorkloadAccount {
        let mut accounts = self.fence().accounts().into_iter();
        let own = accounts.find(|account| account.workload == self.workload());
        own.expect("it has an account")
    }

    /// The listener that connections to `ip` come to.
    pub fn agent(&self, ip: &str) -> &TcpListener {
        match ip.contains(':') && !ip.contains('.') {
            true => &self.agent6,
            false => &self.agent4,
        }
    }

    /// Lets the workload listen on these ports and speak to these Unix sockets; `**` at a name's end is any rest.
    pub fn permit(&self, listen: &[u16], unix: &[&str]) {
        let unix = unix.iter().map(|name| SocketName {
            name: name.trim_end_matches("**").to_owned(),
            any_rest: name.ends_with("**"),
        });
        let openings = Openings {
            workload: self.workload().to_owned(),
            listen: listen.to_vec(),
            unix: unix.collect(),
        };
        self.fence().permit(&[openings]).expect("permit");
    }

    pub fn lift(&mut self) {
        self.fence
            .take()
            .expect("the fence stands")
            .lift()
            .expect("lift");
    }

    /// The agent's next connection over `listener`.
    pub fn accept(&self, listener: &TcpListener) -> TcpStream {
        accept(listener)
    }

    /// Runs a script in the governed cgroup.
    pub fn run(&self, script: &str) -> String {
        python(&self.cgroup, script)
    }
}

impl Drop for Stand {
    fn drop(&mut self) {
        if let Some(fence) = self.fence.take() {
            fence.lift().expect("lift");
        }
    }
}

/// Runs tests each as a workload of its own, all under one fence: where the machine is emulated, to load one takes longer than
/// any of these.
pub fn under_one_fence(tests: &[fn(&Stand)]) {
    let mut stand = Stand::new();
    for test in tests {
        stand.renew();
        test(&stand);
    }
}

/// Opens a fence; says plainly that these tests need root.
pub fn open(options: &Options) -> Fence {
    // Probed once: its types are many, and to read them takes as long as half of the programs.
    static KERNEL: OnceLock<Kernel> = OnceLock::new();
    // This program has no such verb.
    tollgate::kernel::aside::by(harness::agent::program().unwrap());
    let opened = match KERNEL.get() {
        Some(kernel) => Fence::open_on(kernel, options),
        None => Kernel::probe()
            .and_then(|kernel| Fence::open_on(KERNEL.get_or_init(|| kernel), options)),
    };
    match opened {
        Ok(fence) => fence,
        Err(Error::NotPermitted) => {
            panic!("kernel tests need root: run `sudo -E cargo xtask test` or as root")
        }
        Err(error) => panic!("{error}"),
    }
}

pub fn listen(address: &str) -> TcpListener {
    let listener = TcpListener::bind(address).expect("bind");
    listener.set_nonblocking(true).expect("nonblocking");
    listener
}

fn both_families() -> ((TcpListener, UdpSocket), (TcpListener, UdpSocket)) {
    (both("127.0.0.1:0"), both("[::1]:0"))
}

/// A listener and a datagram socket at one port.
pub fn both(address: &str) -> (TcpListener, UdpSocket) {
    for _ in 0..16 {
        let listener = listen(address);
        if let Ok(socket) = UdpSocket::bind(listener.local_addr().expect("bound")) {
            socket.set_nonblocking(true).expect("nonblocking");
            return (listener, socket);
        }
    }
    panic!("no port is free for both");
}

pub fn port(listener: &TcpListener) -> u16 {
    listener.local_addr().expect("bound").port()
}

/// The next connection, within the test's patience.
pub fn accept(listener: &TcpListener) -> TcpStream {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match listener.accept() {
            Ok((stream, _)) => {
                stream.set_nonblocking(false).expect("blocking");
                stream.set_read_timeout(Some(PATIENCE)).expect("timeout");
                return stream;
            }
            Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
                assert!(Instant::now() < deadline, "nobody connected");
                std::thread::sleep(Duration::from_millis(1));
            }
            Err(error) => panic!("accept: {error}"),
        }
    }
}

/// Asserts that nobody is connected to `listener`.
pub fn assert_quiet(listener: &TcpListener) {
    std::thread::sleep(Duration::from_millis(20));
    assert!(listener.accept().is_err(), "somebody connected");
}

/// The kernel's version: its first two numbers.
pub fn release() -> (u32, u32) {
    let release = std::fs::read_to_string("/proc/sys/kernel/osrelease").expect("osrelease");
    let mut numbers = release.split('.').map(|part| part.parse().unwrap_or(0));
    (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0))
}

/// One of the kernel's settings, which is what it was before again when this is dropped.
pub struct Setting {
    path: &'static str,
    before: String,
}

impl Setting {
    pub fn to(path: &'static str, value: &str) -> Self {
        let before = std::fs::read_to_string(path).expect(path);
        std::fs::write(path, value).expect(path);
        Self { path, before }
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = std::fs::write(self.path, self.before.trim());
    }
}

/// A module of the kernel's, which is loaded for as long as this lasts, if it was not before.
pub struct Module(Option<&'static str>);

impl Module {
    /// `None` where the kernel has no such module, or has it built in and says so to nobody.
    pub fn loaded(name: &'static str) -> Option<Self> {
        let was_there = Path::new("/sys/module").join(name).exists();
        let mut modprobe = Command::new("modprobe");
        let loaded = modprobe.args(["-q", name]).status().expect("modprobe");
        loaded.success().then(|| Self((!was_there).then_some(name)))
    }
}

impl Drop for Module {
    fn drop(&mut self) {
        if let Some(name) = self.0 {
            let _ = Command::new("modprobe").args(["-q", "-r", name]).status();
        }
    }
}

/// What every script starts with: `tcp(ip, port)` connects and tells the error's name or `ok`.
const PRELUDE: &str = r"
import errno, os, socket, sys, time
def family(ip): return socket.AF_INET6 if ':' in ip else socket.AF_INET
def name(call):
    try:
        call(); return 'ok'
    except OSError as e:
        return errno.errorcode.get(e.errno, str(e.errno))
def tcp(ip, port):
    s = socket.socket(family(ip), socket.SOCK_STREAM); s.settimeout(5)
    return s, name(lambda: s.connect((ip, port)))
def enter(path):
    with open(path + '/cgroup.procs', 'w') as f: f.write(str(os.getpid()))
def say(*words): print(*words, flush=True)
";

fn script(script: &str) -> Command {
    let mut command = Command::new("python3");
    // Nothing of the site is needed, and to look for it takes a fifth of the start.
    command.args(["-IS", "-c", &format!("{PRELUDE}\n{script}")]);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    command
}

/// A process that waits for its input to close, and is killed if the test ends before it does.
pub struct Running {
    child: Child,
    output: BufReader<std::process::ChildStdout>,
}

impl Running {
    /// In a cgroup.
    pub fn start(cgroup: &Cgroup, body: &str) -> Self {
        Self::start_outside(&format!(
            "enter({:?})\n{body}",
            cgroup.path().to_str().expect("UTF-8")
        ))
    }

    /// In the test's own cgroup.
    pub fn start_outside(body: &str) -> Self {
        let mut child = script(body).spawn().expect("start python3");
        let output = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, output }
    }

    /// Its next line.
    pub fn line(&mut self) -> String {
        let mut line = String::new();
        self.output.read_line(&mut line).expect("read");
        line.trim().to_owned()
    }

    /// Sends it something.
    pub fn send(&mut self, text: &str) {
        use std::io::Write;
        let input = self.child.stdin.as_mut().expect("piped");
        input.write_all(text.as_bytes()).expect("write");
        input.flush().expect("flush");
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Lets it go on to its end; returns the rest of what it says.
    pub fn finish(mut self) -> String {
        drop(self.child.stdin.take());
        let mut rest = String::new();
        self.output.read_to_string(&mut rest).expect("read");
        assert!(
            self.child.wait().expect("wait").success(),
            "the script failed"
        );
        rest.trim().to_owned()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Runs a script in a cgroup to its end.
pub fn python(cgroup: &Cgroup, body: &str) -> String {
    Running::start(cgroup, body).finish()
}

/// Runs a script in the test's own cgroup to its end.
pub fn python_outside(body: &str) -> String {
    Running::start_outside(body).finish()
}

/// Waits until `check` holds.
pub fn eventually(what: &str, mut check: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !check() {
        assert!(Instant::now() < deadline, "never happened: {what}");
        std::thread::sleep(Duration::from_millis(2));
    }
}

/// A server of somebody else's, where connections go that nobody steers.
pub struct Elsewhere {
    pub listener: TcpListener,
    pub address: SocketAddr,
}

impl Elsewhere {
    pub fn new(ip: &str) -> Self {
        let listener = listen(&if ip.contains(':') {
            format!("[{ip}]:0")
        } else {
            format!("{ip}:0")
        });
        let address = listener.local_addr().expect("bound");
        Self { listener, address }
    }
}

/// Fills one of the fence's maps with entries of nobody's until the kernel takes no more. By one call
/// (BPF_MAP_UPDATE_BATCH): by bpftool it takes ten seconds.
pub fn fill(stand: &Stand, map: &str) {
    let pin = stand.options.pin_dir.join("maps").join(map);
    let mut show = Command::new("bpftool");
    show.args(["-j", "map", "show", "pinned"]).arg(&pin);
    let shown = show.output().expect("bpftool").stdout;
    let shown: serde_json::Value = serde_json::from_slice(&shown).expect("JSON");
    let said = python_outside(&format!(
        "import ctypes, struct
libc = ctypes.CDLL(None, use_errno=True)
def bpf(command, *attributes):
    attributes = ctypes.create_string_buffer(struct.pack(*attributes))
    return libc.syscall(321, command, attributes, len(attributes))
pin = ctypes.create_string_buffer({:?}.encode())
fd = bpf(7, '=QII', ctypes.addressof(pin), 0, 0)
count = {max} + 1
# The last byte keeps them apart from what is there.
keys = b''.join(struct.pack('=I', n) + b'\\xff' * ({key} - 4) for n in range(count))
values = bytes({value} * count)
address = lambda of: ctypes.cast(of, ctypes.c_void_p).value
done = bpf(26, '=QQQQIIQQ', 0, 0, address(keys), address(values), count, fd, 0, 0)
say(done, errno.errorcode.get(ctypes.get_errno()))",
        pin.to_str().expect("UTF-8"),
        max = shown["max_entries"],
        key = shown["bytes_key"],
        value = shown["bytes_value"],
    ));
    assert_eq!(said, "-1 E2BIG", "{map} is not full");
}

/// What `run` connects comes to the server, now that nothing steers it: a lift is over a moment later on newer kernels.
pub fn reaches(server: &Elsewhere, mut run: impl FnMut() -> String) {
    eventually("it is the fence that steers", || {
        run();
        server.listener.accept().is_ok()
    });
}

/// Such servers over both families, and scripts that connect to them.
pub fn servers() -> [(Elsewhere, String); 2] {
    ["127.0.0.1", "::1"].map(|ip| {
        let server = Elsewhere::new(ip);
        let script = format!("say(tcp('{ip}', {})[1])", server.address.port());
        (server, script)
    })
}

/// Were these connections ended? Who has one is told `ECONNABORTED`, or before Linux 6.9 that it has no peer any more.
pub fn are_ended(told: &str) -> bool {
    let mut all = told.split(' ');
    all.all(|one| matches!(one, "ECONNABORTED" | "ECONNRESET"))
}
