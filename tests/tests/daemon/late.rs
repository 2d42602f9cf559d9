//! Filesystems that answer when they like.
use crate::support::START;
use harness::eventually;
use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
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

    /// One where who closes the program waits for ever: `flush`, or `root` if root does; `slow`: a little less long than the agent does;
    /// `read`: where who reads it does.
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

    /// Who sends from memory that this page of the program is in, over a connection to `to`: it is in that call from then on.
    pub(crate) fn sends(&self, user: u32, page: usize, to: SocketAddr) -> Child {
        const SENDS: &str = "
import mmap, os, socket, sys
user, page, ip, port = int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5])
s = socket.create_connection((ip, port))
s.send(b'x')
os.setgroups([])
os.setresuid(user, user, user)
program = os.open(sys.argv[1], os.O_RDONLY)
memory = mmap.mmap(program, 4096, mmap.MAP_PRIVATE, mmap.PROT_READ, offset=page * 4096)
memory.madvise(mmap.MADV_RANDOM)  # No other page is read with it.
s.send(memoryview(memory))";
        let mut command = Command::new("python3");
        command.args(["-c", SENDS]).arg(self.mount.join("program"));
        let (page, ip, port) = (page.to_string(), to.ip().to_string(), to.port().to_string());
        command.args([user.to_string(), page, ip, port]);
        let child = command.spawn().unwrap();
        assert_eq!(self.said.recv_timeout(START).as_deref(), Ok("reads"));
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
