//! Pods of a real runtime (containerd with its CRI plugin, runc), recognised by labels and images that the agent asks it for.
use crate::support::*;
use harness::{eventually, repository};
use rustix::process::{Pid, Signal, kill_process};
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

/// Pods whose name begins with `web-` in the namespace `shop` may call the server, other things that are named may not.
const WORKLOADS: &str = r#"workloads:
  app: { match: { container: "registry.example/app:*" } }
  shop: { match: { labels: { io.kubernetes.pod.namespace: shop, app: "web-*" } } }
  till: { match: { labels: { tier: till }, user: root } }
"#;

/// A runtime with all of its own, an agent that asks it, and servers on the host, of both families, that note who called.
struct Pods {
    place: Place,
    runtime: Option<Child>,
    servers: [SocketAddr; 2],
    called: Arc<Mutex<Vec<String>>>,
}

impl Pods {
    fn new() -> Self {
        let place = Place::new();
        let called = Arc::default();
        let servers = ["127.0.0.1:0", "[::1]:0"].map(|at| {
            let listener = TcpListener::bind(at).unwrap();
            let server = listener.local_addr().unwrap();
            serve(listener, Arc::clone(&called));
            server
        });
        let [four, six] = servers;
        let policy = POLICY
            .replace("workloads:\n", WORKLOADS)
            .replace(
                "apis:\n",
                &format!("apis:\n  host: {{ tcp: [\"{four}\", \"{six}\"] }}\n"),
            )
            .replace("roles:\n", "roles:\n  caller: [{ api: host }]\n")
            .replace(
                "grants:\n",
                "grants:\n  - { role: caller, to: { workload: shop } }\n",
            );
        place.write_policy(&policy);
        let at = place.directory.display();
        place.write_config(&format!(
            "container_engines: [\"cri:{at}/c.sock\", {at}/ctd/state/io.containerd.runtime.v2.task/k8s.io]\n"
        ));
        let config = format!(
            "version = 2\nroot = \"{at}/ctd/root\"\nstate = \"{at}/ctd/state\"\n[grpc]\n  address = \"{at}/c.sock\"\n\
             [plugins.\"io.containerd.grpc.v1.cri\"]\n  sandbox_image = \"registry.example/pause:1\"\n  restrict_oom_score_adj = true\n\
             [plugins.\"io.containerd.grpc.v1.cri\".containerd]\n  snapshotter = \"native\"\n"
        );
        fs::write(place.path("ctd.toml"), config).unwrap();
        let mut pods = Self {
            place,
            runtime: None,
            servers,
            called,
        };
        pods.start_runtime();
        for name in ["pause:1", "app:3", "other:1"] {
            pods.image(&format!("registry.example/{name}"));
        }
        pods
    }

    fn start_runtime(&mut self) {
        let mut runtime = Command::new("containerd");
        runtime
            .arg("-c")
            .arg(self.place.path("ctd.toml"))
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(fs::File::create(self.place.path("ctd.log")).unwrap());
        self.runtime = Some(runtime.spawn().unwrap());
    }

    fn end_runtime(&mut self) {
        let mut child = self.runtime.take().unwrap();
        kill_process(Pid::from_child(&child), Signal::TERM).unwrap();
        let ended = eventually(START, || child.try_wait().unwrap());
        assert!(ended.is_some(), "containerd does not end");
    }

    fn cri(&self, arguments: &[&str]) -> Result<String, String> {
        let output = Command::new(repository().join("target/tools/fleet/bin/python3"))
            .arg(repository().join("tests/clients/cri.py"))
            .arg(self.place.path("c.sock"))
            .args(arguments)
            .output()
            .unwrap();
        match output.status.success() {
            true => Ok(text(&output.stdout)),
            false => Err(text(&output.stderr)),
        }
    }

    fn image(&self, name: &str) {
        let archive = self.place.path("image.tar");
        self.cri(&["image", archive.to_str().unwrap(), name])
            .unwrap();
        let imported = eventually(START, || {
            let output = Command::new("ctr")
                .arg("--address")
                .arg(self.place.path("c.sock"))
                .args(["--namespace", "k8s.io", "images", "import"])
                .arg(&archive)
                .output()
                .unwrap();
            output.status.success().then_some(())
        });
        assert!(imported.is_some(), "{name} is not imported");
    }

    fn parent(&self) -> String {
        format!("/{}-pods", self.place.name)
    }

