//! `tollgate doctor`: can this host run the agent, and what to mend.
use super::output::{self, Colour, Form, Format, Paint};
use super::status::UNSEEN;
use super::{Context, Outcome};
use crate::config::Config;
use crate::daemon::admin::client;
use crate::kernel::{self, Fence, Layer, Left, Open, Options, Standing};
use std::collections::BTreeMap;
use std::net::{Ipv4Addr, Ipv6Addr, TcpListener};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Tell whether this host can run the agent, and what to mend
///
/// Exit code 0: it can; 1: something must be mended first. As root it loads and attaches the eBPF programs for an instant,
/// governing nothing, to see whether they can be.
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    form: Form,
}

/// What a look at one thing found.
#[derive(Debug, serde::Serialize)]
struct Finding {
    check: &'static str,
    state: State,
    found: String,
    /// What to do.
    mend: Option<String>,
    /// Of the fence that stands.
    #[serde(flatten)]
    hooks: Option<Standing>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "snake_case")]
enum State {
    Good,
    /// It runs without.
    Note,
    Bad,
}

pub(super) fn run(context: &Context, args: &Args) -> anyhow::Result<Outcome> {
    let config = context.config()?;
    let mut findings = vec![root(), release(), btf(), cgroup2(&config), bpffs()];
    findings.extend(hooks(&config));
    findings.push(fence(&config));
    findings.extend([ipv6(), port(&config)]);
    findings.extend(agent_user_io(&config));
    match args.form.format {
        Format::Table => print(&findings),
        format => output::print_json(format, &findings)?,
    }
    let bad = findings.iter().any(|f| f.state == State::Bad);
    Ok(if bad { Outcome::No } else { Outcome::Done })
}

fn print(findings: &[Finding]) {
    let paint = Paint::stdout();
    for finding in findings {
        let mark = match finding.state {
            State::Good => paint.paint(Colour::Green, "good"),
            State::Note => paint.paint(Colour::Yellow, "note"),
            State::Bad => paint.paint(Colour::Red, "bad "),
        };
        show!(
            "{mark}  {:<10} {}",
            finding.check,
            output::escape(&finding.found)
        );
        if let Some(mend) = &finding.mend {
            show!("      {:<10} → {}", "", output::escape(mend));
        }
    }
}

fn good(check: &'static str, found: impl Into<String>) -> Finding {
    Finding {
        check,
        state: State::Good,
        found: found.into(),
        mend: None,
        hooks: None,
    }
}

fn bad(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        check,
        state: State::Bad,
        found: found.into(),
        mend: Some(mend.into()),
        hooks: None,
    }
}

fn note(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
    Finding {
        check,
        state: State::Note,
        found: found.into(),
        mend: Some(mend.into()),
        hooks: None,
    }
}

fn root() -> Finding {
    let uid = rustix::process::geteuid();
    match uid.is_root() {
        true => good("root", "yes"),
        false => bad(
            "root",
            format!("no, user {}", uid.as_raw()),
            "run with sudo: loading eBPF needs root",
        ),
    }
}

/// The oldest kernel whose hooks were tried.
const OLDEST: (u32, u32) = (6, 1);

fn release() -> Finding {
    let release = rustix::system::uname()
        .release()
        .to_string_lossy()
        .into_owned();
    let mut numbers = release
        .split(|c: char| !c.is_ascii_digit())
        .filter_map(|n| n.parse::<u32>().ok());
    let version = numbers.next().zip(numbers.next());
    match version {
        Some(version) if version >= OLDEST => good("kernel", release),
        _ => bad(
            "kernel",
            release,
            format!("use Linux {}.{} or newer", OLDEST.0, OLDEST.1),
        ),
    }
}

fn btf() -> Finding {
    let path = "/sys/kernel/btf/vmlinux";
    match std::fs::metadata(path) {
        Ok(_) => good("btf", path),
        Err(e) => bad(
            "btf",
            format!("{path}: {e}"),
            "use a kernel built with CONFIG_DEBUG_INFO_BTF=y",
        ),
    }
}

/// The line of `/proc/self/mountinfo` for a file system: where it is mounted.
fn mounted(kind: &str) -> Option<String> {
    let text = std::fs::read_to_string("/proc/self/mountinfo").ok()?;
    text.lines().find_map(|line| {
        let (before, after) = line.split_once(" - ")?;
        (after.split(' ').next()? == kind).then(|| before.split(' ').nth(4).map(str::to_owned))?
    })
}

