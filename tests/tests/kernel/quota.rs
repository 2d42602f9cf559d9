//! Byte quotas: the kernel stops what goes beyond, both ways, by itself.
use crate::refuse::{counted, events};
use crate::support::*;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::Duration;
use tollgate::kernel::{Allowance, Event, Usage};

/// A day: no test runs into the next window but at midnight, and then its counts begin anew.
const DAY: u64 = 86_400;
const LIMIT: u64 = 1 << 20;

impl Stand {
    fn allow(&self, bytes: u64, seconds: u64) {
        self.allow_after(bytes, seconds, None);
    }

    fn allow_after(&self, bytes: u64, seconds: u64, before: Option<(u64, u64)>) {
        let allowance = Allowance {
            workload: self.workload(),
            bytes,
            seconds,
            before,
        };
        self.fence().set_quotas(&[allowance]).unwrap();
    }

    fn usage(&self) -> Usage {
        let usage = self.fence().usage();
        assert_eq!(usage.len(), 1, "{usage:?}");
        usage[0].clone()
    }

    /// What the workload's packets came to, as accounts have it.
    fn moved(&self) -> u64 {
        let accounts = self.fence().accounts();
        let own = accounts.iter().find(|a| a.workload == self.workload());
        own.map_or(0, |a| a.counters.bytes_in + a.counters.bytes_out)
    }
}

/// Reads until nothing comes for a while; how much came.
fn all_there_is(stream: &mut TcpStream) -> u64 {
    stream
        .set_read_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let (mut buffer, mut sum) = (vec![0; 1 << 16], 0);
    while let Ok(read @ 1..) = stream.read(&mut buffer) {
        sum += read as u64;
    }
    sum
}

fn is_told(stand: &Stand) {
    events(stand.fence(), |events| {
        events
            .iter()
            .any(|e| matches!(e, Event::Overspent { workload } if **workload == *stand.workload()))
    });
}

/// Sends without end, and says how that ended.
fn sender(ip: &str) -> String {
    format!(
        "s, r = tcp('{ip}', 443); say(r)
s.settimeout(60)
def push():
    while True: s.sendall(bytes(65536))
say(name(push))"
    )
}

fn stops_sending(stand: &Stand, ip: &str) {
    let listener = stand.agent(ip);
    stand.allow(LIMIT, DAY);
    let mut client = Running::start(&stand.cgroup, &sender(ip));
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(listener);
    let received = all_there_is(&mut agent);
    assert!(received < LIMIT && received > LIMIT / 2, "{received}");
    let usage = stand.usage();
    assert!(usage.spent <= LIMIT && usage.spent >= received, "{usage:?}");
    is_told(stand);
    assert!(counted(stand)["quota"] > 0);

    // Whoever comes now is refused; told apart from other refusals.
    assert_eq!(stand.run(&format!("say(tcp('{ip}', 443)[1])")), "EDQUOT");
    // What carries nothing passes: the agent ends what would wait in vain.
    socket2::SockRef::from(&agent)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(agent);
    assert_eq!(client.line(), "ECONNRESET");
    client.finish();

    // More, and it goes on; what was spent stays spent.
    stand.allow(2 * LIMIT, DAY);
    let mut client = Running::start(&stand.cgroup, &sender(ip));
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(listener);
    let more = all_there_is(&mut agent);
    assert!(more + received < 2 * LIMIT, "{more} after {received}");
    assert!(more > LIMIT / 2, "{more}");

    // Without a quota nothing stops.
    stand.fence().set_quotas(&[]).unwrap();
    assert!(stand.fence().usage().is_empty());
    let mut enough = vec![0; 4 << 20];
    agent.set_read_timeout(Some(PATIENCE)).unwrap();
    agent.read_exact(&mut enough).unwrap();
}

fn stops_receiving(stand: &Stand, ip: &str) {
    stand.allow(LIMIT, DAY);
    let script = format!(
        "s, r = tcp('{ip}', 443); say(r)
n = 0
def take():
    global n
    while d := s.recv(65536): n += len(d)
s.settimeout(1); say(name(take), n)
s.settimeout(10); say(name(take), n)"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(stand.agent(ip));
    agent
        .set_write_timeout(Some(Duration::from_millis(500)))
        .unwrap();
    let chunk = vec![0; 1 << 16];
    while agent.write(&chunk).is_ok_and(|n| n > 0) {}
    let line = client.line();
    let received: u64 = line.strip_prefix("None ").unwrap().parse().unwrap();
    assert!(received < LIMIT && received > LIMIT / 2, "{received}");
    assert!(stand.usage().spent <= LIMIT);
    // What carries nothing passes: the agent ends what would wait in vain.
    socket2::SockRef::from(&agent)
        .set_linger(Some(Duration::ZERO))
        .unwrap();
    drop(agent);
    assert_eq!(client.line(), format!("ECONNRESET {received}"));
    client.finish();

    // Without a quota all of it comes.
    stand.fence().set_quotas(&[]).unwrap();
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(stand.agent(ip));
    agent.set_write_timeout(Some(PATIENCE)).unwrap();
    agent.write_all(&vec![0; 2 << 20]).unwrap();
    drop(agent);
    assert!(client.finish().ends_with("ok 2097152"));
}

#[test]
fn what_is_beyond_stops_both_ways() {
    let mut stand = Stand::new();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        stand.renew();
        stops_sending(&stand, ip);
        stand.renew();
        stops_receiving(&stand, ip);
    }
}

