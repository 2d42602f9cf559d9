//! What a command under `tollgate run` cannot undo, as root and from a user namespace of its own.
use crate::support::*;
use std::fs;
use std::process::{Command, Output};

/// Lines of `mountinfo` without the counters that change by themselves.
fn host_mounts() -> Vec<String> {
    let table = fs::read_to_string("/proc/self/mountinfo").unwrap();
    // Other tests mount at the same time, but not these.
    let kinds = [" - cgroup", " - bpf ", " - proc ", " - sysfs "];
    table
        .lines()
        .filter(|line| kinds.iter().any(|kind| line.contains(kind)))
        .map(str::to_owned)
        .collect()
}

fn as_user(place: &Place, user: &str, program: &[&str]) -> Command {
    let mut command = place.tollgate(&["run", "-q", "--workload", "by-hand", "--user", user, "--"]);
    // Where even nobody may write.
    command.args(program).current_dir("/tmp");
    command
}

fn run_as(place: &Place, user: &str, program: &[&str]) -> Output {
    as_user(place, user, program).output().unwrap()
}

/// The same with a descriptor 9 that its caller left open: those that the tests have open themselves close on exec.
fn with_a_descriptor(command: &Command) -> Output {
    let mut shell = Command::new("sh");
    shell.args(["-c", "exec \"$@\" 9</dev/null", "sh"]);
    shell.arg(command.get_program()).args(command.get_args());
    for (name, value) in command.get_envs() {
        shell.env(name, value.unwrap_or_default());
    }
    if let Some(directory) = command.get_current_dir() {
        shell.current_dir(directory);
    }
    shell.stdin(std::process::Stdio::null()).output().unwrap()
}

fn said(output: &Output) -> Vec<String> {
    let text = text(&output.stdout);
    assert!(output.status.success(), "{text}{output:?}");
    text.lines().map(str::to_owned).collect()
}

/// Prints a line for each attempt: its name and `refused`, or what came of it.
const ATTEMPTS: &str = r#"
import ctypes, os, struct, sys
libc = ctypes.CDLL(None, use_errno=True)
cgroups, pins, secrets, state = sys.argv[1:]
def attempt(name, act):
    try:
        got = act()
    except OSError:
        got = None
    print(name, "refused" if got is None else got)
def call(function, *arguments):
    return "done" if function(*arguments) >= 0 else None
def write(path, text):
    with open(path, "w") as file:
        file.write(text)
    return "done"
def clone_into(path):
    directory = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    arguments = ctypes.create_string_buffer(struct.pack("11Q", 1 << 33, 0, 0, 0, 17, 0, 0, 0, 0, 0, directory))
    pid = libc.syscall(435, arguments, 88)
    if pid == 0:
        os._exit(0)
    return None if pid < 0 else "done"
REMOUNT = 4096 | 32
def mounts():
    attempt("remount", lambda: call(libc.mount, None, cgroups.encode(), None, REMOUNT, None))
    attempt("uncover", lambda: call(libc.umount2, cgroups.encode(), 2))
    attempt("unpin", lambda: call(libc.umount2, b"/sys/fs/bpf", 2))
def namespace():
    print("namespace", call(libc.unshare, 0x10000000 | 0x20000 | 0x02000000))
"#;

fn attempts(place: &Place, user: &str, then: &str) -> Vec<String> {
    let (secrets, state) = (place.path("secrets"), place.path("state"));
    let pins = format!("/sys/fs/bpf/{}", place.name);
    let root = cgroup_root();
    let program = format!("{ATTEMPTS}{then}");
    let arguments = [
        "python3",
        "-c",
        &program,
        root.to_str().unwrap(),
        &pins,
        secrets.to_str().unwrap(),
        state.to_str().unwrap(),
    ];
    said(&run_as(place, user, &arguments))
}

