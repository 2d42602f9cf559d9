//! `cargo xtask vm`: Debian's own kernel with real systemd, pure cgroup v2 and BPF LSM, in a machine that lives for one run.
//!
//! qemu emulates it in software, which needs nothing of the host and is some ten times slower than the host. Its root
//! file system and kernel are made once and kept below `target/vm`; a run never changes them.

mod apt;
mod deal;
mod guest;
mod images;
mod kernel;
mod machine;
mod root;

use crate::test::tally::{Reading, Tally};
use crate::{build, setup, sh};
use anyhow::{Result, bail};
use deal::Deck;
use guest::{Plan, Said};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

/// What to do in the machine.
#[derive(clap::Args)]
pub(crate) struct Args {
    /// Which of Debian's kernels it boots.
    #[arg(long, value_enum, default_value_t)]
    kernel: kernel::Kernel,
    /// A shell in it, instead of the tests; `tollgate` and the test programs are on its path.
    #[arg(long, conflicts_with_all = ["test", "command"])]
    shell: bool,
    /// Only tests whose name contains this.
    #[arg(long, conflicts_with = "command")]
    test: Option<String>,
    /// All tests, with those of the agent as it runs, and those that take long there.
    #[arg(long, conflicts_with = "command")]
    all: bool,
    /// Minutes after which it is switched off.
    #[arg(long, default_value_t = 30, value_parser = clap::value_parser!(u32).range(1..=600))]
    minutes: u32,
    /// A command for its shell, instead of the tests.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    command: Vec<String>,
}

/// The test programs that run in the machine, dealt from the end: first what takes longest.
const PROGRAMS: &[&str] = &["daemon", "kernel", "installed"];

/// Tests of the agent as it runs, of what it looks for in `/proc`, of numbers, and others that take long where they are emulated, and in
/// which the kernel's version has the least part. `--all` runs them too.
const SAME_EVERYWHERE: &[&str] = &[
    "daemon ",
    "installed what_is_beside_the_service_is_governed",
    "kernel account::",
    "kernel adopt::only_the_agent_",
    "kernel adopt::pins_of_another_",
    "kernel adopt::workload_ids_",
    "kernel before::",
    "kernel birth::a_cgroup_that_there_is_no_room_for_is_refused",
    "kernel detached::",
    "kernel established::connections_that_there_is_no_room_to_keep_are_ended",
    "kernel established::who_has_many_",
    "kernel layers::a_",
    "kernel layers::n",
    "kernel layers::the_",
    "kernel layers::who_",
    "kernel layers::without_",
    "kernel listen::binding_",
    "kernel listen::connections_from_before_",
    "kernel listen::nobody_meets_who_asks_the_agent",
    "kernel listen::nobody_steps_",
    "kernel listen::who_left_",
    "kernel looks::",
    "kernel names::queries_that_are_not_read_are_bounded",
    "kernel namespaces::a_namespace_that_there_is_no_room_for_stays_refused",
    "kernel owner::",
    "kernel quota::",
    "kernel recognise::a_tree_that_forks_all_the_time_is_enrolled_with_all_of_it",
    "kernel refuse::a_refusal_that_there_is_no_room_to_count_is_lost_and_refused",
    "kernel refuse::what_cannot_be_recorded_is_refused",
    "kernel rules::a_list_",
    "kernel rules::what_runs_already_",
    "kernel rules::with_digests_",
    "kernel stress::",
    "kernel waiting::",
    "kernel ways::an_address_that_changes_while_it_is_read_leads_to_the_agent",
    "kernel ways::lost_events_open_nothing",
];

/// Tests that the machine is not for: there is no engine of containers in it, cgroup2 is all there is and covered by what keeps a run in, and
/// times that hold on a host do not where it is emulated.
const NOT_HERE: &[&str] = &[
    "daemon docker::",
    "daemon pods::",
    "daemon confined::a_user_namespace_is_no_way_out",
    "kernel established::who_has_many_",
    "daemon changing::a_reload_under_way_keeps_nobody_from_stopping_the_agent",
    "daemon running::what_was_refused_is_told_however_the_command_ends",
    "daemon storms::",
];

