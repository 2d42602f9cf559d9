//! What a look did not get to, and why: so that it is made again, and told.
use super::Fence;
use std::collections::HashSet;
use std::fmt::Display;
use std::io;
use std::sync::atomic::Ordering;

/// Whose open descriptors and connections were not all looked at, for a reason that may pass.
#[derive(Debug, Default)]
pub(super) struct Missed {
    /// It is not known whose.
    everybody: bool,
    processes: HashSet<u32>,
    /// The first reason: the same from one look to the next while the cause stays.
    why: Option<String>,
}

impl Missed {
    /// Something of these processes was not looked at.
    pub(super) fn of(
        &mut self,
        processes: impl IntoIterator<Item = u32>,
        what: &str,
        why: &dyn Display,
    ) {
        self.processes.extend(processes);
        self.why.get_or_insert_with(|| format!("{what}: {why}"));
    }

    /// Something was not looked at that may be anybody's.
    pub(super) fn of_everybody(&mut self, what: &str, why: &dyn Display) {
        self.everybody = true;
        self.of([], what, why);
    }

    /// Those that there are; nobody if they cannot be listed.
    pub(super) fn listed(&mut self, processes: io::Result<Vec<u32>>) -> Vec<u32> {
        processes.unwrap_or_else(|error| {
            self.of_everybody("processes cannot be listed", &error);
            Vec::new()
        })
    }

    /// Those of `processes` of which all was looked at, or is gone, or can be looked at by nobody.
    pub(super) fn complete(&self, processes: Vec<u32>) -> Vec<u32> {
        let is_complete = |one: &u32| !self.everybody && !self.processes.contains(one);
        processes.into_iter().filter(is_complete).collect()
    }

    /// `None`: nothing was missed.
    pub(super) fn why(self) -> Option<String> {
        self.why
    }

    pub(super) fn is_nothing(&self) -> bool {
        self.why.is_none()
    }
}

impl Fence {
    /// Marks what who is governed has made, and that in turn; what the hooks saw being made has its mark. Whoever is looked
    /// at may have a child and end before it is marked, so this goes on until nobody is found.
    ///
    /// # Errors
    /// Not all of that is marked, for want of descriptors or memory, or of an answer.
    pub fn enrol_descendants(&self) -> io::Result<Vec<u32>> {
        let made = self.mark_descendants();
        self.missed_some.store(made.is_err(), Ordering::Relaxed);
        made
    }

    /// The same where the last time not all was: whose children they are is not looked at again once they are marked.
    ///
    /// # Errors
    /// As above.
    pub fn enrol_missed(&self) -> io::Result<()> {
        match self.missed_some.load(Ordering::Relaxed) {
            true => self.enrol_descendants().map(drop),
            false => Ok(()),
        }
    }
}

/// Does a call fail however often it is made? This kernel does not have it, somebody forbids it, or what it is about is gone.
pub(super) fn is_final(error: &io::Error) -> bool {
    let codes = [
        libc::EPERM,
        libc::EACCES,
        libc::ENOENT,
        libc::ESRCH,
        libc::ENOSYS,
        libc::EOPNOTSUPP,
        libc::EPROTONOSUPPORT,
        libc::ESOCKTNOSUPPORT,
        libc::EAFNOSUPPORT,
    ];
    error
        .raw_os_error()
        .is_some_and(|code| codes.contains(&code))
}

/// Has the process ended of which something was to be read? All else that fails says nothing of it.
pub fn is_ended(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// `None`: what was asked about is gone, or may not be looked at. An error: descriptors or memory are short, or the kernel did not answer
/// in time.
///
/// # Errors
/// See above: it is to be asked again.
pub fn unless_short<T>(result: io::Result<T>) -> io::Result<Option<T>> {
    match result {
        Ok(found) => Ok(Some(found)),
        Err(error) if super::sys::is_shortage(&error) => Err(error),
        Err(error) if error.kind() == io::ErrorKind::TimedOut => Err(error),
        Err(_) => Ok(None),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn failed(code: i32) -> io::Error {
        io::Error::from_raw_os_error(code)
    }

    #[test]
    fn who_was_missed_is_not_complete() {
        let mut missed = Missed::default();
        assert!(missed.is_nothing());
        assert_eq!(missed.complete(vec![1, 2, 3]), [1, 2, 3]);
        missed.of([2], "a socket", &failed(libc::EMFILE));
        assert_eq!(missed.complete(vec![1, 2, 3]), [1, 3]);
        missed.of_everybody("a namespace", &"no thread");
        assert!(missed.complete(vec![1, 2, 3]).is_empty());
        assert!(!missed.is_nothing());
        let why = missed.why().unwrap();
        assert!(why.starts_with("a socket: Too many open files"), "{why}");
    }

    #[test]
    fn only_what_may_pass_is_missed() {
        for code in [libc::EMFILE, libc::ENFILE, libc::ENOMEM] {
            assert!(!is_final(&failed(code)), "{code}");
            assert!(unless_short::<()>(Err(failed(code))).is_err(), "{code}");
        }
        // No thread can be made; the kernel has no answer; ours panicked.
        let own = [
            failed(libc::EAGAIN),
            failed(libc::ENOBUFS),
            io::Error::other("x"),
        ];
        assert!(!own.iter().any(is_final));
        // The process ended, a security module forbids it, the kernel has no `pidfd_getfd`, or no `udp_diag`.
        for code in [libc::ESRCH, libc::EPERM, libc::ENOSYS, libc::ENOENT] {
            assert!(is_final(&failed(code)), "{code}");
            assert!(
                unless_short::<()>(Err(failed(code))).unwrap().is_none(),
                "{code}"
            );
        }
        assert_eq!(unless_short(Ok(1)).unwrap(), Some(1));
    }
}
