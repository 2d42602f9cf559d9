//! Local daemons' sockets that a command under `tollgate run` is not to find, where covering them is all there is: the launcher is
//! started by hand here, and no hook holds what it starts.
use crate::support::*;
use harness::process::Ended;
use std::fs;
use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

/// Nobody else on this host.
const USER: &str = "4242";

/// `tollgate launch`, as `run` calls it, where the kernel holds nobody to anything.
fn launch(place: &Place, program: &[&str]) -> Command {
    launch_as(place, &[], program)
}

/// The same, with more of what `run` tells it.
fn launch_as(place: &Place, told: &[&str], program: &[&str]) -> Command {
    let browsers = place.path("browsers");
    fs::create_dir_all(&browsers).unwrap();
    let mut command = place.tollgate(&["launch", "--uid", USER, "--gid", USER]);
    command.args(told);
    command.arg("--cgroup").arg(&place.cgroup);
    command.arg("--bundle").arg("/dev/null");
    command.arg("--browsers").arg(&browsers);
    command.arg("--").args(program).current_dir("/tmp");
    command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command
}

/// What came of it; one that does not end is ended.
fn ended(mut command: Command) -> Output {
    let (mut child, began) = (command.spawn().unwrap(), Instant::now());
    while child.try_wait().unwrap().is_none() {
        if began.elapsed() > START {
            child.kill().unwrap();
        }
        std::thread::sleep(Duration::from_millis(10));
    }
    child.wait_with_output().unwrap()
}

/// A process outside that is governed by nobody, and says so when it is ready.
fn neighbour(launcher: &[&str], script: &str, at: &Path) -> Ended {
    let mut command = Command::new(launcher[0]);
    command
        .args(&launcher[1..])
        .args(["python3", "-c", script])
        .arg(at);
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let mut child = command.spawn().unwrap();
    let mut said = String::new();
    BufReader::new(child.stdout.as_mut().unwrap())
        .read_line(&mut said)
        .unwrap();
    assert_eq!(said, "ready\n");
    Ended(child)
}

/// A line by which a script becomes the user, who may not read where modules are.
const AS_USER: &str = "import ctypes, errno, os, socket, sys; os.setgroups([]); os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)\n";

/// A directory that the user may write.
fn folder(place: &Place) -> std::path::PathBuf {
    let folder = place.path("folder");
    fs::create_dir(&folder).unwrap();
    std::os::unix::fs::chown(&folder, Some(4242), Some(4242)).unwrap();
    folder
}

/// What comes of connecting to each of those names.
const CONNECT: &str = r#"
import errno, os, socket, sys
for path in sys.argv[1:]:
    try:
        socket.socket(socket.AF_UNIX).connect(path)
        print(path, "reached")
    except OSError as e:
        print(path, errno.errorcode[e.errno])
"#;

fn connect<'a>(paths: &[&'a str]) -> Vec<&'a str> {
    [&["python3", "-c", CONNECT], paths].concat()
}

fn lines(output: &Output) -> Vec<String> {
    let said = text(&output.stdout);
    assert!(output.status.success(), "{said}{}", text(&output.stderr));
    said.lines().map(str::to_owned).collect()
}

/// Whoever has a user namespace has a view of the mounts in which any name is his own socket's. Where root walks there in its own view,
/// a server of files that is away has it wait for ever.
#[test]
fn a_filesystem_that_never_answers_keeps_no_run_from_starting() {
    let place = Place::new();
    let at = folder(&place);
    let served = fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/fuse")
        .unwrap();
    let options = format!(
        "fd={},rootmode=40000,user_id=4242,group_id=4242,allow_other",
        std::os::fd::AsRawFd::as_raw_fd(&served)
    );
    let options = std::ffi::CString::new(options).unwrap();
    let flags = rustix::mount::MountFlags::empty();
    rustix::mount::mount("stranger", &at, "fuse", flags, options.as_c_str()).unwrap();
    // In a view of his own there is another filesystem.
    let script = r#"
import ctypes, os, socket, sys
libc = ctypes.CDLL(None, use_errno=True)
assert libc.mount(b"none", sys.argv[1].encode(), b"tmpfs", 0, None) == 0
os.mkdir(sys.argv[1] + "/deep")
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + "/deep/socket")
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"#;
    let stranger = neighbour(&["unshare", "-m", "--propagation", "private"], script, &at);
    let output = ended(launch(&place, &["echo", "started"]));
    drop((stranger, served));
    let _ = rustix::mount::unmount(&at, rustix::mount::UnmountFlags::DETACH);
    assert_eq!(lines(&output), ["started"]);
}

