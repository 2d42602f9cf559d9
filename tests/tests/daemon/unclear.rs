//! Executables of which nobody can say what they are: who may run one that policy means is refused, whatever it does about that, and keeps
//! nobody else waiting.
use crate::recognising::as_user;
use crate::support::*;
use harness::{at_most, eventually};
use std::fs;
use std::io::{BufReader, Read};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::{Command, Output, Stdio};
use std::time::{Duration, Instant};

const USER: u32 = 54_331;
/// For each way: the agent looks within milliseconds, and what it writes down counts for all that follow.
const LONG: Duration = Duration::from_secs(2);

/// It becomes another program, has one run, or is given another name: what it is called by then is not what was run.
#[test]
fn who_may_run_what_cannot_be_looked_at_is_refused_whatever_it_becomes() {
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let canary = TcpListener::bind("127.0.0.1:0").unwrap();
    canary.set_nonblocking(true).unwrap();
    let is_heard = || canary.accept().is_ok();
    let (path, own) = (place.path("tool"), place.path("elsewhere"));
    symlink(&path, &path).unwrap();
    fs::create_dir(&own).unwrap();
    std::os::unix::fs::chown(&own, Some(USER), None).unwrap();
    fs::copy("/bin/bash", own.join("prepared")).unwrap();
    let more = format!(
        "workloads:\n  tool: {{ match: {{ exe: {} }} }}\n",
        path.display()
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let url = format!("http://{}/", canary.local_addr().unwrap());
    let asks = format!("curl -sS -m 1 -o /dev/null {url}");
    let free = || {
        as_user(USER, &asks);
        is_heard().then_some(())
    };
    assert!(eventually(START, free).is_some(), "never free");
    while is_heard() {}

    let ways = [
        (USER, format!("./tool -c '{asks}; :'")),
        (USER, format!("./tool -c 'exec {asks}'")),
        (USER, format!("./tool -c '{asks} & exit 0'; sleep 0.1")),
        (USER, format!("./tool -c 'mv tool other; {asks}; :'")),
        (USER, format!("./tool -c 'mv tool other; exec {asks}'")),
        (USER, format!("./tool -c 'rm tool; exec {asks}'")),
        (
            0,
            format!(
                "touch other; unshare -m sh -c \"mount --bind tool other; ./other -c '{asks}; :'\""
            ),
        ),
    ];
    for (user, way) in ways {
        let run = || -> Output {
            let at = own.display();
            as_user(
                user,
                &format!("cd {at}; rm -f other; cp prepared tool; {way}"),
            )
        };
        let begun = Instant::now();
        while begun.elapsed() < LONG {
            let output = run();
            assert!(!is_heard(), "it got out by {way}: {output:?}");
        }
        // The last one's own way was refused, and it did come that far.
        let said = text(&run().stderr);
        assert!(said.contains("curl: (7)"), "{way}: {said}");
    }
    // What is called otherwise is free.
    assert!(free().is_some());
}

/// Mounts without end in a namespace of its own, and then many who each run another file, take it away, and become another program.
const MANY: &str = "
import ctypes, os, sys, time
USER, DIRECTORY = int(sys.argv[1]), sys.argv[2]
libc = ctypes.CDLL(None, use_errno=True)
for _ in range(6000):
    if libc.mount(DIRECTORY.encode(), DIRECTORY.encode(), None, 4096, None): sys.exit(os.strerror(ctypes.get_errno()))
program = open('/usr/bin/env', 'rb').read()
def run(n):
    path = f'{DIRECTORY}/{n}'
    with open(path, 'wb') as to: to.write(program + bytes(n))
    os.chmod(path, 0o755)
    child = os.fork()
    if not child:
        os.setresuid(USER, USER, USER)
        os.execv(path, ['env', 'sleep', '100'])
    while open(f'/proc/{child}/comm').read() != 'sleep\\n': pass
    os.unlink(path)
    return child
all = [run(n) for n in range(300)]
print('run', flush=True)
sys.stdin.read()
for child in all: os.kill(child, 9)
";

/// One user's many, of which each is to be looked for, do not keep the agent from what others ask of it.
#[test]
fn many_who_wait_for_what_is_gone_hold_up_nobody_else() {
    let mut place = Place::new();
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let own = place.path("own");
    fs::create_dir(&own).unwrap();
    let more = format!(
        "workloads:\n  content: {{ match: {{ user: {USER}, sha256: {} }} }}\n",
        "a".repeat(64)
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let mut command = Command::new("unshare");
    command.args(["-m", "python3", "-ISc", MANY, &USER.to_string()]);
    command
        .arg(&own)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped());
    let mut many = command.spawn().unwrap();
    assert_eq!(
        line(&mut BufReader::new(many.stdout.as_mut().unwrap())),
        "run"
    );
    let took: Vec<Duration> = (0..8)
        .map(|_| {
            std::thread::sleep(Duration::from_millis(300));
            let begun = Instant::now();
            assert_eq!(place.output(&["reload"]).status.code(), Some(0));
            begun.elapsed()
        })
        .collect();
    drop(many.stdin.take());
    many.wait().unwrap();
    let mut said = String::new();
    let mut log = place.agent.as_mut().unwrap().stderr.take().unwrap();
    place.end(rustix::process::Signal::KILL);
    log.read_to_string(&mut said).unwrap();
    let gone = said.matches("is not to be found any more").count();
    eprintln!("{gone} were gone, and a reload took {took:?}");
    assert!(gone > 30, "{said}");
    let limit = at_most(Duration::from_millis(1_500));
    assert!(took.iter().all(|took| *took < limit), "{took:?}");
}
