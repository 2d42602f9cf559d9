//! Who is recognised by what it is: user, executable, and both within a cgroup.
use crate::support::*;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use tollgate::kernel::{Case, CgroupPath, Event, FileState, Recognition, Runs};

pub(crate) const INTERN: u32 = 54_321;

pub(crate) fn case(
    workload: &str,
    uid: Option<u32>,
    executable: Runs,
    condition: Option<u32>,
) -> Case {
    Case {
        condition,
        meaning: condition.map_or(0, |bit| bit + 1),
        is_held: false,
        uid,
        executable,
        workload: workload.to_owned(),
        rank: 0,
        number: 7,
    }
}

/// A stand, and servers that only what is not governed reaches.
pub(crate) struct Scene {
    pub(crate) stand: Stand,
    pub(crate) servers: [Elsewhere; 2],
}

impl Scene {
    pub(crate) fn new(by: &Recognition) -> Self {
        Self::on(Stand::new(), by)
    }

    pub(crate) fn on(stand: Stand, by: &Recognition) -> Self {
        stand.fence().recognise(by).unwrap();
        let servers = ["127.0.0.1", "::1"].map(Elsewhere::new);
        Self { stand, servers }
    }

    pub(crate) fn script(&self, body: &str) -> String {
        format!(
            "PORTS = {}, {}
def both(): say(tcp('127.0.0.1', PORTS[0])[1], tcp('::1', PORTS[1])[1])
{body}",
            self.servers[0].address.port(),
            self.servers[1].address.port()
        )
    }

    /// A cgroup in which the rules of [`by_tool`] hold.
    pub(crate) fn of_tools(&self) -> Cgroup {
        let fence = self.stand.fence();
        let cgroup = Cgroup::new(fence.cgroup_root(), unique());
        fence.fulfils(&cgroup.name, 1).unwrap();
        cgroup
    }

    /// Runs the script; whose both connections were, and nobody's where they were free.
    pub(crate) fn whose(&self, body: &str) -> Option<String> {
        assert_eq!(python_outside(&self.script(body)), "ok ok", "{body}");
        self.who()
    }

    /// What the script connects comes to both servers, once the fence is lifted.
    fn is_free_without(&mut self, body: &str) {
        self.stand.lift();
        self.reaches(|| python_outside(&self.script(body)));
    }

    pub(crate) fn reaches(&self, mut connect: impl FnMut() -> String) {
        eventually("it is the fence that holds it", || {
            let is_made = connect() == "ok ok";
            let came = self.servers.each_ref();
            is_made && came.map(|server| server.listener.accept().is_ok()) == [true; 2]
        });
    }

    pub(crate) fn who(&self) -> Option<String> {
        if self.servers[0].listener.accept().is_ok() {
            accept(&self.servers[1].listener);
            return None;
        }
        let flows = [&self.stand.agent4, &self.stand.agent6]
            .map(|listener| self.stand.fence().flow_of(&accept(listener)).unwrap());
        assert_eq!(flows[0].workload, flows[1].workload);
        self.servers
            .iter()
            .for_each(|server| assert_quiet(&server.listener));
        Some(flows[0].workload.to_string())
    }
}