/// Where the kernel holds the command to what policy names, there are no more sockets to cover than can be covered.
#[test]
fn who_has_more_sockets_than_can_be_covered_is_started_where_the_kernel_holds() {
    let mut place = Place::new();
    place.start();
    let script = r#"
import os, resource, socket, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (8192, 8192))
os.setgroups([]); os.setresgid(4242, 4242, 4242); os.setresuid(4242, 4242, 4242)
all = [socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) for _ in range(4100)]
for number, one in enumerate(all):
    one.bind(sys.argv[1] + "/%d" % number)
print("ready", flush=True)
sys.stdin.read()
"#;
    let at = folder(&place);
    let _many = neighbour(&["env"], script, &at);
    let mut run = place.tollgate(&["run", "--workload", "by-hand", "--user", USER, "--"]);
    run.args(["echo", "started"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let started = ended(run);
    assert_eq!(lines(&started), ["started"]);
    let told = text(&started.stderr);
    assert!(told.contains("are not covered: 4096 are at most"), "{told}");
    // Fail closed: one that is not covered leads out.
    let refused = ended(launch(&place, &["echo", "started"]));
    let told = text(&refused.stderr);
    assert_eq!(refused.status.code(), Some(125), "{told}");
    assert!(told.contains("have more sockets than the 4096"), "{told}");
}

/// `bind` is told one name; what the file is called later is nobody's to tell.
#[test]
fn a_socket_is_covered_by_the_names_that_it_has_now() {
    let place = Place::new();
    let at = folder(&place);
    let again = place.path("again");
    fs::create_dir(&again).unwrap();
    rustix::mount::mount_bind(&at, &again).unwrap();
    let script = r#"
import os, socket, sys
os.chdir(sys.argv[1])
def listen(name):
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(name)
    listener.listen()
    all.append(listener)
all = []
here = sys.argv[1] + "/"
# As OpenSSH does.
listen(here + "control.X")
os.link("control.X", "control")
os.unlink("control.X")
listen(here + "before")
os.rename("before", "renamed")
listen(here + "plain")
print("ready", flush=True)
sys.stdin.read()
"#;
    let _neighbour = neighbour(&["env"], &format!("{AS_USER}{script}"), &at);
    let names = ["control", "renamed", "plain"];
    let names = [&at, &again].map(|at| names.map(|name| at.join(name).display().to_string()));
    let names: Vec<&str> = names.as_flattened().iter().map(String::as_str).collect();
    let script = format!("{AS_USER}{CONNECT}");
    let outside = Command::new("python3")
        .args(["-c", &script])
        .args(&names)
        .output();
    let output = ended(launch(&place, &connect(&names)));
    let named = ["--unix", names[1]];
    let open = ended(launch_as(&place, &named, &connect(&names)));
    let _ = rustix::mount::unmount(&again, rustix::mount::UnmountFlags::DETACH);
    let said = |what: &str| {
        names
            .iter()
            .map(|name| format!("{name} {what}"))
            .collect::<Vec<_>>()
    };
    assert_eq!(lines(&outside.unwrap()), said("reached"));
    assert_eq!(lines(&output), said("ECONNREFUSED"));
    // What policy names is reached by that name, whatever its daemon bound.
    let mut wanted = said("ECONNREFUSED");
    wanted[1] = format!("{} reached", names[1]);
    assert_eq!(lines(&open), wanted);
}

/// A daemon may be in another network than who can look its path up.
#[test]
fn sockets_of_other_network_namespaces_are_covered() {
    let place = Place::new();
    let at = folder(&place);
    let script = r#"
import socket, sys
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + "/socket")
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"#;
    let script = format!("{AS_USER}{script}");
    let _neighbour = neighbour(&["unshare", "-n"], &script, &at);
    let name = at.join("socket").display().to_string();
    let output = ended(launch(&place, &connect(&[&name])));
    assert_eq!(lines(&output), [format!("{name} ECONNREFUSED")]);
}

/// Where a name is relative nobody knows any more to what; who starts the command is told.
#[test]
fn sockets_that_are_not_found_are_told_of() {
    let place = Place::new();
    let script = r#"
import os, socket, sys
os.chdir(sys.argv[1])
listener = socket.socket(socket.AF_UNIX)
listener.bind("relative")
listener.listen()
print("ready", flush=True)
sys.stdin.read()
"#;
    let _neighbour = neighbour(&["env"], &format!("{AS_USER}{script}"), &folder(&place));
    let told = text(&ended(launch(&place, &["true"])).stderr);
    assert!(
        told.contains("sockets are not where they were bound"),
        "{told}"
    );
}

