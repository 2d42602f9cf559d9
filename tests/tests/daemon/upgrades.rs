//! Another build of the agent takes over, and the one before again: what is governed, counted, kept and pinned goes on.
use crate::counted::Counted;
use crate::established::Talker;
use crate::load::*;
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use rustix::process::Signal;
use serde_json::Value;
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Nobody else on the machine is this user.
const USER: u32 = 54_407;

fn number<const LENGTH: usize>(bytes: &[u8], at: usize) -> usize {
    let mut all = [0; 8];
    all[..LENGTH].copy_from_slice(&bytes[at..at + LENGTH]);
    usize::from_le_bytes(all)
}

/// Writes the agent with other programs for the kernel in it, of the same effect: constants are moved into registers by the
/// instruction of 64 bits, not by that of 32.
pub(crate) fn another_build(to: &Path) {
    let mut program = fs::read(harness::agent::program().unwrap()).unwrap();
    // A little-endian ELF file of 64 bits for BPF.
    let is_object = |at: &usize| {
        let bytes = &program[*at..];
        bytes.starts_with(b"\x7fELF\x02\x01\x01") && number::<2>(bytes, 18) == 247
    };
    let at = (0..program.len() - 64).find(is_object).unwrap();
    let object = &mut program[at..];
    let sections = number::<8>(object, 40);
    let mut changed = 0;
    for section in 0..number::<2>(object, 60) {
        let header = sections + section * number::<2>(object, 58);
        let (kind, flags) = (
            number::<4>(object, header + 4),
            number::<8>(object, header + 8),
        );
        // With instructions in it.
        if kind != 1 || flags & 4 == 0 {
            continue;
        }
        let (from, length) = (
            number::<8>(object, header + 24),
            number::<8>(object, header + 32),
        );
        for instruction in object[from..from + length].chunks_exact_mut(8) {
            if instruction[0] == 0xb4 && instruction[7] < 0x80 {
                instruction[0] = 0xb7;
                changed += 1;
            }
        }
    }
    assert!(changed > 100, "{changed} instructions");
    fs::copy(harness::agent::program().unwrap(), to).unwrap();
    fs::write(to, program).unwrap();
}

/// Link → what its program does, as the kernel's digest of it says.
fn programs(place: &Place) -> BTreeMap<String, String> {
    let told = |arguments: &[&str]| -> Value {
        let output = Command::new("bpftool")
            .arg("-j")
            .args(arguments)
            .output()
            .unwrap();
        serde_json::from_slice(&output.stdout).unwrap()
    };
    let all = told(&["prog", "list"]);
    let tag = |link: &Path| {
        let link = told(&["link", "show", "pinned", link.to_str().unwrap()]);
        let mut all = all.as_array().unwrap().iter();
        let program = all.find(|program| program["id"] == link["prog_id"]);
        program.unwrap()["tag"].as_str().unwrap().to_owned()
    };
    let links = pins(place, "links").into_iter();
    links
        .map(|(path, _)| (path.display().to_string(), tag(&path)))
        .collect()
}

/// Pin → its inode, another for each that is made.
fn pins(place: &Place, below: &str) -> BTreeMap<PathBuf, u64> {
    let directory = Path::new("/sys/fs/bpf").join(&place.name).join(below);
    let all = fs::read_dir(directory).unwrap().map(|entry| entry.unwrap());
    all.map(|entry| (entry.path(), entry.metadata().unwrap().ino()))
        .collect()
}

/// Whose processes are, and by what.
fn marks(place: &Place, of: &[u32]) -> BTreeSet<(u64, String, String)> {
    let workloads = place.workloads();
    let processes = workloads
        .iter()
        .flat_map(|workload| workload["processes"].as_array().unwrap());
    let word = |value: &Value| value.as_str().unwrap().to_owned();
    let marks = processes.map(|process| {
        let pid = process["pid"].as_u64().unwrap();
        (pid, word(&process["workload"]), word(&process["by"]))
    });
    let is_ours = |(pid, ..): &(u64, String, String)| of.iter().any(|one| u64::from(*one) == *pid);
    marks.filter(is_ours).collect()
}

struct Sleeper(Ended);

impl Sleeper {
    fn new(enter: &str) -> Self {
        let script = format!("{enter} sleep 300");
        let mut command = Command::new("sh");
        command.args(["-c", &script]).stdin(Stdio::null());
        Self(Ended(command.spawn().unwrap()))
    }
}

