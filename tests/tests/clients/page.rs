//! `docs/clients.md`: written by this run with `TOLLGATE_WRITE_DOCS=1`, compared with it otherwise.
use crate::fleet::{Client, Credential};
use harness::repository;
use std::fmt::Write as _;

/// A client, and what came of its refused call.
pub(crate) struct Shown<'c> {
    pub(crate) client: &'c Client,
    pub(crate) exit: Option<i32>,
    pub(crate) printed: String,
    /// What `tollgate run` said below it.
    pub(crate) summary: String,
    pub(crate) shows: Shows,
}

/// Trouble with an upstream, and what two clients printed of it.
pub(crate) struct Trouble {
    pub(crate) what: &'static str,
    pub(crate) url: &'static str,
    pub(crate) curl: String,
    pub(crate) requests: String,
}

/// Who says why.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shows {
    /// The program.
    Why,
    /// `tollgate run`: the program shows no more than the code.
    Code,
}

impl Shown<'_> {
    /// What its user has before them.
    pub(crate) fn seen(&self) -> String {
        match self.shows {
            Shows::Why => self.printed.clone(),
            Shows::Code => format!("{}\n{}", self.printed, self.summary),
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
- **refused**: who tells its user which rule was missing. *why* — the program itself: what was missing, and what to do or the
  command that tells. *why, by `tollgate run`* — the program says at most that it was a 403, and what `tollgate run` says below
  it says why.

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
        let shows = match one.shows {
            Shows::Why => "why",
            Shows::Code => "why, by `tollgate run`",
        };
        let exit = one.exit.map_or("-".to_owned(), |code| code.to_string());
        let Client { name, protocol, .. } = one.client;
        let _ = writeln!(
            page,
            "| [{name}](#{}) | {protocol} | yes | {credential} | {shows} | {exit} |",
            anchor(name)
        );
    }
    let hidden = shown.iter().filter(|one| one.shows == Shows::Code);
    let names: Vec<&str> = hidden.map(|one| one.client.name).collect();
    let _ = write!(
        page,
        "\nThe reason is in the status line, in the field `x-tollgate-reason` and in the body. Out of none of them do these print \
         anything: {}. `tollgate run` says it at its end of any program, also where that fails or is killed. A service's own log has it \
         in a line of Tollgate's beside the service's (`journalctl -u UNIT`, `systemctl status UNIT`), and \
         `tollgate decisions --denied` has all of them.\n",
        names.join(", ")
    );
    page.push_str(
        "\n## What a refusal looks like\n\nThe terminal of who ran it. Where the program itself says why, what `tollgate run` says \
         below it is left out. `DECISION` stands for the id of the decision, `TIME` for a time.\n",
    );
    for one in shown {
        let _ = write!(
            page,
            "\n### {}\n\n```console\n$ {}\n{}\n```\n",
            one.client.name,
            one.client.refused,
            one.seen()
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
