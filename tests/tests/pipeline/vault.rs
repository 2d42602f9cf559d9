//! Secrets in Vault: used, rotated, refused and out of reach.
use super::*;

const VAULT: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 46);

const POLICY: &str = r#"
version: 1
workloads: { probe: {} }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "vault:bots/orders#key", header: { authorization: "Bearer {secret}" }, to: [odd] }
roles:
  user:
    - api: odd
      credential: bot
      allow: [{ route: "* /**" }]
grants:
  - { role: user, to: { workload: probe } }
"#;

const FIRST: &str = "first-key-from-vault";
const SECOND: &str = "second-key-from-vault";

/// A world with Vault in it; the agent does not run yet.
struct Safe {
    vault: Option<Running>,
    odd: Running,
    agent: Agent,
    world: World,
}

impl Safe {
    fn new() -> Self {
        let world = World::new().unwrap();
        let odd = odd_server(&world);
        for (name, address) in [("odd.example", ODD), ("vault.example", VAULT)] {
            world.dns.set(name, Answer::Addresses(vec![address.into()]));
        }
        let agent = Agent::new(&world, POLICY).unwrap();
        let token = world.directory().join("vault-token");
        let mut config = std::fs::read_to_string(agent.config()).unwrap();
        config.push_str(&format!(
            "vault: {{ address: \"https://vault.example\", token_file: {}, ca: {}, refresh: 1s }}\n",
            token.display(),
            world.ca_file().display(),
        ));
        std::fs::write(agent.config(), config).unwrap();
        world
            .show(&repository().join("tests/clients"), "clients")
            .unwrap();
        let mut safe = Self {
            vault: None,
            odd,
            agent,
            world,
        };
        safe.token("good-token", 0o600);
        safe.holds(json!({"token": "good-token", "secrets": {"bots/orders": {"key": FIRST}}}));
        safe.open();
        safe
    }

    /// Starts the server.
    fn open(&mut self) {
        let state = self.state();
        let state = state.to_str().unwrap();
        let server = server_with(&self.world, "vault.py", VAULT, &["vault.example"], &[state]);
        self.vault = Some(server);
    }

    fn state(&self) -> PathBuf {
        self.world.directory().join("vault.json")
    }

    /// What the server has from now on.
    fn holds(&self, state: Value) {
        let new = self.state().with_extension("new");
        std::fs::write(&new, state.to_string()).unwrap();
        std::fs::rename(new, self.state()).unwrap();
    }

    /// Replaces the agent's token.
    fn token(&self, token: &str, mode: u32) {
        use std::os::unix::fs::PermissionsExt as _;
        let path = self.world.directory().join("vault-token");
        std::fs::write(&path, format!("{token}\n")).unwrap();
        std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).unwrap();
    }

    fn run(mut self) -> Lab {
        self.agent.start(&self.world).unwrap();
        let client = client(&self.world, &self.agent, "probe", Program::Raw);
        Lab {
            client,
            servers: vec![self.odd, self.vault.unwrap()],
            agent: self.agent,
            world: self.world,
        }
    }

    /// Why the agent does not start.
    fn refused(&mut self) -> String {
        let why = self.agent.start(&self.world).unwrap_err().to_string();
        assert!(!why.contains(FIRST) && !why.contains("good-token"), "{why}");
        why
    }
}

impl Lab {
    /// The credential that the upstream got, as it says it backwards.
    fn used(&mut self) -> String {
        let (status, data, _) = self.exchange(&request("GET /echo HTTP/1.1", ""));
        assert_eq!(status, 200, "{data}");
        let echo = echoed(&data);
        assert!(!data.contains("key-from-vault"), "{data}");
        echo["backwards"].as_str().unwrap().chars().rev().collect()
    }

    fn uses(&mut self, key: &str) {
        let expected = format!("Bearer {key}");
        let seen = eventually(Duration::from_secs(10), || {
            (self.used() == expected).then_some(())
        });
        assert!(
            seen.is_some(),
            "{} and not {expected}\n{}",
            self.used(),
            self.agent.log()
        );
    }

    fn status(&self) -> Value {
        let status = self.agent.output(&self.world, "status", &["-o", "json"]);
        serde_json::from_slice(&status.unwrap().stdout).unwrap()
    }

    /// Whether the source of secrets is down, by `tollgate status`, and what it says.
    fn down(&self) -> (bool, String) {
        let status = self.status();
        let modes = status["fail_modes"].as_array().unwrap();
        let mut modes = modes.iter();
        let mode = modes.find(|mode| mode["when"] == "secret source down");
        (
            mode.unwrap()["now"].as_bool().unwrap(),
            status["policy"]["secrets_stale"].to_string(),
        )
    }

    fn is_down(&self, expected: bool) -> String {
        let told = eventually(Duration::from_secs(20), || {
            let (down, why) = self.down();
            (down == expected).then_some(why)
        });
        told.unwrap_or_else(|| panic!("{:?}\n{}", self.down(), self.agent.log()))
    }

    fn refused_reload(&self) -> String {
        let reload = self.agent.output(&self.world, "reload", &[]).unwrap();
        assert!(!reload.status.success(), "{reload:?}");
        let told = String::from_utf8_lossy(&reload.stderr).into_owned();
        assert!(
            told.contains("vault:bots/orders#key") && told.contains("the running policy stays"),
            "{told}"
        );
        assert!(
            !told.contains("key-from-vault") && !told.contains("-token\""),
            "{told}"
        );
        told
    }
}

fn with(key: &str, token: &str) -> Value {
    json!({"token": token, "secrets": {"bots/orders": {"key": key}}})
}