/// What was held up goes on, both ways and beyond, when the programs that held it are gone.
fn goes_on_without_the_programs(stand: &Stand, ip: &str) {
    let listener = stand.agent(ip);
    stand.allow(LIMIT, DAY);
    let script = format!(
        "s, r = tcp('{ip}', 443); say(r); s.settimeout(60)
s.sendall(bytes(1 << 22)); n = 0
while d := s.recv(65536): n += len(d)
say(n)"
    );
    let mut client = Running::start(&stand.cgroup, &script);
    assert_eq!(client.line(), "ok");
    let mut agent = stand.accept(listener);
    let received = all_there_is(&mut agent);
    assert!(received < LIMIT, "{ip}: {received}");
    for program in ["egress", "ingress"] {
        std::fs::remove_file(stand.options.pin_dir.join("links").join(program)).unwrap();
    }
    // TCP tries again after a second or two.
    agent.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut rest = vec![0; usize::try_from(4 * LIMIT - received).unwrap()];
    agent.read_exact(&mut rest).unwrap();
    agent.write_all(&vec![0; 4 << 20]).unwrap();
    drop(agent);
    assert_eq!(client.finish(), (4 * LIMIT).to_string(), "{ip}");
}

#[test]
fn nothing_stops_without_the_programs() {
    let mut stand = Stand::new();
    for ip in ["198.51.100.7", "2001:db8::7"] {
        stand.renew();
        stand.fence().mend();
        goes_on_without_the_programs(&stand, ip);
    }
}

/// A window ends by the clock, and with it what was spent in it.
#[test]
fn a_new_window_begins_with_nothing_spent() {
    let stand = Stand::new();
    stand.allow(4_000, 3);
    let seen = |seconds: f32| {
        stand.run(&format!(
            "seen = []; end = time.monotonic() + {seconds}; n = 0
while time.monotonic() < end and seen[-2:] != ['EDQUOT', 'ok']:
    n += 1; s, r = tcp(('198.51.100.7', '2001:db8::7')[n % 2], 443)
    if seen[-1:] != [r]: seen.append(r)
    if r == 'ok': s.sendall(bytes(3000)); time.sleep(0.01); s.sendall(bytes(3000))
    time.sleep(0.05)
say(*seen)"
        ))
    };
    assert_eq!(seen(20.0), "ok EDQUOT ok");
    stand.fence().set_quotas(&[]).unwrap();
    assert_eq!(seen(0.5), "ok", "it is the quota that stops it");
}

/// What is spent is in the kernel's keeping: a next agent finds it, with nobody counting for it in between.
#[test]
fn what_is_spent_survives_the_agent() {
    let mut stand = Stand::new();
    stand.allow(LIMIT, DAY);
    let client = Running::start(
        &stand.cgroup,
        "all = [tcp(ip, 443)[0] for ip in ('198.51.100.7', '2001:db8::7')]
for s in all: s.sendall(bytes(150000)); s.shutdown(1); s.recv(1)",
    );
    let agents = [&stand.agent4, &stand.agent6].map(accept);
    // The agent is gone while its connections are still being written to.
    drop(stand.fence.take());
    for mut agent in agents {
        agent.read_to_end(&mut Vec::new()).unwrap();
    }
    client.finish();
    stand.fence = Some(open(&stand.options));
    stand.admit();
    let first = stand.usage();
    assert!(first.spent >= 300_000 && first.spent < LIMIT, "{first:?}");
    assert_eq!(first.spent, stand.moved(), "every byte, and only those");
    // The same allowance again, with an older account of it: the kernel knows better.
    stand.allow_after(LIMIT, DAY, Some((first.window, 1)));
    assert_eq!(stand.usage(), first);
    let both = "say(tcp('198.51.100.7', 443)[1], tcp('2001:db8::7', 443)[1])";
    // Spent before the kernel was booted: what is left of the window is less.
    let stand = Stand::new();
    stand.allow_after(LIMIT, DAY, Some((first.window, LIMIT)));
    let usage = stand.usage();
    if usage.window == first.window {
        assert_eq!(usage.spent, LIMIT);
        assert_eq!(stand.run(both), "EDQUOT EDQUOT");
    }
    // Of another window it says nothing.
    let stand = Stand::new();
    stand.allow_after(LIMIT, DAY, Some((first.window - 1, LIMIT)));
    assert_eq!(stand.usage().spent, 0);
    assert_eq!(stand.run(both), "ok ok");
}

#[test]
fn another_workload_is_not_stopped() {
    let mut stand = Stand::new();
    let other = stand.cgroup.child("other");
    stand.fence().govern(&other.name, &unique()).unwrap();
    let held = ["198.51.100.7", "2001:db8::7"].map(|ip| {
        stand.renew();
        stand.allow(1, DAY);
        let send =
            format!("s, r = tcp('{ip}', 443); s.sendall(bytes(100000)); say(r); sys.stdin.read()");
        // Nothing but a connection's beginning fits one byte.
        let mut stopped = Running::start(&stand.cgroup, &send);
        assert_eq!(stopped.line(), "ok");
        let mut moving = Running::start(&other, &send);
        assert_eq!(moving.line(), "ok");
        let agents = [(); 2].map(|()| {
            let mut agent = stand.accept(stand.agent(ip));
            (all_there_is(&mut agent), agent)
        });
        let mut sums = agents.each_ref().map(|(sum, _)| *sum);
        sums.sort_unstable();
        assert_eq!(sums, [0, 100_000]);
        let stopped_one = agents.into_iter().find(|(sum, _)| *sum == 0);
        (stopped, stopped_one.unwrap().1)
    });
    stand.lift();
    for (stopped, mut agent) in held {
        // TCP tries again after a second or two.
        agent.set_read_timeout(Some(PATIENCE)).unwrap();
        agent.read_exact(&mut vec![0; 100_000]).unwrap();
        stopped.finish();
    }
}