#[test]
fn root_cannot_leave_its_cgroup_nor_touch_the_fence() {
    let mut place = Place::new();
    place.start();
    let before = host_mounts();
    let elsewhere = place.name.clone();
    let agent = place.agent.as_ref().unwrap().id();
    let then = format!(
        r#"
print(open("/proc/self/status").read().split("CapEff:")[1].split()[0], open("/proc/self/cgroup").read().split("\n")[-2])
attempt("join another", lambda: write(cgroups + "/{elsewhere}/cgroup.procs", "0"))
attempt("join own", lambda: write(cgroups + "/cgroup.procs", "0"))
attempt("make one", lambda: os.mkdir(cgroups + "/sub"))
attempt("clone into another", lambda: clone_into(cgroups + "/{elsewhere}"))
attempt("clone into one above", lambda: clone_into(cgroups + "/../{elsewhere}"))
attempt("by the agent's root", lambda: write("/proc/%d/root%s/cgroup.procs" % (os.getppid(), cgroups), "0"))
mounts()
attempt("pins", lambda: os.listdir(pins))
attempt("remove a pin", lambda: os.unlink(pins + "/links/connect4"))
attempt("secrets", lambda: open(secrets + "/key").read())
attempt("state", lambda: os.listdir(state))
attempt("the agent's memory", lambda: open("/proc/{agent}/mem", "rb"))
attempt("core_pattern", lambda: write("/proc/sys/kernel/core_pattern", "|/bin/false"))
attempt("uevent_helper", lambda: write("/sys/kernel/uevent_helper", "/bin/false"))
"#
    );
    let lines = attempts(&place, "root", &then);
    assert_eq!(lines[0], "0000000000000000 0::/");
    assert_eq!(lines.len(), 17, "{lines:#?}");
    for line in &lines[1..] {
        assert!(line.ends_with(" refused"), "{line}");
    }
    assert_eq!(before, host_mounts(), "the host's mounts are as they were");
    assert!(place.path("secrets/key").exists() && place.path("state/decisions").exists());
    fs::create_dir(place.cgroup.join("still-writable")).unwrap();
    fs::remove_dir(place.cgroup.join("still-writable")).unwrap();
}

/// In a user namespace a process has every capability over what the namespace owns, and may mount cgroup2.
#[test]
fn a_user_namespace_is_no_way_out() {
    let mut place = Place::new();
    place.start();
    let then = format!(
        r#"
import subprocess, tempfile
namespace()
mounts()
own = tempfile.mkdtemp()
print("mount", call(libc.mount, b"none", own.encode(), b"cgroup2", 0, None))
print("inside", os.path.exists(own + "/cgroup.procs"), os.path.exists(own + "/{}"))
def deeper():
    os.mkdir(own + "/deeper")
    return write(own + "/deeper/cgroup.procs", "0")
attempt("deeper", deeper)
# Without exec: an exec would take what the namespace gave. The child must not inherit words not yet written.
import sys
sys.stdout.flush()
if os.fork() == 0:
    import socket
    for ip, host in ("198.51.100.7", b"198.51.100.7"), ("2001:db8::7", b"[2001:db8::7]"):
        s = socket.create_connection((ip, 80), 5)
        s.sendall(b"GET / HTTP/1.1\r\nhost: %s\r\nconnection: close\r\n\r\n" % host)
        print("request", ip, s.recv(12).decode(), flush=True)
    os._exit(0)
os.wait()
libc.umount2(own.encode(), 2)
os.rmdir(own)
"#,
        place.name
    );
    for (user, deeper) in [("root", "done"), ("nobody", "refused")] {
        let mut lines = attempts(&place, user, &then);
        lines.sort();
        let wanted = [
            &format!("deeper {deeper}"),
            "inside True False",
            "mount done",
            "namespace done",
            "remount refused",
            "request 198.51.100.7 HTTP/1.1 403",
            "request 2001:db8::7 HTTP/1.1 403",
            "uncover refused",
            "unpin refused",
        ];
        assert_eq!(lines, wanted, "{user}");
    }
}

#[test]
fn root_is_told_and_a_working_directory_of_secrets_is_refused() {
    let mut place = Place::new();
    place.start();
    let run = ["run", "--workload", "by-hand", "--", "id", "-u"];
    let output = place
        .tollgate(&run)
        .env_remove("SUDO_UID")
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "0\n");
    let told = text(&output.stderr);
    assert!(
        told.contains("runs as root") && told.contains("--user"),
        "{told}"
    );
    let mut sudo = place.tollgate(&run);
    let output = sudo
        .envs([("SUDO_UID", "4242"), ("SUDO_GID", "4243")])
        .output()
        .unwrap();
    assert_eq!(text(&output.stdout), "4242\n");
    assert!(
        !text(&output.stderr).contains("root"),
        "{}",
        text(&output.stderr)
    );
    let output = place
        .tollgate(&run)
        .current_dir(place.path("secrets"))
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(text(&output.stderr).contains("the working directory is in"));
    let cgroup = cgroup_root().join(&place.name);
    let output = place.tollgate(&run).current_dir(cgroup).output().unwrap();
    assert_eq!(output.status.code(), Some(125), "{}", text(&output.stdout));
}

