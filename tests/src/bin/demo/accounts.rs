//! What is on record after all of it.
use crate::stage::{Stage, WORKLOAD};
use anyhow::Result;
use serde_json::Value;

/// `decisions`, `flows` and `status`.
pub(crate) fn accounts(stage: &mut Stage) -> Result<()> {
    decisions(stage)?;
    stage.story.step("The kernel's accounts of flows");
    let (code, said) = stage.tollgate("flows", &["--workload", WORKLOAD])?;
    stage.story.equal("flows exits 0", code, 0)?;
    let counted = said.contains(WORKLOAD) && said.contains(":443");
    stage
        .story
        .check("they name the workload and where it went", counted, &said)?;

    stage.story.step("How the agent is");
    let (code, said) = stage.tollgate("status", &[])?;
    stage
        .story
        .equal("status exits 0: healthy and enforcing", code, 0)?;
    stage.story.check(
        "it names the layers in force",
        said.contains("connect4"),
        &said,
    )
}

fn decisions(stage: &mut Stage) -> Result<()> {
    stage
        .story
        .step("Every call is on record, the kernel's refusals too");
    let (code, _) = stage.tollgate("decisions", &["--denied", "--limit", "12"])?;
    stage.story.equal("decisions exits 0", code, 0)?;
    let records = stage.agent.decisions(&stage.world)?;
    let passed = stage.seen()?;
    // One call was made without Tollgate; every other that nginx saw was allowed by a decision.
    let allowed = of(&records, "ALLOW").count();
    stage.story.equal(
        "one ALLOW for each request that nginx logged",
        allowed,
        passed - 1,
    )?;
    let refused = of(&records, "DENY").count();
    stage
        .story
        .check(&format!("and {refused} DENY"), refused >= 12, refused)?;
    let kernel = records
        .iter()
        .filter(|r| field(r, "coverage") == Some("kernel"))
        .count();
    stage.story.check(
        &format!("{kernel} of them are the kernel's own"),
        kernel >= 2,
        kernel,
    )?;
    let rules = of(&records, "ALLOW").all(|r| r.get("rule").is_some_and(Value::is_string));
    stage
        .story
        .check("each ALLOW names its rule", rules, "one does not")?;
    let owners = records
        .iter()
        .filter(|r| field(r, "workload") == Some(WORKLOAD))
        .count();
    stage
        .story
        .equal("each names the workload", owners, records.len())?;
    let text = serde_json::to_string(&records)?;
    let leaked = text.contains("orders-bot-key") || text.contains("stolen");
    stage
        .story
        .check("no record holds a credential", !leaked, leaked)
}

fn of<'a>(records: &'a [Value], verdict: &'a str) -> impl Iterator<Item = &'a Value> {
    records
        .iter()
        .filter(move |record| field(record, "verdict") == Some(verdict))
}

fn field<'a>(record: &'a Value, name: &str) -> Option<&'a str> {
    record.get(name).and_then(Value::as_str)
}
