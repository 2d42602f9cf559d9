//! What `/proc/PID/status` says of processes.
use super::super::missed::is_ended;
use super::{first_of, reader};
use std::io;

/// Threads of a process that are asked, at most: each may have its own descriptors, and be in a network namespace of its own. And those that
/// may have ended besides: they stay listed for as long as somebody traces them.
const THREADS: usize = 64;
const ENDED: usize = 1 << 12;

/// Has a process ended, be it that nobody has waited for it yet? What it made before that was not asked for by it.
pub fn has_ended(process: u32) -> bool {
    // Of whom nobody can say now he has not.
    let have_ended = |all: Vec<u32>| {
        all.iter()
            .all(|thread| is_dead(&of_thread(process, *thread)))
    };
    is_dead(&format!("/proc/{process}"))
        && threads(process).map_or_else(|error| is_ended(&error), have_ended)
}

/// The threads of a process that are looked at: where it has more, only of those that have not ended.
///
/// # Errors
/// It is gone, nobody can say now, or too many have ended that are listed still.
pub fn threads(process: u32) -> io::Result<Vec<u32>> {
    let mut all = Vec::new();
    for entry in std::fs::read_dir(format!("/proc/{process}/task"))? {
        let name = entry?.file_name();
        all.extend(name.to_str().and_then(|name| name.parse::<u32>().ok()));
    }
    if all.len() <= THREADS {
        return Ok(all);
    }
    let (mut live, mut ended) = (Vec::new(), 0);
    for thread in all {
        if !is_dead(&of_thread(process, thread)) {
            live.push(thread);
        } else if ended == ENDED {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!(
                    "it has more than {ENDED} threads that have ended and that nobody has waited for"
                ),
            ));
        } else {
            ended += 1;
        }
        if live.len() == THREADS {
            break;
        }
    }
    Ok(live)
}

fn of_thread(process: u32, thread: u32) -> String {
    format!("/proc/{process}/task/{thread}")
}

fn is_dead(at: &str) -> bool {
    let is_dead = |text: &str| text.contains("\nState:\tZ") || text.contains("\nState:\tX");
    match status(at) {
        Ok(text) => text.is_none_or(|text| is_dead(&text)),
        Err(_) => false, // Nobody can say now.
    }
}

/// The real user of a process; kernel threads, which run no program, have none, nor has who is gone.
///
/// # Errors
/// Nobody can say now: descriptors, threads or memory are short, it does not end, or too many of its threads have ended.
pub fn real_user(process: u32) -> io::Result<Option<u32>> {
    first_of(process, |at| {
        let text = status(at)?;
        let has_program = text.filter(|text| text.contains("\nVmSize:"));
        Ok(has_program.and_then(|text| field(&text, "Uid:")))
    })
}

/// Its parent, if it is there.
///
/// # Errors
/// Nobody can say now: descriptors or memory are short.
pub(super) fn parent(process: u32) -> io::Result<Option<u32>> {
    let text = status(&format!("/proc/{process}"))?;
    Ok(text.and_then(|text| field(&text, "PPid:")))
}

/// The first number of a line.
fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `None`: it is gone. Its name may be any bytes.
fn status(at: &str) -> io::Result<Option<String>> {
    match reader::read(at, "status") {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if is_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::io::{BufRead as _, BufReader};
    use std::process::Stdio;
    use std::time::{Duration, Instant};

    /// Seventy threads that have ended are listed first, since who traces them does not wait for them, then one that goes on.
    const TRACED: &str = r"
import ctypes, os, sys, threading
libc, ids, end = ctypes.CDLL(None), [], threading.Event()
EXIT, SEIZE, TRACER = 60 if os.uname().machine == 'x86_64' else 93, 0x4206, 0x59616d61
def ends():
    ids.append(threading.get_native_id()); end.wait()
def goes_on():
    print(threading.get_native_id(), flush=True); sys.stdin.read(); os._exit(0)
for _ in range(70): threading.Thread(target=ends).start()
while len(ids) < 70: pass
(told, tells), (over, holds) = os.pipe(), os.pipe()
libc.prctl(TRACER, -1, 0, 0, 0)
if os.fork() == 0:
    os.close(holds)
    for one in ids: assert libc.ptrace(SEIZE, one, 0, 0) == 0
    os.write(tells, b'x'); os.read(over, 1); os._exit(0)
os.close(tells)
if not os.read(told, 1): os._exit(1)
end.set()
threading.Thread(target=goes_on).start()
libc.syscall(EXIT, 0)
";

    #[test]
    fn who_lives_behind_threads_that_have_ended_has_not_ended() {
        let mut child = std::process::Command::new("python3");
        child.args(["-c", TRACED]).stdin(Stdio::piped());
        let mut child = child.stdout(Stdio::piped()).spawn().unwrap();
        let mut said = String::new();
        let out = child.stdout.take().unwrap();
        BufReader::new(out).read_line(&mut said).unwrap();
        let (process, lives) = (child.id(), said.trim().parse::<u32>().unwrap());
        let until = Instant::now() + Duration::from_secs(10);
        while threads(process).unwrap() != [lives] {
            assert!(Instant::now() < until, "{:?}", threads(process));
            std::thread::sleep(Duration::from_millis(5));
        }
        assert!(is_dead(&format!("/proc/{process}")) && !has_ended(process));
        let own = rustix::process::getuid().as_raw();
        assert_eq!(real_user(process).unwrap(), Some(own));
        assert_eq!(reader::owner(process), Some(own));
        drop(child.stdin.take());
        child.wait().unwrap();
        assert!(has_ended(process));
    }

    /// Any program may give itself one.
    #[test]
    fn who_has_a_name_that_is_no_text_is_somebody_all_the_same() {
        let (own, path) = (std::process::id(), "/proc/self/comm");
        let name = std::fs::read(path).unwrap();
        std::fs::write(path, b"n\xff").unwrap();
        let (user, ended) = (real_user(own), has_ended(own));
        std::fs::write(path, name).unwrap();
        assert_eq!(user.unwrap(), Some(rustix::process::getuid().as_raw()));
        assert!(!ended);
        assert_eq!(real_user(u32::MAX).unwrap(), None);
        assert!(has_ended(u32::MAX));
    }
}
