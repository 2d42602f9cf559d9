//! The bench that `cargo xtask bench` runs: the same load straight at nginx and through Tollgate.
//!
//! The contender has a core of its own; the load generator and nginx share the other. Both
//! contenders are measured in one run, one scenario after the other, so that what else the machine
//! does meets both. Numbers from different machines do not compare; ratios do.

mod load;

use anyhow::{Context as _, Result, bail};
use harness::World;
use harness::agent::Agent;
use load::{Load, Scenario, Seen};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// The contender's core.
const CONTENDER: &str = "0";
/// Where load generator and nginx run.
const REST: &str = "1";

fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    match arguments
        .iter()
        .map(String::as_str)
        .collect::<Vec<_>>()
        .as_slice()
    {
        ["load", load] => load::run(&load.parse()?),
        ["--seconds", seconds] => compare(seconds.parse().context("--seconds takes a number")?),
        _ => bail!("usage: bench --seconds N"),
    }
}

fn compare(seconds: u32) -> Result<()> {
    if std::thread::available_parallelism()?.get() < 2 {
        bail!("the bench needs two cores: one for the contender, one for load and server");
    }
    let world = World::new()?;
    let mut agent = Agent::new(&world, include_str!("policy.yaml"))?;
    agent.start(&world)?;
    pin(agent.pid()?, CONTENDER)?;
    for pid in harness::netns::inhabitants(&[world.servers.inode()?]) {
        pin(pid, REST)?;
    }
    // The generator runs as another user: it must be readable wherever the repository is.
    let own = std::env::current_exe()?;
    let directory = own.parent().context("the bench has no directory")?;
    let shown = world.show(directory, "bench")?;
    let generator = shown.join(own.file_name().context("the bench has no name")?);

    println!(
        "{:<34} {:<9} {:>10} {:>9} {:>9} {:>12}",
        "", "", "requests/s", "p50 µs", "p99 µs", "CPU µs/req"
    );
    for scenario in Scenario::ALL {
        let load = Load { scenario, seconds };
        let seen = direct(&world, &generator, &load)?;
        row(scenario.title(), "direct", &seen, None);
        let before = cpu_time(agent.pid()?)?;
        let seen = through(&world, &agent, &generator, &load)?;
        let spent = cpu_time(agent.pid()?)? - before;
        row(
            "",
            "tollgate",
            &seen,
            Some(spent * 1e6 / seen.requests.max(1) as f64),
        );
    }
    agent.stop()
}

fn row(scenario: &str, contender: &str, seen: &Seen, cpu: Option<f64>) {
    let cpu = cpu.map_or_else(|| "–".to_owned(), |micros| format!("{micros:.1}"));
    println!(
        "{scenario:<34} {contender:<9} {:>10.0} {:>9} {:>9} {cpu:>12}",
        seen.per_second, seen.p50, seen.p99
    );
}

fn direct(world: &World, generator: &Path, load: &Load) -> Result<Seen> {
    let mut command = world.client("taskset");
    command
        .args(["-c", REST])
        .arg(generator)
        .args(["load", &load.to_string()]);
    command.env("SSL_CERT_FILE", world.ca_file());
    measure(command)
}

fn through(world: &World, agent: &Agent, generator: &Path, load: &Load) -> Result<Seen> {
    let mut command = agent.verb(world, "run");
    command.args(["--quiet", "--workload", "load", "--", "taskset", "-c", REST]);
    command.arg(generator).args(["load", &load.to_string()]);
    measure(command)
}

fn measure(mut command: Command) -> Result<Seen> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!(
            "the load failed: {}",
            String::from_utf8_lossy(&output.stderr).trim()
        );
    }
    serde_json::from_slice(&output.stdout).context("the load generator's summary")
}

/// Binds a process and its threads to a core.
fn pin(pid: u32, core: &str) -> Result<()> {
    let mut taskset = Command::new("taskset");
    let status = taskset
        .args(["-a", "-c", "-p", core, &pid.to_string()])
        .stdout(Stdio::null());
    if !status.status()?.success() {
        bail!("cannot bind process {pid} to core {core}");
    }
    Ok(())
}

/// Seconds of CPU that a process has used, user and system, all threads.
fn cpu_time(pid: u32) -> Result<f64> {
    let path = PathBuf::from(format!("/proc/{pid}/stat"));
    let text = std::fs::read_to_string(&path)?;
    // The name is in parentheses and may hold anything; utime and stime are fields 14 and 15.
    let (_, fields) = text
        .rsplit_once(')')
        .context("another form of /proc/PID/stat")?;
    let ticks = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .map(|field| field.parse::<u64>().unwrap_or(0));
    Ok(ticks.sum::<u64>() as f64 / rustix::param::clock_ticks_per_second() as f64)
}
