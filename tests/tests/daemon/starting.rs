//! What keeps an agent from starting, and the unit that starts it.
use crate::support::*;
use rustix::process::Signal;
use std::fs;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;

#[test]
fn what_keeps_it_from_starting_is_said_in_a_sentence() {
    let place = Place::new();

    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, place.port)).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains(&place.port.to_string()) && told.contains("ss "),
        "{told}"
    );
    drop(taken);

    let mut few = Command::new("prlimit");
    few.arg("--nofile=1023:1023")
        .arg(harness::agent::program().unwrap())
        .arg("agent")
        .env("TOLLGATE_CONFIG", place.path("config.yaml"));
    let output = few.output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(
        told.contains("1023 files and needs 1024") && told.contains("LimitNOFILE"),
        "{told}"
    );

    let key = place.path("state/ca-key.pem");
    fs::set_permissions(&key, fs::Permissions::from_mode(0o644)).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("readable by others") && told.contains("chmod 0600"),
        "{told}"
    );
    fs::set_permissions(&key, fs::Permissions::from_mode(0o600)).unwrap();

    place.write_secret(None);
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(told.contains("secrets/key"), "{told}");
    place.write_secret(Some("one"));

    place.write_config("prot: 1\n");
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("config.yaml:9:1") && told.contains("did you mean `port`?"),
        "{told}"
    );
    place.write_config("");

    place.write_policy("version: 1\nworklods: {}\n");
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("policy.yaml:2:1") && told.contains("did you mean `workloads`?"),
        "{told}"
    );

    fs::remove_file(place.path("policy.yaml")).unwrap();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    assert!(
        told.contains("policy.yaml") && told.contains("--policy"),
        "{told}"
    );
    assert!(
        !Path::new("/sys/fs/bpf").join(&place.name).exists(),
        "a start that failed left pins"
    );
}

#[test]
fn without_root_it_says_so() {
    let place = Place::new();
    let program = place.path("tollgate");
    fs::copy(harness::agent::program().unwrap(), &program).unwrap();
    fs::set_permissions(&program, fs::Permissions::from_mode(0o755)).unwrap();
    for (arguments, word) in [
        (&["agent"][..], "needs root"),
        (&["run", "--", "true"], "sudo"),
        (&["status"], ""),
    ] {
        let mut command = Command::new(&program);
        command
            .args(arguments)
            .env("TOLLGATE_CONFIG", place.path("config.yaml"))
            .uid(65534)
            .gid(65534);
        let output = command.output().unwrap();
        let expected = if arguments == ["status"] { 3 } else { 2 };
        assert_eq!(
            output.status.code(),
            Some(expected),
            "{arguments:?} {}",
            text(&output.stderr)
        );
        assert!(
            text(&output.stderr).contains(word),
            "{}",
            text(&output.stderr)
        );
    }
}

#[test]
fn one_agent_for_one_runtime_directory() {
    let mut place = Place::new();
    place.start();
    let (code, told) = place.refused();
    assert_eq!(code, Some(2), "{told}");
    let pid = place.agent.as_ref().unwrap().id().to_string();
    assert!(
        told.contains("another agent") && told.contains(&pid),
        "{told}"
    );
    assert_eq!(
        place.output(&["status"]).status.code(),
        Some(0),
        "the first one is unharmed"
    );
}

#[test]
fn the_unit_is_sound() {
    let place = Place::new();
    let unit = fs::read_to_string(harness::repository().join("systemd/tollgate.service")).unwrap();
    let installed = place.path("tollgate.service");
    let program = harness::agent::program().unwrap();
    fs::write(
        &installed,
        unit.replace("/usr/bin/tollgate", program.to_str().unwrap()),
    )
    .unwrap();
    let output = Command::new("systemd-analyze")
        .arg("verify")
        .arg(&installed)
        .output();
    let output = output.expect("systemd-analyze is needed: install the Debian package systemd");
    assert!(
        output.status.success() && output.stderr.is_empty(),
        "{}",
        text(&output.stderr)
    );
    let output = Command::new("systemd-analyze")
        .args(["security", "--offline=true", harness::EXPOSURE])
        .arg(&installed)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stdout));
}

/// As where all instances of inotify that a user may have are taken: it looks for itself what is new, and says so.
#[test]
fn an_agent_that_cannot_watch_cgroups_finds_them_and_says_so() {
    let mut place = Place::new();
    let is_told = |place: &Place| {
        let status = place.status();
        let mut modes = status["fail_modes"].as_array().unwrap().iter();
        let watching = modes.find(|mode| mode["when"].as_str().unwrap().contains("watched"));
        watching.unwrap()["now"].as_bool().unwrap()
    };
    place.start();
    assert!(!is_told(&place));
    place.end(Signal::TERM);
    // Of x86-64: inotify_init1 fails with EMFILE, everything else goes on.
    let script = "
import ctypes, os, struct, sys
code = [(0x20, 0, 0, 0), (0x15, 0, 1, 294), (0x6, 0, 0, 0x00050000 | 24), (0x6, 0, 0, 0x7fff0000)]
code = ctypes.create_string_buffer(b''.join(struct.pack('HBBI', *one) for one in code))
program = ctypes.create_string_buffer(struct.pack('HxxxxxxQ', 4, ctypes.addressof(code)))
prctl = ctypes.CDLL(None).prctl
assert prctl(38, 1, 0, 0, 0) == 0 and prctl(22, 2, program) == 0
os.execv(sys.argv[1], ['tollgate', 'agent'])
";
    let agent = place.tollgate(&["agent"]);
    let mut command = Command::new("python3");
    command.args(["-c", script]).arg(agent.get_program());
    for (name, value) in agent.get_envs() {
        command.env(name, value.unwrap());
    }
    place.start_as(command);
    assert!(is_told(&place), "{:#}", place.status());
    assert_eq!(place.status()["verdict"]["state"], "enforcing");
    assert_eq!(place.ask(), forbidden());
}

/// There it would have the hooks take whoever has its number on the host for the agent.
#[test]
fn no_agent_starts_in_a_pid_namespace_of_its_own() {
    let place = Place::new();
    let agent = place.tollgate(&["agent"]);
    let mut command = Command::new("timeout");
    command.args([
        "10",
        "unshare",
        "--pid",
        "--fork",
        "--mount-proc",
        "--kill-child",
    ]);
    command.arg(agent.get_program()).arg("agent");
    for (name, value) in agent.get_envs() {
        command.env(name, value.unwrap());
    }
    let output = command.output().unwrap();
    let told = text(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{told}");
    assert!(told.contains("pid namespace"), "{told}");
}
