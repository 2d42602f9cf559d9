//! What the story is played on: the world, the agent in it, and commands typed there.
use crate::story::Story;
use anyhow::{Context as _, Result};
use harness::World;
use harness::agent::Agent;
use harness::client::Running;
use harness::netns::Received;
use std::path::PathBuf;
use std::process::{Output, Stdio};
use std::time::{Duration, Instant};

/// The workload that every governed program of the story belongs to.
pub(crate) const WORKLOAD: &str = "shop-report";
/// The API it may call, in part.
pub(crate) const ORDERS: &str = "https://api.orders.example/v1/orders";

/// World, agent and teller.
#[derive(Debug)]
pub(crate) struct Stage {
    pub(crate) world: World,
    pub(crate) agent: Agent,
    pub(crate) story: Story,
    clients: PathBuf,
    python: PathBuf,
}

/// An HTTP answer as `curl -si` prints it.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: u16,
    pub(crate) head: String,
    pub(crate) body: String,
    /// curl's own exit status.
    pub(crate) exit: Option<i32>,
    pub(crate) stderr: String,
}

impl Stage {
    /// Stands everything up; the agent does not run yet.
    pub(crate) fn new(policy: &str, story: Story) -> Result<Self> {
        let world = World::new()?;
        let agent = Agent::new(&world, policy)?;
        let demo = harness::repository().join("tests/demo");
        let clients = world.show(&demo, "clients")?;
        let venv = harness::repository().join("target/tools/venv");
        let python = world
            .show(&venv, "python")
            .context("run `cargo xtask setup`")?;
        Ok(Self {
            world,
            agent,
            story,
            clients,
            python: python.join("bin/python3"),
        })
    }

    /// Requests that nginx has logged so far.
    pub(crate) fn seen(&self) -> Result<usize> {
        Ok(self.world.nginx.requests()?.len())
    }

    /// Waits until the wire to the servers is silent, and gives what came over it so far. What is
    /// still on its way (a last acknowledgement, the end of a connection) belongs to what was before.
    pub(crate) fn quiet(&self) -> Result<Received> {
        let until = Instant::now() + Duration::from_secs(10);
        let mut last = self.world.servers.received("s0")?;
        loop {
            std::thread::sleep(Duration::from_millis(200));
            let now = self.world.servers.received("s0")?;
            if now == last {
                return Ok(now);
            }
            anyhow::ensure!(Instant::now() < until, "the wire does not fall silent");
            last = now;
        }
    }

    /// Types a command under `tollgate run` and shows it; quotes words that a shell would split.
    pub(crate) fn governed(&mut self, program: &str, arguments: &[&str]) -> Result<Output> {
        let typed: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
        self.story.types(&format!(
            "tollgate run --user nobody -- {program} {}",
            typed.join(" ")
        ));
        let path = match program {
            "python3" => self.python.clone(),
            other => other.into(),
        };
        let mut command = self.agent.governed(&self.world, WORKLOAD, path);
        let output = command.args(arguments).stdin(Stdio::null()).output()?;
        Ok(output)
    }

    /// `curl -si` under `tollgate run`.
    pub(crate) fn curl(&mut self, arguments: &[&str]) -> Result<Answer> {
        let output = self.governed("curl", &[&["-si"], arguments].concat())?;
        let answer = Answer::read(&output);
        self.story.shows(&answer.shown());
        Ok(answer)
    }

    /// Starts a program of `tests/demo` under `tollgate run`, to be told a command per line.
    pub(crate) fn start(&mut self, script: &str) -> Result<Running> {
        let python = script.ends_with(".py");
        let (name, program) = if python {
            ("python3", self.python.clone())
        } else {
            ("node", PathBuf::from("node"))
        };
        self.story.types(&format!(
            "tollgate run --user nobody -- {name} tests/demo/{script} &"
        ));
        let mut command = self.agent.governed(&self.world, WORKLOAD, program);
        command.arg(self.clients.join(script));
        Running::start(command)
    }

    /// Types `tollgate VERB …`, shows it and what it prints, and gives that and its exit status.
    pub(crate) fn tollgate(&mut self, verb: &str, arguments: &[&str]) -> Result<(i32, String)> {
        let words: Vec<_> = arguments.iter().map(|word| quoted(word)).collect();
        self.story
            .types(format!("tollgate {verb} {}", words.join(" ")).trim_end());
        let output = self.agent.output(&self.world, verb, arguments)?;
        let mut said = String::from_utf8_lossy(&output.stdout).into_owned();
        said.push_str(&String::from_utf8_lossy(&output.stderr));
        self.story.shows(&said);
        Ok((output.status.code().unwrap_or(-1), said))
    }
}

impl Answer {
    fn read(output: &Output) -> Self {
        let text = String::from_utf8_lossy(&output.stdout).replace('\r', "");
        let (head, body) = text.split_once("\n\n").unwrap_or((&text, ""));
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|word| word.parse().ok())
            .unwrap_or(0);
        Self {
            status,
            head: head.to_owned(),
            body: body.trim().to_owned(),
            exit: output.status.code(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Status line, content type and body, and what went to standard error.
    fn shown(&self) -> String {
        let first = self.head.lines().next().unwrap_or_default();
        let kind = self
            .head
            .lines()
            .find(|line| line.to_lowercase().starts_with("content-type"));
        let body = match self.json() {
            serde_json::Value::Object(fields) if fields.contains_key("decision") => {
                problem(&fields)
            }
            _ => self.body.clone(),
        };
        let stderr = self.stderr.lines().filter(|line| !is_chatter(line));
        let stderr = stderr.collect::<Vec<_>>().join("\n");
        format!("{first}\n{}\n{body}\n{stderr}", kind.unwrap_or_default())
    }

    /// The body as JSON; null if it is none.
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.body).unwrap_or_default()
    }
}

/// The fields of a refusal, one a line.
fn problem(fields: &serde_json::Map<String, serde_json::Value>) -> String {
    let lines: Vec<_> = fields
        .iter()
        .map(|(name, value)| format!("  {name}: {value}"))
        .collect();
    lines.join("\n")
}

/// What `curl -v` says of connecting, of TLS, and of headers that are shown already.
fn is_chatter(line: &str) -> bool {
    ["* ", "< ", "{ [", "} ["]
        .iter()
        .any(|start| line.starts_with(start))
}

/// As a shell wants it.
fn quoted(word: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_./:=%,@+".contains(c);
    if !word.is_empty() && word.chars().all(plain) {
        word.to_owned()
    } else if word.contains('\'') && !word.contains(['"', '$', '`', '\\', '!']) {
        format!("\"{word}\"")
    } else {
        format!("'{}'", word.replace('\'', r"'\''"))
    }
}
