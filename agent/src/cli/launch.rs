//! `tollgate launch`, the child of `run`: an ordered list of steps, each of which must succeed before the command runs.
//!
//! 1. Enter the cgroup: from here on everything is governed.
//! 2. Take the ways out of it, and the agent's own files, out of sight (mount namespace).
//! 3. Become the user, leave the caller's keys behind, and give up every capability for good.
//! 4. Where nothing else keeps it from the host's Unix sockets, take other processes out of reach (Landlock).
//! 5. Take what the kernel's fence does not see out of reach (seccomp).
//! 6. Leave no descriptor open but 0, 1 and 2.
//! 7. Become the command.
mod domain;
mod view;

use super::Outcome;
use anyhow::{Context, bail};
use rustix::process::{Gid, Uid};
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter,
    SeccompRule, sock_filter,
};
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::Command;

/// `AUDIT_ARCH_X86_64`
const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// As `env` and shells have it.
const SETUP_FAILED: u8 = 125;
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;

/// The child of `run`: enters the cgroup, gives up privileges, becomes the command
#[derive(Debug, clap::Args)]
pub(super) struct Args {
    #[arg(long)]
    cgroup: PathBuf,
    #[arg(long)]
    uid: u32,
    #[arg(long)]
    gid: u32,
    #[arg(long, value_delimiter = ',')]
    groups: Vec<u32>,
    /// Must be readable to the user, or every TLS client would fail in its own way
    #[arg(long)]
    trust: Vec<PathBuf>,
    /// Laid over the system's own
    #[arg(long)]
    bundle: PathBuf,
    /// Laid over the settings of browsers, so that they trust the CA too
    #[arg(long)]
    browsers: PathBuf,
    /// Directories that the command finds empty
    #[arg(long)]
    hide: Vec<PathBuf>,
    /// Sockets that it finds, of all that have a path; `**` at the end is any rest
    #[arg(long)]
    unix: Vec<String>,
    /// The kernel refuses it all others, covered or not
    #[arg(long)]
    unix_held: bool,
    /// The agent does not say whether the kernel does
    #[arg(long)]
    agent_is_older: bool,
    #[arg(last = true, required = true)]
    command: Vec<OsString>,
}

pub(super) fn run(args: &Args) -> Outcome {
    match prepare(args) {
        Ok(()) => become_command(&args.command),
        Err(e) => {
            tell!("tollgate: the command was not started: {e:#}");
            Outcome::Command(SETUP_FAILED)
        }
    }
}

fn prepare(args: &Args) -> anyhow::Result<()> {
    let procs = args.cgroup.join("cgroup.procs");
    std::fs::write(&procs, "0")
        .with_context(|| format!("cannot enter the cgroup: {}", procs.display()))?;
    let sockets = view::For {
        open: &args.unix,
        user: args.uid,
        held: args.unix_held,
    };
    view::enter(
        &args.cgroup,
        &args.hide,
        sockets,
        (&args.bundle, &args.browsers),
    )
    .context("cannot close off the host's mounts")?;
    become_user(args).context("cannot become the user")?;
    crate::kernel::keys::leave_session().context("cannot leave the caller's session keyring")?;
    give_up_capabilities().context("cannot give up capabilities")?;
    trust_is_readable(args)?;
    rustix::thread::set_no_new_privs(true).context("cannot give up gaining privileges")?;
    if args.agent_is_older {
        tell!(
            "tollgate: the running agent is older than this program, and does not say whether the kernel holds the command to the Unix \
             sockets that policy names: restart it; until then runs are as where it does not"
        );
    }
    if !args.unix_held {
        domain::enter().context("cannot enter a Landlock domain")?;
    }
    for filter in filters()? {
        seccompiler::apply_filter(&filter).context("cannot install the seccomp filter")?;
    }
    crate::kernel::descriptors::close_on_exec(3).context("cannot close inherited descriptors")
}

