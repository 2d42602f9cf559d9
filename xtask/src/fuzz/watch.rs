//! Runs fuzzers, tells how they get on, and says what they found.
use super::place;
use crate::sh;
use anyhow::{Context as _, Result};
use std::fs::{File, create_dir_all, read_dir, read_to_string};
use std::path::{Path, PathBuf};
use std::process::Child;
use std::time::{Duration, Instant};

/// Seconds of the clock that one input may take: more is a crash. Beside other work a quick input can take that long too;
/// `--replay` tells.
const SLOWEST: u32 = 10;
/// Between two looks at what the fuzzers say.
const TELLING: Duration = Duration::from_secs(60);

/// A fuzzer under way.
struct Fuzzer {
    target: &'static str,
    child: Child,
    log: PathBuf,
    began: Instant,
}

/// How a fuzzer ended.
struct Ended {
    target: &'static str,
    took: Duration,
    log: String,
    good: bool,
}

/// Fuzzes each target for `time`, `jobs` of them together; fails if one crashed.
pub(super) fn run(
    programs: &Path,
    targets: &[(&'static str, u32)],
    time: Duration,
    jobs: usize,
) -> Result<()> {
    let mut ahead = targets.iter().rev().copied().collect::<Vec<_>>();
    let (mut under_way, mut ended) = (Vec::<Fuzzer>::new(), Vec::new());
    let mut told = Instant::now();
    while !(ahead.is_empty() && under_way.is_empty()) {
        while under_way.len() < jobs
            && let Some((target, longest)) = ahead.pop()
        {
            under_way.push(Fuzzer::start(programs, target, longest, time)?);
        }
        std::thread::sleep(Duration::from_millis(100));
        let mut running = Vec::new();
        for mut fuzzer in under_way {
            match fuzzer.child.try_wait()? {
                Some(status) => ended.push(fuzzer.end(status.success())?),
                None => running.push(fuzzer),
            }
        }
        under_way = running;
        if told.elapsed() >= TELLING {
            told = Instant::now();
            under_way.iter().for_each(Fuzzer::tell);
        }
    }
    report(&ended)
}

impl Fuzzer {
    fn start(programs: &Path, target: &'static str, longest: u32, time: Duration) -> Result<Self> {
        let (corpus, crashes) = (place("corpus", target), place("crashes", target));
        create_dir_all(&corpus)?;
        create_dir_all(&crashes)?;
        let log = sh::root().join("target/fuzz").join(format!("{target}.log"));
        let file = File::create(&log).with_context(|| format!("cannot write {}", log.display()))?;
        // With this process it goes too, however that ends.
        let mut command = sh::command("setpriv");
        command
            .args(["--pdeathsig", "TERM", "--"])
            .arg(programs.join(target))
            .args([&corpus, &place("seeds", target)])
            .arg(sh::root().join("agent/policy/fuzz/seeds").join(target))
            .arg(format!("-artifact_prefix={}/", crashes.display()))
            .arg(format!("-max_total_time={}", time.as_secs()))
            .arg(format!("-max_len={longest}"))
            .arg(format!("-timeout={SLOWEST}"))
            .args([
                "-rss_limit_mb=2048",
                "-print_final_stats=1",
                "-use_value_profile=1",
            ])
            .stdout(file.try_clone()?)
            .stderr(file);
        let child = command
            .spawn()
            .with_context(|| format!("cannot start {}", sh::shown(&command)))?;
        let began = Instant::now();
        Ok(Self {
            target,
            child,
            log,
            began,
        })
    }

    /// The last line of progress.
    fn tell(&self) {
        let log = read_to_string(&self.log).unwrap_or_default();
        let last = log.lines().rev().find(|line| line.starts_with('#'));
        println!("      {:<10} {}", self.target, last.unwrap_or("starting"));
    }

    fn end(self, good: bool) -> Result<Ended> {
        let bytes = std::fs::read(&self.log)?;
        Ok(Ended {
            target: self.target,
            took: self.began.elapsed(),
            log: String::from_utf8_lossy(&bytes).into_owned(),
            good,
        })
    }
}

fn report(ended: &[Ended]) -> Result<()> {
    println!(
        "{:<10} {:>14} {:>9} {:>9} {:>9} {:>8}  result",
        "target", "executions", "per s", "time", "edges", "corpus"
    );
    for fuzzer in ended {
        let stat = |name: &str| stat(&fuzzer.log, name).unwrap_or_else(|| "?".to_owned());
        let result = match fuzzer.good {
            true => sh::paint("32", "no crash"),
            false => sh::paint("31", "CRASH"),
        };
        println!(
            "{:<10} {:>14} {:>9} {:>9} {:>9} {:>8}  {result}",
            fuzzer.target,
            stat("number_of_executed_units"),
            stat("average_exec_per_sec"),
            sh::seconds(fuzzer.took),
            covered(&fuzzer.log, "cov:").unwrap_or_else(|| "?".to_owned()),
            entries(&place("corpus", fuzzer.target)),
        );
    }
    let crashed: Vec<_> = ended.iter().filter(|fuzzer| !fuzzer.good).collect();
    for fuzzer in &crashed {
        println!("{} {}", sh::paint("31", "CRASH"), fuzzer.target);
        for line in telling(&fuzzer.log) {
            println!("      {line}");
        }
        println!(
            "      again: cargo xtask fuzz {} --replay FILE; the log is target/fuzz/{}.log",
            fuzzer.target, fuzzer.target
        );
    }
    if !crashed.is_empty() {
        sh::exit_quietly();
    }
    Ok(())
}

/// What broke, and where the input was kept.
fn telling(log: &str) -> Vec<&str> {
    let broke = log.lines().skip_while(|line| !line.contains("panicked at"));
    let broke = broke.take_while(|line| !line.starts_with("stack backtrace"));
    let words = |line: &&str| line.contains("SUMMARY: ") || line.contains("Test unit written");
    broke.take(16).chain(log.lines().filter(words)).collect()
}

/// `stat::NAME: VALUE` of libFuzzer's last words.
fn stat(log: &str, name: &str) -> Option<String> {
    let of = |line: &str| Some(line.strip_prefix("stat::")?.strip_prefix(name)?.to_owned());
    let value = log.lines().rev().find_map(of)?;
    Some(value.trim_start_matches(':').trim().to_owned())
}

/// The number behind `what` in the last line of progress.
fn covered(log: &str, what: &str) -> Option<String> {
    let of = |line: &str| {
        let (_, rest) = line.strip_prefix('#')?.split_once(what)?;
        Some(rest.split_whitespace().next()?.to_owned())
    };
    log.lines().rev().find_map(of)
}

fn entries(folder: &Path) -> usize {
    read_dir(folder).map_or(0, Iterator::count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn last_words_are_read() {
        let log = "#2\tINITED cov: 5 ft: 6 corp: 1/1b\n#99\tDONE   cov: 1234 ft: 7 corp: 8/9b lim: 4\n\
                   stat::number_of_executed_units: 99\nstat::average_exec_per_sec:     33\n";
        assert_eq!(stat(log, "number_of_executed_units").as_deref(), Some("99"));
        assert_eq!(stat(log, "average_exec_per_sec").as_deref(), Some("33"));
        assert_eq!(covered(log, "cov:").as_deref(), Some("1234"));
        assert_eq!(stat("", "x"), None);
        let log =
            "#1\nthread panicked at x.rs:1:\nbad\nstack backtrace:\n1: f\nTest unit written to y\n";
        assert_eq!(
            telling(log),
            [
                "thread panicked at x.rs:1:",
                "bad",
                "Test unit written to y"
            ]
        );
    }
}
