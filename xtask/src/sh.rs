//! Running other programs: where the tools are, progress, and signals passed on.
use anyhow::{Context as _, Result, bail};
use std::ffi::OsString;
use std::io::{BufRead as _, BufReader, IsTerminal as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitCode, Output, Stdio};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Those under way; told of every signal that ends us.
static CHILDREN: Mutex<Vec<i32>> = Mutex::new(Vec::new());
/// The signal that ends us, 0 for none.
static SIGNAL: AtomicI32 = AtomicI32::new(0);

/// The repository's root.
pub(crate) fn root() -> &'static Path {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here)
}

/// Where `setup` puts what Debian does not package.
pub(crate) fn tools() -> PathBuf {
    root().join("target/tools")
}

/// `program`, run in the repository with the tools of `setup` on its path.
pub(crate) fn command(program: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).env("PATH", path());
    command
}

/// The caller's path with our tools before it and the system's directories after it (nginx and ip
/// are in /usr/sbin, which is not on everybody's).
fn path() -> OsString {
    let mut path = OsString::new();
    path.push(tools().join("bin"));
    if let Some(inherited) = std::env::var_os("PATH") {
        path.push(":");
        path.push(inherited);
    }
    path.push(":/usr/local/sbin:/usr/sbin:/sbin");
    path
}

/// The first of the path's directories that holds `program`.
pub(crate) fn find(program: &str) -> Option<PathBuf> {
    std::env::split_paths(&path())
        .map(|directory| directory.join(program))
        .find(|p| p.is_file())
}

/// Members that most work leaves out: the programs for BPF, and what only fuzzing and the policy's bench build.
const APART: &[&str] = &[
    "tollgate-ebpf",
    "tollgate-policy-bench",
    "tollgate-policy-fuzz",
];

/// Chooses all members but those [`APART`].
pub(crate) fn most_members(cargo: &mut Command) {
    cargo.arg("--workspace");
    for member in APART {
        cargo.args(["--exclude", member]);
    }
}

/// Runs to the end with the terminal as output; failure is an error that names the command.
pub(crate) fn run(mut command: Command) -> Result<()> {
    stop_if_interrupted()?;
    let child = command
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    let status = wait(child)?;
    stop_if_interrupted()?;
    if !status.success() {
        bail!("`{}` failed ({status})", shown(&command));
    }
    Ok(())
}

/// Runs to the end and keeps what it prints.
pub(crate) fn output(mut command: Command) -> Result<Output> {
    stop_if_interrupted()?;
    let child = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    let watched = Watched::new(&child);
    let output = child.wait_with_output()?;
    drop(watched);
    stop_if_interrupted()?;
    Ok(output)
}

/// Runs to the end and gives each line of its output to `each`; its errors go to the terminal.
pub(crate) fn lines(command: Command, mut each: impl FnMut(&str)) -> Result<bool> {
    read(command, Stdio::null(), |line| {
        each(line);
        None
    })
}

/// The same, where what `each` returns is the next line of its input.
pub(crate) fn talk(command: Command, each: impl FnMut(&str) -> Option<String>) -> Result<bool> {
    read(command, Stdio::piped(), each)
}

fn read(
    mut command: Command,
    input: Stdio,
    mut each: impl FnMut(&str) -> Option<String>,
) -> Result<bool> {
    stop_if_interrupted()?;
    let mut child = command
        .stdin(input)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("cannot start {}", shown(&command)))?;
    let watched = Watched::new(&child);
    let mut input = child.stdin.take();
    if let Some(stdout) = child.stdout.take() {
        for line in BufReader::new(stdout).split(b'\n') {
            let answer = each(&String::from_utf8_lossy(&line?));
            if let (Some(answer), Some(input)) = (answer, &mut input) {
                // Whoever does not take it has ended, and how is told below.
                let _ = writeln!(input, "{answer}");
            }
        }
    }
    drop(input);
    let status = child.wait()?;
    drop(watched);
    stop_if_interrupted()?;
    Ok(status.success())
}

