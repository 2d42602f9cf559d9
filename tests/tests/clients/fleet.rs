//! The fleet, client by client, and the test that runs it and writes the page.
use crate::page::{self, Shown, Shows, Trouble};
use crate::plain::plain;
use crate::stage::{CREDENTIAL, Ran, Stage};
use std::time::Instant;

/// A program that calls an API.
pub(crate) struct Client {
    pub(crate) name: &'static str,
    /// What it speaks here.
    pub(crate) protocol: &'static str,
    /// Command lines that are allowed, one after the other.
    pub(crate) allowed: &'static [&'static str],
    /// What their output holds.
    pub(crate) gives: &'static str,
    /// The command line that is refused.
    pub(crate) refused: &'static str,
    /// By this code.
    pub(crate) code: &'static str,
    /// Where the credential comes from.
    pub(crate) credential: Credential,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Credential {
    /// The agent puts it in.
    Injected,
    /// The agent signs, with keys that the client does not have; the server verifies it.
    Signed,
}

use Credential::{Injected, Signed};

const fn client(
    name: &'static str,
    protocol: &'static str,
    allowed: &'static [&'static str],
    gives: &'static str,
    refused: &'static str,
    code: &'static str,
) -> Client {
    Client {
        name,
        protocol,
        allowed,
        gives,
        refused,
        code,
        credential: Injected,
    }
}

#[rustfmt::skip]
pub(crate) const FLEET: &[Client] = &[
    client("curl", "HTTP/2", &["curl -sS https://api.orders.example/v1/orders"], "\"orders\":[",
        "curl -sS https://api.orders.example/v1/customers", "no_route"),
    client("curl -f", "HTTP/1.1", &["curl -fsS --http1.1 https://api.orders.example/v1/orders"], "\"orders\":[",
        "curl -fsS --http1.1 https://api.orders.example/v1/customers", "no_route"),
    client("wget", "HTTP/1.1", &["wget -nv -O - https://api.orders.example/v1/orders"], "\"orders\":[",
        "wget -nv -O - https://api.orders.example/v1/customers", "no_route"),
    client("git", "HTTP/1.1, smart protocol", &["git clone https://git.example/app.git", "git -C app commit --allow-empty -m second",
        "git -C app push", "git clone https://git.example/docs.git"], "second",
        "git -C docs push", "query_value"),
    client("Python requests", "HTTP/1.1", &["python3 with_requests.py https://api.orders.example/v1/orders"], "'orders':",
        "python3 with_requests.py https://api.orders.example/v1/customers", "no_route"),
    client("Python httpx", "HTTP/2", &["python3 with_httpx.py https://api.orders.example/v1/orders"], "HTTP/2 {'orders':",
        "python3 with_httpx.py https://api.orders.example/v1/customers", "no_route"),
    client("Python aiohttp", "HTTP/1.1", &["python3 with_aiohttp.py https://api.orders.example/v1/orders"], "'orders':",
        "python3 with_aiohttp.py https://api.orders.example/v1/customers", "no_route"),
    client("Python openai", "HTTP/1.1, server-sent events", &["python3 with_openai.py gpt-5-mini"], "Hello.\npart: Hel\npart: lo.\n",
        "python3 with_openai.py gpt-5-pro", "llm_model"),
    client("Python anthropic", "HTTP/1.1, server-sent events", &["python3 with_anthropic.py claude-small"], "Hello.\npart: Hel\npart: lo.\n",
        "python3 with_anthropic.py claude-large", "llm_model"),
    Client { credential: Signed, ..client("Python boto3", "HTTP/1.1", &["python3 with_boto3.py get 2026/march.csv"], "march,7",
        "python3 with_boto3.py delete 2026/march.csv", "method") },
    client("Python grpcio", "gRPC: unary and the three kinds of streams", &["python3 with_grpc.py"],
        "b'Hello, Ann'\n[b'Hello, Ann', b'and again']\nb'Hello, Ann and Bob'\n[b'Hello, Ann', b'Hello, Bob']\n",
        "python3 with_grpc.py Forget", "no_route"),
    client("Python websockets", "WebSocket", &["python3 with_websockets.py wss://live.example/echo"], "echo: hello",
        "python3 with_websockets.py wss://live.example/private", "no_route"),
    client("Node fetch", "HTTP/1.1", &["node with_fetch.mjs https://api.orders.example/v1/orders"], "orders: [",
        "node with_fetch.mjs https://api.orders.example/v1/customers", "no_route"),
    client("Node undici", "HTTP/2", &["node with_undici.cjs https://api.orders.example/v1/orders"], "orders: [",
        "node with_undici.cjs https://api.orders.example/v1/customers", "no_route"),
    client("Node openai", "HTTP/1.1, server-sent events", &["node with_openai.cjs gpt-5-mini"], "Hello.\npart: Hel\npart: lo.\n",
        "node with_openai.cjs gpt-5-pro", "llm_model"),
    client("Node @grpc/grpc-js", "gRPC: unary and the three kinds of streams", &["node with_grpc.cjs"],
        "Hello, Ann\n[ 'Hello, Ann', 'and again' ]\nHello, Ann and Bob\n[ 'Hello, Ann', 'Hello, Bob' ]\n",
        "node with_grpc.cjs forget", "no_route"),
    client("Node ws", "WebSocket", &["node with_ws.cjs wss://live.example/echo"], "echo: hello",
        "node with_ws.cjs wss://live.example/private", "no_route"),
    client("Java HttpClient", "HTTP/2", &["java WithHttpClient.java https://api.orders.example/v1/orders"], "HTTP_2 200 {\"orders\":[",
        "java WithHttpClient.java https://api.orders.example/v1/customers", "no_route"),
    client("Chromium", "HTTP/2", &["chromium --headless --dump-dom https://api.orders.example/v1/orders"], "\"orders\":[",
        "chromium --headless --dump-dom https://api.orders.example/v1/customers", "no_route"),
    client("pip", "HTTP/1.1", &["pip install -i https://packages.example/simple/ --target site greeting"], "Successfully installed greeting-1.0",
        "pip install -i https://packages.example/simple/ --target site left-pad", "no_route"),
    client("npm", "HTTP/1.1", &["npm install --prefix app-of-node --registry https://packages.example/npm/ greeting"], "added 1 package",
        "npm install --prefix app-of-node --registry https://packages.example/npm/ left-pad", "no_route"),
];

