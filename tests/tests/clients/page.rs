//! `docs/clients.md`: written by this run with `TOLLGATE_WRITE_DOCS=1`, compared with it otherwise.
use crate::fleet::{Client, Credential};
use harness::repository;
use std::fmt::Write as _;

/// A client, and what came of its refused call.
pub(crate) struct Shown<'c> {
    pub(crate) client: &'c Client,
    pub(crate) exit: Option<i32>,
    pub(crate) printed: String,
    pub(crate) summary: String,
}

/// Trouble with an upstream, and what two clients printed of it.
pub(crate) struct Trouble {
    pub(crate) what: &'static str,
    pub(crate) url: &'static str,
    pub(crate) curl: String,
    pub(crate) requests: String,
}

/// How much of a refusal a program shows by itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Shows {
    /// Why.
    Why,
    /// Its code alone.
    Code,
}

impl Shown<'_> {
    fn shows(&self) -> Shows {
        // In the run's summary it stands behind the code.
        let code = format!("{}: ", self.client.code);
        let why = self.summary.split_once(&code);
        let why = why.and_then(|(_, why)| why.lines().next());
        if why.is_some_and(|why| self.printed.contains(why)) {
            Shows::Why
        } else {
            Shows::Code
        }
    }
}

const HEAD: &str = "# Clients

<!-- Written by the test `every_client_is_served_and_is_told_what_was_refused` from what the programs printed: change that and
run it with TOLLGATE_WRITE_DOCS=1. It fails where this page is not what they print. -->

Programs that run behind Tollgate as they are: nothing in them knows of it, and none is given an option, a proxy or a
certificate. Each was run as an ordinary user under `tollgate run`, against real servers, by the policy in
[`tests/clients/fleet/policy.yaml`](../tests/clients/fleet/policy.yaml); the versions are those in
[`python.txt`](../tests/clients/fleet/python.txt) and [`package.json`](../tests/clients/fleet/package.json) beside it, and
Debian 12's.

- **allowed**: the call passes, and gives what it gives without Tollgate.
- **credential**: *put in* — the program has none, and every request arrived with the real one. *signed* — the program
  signed with keys that are worth nothing, the agent anew with the real ones, and the server verified that.
- **refused**: what the program itself shows of a refusal. *why* — what was missing, and what to do or the command that tells;
  *no* — at most that it was a 403.

";

/// The page as it is to be.
fn page(shown: &[Shown<'_>], trouble: &[Trouble]) -> String {
    let mut page = HEAD.to_owned();
    page.push_str("| client | speaks | allowed | credential | refused | exit |\n| --- | --- | --- | --- | --- | --- |\n");
    for one in shown {
        let credential = match one.client.credential {
            Credential::Injected => "put in",
            Credential::Signed => "signed",
        };
        let shows = match one.shows() {
            Shows::Why => "why",
            Shows::Code => "no",
        };
        let exit = one.exit.map_or("-".to_owned(), |code| code.to_string());
        let Client { name, protocol, .. } = one.client;
        let _ = writeln!(
            page,
            "| [{name}](#{}) | {protocol} | yes | {credential} | {shows} | {exit} |",
            anchor(name)
        );
    }
    let hidden = shown.iter().filter(|one| one.shows() == Shows::Code);
    let names: Vec<&str> = hidden.clone().map(|one| one.client.name).collect();
    let _ = write!(
        page,
        "\nThe reason is in the status line, in the field `x-tollgate-reason` and in the body. Out of none of them do these print \
         anything: {}. Whatever a program hides, `tollgate run` says at its end what was refused and why, and for a service \
         `tollgate decisions --denied` does:\n\n",
        names.join(", ")
    );
    if let Some(hidden) = hidden.clone().next() {
        let _ = write!(page, "```text\n{}\n```\n", hidden.summary);
    }
    page.push_str("\n## What a refusal looks like\n\n`DECISION` stands for the id of the decision, `TIME` for a time.\n");
    for one in shown {
        let _ = write!(
            page,
            "\n### {}\n\n```console\n$ {}\n{}\n```\n",
            one.client.name, one.client.refused, one.printed
        );
    }
    page.push_str(
        "\n## Trouble that is no refusal\n\nAn upstream that cannot be reached is 502 or 504, and never 403; title and \
         code say what it was.\n",
    );
    for Trouble {
        what,
        url,
        curl,
        requests,
    } in trouble
    {
        let _ = write!(
            page,
            "\n### When {what}\n\n```console\n$ curl -sS {url}\n{curl}\n$ python3 with_requests.py {url}\n{requests}\n```\n"
        );
    }
    page
}

/// As the common renderers name a heading.
fn anchor(name: &str) -> String {
    name.to_lowercase()
        .chars()
        .filter_map(|c| match c {
            ' ' => Some('-'),
            c if c.is_ascii_alphanumeric() || c == '-' => Some(c),
            _ => None,
        })
        .collect()
}

/// Writes the page where that was asked for; says how it differs otherwise.
pub(crate) fn compare(shown: &[Shown<'_>], trouble: &[Trouble]) {
    let path = repository().join("docs/clients.md");
    let now = page(shown, trouble);
    if std::env::var_os("TOLLGATE_WRITE_DOCS").is_some() {
        return std::fs::write(&path, now).unwrap();
    }
    let was = std::fs::read_to_string(&path).unwrap_or_default();
    let first = was
        .lines()
        .zip(now.lines())
        .enumerate()
        .find(|(_, (was, now))| was != now);
    assert!(
        was == now,
        "docs/clients.md is not what the programs print; first where it differs: {first:?}. If that is meant, \
         run this test with TOLLGATE_WRITE_DOCS=1 and look at the difference\n{now}"
    );
}
