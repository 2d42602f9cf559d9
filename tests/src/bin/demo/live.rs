//! While a client runs: its credential rotated, its policy edited, its agent killed and started again.
use crate::calls::{FIRST, arrived_with, tell};
use crate::stage::{ORDERS, Stage};
use anyhow::{Context as _, Result};
use harness::Site;
use harness::client::Running;
use serde_json::{Value, json};
use std::time::Duration;

/// A refused connect must fail within this.
const AT_ONCE: f64 = 10.0;

const SECOND: &str = "Bearer second-orders-bot-key";

fn get() -> Value {
    json!({"method": "GET", "url": ORDERS})
}

fn delete() -> Value {
    json!({"method": "DELETE", "url": format!("{ORDERS}/7")})
}

fn status(answer: &Value) -> Option<u64> {
    answer.get("status").and_then(Value::as_u64)
}

/// The three steps that one running client lives through, and a second one beside it.
pub(crate) fn a_client_lives_through(stage: &mut Stage, policy: &str) -> Result<()> {
    let mut python = rotation(stage)?;
    let mut node = edit(stage, policy)?;
    broken_edit(stage, policy, &mut node)?;
    death(stage, &mut python)?;
    resurrection(stage, &mut python, &mut node)?;
    python.finish(Duration::from_secs(10))?;
    node.finish(Duration::from_secs(10))?;
    Ok(())
}

fn rotation(stage: &mut Stage) -> Result<Running> {
    stage
        .story
        .step("The credential is rotated while a Python program runs");
    let mut python = stage.start("client.py")?;
    let before = stage.seen()?;
    let answer = tell(stage, &mut python, &get())?;
    stage
        .story
        .equal("it got 200", status(&answer), Some(200))?;
    arrived_with(stage, before, FIRST)?;

    stage
        .story
        .types("printf second-orders-bot-key > secrets/orders-bot");
    stage
        .agent
        .write_secret("orders-bot", "second-orders-bot-key")?;
    let (code, _) = stage.tollgate("reload", &[])?;
    stage.story.equal("the agent took it", code, 0)?;
    let before = stage.seen()?;
    let answer = tell(stage, &mut python, &get())?;
    stage.story.equal(
        "the same program, told nothing, got 200",
        status(&answer),
        Some(200),
    )?;
    arrived_with(stage, before, SECOND)?;
    Ok(python)
}

fn edit(stage: &mut Stage, policy: &str) -> Result<Running> {
    stage
        .story
        .step("The policy is edited while a Node program runs");
    let mut node = stage.start("client.mjs")?;
    let answer = tell(stage, &mut node, &delete())?;
    stage
        .story
        .equal("deleting an order is refused", status(&answer), Some(403))?;
    let before = "        - route: GET /v1/events\n";
    let line = "        - route: DELETE /v1/orders/{id:int}\n";
    let edited = policy.replace(before, &format!("{before}{line}"));
    stage
        .story
        .check("the policy has the line to edit", edited != policy, before)?;
    stage.story.types(&format!(
        "echo '{}' >> policy.yaml   # among the allowed routes",
        line.trim()
    ));
    stage.agent.write_policy(&edited)?;
    let (code, _) = stage.tollgate("reload", &[])?;
    stage.story.equal("the agent took it", code, 0)?;
    let seen = stage.seen()?;
    let answer = tell(stage, &mut node, &delete())?;
    stage.story.equal(
        "the same program may delete it now",
        status(&answer),
        Some(204),
    )?;
    arrived_with(stage, seen, SECOND)?;
    Ok(node)
}

fn broken_edit(stage: &mut Stage, policy: &str, node: &mut Running) -> Result<()> {
    stage
        .story
        .step("An edit with a mistake changes nothing, and says where the mistake is");
    let broken = policy.replace("credential: orders-bot", "credentail: orders-bot");
    let place = position(&broken, "credentail").context("the policy names a credential")?;
    stage
        .story
        .types("sed -i s/credential:/credentail:/ policy.yaml");
    stage.agent.write_policy(&broken)?;
    let (code, said) = stage.tollgate("reload", &[])?;
    stage.story.check("reload fails", code != 0, code)?;
    let what = format!("it names line and column, {place}, and the nearest key that exists");
    stage.story.check(
        &what,
        said.contains(&place) && said.contains("`credential`"),
        &said,
    )?;
    let answer = tell(stage, node, &delete())?;
    stage.story.equal(
        "the running policy stays: the program still may",
        status(&answer),
        Some(204),
    )?;
    stage.agent.write_policy(policy)?;
    let (code, _) = stage.tollgate("reload", &[])?;
    stage
        .story
        .equal("with the first policy back, the agent takes it", code, 0)?;
    let answer = tell(stage, node, &delete())?;
    stage
        .story
        .equal("and deleting is refused again", status(&answer), Some(403))
}

/// `line:column` of the first place of a word.
fn position(text: &str, word: &str) -> Option<String> {
    let (number, line) = text
        .lines()
        .enumerate()
        .find(|(_, line)| line.contains(word))?;
    Some(format!("{}:{}", number + 1, line.find(word)? + 1))
}

fn death(stage: &mut Stage, python: &mut Running) -> Result<()> {
    stage.story.step("The agent is killed: nothing opens");
    stage
        .story
        .types(&format!("kill -KILL {}", stage.agent.pid()?));
    stage.agent.kill()?;
    let wire = stage.quiet()?;
    let seen = stage.seen()?;
    for address in [Site::ORDERS.v4, Site::PAYROLL.v4] {
        let answer = tell(stage, python, &json!({"connect": address, "port": 443}))?;
        let refused = answer.get("errno").and_then(Value::as_str);
        let refused = matches!(refused, Some("EPERM" | "ECONNREFUSED" | "EACCES"));
        stage
            .story
            .check("the connect is refused", refused, &answer)?;
        let took = answer
            .get("connect_ms")
            .and_then(Value::as_f64)
            .unwrap_or(f64::MAX);
        let what = format!("at once: {took} ms, and {AT_ONCE} ms are allowed");
        stage.story.check(&what, took < AT_ONCE, &answer)?;
    }
    std::thread::sleep(Duration::from_millis(300));
    let after = stage.world.servers.received("s0")?;
    stage
        .story
        .equal("not a byte reached the server's side", after, wire)?;
    let answer = tell(stage, python, &get())?;
    stage.story.check(
        "a whole call fails too",
        answer.get("error").is_some(),
        &answer,
    )?;
    stage.story.equal("nginx saw nothing", stage.seen()?, seen)
}

fn resurrection(stage: &mut Stage, python: &mut Running, node: &mut Running) -> Result<()> {
    stage
        .story
        .step("The agent is started again: the same programs go on, and nobody entered a thing");
    stage
        .story
        .types("systemctl start tollgate   # here: tollgate agent --config config.yaml");
    stage.agent.start(&stage.world)?;
    let before = stage.seen()?;
    let answer = tell(stage, python, &get())?;
    stage
        .story
        .equal("Python got 200", status(&answer), Some(200))?;
    arrived_with(stage, before, SECOND)?;
    let before = stage.seen()?;
    let answer = tell(stage, node, &get())?;
    stage
        .story
        .equal("Node got 200", status(&answer), Some(200))?;
    arrived_with(stage, before, SECOND)?;
    let answer = tell(stage, node, &delete())?;
    stage.story.equal(
        "what was refused before is refused now",
        status(&answer),
        Some(403),
    )
}
