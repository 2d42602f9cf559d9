//! One call at a time: what passes, what does not, and what the server saw.
use crate::stage::{Answer, ORDERS, Stage};
use anyhow::Result;
use harness::Site;
use harness::client::Running;
use serde_json::json;
use std::time::Duration;

/// The value of the credential when the story begins.
pub(crate) const FIRST: &str = "Bearer first-orders-bot-key";

/// Without Tollgate the API wants a credential that the client does not have.
pub(crate) fn without_tollgate(stage: &mut Stage) -> Result<()> {
    stage
        .story
        .step("Without Tollgate: the API wants a credential, and the program has none");
    stage
        .story
        .types(&format!("curl -s --cacert server-ca.pem {ORDERS}"));
    let mut curl = stage.world.client("curl");
    let output = curl
        .args(["-s", "--cacert"])
        .arg(stage.world.ca_file())
        .arg(ORDERS)
        .output()?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    stage.story.shows(&said);
    stage
        .story
        .check("the API refuses it", said.contains("no credential"), said)
}

/// Three unmodified programs make the call that the policy allows.
pub(crate) fn allowed(stage: &mut Stage) -> Result<()> {
    stage
        .story
        .step("Under Tollgate the same call passes: the agent puts the credential in");
    let before = stage.seen()?;
    let answer = stage.curl(&["-v", ORDERS])?;
    stage
        .story
        .equal("curl got 200", (answer.exit, answer.status), (Some(0), 200))?;
    arrived_with(stage, before, FIRST)?;
    let request: Vec<_> = answer
        .stderr
        .lines()
        .filter(|line| line.starts_with('>'))
        .collect();
    let held = request
        .iter()
        .any(|line| line.to_lowercase().contains("authorization"));
    stage
        .story
        .check("curl sent no credential: it never had one", !held, &request)?;
    let leaked = (answer.head + &answer.body + &answer.stderr).contains("orders-bot-key");
    stage.story.check(
        "nothing that curl received or printed holds it",
        !leaked,
        leaked,
    )?;

    let before = stage.seen()?;
    let script = format!("import requests; print(requests.get('{ORDERS}').json())");
    let output = stage.governed("python3", &["-c", &script])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    stage.story.shows(&said);
    stage.story.check(
        "Python's requests got the orders",
        said.contains("'orders'"),
        &output,
    )?;
    arrived_with(stage, before, FIRST)?;

    let before = stage.seen()?;
    let script = format!("fetch('{ORDERS}').then(r => r.json()).then(console.log)");
    let output = stage.governed("node", &["-e", &script])?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    stage.story.shows(&said);
    stage.story.check(
        "Node's fetch got the orders",
        said.contains("orders:"),
        &output,
    )?;
    arrived_with(stage, before, FIRST)?;

    stage
        .story
        .step("A credential that the program brings itself is replaced");
    let before = stage.seen()?;
    let answer = stage.curl(&["-H", "Authorization: Bearer stolen", ORDERS])?;
    stage.story.equal("curl got 200", answer.status, 200)?;
    arrived_with(stage, before, FIRST)?;

    stage
        .story
        .step("The program sees the address it asked for, not the agent's");
    let output = stage.governed(
        "curl",
        &[
            "-4",
            "-so",
            "/dev/null",
            "-w",
            "%{remote_ip}:%{remote_port}",
            ORDERS,
        ],
    )?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    stage.story.shows(&said);
    stage
        .story
        .equal("it is the API's", said, format!("{}:443", Site::ORDERS.v4))
}

/// nginx logged one more request, with this credential.
pub(crate) fn arrived_with(stage: &mut Stage, before: usize, credential: &str) -> Result<()> {
    let new = stage.world.nginx.requests_after(before)?;
    let credentials: Vec<_> = new
        .iter()
        .map(|request| request.authorization.as_str())
        .collect();
    let what = format!("nginx logged one request, with `Authorization: {credential}`");
    stage.story.equal(&what, credentials, vec![credential])
}