/// Minutes that the tests may take as a part of `cargo xtask test`.
const TESTS_MINUTES: u32 = 12;

/// What they are meant to take there, once the machine's parts are made. Hosts differ: longer fails nothing, and is said.
const TESTS_GOAL: Duration = Duration::from_mins(6);

/// Machines that share the tests, each of which uses one core at a time and for a third of its time waits: the kernel
/// lets go of programs of security hooks one after the other, a tenth of a second each.
const MACHINES: u32 = 3;

/// Sets up, builds, boots; fails if what ran there failed.
pub(crate) fn run(args: &Args) -> Result<()> {
    let mut progress = sh::Progress::new(4);
    progress.step("setup");
    setup::run(setup::Need::Everything)?;
    progress.step("build");
    build::run(&build::Args::default())?;
    progress.step("the machine's parts");
    let machine = assemble(args.kernel)?;
    progress.step("the machine");
    if args.shell {
        return machine.with(&Plan::Shell)?.shell(args.minutes);
    }
    if !args.command.is_empty() {
        return command(&machine, args);
    }
    let mut tally = Tally::default();
    let left_out = match args.all || args.test.is_some() {
        true => NOT_HERE,
        false => SAME_EVERYWHERE,
    };
    let which = (args.test.as_deref(), left_out);
    run_tests(&machine, which, args.minutes, &mut tally)?;
    tally.report()
}

/// The tests that run in the machine, as a part of all tests. Setup and build are done.
pub(crate) fn tests(filter: Option<&str>, tally: &mut Tally) -> Result<()> {
    let machine = assemble(kernel::Kernel::default())?;
    let which = (filter, SAME_EVERYWHERE);
    let took = run_tests(&machine, which, TESTS_MINUTES, tally)?;
    if let Some(warning) = too_long(took) {
        println!("      {}", sh::bold(&warning));
    }
    Ok(())
}

fn too_long(took: Duration) -> Option<String> {
    (took > TESTS_GOAL).then(|| {
        let (took, goal) = (sh::seconds(took), sh::seconds(TESTS_GOAL));
        format!("the tests in the machine took {took}, and are meant to take {goal} at most")
    })
}

/// Everything but what it is to do.
struct Assembled {
    kernel: kernel::Installed,
    root: PathBuf,
    programs: Vec<(String, PathBuf)>,
}

fn assemble(kernel: kernel::Kernel) -> Result<Assembled> {
    if !sh::is_root() {
        bail!("the machine's root file system has root's files in it: run this as root");
    }
    let programs = guest::compile(PROGRAMS)?;
    Ok(Assembled {
        kernel: kernel::ready(kernel)?,
        root: root::ready()?,
        programs,
    })
}

impl Assembled {
    fn with(&self, plan: &Plan<'_>) -> Result<machine::Machine> {
        self.numbered(plan, 0)
    }

    fn numbered(&self, plan: &Plan<'_>, number: u32) -> Result<machine::Machine> {
        let payload = guest::payload(&self.programs, plan, number)?;
        Ok(machine::Machine::new(
            &self.kernel,
            &self.root,
            payload,
            number,
            // Machines that share the host's cores spend some of them where one processor waits for another that is not
            // running. What races between processors is tried on the host's, and in one machine by `cargo xtask vm CMD`.
            match plan {
                Plan::Tests => 1,
                Plan::Command(_) | Plan::Shell => 2,
            },
        ))
    }
}

fn command(assembled: &Assembled, args: &Args) -> Result<()> {
    let line = args.command.join(" ");
    let mut code = None;
    assembled
        .with(&Plan::Command(&line))?
        .run(args.minutes, |line| {
            match guest::said(line) {
                Said::End(status) => code = Some(status),
                _ => println!("{line}"),
            }
            None
        })?;
    match code {
        Some(0) => Ok(()),
        Some(code) => std::process::exit(code),
        None => bail!("the machine ended before the command did: {}", console(0)),
    }
}

