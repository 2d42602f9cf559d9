//! The world that the fleet lives in: its servers, the agent, and how a command line becomes a governed program.
use harness::agent::Agent;
use harness::client::Running;
use harness::dns::Answer;
use harness::{World, repository};
use serde_json::Value;
use std::collections::BTreeMap;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

/// The agent puts it in; no client has it.
pub(crate) const CREDENTIAL: &str = "first-orders-bot-key";
/// A command takes no longer, unless something hangs.
const LIMIT: &str = "120";

/// Hosts of `tests/servers/fleet.py`; the others are nginx's, of the world.
const HOSTS: [&str; 8] = [
    "api.openai.com",
    "api.anthropic.com",
    "git.example",
    "packages.example",
    "greeter.example",
    "live.example",
    "rude.example",
    "silent.example",
];
pub(crate) const REPORTS: &str = "reports.s3.eu-central-1.amazonaws.com";

/// Everything that stands.
pub(crate) struct Stage {
    _servers: Vec<Running>,
    environment: BTreeMap<&'static str, String>,
    places: Places,
    pub(crate) agent: Agent,
    pub(crate) world: World,
}

/// What a user other than root can read or write.
struct Places {
    scratch: PathBuf,
    scripts: PathBuf,
    python: PathBuf,
    node: PathBuf,
}

/// What a command came to.
#[derive(Debug, Clone)]
pub(crate) struct Ran {
    pub(crate) exit: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
    /// What `tollgate run` says at the end.
    pub(crate) summary: String,
}

impl Stage {
    /// With all servers of the fleet.
    pub(crate) fn new() -> Self {
        let world = World::new().unwrap();
        let files = world.directory().join("fleet");
        std::fs::create_dir(&files).unwrap();
        furnish(&world, &files);
        let fleet = start_fleet(&world, &files);
        misname(&world);
        let (s3, keys) = start_s3(&world, &files);
        let mut stage = Self::of(world, vec![fleet, s3], &keys);
        // Without any, programs would not even ask.
        for name in ["AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"] {
            stage.environment.insert(name, "placeholder".to_owned());
        }
        stage
    }

    /// With nginx alone.
    pub(crate) fn small() -> Self {
        let keys = ["unused", "unused"].map(str::to_owned);
        Self::of(World::new().unwrap(), Vec::new(), &keys)
    }

    /// `keys`: those of AWS that the agent signs with.
    fn of(world: World, servers: Vec<Running>, keys: &[String; 2]) -> Self {
        let policy = repository().join("tests/clients/fleet/policy.yaml");
        let mut agent = Agent::new(&world, &std::fs::read_to_string(policy).unwrap()).unwrap();
        let mut settings = std::fs::read_to_string(agent.config()).unwrap();
        settings.push_str("limits: { response_head: 5s }\n");
        std::fs::write(agent.config(), settings).unwrap();
        agent.write_secret("s3-id", &keys[0]).unwrap();
        agent.write_secret("s3-key", &keys[1]).unwrap();
        agent.start(&world).unwrap();
        let places = Places::new(&world);
        Self {
            _servers: servers,
            environment: places.environment(),
            places,
            agent,
            world,
        }
    }

    /// Runs a command line, which has no quotes, as nobody under `tollgate run`.
    pub(crate) fn run(&self, line: &str) -> Ran {
        self.run_with(line, &[])
    }

    /// The same with other variables; one that is empty is not set.
    pub(crate) fn run_with(&self, line: &str, variables: &[(&str, &str)]) -> Ran {
        let mut command = self.world.client("timeout");
        command
            .args(["-k", "5", LIMIT])
            .arg(self.agent.program())
            .args(["run", "--user", "nobody", "--workload", "fleet", "--"])
            .args(["env", "-C"])
            .arg(&self.places.scratch)
            .env("TOLLGATE_CONFIG", self.agent.config())
            .env("NO_COLOR", "1");
        for (name, value) in variables.iter().filter(|(_, value)| value.is_empty()) {
            let _ = value;
            command.args(["-u", name]);
        }
        for (name, value) in &self.environment {
            command.arg(format!("{name}={value}"));
        }
        for (name, value) in variables.iter().filter(|(_, value)| !value.is_empty()) {
            command.arg(format!("{name}={value}"));
        }
        command.args(self.places.words(line));
        self.finish(command)
    }

