//! Containers of the real engines of Docker and Podman, recognised by labels, names and images that the agent asks them for. The
//! images are made here, of empty directories: what runs in them is the host's own, mounted there.
use crate::outside::{GOVERNED, Outside, REACHED, REFUSED};
use crate::support::*;
use harness::eventually;
use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use std::fs;
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::Duration;

const WORKLOADS: &str = r#"workloads:
  app: { match: { container: "registry.example/app:*" } }
  shop: { match: { labels: { app: "web-*" } } }
  front: { match: { labels: { tier: front } } }
  named: { match: { container: "named-*" } }
"#;

const APP: &str = "registry.example/app:3";
const OTHER: &str = "registry.example/other:1";
/// One that brings a label.
const FRONT: &str = "registry.example/front:1";

/// An engine with all of its own, an agent that asks it, and servers on the host that nobody governed reaches.
struct Engine {
    place: Place,
    outside: Outside,
    engine: Child,
    /// The client's program, and what makes it this engine's.
    client: Vec<String>,
    /// What it is told of each container.
    each: Vec<String>,
}

impl Engine {
    fn docker() -> Self {
        let place = Place::new();
        let at = place.directory.display();
        let client = format!("/usr/bin/docker --config {at}/client --host unix://{at}/engine.sock");
        let engine = Self::new(dockerd(&place), place, &client, "");
        engine.import(APP, &[]);
        engine.import(OTHER, &[]);
        engine.import(FRONT, &["--change", "LABEL tier=front"]);
        engine
    }

    /// Which has no daemon but to be asked. Its containers have directories for an image: images it would note in `/var/lib`. It and
    /// crun raise limits, which root may not everywhere.
    fn podman() -> Self {
        let place = Place::new();
        let at = place.directory.display();
        let client = format!(
            "podman --root {at}/podman --runroot {at}/runroot --tmpdir {at}/tmp --cgroup-manager cgroupfs \
             --storage-driver vfs --events-backend none --runtime runc"
        );
        let mut server = command(&words(&client));
        server.args(["system", "service", "--time=0"]);
        server.arg(format!("unix://{at}/engine.sock"));
        let each = format!(
            "--rootfs --ulimit=nofile=1024:1024 --ulimit=nproc=1024:1024 --cgroup-parent=/{}-engine/libpod",
            place.name
        );
        Self::new(server, place, &client, &each)
    }

    fn new(mut server: Command, place: Place, client: &str, each: &str) -> Self {
        place.write_policy(&POLICY.replace("workloads:\n", WORKLOADS));
        let at = place.directory.display();
        place.write_config(&format!("container_engines: [{at}/engine.sock]\n"));
        let log = fs::File::create(place.path("engine.log")).unwrap();
        server
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(log);
        let engine = Self {
            engine: server.spawn().unwrap(),
            client: words(client),
            each: words(each),
            outside: Outside::new(),
            place,
        };
        let up = eventually(Duration::from_secs(15), || {
            UnixStream::connect(engine.place.path("engine.sock")).ok()
        });
        assert!(up.is_some(), "the engine is not up: {}", engine.log());
        engine
    }

    fn log(&self) -> String {
        fs::read_to_string(self.place.path("engine.log")).unwrap()
    }

    /// `docker …` or `podman …` of Debian's package: in vain if it takes a minute.
    fn client(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("timeout");
        command.arg("60").args(&self.client).args(arguments);
        command.stdin(Stdio::null()).output().unwrap()
    }

    /// The same, which must succeed.
    fn done(&self, arguments: &[&str]) -> Output {
        let output = self.client(arguments);
        let fine = output.status.success();
        assert!(fine, "{arguments:?}: {output:?}\n{}", self.log());
        output
    }

    /// Directories that programs of the host's find what they need in.
    fn root(&self) -> PathBuf {
        let root = self.place.path("root");
        if !root.exists() {
            fs::create_dir_all(root.join("usr")).unwrap();
            for (link, to) in [("lib", "usr/lib"), ("lib64", "usr/lib64")] {
                symlink(to, root.join(link)).unwrap();
            }
        }
        root
    }

    fn import(&self, image: &str, more: &[&str]) {
        let archive = self.place.path("root.tar");
        let mut pack = Command::new("tar");
        pack.arg("-cf")
            .arg(&archive)
            .arg("-C")
            .arg(self.root())
            .arg(".");
        assert!(pack.status().unwrap().success());
        let import = [&["import"], more, &[archive.to_str().unwrap(), image]].concat();
        self.done(&import);
    }

