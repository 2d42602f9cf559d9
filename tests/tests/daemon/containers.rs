//! Containers by name and image, asked of an engine as none that works is: an HTTP server of the test on a Unix socket, which answers
//! like Docker's engine, lies, hangs and floods; and of files as runtimes keep them. Real engines are in `docker` and `pods`.
use crate::outside::{GOVERNED, Outside, REACHED, REFUSED};
use crate::support::*;
use harness::eventually;
use rustix::process::Signal;
use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::chown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// Ids by what the engine does when it is asked for them.
fn id(of: char) -> String {
    of.to_string().repeat(64)
}
const WEB: char = 'a';
const OTHER: char = 'b';
const UNKNOWN: char = 'c';
const HANGS: char = 'd';
const BUNDLE: char = 'e';
const IMAGE: char = 'f';
const LIES: char = '1';
const HUGE: char = '2';
const LABELLED: char = '3';
const OTHERWISE: char = '4';
const HALF: char = '5';

fn answer(mut stream: UnixStream) {
    let mut line = String::new();
    let _ = BufReader::new(&stream).read_line(&mut line);
    let of = line
        .strip_prefix("GET /containers/")
        .and_then(|rest| rest.chars().next());
    let with = |id: &str, name: &str, image: &str, labels: &str| {
        format!(
            r#"{{"Id":"{id}","Created":"2026-01-01T00:00:00Z","Name":"/{name}","Config":{{"Hostname":"h","Image":"{image}","Labels":{labels}}}}}"#
        )
    };
    let told = |id: &str, name: &str, image: &str| with(id, name, image, "{}");
    let labelled = |of, labels| ("200 OK", with(&id(of), "x", "x", labels));
    let (status, body) = match of {
        Some(WEB) => ("200 OK", told(&id(WEB), "web-1", "nginx")),
        Some(OTHER) => ("200 OK", told(&id(OTHER), "other", "nginx")),
        Some(IMAGE) => ("200 OK", told(&id(IMAGE), "x", "registry.example/app:3")),
        Some(LIES) => ("200 OK", told(&id(WEB), "web-1", "nginx")),
        Some(HUGE) => (
            "200 OK",
            format!("{}{}", " ".repeat(2 << 20), told(&id(HUGE), "web-2", "x")),
        ),
        Some(LABELLED) => labelled(LABELLED, r#"{"app":"web-1","tier":"front","more":""}"#),
        Some(OTHERWISE) => labelled(OTHERWISE, r#"{"app":"web-1","tier":"back"}"#),
        Some(HALF) => labelled(HALF, r#"{"app":"web-1","front":"tier"}"#),
        Some(HANGS) => return std::thread::sleep(Duration::from_secs(60)),
        _ => (
            "404 Not Found",
            r#"{"message":"No such container"}"#.to_owned(),
        ),
    };
    let _ = write!(
        stream,
        "HTTP/1.1 {status}\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n{body}",
        body.len()
    );
}

/// An agent whose policy names containers, the engine, and servers on the host that nobody governed reaches.
struct Boxes {
    place: Place,
    parent: PathBuf,
    outside: Outside,
    asked: Arc<AtomicUsize>,
}

impl Boxes {
    fn new() -> Self {
        let place = Place::new();
        let parent = cgroup_root().join(format!("{}-boxes", place.name));
        fs::create_dir(&parent).unwrap();
        let more = "workloads:\n  web: { match: { container: \"web-*\" } }\n  app: { match: { container: \"registry.example/app:*\" } }\n";
        place.write_policy(&POLICY.replace("workloads:\n", more));
        let at = place.directory.display();
        place.write_config(&format!(
            "container_engines: [{at}/engine.sock, {at}/bundles]\n"
        ));
        let bundle = place.path("bundles").join(id(BUNDLE));
        fs::create_dir_all(&bundle).unwrap();
        let config =
            r#"{"ociVersion":"1.0.2","annotations":{"io.kubernetes.cri.container-name":"web-9"}}"#;
        fs::write(bundle.join("config.json"), config).unwrap();
        let asked = Arc::new(AtomicUsize::new(0));
        let (engine, count) = (
            UnixListener::bind(place.path("engine.sock")).unwrap(),
            Arc::clone(&asked),
        );
        std::thread::spawn(move || {
            for stream in engine.incoming().filter_map(Result::ok) {
                count.fetch_add(1, Ordering::SeqCst);
                std::thread::spawn(move || answer(stream));
            }
        });
        Self {
            place,
            parent,
            outside: Outside::new(),
            asked,
        }
    }

    fn cgroup(&self, of: char) -> PathBuf {
        self.parent.join(format!("docker-{}.scope", id(of)))
    }

    /// Connects from within a cgroup, which is made and entered at once: what came of it over IPv4 and IPv6.
    fn connect(&self, cgroup: &Path) -> [u32; 2] {
        self.connect_as(0, cgroup)
    }

    /// The same as this user.
    fn connect_as(&self, user: u32, cgroup: &Path) -> [u32; 2] {
        let ask = self.outside.ask(&format!("setpriv --reuid={user} curl"));
        self.run(&format!("mkdir -p {0}", cgroup.display()), cgroup, &ask)
    }

    fn run(&self, first: &str, cgroup: &Path, then: &str) -> [u32; 2] {
        let enter = format!("echo $$ > {}/cgroup.procs", cgroup.display());
        let mut command = Command::new("sh");
        command.args(["-c", &format!("{first}; {enter} && {{ {then}; }}")]);
        self.outside
            .came(&command.stdin(Stdio::null()).output().unwrap())
    }

    /// Whatever it is until then, `never` it must not be.
    fn becomes(&self, of: char, wanted: u32, never: &[u32]) {
        let cgroup = self.cgroup(of);
        let mut seen = Vec::new();
        let done = eventually(START, || {
            seen.push(self.connect(&cgroup));
            (seen.last() == Some(&[wanted; 2])).then_some(())
        });
        assert!(done.is_some(), "{of}: {seen:?}");
        let mut all = seen.as_flattened().iter();
        assert!(!all.any(|s| never.contains(s)), "{of}: {seen:?}");
    }

    fn workload(&self, of: char) -> Option<String> {
        let all = self.place.workloads();
        let has = |workload: &&serde_json::Value| {
            let cgroups = workload["cgroups"].as_array().unwrap();
            cgroups
                .iter()
                .any(|c| c["cgroup"].as_str().unwrap().contains(&id(of)))
        };
        Some(all.iter().find(has)?["workload"].as_str()?.to_owned())
    }
}

impl Drop for Boxes {
    fn drop(&mut self) {
        for entry in fs::read_dir(&self.parent).unwrap().filter_map(Result::ok) {
            let _ = fs::remove_dir(entry.path().join(id(WEB)));
            let _ = fs::remove_dir(entry.path());
        }
        let _ = fs::remove_dir(&self.parent);
    }
}

/// Asks by another program than curl.
const SPEAKS: &str = r#"
import socket, sys
for at in sys.argv[1:]:
    ip, port = at.rsplit(":", 1)
    try:
        s = socket.create_connection((ip.strip("[]"), port), 5)
        s.sendall(b"GET / HTTP/1.1\r\nhost: %s\r\n\r\n" % at.encode())
        print(at, 0, s.recv(12).split()[1].decode())
    except OSError: print(at, 7, "000")
"#;

#[test]
fn a_container_may_be_one_condition_of_several() {
    let mut boxes = Boxes::new();
    let more = "workloads:\n  people: { match: [{ container: other, user: \"65534\" }, { container: \"registry.example/app:*\", user: \"65534\", exe: /usr/bin/curl }] }\n";
    boxes
        .place
        .write_policy(&POLICY.replace("workloads:\n", more));
    boxes.place.start();
    for of in [OTHER, IMAGE] {
        let cgroup = boxes.cgroup(of);
        let mut seen = Vec::new();
        let done = eventually(START, || {
            seen.push(boxes.connect_as(65534, &cgroup));
            (seen.last() == Some(&[GOVERNED; 2])).then_some(())
        });
        // Made and entered at once, and never out.
        let got_out = seen.as_flattened().contains(&REACHED);
        assert!(done.is_some() && !got_out, "{of}: {seen:?}");
        // Whom the other condition does not name is nobody's, in it or outside.
        assert_eq!(boxes.connect_as(0, &cgroup), [REACHED; 2], "{of}");
        assert_eq!(boxes.connect_as(65534, &cgroup), [GOVERNED; 2], "{of}");
    }
    let elsewhere = boxes.parent.join("plain");
    assert_eq!(boxes.connect_as(65534, &elsewhere), [REACHED; 2]);
    // Another program of that user's is the one container's, and not the other's.
    let speaks = |of| {
        let [four, six] = boxes.outside.addresses;
        let python = "exec setpriv --reuid=65534 /usr/bin/python3 -c";
        let speak = format!("{python} '{SPEAKS}' {four} {six}");
        boxes.run("true", &boxes.cgroup(of), &speak)
    };
    assert_eq!(speaks(OTHER), [GOVERNED; 2]);
    // Refused until the agent has looked at what runs.
    let free = eventually(START, || (speaks(IMAGE) == [REACHED; 2]).then_some(()));
    assert!(free.is_some());
    // A container that the policy looks at no more.
    boxes.place.write_policy(POLICY);
    assert_eq!(boxes.place.output(&["reload"]).status.code(), Some(0));
    let free = eventually(START, || {
        (boxes.connect_as(65534, &boxes.cgroup(OTHER)) == [REACHED; 2]).then_some(())
    });
    assert!(free.is_some());
}

/// Runtimes give it away where the container has a cgroup namespace of its own and may write there (`userns-remap`, `-u`).
#[test]
fn a_container_is_its_engines_whoever_its_cgroup_was_given_to() {
    let mut boxes = Boxes::new();
    let give = |cgroup: &Path| chown(cgroup, Some(65534), Some(65534)).unwrap();
    let before = boxes.cgroup(WEB);
    fs::create_dir(&before).unwrap();
    give(&before);
    boxes.place.start();
    boxes.becomes(WEB, GOVERNED, &[]);
    assert_eq!(boxes.workload(WEB).as_deref(), Some("web"));
    // Made while there is an agent, given away and entered at once, and never out.
    for (of, workload) in [(IMAGE, "app"), (BUNDLE, "web")] {
        let cgroup = boxes.cgroup(of);
        let at = cgroup.display();
        let make = format!("mkdir -p {at}; chown 65534:65534 {at}");
        let ask = boxes.outside.ask("setpriv --reuid=65534 curl");
        let mut seen = Vec::new();
        let done = eventually(START, || {
            seen.push(boxes.run(&make, &cgroup, &ask));
            (seen.last() == Some(&[GOVERNED; 2])).then_some(())
        });
        let got_out = seen.as_flattened().contains(&REACHED);
        assert!(done.is_some() && !got_out, "{of}: {seen:?}");
        assert_eq!(boxes.workload(of).as_deref(), Some(workload));
    }
    // Who may make cgroups may give them any name.
    give(&boxes.parent);
    fs::remove_dir(boxes.cgroup(IMAGE)).unwrap();
    fs::create_dir(boxes.cgroup(IMAGE)).unwrap();
    give(&boxes.cgroup(IMAGE));
    boxes.becomes(IMAGE, REACHED, &[GOVERNED]);
    assert_eq!(boxes.workload(IMAGE), None);
}

#[test]
fn a_container_is_whose_its_labels_say() {
    let mut boxes = Boxes::new();
    let more = "workloads:\n  shop: { match: { labels: { app: \"web-*\", tier: front } } }\n";
    boxes
        .place
        .write_policy(&POLICY.replace("workloads:\n", more));
    boxes.place.start();
    boxes.becomes(LABELLED, GOVERNED, &[REACHED]);
    assert_eq!(boxes.workload(LABELLED).as_deref(), Some("shop"));
    // Another value of one, one of the two, and none.
    for of in [OTHERWISE, HALF, OTHER] {
        boxes.becomes(of, REACHED, &[GOVERNED]);
        assert_eq!(boxes.workload(of), None, "{of}");
    }
    assert_eq!(boxes.connect(&boxes.cgroup(LABELLED)), [GOVERNED; 2]);
}

#[test]
fn containers_are_whose_their_engine_says_and_refused_until_it_does() {
    let mut boxes = Boxes::new();
    // Runs before there is an agent.
    fs::create_dir(boxes.cgroup(WEB)).unwrap();
    assert_eq!(boxes.connect(&boxes.cgroup(WEB)), [REACHED; 2]);
    boxes.place.start();
    boxes.becomes(WEB, GOVERNED, &[]);
    assert_eq!(boxes.workload(WEB).as_deref(), Some("web"));
    // Made and entered at once, and never out.
    boxes.becomes(IMAGE, GOVERNED, &[REACHED]);
    assert_eq!(boxes.workload(IMAGE).as_deref(), Some("app"));
    boxes.becomes(BUNDLE, GOVERNED, &[REACHED]);
    assert_eq!(boxes.workload(BUNDLE).as_deref(), Some("web"));
    // Known, and nobody's: let go, not before.
    boxes.becomes(OTHER, REACHED, &[GOVERNED]);
    assert_eq!(boxes.workload(OTHER), None);
    // What it calls a cgroup of its own says nothing.
    let within = boxes.cgroup(OTHER).join(id(WEB));
    let free = eventually(START, || {
        (boxes.connect(&within) == [REACHED; 2]).then_some(())
    });
    assert!(free.is_some(), "a name within a container was believed");
    assert_eq!(boxes.workload(OTHER), None);

    // Nobody's who cannot be told: refused, for as long as that is so, and it is said.
    let begun = Instant::now();
    while begun.elapsed() < Duration::from_secs(3) {
        for of in [UNKNOWN, HANGS, LIES, HUGE] {
            assert_eq!(boxes.connect(&boxes.cgroup(of)), [REFUSED; 2], "{of}");
        }
    }
    let status = boxes.place.status();
    let refused = status["containers"].as_object().unwrap();
    assert_eq!(refused.len(), 4, "{refused:?}");
    let why = |of| {
        let found = refused.iter().find(|(cgroup, _)| cgroup.contains(&id(of)));
        found.unwrap().1.as_str().unwrap().to_owned()
    };
    assert!(
        why(UNKNOWN).contains("does not know it"),
        "{}",
        why(UNKNOWN)
    );
    assert!(why(LIES).contains("another container"), "{}", why(LIES));
    assert_eq!(boxes.workload(UNKNOWN).as_deref(), Some("unsettled"));
    assert!(text(&boxes.place.output(&["status"]).stdout).contains("REFUSED"));

    // With the agent dead a new one is refused; the next agent asks.
    let _ = fs::remove_dir(boxes.cgroup(OTHER).join(id(WEB)));
    fs::remove_dir(boxes.cgroup(OTHER)).unwrap();
    boxes.place.end(Signal::KILL);
    assert_eq!(boxes.connect(&boxes.cgroup(OTHER)), [REFUSED; 2]);
    assert_eq!(boxes.connect(&boxes.cgroup(WEB)), [REFUSED; 2]);
    boxes.place.start();
    boxes.becomes(OTHER, REACHED, &[GOVERNED]);
    boxes.becomes(WEB, GOVERNED, &[REACHED]);
    assert!(boxes.asked.load(Ordering::SeqCst) > 0);

    // A policy without containers holds none.
    boxes.place.write_policy(POLICY);
    assert_eq!(boxes.place.output(&["reload"]).status.code(), Some(0));
    boxes.becomes(UNKNOWN, REACHED, &[GOVERNED]);
    fs::remove_dir(boxes.cgroup(UNKNOWN)).unwrap();
    assert_eq!(boxes.connect(&boxes.cgroup(UNKNOWN)), [REACHED; 2]);
}