#[test]
fn an_upgrade_and_the_way_back_lose_nothing_and_let_nothing_out() {
    let sources = ["127.0.0.8", "::1"].map(Source::new);
    let mut place = Place::new();
    let user = format!("workloads:\n  person: {{ match: {{ user: {USER} }} }}\n");
    let [four, six] = [0, 1].map(|at: usize| sources[at].address);
    let policy = POLICY
        .replace("workloads:\n", &user)
        .replace("\"CGROUP/**\" }", "\"CGROUP/**\" }, established: report")
        .replace(
            "apis:",
            &format!("apis:\n  stream: {{ tcp: [\"{four}\", \"{six}\"] }}"),
        )
        .replace("roles:", "roles:\n  watcher: [{ api: stream }]")
        .replace(
            "grants:",
            "grants:\n  - { role: watcher, to: { workload: job } }",
        );
    place.write_policy(&policy);
    place.write_config("limits: { drain: 50ms }\n");
    let other = place.path("other");
    another_build(&other);
    let builds = [harness::agent::program().unwrap(), other];

    let own = Own::new();
    let [four, six, ..] = own.canaries();
    let canaries = [four, six];
    let connector = targets(&[&canaries[0].address, &canaries[1].address]) + CONNECTOR;
    Canary::all_hear(&canaries, &connector);
    sources.iter().for_each(Source::tells_whose);
    let unsteered = || -> (Vec<u64>, Vec<u64>) {
        let hits = canaries.iter().map(Canary::hits).collect();
        (hits, sources.iter().map(Source::unsteered).collect())
    };
    let before = unsteered();

    let mut talker = Talker::new(&place);
    place.start_build(&builds[0]);
    let cgroup = place.cgroup.clone();
    let (job, root) = (cgroup.display(), cgroup_root());
    let left = format!(
        "echo $$ > {job}/cgroup.procs && echo $$ > {}/cgroup.procs && exec",
        root.display()
    );
    let marked = [left, format!("exec setpriv --reuid={USER} --clear-groups")];
    let marked = marked.each_ref().map(|enter| Sleeper::new(enter));
    let pids = marked.each_ref().map(|sleeper| sleeper.0.id());
    let all = eventually(START, || {
        Some(marks(&place, &pids)).filter(|all| all.len() == 2)
    });
    let all = all.expect("they are not marked");
    let connector = Client::start(Some(&cgroup), &connector);
    let downloaders = sources
        .each_ref()
        .map(|source| Client::start(Some(&cgroup), &source.downloader()));

    let (first, maps) = (programs(&place), pins(&place, "maps"));
    let (mut counted, mut served) = (Counted::default(), [0; 2]);
    for (round, build) in [1, 0, 1, 0].into_iter().enumerate() {
        let is_served = || {
            let now = sources.each_ref().map(Source::served);
            now.iter()
                .zip(served)
                .all(|(now, was)| *now > was)
                .then_some(now)
        };
        served = eventually(START, is_served).expect("no download is under way");
        counted.go_on(&place, "while the agent ran");
        place.end([Signal::TERM, Signal::KILL][round / 2]);
        assert_eq!(talker.says(), [Ok(()); 2], "without an agent");
        place.start_build(&builds[build]);
        counted.go_on(&place, "before the upgrade");
        let now = programs(&place);
        assert!(now.keys().eq(first.keys()), "{first:?}, then {now:?}");
        for (link, tag) in &now {
            assert_eq!(first[link] == *tag, build == 0, "{link} in round {round}");
        }
        assert_eq!(pins(&place, "maps"), maps, "round {round}");
        assert_eq!(marks(&place, &pids), all, "round {round}");
        assert_eq!(talker.says(), [Ok(()); 2], "round {round}");
        assert_eq!(unsteered(), before, "round {round}");
    }
    let is_served = || {
        sources
            .iter()
            .zip(served)
            .all(|(source, was)| source.served() > was)
    };
    assert!(eventually(START, || is_served().then_some(())).is_some());
    let told = connector.finish();
    assert!(told["connects"]["steered"].as_u64() > Some(10), "{told}");
    for downloader in downloaders {
        assert!(downloader.finish()["got"].as_u64() > Some(1 << 16));
    }
    assert_eq!(unsteered(), before);
    assert_eq!(place.status()["verdict"]["state"], "enforcing");
}