/// How long all of it took.
fn run_tests(
    assembled: &Assembled,
    (filter, left_out): (Option<&str>, &[&str]),
    minutes: u32,
    tally: &mut Tally,
) -> Result<Duration> {
    let began = Instant::now();
    println!(
        "      Linux {}, {MACHINES} machines",
        assembled.kernel.release
    );
    let deck = Deck::of(&assembled.programs, PROGRAMS, filter, left_out)?;
    let machines = (0..MACHINES)
        .map(|number| assembled.numbered(&Plan::Tests, number))
        .collect::<Result<Vec<_>>>()?;
    std::thread::scope(|scope| {
        let deck = &deck;
        let running: Vec<_> = (0..)
            .zip(&machines)
            .map(|(number, machine)| scope.spawn(move || deal(machine, number, minutes, deck)))
            .collect();
        for machine in running {
            match machine.join() {
                Ok(came_to) => tally.add(came_to),
                Err(panic) => std::panic::resume_unwind(panic),
            }
        }
    });
    let left = deck.left();
    if left > 0 {
        tally.fail(format!("vm: {left} tests were not run"));
    }
    let took = began.elapsed();
    println!("      all {MACHINES} machines: {}", sh::seconds(took));
    Ok(took)
}

/// What the tests came to that one machine asked for.
fn deal(machine: &machine::Machine, number: u32, minutes: u32, deck: &Deck) -> Tally {
    let mut tally = Tally::default();
    let began = Instant::now();
    let (mut reading, mut ended) = (None, false);
    let ran = machine.run(minutes, |line| {
        match guest::said(line) {
            Said::Next => {
                let hand = deck.hand(MACHINES);
                reading = hand
                    .as_ref()
                    .map(|hand| Reading::of(format!("vm {number} · {}", hand.program)));
                return Some(hand.map_or_else(String::new, |hand| hand.line()));
            }
            Said::Exit(code) => {
                if let Some(reading) = reading.take() {
                    reading.end(code == 0, &mut tally);
                }
            }
            Said::End(_) => ended = true,
            Said::Line(line) => match &mut reading {
                Some(reading) => reading.line(line, &mut tally),
                None => println!("        {line}"),
            },
        }
        None
    });
    if let Some(reading) = reading {
        reading.end(false, &mut tally);
    }
    match ran {
        Err(e) => tally.fail(format!("vm {number}: {e:#}")),
        Ok(()) if !ended => tally.fail(format!(
            "vm {number}: it ended before its tests did: {}",
            console(number)
        )),
        Ok(()) => {}
    }
    println!("      vm {number} · off ({})", sh::seconds(began.elapsed()));
    tally
}

/// Where the kernel's and systemd's own words are.
fn console(number: u32) -> String {
    shown(&machine::console(number))
}

fn shown(console: &Path) -> String {
    let shown = console.strip_prefix(sh::root()).unwrap_or(console);
    format!("its console's words are in {}", shown.display())
}

/// Where everything of the machine is kept.
fn folder() -> PathBuf {
    sh::root().join("target/vm")
}

/// What a command prints; an error says what it complained of.
fn answer(command: Command) -> Result<String> {
    let shown = sh::shown(&command);
    let output = sh::output(command)?;
    if !output.status.success() {
        let said = String::from_utf8_lossy(&output.stderr);
        bail!("`{shown}` failed: {}", said.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_takes_longer_than_it_is_meant_to_is_said() {
        assert_eq!(too_long(TESTS_GOAL), None);
        let told = too_long(TESTS_GOAL + Duration::from_secs(61));
        assert!(told.is_some_and(|told| told.contains("7 min 1 s") && told.contains("6 min 0 s")));
    }
}
