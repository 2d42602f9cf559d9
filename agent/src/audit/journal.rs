//! Refusals told to systemd's journal, beside the refused service's own lines: a program that logs no more than "403"
//! leaves its operator to look elsewhere otherwise.
//!
//! A datagram to journald's socket (its native protocol) names the unit in `OBJECT_SYSTEMD_UNIT`, by which
//! `journalctl -u` and `systemctl status` find what the system's own daemons say of a unit. With `OBJECT_PID` journald
//! would look that up. It is not sent: the process may have ended by then, or another have its number, and with it comes
//! the process's command line, which may have in it what no record has.
use super::pace::{Due, Pace};
use super::record::Record;
use super::words::inert;
use std::fmt::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

/// Where journald listens.
const SOCKET: &str = "/run/systemd/journal/socket";
/// Bytes of the message, of a part of it, and of each other field at most.
const MESSAGE: usize = 2048;
const PART: usize = 512;
const FIELD: usize = 256;
/// What systemd's units in the tree of cgroups are called, besides slices.
const KINDS: [&str; 5] = [".service", ".scope", ".socket", ".mount", ".swap"];

/// Tells refusals to the journal. Never waits: what the socket does not take is lost to the journal, and in the log.
#[derive(Debug)]
pub struct Journal {
    socket: UnixDatagram,
    path: PathBuf,
    pace: Pace,
}

impl Journal {
    /// None where no journald listens, or no socket can be had.
    pub fn open() -> Option<Self> {
        let path = Path::new(SOCKET);
        if !path.exists() {
            return None;
        }
        Self::to(path, Instant::now())
            .inspect_err(|error| tracing::warn!(%error, "refusals are not told to the journal"))
            .ok()
    }

    fn to(path: &Path, now: Instant) -> std::io::Result<Self> {
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        Ok(Self {
            socket,
            path: path.to_owned(),
            pace: Pace::new(now),
        })
    }

    /// Tells of a record, if it is a refusal and news; how many lines were lost.
    pub(super) fn tell(&mut self, record: &Arc<Record>, now: Instant) -> u64 {
        let Some(unit) = unit(record).filter(|_| record.verdict.is_refusal()) else {
            return 0;
        };
        match self.pace.refused(unit, record, now) {
            Ok(due) => due.map_or(0, |due| self.send(&due)),
            Err(()) => 1,
        }
    }

    /// Tells what is due by now; how many lines were lost.
    pub(super) fn sweep(&mut self, now: Instant) -> u64 {
        let due = self.pace.sweep(now);
        due.iter().map(|due| self.send(due)).sum()
    }

    fn send(&self, due: &Due) -> u64 {
        let sent = self.socket.send_to(entry(due).as_bytes(), &self.path);
        u64::from(sent.is_err())
    }
}

/// The unit that journald takes a process's own lines to be of: the first in its cgroup's path that is no slice. What is
/// below is the unit's own to name, and must not put lines into another's log.
fn unit(record: &Record) -> Option<&str> {
    let cgroup = &record.process.as_ref()?.cgroup;
    let mut names = cgroup.split('/').filter(|name| !name.is_empty());
    let name = names.find(|name| !name.ends_with(".slice"))?;
    // Systemd puts it before names that would clash with the kernel's files.
    let name = name.strip_prefix('_').unwrap_or(name);
    KINDS
        .iter()
        .any(|kind| name.ends_with(kind))
        .then_some(name)
}

/// One entry of the journal: `NAME=value` lines, and no value has a line's end in it.
fn entry(due: &Due) -> String {
    let record = &*due.last;
    let reason = record.reason.as_ref();
    let id = record.id.to_string();
    let (times, status) = (due.times.to_string(), record.response.map(|r| r.status));
    let pid = record.process.as_ref().map(|p| p.pid.to_string());
    let request = record.request.as_ref();
    let mut entry = format!(
        "MESSAGE={}\nPRIORITY=4\nSYSLOG_IDENTIFIER=tollgate\n",
        inert(&message(due), MESSAGE)
    );
    for (name, value) in [
        ("OBJECT_SYSTEMD_UNIT", unit(record)),
        ("TOLLGATE_DECISION", Some(id.as_str())),
        ("TOLLGATE_TIMES", Some(times.as_str())),
        ("TOLLGATE_WORKLOAD", record.workload.as_deref()),
        ("TOLLGATE_IDENTITY", record.identity.as_deref()),
        ("TOLLGATE_REASON", reason.map(|reason| &*reason.code)),
        ("TOLLGATE_RULE", record.rule.as_deref()),
        ("TOLLGATE_METHOD", request.map(|r| r.method.as_str())),
        ("TOLLGATE_HOST", request.map(|r| r.host.as_str())),
        ("TOLLGATE_STATUS", status.map(|s| s.to_string()).as_deref()),
        ("TOLLGATE_PID", pid.as_deref()),
    ] {
        if let Some(value) = value.filter(|value| !value.is_empty()) {
            // Writing to a String does not fail.
            let _ = writeln!(entry, "{name}={}", inert(value, FIELD));
        }
    }
    entry
}