    /// Runs a pod with one container, whose first act is to call the servers, and whose only one from then on. The ids of
    /// container and pod.
    fn run(&self, name: &str, namespace: &str, image: &str, labels: &str) -> [String; 2] {
        let call = self.servers.map(|server| {
            format!(
                "printf 'GET /{name} HTTP/1.1\\r\\nHost: {server}\\r\\nConnection: close\\r\\n\\r\\n' | /bin/busybox nc {} {} 2>&1 | /bin/busybox head -n 1 >> /out/{name}-{}",
                server.ip(),
                server.port(),
                family(server)
            )
        });
        let script = format!(
            "exec 2>> /out/{name}; while true; do {}; {}; /bin/busybox sleep 0.1; done",
            call[0], call[1]
        );
        let (parent, out) = (self.parent(), self.place.path("out"));
        fs::create_dir_all(&out).unwrap();
        let image = format!("registry.example/{image}");
        let command = ["/bin/busybox", "sh", "-c", &script];
        let arguments = [
            "run",
            name,
            namespace,
            &image,
            &parent,
            out.to_str().unwrap(),
            labels,
        ];
        let told = self.cri(&[&arguments[..], &command[..]].concat());
        let told = told.unwrap_or_else(|error| panic!("{name}: {error}"));
        let mut ids = told.split_whitespace().map(str::to_owned);
        [ids.next().unwrap(), ids.next().unwrap()]
    }

    /// What a pod's container got over IPv4 and IPv6, each call a line.
    fn logs(&self, name: &str) -> [Vec<String>; 2] {
        self.servers.map(|server| {
            let log = self.place.path("out");
            let log = fs::read_to_string(log.join(format!("{name}-{}", family(server))));
            let log = log.unwrap_or_default();
            log.lines().map(str::to_owned).collect()
        })
    }

    /// A pod's calls come to this from here on, whatever they were before.
    fn becomes(&self, name: &str, wanted: &str) {
        let from = self.logs(name).map(|log| log.len());
        let since = || {
            let mut logs = self.logs(name);
            for (log, from) in logs.iter_mut().zip(from) {
                log.drain(..from.min(log.len()));
            }
            logs
        };
        let is_so = |log: &Vec<String>| log.last().is_some_and(|line| line.contains(wanted));
        let done = eventually(START, || since().iter().all(is_so).then_some(()));
        assert!(done.is_some(), "{name} is not {wanted}: {:?}", since());
    }

    fn calls_of(&self, name: &str) -> usize {
        let called = self.called.lock().unwrap();
        called.iter().filter(|path| *path == name).count()
    }

    /// Why a container is refused.
    fn why(&self, id: &str) -> Option<String> {
        let status = self.place.status();
        let refused = status["containers"].as_object().unwrap();
        let found = refused.iter().find(|(cgroup, _)| cgroup.contains(id));
        found.map(|(_, why)| why.as_str().unwrap().to_owned())
    }
}

impl Drop for Pods {
    fn drop(&mut self) {
        if self.runtime.is_none() {
            self.start_runtime();
        }
        // For a moment it says that it is not ready.
        if eventually(START, || self.cri(&["end"]).ok()).is_none() {
            eprintln!("pods are left: {:?}", self.cri(&["end"]));
        }
        self.end_runtime();
        for root in fs::read_dir("/sys/fs/cgroup")
            .unwrap()
            .filter_map(Result::ok)
        {
            let parent = root.path().join(self.parent().trim_start_matches('/'));
            let _ = fs::remove_dir(parent);
        }
        let parent = Path::new("/sys/fs/cgroup").join(self.parent().trim_start_matches('/'));
        let _ = fs::remove_dir(parent);
    }
}

fn family(server: SocketAddr) -> u8 {
    if server.is_ipv4() { 4 } else { 6 }
}

/// Answers everybody, and notes what was asked for.
fn serve(listener: TcpListener, called: Arc<Mutex<Vec<String>>>) {
    std::thread::spawn(move || {
        for stream in listener.incoming().filter_map(Result::ok) {
            let called = Arc::clone(&called);
            std::thread::spawn(move || answer(stream, &called));
        }
    });
}

fn answer(mut stream: TcpStream, called: &Mutex<Vec<String>>) {
    let mut lines = BufReader::new(&stream).lines().map_while(Result::ok);
    let first = lines.next().unwrap_or_default();
    let Some(path) = first.split(' ').nth(1) else {
        return;
    };
    let name = path.trim_start_matches('/').to_owned();
    called.lock().unwrap().push(name);
    let _ = lines.find(String::is_empty);
    let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n");
}