/// This process has one thread, so that what is set for the thread is set for the process. The bounding set goes first:
/// that takes a privilege.
fn become_user(args: &Args) -> anyhow::Result<()> {
    if [args.uid, args.gid].contains(&u32::MAX) || args.groups.contains(&u32::MAX) {
        bail!("{} is no user or group id", u32::MAX);
    }
    caps::clear(None, caps::CapSet::Bounding)?;
    let groups: Vec<Gid> = args.groups.iter().map(|g| Gid::from_raw(*g)).collect();
    let (uid, gid) = (Uid::from_raw(args.uid), Gid::from_raw(args.gid));
    rustix::thread::set_thread_groups(&groups)?;
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

fn trust_is_readable(args: &Args) -> anyhow::Result<()> {
    for path in &args.trust {
        std::fs::File::open(path).with_context(|| {
            let (uid, path) = (args.uid, path.display());
            format!("user {uid} cannot read {path}: make its directories passable (chmod o+x), or run as another --user")
        })?;
    }
    Ok(())
}

fn give_up_capabilities() -> anyhow::Result<()> {
    use caps::CapSet;
    caps::clear(None, CapSet::Ambient)?;
    for set in [CapSet::Effective, CapSet::Permitted, CapSet::Inheritable] {
        caps::clear(None, set)?;
    }
    // A kernel newer than this program may have capabilities that it cannot name.
    let status = std::fs::read_to_string("/proc/self/status")?;
    for line in status.lines().filter(|l| l.starts_with("Cap")) {
        let left = line.split_whitespace().last().unwrap_or_default();
        if left.chars().any(|c| c != '0') {
            bail!("{line}: some are left");
        }
    }
    Ok(())
}

/// What the command cannot do, besides what the kernel's fence refuses:
/// - sockets of other families than Unix, IPv4, IPv6 and netlink do not exist (no vsock, packet, XDP, …);
/// - netlink speaks of addresses and routes alone;
/// - io_uring does not exist: its operations pass by a seccomp filter unseen;
/// - taking descriptors out of other processes, loading eBPF, and asking the kernel for keys, which a program of root's outside
///   would get (from DNS, for one), are refused;
/// - what the kernel says that it runs is not the command's to change;
/// - what is typed into its terminal is not the command's to write: the shell that started it would run that.
///
/// Debuggers work. Programs for another architecture than the host's own are killed: their system calls have other
/// numbers. So have those of x32, which to the kernel is the same architecture: it does not exist.
fn filters() -> anyhow::Result<Vec<BpfProgram>> {
    let errno = |code: i32| SeccompAction::Errno(code.unsigned_abs());
    let families = [
        libc::AF_UNIX,
        libc::AF_INET,
        libc::AF_INET6,
        libc::AF_NETLINK,
    ];
    let other_family = families
        .iter()
        .map(|family| {
            let family = u64::from(family.unsigned_abs());
            SeccompCondition::new(0, SeccompCmpArgLen::Dword, SeccompCmpOp::Ne, family)
        })
        .collect::<Result<Vec<_>, _>>()?;
    let is = |argument, value| {
        SeccompCondition::new(argument, SeccompCmpArgLen::Dword, SeccompCmpOp::Eq, value)
    };
    let netlink = u64::from(libc::AF_NETLINK.unsigned_abs());
    let memory = u64::from(libc::PR_SET_MM.unsigned_abs());
    let other_netlink = SeccompCondition::new(
        2,
        SeccompCmpArgLen::Dword,
        SeccompCmpOp::Ne,
        u64::from(libc::NETLINK_ROUTE.unsigned_abs()),
    )?;
    let typing = [libc::TIOCSTI, libc::TIOCLINUX]
        .map(|request| SeccompRule::new(vec![is(1, request)?]))
        .into_iter()
        .collect::<Result<Vec<_>, _>>()?;
    let other_program = [SeccompRule::new(vec![is(0, memory)?])?];
    Ok(vec![
        no_x32(),
        filter(
            &[libc::SYS_socket],
            &[SeccompRule::new(vec![is(0, netlink)?, other_netlink])?],
            errno(libc::EPROTONOSUPPORT),
        )?,
        filter(&[libc::SYS_ioctl], &typing, errno(libc::EPERM))?,
        filter(&[libc::SYS_prctl], &other_program, errno(libc::EPERM))?,
        filter(
            &[libc::SYS_socket, libc::SYS_socketpair],
            &[SeccompRule::new(other_family)?],
            errno(libc::EAFNOSUPPORT),
        )?,
        filter(&[libc::SYS_io_uring_setup], &[], errno(libc::ENOSYS))?,
        filter(
            &[libc::SYS_pidfd_getfd, libc::SYS_bpf, libc::SYS_request_key],
            &[],
            errno(libc::EPERM),
        )?,
    ])
}

fn filter(
    calls: &[libc::c_long],
    rules: &[SeccompRule],
    action: SeccompAction,
) -> anyhow::Result<BpfProgram> {
    let rules = calls.iter().map(|call| (*call, rules.to_vec())).collect();
    let arch = std::env::consts::ARCH.try_into()?;
    Ok(SeccompFilter::new(rules, SeccompAction::Allow, action, arch)?.try_into()?)
}

/// Refuses every call of x86-64's x32 ABI: one bit in the number tells them, and some have numbers there that they have nowhere else. A
/// debugger's -1, which is no call, has that bit too.
fn no_x32() -> BpfProgram {
    const X32: u32 = 0x4000_0000;
    const NONE: u32 = 0x8000_0000;
    let [architecture, number] = [
        std::mem::offset_of!(libc::seccomp_data, arch),
        std::mem::offset_of!(libc::seccomp_data, nr),
    ];
    let step = |code: u32, then, otherwise, k| sock_filter {
        code: u16::try_from(code).unwrap_or_default(),
        jt: then,
        jf: otherwise,
        k,
    };
    let load = |at: usize| {
        let at = u32::try_from(at).unwrap_or_default();
        step(libc::BPF_LD | libc::BPF_W | libc::BPF_ABS, 0, 0, at)
    };
    let jump = |how, value, then, otherwise| {
        step(libc::BPF_JMP | how | libc::BPF_K, then, otherwise, value)
    };
    let refuse = libc::SECCOMP_RET_ERRNO | libc::EPERM.unsigned_abs();
    vec![
        load(architecture),
        jump(libc::BPF_JEQ, AUDIT_ARCH_X86_64, 0, 4),
        load(number),
        jump(libc::BPF_JSET, NONE, 2, 0),
        jump(libc::BPF_JSET, X32, 0, 1),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, refuse),
        step(libc::BPF_RET | libc::BPF_K, 0, 0, libc::SECCOMP_RET_ALLOW),
    ]
}

fn become_command(command: &[OsString]) -> Outcome {
    let Some((program, arguments)) = command.split_first() else {
        return Outcome::Command(SETUP_FAILED);
    };
    let error = Command::new(program).args(arguments).exec();
    let found = error.kind() != std::io::ErrorKind::NotFound && is_somewhere(program);
    let (what, code) = if found {
        (error.to_string(), NOT_EXECUTABLE)
    } else {
        ("not found".to_owned(), NOT_FOUND)
    };
    tell!(
        "tollgate: {}: {what}",
        super::output::escape(&program.to_string_lossy())
    );
    Outcome::Command(code)
}

/// Whether there is a file of this name where a command is looked for. A directory of PATH that the user may not enter
/// turns "not found" into "permission denied" otherwise.
fn is_somewhere(program: &OsStr) -> bool {
    if program.as_encoded_bytes().contains(&b'/') {
        return true;
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).any(|directory| directory.join(program).is_file())
}
