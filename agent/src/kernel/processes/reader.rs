//! Reads files of `/proc` for which the kernel takes hold of a process's memory (`get_task_mm`): `status` and `stat`. Who ends at that moment
//! leaves it to the reader to give that memory back, and to wait as long as that takes: what is mapped there may be written to whoever
//! serves it (FUSE), or a socket that is not closed before its peer has taken all (`SO_LINGER`). So it is threads that read, which nobody
//! waits for for long, and which have none of the agent's descriptors: one that cannot be killed would keep them.
use super::super::bounded;
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use std::fs::File;
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::MetadataExt;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long one is waited for.
const PATIENCE: Duration = Duration::from_millis(200);
/// Readers that wait for the next question.
const IDLE: usize = 4;
/// Of those that do not come back, how many there may be for the sake of one user's processes, of all users' but root's, and of root's.
const STUCK_OF_ONE: usize = 4;
const STUCK: usize = 64;

/// A thread that reads.
#[derive(Debug)]
struct Reader {
    ask: Sender<String>,
    told: Receiver<io::Result<Vec<u8>>>,
    thread: JoinHandle<()>,
}

/// All that there are.
#[derive(Debug, Default)]
struct Readers {
    idle: Vec<Reader>,
    /// With whose process each is at.
    stuck: Vec<(JoinHandle<()>, u32)>,
}

static READERS: Mutex<Readers> = Mutex::new(Readers {
    idle: Vec::new(),
    stuck: Vec::new(),
});

fn readers() -> MutexGuard<'static, Readers> {
    READERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The effective user of what has an entry in `/proc`; who has ended is whose he was. Takes hold of nothing, and never waits.
pub fn owner(process: u32) -> Option<u32> {
    user(&format!("/proc/{process}"))
}

/// Of the directory itself the kernel says that, also where it says of all that is in it that it is root's.
fn user(at: &str) -> Option<u32> {
    std::fs::metadata(at).ok().map(|entry| entry.uid())
}

/// Has one there from now on: later there may be no thread to be had.
pub(in crate::kernel) fn keep_one() {
    let mut all = readers();
    if all.idle.is_empty() {
        all.idle.extend(Reader::start());
    }
    drop(all);
    bounded::keep_one();
}

/// Reads a file below a process's directory `at`.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`]: nobody says anything, or there is no thread to be had to read it; the system's word.
pub(super) fn read(at: &str, file: &str) -> io::Result<Vec<u8>> {
    // Once it has ended nobody can say whose it was.
    let of = std::fs::metadata(at)?.uid();
    let reader = match readers().take(of)? {
        Some(reader) => reader,
        None => Reader::start().map_err(|error| nobody(&error))?,
    };
    let is_asked = reader.ask.send(format!("{at}/{file}")).is_ok();
    let answer = reader.told.recv_timeout(PATIENCE);
    let mut all = readers();
    match answer {
        Ok(answer) => {
            if all.idle.len() < IDLE {
                all.idle.push(reader);
            }
            answer
        }
        Err(_) => {
            if is_asked {
                all.stuck.push((reader.thread, of));
            }
            Err(silent())
        }
    }
}

/// There is no thread to be had: nobody can say.
fn nobody(why: &io::Error) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, why.to_string())
}

fn silent() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "what ends just then does not end, or too many do not",
    )
}

impl Readers {
    /// One that is there, for this user's.
    fn take(&mut self, user: u32) -> io::Result<Option<Reader>> {
        if !self.stuck.is_empty() {
            self.stuck.retain(|(thread, _)| !thread.is_finished());
            let of = |is: &dyn Fn(u32) -> bool| self.stuck.iter().filter(|(_, of)| is(*of)).count();
            let are_too_many = match user {
                0 => of(&|of| of == 0) >= STUCK,
                _ => of(&|of| of == user) >= STUCK_OF_ONE || of(&|of| of != 0) >= STUCK,
            };
            if are_too_many {
                return Err(silent());
            }
        }
        Ok(self.idle.pop())
    }
}

impl Reader {
    fn start() -> io::Result<Self> {
        let ((ask, asked), (tell, told)) = (channel::<String>(), channel());
        let reads = move || {
            let apart = super::super::sys::without_descriptors();
            // Whoever made it may have been in another network for a moment, which this one would keep.
            if let Ok(own) = File::open("/proc/self/ns/net") {
                let _ = move_into_link_name_space(own.as_fd(), Some(LinkNameSpaceType::Network));
            }
            for file in asked {
                let answer = match &apart {
                    Ok(()) => std::fs::read(file),
                    Err(error) => Err(nobody(error)),
                };
                if tell.send(answer).is_err() {
                    return; // It came too late.
                }
            }
        };
        let thread = std::thread::Builder::new().name("reads".to_owned());
        let thread = thread.spawn(reads)?;
        Ok(Self { ask, told, thread })
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use rustix::fs::CWD;
    use std::os::fd::AsRawFd;

    #[test]
    fn it_reads_without_the_descriptors_of_others() {
        let open = File::open("/dev/null").unwrap();
        let own = format!("/proc/{}", std::process::id());
        assert!(read(&own, "status").unwrap().starts_with(b"Name:"));
        assert_eq!(
            read("/proc/0", "status").unwrap_err().kind(),
            io::ErrorKind::NotFound
        );
        assert_eq!(
            owner(std::process::id()),
            Some(rustix::process::geteuid().as_raw())
        );
        // The thread's own table.
        let fd = open.as_raw_fd();
        let kind = read("/proc/thread-self/fdinfo", &fd.to_string()).map_err(|e| e.kind());
        assert_eq!(kind, Err(io::ErrorKind::NotFound));
        rustix::fs::fstat(&open).unwrap();
    }

    #[test]
    fn who_does_not_answer_holds_up_nobody() {
        let folder = tempfile::tempdir().unwrap();
        let (pipe, at) = (folder.path().join("pipe"), folder.path().to_str().unwrap());
        let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
        rustix::fs::mknodat(CWD, &pipe, rustix::fs::FileType::Fifo, mode, 0).unwrap();
        let begun = std::time::Instant::now();
        // Nobody writes to it.
        assert_eq!(
            read(at, "pipe").unwrap_err().kind(),
            io::ErrorKind::TimedOut
        );
        assert!(begun.elapsed() < 10 * PATIENCE);
        let own = format!("/proc/{}", std::process::id());
        assert!(read(&own, "status").is_ok());
        drop(std::fs::OpenOptions::new().write(true).open(&pipe).unwrap());
        while !readers().stuck.is_empty() {
            assert!(begun.elapsed() < 100 * PATIENCE, "it stays");
            let _ = readers().take(user(at).unwrap()).unwrap();
        }
    }

    #[test]
    fn who_does_not_answer_costs_one_user_few_threads() {
        let mut all = Readers::default();
        let stays = || {
            let (end, ends) = channel::<()>();
            (
                end,
                std::thread::spawn(move || {
                    let _ = ends.recv();
                }),
            )
        };
        let (ends, threads): (Vec<_>, Vec<_>) = (0..STUCK_OF_ONE).map(|_| stays()).unzip();
        let (own, other) = (1_000, 1_001);
        all.stuck
            .extend(threads.into_iter().map(|thread| (thread, own)));
        assert!(all.take(own).is_err());
        assert!(all.take(other).is_ok() && all.take(0).is_ok());
        drop(ends);
        let begun = std::time::Instant::now();
        while !all.stuck.is_empty() {
            assert!(begun.elapsed() < 100 * PATIENCE, "they stay");
            let _ = all.take(own);
        }
        assert!(all.take(own).is_ok());
    }
}
