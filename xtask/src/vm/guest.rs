//! What the machine is given: programs, the files that tests look at, and what to do; and what it says of it.
use super::{folder, images};
use crate::sh;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What to do in the machine.
pub(super) enum Plan<'a> {
    /// Tests that it asks for, until there are no more.
    Tests,
    /// One line for its shell.
    Command(&'a str),
    /// Whatever a person types.
    Shell,
}

/// A line that came out of the machine.
pub(super) enum Said<'a> {
    /// It wants tests: a hand of them, or an empty line.
    Next,
    /// A program with tests of it ended with this status.
    Exit(i32),
    /// Everything was done; the status of the whole.
    End(i32),
    /// What a program printed.
    Line(&'a str),
}

/// Begins lines that are the plan's own.
const MARK: &str = "@vm ";

/// Folders and files of the repository that tests read.
const FILES: &[&str] = &["README.md", "agent/schema", "docs", "systemd", "tests"];

/// Builds the test programs; their names and where they are, the agent's among them.
pub(super) fn compile(programs: &[&str]) -> Result<Vec<(String, PathBuf)>> {
    let mut cargo = sh::command("cargo");
    cargo.args([
        "test",
        "--no-run",
        "--locked",
        "--package",
        "tollgate-tests",
    ]);
    cargo.arg("--message-format=json-render-diagnostics");
    for program in programs {
        cargo.args(["--test", program]);
    }
    let mut built = vec![(
        "tollgate".to_owned(),
        sh::root().join("target/debug/tollgate"),
    )];
    if !sh::lines(cargo, |line| built.extend(executable(line)))? {
        bail!("the tests do not build");
    }
    for program in programs {
        if !built.iter().any(|(name, _)| name == program) {
            bail!("cargo built no test program {program}");
        }
    }
    Ok(built)
}

/// The test program that a line of cargo's output tells of.
fn executable(line: &str) -> Option<(String, PathBuf)> {
    let message: Value = serde_json::from_str(line).ok()?;
    let test = message.get("profile")?.get("test")?.as_bool()?;
    let name = message.get("target")?.get("name")?.as_str()?.to_owned();
    let executable = message.get("executable")?.as_str()?;
    test.then(|| (name, PathBuf::from(executable)))
}

/// The image with all that the machine is given.
pub(super) fn payload(
    programs: &[(String, PathBuf)],
    plan: &Plan<'_>,
    number: u32,
) -> Result<PathBuf> {
    let staged = folder().join("payload.d");
    images::empty(&staged)?;
    std::fs::create_dir(staged.join("bin"))?;
    for (name, program) in programs {
        // Lines in a backtrace cost ten times the size of the code.
        let mut strip = sh::command("strip");
        strip.args(["--strip-debug", "-o"]);
        strip.arg(staged.join("bin").join(name)).arg(program);
        sh::run(strip)?;
    }
    for file in FILES {
        copy(file, &staged.join("repository").join(file))?;
    }
    std::fs::write(staged.join("plan"), plan.text())?;
    let image = folder().join(format!("payload-{number}.ext4"));
    images::ext4(&staged, &image, 1)?;
    std::fs::remove_dir_all(staged)?;
    Ok(image)
}

fn copy(name: &str, to: &Path) -> Result<()> {
    if let Some(parent) = to.parent() {
        std::fs::create_dir_all(parent)?;
    }
    let mut copy = sh::command("cp");
    copy.args(["-R", "--"]).arg(sh::root().join(name)).arg(to);
    sh::run(copy).with_context(|| format!("cannot copy {name}"))
}

impl Plan<'_> {
    /// A script for bash.
    fn text(&self) -> String {
        let mut text = format!(
            "export PATH=/payload/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8\n\
             # Software emulation is some ten times slower; on a host with other work, more.\n\
             export TOLLGATE_TESTS_SLOWER=20\n\
             cd /root\n\
             # A way out for packets that must not leave.\n\
             ip link add out type dummy && ip link set out up && ip addr add 203.0.113.9/24 dev out &&\n\
             ip addr add 2001:db8:9::9/64 dev out nodad && ip route add default dev out && ip -6 route add default dev out\n\
             # Tests know the repository by where they were built.\n\
             mkdir -p '{parent}' && ln -sfn /payload/repository '{root}'\n",
            parent = sh::root().parent().unwrap_or(Path::new("/")).display(),
            root = sh::root().display(),
        );
        match self {
            Self::Shell => {
                text.push_str("TERM=linux bash -i\n");
                return text;
            }
            Self::Command(line) => {
                let quoted = line.replace('\'', r"'\''");
                let _ = writeln!(text, "bash -c '{quoted}' </dev/null\ncode=$?");
            }
            // What it is told is not to be heard as what it says.
            Self::Tests => text.push_str(&format!(
                "code=0\nstty -echo\n\
                 while echo '{MARK}next' && read -r program tests && [ -n \"$program\" ]; do\n\
                 $program --test-threads=1 --color=never --exact $tests </dev/null 2>&1\n\
                 status=$?; [ $status = 0 ] || code=1\n\
                 echo; echo '{MARK}exit' $status\n\
                 done\n"
            )),
        }
        let _ = writeln!(text, "echo; echo '{MARK}end' $code");
        // What is still on the line would be lost with the power.
        text.push_str("sleep 0.2\n");
        text
    }
}

/// Tells the plan's own lines from the programs'.
pub(super) fn said(line: &str) -> Said<'_> {
    let mut words = line.strip_prefix(MARK).unwrap_or_default().split(' ');
    let status = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(1);
    match words.next() {
        Some("next") => Said::Next,
        Some("exit") => Said::Exit(status(words.next())),
        Some("end") => Said::End(status(words.next())),
        _ => Said::Line(line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_plans_own_lines_are_told_apart() {
        assert!(matches!(said("@vm next"), Said::Next));
        assert!(matches!(said("@vm exit 101"), Said::Exit(101)));
        assert!(matches!(said("@vm end 0"), Said::End(0)));
        // What cannot be read is a failure.
        assert!(matches!(said("@vm exit"), Said::Exit(1)));
        assert!(matches!(said("test a ... ok"), Said::Line("test a ... ok")));
    }

    #[test]
    fn a_command_reaches_the_shell_as_it_was_typed() {
        let text = Plan::Command("echo 'a b' \"$HOME\"").text();
        assert!(
            text.contains(r#"bash -c 'echo '\''a b'\'' "$HOME"' </dev/null"#),
            "{text}"
        );
    }
}
