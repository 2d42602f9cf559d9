//! Executables at paths that cannot be looked at: who may run one is refused, whatever it does about that.
use crate::recognising::as_user;
use crate::support::*;
use harness::eventually;
use std::fs;
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::process::Output;
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
