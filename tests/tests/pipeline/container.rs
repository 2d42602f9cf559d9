//! A container of a real OCI runtime (crun) on a root made here: its own namespaces, recognised by its cgroup.
use harness::agent::Agent;
use harness::netns::Holder;
use harness::{Site, World, eventually};
use serde_json::{Value, json};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

/// Asks servers at which nobody answers but the agent, over UDP and TCP: for each, what the answer's code is and how many
/// addresses it has.
const ASKING: &str = r#"
import socket, struct, sys
def query(name): return struct.pack(">6H", 1234, 256, 1, 0, 0, 0) + b"".join(bytes([len(l)]) + l.encode() for l in name.split(".")) + b"\0" + struct.pack(">2H", 1, 1)
for name in sys.argv[1:]:
    for server in ("192.0.2.53", "2001:db8::53"):
        for kind in (socket.SOCK_DGRAM, socket.SOCK_STREAM):
            s = socket.socket(socket.AF_INET6 if ":" in server else socket.AF_INET, kind)
            s.settimeout(5); s.connect((server, 53)); q = query(name)
            s.send(q if kind == socket.SOCK_DGRAM else struct.pack(">H", len(q)) + q)
            a = s.recv(2) if kind == socket.SOCK_STREAM else b""
            a = s.recv(4096)
            print(name, struct.unpack(">H", a[2:4])[0] & 15, struct.unpack(">H", a[6:8])[0])
"#;

/// Asks for a path, closes its sending side, and reads the answer.
const HALF_CLOSED: &str = r#"
import socket, ssl, sys
host, path = sys.argv[1:]
raw = socket.create_connection((host, 443), 10)
s = ssl.create_default_context(cafile="/trust/ca-bundle.pem").wrap_socket(raw, server_hostname=host, suppress_ragged_eofs=False)
s.sendall(f"GET {path} HTTP/1.1\r\nhost: {host}\r\n\r\n".encode())
socket.socket.shutdown(s, socket.SHUT_WR)
print("halfclosed", s.recv(4096).split(b"\r\n")[0].decode())
"#;

const POLICY: &str = r#"
version: 1
workloads:
  boxed: { match: { cgroup: "/NAME/**" } }
apis:
  orders: { hosts: [api.orders.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "file:orders-bot", header: { authorization: "Bearer {secret}" }, to: [orders] }
roles:
  reader:
    - { api: orders, credential: bot, allow: [{ route: "GET /v1/orders/{id:int}" }] }
grants:
  - { role: reader, to: { workload: boxed } }
"#;

/// A cgroup whose subtree is the workload, and the root directory of containers in it.
struct Engine {
    cgroup: PathBuf,
    name: String,
    bundle: PathBuf,
}

impl Engine {
    fn new(world: &World) -> Self {
        let name = format!("tollgate-test-boxed-{}", std::process::id());
        let cgroup = cgroups().join(&name);
        fs::create_dir(&cgroup).unwrap();
        let bundle = world.directory().join("bundle");
        for directory in ["proc", "dev", "etc", "usr", "tmp", "trust"] {
            fs::create_dir_all(bundle.join("rootfs").join(directory)).unwrap();
        }
        for (link, to) in [
            ("bin", "usr/bin"),
            ("lib", "usr/lib"),
            ("lib64", "usr/lib64"),
        ] {
            std::os::unix::fs::symlink(to, bundle.join("rootfs").join(link)).unwrap();
        }
        Self {
            cgroup,
            name,
            bundle,
        }
    }

    /// Runs a shell script in a new container, as an image's entry point, in a network of its own.
    fn run(&self, world: &World, trust: &Path, script: &str) -> Output {
        self.run_in(world, trust, json!({"type": "network"}), script)
    }

    fn run_in(&self, world: &World, trust: &Path, network: Value, script: &str) -> Output {
        let bind = |to: &str, from: &Path| json!({"destination": to, "type": "bind", "source": from, "options": ["rbind", "ro"]});
        let namespaces = ["pid", "mount", "ipc", "uts"].map(|kind| json!({"type": kind}));
        let namespaces = [&namespaces[..], &[network]].concat();
        let config = json!({
            "ociVersion": "1.0.0",
            "process": {
                "user": {"uid": 0, "gid": 0}, "cwd": "/", "noNewPrivileges": true,
                "args": ["/bin/sh", "-c", script],
                "env": ["PATH=/usr/bin", "SSL_CERT_FILE=/trust/ca-bundle.pem"],
                "capabilities": {"bounding": [], "effective": [], "permitted": []},
            },
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [
                {"destination": "/proc", "type": "proc", "source": "proc"},
                {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "mode=755"]},
                bind("/usr", Path::new("/usr")),
                bind("/trust", trust),
            ],
            "linux": {"cgroupsPath": format!("/{}/box", self.name), "namespaces": namespaces},
        });
        fs::write(self.bundle.join("config.json"), config.to_string()).unwrap();
        let state = self.bundle.join("state");
        // The runtime knows one layout of cgroups: the version 2 of it at the usual place.
        let program = format!(
            "mount --bind {} /sys/fs/cgroup && exec crun --root {} --cgroup-manager=cgroupfs run --bundle {} box",
            cgroups().display(),
            state.display(),
            self.bundle.display()
        );
        let mut command = world.client("unshare");
        command.args(["--mount", "sh", "-c", &program]);
        command.output().unwrap()
    }
}