#[test]
fn a_user_is_recognised_when_it_connects_and_stays_so() {
    let by = Recognition {
        cases: vec![case("interns", Some(INTERN), Runs::Anything, None)],
        ..Recognition::default()
    };
    let mut scene = Scene::new(&by);
    let become_intern = format!("os.setresuid({INTERN}, {INTERN}, {INTERN}); both()");
    assert_eq!(scene.whose("both()"), None);
    assert_eq!(scene.whose(&become_intern).as_deref(), Some("interns"));
    assert_eq!(scene.whose("os.setresuid(5, 5, 5); both()"), None);
    // Asked in vain as somebody else, it is asked again as the intern. Once recognised it stays, whoever it becomes.
    for (at, ip) in ["127.0.0.1", "::1"].iter().enumerate() {
        let body = format!(
            "tcp('{ip}', 1)
os.setresuid({INTERN}, 0, 0); tcp('{ip}', PORTS[{at}]); os.setresuid(0, 0, 0); both()"
        );
        assert_eq!(python_outside(&scene.script(&body)), "ok ok");
        accept(scene.stand.agent(ip));
        assert_eq!(scene.who().as_deref(), Some("interns"));
    }
    // By exec, without a connection; its children inherit.
    let body = format!(
        "import subprocess
subprocess.run(['true'], user={INTERN})
pid = os.fork()
if pid == 0:
    os.setresuid({INTERN}, 0, 0)
    os.execv(sys.executable, ['python3', '-c', 'import os, sys; os.setresuid(0, 0, 0); print(os.getpid(), flush=True); sys.stdin.read()'])
say('made'); sys.stdin.readline(); os.kill(pid, 9); os.wait()"
    );
    let mut tree = Running::start_outside(&body);
    let mut lines = [tree.line(), tree.line()];
    lines.sort();
    let pid: u32 = lines[0].parse().unwrap();
    assert_eq!(
        scene.stand.fence().workload_of(pid).as_deref(),
        Some("interns")
    );
    tree.finish();
    scene.stand.lift();
    assert_eq!(python_outside(&scene.script(&become_intern)), "ok ok");
    scene
        .servers
        .iter()
        .for_each(|server| drop(accept(&server.listener)));
}