fn cgroup2(config: &Config) -> Finding {
    let given = config.cgroup_root.as_ref().map(|p| p.display().to_string());
    match given.or_else(|| mounted("cgroup2")) {
        Some(path) if Path::new(&path).join("cgroup.controllers").exists() => good("cgroup2", path),
        Some(path) => bad(
            "cgroup2",
            format!("{path} is no cgroup2 root"),
            "mend `cgroup_root:` in the configuration",
        ),
        None => bad(
            "cgroup2",
            "not mounted",
            "boot with systemd.unified_cgroup_hierarchy=1, or mount it: `mount -t cgroup2 none /sys/fs/cgroup`",
        ),
    }
}

fn bpffs() -> Finding {
    match mounted("bpf") {
        Some(path) => good("bpffs", path),
        None => note(
            "bpffs",
            "not mounted",
            "the agent mounts it at /sys/fs/bpf when it starts",
        ),
    }
}

/// What the directory of such pins begins with, before the process that made it.
const TRIED: &str = "tollgate-doctor-";

/// Only the kernel can say what it takes: a fence around nobody, which is lifted at once.
fn hooks(config: &Config) -> Vec<Finding> {
    if !rustix::process::geteuid().is_root() {
        let told = note("hooks", "not tried", "run with sudo to have them tried");
        return vec![told];
    }
    sweep(&config.pin_dir);
    let name = format!("{TRIED}{}", std::process::id());
    let options = Options {
        pin_dir: config.pin_dir.with_file_name(name),
        cgroup_root: config.cgroup_root.clone(),
        counts: true,
    };
    let fence = match Fence::open(&options) {
        Ok(fence) => fence,
        Err(e) => {
            let told = bad(
                "hooks",
                e.to_string(),
                "mend what it names, then look again",
            );
            return vec![told];
        }
    };
    let layers = fence.layers();
    let mut findings = vec![match fence.lift() {
        Ok(()) => good("hooks", format!("this kernel takes: {}", in_force(&layers))),
        Err(e) => bad(
            "hooks",
            format!("loaded, and not removed: {e}"),
            "remove the directory it names",
        ),
    }];
    findings.extend(missing(&layers));
    findings
}

/// Removes what a doctor left that was ended between the two: fences around nobody, which every packet passes through.
fn sweep(pin_dir: &Path) {
    let beside = pin_dir.parent().and_then(|parent| parent.read_dir().ok());
    for entry in beside.into_iter().flatten().filter_map(Result::ok) {
        let name = entry.file_name();
        let process = name.to_str().and_then(|name| name.strip_prefix(TRIED));
        let process = process.and_then(|digits| digits.parse::<u32>().ok());
        if process.is_some_and(|pid| !Path::new(&format!("/proc/{pid}")).exists()) {
            // What cannot be removed is found again.
            let _ = std::fs::remove_dir_all(entry.path());
        }
    }
}

/// What stands now: not what this kernel would take.
fn fence(config: &Config) -> Finding {
    let pins = config.pin_dir.display();
    match kernel::left(&config.pin_dir) {
        Left::Stands(hooks) => standing(hooks, &pins.to_string()),
        Left::Nothing => note(
            "fence",
            format!("none ({pins} has no pins): nothing is governed"),
            "start the agent",
        ),
        Left::Unknown(error) => note(
            "fence",
            format!("not known ({pins}: {error})"),
            "run with sudo to have the kernel asked",
        ),
    }
}

fn standing(hooks: Standing, pins: &str) -> Finding {
    let names = |hooks: &[Open]| {
        let names: Vec<&str> = hooks.iter().map(|hook| hook.name).collect();
        names.join(", ")
    };
    let others = names(&hooks.without);
    let mut finding = match hooks.missing.is_empty() {
        true if hooks.unseen => bad("fence", format!("INCOMPLETE ({pins})"), UNSEEN),
        true if others.is_empty() => good(
            "fence",
            format!("stands: every hook that the agent attached is in force ({pins})"),
        ),
        true => good(
            "fence",
            format!(
                "stands: every hook that keeps in what is governed is in force ({pins}); of the others, not: {others}"
            ),
        ),
        false => bad(
            "fence",
            format!(
                "INCOMPLETE ({pins}): {} not in force; in force: {}",
                names(&hooks.missing),
                hooks.in_force.join(", ")
            ),
            "start the agent, which puts back what is missing",
        ),
    };
    let gone = hooks.missing.iter().chain(&hooks.without);
    let open = open(gone.map(|hook| (hook.name, hook.leaves_open)));
    if !open.is_empty() {
        finding.mend = Some(format!(
            "start the agent, which puts back what is missing. Until then this is open: {open}"
        ));
    }
    finding.hooks = Some(hooks);
    finding
}

