//! The canonical form against what real servers make of it: nginx, Node and Python on local sockets, each
//! serving the same files and telling how it reads a query.
//!
//! Shown is that the canonical form is served as the file that is meant, by each of them; and that the raw
//! form, where it is taken at all, is nowhere served as another file than that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use std::io::{Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use tollgate_policy::canonical::Target;

/// Files below the servers' root, by their decoded paths.
const FILES: &[&str] = &[
    "/a/b/c.txt",
    "/admin/secret.txt",
    "/repos/acme/app/issues",
    "/x:y@z/f",
    "/with space/f",
    "/caf\u{e9}/men\u{fc}",
    "/100%/f",
    "/{id}/f",
    "/~user/f",
    "/a+b/f",
    "/.../f",
    "/..hidden/f",
    "/a.b/.c",
    "/q?mark/f",
    "/hash#/f",
    "/quote'\"/f",
    "/\u{65e5}\u{672c}/f",
    "/A/b/C.txt",
];

/// Spellings of each file that are tried.
const SPELLINGS: usize = 20;

/// Numbers that look random and are the same each time.
struct Dice(u64);

impl Dice {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % limit
    }

    fn one_in(&mut self, many: u64) -> bool {
        self.below(many) == 0
    }
}

/// A server under way; ended when dropped.
struct Server {
    name: &'static str,
    socket: PathBuf,
    child: Child,
    /// Tells how it reads queries.
    echoes: bool,
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A path of the system's, or nothing, said aloud; under `CI=true` that is a failure.
fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&path)
        .chain(["/usr/sbin".into(), "/usr/bin".into()])
        .map(|folder| folder.join(name))
        .find(|path| path.is_file());
    if found.is_none() {
        println!("server absent: {name}");
        assert_ne!(
            std::env::var("CI").as_deref(),
            Ok("true"),
            "{name} is absent"
        );
    }
    found
}

fn start(name: &'static str, folder: &Path, command: &mut Command, echoes: bool) -> Server {
    let socket = folder.join(format!("{name}.sock"));
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    let server = Server {
        name,
        socket,
        child,
        echoes,
    };
    let began = Instant::now();
    while UnixStream::connect(&server.socket).is_err() {
        assert!(
            began.elapsed() < Duration::from_secs(20),
            "{name} does not listen"
        );
        std::thread::sleep(Duration::from_millis(20));
    }
    server
}

fn nginx(folder: &Path, root: &Path) -> Option<Server> {
    let program = program("nginx")?;
    let (at, root) = (folder.display(), root.display());
    let temporary: String = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .iter()
        .map(|what| format!("{what}_temp_path {at}/{what};"))
        .collect();
    // Its workers would be another user, who may not read the folder.
    let config = format!(
        "daemon off; master_process off; pid {at}/nginx.pid; error_log {at}/nginx.log crit; events {{}}\n\
         http {{ access_log off; {temporary} server {{ listen unix:{at}/nginx.sock; root {root}; }} }}\n"
    );
    let file = folder.join("nginx.conf");
    std::fs::write(&file, config).unwrap();
    let mut command = Command::new(program);
    command.arg("-e").arg(folder.join("nginx.log"));
    command.arg("-p").arg(folder).arg("-c").arg(file);
    Some(start("nginx", folder, &mut command, false))
}

const PYTHON: &str = r#"
import functools, http.server, json, socketserver, sys, urllib.parse
class Handler(http.server.SimpleHTTPRequestHandler):
    def do_GET(self):
        url = urllib.parse.urlsplit(self.path)
        if url.path != "/echo":
            return super().do_GET()
        pairs = urllib.parse.parse_qsl(url.query, keep_blank_values=True)
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(pairs).encode())
    def address_string(self):
        return "local"
    def log_message(self, *_):
        pass
class Server(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    daemon_threads = True
    request_queue_size = 64
Server(sys.argv[1], functools.partial(Handler, directory=sys.argv[2])).serve_forever()
"#;

const NODE: &str = r#"
const [socket, root] = process.argv.slice(1);
const fs = require("fs"), path = require("path");
require("http").createServer((request, response) => {
  let url, file;
  try {
    url = new URL(request.url, "http://localhost");
    file = path.join(root, decodeURIComponent(url.pathname));
  } catch { response.writeHead(400); return response.end(); }
  if (url.pathname === "/echo") return response.end(JSON.stringify([...url.searchParams]));
  fs.readFile(file, (fault, data) => { response.writeHead(fault ? 404 : 200); response.end(data); });
}).listen(socket);
"#;

fn servers(folder: &Path, root: &Path) -> Vec<Server> {
    let mut servers = Vec::from_iter(nginx(folder, root));
    for (name, program_name, option, script) in [
        ("python", "python3", "-c", PYTHON),
        ("node", "node", "-e", NODE),
    ] {
        if let Some(program) = program(program_name) {
            let mut command = Command::new(program);
            command.args([option, script]);
            command.arg(folder.join(format!("{name}.sock"))).arg(root);
            servers.push(start(name, folder, &mut command, true));
        }
    }
    servers
}

impl Server {
    /// Status and body.
    fn get(&self, target: &str) -> (u16, Vec<u8>) {
        let mut stream = UnixStream::connect(&self.socket).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(10)))
            .unwrap();
        write!(stream, "GET {target} HTTP/1.0\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = Vec::new();
        stream.read_to_end(&mut answer).unwrap();
        let head = answer.windows(4).position(|bytes| bytes == b"\r\n\r\n");
        let head = head.unwrap_or_else(|| panic!("{} breaks off at {target}", self.name));
        let line = String::from_utf8_lossy(&answer[..head]);
        let status = line.split(' ').nth(1).unwrap().parse().unwrap();
        (status, answer.split_off(head + 4))
    }
}