/// What was refused, how often, why, what to do, and the command that tells more.
fn message(due: &Due) -> String {
    let record = &*due.last;
    let part = |text: &str| inert(text, PART);
    let mut call = String::new();
    let method = record.request.as_ref().map(|r| r.method.as_str());
    for word in [method, record.place().as_deref()].into_iter().flatten() {
        if !word.is_empty() {
            call.push(' ');
            call.push_str(&part(word));
        }
    }
    if let Some(response) = record.response.filter(|r| r.status != 0) {
        let _ = write!(call, " ({})", response.status);
    }
    if let Some(process) = &record.process {
        let program = process.exe.rsplit('/').next().unwrap_or_default();
        let _ = write!(call, " by {}[{}]", part(program), process.pid);
    }
    let mut message = match (due.times, due.mixed) {
        (0 | 1, _) => format!("refused{call}"),
        (times, false) => format!("refused{call}, the last of {times} since this was told"),
        (times, true) => {
            format!("refused {times} more calls of other kinds, the last of them{call}")
        }
    };
    if let Some(reason) = &record.reason {
        let _ = write!(message, ": {}", part(&reason.detail));
        if !reason.hint.is_empty() {
            let _ = write!(message, "; {}", part(&reason.hint));
        }
        let _ = write!(
            message,
            " ({}; tollgate explain {})",
            part(&reason.code),
            record.id
        );
    }
    message
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::record::Verdict;
    use super::super::tests::{denied, full};
    use super::*;
    use crate::kernel::Process;
    use std::time::Duration;

    fn refusal(change: impl FnOnce(&mut Record)) -> Arc<Record> {
        let mut record = denied("api.example");
        in_cgroup(&mut record, "/system.slice/report.service");
        change(&mut record);
        Arc::new(record)
    }

    fn in_cgroup(record: &mut Record, cgroup: &str) {
        let process = (**record.process.as_ref().unwrap()).clone();
        record.process = Some(Arc::new(Process {
            cgroup: cgroup.to_owned(),
            ..process
        }));
    }

    /// A journald of the test's own.
    struct Heard {
        socket: UnixDatagram,
        journal: Journal,
        now: Instant,
        directory: tempfile::TempDir,
    }

    impl Heard {
        fn new() -> Self {
            let directory = tempfile::tempdir().unwrap();
            let path = directory.path().join("socket");
            let socket = UnixDatagram::bind(&path).unwrap();
            socket.set_nonblocking(true).unwrap();
            let now = Instant::now();
            let journal = Journal::to(&path, now).unwrap();
            Self {
                socket,
                journal,
                now,
                directory,
            }
        }

        fn entries(&self) -> Vec<String> {
            let mut datagram = vec![0; 1 << 16];
            let mut entries = Vec::new();
            while let Ok(length) = self.socket.recv(&mut datagram) {
                let text = datagram.get(..length).unwrap().to_vec();
                entries.push(String::from_utf8(text).unwrap());
            }
            entries
        }
    }

    fn field<'e>(entry: &'e str, name: &str) -> Option<&'e str> {
        entry
            .lines()
            .find_map(|line| line.strip_prefix(name)?.strip_prefix('='))
    }

    #[test]
    fn a_refusal_is_told_with_its_unit_and_why() {
        let mut heard = Heard::new();
        let record = refusal(|_| {});
        assert_eq!(heard.journal.tell(&record, heard.now), 0);
        let [entry] = <[String; 1]>::try_from(heard.entries()).unwrap();
        let message = field(&entry, "MESSAGE").unwrap();
        let reason = record.reason.as_ref().unwrap();
        assert!(message.starts_with("refused "), "{message}");
        for part in ["api.example", " (403)", &reason.detail, &reason.hint] {
            assert!(message.contains(part), "{part}: {message}");
        }
        let command = format!("(no_route; tollgate explain {})", record.id);
        assert!(message.ends_with(&command), "{message}");
        let id = record.id.to_string();
        for (name, value) in [
            ("PRIORITY", "4"),
            ("SYSLOG_IDENTIFIER", "tollgate"),
            ("OBJECT_SYSTEMD_UNIT", "report.service"),
            ("TOLLGATE_DECISION", &id),
            ("TOLLGATE_REASON", "no_route"),
            ("TOLLGATE_WORKLOAD", record.workload.as_deref().unwrap()),
            ("TOLLGATE_TIMES", "1"),
        ] {
            assert_eq!(field(&entry, name), Some(value), "{entry}");
        }
        assert!(!entry.contains("OBJECT_PID"), "{entry}");
    }

    #[test]
    fn what_passed_failed_or_is_no_units_is_not_told() {
        let mut heard = Heard::new();
        for record in [
            Arc::new(full()),
            refusal(|r| r.verdict = Verdict::WouldDeny),
            refusal(|r| r.verdict = Verdict::Error),
            refusal(|r| r.process = None),
            refusal(|r| in_cgroup(r, "/tollgate/run-1")),
            refusal(|r| in_cgroup(r, "/system.slice")),
        ] {
            assert_eq!(heard.journal.tell(&record, heard.now), 0);
        }
        assert_eq!(heard.entries(), [""; 0]);
    }

    /// A service may name cgroups below its own as it likes.
    #[test]
    fn no_unit_is_told_of_in_anothers_log() {
        for (cgroup, expected) in [
            ("/system.slice/a.service/sshd.service", "a.service"),
            ("/system.slice/system-a.slice/a@1.service", "a@1.service"),
            (
                "/user.slice/user-1.slice/user@1.service/app.slice/b.service",
                "user@1.service",
            ),
            ("/system.slice/_cgroup.service", "cgroup.service"),
            ("/system.slice/docker-0.scope/x", "docker-0.scope"),
        ] {
            let record = refusal(|record| in_cgroup(record, cgroup));
            assert_eq!(unit(&record), Some(expected));
        }
    }

    #[test]
    fn what_the_program_chose_makes_no_field_and_no_line() {
        let mut heard = Heard::new();
        let nasty = "\n_UID=0\nPRIORITY=0\n\u{1b}[2J\u{202e}\u{2028}\0".repeat(9000);
        let record = refusal(|record| {
            let request = record.request.as_mut().unwrap();
            (request.method, request.host) = (nasty.clone(), nasty.clone());
            (request.path, request.route) = (nasty.clone(), None);
            request.query_keys = vec!["key".into()];
            record.rule = Some(nasty.as_str().into());
            let reason = record.reason.as_mut().unwrap();
            (reason.detail, reason.hint) = (nasty.clone(), nasty.clone());
        });
        assert_eq!(heard.journal.tell(&record, heard.now), 0);
        let [entry] = <[String; 1]>::try_from(heard.entries()).unwrap();
        assert!(entry.len() < MESSAGE + 12 * (FIELD + 32), "{}", entry.len());
        assert!(
            entry
                .chars()
                .all(|c| c == '\n' || !(c.is_control() || "\u{202e}\u{2028}".contains(c))),
            "{entry:?}"
        );
        let names: Vec<&str> = entry.lines().filter_map(|l| l.split('=').next()).collect();
        let once = |name: &&str| names.iter().filter(|n| *n == name).count() == 1;
        assert!(
            names.iter().all(|name| once(name) && *name != "_UID"),
            "{names:?}"
        );
        assert_eq!(field(&entry, "PRIORITY"), Some("4"));
    }

    #[test]
    fn the_same_is_told_again_with_how_often() {
        let mut heard = Heard::new();
        for _ in 0..42 {
            assert_eq!(heard.journal.tell(&refusal(|_| {}), heard.now), 0);
        }
        assert_eq!(heard.entries().len(), 1);
        let later = heard.now + Duration::from_secs(60);
        assert_eq!(heard.journal.sweep(later), 0);
        let [entry] = <[String; 1]>::try_from(heard.entries()).unwrap();
        assert_eq!(field(&entry, "TOLLGATE_TIMES"), Some("41"));
        let message = field(&entry, "MESSAGE").unwrap();
        assert!(
            message.contains(", the last of 41 since this was told: "),
            "{message}"
        );
    }

    #[test]
    fn a_socket_that_is_full_or_gone_loses_lines_and_delays_nothing() {
        let mut heard = Heard::new();
        let (start, mut lost) = (Instant::now(), 0);
        for number in 0..2000_u32 {
            let record = refusal(|record| {
                in_cgroup(record, &format!("/system.slice/{number}.service"));
            });
            let now = heard.now + Duration::from_millis(100) * number;
            lost += heard.journal.tell(&record, now) + heard.journal.sweep(now);
        }
        assert!(
            lost > 0 && heard.entries().len() as u64 + lost == 2000,
            "{lost}"
        );
        std::fs::remove_file(heard.directory.path().join("socket")).unwrap();
        let later = heard.now + Duration::from_secs(9999);
        assert_eq!(heard.journal.tell(&refusal(|_| {}), later), 1);
        assert!(start.elapsed() < Duration::from_secs(10));
    }
}