/// What the kernel's fence does not see, the launcher's takes away; the same program outside shows that it is there.
#[test]
fn a_command_finds_no_daemon_no_other_family_and_no_terminal_to_type_into() {
    let mut place = Place::new();
    let socket = place.path("daemon");
    let _daemon = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let everybody = std::os::unix::fs::PermissionsExt::from_mode(0o777);
    fs::set_permissions(&socket, everybody).unwrap();
    place.start();
    let script = r#"
import ctypes, errno, fcntl, os, socket, stat, sys, termios
def call(*words):
    if ctypes.CDLL(None, use_errno=True).syscall(*words) < 0:
        raise OSError(ctypes.get_errno(), "")
def name(call):
    try:
        call(); return "ok"
    except OSError as e:
        return errno.errorcode[e.errno]
path = sys.argv[1]
# Of x86-64: request_key, then io_uring_setup, pidfd_getfd and bpf, which say that the arguments are wrong where they can.
print("key", name(lambda: call(249, b"user", b"nobody's", None, 0)))
print("calls", name(lambda: call(425, 1, None)), name(lambda: call(438, -1, 0, 0)), name(lambda: call(321, -1, None, 0)))
# PR_SET_MM_EXE_FILE, of what is no file.
print("program", name(lambda: call(157, 35, 13, 0, 0, 0)), name(lambda: call(157, 35, 14, 0, 0, 0)))
print("is a socket", stat.S_ISSOCK(os.stat(path).st_mode))
print("connect", name(lambda: socket.socket(socket.AF_UNIX).connect(path)))
for family, kind, protocol in (16, 3, 0), (16, 3, 4), (16, 3, 15), (17, 3, 0), (40, 1, 0), (44, 3, 0), (1, 1, 0), (2, 1, 0), (10, 1, 0):
    print(family, protocol, name(lambda: socket.socket(family, kind, protocol)))
# Those of TIPC reach everybody; of a family that has none the kernel says something else.
for family, kind in (17, 3), (1, 1):
    print("pair", family, name(lambda: socket.socketpair(family, kind)))
def typing():
    os.setsid()
    _, own = os.openpty()
    fcntl.ioctl(own, termios.TIOCSCTTY, 0)
    fcntl.ioctl(own, termios.TIOCSTI, b"x")
sys.stdout.flush()
if os.fork() == 0:
    print("typing", name(typing), flush=True)
    os._exit(0)
os.wait()
print("open", sorted(map(int, os.listdir("/proc/self/fd")))[:3], len(os.listdir("/proc/self/fd")), os.path.exists("/proc/self/fd/9"))
print(open("/proc/self/status").read().split("NoNewPrivs:")[1].split()[0])
"#;
    let path = socket.to_str().unwrap();
    let program = ["python3", "-c", script, path];
    let inside = said(&with_a_descriptor(&as_user(&place, "nobody", &program)));
    let outside = said(&with_a_descriptor(
        Command::new("python3").args(&program[1..]),
    ));
    let expected = [
        "key EPERM",
        "calls ENOSYS EPERM EPERM",
        "program EPERM EPERM",
        "is a socket False",
        // By the kernel's hook, or where it has none, because there is no socket.
        inside[4].as_str(),
        "16 0 ok",
        "16 4 EPROTONOSUPPORT",
        "16 15 EPROTONOSUPPORT",
        "17 0 EAFNOSUPPORT",
        "40 0 EAFNOSUPPORT",
        "44 0 EAFNOSUPPORT",
        "1 0 ok",
        "2 0 ok",
        "10 0 ok",
        "pair 17 EAFNOSUPPORT",
        "pair 1 ok",
        "typing EPERM",
        // The fourth is of the list that is being read.
        "open [0, 1, 2] 4 False",
        "1",
    ];
    assert_eq!(inside, expected);
    assert!(["connect EPERM", "connect ECONNREFUSED"].contains(&expected[4]));
    assert_eq!(outside[0], "key ENOKEY");
    assert_eq!(outside[3..5], ["is a socket True", "connect ok"]);
    assert_ne!(outside[2], "program EPERM EPERM");
    let calls: Vec<&str> = outside[1].split(' ').collect();
    assert!(["EFAULT", "EPERM"].contains(&calls[1]), "{calls:?}"); // A host may forbid it.
    assert_eq!(calls[2..], ["EBADF", "EINVAL"]);
    for line in ["16 4 ok", "16 15 ok", "17 0 ok", "pair 17 ENOTSUP"] {
        assert!(
            outside.iter().any(|found| found == line),
            "{line}: {outside:?}"
        );
    }
    assert!(!outside.contains(&"typing EPERM".to_owned()), "{outside:?}");
    let left = outside.iter().find(|line| line.starts_with("open"));
    assert!(left.unwrap().ends_with(" True"), "{outside:?}");

    // Its policy lets it.
    let policy = fs::read_to_string(place.path("policy.yaml")).unwrap();
    let allowed = policy.replace("by-hand: {}", &format!("by-hand: {{ unix: [{path}] }}"));
    assert_ne!(policy, allowed, "the policy of these tests has changed");
    fs::write(place.path("policy.yaml"), allowed).unwrap();
    assert!(
        place
            .tollgate(&["reload"])
            .output()
            .unwrap()
            .status
            .success()
    );
    let inside = said(&run_as(&place, "nobody", &program));
    assert_eq!(inside[3..5], ["is a socket True", "connect ok"]);
}

