//! Filesystems that answer when they like.
use crate::support::START;
use harness::eventually;
use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};

/// A filesystem that lets the agent wait for ever.
pub(crate) struct Late {
    server: Child,
    said: Receiver<String>,
    pub(crate) mount: PathBuf,
}

impl Late {
    pub(crate) fn serve(mount: PathBuf, program: &Path) -> Self {
        Self::serve_as(None, mount, program)
    }

    /// One that answers after so many failures.
    pub(crate) fn serve_after(failures: u32, mount: PathBuf, program: &Path) -> Self {
        Self::serve_as(Some(&failures.to_string()), mount, program)
    }

    /// One where who closes the program waits for ever: `flush`, or `root` if root does; `slow`: a little less long than the agent does.
    pub(crate) fn never_closed(by: &str, mount: PathBuf) -> Self {
        Self::serve_as(Some(by), mount, Path::new("/bin/true"))
    }

    fn serve_as(how: Option<&str>, mount: PathBuf, program: &Path) -> Self {
        fs::create_dir(&mount).unwrap();
        let mut command = Command::new("python3");
        command.args(["-c", include_str!("late.py")]);
        command.arg(&mount).arg(program);
        command.args(how);
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut server = command.spawn().unwrap();
        let (tell, said) = channel();
        let lines = BufReader::new(server.stdout.take().unwrap()).lines();
        std::thread::spawn(move || {
            lines
                .map_while(Result::ok)
                .try_for_each(|line| tell.send(line))
        });
        assert_eq!(said.recv_timeout(START).as_deref(), Ok("serves"));
        Self {
            server,
            said,
            mount,
        }
    }

    /// Who becomes another program with the program open: the kernel tells nobody anything of it, from then on.
    pub(crate) fn stuck(&self, user: u32, before: &str) -> Child {
        let script = format!(
            "import os, socket, sys\n{before}\nos.setgroups([])\nos.setresuid({user}, {user}, {user})\nos.open(sys.argv[1], os.O_CLOEXEC)\nos.execv('/bin/sleep', ['sleep', '100'])"
        );
        let mut command = Command::new("python3");
        command.args(["-c", &script]);
        let child = command.arg(self.mount.join("program")).spawn().unwrap();
        assert_eq!(self.said.recv_timeout(START).as_deref(), Ok("closes"));
        child
    }

    /// Who becomes one program after the other, with the program open.
    pub(crate) fn in_execve(&self, user: u32) -> Child {
        // What Perl opens is closed by `exec`.
        const AGAIN: &str = "open(F, '<', $ARGV[0]); exec 'perl', '-e', $ARGV[1], @ARGV";
        let mut command = Command::new("perl");
        command.args(["-e", AGAIN]).arg(self.mount.join("program"));
        command.arg(AGAIN).uid(user).spawn().unwrap()
    }

    /// Has somebody opened the program who waits for that now?
    pub(crate) fn is_opened(&self) -> bool {
        self.said.try_recv().as_deref() == Ok("waits")
    }
}

impl Drop for Late {
    fn drop(&mut self) {
        drop(self.server.stdin.take());
        // However it is held up: what it serves ends with it.
        if eventually(START, || self.server.try_wait().ok().flatten()).is_none() {
            let _ = self.server.kill();
            let _ = self.server.wait();
        }
        let _ = fs::remove_dir(&self.mount);
    }
}