    fn finish(&self, mut command: Command) -> Ran {
        // What this machine is set up with is not what is shown.
        for (name, _) in std::env::vars_os() {
            let text = name.to_string_lossy().to_lowercase();
            if ["pip_", "npm_", "node_", "git_", "aws_", "python", "java_"]
                .iter()
                .any(|start| text.starts_with(start))
            {
                command.env_remove(name);
            }
        }
        let output = command.stdin(Stdio::null()).output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        let all = text(&output.stderr);
        let (err, summary) = match all.find("tollgate: fleet: ") {
            Some(at) => (all[..at].to_owned(), all[at..].to_owned()),
            None => (all, String::new()),
        };
        Ran {
            exit: output.status.code(),
            out: text(&output.stdout),
            err,
            summary,
        }
    }

    /// How many requests with the credential reached a server, and how many without.
    pub(crate) fn reached(&self) -> (usize, usize) {
        let log = self.world.directory().join("fleet/requests");
        let text = std::fs::read_to_string(log).unwrap_or_default();
        let (mut with, mut without) = (0, 0);
        for line in text.lines() {
            let request: Value = serde_json::from_str(line).unwrap();
            match request["credential"].as_bool() {
                Some(true) => with += 1,
                _ => without += 1,
            }
        }
        for request in self.world.nginx.requests().unwrap_or_default() {
            if request.authorization == format!("Bearer {CREDENTIAL}") {
                with += 1;
            } else {
                without += 1;
            }
        }
        (with, without)
    }

    /// Paths of this run's own, as a reader of the page would have them.
    pub(crate) fn plain(&self, text: &str) -> String {
        let Places {
            scratch,
            scripts,
            python,
            node,
        } = &self.places;
        let mut text = text.to_owned();
        for (path, name) in [
            (scratch, "~"),
            (scripts, "~"),
            (python, "/usr"),
            (node, "~"),
        ] {
            text = text.replace(&path.display().to_string(), name);
        }
        text.replace(&self.world.directory().display().to_string(), "")
    }

    pub(crate) fn scratch(&self) -> &Path {
        &self.places.scratch
    }
}

impl Places {
    fn new(world: &World) -> Self {
        let scratch = world.directory().join("home");
        std::fs::create_dir(&scratch).unwrap();
        std::fs::set_permissions(&scratch, std::fs::Permissions::from_mode(0o777)).unwrap();
        let show = |path: &str, name: &str| world.show(&repository().join(path), name).unwrap();
        Self {
            scratch,
            scripts: show("tests/clients/fleet", "scripts"),
            python: show("target/tools/fleet", "python"),
            node: show("target/tools/node", "node"),
        }
    }

    fn environment(&self) -> BTreeMap<&'static str, String> {
        let scratch = self.scratch.display().to_string();
        let modules = self.node.join("node_modules").display().to_string();
        [
            ("HOME", scratch.clone()),
            ("TMPDIR", scratch.clone()),
            ("NODE_PATH", modules),
            ("PYTHONDONTWRITEBYTECODE", "1".into()),
            ("LC_ALL", "C".into()),
            ("NO_COLOR", "1".into()),
            ("GIT_CONFIG_NOSYSTEM", "1".into()),
            ("GIT_AUTHOR_NAME", "Ann".into()),
            ("GIT_AUTHOR_EMAIL", "ann@acme.example".into()),
            ("GIT_COMMITTER_NAME", "Ann".into()),
            ("GIT_COMMITTER_EMAIL", "ann@acme.example".into()),
            ("GIT_TERMINAL_PROMPT", "0".into()),
            ("PIP_DISABLE_PIP_VERSION_CHECK", "1".into()),
            ("PIP_NO_CACHE_DIR", "1".into()),
            ("PIP_CONFIG_FILE", "/dev/null".into()),
            ("npm_config_userconfig", "/dev/null".into()),
            ("npm_config_globalconfig", format!("{scratch}/npmrc")),
            ("npm_config_update_notifier", "false".into()),
            ("npm_config_cache", format!("{scratch}/.npm")),
        ]
        .into_iter()
        .collect()
    }

    /// A command line as it is shown, as the programs of this run.
    fn words(&self, line: &str) -> Vec<String> {
        let text = |path: PathBuf| path.display().to_string();
        line.split(' ')
            .flat_map(|word| match word {
                "python3" => vec![text(self.python.join("bin/python3"))],
                "pip" => vec![
                    text(self.python.join("bin/python3")),
                    "-m".into(),
                    "pip".into(),
                ],
                "npm" => vec![
                    "node".into(),
                    text(self.node.join("npm/node_modules/npm/bin/npm-cli.js")),
                ],
                // Whatever other git is on the path.
                "git" => vec!["/usr/bin/git".into()],
                "chromium" => chromium(&self.scratch),
                script if script.starts_with("with_") || script.ends_with(".java") => {
                    vec![text(self.scripts.join(script))]
                }
                other => vec![other.to_owned()],
            })
            .collect()
    }
}