/// Who holds a keyring may read what is in it, whoever he becomes.
#[test]
fn a_command_has_none_of_its_callers_keys() {
    let mut place = Place::new();
    place.start();
    // A keyring of this session's, with a key in it that its holder may read; add_key is 248, keyctl 250.
    let outside = r#"
import ctypes, os, sys
call = ctypes.CDLL(None, use_errno=True).syscall
assert call(250, 1, None) > 0
assert call(248, b"user", b"tollgate-test", b"secret", 6, -3) > 0
os.execvp(sys.argv[1], sys.argv[1:])
"#;
    let inside = r#"
import ctypes
call = ctypes.CDLL(None, use_errno=True).syscall
key = call(250, 10, -3, b"user", b"tollgate-test", 0)
value = ctypes.create_string_buffer(16)
call(250, 11, key, value, 16)
print(value.value.decode() if key > 0 else "no key")
print(call(250, 0, -3, 1) > 0)
"#;
    let asked = |command: &Command| {
        let mut shell = Command::new("python3");
        shell.args(["-c", outside]).arg(command.get_program());
        shell.args(command.get_args()).current_dir("/tmp");
        for (name, value) in command.get_envs() {
            shell.env(name, value.unwrap_or_default());
        }
        said(&shell.output().unwrap())
    };
    let program = ["python3", "-c", inside];
    let mut plain = Command::new("python3");
    assert_eq!(asked(plain.args(&program[1..])), ["secret", "True"]);
    for user in ["nobody", "root"] {
        // One of its own, which it may use.
        let came = asked(&as_user(&place, user, &program));
        assert_eq!(came, ["no key", "True"], "{user}");
    }
}

/// By the numbers of the x32 ABI one that is refused could be called, `ioctl` by one that it has nowhere else.
#[cfg(target_arch = "x86_64")]
#[test]
fn a_command_has_no_calls_of_another_abi() {
    let mut place = Place::new();
    place.start();
    let script = r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
def call(number, *arguments):
    done = libc.syscall(ctypes.c_long(number), *arguments)
    return errno.errorcode[ctypes.get_errno()] if done < 0 else "done"
x32 = 0x40000000
# ioctl, as TIOCSTI; getpid; one that there is none of. Then those that are no number of x32's.
print(call(x32 | 514, -1, 0x5412, 0), call(x32 | 39), call(x32 | 9999), call(39), call(9999), call(-1))
"#;
    let program = ["python3", "-c", script];
    let inside = said(&run_as(&place, "nobody", &program));
    assert_eq!(inside, ["EPERM EPERM EPERM done ENOSYS ENOSYS"]);
    let outside = Command::new("python3").args(&program[1..]).output();
    let outside = said(&outside.unwrap());
    assert!(!outside[0].contains("EPERM"), "{outside:?}");
}

/// An agent for one run has its state elsewhere; the service's is no less the service's.
#[test]
fn a_private_agents_command_finds_nothing_of_the_configured_one() {
    let place = Place::new();
    fs::write(place.path("state/ca.key"), "key").unwrap();
    let other = place.path("other");
    fs::create_dir(&other).unwrap();
    fs::copy(place.path("secrets/key"), other.join("key")).unwrap();
    let at = |name: &str| place.path(name).display().to_string();
    let script = format!(
        "ls -d {0} {1} {2}; ls {0} {1} {2}; cat {0}/ca.key {1}/key {2}/key; true",
        at("state"),
        at("secrets"),
        at("other")
    );
    let mut run = place.tollgate(&["run", "-q", "--workload", "by-hand", "--policy"]);
    run.arg(place.path("policy.yaml"));
    run.arg("--secrets-dir").arg(&other);
    let output = run.args(["--", "sh", "-c", &script]).output().unwrap();
    let lines = said(&output);
    let there = ["other", "secrets", "state"].map(at);
    assert_eq!(lines.len(), 3, "{lines:?}: what is in them is seen");
    assert!(there.iter().all(|one| lines.contains(one)), "{lines:?}");
}