/// The path as one of many clients could write it.
fn spell(path: &str, dice: &mut Dice) -> String {
    let mut raw = String::new();
    for segment in path.split('/').skip(1) {
        match dice.below(8) {
            0 => raw.push('/'),
            1 => raw.push_str("/."),
            2 => raw.push_str("/other/.."),
            3 => raw.push_str("/%61/%2e%2E"),
            _ => {}
        }
        raw.push('/');
        for byte in segment.bytes() {
            let plain = byte.is_ascii_alphanumeric() || b"-._~:@+'!".contains(&byte);
            match (plain && !dice.one_in(4), dice.one_in(2)) {
                (true, _) => raw.push(char::from(byte)),
                (false, true) => raw.push_str(&format!("%{byte:02x}")),
                (false, false) => raw.push_str(&format!("%{byte:02X}")),
            }
        }
    }
    raw
}

/// What no canonical form is made of; servers differ about it.
fn spoil(raw: &str, dice: &mut Dice) -> String {
    let spoiled = [
        "%2f",
        "%5c",
        ";x=1",
        "/..;/",
        "%252e",
        "%00",
        "\\",
        "/../../..",
        "%c0%ae",
        "%2F..",
    ];
    let at = usize::try_from(dice.below(raw.len() as u64)).unwrap();
    let at = (0..=at).rev().find(|at| raw.is_char_boundary(*at)).unwrap();
    let what = spoiled[usize::try_from(dice.below(spoiled.len() as u64)).unwrap()];
    format!("{}{what}{}", &raw[..at], &raw[at..])
}

#[test]
fn a_canonical_path_is_served_as_what_it_means() {
    let folder = tempfile::tempdir().unwrap();
    let root = folder.path().join("root");
    for file in FILES {
        let path = root.join(&file[1..]);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, file).unwrap();
    }
    let servers = servers(folder.path(), &root);
    let mut dice = Dice(1);
    let (mut paths, mut raw_otherwise, mut refused) = (0, 0, 0);
    for (file, _) in FILES
        .iter()
        .flat_map(|file| (0..SPELLINGS).map(move |n| (file, n)))
    {
        let raw = spell(file, &mut dice);
        match Target::parse(&raw) {
            Ok(target) => {
                for server in &servers {
                    let served = server.get(&target.path);
                    let meant = (200, file.as_bytes().to_vec());
                    assert_eq!(
                        served, meant,
                        "{} at {} for {raw}",
                        server.name, target.path
                    );
                    let (status, body) = server.get(&raw);
                    let same = body == file.as_bytes();
                    assert!(
                        status != 200 || same,
                        "{} serves another at {raw}",
                        server.name
                    );
                    raw_otherwise += usize::from(status != 200);
                }
                paths += 1;
            }
            // `..` behind `//` only.
            Err(ambiguity) => assert_eq!(ambiguity.code, "dots_after_slashes", "{raw}"),
        }
        let spoiled = spoil(&raw, &mut dice);
        match Target::parse(&spoiled) {
            Err(_) => refused += 1,
            Ok(target) => {
                let seen: Vec<_> = servers
                    .iter()
                    .map(|server| server.get(&target.path))
                    .collect();
                let good = seen
                    .iter()
                    .all(|(status, body)| *status != 200 || *body == seen[0].1);
                assert!(good, "servers differ about {} of {spoiled}", target.path);
            }
        }
    }
    println!("{paths} paths, {raw_otherwise} raw forms not served, {refused} spoiled ones refused");
    assert!(
        paths >= 300 && refused >= 100,
        "{paths} paths, {refused} refused"
    );
}

#[test]
fn parameters_are_read_as_servers_read_them() {
    let folder = tempfile::tempdir().unwrap();
    let servers = servers(folder.path(), folder.path());
    let pieces = [
        "a",
        "b=",
        "a=1",
        "%61=2",
        "x[]=1",
        "x%5b%5D=2",
        "q=a+b",
        "q=a%20b",
        "q=a%2Bb",
        "u=https://h/?y",
        "e=%26%3D%3b",
        "caf%c3%a9=%E2%9C%93",
        "t=a%0Ab",
        "p=100%25",
        "p=%252F",
        "",
        "n==",
        "j={\"a\":[1]}",
    ];
    let mut dice = Dice(2);
    let mut compared = 0;
    for _ in 0..150 {
        let chosen: Vec<&str> = (0..dice.below(6))
            .map(|_| pieces[usize::try_from(dice.below(pieces.len() as u64)).unwrap()])
            .collect();
        let raw = format!("/echo?{}", chosen.join("&"));
        let target = Target::parse(&raw).unwrap();
        let ours: Vec<(String, String)> = target
            .pairs()
            .map(|pair| (pair.name.into_owned(), pair.value.into_owned()))
            .collect();
        for server in servers.iter().filter(|server| server.echoes) {
            for sent in [&target.to_string(), &raw] {
                let (status, body) = server.get(sent);
                assert_eq!(status, 200, "{} at {sent}", server.name);
                let theirs: Vec<(String, String)> = serde_json::from_slice(&body).unwrap();
                assert_eq!(theirs, ours, "{} at {sent}", server.name);
                compared += 1;
            }
        }
    }
    println!("{compared} queries compared");
}
