//! What `cargo xtask soak` runs: bodies of many GiB through the agent, each way, over each pair of protocols, looked at byte by
//! byte at the other end, with the most memory that the agent ever had.
//!
//! The client is curl, governed; the server sends what [`pattern`] makes and digests what it gets.

mod pattern;
mod server;

use anyhow::{Context as _, Result, bail, ensure};
use harness::World;
use harness::agent::Agent;
use harness::client::Running;
use harness::dns::Answer;
use pattern::Digest;
use std::io::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

/// A server each: what it speaks, and whether a credential is put in, so that its answers are looked through for it.
const SERVERS: [(&str, Ipv4Addr, &str); 3] = [
    ("one.example", Ipv4Addr::new(93, 184, 216, 50), "HTTP/1.1"),
    ("two.example", Ipv4Addr::new(93, 184, 216, 51), "HTTP/2"),
    ("keyed.example", Ipv4Addr::new(93, 184, 216, 52), "HTTP/1.1"),
];
/// Bytes of a short body: more than anything between its ends holds.
const SHORT: u64 = 64 << 20;
/// What a longer body may add to the agent's memory, in MiB: nothing that grows with it.
const MORE: u64 = 32;
/// Slower than this, in bytes a second, and something is wrong.
const SLOWEST: u64 = 8 << 20;

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match *words.as_slice() {
        ["bodies", bytes] => bodies(bytes.parse().context("a number of bytes")?),
        ["serve", address, protocol, certificate, key] => {
            server::run(address, protocol, certificate, key)
        }
        ["send", bytes] => pattern::send(&mut std::io::stdout().lock(), bytes.parse()?),
        ["digest"] => {
            let digest = Digest::of(&mut std::io::stdin().lock())?;
            println!("{digest}");
            Ok(())
        }
        _ => bail!("usage: soak bodies BYTES"),
    }
}

struct Soak {
    world: World,
    agent: Agent,
    /// This program, where the client side can read it.
    own: PathBuf,
    _servers: Vec<Running>,
}

fn bodies(bytes: u64) -> Result<()> {
    let soak = Soak::new()?;
    let expected = Digest::expected(bytes)?;
    // The same with short ones, so that what is taken once, whatever the length, is there before anything is measured.
    for (host, _, _) in SERVERS {
        for client in ["--http1.1", "--http2"] {
            for down in [true, false] {
                soak.transfer(down, client, host, SHORT, &Digest::expected(SHORT)?)?;
            }
        }
    }
    let before = soak.memory("VmHWM:")?;
    println!(
        "{bytes} bytes each; with {SHORT} bytes each, the agent has had {before} MiB at most\n"
    );
    println!(
        "{:<10} {:<9} {:<22} {:>8} {:>8} {:>18}",
        "", "client", "server", "seconds", "MiB/s", "agent at most, MiB"
    );
    for (host, _, speaks) in SERVERS {
        for client in ["--http1.1", "--http2"] {
            for down in [true, false] {
                let began = Instant::now();
                soak.transfer(down, client, host, bytes, &expected)
                    .with_context(|| format!("{host} {client} down: {down}"))?;
                let seconds = began.elapsed().as_secs_f64();
                let server = match host {
                    "keyed.example" => format!("{speaks}, credential"),
                    _ => speaks.to_owned(),
                };
                let client = match client {
                    "--http2" => "HTTP/2",
                    _ => "HTTP/1.1",
                };
                println!(
                    "{:<10} {client:<9} {server:<22} {seconds:>8.1} {:>8.0} {:>18}",
                    if down { "download" } else { "upload" },
                    bytes as f64 / seconds / f64::from(1 << 20),
                    soak.memory("VmHWM:")?,
                );
            }
        }
    }
    let after = soak.memory("VmHWM:")?;
    ensure!(
        after <= before + MORE,
        "the agent's memory grew with the bodies: {before} MiB before, {after} MiB after"
    );
    println!(
        "\nall arrived as sent; {before} MiB at most before, {after} MiB after; now {} MiB, of which {} MiB are no files and no maps shared with the kernel",
        soak.memory("VmRSS:")?,
        soak.memory("RssAnon:")?,
    );
    Ok(())
}

impl Soak {
    fn new() -> Result<Self> {
        let world = World::new()?;
        let own = std::env::current_exe()?;
        let directory = own.parent().context("this program has no directory")?;
        let shown = world.show(directory, "soak")?;
        let shown = shown.join(own.file_name().context("this program has no name")?);
        let mut servers = Vec::new();
        for (host, address, speaks) in SERVERS {
            let script = format!("ip addr add {address}/32 dev lo");
            world.servers.script(&script)?;
            let files = world.ca.issue(&[host], world.directory())?;
            let mut command = world.servers.command(&own);
            command.args(["serve", &address.to_string(), speaks]);
            command.args([&files.certificate, &files.key]);
            let mut server = Running::start(command)?;
            let line = server.line(Duration::from_secs(10))?;
            ensure!(line == "ready", "{line}");
            servers.push(server);
            world.dns.set(host, Answer::Addresses(vec![address.into()]));
        }
        let mut agent = Agent::new(&world, include_str!("policy.yaml"))?;
        agent.start(&world)?;
        Ok(Self {
            world,
            agent,
            own: shown,
            _servers: servers,
        })
    }

    /// One body one way, looked at where it arrives.
    fn transfer(
        &self,
        down: bool,
        client: &str,
        host: &str,
        bytes: u64,
        expected: &Digest,
    ) -> Result<()> {
        let (own, url) = (self.own.display(), format!("https://{host}/bytes/{bytes}"));
        let limit = Duration::from_secs(60 + bytes / SLOWEST);
        let curl = format!(
            "curl --silent --show-error --fail-with-body --max-time {} {client}",
            limit.as_secs()
        );
        let script = match down {
            true => format!("{curl} {url} | {own} digest"),
            false => format!(
                "{own} send {bytes} | {curl} -H 'Expect:' -H 'Content-Type: application/octet-stream' -X POST -T - {url}"
            ),
        };
        let got = self.shell(&format!("set -e -o pipefail; {script}"))?;
        let got: Digest = got.trim().parse().with_context(|| got.clone())?;
        ensure!(
            got == *expected,
            "what arrived is not what was sent: {got} for {expected}"
        );
        Ok(())
    }

    fn shell(&self, script: &str) -> Result<String> {
        let mut command = self.agent.verb(&self.world, "run");
        command.args(["--quiet", "--user", "nobody", "--workload", "soak", "--"]);
        command.args(["bash", "-c", script]).stdin(Stdio::null());
        let output = command.output()?;
        let told = String::from_utf8_lossy(&output.stderr);
        ensure!(output.status.success(), "{script}: {}", told.trim());
        std::io::stdout().flush()?;
        Ok(String::from_utf8(output.stdout)?)
    }

    /// A line of the agent's status that tells of memory, in MiB.
    fn memory(&self, name: &str) -> Result<u64> {
        let path = format!("/proc/{}/status", self.agent.pid()?);
        let status = std::fs::read_to_string(Path::new(&path))?;
        let line = status.lines().find_map(|line| line.strip_prefix(name));
        let kib = line.and_then(|line| line.split_whitespace().next());
        let kib: u64 = kib.with_context(|| format!("no {name}"))?.parse()?;
        Ok(kib / 1024)
    }
}