fn write(world: &World, name: &str, text: &str) {
    use std::os::unix::fs::PermissionsExt as _;
    let (path, new) = (world.directory().join(name), world.directory().join("new"));
    std::fs::write(&new, text).unwrap();
    std::fs::set_permissions(&new, std::fs::Permissions::from_mode(0o600)).unwrap();
    std::fs::rename(new, path).unwrap();
}

#[test]
fn a_value_is_used_and_its_rotation_is_taken_up() {
    let mut lab = Safe::new().run();
    assert_eq!(lab.used(), format!("Bearer {FIRST}"));
    assert!(!lab.down().0, "{:?}", lab.down());
    write(
        &lab.world,
        "vault.json",
        &with(SECOND, "good-token").to_string(),
    );
    lab.uses(SECOND);

    // The token is taken back: what is known stays, and a reload is refused.
    write(
        &lab.world,
        "vault.json",
        &with("third-key-from-vault", "other-token").to_string(),
    );
    let told = lab.is_down(true);
    assert!(
        told.contains("403") && told.contains("vault:bots/orders#key"),
        "{told}"
    );
    assert!(lab.refused_reload().contains("403"));
    assert_eq!(lab.used(), format!("Bearer {SECOND}"));
    // The next one is read from the file without a word to the agent.
    write(&lab.world, "vault-token", "other-token");
    lab.uses("third-key-from-vault");
    lab.is_down(false);
    lab.reload(POLICY);

    // A policy that needs what is not there is not put in force, and `status` goes on saying so.
    let other = POLICY.replace("bots/orders", "bots/others");
    lab.agent.write_policy(&other).unwrap();
    let reload = lab.agent.output(&lab.world, "reload", &[]).unwrap();
    let told = String::from_utf8_lossy(&reload.stderr).into_owned();
    assert!(
        told.contains("vault:bots/others#key") && told.contains("404"),
        "{told}"
    );
    lab.is_down(false);
    assert!(
        lab.status()["policy"]["stale"]
            .to_string()
            .contains("bots/others")
    );
    lab.uses("third-key-from-vault");
    lab.reload(POLICY);
    assert_eq!(lab.status()["policy"]["stale"], Value::Null);

    // A field that is gone.
    write(
        &lab.world,
        "vault.json",
        &json!({"token": "other-token", "secrets": {"bots/orders": {"kee": "x"}}}).to_string(),
    );
    let told = lab.is_down(true);
    assert!(told.contains("no such field"), "{told}");
    lab.uses("third-key-from-vault");
}

#[test]
fn while_it_is_down_the_last_values_stay() {
    let mut lab = Safe::new().run();
    write(
        &lab.world,
        "vault.json",
        &json!({"status": 503}).to_string(),
    );
    let told = lab.is_down(true);
    assert!(told.contains("503") && told.contains("sealed"), "{told}");
    lab.servers.truncate(1);
    let told = eventually(Duration::from_secs(20), || {
        let (_, told) = lab.down();
        told.contains("no connection").then_some(told)
    });
    assert!(told.is_some(), "{:?}\n{}", lab.down(), lab.agent.log());
    assert_eq!(lab.used(), format!("Bearer {FIRST}"));
    assert!(lab.refused_reload().contains("no connection"));
    assert_eq!(lab.used(), format!("Bearer {FIRST}"));
    // A file that changes meanwhile is taken up all the same.
    let before = lab.agent.log();
    lab.agent
        .write_secret("server-ca.pem", &format!("{}\n", lab.world.ca.pem()))
        .unwrap();
    let taken = eventually(Duration::from_secs(5), || {
        lab.agent
            .log()
            .contains("secrets on disk changed: the new")
            .then_some(())
    });
    assert!(taken.is_some(), "{before}");
    assert!(lab.down().0);

    write(
        &lab.world,
        "vault.json",
        &with(SECOND, "good-token").to_string(),
    );
    let state = lab.world.directory().join("vault.json");
    let again = server_with(
        &lab.world,
        "vault.py",
        VAULT,
        &["vault.example"],
        &[state.to_str().unwrap()],
    );
    lab.servers.push(again);
    lab.uses(SECOND);
    lab.is_down(false);
}

#[test]
fn an_agent_does_not_start_without_its_values() {
    let mut safe = Safe::new();
    safe.token("wrong-token", 0o600);
    let why = safe.refused();
    assert!(
        why.contains("secret vault:bots/orders#key") && why.contains("403"),
        "{why}"
    );
    safe.token("good-token", 0o644);
    let why = safe.refused();
    assert!(
        why.contains("token for Vault") && why.contains("0644"),
        "{why}"
    );
    safe.token("good-token", 0o600);
    safe.vault = None;
    // It is told to end, and may answer once more as it does.
    let gone = eventually(Duration::from_secs(10), || {
        let why = safe.refused();
        why.contains("no connection").then_some(why)
    });
    let why = gone.expect("nobody is there");
    assert!(why.contains("vault.example"), "{why}");
    // A policy is checked without asking anybody.
    let policy = safe.agent.policy();
    let check = safe
        .agent
        .output(&safe.world, "check", &[policy.to_str().unwrap()])
        .unwrap();
    assert!(check.status.success(), "{check:?}");
    let config = std::fs::read_to_string(safe.agent.config()).unwrap();
    let without: String = config
        .lines()
        .filter(|line| !line.starts_with("vault:"))
        .map(|line| format!("{line}\n"))
        .collect();
    std::fs::write(safe.agent.config(), without).unwrap();
    let why = safe.refused();
    assert!(why.contains("has no `vault:`"), "{why}");
    std::fs::write(safe.agent.config(), config).unwrap();
    safe.open();
    assert_eq!(safe.run().used(), format!("Bearer {FIRST}"));
}