/// What the text of a layer begins with without which nothing passes.
const CLOSED: &str = "nothing passes";

/// What each of these leaves open, where that is something.
fn open<'a>(layers: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    let open = layers.filter(|(_, leaves_open)| !leaves_open.starts_with(CLOSED));
    let open: Vec<String> = open
        .map(|(name, leaves_open)| format!("{name}: {leaves_open}"))
        .collect();
    open.join(". ")
}

fn in_force(layers: &[Layer]) -> String {
    let names = layers.iter().filter(|l| l.enforcing).map(|l| &*l.name);
    names.collect::<Vec<_>>().join(", ")
}

/// Those that are missing for the same reason are told together. There is no agent to steer to, by intent.
fn missing(layers: &[Layer]) -> Vec<Finding> {
    let mut by_reason = BTreeMap::<&str, Vec<&Layer>>::new();
    for layer in layers {
        if !layer.enforcing && layer.name != "listener" && layer.name != "names" {
            let why = layer.why.as_deref();
            let why = why.unwrap_or("the kernel does not say why");
            by_reason.entry(why).or_default().push(layer);
        }
    }
    let told = by_reason.into_iter().map(|(why, layers)| {
        let names: Vec<&str> = layers.iter().map(|l| &*l.name).collect();
        let open = open(layers.iter().map(|l| (&*l.name, &*l.leaves_open)));
        let mend = match open.is_empty() {
            true => "nothing is open without them".to_owned(),
            false => format!("without them another guard is needed. {open}"),
        };
        note("hooks", format!("not {}: {why}", names.join(", ")), mend)
    });
    told.collect()
}

fn ipv6() -> Finding {
    match TcpListener::bind((Ipv6Addr::LOCALHOST, 0)) {
        Ok(_) => good("ipv6", "::1 answers"),
        Err(e) => note(
            "ipv6",
            format!("::1: {e}"),
            "governed IPv6 connections are refused; bring up lo with IPv6 to steer them",
        ),
    }
}

fn port(config: &Config) -> Finding {
    let port = config.port;
    let running = client::ask_one(
        &client::socket_path(&config.runtime_dir),
        crate::daemon::admin::wire::Request::Status,
    )
    .is_ok();
    match TcpListener::bind((Ipv4Addr::LOCALHOST, port)) {
        Ok(_) => good("port", format!("{port} is free")),
        Err(_) if running => good("port", format!("{port} is the running agent's")),
        Err(e) => bad(
            "port",
            format!("{port}: {e}"),
            format!("`ss -ltnp 'sport = :{port}'` tells who has it; or set `port:`"),
        ),
    }
}

/// Files and directories, and who else may read or change them.
fn agent_user_io(config: &Config) -> Vec<Finding> {
    let key = config.state_dir.join("ca-key.pem");
    let mut findings = vec![
        private("ca key", &key, 0o077, "made on the first start"),
        private("state", &config.state_dir, 0o022, "made on the first start"),
        private(
            "secrets",
            &config.secrets_dir,
            0o077,
            "make it, mode 0700, for `file:` secrets",
        ),
    ];
    findings.extend(
        config
            .policy
            .iter()
            .map(|path| private("policy", path, 0o022, "write a policy there")),
    );
    findings
}

fn private(check: &'static str, path: &Path, forbidden: u32, absent: &str) -> Finding {
    let shown = path.display();
    match std::fs::metadata(path) {
        Ok(meta) if meta.uid() != 0 => bad(
            check,
            format!("{shown} belongs to user {}", meta.uid()),
            format!("chown root {shown}"),
        ),
        Ok(meta) if meta.mode() & forbidden != 0 => {
            let mode = meta.mode() & 0o7777;
            let wanted = mode & !forbidden;
            bad(
                check,
                format!("{shown} has mode {mode:04o}"),
                format!("chmod {wanted:04o} {shown}"),
            )
        }
        Ok(_) => good(check, shown.to_string()),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            note(check, format!("{shown}: not there"), absent)
        }
        Err(e) => note(
            check,
            format!("{shown}: {e}"),
            "run with sudo to have it looked at",
        ),
    }
}