/// Upstreams in trouble: what of, where, and by which code.
const TROUBLE: &[(&str, &str, &str)] = &[
    (
        "nothing listens there",
        "https://closed.example/",
        "upstream_connect",
    ),
    (
        "the certificate is another's",
        "https://other.example/",
        "upstream_tls",
    ),
    (
        "it hangs up without an answer",
        "https://rude.example/",
        "upstream_reset",
    ),
    (
        "it does not answer",
        "https://silent.example/",
        "upstream_timeout",
    ),
];

#[test]
fn every_client_is_served_and_is_told_what_was_refused() {
    let began = Instant::now();
    let stage = Stage::new();
    without_tollgate(&stage);
    let only = std::env::var("TOLLGATE_CLIENT").ok();
    let mut failures = Vec::new();
    let mut shown = Vec::new();
    let chosen = FLEET
        .iter()
        .filter(|client| only.as_ref().is_none_or(|name| client.name.contains(name)));
    for client in chosen {
        let started = Instant::now();
        match hold(&stage, client) {
            Ok(what) => shown.push(what),
            Err(failure) => failures.push(format!("{}: {failure}", client.name)),
        }
        eprintln!("{:<20} {:?}", client.name, started.elapsed());
    }
    let mut trouble = Vec::new();
    for case in TROUBLE.iter().filter(|_| only.is_none()) {
        match troubled(&stage, case) {
            Ok(what) => trouble.push(what),
            Err(failure) => failures.push(format!("{}: {failure}", case.0)),
        }
    }
    eprintln!("all in {:?}", began.elapsed());
    assert!(failures.is_empty(), "\n{}", failures.join("\n\n"));
    if only.is_none() {
        page::compare(&shown, &trouble);
    }
}

/// The servers refuse who has no credential, and what is counted tells it: else nothing below would mean anything.
fn without_tollgate(stage: &Stage) {
    for url in [
        "https://api.orders.example/v1/orders",
        "https://packages.example/npm/greeting",
    ] {
        let (with, without) = stage.reached();
        let mut curl = stage.world.client("curl");
        curl.args(["-s", "-o", "/dev/null", "-w", "%{http_code}", "--cacert"]);
        let answer = curl.arg(stage.world.ca_file()).arg(url).output().unwrap();
        assert_eq!(String::from_utf8_lossy(&answer.stdout), "401", "{url}");
        let counted = harness::eventually(std::time::Duration::from_secs(2), || {
            (stage.reached() == (with, without + 1)).then_some(())
        });
        assert!(counted.is_some(), "{url}: {:?}", stage.reached());
    }
}