    /// Runs a container on the host's network, unless it is said otherwise. Its first act is to ask the servers: what came of it.
    fn run(&self, name: &str, image: &str, more: &[&str]) -> [u32; 2] {
        let script = format!("{}; echo asked; exec sleep 600", self.outside.ask("curl"));
        let mut run = vec!["run", "--detach", "--name", name, "--env=PATH=/usr/bin"];
        run.push("--volume=/usr:/usr:ro");
        if !more.iter().any(|one| one.starts_with("--network")) {
            run.push("--network=host");
        }
        run.extend(self.each.iter().map(String::as_str));
        run.extend(more);
        run.extend([image, "sh", "-c", &script]);
        self.done(&run);
        self.first(name)
    }

    /// What came of a container's first act since it was last started.
    fn first(&self, name: &str) -> [u32; 2] {
        let asked = eventually(START, || {
            let logs = self.done(&["logs", name]);
            text(&logs.stdout).ends_with("asked\n").then_some(logs)
        });
        let asked = asked.unwrap_or_else(|| panic!("{name}: {:?}", self.client(&["logs", name])));
        self.outside.came(&asked)
    }

    /// The same of a process that enters it later.
    fn later(&self, name: &str) -> [u32; 2] {
        let ask = self.outside.ask("curl");
        let asked = self.done(&["exec", name, "sh", "-c", &ask]);
        self.outside.came(&asked)
    }

    /// Whatever it is until then, `never` it must not be.
    fn becomes(&self, name: &str, wanted: u32, never: &[u32]) {
        let mut seen = Vec::new();
        let done = eventually(START, || {
            seen.push(self.later(name));
            (seen.last() == Some(&[wanted; 2])).then_some(())
        });
        assert!(done.is_some(), "{name}: {seen:?}");
        let mut all = seen.as_flattened().iter();
        assert!(!all.any(|came| never.contains(came)), "{name}: {seen:?}");
    }

    /// Whose a container is, and by what.
    fn recognised(&self, name: &str) -> Option<(String, String)> {
        let told = self.done(&["inspect", "--format={{.Id}}", name]);
        self.place.recognised(text(&told.stdout).trim())
    }

    fn cgroups(&self) -> String {
        format!("{}-engine", self.place.name)
    }
}

/// With nothing that is the host's: neither its networks and rules of its firewall nor its places for state.
fn dockerd(place: &Place) -> Command {
    let at = place.directory.display();
    let config = json!({
        "data-root": format!("{at}/docker"),
        "exec-root": format!("{at}/exec"),
        "pidfile": format!("{at}/docker.pid"),
        "deprecated-key-path": format!("{at}/docker.key"),
        "hosts": [format!("unix://{at}/engine.sock")],
        "bridge": "none",
        "iptables": false,
        "ip6tables": false,
        "ip-forward": false,
        "ip-masq": false,
        "storage-driver": "vfs",
        "exec-opts": ["native.cgroupdriver=cgroupfs"],
        "cgroup-parent": format!("/{}-engine/docker", place.name),
    });
    fs::write(place.path("docker.json"), config.to_string()).unwrap();
    let mut engine = Command::new("dockerd");
    engine.arg("--config-file").arg(place.path("docker.json"));
    engine
}

fn words(line: &str) -> Vec<String> {
    line.split_whitespace().map(str::to_owned).collect()
}

fn command(words: &[String]) -> Command {
    let mut command = Command::new(&words[0]);
    command.args(&words[1..]);
    command
}

impl Drop for Engine {
    fn drop(&mut self) {
        let listed = text(&self.client(&["ps", "--all", "--quiet"]).stdout);
        let all: Vec<_> = listed.split_whitespace().collect();
        if !all.is_empty() {
            let removed = self.client(&[&["rm", "--force"], &all[..]].concat());
            if !removed.status.success() {
                eprintln!("containers are left: {removed:?}");
            }
        }
        let _ = kill_process(Pid::from_child(&self.engine), Signal::TERM);
        if eventually(START, || self.engine.try_wait().unwrap()).is_none() {
            let _ = self.engine.kill();
            let _ = self.engine.wait();
        }
        let network = self.place.path("exec/netns/default");
        let _ = unmount(network, UnmountFlags::DETACH);
        let below = Path::new("/sys/fs/cgroup");
        let roots = fs::read_dir(below).unwrap().filter_map(Result::ok);
        for root in roots.map(|root| root.path()).chain([below.to_owned()]) {
            let ours = root.join(self.cgroups());
            // Podman's conmon takes a moment longer than its container.
            let _ = eventually(Duration::from_secs(5), || {
                remove_empty(&ours);
                (!ours.exists()).then_some(())
            });
        }
    }
}

/// A cgroup that nobody is in, and those below.
fn remove_empty(cgroup: &Path) {
    let below = fs::read_dir(cgroup).into_iter().flatten().flatten();
    for one in below.filter(|one| one.path().is_dir()) {
        remove_empty(&one.path());
    }
    let _ = fs::remove_dir(cgroup);
}