/// Also where no cgroup is governed, nor ever was: what is left then is the mark.
#[test]
fn who_was_recognised_stays_so_without_any_rules() {
    let by = Recognition {
        cases: vec![case("interns", Some(INTERN), Runs::Anything, None)],
        ..Recognition::default()
    };
    let mut scene = Scene::on(Stand::governs_nothing(), &by);
    let body = scene.script(&format!(
        "os.setresuid({INTERN}, {INTERN}, {INTERN})
for line in sys.stdin: both()"
    ));
    let mut intern = Running::start_outside(&body);
    let mut connects = || {
        intern.send("\n");
        intern.line()
    };
    assert_eq!(connects(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("interns"));
    scene
        .stand
        .fence()
        .recognise(&Recognition::default())
        .unwrap();
    assert_eq!(connects(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("interns"));
    let new = format!("os.setresuid({INTERN}, {INTERN}, {INTERN}); both()");
    assert_eq!(scene.whose(&new), None, "there is no rule");
    scene.stand.lift();
    scene.reaches(connects);
}

#[test]
fn a_user_within_a_cgroup_is_both() {
    let stand = Stand::new();
    let root = stand.fence().cgroup_root().to_owned();
    let (near, far) = (unique(), Cgroup::new(&root, unique()));
    let by = Recognition {
        paths: vec![CgroupPath {
            is_own: false,
            names: vec![Some(near.clone())],
            slices: false,
            workload: None,
            rank: 0,
            condition: Some(5),
        }],
        cases: vec![case("near", Some(INTERN), Runs::Anything, Some(5))],
        ..Recognition::default()
    };
    drop(stand);
    let mut scene = Scene::new(&by);
    let near = Cgroup::new(&root, near);
    let inner = near.child("inner");
    let within = |cgroup: &Cgroup, uid: u32| {
        let path = cgroup.path();
        format!(
            "enter('{}'); os.setresuid({uid}, {uid}, {uid}); both()",
            path.display()
        )
    };
    assert_eq!(scene.whose(&within(&near, INTERN)).as_deref(), Some("near"));
    assert_eq!(
        scene.whose(&within(&inner, INTERN)).as_deref(),
        Some("near")
    );
    assert_eq!(scene.whose(&within(&near, 5)), None);
    assert_eq!(scene.whose(&within(&far, INTERN)), None);
    // A cgroup that was there before, and one that no longer counts.
    scene.stand.fence().fulfils(&far.name, 1 << 5).unwrap();
    assert_eq!(scene.whose(&within(&far, INTERN)).as_deref(), Some("near"));
    scene.stand.fence().fulfils(&far.name, 0).unwrap();
    assert_eq!(scene.whose(&within(&far, INTERN)), None);
    scene.is_free_without(&within(&near, INTERN));
}

/// What was nobody's elsewhere is asked for again in the cgroup: of a child that is made there and runs nothing else, and of a thread
/// that goes there by itself.
#[test]
fn a_user_is_nobodys_only_where_it_was_asked_for() {
    let mut scene = Scene::new(&Recognition {
        cases: vec![case("near", Some(INTERN), Runs::Anything, Some(0))],
        ..Recognition::default()
    });
    let root = scene.stand.fence().cgroup_root().to_owned();
    let (near, domain) = (scene.of_tools(), Cgroup::new(&root, unique()));
    let [inside, outside] = ["inside", "outside"].map(|name| domain.child(name));
    for cgroup in [&inside, &outside] {
        std::fs::write(cgroup.path().join("cgroup.type"), "threaded").unwrap();
    }
    scene.stand.fence().fulfils(&inside.name, 1).unwrap();
    let child = format!(
        "import ctypes, struct
directory = os.open({:?}, os.O_RDONLY | os.O_DIRECTORY)
def intern(): os.setresuid({INTERN}, {INTERN}, 0)
intern()
with socket.socket(): pass # Asked for here.
os.seteuid(0)
arguments = ctypes.create_string_buffer(struct.pack('11Q', 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, directory))
sys.stdout.flush()
pid = ctypes.CDLL(None).syscall(435, arguments, 88)
assert pid >= 0
if pid == 0:
    intern(); both(); os._exit(0)
os.waitpid(pid, 0)",
        near.path()
    );
    let thread = format!(
        "import threading
enter('{outside}')
def alone():
    with open('{inside}/cgroup.threads', 'w') as f: f.write(str(threading.get_native_id()))
there, asked = threading.Event(), threading.Event()
def wait(): alone(); there.set(); asked.wait(); both()
t = threading.Thread(target=wait); t.start(); there.wait()
os.setresuid({INTERN}, {INTERN}, 0)
with socket.socket(): pass # Asked for there.
asked.set(); t.join()",
        inside = inside.path().display(),
        outside = outside.path().display()
    );
    for body in [&child, &thread] {
        assert_eq!(scene.whose(body).as_deref(), Some("near"), "{body}");
    }
    scene.stand.lift();
    for body in [&child, &thread] {
        assert_eq!(scene.whose(body), None);
    }
}

/// A copy of a shell, that is called `name`.
pub(crate) fn copy(folder: &Path, name: &str) -> PathBuf {
    let to = folder.join(name);
    std::fs::copy("/bin/bash", &to).unwrap();
    std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
    to
}

pub(crate) fn state(path: &Path) -> FileState {
    let found = path.metadata().unwrap();
    let device = rustix::fs::major(found.dev()) << 20 | rustix::fs::minor(found.dev());
    FileState {
        device,
        inode: found.ino(),
        changed: (found.ctime(), u32::try_from(found.ctime_nsec()).unwrap()),
    }
}

/// What a shell connects by, to both servers.
pub(crate) fn connecting(scene: &Scene) -> String {
    let [v4, v6] = [0, 1].map(|at| scene.servers[at].address.port());
    format!(
        "for at in 127.0.0.1/{v4} ::1/{v6}; do (exec 3<>/dev/tcp/$at) 2>/dev/null && echo -n 'ok ' || echo -n 'refused '; done"
    )
}

/// Replaces the process by this shell, which then connects.
pub(crate) fn exec_by(program: &Path, scene: &Scene) -> String {
    format!(
        "os.execv('{}', ['bash', '-c', {:?}])",
        program.display(),
        connecting(scene)
    )
}

/// The same, in a cgroup.
pub(crate) fn exec_within(cgroup: &Cgroup, program: &Path, scene: &Scene) -> String {
    let enter = format!("enter('{}')", cgroup.path().display());
    format!("{enter}\n{}", exec_by(program, scene))
}

/// Becomes a copy of this program that has no name in any directory.
fn exec_from_memory(program: &Path, scene: &Scene) -> String {
    format!(
        "memory = os.memfd_create('tool')
with open('{}', 'rb') as file: os.sendfile(memory, file.fileno(), 0, os.fstat(file.fileno()).st_size)
os.dup2(memory, 9)
{}",
        program.display(),
        exec_by(Path::new("/proc/self/fd/9"), scene)
    )
}

/// What runs a program that is named to it, as the kernel has it do with every program that needs it.
const LOADER: &str = "/lib64/ld-linux-x86-64.so.2";

pub(crate) const REFUSED: &str = "refused refused";

/// Within a cgroup of its own: what else runs on this machine is not to wait for a look that nobody takes.
pub(crate) fn by_tool() -> Recognition {
    Recognition {
        cases: vec![
            case("tools", None, Runs::Class(3), Some(0)),
            case("tools", None, Runs::Unknown, Some(0)),
        ],
        exe_names: ["tool".to_owned()].into(),
        by_executable: true,
        ..Recognition::default()
    }
}

#[test]
fn an_executable_is_its_file_and_not_its_path() {
    let folder = tempfile::tempdir().unwrap();
    let (tool, same, link) = (
        copy(folder.path(), "tool"),
        copy(folder.path(), "same"),
        folder.path().join("link"),
    );
    std::fs::hard_link(&tool, &link).unwrap();
    let mut scene = Scene::new(&by_tool());
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    let exec = |program: &Path| exec_within(&within, program, &scene);
    fence.know(&state(&tool), Some(3)).unwrap();
    assert_eq!(scene.whose(&exec(&tool)).as_deref(), Some("tools"));
    assert_eq!(scene.whose(&exec(&link)).as_deref(), Some("tools"));
    assert_eq!(scene.whose(&exec(&same)), None, "another file");
    // Mounted over something else's path, in a namespace of its own, it still is what it is.
    let mounted = format!(
        "import ctypes
c = ctypes.CDLL(None)
assert c.unshare(0x20000) == 0 and c.mount(b'none', b'/', None, 0x44000, None) == 0
assert c.mount(b'{}', b'{}', None, 0x1000, None) == 0
{}",
        tool.display(),
        same.display(),
        exec(&same)
    );
    assert_eq!(scene.whose(&mounted).as_deref(), Some("tools"));

    // Replaced: what runs by this name now was not looked at yet, is refused, and is told to the agent.
    let new = copy(folder.path(), "new");
    std::fs::rename(&new, &tool).unwrap();
    assert_eq!(python_outside(&scene.script(&exec(&tool))), REFUSED);
    let new = state(&tool);
    let is_told = |event: &Event| matches!(event, Event::Unseen { file, .. } if *file == new);
    crate::refuse::events(fence, |events| events.iter().any(is_told));
    fence.know(&state(&tool), None).unwrap();
    assert_eq!(scene.whose(&exec(&tool)), None);
    fence.know(&state(&tool), Some(3)).unwrap();
    assert_eq!(scene.whose(&exec(&tool)).as_deref(), Some("tools"));
    // Written to: another content, so not known.
    std::fs::OpenOptions::new()
        .append(true)
        .open(&tool)
        .unwrap()
        .set_len(tool.metadata().unwrap().size() + 1)
        .unwrap();
    let body = exec(&tool);
    assert_eq!(python_outside(&scene.script(&body)), REFUSED);
    scene.is_free_without(&body);
}

/// What the kernel has as the file that runs: a script's interpreter, and of a program that its loader was told to run, the
/// loader. That and a copy are the same to the workload, and not to a rule that names a file (SECURITY.md: copies).
#[test]
fn an_executable_is_what_the_kernel_runs() {
    let folder = tempfile::tempdir().unwrap();
    let (tool, same) = (copy(folder.path(), "tool"), copy(folder.path(), "same"));
    let mut scene = Scene::new(&by_tool());
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    let entered = |body: &str| format!("enter('{}')\n{body}", within.path().display());
    let exec = |program: &Path| exec_within(&within, program, &scene);
    fence.know(&state(&tool), Some(3)).unwrap();
    assert_eq!(scene.whose(&exec(&tool)).as_deref(), Some("tools"));

    let script = |interpreter: &Path| {
        let to = folder.path().join("script");
        let text = format!("#!{}\n{}\n", interpreter.display(), connecting(&scene));
        std::fs::write(&to, text).unwrap();
        std::fs::set_permissions(&to, std::fs::Permissions::from_mode(0o755)).unwrap();
        exec(&to)
    };
    assert_eq!(scene.whose(&script(&tool)).as_deref(), Some("tools"));
    assert_eq!(scene.whose(&script(&same)), None, "by another one");

    let from_memory = entered(&exec_from_memory(&tool, &scene));
    assert_eq!(scene.whose(&from_memory), None, "a copy");
    let loaded = format!(
        "os.execv('{}', ['loader', '{}', '-c', {:?}])",
        LOADER,
        tool.display(),
        connecting(&scene)
    );
    assert_eq!(scene.whose(&entered(&loaded)), None, "the loader");

    // Without a name it still is the file, changed by that: it waits for a look, by whoever has it open.
    let held = std::fs::File::open(&tool).unwrap();
    std::fs::remove_file(&tool).unwrap();
    let nameless = PathBuf::from(format!(
        "/proc/{}/fd/{}",
        std::process::id(),
        held.as_raw_fd()
    ));
    assert_eq!(python_outside(&scene.script(&exec(&nameless))), REFUSED);
    fence.know(&state(&nameless), Some(3)).unwrap();
    assert_eq!(scene.whose(&exec(&nameless)).as_deref(), Some("tools"));
    fence.know(&state(&nameless), None).unwrap();
    assert_eq!(scene.whose(&exec(&nameless)), None, "as the agent says");
    fence.know(&state(&nameless), Some(3)).unwrap();
    let body = exec(&nameless);
    assert_eq!(scene.whose(&body).as_deref(), Some("tools"));
    scene.is_free_without(&body);
}

/// A user's programs of class 4, which any that is not known may be of.
pub(crate) fn by_digest() -> Recognition {
    Recognition {
        cases: vec![
            case("digest", Some(INTERN), Runs::Class(4), None),
            case("digest", Some(INTERN), Runs::Unknown, None),
        ],
        by_executable: true,
        by_digest: true,
        ..Recognition::default()
    }
}

#[test]
fn with_digests_every_unknown_executable_waits() {
    let folder = tempfile::tempdir().unwrap();
    let any = copy(folder.path(), "any");
    let mut scene = Scene::new(&by_digest());
    let fence = scene.stand.fence();
    std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
    let as_intern = format!(
        "os.setresuid({INTERN}, {INTERN}, {INTERN}); {}",
        exec_by(&any, &scene)
    );
    assert_eq!(python_outside(&scene.script(&as_intern)), REFUSED);
    // Whom no rule means, whatever it runs, does not wait.
    assert_eq!(scene.whose(&exec_by(&any, &scene)), None);
    fence.know(&state(&any), Some(4)).unwrap();
    assert_eq!(scene.whose(&as_intern).as_deref(), Some("digest"));
    assert_eq!(scene.whose(&exec_by(&any, &scene)), None);
    fence.know(&state(&any), None).unwrap();
    assert_eq!(scene.whose(&as_intern), None);
    // A copy is a file to look at, wherever it is.
    let from_memory = exec_from_memory(&any, &scene);
    let as_intern = format!("os.setresuid({INTERN}, {INTERN}, {INTERN})\n{from_memory}");
    assert_eq!(python_outside(&scene.script(&as_intern)), REFUSED);
    assert_eq!(scene.whose(&from_memory), None);
    scene.is_free_without(&as_intern);
}

#[test]
fn what_runs_already_is_enrolled_by_a_rule_and_let_go_with_its_workload() {
    let mut scene = Scene::new(&Recognition::default());
    let body = scene.script("say('up')\nfor line in sys.stdin: both()");
    let mut client = Running::start_outside(&body);
    assert_eq!(client.line(), "up");
    let fence = scene.stand.fence();
    assert_eq!(
        fence.enrol(client.pid(), "late", 3).unwrap(),
        [client.pid()]
    );
    client.send("\n");
    assert_eq!(client.line(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("late"));
    fence.forget_workloads(|name| name != "late").unwrap();
    assert_eq!(fence.workload_of(client.pid()), None);
    client.send("\n");
    assert_eq!(client.line(), "ok ok");
    assert_eq!(scene.who(), None);
    fence.enrol(client.pid(), "late", 3).unwrap();
    client.send("\n");
    assert_eq!(client.line(), "ok ok");
    assert_eq!(scene.who().as_deref(), Some("late"));
    scene.stand.lift();
    scene.reaches(|| {
        client.send("\n");
        client.line()
    });
    client.finish();
}

/// Whoever may run programs may fill the list of those that were looked at: the next look empties it.
#[test]
fn a_list_of_executables_that_is_full_hides_nobody() {
    let folder = tempfile::tempdir().unwrap();
    let (tool, new) = (copy(folder.path(), "tool"), copy(folder.path(), "new"));
    let by = Recognition {
        by_digest: true,
        ..by_tool()
    };
    let mut scene = Scene::new(&by);
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    let exec = |program: &Path| exec_within(&within, program, &scene);
    fence.know(&state(&tool), Some(3)).unwrap();
    fill(&scene.stand, "EXECUTABLES");
    assert_eq!(
        scene.whose(&exec(&tool)).as_deref(),
        Some("tools"),
        "as before"
    );
    assert_eq!(
        python_outside(&scene.script(&exec(&new))),
        REFUSED,
        "it waits for a look"
    );
    let new = state(&new);
    let is_told = |event: &Event| matches!(event, Event::Unseen { file, .. } if *file == new);
    crate::refuse::events(fence, |events| events.iter().any(is_told));
    fence.know(&new, Some(3)).unwrap();
    let new = folder.path().join("new");
    assert_eq!(scene.whose(&exec(&new)).as_deref(), Some("tools"));
    // The first one was not forgotten with the rest.
    assert_eq!(scene.whose(&exec(&tool)).as_deref(), Some("tools"));
    fence.know(&state(&tool), None).unwrap();
    assert_eq!(scene.whose(&exec(&tool)), None);
    let body = exec(&new);
    scene.stand.lift();
    eventually("nobody steers it", || scene.whose(&body).is_none());
}

/// Emptying it leaves what is of a class: by another name than the rules have it would be taken for nobody's.
#[test]
fn a_list_of_executables_that_is_full_keeps_those_that_rules_mean() {
    let folder = tempfile::tempdir().unwrap();
    let (tool, new) = (copy(folder.path(), "tool"), copy(folder.path(), "new"));
    let link = folder.path().join("link");
    std::fs::hard_link(&tool, &link).unwrap();
    let mut scene = Scene::new(&by_tool());
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    let body = exec_within(&within, &link, &scene);
    fence.know(&state(&tool), Some(3)).unwrap();
    fill(&scene.stand, "EXECUTABLES");
    fence.know(&state(&new), None).unwrap();
    assert_eq!(scene.whose(&body).as_deref(), Some("tools"));
    scene.stand.lift();
    eventually("nobody steers it", || scene.whose(&body).is_none());
}