/// What the policy does not allow does not leave the host.
pub(crate) fn refused(stage: &mut Stage) -> Result<()> {
    let body = ["-X", "PATCH", "-H", "content-type: application/json", "-d"];
    let seven = format!("{ORDERS}/7");
    let zero = format!("{ORDERS}/0");
    let cases: [(&str, &str, Vec<&str>); 6] = [
        (
            "A method that no rule allows",
            "method",
            vec!["-X", "DELETE", &seven],
        ),
        (
            "A path that no rule allows",
            "no_route",
            vec!["https://api.orders.example/v1/customers"],
        ),
        (
            "A path that looks like another",
            "",
            vec![
                "--path-as-is",
                "https://api.orders.example/v1/orders/../customers",
            ],
        ),
        (
            "A path that one rule allows and another denies",
            "denied_by_rule",
            vec![&zero],
        ),
        (
            "A query parameter out of bounds",
            "query_value",
            vec!["https://api.orders.example/v1/orders?per_page=1000"],
        ),
        (
            "A field that the rule does not name",
            "body_field",
            [&body[..], &[r#"{"price":1}"#, &seven]].concat(),
        ),
    ];
    for (title, code, arguments) in cases {
        stage.story.step(title);
        let before = stage.seen()?;
        let answer = stage.curl(&arguments)?;
        is_refused(stage, &answer, code)?;
        stage
            .story
            .equal("nginx saw nothing", stage.seen()?, before)?;
    }
    other_host(stage)?;
    stage
        .story
        .step("Within the same rules, the right query and the right fields pass");
    let before = stage.seen()?;
    let answer = stage.curl(&["https://api.orders.example/v1/orders?state=open&per_page=50"])?;
    stage.story.equal("curl got 200", answer.status, 200)?;
    arrived_with(stage, before, FIRST)?;
    let before = stage.seen()?;
    let answer =
        stage.curl(&[&body[..], &[r#"{"state":"closed","note":"sent"}"#, &seven]].concat())?;
    stage.story.equal("curl got 200", answer.status, 200)?;
    arrived_with(stage, before, FIRST)
}

/// What no api names cannot be looked up, so that names carry nothing out; and who knows the address is refused there.
fn other_host(stage: &mut Stage) -> Result<()> {
    let (host, url) = (
        Site::PAYROLL.host,
        "https://api.payroll.example/v1/salaries",
    );
    stage.story.step("A host that no grant names");
    let (before, asked) = (stage.seen()?, stage.world.dns.queries_for(host));
    let answer = stage.curl(&[url])?;
    stage
        .story
        .equal("curl could not resolve it", answer.exit, Some(6))?;
    stage.story.equal(
        "the DNS server was not asked",
        stage.world.dns.queries_for(host),
        asked,
    )?;
    let known = format!("{host}:443:{}", Site::PAYROLL.v4);
    let answer = stage.curl(&["--resolve", &known, url])?;
    is_refused(stage, &answer, "unknown_host")?;
    stage
        .story
        .equal("nginx saw nothing", stage.seen()?, before)
}

/// A refusal says what was missing, in a form that programs read, and names the decision.
pub(crate) fn is_refused(stage: &mut Stage, answer: &Answer, code: &str) -> Result<()> {
    let head = answer.head.to_lowercase();
    let problem = head.contains("content-type: application/problem+json");
    let what = "curl got 403, application/problem+json";
    stage
        .story
        .check(what, answer.status == 403 && problem, answer)?;
    let json = answer.json();
    let text = json.to_string();
    let named = json
        .get("decision")
        .or(json.get("decision_id"))
        .or(json.get("instance"));
    stage.story.check(
        "it names the decision",
        named.is_some_and(|id| id.is_string()),
        &text,
    )?;
    if !code.is_empty() {
        let what = format!("it says why: {code}");
        stage.story.check(&what, text.contains(code), &text)?;
    }
    Ok(())
}

/// What is not HTTP over TCP does not pass either.
pub(crate) fn other_protocols(stage: &mut Stage) -> Result<()> {
    let api = Site::ORDERS.v4;
    stage.story.step("Something that is not HTTP");
    let before = stage.quiet()?;
    let seen = stage.seen()?;
    let mut python = stage.start("client.py")?;
    let ask = json!({"raw": api, "port": 443, "say": "SSH-2.0-OpenSSH_9.2\r\n"});
    let answer = tell(stage, &mut python, &ask)?;
    let heard = answer
        .get("heard")
        .and_then(|heard| heard.as_str())
        .unwrap_or_default();
    stage.story.check(
        "no server answered",
        !heard.contains("SSH") && !heard.contains("nginx"),
        &answer,
    )?;
    let after = stage.world.servers.received("s0")?;
    stage.story.equal(
        "not a packet reached the server's side",
        after.packets,
        before.packets,
    )?;
    stage
        .story
        .equal("nginx saw nothing", stage.seen()?, seen)?;

    stage.story.step("A datagram that is not DNS");
    let before = stage.quiet()?;
    let answer = tell(stage, &mut python, &json!({"udp": api, "port": 443}))?;
    stage.story.equal(
        "the system call fails",
        answer.get("errno").cloned(),
        Some(json!("EPERM")),
    )?;
    let after = stage.world.servers.received("s0")?;
    stage.story.equal(
        "not a packet reached the server's side",
        after.packets,
        before.packets,
    )?;
    python.finish(Duration::from_secs(10))?;
    Ok(())
}

/// Tells a running client something, and shows both sides.
pub(crate) fn tell(
    stage: &Stage,
    client: &mut Running,
    what: &serde_json::Value,
) -> Result<serde_json::Value> {
    stage.story.tells("client", &what.to_string());
    let answer = client.ask(&what.to_string())?;
    stage.story.shows(&answer.to_string());
    Ok(answer)
}

/// Clients that speak HTTP/2 are spoken to in HTTP/2.
pub(crate) fn http2(stage: &mut Stage) -> Result<()> {
    stage.story.step("HTTP/2, with clients that speak it");
    let before = stage.seen()?;
    let answer = stage.curl(&["--http2", ORDERS])?;
    let first = answer
        .head
        .lines()
        .next()
        .unwrap_or_default()
        .trim()
        .to_owned();
    stage.story.equal(
        "curl was answered in HTTP/2",
        first,
        "HTTP/2 200".to_owned(),
    )?;
    arrived_with(stage, before, FIRST)?;
    let before = stage.seen()?;
    let script = format!(
        "import httpx; r = httpx.Client(http2=True).get('{ORDERS}'); print(r.http_version, r.status_code)"
    );
    let output = stage.governed("python3", &["-c", &script])?;
    let said = String::from_utf8_lossy(&output.stdout).trim().to_owned();
    stage.story.shows(&said);
    stage.story.check(
        "Python's httpx was answered in HTTP/2",
        said == "HTTP/2 200",
        &output,
    )?;
    arrived_with(stage, before, FIRST)
}

/// A stream without an end passes as it comes.
pub(crate) fn event_stream(stage: &mut Stage) -> Result<()> {
    const SOON: Duration = Duration::from_secs(2);
    stage
        .story
        .step("A stream of server-sent events passes event by event");
    let url = "https://api.orders.example/v1/events";
    stage
        .story
        .types(&format!("tollgate run --user nobody -- curl -sN {url} &"));
    let mut command = stage
        .agent
        .governed(&stage.world, crate::stage::WORKLOAD, "curl");
    command.args(["-sN", url]);
    let mut curl = Running::start(command)?;
    let open = harness::eventually(Duration::from_secs(5), || {
        (stage.world.events.streams() == 1).then_some(())
    });
    stage.story.check(
        "the server has one stream open",
        open.is_some(),
        curl.complaint(),
    )?;
    for event in ["order 9 opened", "order 9 paid", "order 9 sent"] {
        // The next is sent only when this one has arrived: nothing on the way waits for more.
        let began = std::time::Instant::now();
        stage.world.events.emit(event);
        let line = curl.line(SOON)?;
        let took = began.elapsed();
        curl.line(SOON)?;
        stage.story.shows(&format!(
            "{line}   ({:.1} ms after it was sent)",
            took.as_secs_f64() * 1000.0
        ));
        stage.story.equal(
            "it came before the next was sent",
            line,
            format!("data: {event}"),
        )?;
    }
    stage.world.events.end();
    let status = curl.wait(Duration::from_secs(10))?;
    stage.story.check(
        "curl ended well when the server ended the stream",
        status.success(),
        status,
    )
}