fn wait(mut child: Child) -> Result<std::process::ExitStatus> {
    let _watched = Watched::new(&child);
    Ok(child.wait()?)
}

/// While it lives, signals reach this child.
struct Watched(i32);

impl Watched {
    fn new(child: &Child) -> Self {
        let pid = child.id().cast_signed();
        children().push(pid);
        Self(pid)
    }
}

impl Drop for Watched {
    fn drop(&mut self) {
        children().retain(|pid| *pid != self.0);
    }
}

/// Children under way: more than one where work is shared.
fn children() -> std::sync::MutexGuard<'static, Vec<i32>> {
    CHILDREN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The command as a person would type it.
pub(crate) fn shown(command: &Command) -> String {
    let mut text = command.get_program().to_string_lossy().into_owned();
    for argument in command.get_args() {
        text.push(' ');
        text.push_str(&argument.to_string_lossy());
    }
    text
}

/// Passes SIGINT, SIGTERM and SIGHUP to the children under way instead of dying before them, so that they can clean up.
pub(crate) fn forward_signals() {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let Ok(mut signals) = signal_hook::iterator::Signals::new([SIGINT, SIGTERM, SIGHUP]) else {
        return;
    };
    std::thread::spawn(move || {
        for signal in signals.forever() {
            SIGNAL.store(signal, Ordering::SeqCst);
            let Some(named) = rustix::process::Signal::from_named_raw(signal) else {
                std::process::exit(128 + signal)
            };
            let children = children().clone();
            if children.is_empty() {
                std::process::exit(128 + signal);
            }
            for child in children
                .into_iter()
                .filter_map(rustix::process::Pid::from_raw)
            {
                let _ = rustix::process::kill_process(child, named);
            }
        }
    });
}

fn stop_if_interrupted() -> Result<()> {
    if SIGNAL.load(Ordering::SeqCst) != 0 {
        bail!("interrupted");
    }
    Ok(())
}

/// The status of a failed run: 128 and the signal if one ended it, else 1.
pub(crate) fn exit_code() -> ExitCode {
    match u8::try_from(SIGNAL.load(Ordering::SeqCst)) {
        Ok(signal @ 1..128) => ExitCode::from(128 + signal),
        _ => ExitCode::FAILURE,
    }
}

/// Whether this process is root.
pub(crate) fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Whether standard output takes colour.
pub(crate) fn colour() -> bool {
    std::io::stdout().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
}

/// `text` in bold where the terminal can.
pub(crate) fn bold(text: &str) -> String {
    paint("1", text)
}

/// `text` in this SGR colour where the terminal can.
pub(crate) fn paint(sgr: &str, text: &str) -> String {
    if colour() {
        format!("\x1b[{sgr}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

/// A running count of steps: `[2/5] title`.
pub(crate) struct Progress {
    of: usize,
    at: usize,
    began: Instant,
}

impl Progress {
    /// `of` steps lie ahead.
    pub(crate) fn new(of: usize) -> Self {
        Self {
            of,
            at: 0,
            began: Instant::now(),
        }
    }
    /// The next step begins.
    pub(crate) fn step(&mut self, title: &str) {
        self.at += 1;
        let line = format!("[{}/{}] {title}", self.at, self.of);
        println!("{} ({})", bold(&line), seconds(self.began.elapsed()));
    }
}

/// A duration as `3.2 s` or `2 min 5 s`.
pub(crate) fn seconds(duration: Duration) -> String {
    let whole = duration.as_secs();
    if whole >= 100 {
        format!("{} min {} s", whole / 60, whole % 60)
    } else {
        format!("{:.1} s", duration.as_secs_f64())
    }
}

/// Fails without another word: what there was to say has been said.
pub(crate) fn exit_quietly() -> ! {
    std::process::exit(1)
}
