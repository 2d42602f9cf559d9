//! Runs the child in the foreground: passes signals on, waits, tells its end as a shell would.
use anyhow::Context;
use std::os::unix::process::ExitStatusExt;
use std::process::{Command, ExitStatus};
use tokio::signal::unix::{Signal, SignalKind, signal};

/// Runs `command` and returns its status, 128 and the signal's number where a signal ended it.
pub(super) fn run(command: &mut Command) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(async {
        let mut signals = Signals::listen()?;
        let mut child = tokio::process::Command::from(std::mem::replace(command, Command::new("")))
            .spawn()
            .context("cannot start the launcher")?;
        loop {
            tokio::select! {
                ended = child.wait() => return Ok(code(ended?)),
                signal = signals.next() => {
                    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
                    if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
                        // It may have ended just now: then there is nobody to tell.
                        let _ = rustix::process::kill_process(pid, signal);
                    }
                }
            }
        }
    })
}

fn code(status: ExitStatus) -> u8 {
    let code = status
        .code()
        .or_else(|| status.signal().map(|s| 128 + s))
        .unwrap_or(255);
    u8::try_from(code).unwrap_or(255)
}

/// Signals meant for the command. Those that a terminal sends reach it anyway, being in the same process group: they
/// are passed on only where no terminal sent them.
struct Signals {
    term: Signal,
    hup: Signal,
    int: Signal,
    quit: Signal,
    usr1: Signal,
    usr2: Signal,
}

impl Signals {
    fn listen() -> std::io::Result<Self> {
        Ok(Self {
            term: signal(SignalKind::terminate())?,
            hup: signal(SignalKind::hangup())?,
            int: signal(SignalKind::interrupt())?,
            quit: signal(SignalKind::quit())?,
            usr1: signal(SignalKind::user_defined1())?,
            usr2: signal(SignalKind::user_defined2())?,
        })
    }

    async fn next(&mut self) -> rustix::process::Signal {
        use rustix::process::Signal as S;
        loop {
            let (signal, terminals) = tokio::select! {
                _ = self.term.recv() => (S::TERM, false),
                _ = self.hup.recv() => (S::HUP, false),
                _ = self.usr1.recv() => (S::USR1, false),
                _ = self.usr2.recv() => (S::USR2, false),
                _ = self.int.recv() => (S::INT, true),
                _ = self.quit.recv() => (S::QUIT, true),
            };
            if !(terminals && in_foreground()) {
                return signal;
            }
        }
    }
}

/// Whether this process group is the one that the terminal's keys reach.
fn in_foreground() -> bool {
    let Ok(terminal) = std::fs::File::open("/dev/tty") else {
        return false;
    };
    rustix::termios::tcgetpgrp(&terminal).is_ok_and(|group| group == rustix::process::getpgrp())
}
