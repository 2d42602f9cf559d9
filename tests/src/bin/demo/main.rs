//! The story that `cargo xtask demo` tells: real programs, held to their scopes on live traffic.
//!
//! Each step says what is typed, shows what comes back, and checks it; the first thing that differs
//! ends the story with a non-zero status. Everything happens in two network namespaces.

mod accounts;
mod calls;
mod live;
mod stage;
mod story;

use anyhow::{Context as _, Result};
use stage::Stage;
use std::io::IsTerminal as _;
use std::process::ExitCode;
use std::time::Instant;
use story::Story;

fn main() -> ExitCode {
    let keep = std::env::args()
        .skip(1)
        .any(|argument| argument == "--keep");
    match play(keep) {
        Ok(()) => ExitCode::SUCCESS,
        // The signal's own thread cleans up and ends the process.
        Err(_) if harness::cleanup::interrupted() => loop {
            std::thread::park();
        },
        Err(fault) => {
            eprintln!("\nerror: {fault:#}");
            ExitCode::FAILURE
        }
    }
}

fn play(keep: bool) -> Result<()> {
    let began = Instant::now();
    let policy = harness::repository().join("tests/demo/policy.yaml");
    let policy = std::fs::read_to_string(&policy)
        .with_context(|| format!("cannot read {}", policy.display()))?;
    let mut stage = Stage::new(&policy, Story::new())?;
    opening(&mut stage, &policy)?;
    let told = tell(&mut stage, &policy);
    if told.is_err() && !harness::cleanup::interrupted() {
        let log = stage.agent.log();
        eprintln!(
            "\nThe agent's log:\n{log}\nnginx's complaints:\n{}",
            stage.world.nginx.errors()
        );
    }
    told?;
    stage.story.ends(began.elapsed());
    if keep {
        hold(&stage)?;
    }
    stage.agent.stop()
}

fn opening(stage: &mut Stage, policy: &str) -> Result<()> {
    let story = &stage.story;
    story.say(
        "Two network namespaces, joined by a cable. On one side nginx serves a small API over",
    );
    story.say(
        "TLS, on 93.184.216.34 and IPv6, to whoever has a credential. On the other side run the",
    );
    story.say("agent and the programs it governs, under this policy (tests/demo/policy.yaml):");
    story.say("");
    story.shows(policy);
    calls::without_tollgate(stage)?;
    stage.story.step("The agent starts");
    let (code, said) = stage.tollgate("check", &[&stage.agent.policy().to_string_lossy()])?;
    stage.story.check("the policy is valid", code == 0, said)?;
    stage.story.types("tollgate agent --config config.yaml");
    stage.agent.start(&stage.world)?;
    stage.story.check("it says that it is ready", true, "")
}

fn tell(stage: &mut Stage, policy: &str) -> Result<()> {
    calls::allowed(stage)?;
    calls::refused(stage)?;
    calls::other_protocols(stage)?;
    calls::http2(stage)?;
    calls::event_stream(stage)?;
    live::a_client_lives_through(stage, policy)?;
    accounts::accounts(stage)
}

/// Leaves it all running: a shell on the client side where there is a terminal, else until a signal.
fn hold(stage: &Stage) -> Result<()> {
    let (world, agent) = (&stage.world, &stage.agent);
    let directory = agent
        .program()
        .parent()
        .map(|d| d.display().to_string())
        .unwrap_or_default();
    println!("\nIt all keeps running. From another terminal:");
    println!("  nsenter --target {} --net --mount", world.clients.pid());
    println!(
        "  export PATH={directory}:$PATH TOLLGATE_CONFIG={}",
        agent.config().display()
    );
    println!("  tollgate run -- curl -i {}", stage::ORDERS);
    println!(
        "The servers' side: nsenter --target {} --net --mount",
        world.servers.pid()
    );
    if !std::io::stdin().is_terminal() {
        println!("Ctrl-C ends it.");
        loop {
            std::thread::park();
        }
    }
    println!("This is a shell on the client side; leaving it ends everything.");
    let path = std::env::var("PATH").unwrap_or_default();
    let shell = std::env::var_os("SHELL").unwrap_or_else(|| "/bin/sh".into());
    let mut command = world.client(shell);
    command
        .env("PATH", format!("{directory}:{path}"))
        .env("TOLLGATE_CONFIG", agent.config());
    command.status().context("cannot start a shell")?;
    Ok(())
}