/// Through another process of the same user lies the host as that one sees it, with nothing covered.
#[test]
fn nothing_is_reached_by_way_of_another_process() {
    let place = Place::new();
    let at = folder(&place);
    let script = r#"
listener = socket.socket(socket.AF_UNIX)
listener.bind(sys.argv[1] + "/socket")
listener.listen()
os.chdir(sys.argv[1])
# One that became the user can be looked at by nobody else of theirs, until it becomes another program.
child = subprocess.Popen(["cat"], stdin=subprocess.PIPE)
with open("pid", "w") as file:
    file.write(str(child.pid))
print("ready", flush=True)
sys.stdin.read()
"#;
    let script = format!("import subprocess\n{AS_USER}{script}");
    let _neighbour = neighbour(&["env"], &script, &at);
    let process = fs::read_to_string(at.join("pid")).unwrap();
    let (root, cwd) = (
        format!("/proc/{process}/root"),
        format!("/proc/{process}/cwd"),
    );
    let paths = [
        format!("{root}{}/socket", at.display()),
        format!("{cwd}/socket"),
    ];
    let script = format!(
        r#"{CONNECT}
os.chdir("{}")
for name in "from", "to":
    os.makedirs(name, exist_ok=True)
open("from/file", "w").close()
os.rename("from/file", "to/file")
print("moved")
"#,
        at.display()
    );
    let program = ["python3", "-c", &script, &paths[0], &paths[1]];
    let output = ended(launch(&place, &program));
    let (came, told) = (lines(&output), text(&output.stderr));
    let reached = paths.each_ref().map(|path| format!("{path} reached"));
    let moved = ["moved".to_owned()];
    // Landlock's version, by the number of its first system call.
    let version = "import ctypes; print(ctypes.CDLL(None).syscall(444, None, 0, 1))";
    let version = Command::new("python3")
        .args(["-c", version])
        .output()
        .unwrap();
    if text(&version.stdout).trim().parse::<i32>().unwrap() >= 2 {
        let refused = paths.each_ref().map(|path| format!("{path} EACCES"));
        assert_eq!(came, [&refused[..], &moved].concat());
        assert!(told.contains("does not let it mount"), "{told}");
        assert!(told.contains("abstract ones"), "{told}");
        let mounts = ["unshare", "--user", "--map-root-user", "--mount", "true"];
        assert!(!ended(launch(&place, &mounts)).status.success());
        assert!(
            ended(launch_as(&place, &["--unix-held"], &mounts))
                .status
                .success()
        );
    } else {
        assert_eq!(came, [&reached[..], &moved].concat());
        assert!(told.contains("has no Landlock"), "{told}");
    }
    // Where the kernel holds the command there is no domain, and what it does not hold here is reached.
    let held = ended(launch_as(&place, &["--unix-held"], &program));
    assert_eq!(lines(&held), [&reached[..], &moved].concat());
    // Where nobody says whether it does it is as if it did not.
    let older = ended(launch_as(&place, &["--agent-is-older"], &program));
    assert_eq!(lines(&older), came);
    let told = text(&older.stderr);
    assert!(told.contains("older than this program"), "{told}");
    assert!(told.contains("Landlock"), "{told}");
}

/// Whether the kernel holds the command is asked of it when a run begins, not remembered.
#[test]
fn a_run_is_told_where_no_hook_holds_it_to_unix_sockets() {
    let mut place = Place::new();
    place.write_config("fence_check: 1h\n");
    place.start();
    let run = [
        "run",
        "-q",
        "--workload",
        "by-hand",
        "--user",
        USER,
        "--",
        "true",
    ];
    assert_eq!(text(&place.output(&run).stderr), "");
    let links = Path::new("/sys/fs/bpf").join(&place.name).join("links");
    let hooks =
        ["connect_unix", "unix_stream_connect"].map(|hook| fs::remove_file(links.join(hook)));
    assert_eq!(hooks.iter().filter(|removed| removed.is_ok()).count(), 1);
    let told = text(&place.output(&run).stderr);
    assert!(
        told.contains("no hook is known to hold the command to Unix sockets"),
        "{told}"
    );
}