const REACHED: &str = "200";
/// How a refused connection to a place that is not inspected ends.
const FORBIDDEN: &str = "reset by peer";

#[test]
fn pods_are_governed_by_their_labels_and_images_from_their_first_call() {
    let mut pods = Pods::new();
    pods.place.start();

    // Its labels are the workload's, and the workload may call: through the agent, which says so.
    let web = pods.run("web", "shop", "other:1", r#"{"app":"web-1"}"#);
    pods.becomes("web", REACHED);
    let (workload, by) = pods.place.recognised(&web[0]).unwrap();
    assert_eq!(workload, "shop");
    assert_eq!(
        by,
        "container, labels app=web-1 io.kubernetes.pod.namespace=shop"
    );
    // Whoever keeps the pod's namespaces is of the pod.
    let pause = eventually(START, || {
        pods.place.recognised(&web[1]).filter(|it| it.0 == "shop")
    });
    assert!(pause.is_some());

    // By its image; and by a label and its user.
    let app = pods.run("app", "other", "app:3", "{}");
    let till = pods.run("till", "other", "other:1", r#"{"tier":"till"}"#);
    for (name, ids, expected) in [("app", &app, "app"), ("till", &till, "till")] {
        pods.becomes(name, FORBIDDEN);
        assert_eq!(pods.calls_of(name), 0, "{:?}", pods.logs(name));
        let (workload, by) = pods.place.recognised(&ids[0]).unwrap();
        assert_eq!(workload, expected, "{by}");
        let denied = format!(r#""workload":"{expected}""#);
        assert!(pods.place.on_disk(&denied) > 0);
    }
    let by = pods.place.recognised(&app[0]).unwrap().1;
    assert_eq!(by, "container registry.example/app:3");
    assert_eq!(
        pods.place.recognised(&till[0]).unwrap().1,
        "user root, labels tier=till"
    );

    // One label of two, or another namespace: nobody's.
    let free = pods.run("free", "shop", "other:1", r#"{"app":"db"}"#);
    let elsewhere = pods.run("elsewhere", "other", "other:1", r#"{"app":"web-1"}"#);
    for (name, ids) in [("free", &free), ("elsewhere", &elsewhere)] {
        pods.becomes(name, REACHED);
        assert_eq!(pods.place.recognised(&ids[0]), None, "{name}");
        let logs = pods.logs(name).concat();
        assert!(!logs.iter().any(|line| line.contains(FORBIDDEN)));
    }

    // Without its runtime a container is what it was; a new one is refused.
    pods.end_runtime();
    let unknown = "9".repeat(64);
    let cgroup = cgroup_root().join(format!("{}-pods/{unknown}", pods.place.name));
    fs::create_dir(&cgroup).unwrap();
    for (name, said) in [("web", REACHED), ("app", FORBIDDEN), ("free", REACHED)] {
        pods.becomes(name, said);
    }
    let why = eventually(START, || {
        pods.why(&unknown).filter(|why| !why.contains("was asked"))
    });
    assert!(why.is_some(), "{:?}", pods.why(&unknown));
    fs::remove_dir(&cgroup).unwrap();

    // The next agent is told names and images by the runtime's files, and of labels that they may be anything.
    pods.place.end(Signal::TERM);
    pods.place.start();
    for name in ["free", "till"] {
        pods.becomes(name, "refused");
    }
    let why = pods.why(&free[0]).unwrap();
    assert!(why.contains("c.sock") && why.contains("labels"), "{why}");
    assert_eq!(pods.place.recognised(&app[0]).unwrap().0, "app");
    pods.becomes("web", REACHED);
    let till_calls = pods.calls_of("till");

    // And it asks until the runtime is there again.
    pods.start_runtime();
    pods.becomes("free", REACHED);
    pods.becomes("till", FORBIDDEN);
    assert_eq!(pods.calls_of("till"), till_calls, "till got out");
    assert_eq!(pods.why(&free[0]), None);

    // Each call of the shop's was decided on, the first too.
    pods.cri(&["end"]).unwrap();
    let calls = pods.calls_of("web");
    let decided = eventually(START, || {
        (pods.place.on_disk(r#""verdict":"ALLOW""#) >= calls).then_some(())
    });
    assert!(decided.is_some(), "{calls} calls, and fewer decisions");
}