/// Runs one client through what it may do and what it may not.
fn hold<'c>(stage: &Stage, client: &'c Client) -> Result<Shown<'c>, String> {
    let (with, without) = stage.reached();
    let mut printed = String::new();
    for line in client.allowed {
        let ran = stage.run(line);
        printed.push_str(&ran.out);
        printed.push_str(&ran.err);
        if ran.exit != Some(0) {
            return Err(format!("`{line}` was to pass: {ran:?}"));
        }
    }
    if !printed.contains(client.gives) {
        return Err(format!("{:?} was to be in {printed:?}", client.gives));
    }
    if printed.contains(CREDENTIAL) {
        return Err(format!("it got to see the credential: {printed:?}"));
    }
    let (now_with, now_without) = harness::eventually(std::time::Duration::from_secs(2), || {
        let now = stage.reached();
        (client.credential == Signed || now.0 > with).then_some(now)
    })
    .ok_or("no request arrived with the credential")?;
    if now_without > without {
        return Err("a request arrived without the credential".into());
    }

    let ran = stage.run(client.refused);
    let (after_with, after_without) = stage.reached();
    if client.name != "git" && (after_with, after_without) != (now_with, now_without) {
        return Err("a refused request arrived".into());
    }
    told(stage, client, &ran)
}

/// What the user of the refused program sees leads to the rule that was missing: by the program's own words, or, where it
/// has none, by those of `tollgate run` below them.
fn told<'c>(stage: &Stage, client: &'c Client, ran: &Ran) -> Result<Shown<'c>, String> {
    let code = format!(" ({})", client.code);
    let why = ran
        .summary
        .lines()
        .find_map(|line| line.strip_suffix(&code));
    let Some(why) = why.map(str::trim_start).filter(|why| !why.is_empty()) else {
        return Err(format!("the run's summary does not say why: {ran:?}"));
    };
    let printed = format!("{}{}", ran.out, ran.err);
    let shown = Shown {
        client,
        exit: ran.exit,
        shows: match printed.contains(why) {
            true => Shows::Why,
            false => Shows::Code,
        },
        printed: plain(&stage.plain(&printed)),
        summary: plain(&stage.plain(&ran.summary)),
    };
    // Who was refused where, or the place of the rule that came near.
    for seen in [&shown.seen(), &shown.summary] {
        let named = seen.contains("of workload `fleet` on api `") || seen.contains("/policy.yaml:");
        if !named || !seen.contains(why) || !seen.contains("tollgate explain") {
            return Err(format!("what is seen does not lead to the rule: {ran:?}"));
        }
    }
    shown_by_explain(stage, client, ran)?;
    Ok(shown)
}

/// The command that is printed shows the decision once the program has ended.
fn shown_by_explain(stage: &Stage, client: &Client, ran: &Ran) -> Result<(), String> {
    let ids = ran
        .summary
        .lines()
        .filter_map(|line| line.trim().strip_prefix("tollgate explain "));
    let mut found = 0;
    for id in ids {
        let output = stage
            .agent
            .output(&stage.world, "explain", &[id])
            .map_err(|e| e.to_string())?;
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        if !output.status.success() || !said.contains("DENY") {
            return Err(format!(
                "`tollgate explain {id}` does not show it: {output:?}"
            ));
        }
        found += usize::from(said.contains(client.code));
    }
    match found {
        0 => Err(format!("no command shows {}: {ran:?}", client.code)),
        _ => Ok(()),
    }
}

/// curl and requests tell an upstream's trouble from a refusal.
fn troubled(stage: &Stage, case: &(&'static str, &'static str, &str)) -> Result<Trouble, String> {
    let (what, url, code) = *case;
    let told = |line: String| {
        let ran = stage.run(&line);
        let printed = plain(&stage.plain(&format!("{}{}", ran.out, ran.err)));
        let refused = printed.contains("403") || printed.contains("Refused");
        match printed.contains(code) && !refused {
            true => Ok(printed),
            false => Err(format!("{code} was to be told, and no refusal: {ran:?}")),
        }
    };
    Ok(Trouble {
        what,
        url,
        curl: told(format!("curl -sS {url}"))?,
        requests: told(format!("python3 with_requests.py {url}"))?,
    })
}
