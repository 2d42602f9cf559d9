//! Who could make a call.
use super::super::output::{self, Format, Table};
use super::super::{Context, Outcome};
use super::{Args, policy_on_disk};
use serde::Serialize;
use tollgate_policy::tools::call::Call;
use tollgate_policy::{Ability, Body, Mode, Who};

/// A subject that could, as JSON has it.
#[derive(Serialize)]
struct Able {
    workload: String,
    /// Nobody need be proven.
    anybody: bool,
    /// Identities that could; where anybody could, those that could not.
    identities: Vec<String>,
    /// None where it is denied and the denial is only recorded.
    rule: Option<String>,
    at: Option<String>,
    mode: Mode,
    until: Option<jiff::Timestamp>,
    credential: Option<String>,
    /// What else would have to hold.
    further: Vec<String>,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let call = match &args.url {
        Some(url) => Call::new(&args.method, url),
        None => Call::parse(&args.method),
    };
    let call = Call {
        headers: args.header.clone(),
        ..call?
    };
    let given = super::body(args)?;
    let body = given.as_deref().map(|body| Body::Read(body.as_bytes()));
    let policy = policy_on_disk(context, args)?;
    let now = jiff::Timestamp::now().as_second();
    let request = call.request(body.unwrap_or(Body::Unread(None)), now);
    let able: Vec<Able> = policy.who_can(&request).into_iter().map(able).collect();
    match args.form.format {
        Format::Table if able.is_empty() => show!("nobody"),
        Format::Table => table(&able).print()?,
        format => output::print_json(format, &able)?,
    }
    Ok(if able.is_empty() {
        Outcome::No
    } else {
        Outcome::Done
    })
}

fn able(ability: Ability<'_>) -> Able {
    let owned = |names: Vec<&str>| names.into_iter().map(str::to_owned).collect();
    let (anybody, identities) = match ability.who {
        Who::Anybody { but } => (true, owned(but)),
        Who::These(names) => (false, owned(names)),
    };
    Able {
        workload: ability.workload.to_owned(),
        anybody,
        identities,
        rule: ability.rule.map(|rule| rule.label.to_string()),
        at: ability
            .rule
            .map(|rule| format!("{}:{}", rule.at.file, rule.at.line)),
        mode: ability.mode,
        until: ability
            .until
            .and_then(|until| jiff::Timestamp::from_second(until).ok()),
        credential: ability.credential.map(str::to_owned),
        further: ability.further,
    }
}

fn table(able: &[Able]) -> Table {
    let mut table = Table::new(&["WORKLOAD", "IDENTITY", "CREDENTIAL", "UNTIL", "RULE", "IF"]);
    for able in able {
        let names = able.identities.join(" ");
        let who = match (able.anybody, able.identities.is_empty()) {
            (true, true) => "any".to_owned(),
            (true, false) => format!("any but {names}"),
            (false, _) => names,
        };
        let rule = match (&able.rule, &able.at) {
            (Some(rule), Some(at)) => format!("{rule} ({at})"),
            _ => "denied, and only recorded: observe mode".to_owned(),
        };
        let or_dash = |text: Option<String>| text.unwrap_or_else(|| "-".to_owned());
        let further = Some(able.further.join("; ")).filter(|further| !further.is_empty());
        table.row([
            able.workload.clone(),
            who,
            or_dash(able.credential.clone()),
            or_dash(able.until.map(output::local)),
            rule,
            or_dash(further),
        ]);
    }
    table
}
