//! Everything that programs do with sockets and that is refused to who is governed: what of it somebody loses.
use anyhow::{Context as _, Result, ensure};
use std::collections::BTreeMap;
use std::io;
use std::process::Output;

/// Does everything that is refused to who is governed, over both families, and says of each what came of it.
const EVERYTHING: &str = r#"
import errno, http.server, os, socket, struct, subprocess, sys, tempfile, threading
DNS, PATIENCE = sys.argv[1], float(sys.argv[2])
def made(family, kind, protocol=0):
    s = socket.socket(family, kind, protocol); s.settimeout(PATIENCE); return s
def answers(a, b):
    a.sendall(b"ask"); b.sendall(b.recv(9) + b"ed"); return a.recv(9) == b"asked"
def tcp(family, at):
    with socket.create_server(at, family=family) as l, made(family, socket.SOCK_STREAM) as s:
        l.settimeout(PATIENCE); s.connect(l.getsockname()); a = l.accept()[0]; a.settimeout(PATIENCE)
        return answers(s, a)
def udp(family, at):
    with made(family, socket.SOCK_DGRAM) as l, made(family, socket.SOCK_DGRAM) as s:
        l.bind(at); s.sendto(b"ask", l.getsockname())
        asked, whose = l.recvfrom(9)
        l.connect(whose); s.connect(l.getsockname())
        return asked == b"ask" and answers(s, l)
def curl(family, at):
    server = http.server.HTTPServer
    class Server(server): address_family = family; allow_reuse_address = True
    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self): self.send_response(204); self.end_headers()
        def log_message(self, *of): pass
    with Server(at, Handler) as l:
        threading.Thread(target=l.serve_forever, daemon=True).start()
        host = "[%s]" % at[0] if ":" in at[0] else at[0]
        ask = ["curl", "-sg", "-m", sys.argv[2], "-o", "/dev/null", "-w", "%{http_code}", "http://%s:%d/" % (host, l.server_port)]
        said = subprocess.run(ask, capture_output=True, text=True).stdout
        l.shutdown(); return said == "204" or said
def ping(family, at):
    asks, answered, protocol = (8, 0, socket.IPPROTO_ICMP) if family == socket.AF_INET else (128, 129, socket.IPPROTO_ICMPV6)
    with made(family, socket.SOCK_RAW, protocol) as s:
        message = struct.pack("!BBHHH", asks, 0, 0, os.getpid() & 0xffff, 1)
        parts = sum(struct.unpack("!4H", message))
        total = 0xffff & ~(parts + (parts >> 16))
        s.sendto(message[:2] + struct.pack("!H", total) + message[4:], at)
        while True:
            came = s.recv(99)
            came = came[20:] if family == socket.AF_INET else came
            if came[0] == answered and came[4:] == message[4:]: return True
def raw(family, at):
    with made(family, socket.SOCK_RAW, 253) as l, made(family, socket.SOCK_RAW, 253) as s:
        l.bind(at); s.sendto(b"ask", at); return l.recv(99).endswith(b"ask")
def unix(kind):
    path = tempfile.mktemp()
    with made(socket.AF_UNIX, kind) as l, made(socket.AF_UNIX, kind) as s:
        l.bind(path)
        try:
            if kind == socket.SOCK_DGRAM: s.sendto(b"ask", path); return l.recv(9) == b"ask"
            l.listen(); s.connect(path); return answers(s, l.accept()[0])
        finally: os.unlink(path)
def says(what, do, *of):
    try: done = do(*of)
    except OSError as e: done = errno.errorcode.get(e.errno, type(e).__name__)
    print(what, "ok" if done is True else done)
for family, ip in (socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1"):
    for do in tcp, udp, curl, ping, raw: says(do.__name__ + ip, do, family, (ip, 0))
for do in tcp, udp: says(do.__name__ + "53", do, socket.AF_INET, (DNS, 53))
for name in "SOCK_STREAM", "SOCK_DGRAM", "SOCK_SEQPACKET": says(name, unix, getattr(socket, name))
says("packets", lambda: bool(made(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(3))))
"#;

/// Things that are tried.
const ALL: usize = 16;

/// What of it does not come off, and what came of it instead; each may take so many seconds. `run` runs a program.
///
/// # Errors
/// If Python does not end well, or says less than everything.
pub fn lost(
    seconds: &str,
    run: impl Fn(&str, &[&str]) -> io::Result<Output>,
) -> Result<BTreeMap<String, String>> {
    let [.., high, low] = std::process::id().to_be_bytes();
    let own = format!("127.{high}.{low}.10");
    let output = run("python3", &["-c", EVERYTHING, &own, seconds])?;
    ensure!(output.status.success(), "{output:?}");
    let said = String::from_utf8(output.stdout)?;
    let mut came = BTreeMap::new();
    for line in said.lines() {
        let (what, how) = line.split_once(' ').with_context(|| line.to_owned())?;
        came.insert(what.to_owned(), how.to_owned());
    }
    ensure!(came.len() == ALL, "{came:?}");
    came.retain(|_, how| how != "ok");
    Ok(came)
}