/// As on a host without a desktop: nothing that it does of its own accord.
fn chromium(scratch: &Path) -> Vec<String> {
    let profile = format!("--user-data-dir={}/chromium", scratch.display());
    [
        "chromium",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--disable-background-networking",
        "--disable-component-update",
        "--disable-sync",
        "--log-level=3",
        &profile,
    ]
    .map(str::to_owned)
    .into()
}

fn python(world: &World, script: &str) -> Command {
    let mut command = world
        .servers
        .command(repository().join("target/tools/fleet/bin/python3"));
    command
        .arg("-u")
        .arg(repository().join("tests/servers").join(script));
    command
}

/// A host that the DNS knows, with an address of its own and a certificate.
fn host(world: &World, files: &Path, name: &str, number: usize) -> String {
    let address = format!("93.184.216.{}", 60 + number);
    let script = format!("ip addr add {address}/32 dev lo");
    world.servers.script(&script).unwrap();
    let answer = Answer::Addresses(vec![address.parse().unwrap()]);
    world.dns.set(name, answer);
    world.ca.issue(&[name], files).unwrap();
    address
}

/// Repositories and packages for the servers.
fn furnish(world: &World, files: &Path) {
    let at = files.display();
    let script = format!(
        "set -e; mkdir {at}/git; cd {at}/git; git init -q --bare -b main docs.git
         git init -q -b main work; cd work
         git -c user.name=Ann -c user.email=ann@acme.example commit -q --allow-empty -m first
         git push -q ../docs.git main; git clone -q --bare . ../app.git
         git -C ../app.git config http.receivepack true; git -C ../docs.git config http.receivepack true"
    );
    world.servers.script(&script).unwrap();
    let mut packages = python(world, "packages.py");
    let made = packages.arg(files.join("packages")).status().unwrap();
    assert!(made.success());
}

fn start_fleet(world: &World, files: &Path) -> Running {
    let mut command = python(world, "fleet.py");
    command.arg(files).arg(CREDENTIAL);
    for (number, name) in HOSTS.iter().enumerate() {
        let address = host(world, files, name, number);
        command.arg(format!("{name}={address}"));
    }
    let mut fleet = Running::start(command).unwrap();
    assert_eq!(fleet.line(Duration::from_secs(60)).unwrap(), "ready");
    fleet
}

/// A name with an address at which nothing listens, and one of a server that has another name's certificate.
fn misname(world: &World) {
    let closed = "93.184.216.59";
    let script = format!("ip addr add {closed}/32 dev lo");
    world.servers.script(&script).unwrap();
    for (name, address) in [
        ("closed.example", closed),
        ("other.example", "93.184.216.63"),
    ] {
        let answer = Answer::Addresses(vec![address.parse().unwrap()]);
        world.dns.set(name, answer);
    }
}

/// The server, and the keys of who may use it.
fn start_s3(world: &World, files: &Path) -> (Running, [String; 2]) {
    let address = host(world, files, REPORTS, HOSTS.len());
    let mut command = python(world, "s3.py");
    command
        .arg(address)
        .arg(files.join(format!("{REPORTS}.pem")))
        .arg(files.join(format!("{REPORTS}.key")));
    let mut s3 = Running::start(command).unwrap();
    let line = s3.line(Duration::from_secs(60)).unwrap();
    let mut words = line.split(' ');
    assert_eq!(words.next(), Some("ready"), "{line}");
    let mut word = || words.next().unwrap().to_owned();
    (s3, [word(), word()])
}