impl Drop for Engine {
    fn drop(&mut self) {
        let _ = fs::remove_dir(self.cgroup.join("box"));
        let _ = eventually(Duration::from_secs(5), || fs::remove_dir(&self.cgroup).ok());
    }
}

/// A network from which a cable leads to the servers, as an engine lays one for its containers.
fn cabled(world: &World) -> Holder {
    let network = Holder::new(false).unwrap();
    let lay = |side: &Holder, more: &str, own: u8| {
        side.script(&format!(
            "{more}ip addr add 10.53.0.{own}/24 dev box0\nip addr add fd00:53::{own}/64 dev box0 nodad\nip link set box0 up"
        ))
        .unwrap();
    };
    let cable = format!(
        "ip link set lo up\nip link add box0 type veth peer name box0 netns {}\n",
        world.servers.pid()
    );
    lay(&network, &cable, 2);
    lay(&world.servers, "", 1);
    let routes = "ip route add default via 10.53.0.1\nip -6 route add default via fd00:53::1";
    network.script(routes).unwrap();
    network
}

fn cgroups() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let line = mounts.lines().find(|line| line.contains(" - cgroup2 "));
    line.unwrap().split(' ').nth(4).unwrap().into()
}

fn said(output: &Output) -> Vec<String> {
    let text = String::from_utf8_lossy(&output.stdout);
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{text}{told}");
    text.lines().map(str::to_owned).collect()
}