#[test]
fn dockers_containers_are_whose_their_labels_and_images_say_from_their_first_call() {
    let mut docker = Engine::docker();
    // Runs before there is an agent.
    assert_eq!(
        docker.run("early", OTHER, &["--label=app=web-0"]),
        [REACHED; 2]
    );
    docker.place.start();
    docker.becomes("early", GOVERNED, &[]);

    // By a label, by the image, by a label of the image's: and not one call got out.
    let by = |what: &str| format!("container{what}");
    for (name, image, label, workload, evidence) in [
        ("web", OTHER, "app=web-1", "shop", by(", labels app=web-1")),
        ("app", APP, "app=db", "app", by(&format!(" {APP}"))),
        ("front", FRONT, "app=db", "front", by(", labels tier=front")),
    ] {
        let first = docker.run(name, image, &[&format!("--label={label}")]);
        assert!(!first.contains(&REACHED), "{name}: {first:?}");
        docker.becomes(name, GOVERNED, &[REACHED]);
        let recognised = docker.recognised(name).unwrap();
        assert_eq!(recognised, (workload.to_owned(), evidence.clone()));
        let listed = docker.place.output(&["workloads", "--processes"]);
        assert!(text(&listed.stdout).contains(&evidence), "{listed:?}");
    }
    // One of nobody's is refused until that is known, and then free.
    let first = docker.run("free", OTHER, &["--label=app=db"]);
    assert!(!first.contains(&GOVERNED), "{first:?}");
    docker.becomes("free", REACHED, &[GOVERNED]);
    assert_eq!(docker.recognised("free"), None);

    in_networks_of_their_own(&docker, OTHER);

    // Who is known stays who he is without the agent; who starts anew, and who is new, is refused until the next one has asked.
    docker.place.end(Signal::KILL);
    assert_eq!(docker.later("web"), [REFUSED; 2]);
    assert_eq!(docker.later("free"), [REACHED; 2]);
    docker.done(&["restart", "--time=0", "web"]);
    docker.becomes("web", REFUSED, &[REACHED]);
    assert_eq!(docker.run("new", OTHER, &[]), [REFUSED; 2]);
    docker.place.start();
    docker.becomes("web", GOVERNED, &[REACHED]);
    docker.becomes("new", REACHED, &[GOVERNED]);

    // It was the policy.
    docker.place.write_policy(POLICY);
    assert_eq!(docker.place.output(&["reload"]).status.code(), Some(0));
    for name in ["early", "web", "app", "front"] {
        docker.becomes(name, REACHED, &[]);
    }
}

/// Where nobody is but the agent, which comes there for who is governed. Docker gives such a network no IPv6 unless it is told to.
fn in_networks_of_their_own(engine: &Engine, image: &str) {
    let run = |name: &str, six: bool, label: &[&str]| {
        let six = format!("--sysctl=net.ipv6.conf.all.disable_ipv6={}", u8::from(!six));
        let more = [&["--network=none", six.as_str()], label].concat();
        engine.run(name, image, &more);
    };
    let label = ["--label=app=web-2"];
    run("own", true, &label);
    engine.becomes("own", GOVERNED, &[REACHED]);
    run("own4", false, &label);
    let steered = eventually(START, || {
        (engine.later("own4") == [GOVERNED, REFUSED]).then_some(())
    });
    assert!(steered.is_some(), "{:?}", engine.later("own4"));
    run("nobodys", true, &[]);
    engine.becomes("nobodys", REFUSED, &[GOVERNED, REACHED]);
}

#[test]
fn podmans_containers_are_whose_their_labels_and_names_say_from_their_first_call() {
    let mut podman = Engine::podman();
    let image = podman.root();
    let image = image.to_str().unwrap();
    podman.place.start();
    for (name, label, workload, evidence) in [
        ("web", "app=web-1", "shop", "container, labels app=web-1"),
        ("named-1", "app=db", "named", "container named-1"),
    ] {
        let first = podman.run(name, image, &[&format!("--label={label}")]);
        assert!(!first.contains(&REACHED), "{name}: {first:?}");
        podman.becomes(name, GOVERNED, &[REACHED]);
        let recognised = podman.recognised(name);
        assert_eq!(recognised, Some((workload.to_owned(), evidence.to_owned())));
    }
    let first = podman.run("free", image, &["--label=app=db"]);
    assert!(!first.contains(&GOVERNED), "{first:?}");
    podman.becomes("free", REACHED, &[GOVERNED]);
    assert_eq!(podman.recognised("free"), None);
    in_networks_of_their_own(&podman, image);

    podman.place.end(Signal::KILL);
    assert_eq!(podman.later("web"), [REFUSED; 2]);
    assert_eq!(podman.later("free"), [REACHED; 2]);
    assert_eq!(podman.run("new", image, &[]), [REFUSED; 2]);
    podman.place.start();
    podman.becomes("web", GOVERNED, &[REACHED]);
    podman.becomes("new", REACHED, &[GOVERNED]);
}
