//! What the machine is given: programs, the files that tests look at, and what to do; and what it says of it.
use super::{Program, folder, images};
use crate::sh;
use anyhow::{Context as _, Result, bail};
use serde_json::Value;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

/// What to do in the machine.
pub(super) enum Plan<'a> {
    /// Test programs one after the other.
    Tests {
        programs: &'a [Program],
        filter: Option<&'a str>,
        share: Share,
    },
    /// One line for its shell.
    Command(&'a str),
    /// Whatever a person types.
    Shell,
}

/// Which of the tests: every `of`th, from the `number`th.
#[derive(Clone, Copy)]
pub(super) struct Share {
    /// Below `of`.
    pub(super) number: u32,
    /// How many machines there are.
    pub(super) of: u32,
}

impl Share {
    /// This machine's share of the program that comes `turn`th: who has had the most of one has not of the next.
    fn at(self, turn: u32) -> Self {
        Self {
            number: (self.number + self.of - turn % self.of) % self.of,
            ..self
        }
    }
}

/// A line that came out of the machine.
pub(super) enum Said<'a> {
    /// A program of tests begins.
    Program(&'a str),
    /// It ended with this status.
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
pub(super) fn compile(programs: &[Program]) -> Result<Vec<(String, PathBuf)>> {
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
        cargo.args(["--test", program.name]);
    }
    let mut built = vec![(
        "tollgate".to_owned(),
        sh::root().join("target/debug/tollgate"),
    )];
    if !sh::lines(cargo, |line| built.extend(executable(line)))? {
        bail!("the tests do not build");
    }
    for program in programs {
        if !built.iter().any(|(name, _)| name == program.name) {
            bail!("cargo built no test program {}", program.name);
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
            Self::Tests {
                programs,
                filter,
                share,
            } => {
                text.push_str("code=0\n");
                for (turn, program) in (0..).zip(*programs) {
                    text.push_str(&tests(program, *filter, share.at(turn)));
                }
            }
        }
        let _ = writeln!(text, "echo; echo '{MARK}end' $code");
        // What is still on the line would be lost with the power.
        text.push_str("sleep 0.2\n");
        text
    }
}

/// Lines of the script that run this share of one program's tests.
fn tests(program: &Program, filter: Option<&str>, share: Share) -> String {
    let (name, Share { number, of }) = (program.name, share);
    let mut chosen = String::new();
    for (test, _) in program.skip {
        let _ = write!(chosen, " --skip '{test}'");
    }
    if let Some(filter) = filter {
        let _ = write!(chosen, " '{}'", filter.replace('\'', ""));
    }
    // Without a filter there are some for everybody.
    let none = match filter {
        Some(_) => ":".to_owned(),
        None => format!("echo '{MARK}program {name}'; echo '{MARK}exit' 1; code=1"),
    };
    format!(
        "tests=$({name} --list --format terse{chosen} | sed -n 's/: test$//p' | awk 'NR % {of} == {number}')\n\
         if [ -n \"$tests\" ]; then\n\
         echo '{MARK}program {name}'\n\
         {name} --test-threads=1 --color=never --exact $tests </dev/null 2>&1\n\
         status=$?; [ $status = 0 ] || code=1\n\
         echo; echo '{MARK}exit' $status\n\
         else {none}; fi\n"
    )
}

/// Tells the plan's own lines from the programs'.
pub(super) fn said(line: &str) -> Said<'_> {
    let mut words = line.strip_prefix(MARK).unwrap_or_default().split(' ');
    let status = |word: Option<&str>| word.and_then(|word| word.parse().ok()).unwrap_or(1);
    match words.next() {
        Some("program") => Said::Program(words.next().unwrap_or_default()),
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
        assert!(matches!(
            said("@vm program kernel"),
            Said::Program("kernel")
        ));
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

    #[test]
    fn each_share_is_somebodys_at_every_turn() {
        for turn in 0..7 {
            let shares = (0..3).map(|number| Share { number, of: 3 }.at(turn).number);
            let mut shares: Vec<u32> = shares.collect();
            shares.sort_unstable();
            assert_eq!(shares, [0, 1, 2]);
        }
        assert_eq!(Share { number: 1, of: 3 }.at(1).number, 0);
    }

    #[test]
    fn tests_that_are_left_out_are_named() {
        let program = Program {
            name: "kernel",
            skip: &[("stress::", "slow")],
        };
        let text = tests(&program, Some("steer"), Share { number: 1, of: 2 });
        assert!(
            text.contains("kernel --list --format terse --skip 'stress::' 'steer' |")
                && text.contains("NR % 2 == 1"),
            "{text}"
        );
    }
}