#[test]
fn a_container_is_recognised_served_and_held_to_its_scope() {
    let world = World::new().unwrap();
    let engine = Engine::new(&world);
    let mut agent = Agent::new(&world, &POLICY.replace("NAME", &engine.name)).unwrap();
    agent.start(&world).unwrap();
    let trust = agent.config().with_file_name("run");
    let host = Site::ORDERS.host;
    let mut script = String::new();
    for (name, path, address) in [
        ("allowed", "/v1/orders/7", Site::ORDERS.v4.to_string()),
        ("denied", "/v1/orders", Site::ORDERS.v4.to_string()),
        ("allowed6", "/v1/orders/8", format!("[{}]", Site::ORDERS.v6)),
    ] {
        script.push_str(&format!(
            "echo {name} $(curl -sS -m 10 --retry 5 --retry-connrefused -w ' %{{http_code}}' --resolve {host}:443:{address} https://{host}{path} 2>&1)\n"
        ));
    }
    script.push_str(
        "echo elsewhere $(curl -s -m 5 -o /dev/null -w '%{http_code}' http://198.51.100.7/)\n",
    );
    // Names are asked for in the container's own network, where the agent answers those that it may reach.
    script.push_str(&format!(
        "echo byname $(curl -sS -m 10 -w ' %{{http_code}}' https://{host}/v1/orders/9 2>&1)\n\
         echo unnamed $(curl -s -m 10 http://secret.elsewhere.example/; echo $?)\n\
         python3 - {host} secret.elsewhere.example <<'END'\n{ASKING}\nEND\n\
         python3 - {host} /v1/orders/6 <<'END'\n{HALF_CLOSED}\nEND\n"
    ));
    let lines = said(&engine.run(&world, &trust, &script));
    assert_eq!(
        lines[0], r#"allowed {"id":7,"state":"open"} 200"#,
        "{lines:?}"
    );
    assert!(
        lines[1].starts_with("denied {") && lines[1].ends_with(" 403"),
        "{lines:?}"
    );
    assert!(lines[1].contains("no_route"), "{lines:?}");
    assert_eq!(
        lines[2], r#"allowed6 {"id":8,"state":"open"} 200"#,
        "{lines:?}"
    );
    assert_eq!(lines[3], "elsewhere 403", "{lines:?}");

    assert_eq!(
        lines[4], r#"byname {"id":9,"state":"open"} 200"#,
        "{lines:?}"
    );
    assert_eq!(lines[5], "unnamed 6", "{lines:?}");
    let granted = format!("{host} 0 1");
    assert_eq!(lines[6..10], [granted.as_str(); 4], "{lines:?}");
    let refused = "secret.elsewhere.example 3 0";
    assert_eq!(lines[10..14], [refused; 4], "{lines:?}");
    assert_eq!(lines[14..], ["halfclosed HTTP/1.1 200 OK"], "{lines:?}");

    // The container had no way of its own, and no credential: nginx saw the agent's.
    let requests = world.nginx.requests().unwrap();
    assert_eq!(requests.len(), 4, "{requests:?}");
    for request in &requests {
        assert_eq!(request.authorization, "Bearer first-orders-bot-key");
    }
    let decisions = agent.decisions(&world).unwrap();
    let of = |path: &str| -> Value {
        let found = decisions.iter().find(|d| d["request"]["path"] == path);
        found.unwrap_or_else(|| panic!("{decisions:?}")).clone()
    };
    assert_eq!(of("/v1/orders/7")["verdict"], "ALLOW");
    assert_eq!(of("/v1/orders")["verdict"], "DENY");
    for path in ["/v1/orders/7", "/v1/orders", "/v1/orders/8"] {
        assert_eq!(of(path)["workload"], "boxed");
        assert_eq!(
            of(path)["process"]["cgroup"],
            format!("/{}/box", engine.name)
        );
    }

    // With the agent dead there is no way out of a container either, also where there is a network; it ends, and its namespace with it.
    agent.kill().unwrap();
    let network = cabled(&world);
    let path = format!("/proc/{}/ns/net", network.pid());
    let ways = [
        json!({"type": "network"}),
        json!({"type": "network", "path": path}),
    ];
    let dials = format!(
        "for at in {} [{}]; do curl -sg -m 5 -o /dev/null -w '%{{http_code}} ' http://$at/open/; echo $?; done",
        Site::ORDERS.v4,
        Site::ORDERS.v6
    );
    for way in &ways {
        let dead = engine.run_in(&world, &trust, way.clone(), &dials);
        assert_eq!(said(&dead), ["000 7", "000 7"], "{way}");
    }
    assert_eq!(world.nginx.requests().unwrap().len(), 4);
    agent.start(&world).unwrap();
    let left = eventually(Duration::from_secs(10), || {
        let status = agent.output(&world, "status", &["-o", "json"]).ok()?;
        let status: Value = serde_json::from_slice(&status.stdout).ok()?;
        status["namespaces"].as_array()?.is_empty().then_some(())
    });
    assert!(left.is_some(), "a namespace is kept");

    // It was the fence: without it the same container reaches the server.
    agent.kill().unwrap();
    let pins = world.pins();
    let lift = format!("rm -r {}", pins.display());
    world.clients.script(&lift).unwrap();
    let free = engine.run_in(&world, &trust, ways[1].clone(), &dials);
    assert_eq!(said(&free), ["200 0", "200 0"]);
    assert_eq!(world.nginx.requests().unwrap().len(), 6);
}
