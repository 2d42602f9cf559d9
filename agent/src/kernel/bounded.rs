//! What a process runs and has open, asked for within bounds. While one is in `execve` the kernel answers nobody who asks for its
//! executable, its descriptors, its namespaces or its root directory, and of some versions for its `stat`
//! (`signal->exec_update_lock`): until what is closed there is closed, which takes as long as whoever serves such a file (FUSE, NFS)
//! likes. Its `cgroup`, `mountinfo` and the lists of its threads and descriptors never wait.
use super::processes::owner as user_of;
use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

/// How long nothing may come of one process before another thread goes on with the rest.
const PATIENCE: Duration = Duration::from_millis(20);
/// How long the last are waited for.
pub(super) const DEADLINE: Duration = Duration::from_millis(200);
/// How long one is waited for by [`briefly`], and after one for which that was not enough nobody is, in milliseconds.
const BRIEF: Duration = Duration::from_millis(50);
const REST: u64 = 10_000;
/// After this long one counts against the bounds below.
const SLOW: Duration = Duration::from_millis(40);
/// Processes of one user, and of all users but root, that may keep a thread waiting each, before no others of theirs are asked; as many
/// of root's may besides.
const STUCK_OF_ONE: usize = 4;
const STUCK: usize = 64;
/// Processes of one user, root aside, that may be asked at once what may take longer than [`DEADLINE`]: until then none of them counts as stuck,
/// and they are not to be all that may be.
const LONG_OF_ONE: usize = 16;
/// As much time as those may take at once is forgiven where answers come late again and again, and beyond that this part of all time:
/// who goes from one `execve` into the next, with as many processes as he likes, answers each question just in time.
const FORGIVEN_OF_ONE: Duration = DEADLINE.saturating_mul(4);
const FORGIVEN: Duration = DEADLINE.saturating_mul(64);
const SHARE: u32 = 10;
/// As much is at most held against somebody for one question in another way ([`was_silent`]).
const MOST: Duration = Duration::from_secs(2);

/// Who is asked at this moment.
#[derive(Debug, Clone, Copy)]
struct Asked {
    number: usize,
    process: u32,
    /// Read only where somebody may be stuck.
    user: Option<u32>,
    since: Instant,
    /// From when on it counts: what takes long in itself says nothing of who is asked.
    slow: Duration,
}

static ASKED: Mutex<Vec<Asked>> = Mutex::new(Vec::new());

fn asked() -> MutexGuard<'static, Vec<Asked>> {
    ASKED.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Time that somebody has taken of late, which is paid off by one part in `PARTS` of all time.
#[derive(Debug, Clone, Copy)]
pub struct Debt<const PARTS: u32> {
    spent: Duration,
    at: Instant,
}

impl<const PARTS: u32> Debt<PARTS> {
    /// What is left of it.
    pub fn left(&self, now: Instant) -> Duration {
        let paid = now.saturating_duration_since(self.at) / PARTS;
        self.spent.saturating_sub(paid)
    }

    /// So much more than what is left of the one before.
    #[must_use]
    pub fn more(before: Option<&Self>, took: Duration, now: Instant) -> Self {
        let left = before.map(|debt| debt.left(now)).unwrap_or_default();
        let spent = left.saturating_add(took);
        Self { spent, at: now }
    }
}

/// Time that late answers have taken, by user, and of all but root. There are few users at once: what is forgiven to all of them bounds it.
#[derive(Debug, Default)]
struct Lost {
    users: BTreeMap<Option<u32>, Debt<SHARE>>,
    others: Option<Debt<SHARE>>,
}

static LOST: Mutex<Lost> = Mutex::new(Lost {
    users: BTreeMap::new(),
    others: None,
});

fn lost() -> MutexGuard<'static, Lost> {
    LOST.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Lost {
    /// Is there any?
    fn is_some(&mut self, now: Instant) -> bool {
        self.users.retain(|_, debt| !debt.left(now).is_zero());
        !self.users.is_empty()
    }

    /// May processes of this user be asked?
    fn forgives(&self, user: Option<u32>, now: Instant) -> bool {
        let left = |debt: Option<&Debt<SHARE>>| debt.map_or(Duration::ZERO, |debt| debt.left(now));
        let own = left(self.users.get(&user));
        match user {
            Some(0) => own < FORGIVEN,
            _ => own < FORGIVEN_OF_ONE && left(self.others.as_ref()) < FORGIVEN,
        }
    }

    /// One of this user's was waited for.
    fn add(&mut self, user: Option<u32>, took: Duration, now: Instant) {
        if user != Some(0) {
            self.others = Some(Debt::more(self.others.as_ref(), took, now));
        }
        let own = Debt::more(self.users.get(&user), took, now);
        self.users.insert(user, own);
    }
}

impl Asked {
    /// Begins to ask; `None`: it is stuck since before, or too many are, or have been.
    fn begin(process: u32, slow: Duration) -> Option<Self> {
        static NUMBERS: AtomicUsize = AtomicUsize::new(0);
        let mut one = Self {
            number: NUMBERS.fetch_add(1, Ordering::Relaxed),
            process,
            user: None,
            since: Instant::now(),
            slow,
        };
        let others = Self::slow();
        let owes = lost().is_some(one.since);
        if owes || !others.is_empty() {
            one.user = user_of(process);
            let of = |is: &dyn Fn(&Self) -> bool| others.iter().filter(|one| is(one)).count();
            let is_roots = one.user == Some(0);
            let (theirs, all) = match is_roots {
                true => (0, of(&|one| one.user == Some(0))),
                false => (
                    of(&|other| other.user == one.user),
                    of(&|one| one.user != Some(0)),
                ),
            };
            let is_same = |other: &Self| other.process == process && other.is_stuck();
            let is_known = others.iter().any(is_same);
            if is_known || theirs >= STUCK_OF_ONE || all >= STUCK {
                return None;
            }
            if owes && !lost().forgives(one.user, one.since) {
                return None;
            }
        }
        if slow > DEADLINE {
            one.user = one.user.or_else(|| user_of(process));
            let is_same = |other: &&Self| other.slow > DEADLINE && other.user == one.user;
            if one.user != Some(0) && asked().iter().filter(is_same).count() >= LONG_OF_ONE {
                return None;
            }
        }
        asked().push(one);
        Some(one)
    }

    /// Who may be stuck, with whose they are.
    fn slow() -> Vec<Self> {
        let mut all = asked();
        let mut slow = Vec::new();
        for one in all.iter_mut().filter(|one| one.since.elapsed() >= one.slow) {
            one.user = one.user.or_else(|| user_of(one.process));
            slow.push(*one);
        }
        slow
    }

    fn is_stuck(&self) -> bool {
        self.since.elapsed() >= self.patience()
    }

    /// Nobody waits for longer.
    fn patience(&self) -> Duration {
        self.slow.max(DEADLINE)
    }
}

/// Ends what [`Asked::begin`] began, also where the question panics.
struct Ends(usize);

impl Drop for Ends {
    fn drop(&mut self) {
        let mut all = asked();
        let at = all.iter().position(|one| one.number == self.0);
        let one = at.map(|at| all.swap_remove(at));
        drop(all);
        let took = |one: &Asked| one.since.elapsed().min(one.patience());
        if let Some(one) = one.filter(|one| took(one) >= one.slow) {
            let user = one.user.or_else(|| user_of(one.process));
            lost().add(user, took(&one), Instant::now());
        }
    }
}

/// Whom a round has to ask, by several threads where some of them wait.
struct Round<F> {
    processes: Vec<u32>,
    next: AtomicUsize,
    /// From when on an answer is late.
    slow: Duration,
    ask: F,
}

impl<F> Round<F> {
    fn go_on<T>(&self, tell: &Sender<(usize, Option<T>)>)
    where
        F: Fn(u32) -> T,
    {
        loop {
            let at = self.next.fetch_add(1, Ordering::Relaxed);
            let Some(&process) = self.processes.get(at) else {
                return;
            };
            let answer = Asked::begin(process, self.slow).map(|one| {
                let _ends = Ends(one.number);
                (self.ask)(process)
            });
            if tell.send((at, answer)).is_err() {
                return; // It came too late.
            }
        }
    }

    fn is_over(&self) -> bool {
        self.next.load(Ordering::Relaxed) >= self.processes.len()
    }
}

type Work = Box<dyn FnOnce() + Send>;

fn thread() -> std::thread::Builder {
    std::thread::Builder::new().name("asks".to_owned())
}

/// A thread to ask where no other can be made any more: who waits for the answers must not be held up himself. There is one from the
/// first question on. It takes one round more than it is at, which is over before it comes to it if that one keeps it.
fn reserve() -> Option<&'static SyncSender<Work>> {
    static RESERVE: OnceLock<Option<SyncSender<Work>>> = OnceLock::new();
    let started = RESERVE.get_or_init(|| {
        let (give, given) = sync_channel::<Work>(1);
        let works = move || given.iter().for_each(|work| work());
        thread().spawn(works).is_ok().then_some(give)
    });
    started.as_ref()
}

/// Has it there from now on.
pub(super) fn keep_one() {
    let _ = reserve();
}

/// Asks of each process, on threads of their own. Answers in the same order; `None`: there was none in time, or no thread.
pub fn each<T: Send + 'static>(
    processes: Vec<u32>,
    ask: impl Fn(u32) -> T + Send + Sync + 'static,
) -> Vec<Option<T>> {
    each_within(DEADLINE, processes, ask)
}

/// The same, where an answer may take so long.
pub(super) fn each_within<T: Send + 'static>(
    deadline: Duration,
    processes: Vec<u32>,
    ask: impl Fn(u32) -> T + Send + Sync + 'static,
) -> Vec<Option<T>> {
    let mut answers: Vec<Option<T>> = processes.iter().map(|_| None).collect();
    let mut left = answers.len();
    let round = Arc::new(Round {
        processes,
        next: AtomicUsize::new(0),
        slow: if deadline > DEADLINE { deadline } else { SLOW },
        ask,
    });
    let (tell, told) = channel();
    let reserve = reserve();
    let more = || {
        let (by_new, tell_by_new) = (Arc::clone(&round), tell.clone());
        if thread().spawn(move || by_new.go_on(&tell_by_new)).is_ok() {
            return true;
        }
        let (round, tell) = (Arc::clone(&round), tell.clone());
        let goes_on: Work = Box::new(move || round.go_on(&tell));
        reserve.is_some_and(|reserve| reserve.try_send(goes_on).is_ok())
    };
    let mut heard = Instant::now();
    let mut is_more = left > 0 && more();
    while left > 0 && is_more {
        match told.recv_timeout(PATIENCE.min(deadline)) {
            Ok((at, answer)) => {
                if let Some(place) = answers.get_mut(at) {
                    *place = answer;
                }
                left -= 1;
                heard = Instant::now();
            }
            Err(RecvTimeoutError::Timeout) if !round.is_over() && more() => drop(Asked::slow()),
            Err(_) => {
                // Whose it is, while it is there.
                drop(Asked::slow());
                is_more = heard.elapsed() < deadline;
            }
        }
    }
    answers
}

/// Asks of one.
///
/// # Errors
/// [`io::ErrorKind::TimedOut`]: there was no answer in time.
pub fn of<T: Send + 'static>(
    process: u32,
    ask: impl Fn(u32) -> T + Send + Sync + 'static,
) -> io::Result<T> {
    let answer = each(vec![process], ask).pop().flatten();
    answer.ok_or_else(silent)
}

/// Asks of one while others wait for that: where an answer was long in coming, nobody is asked so for a while.
pub(super) fn briefly<T: Send + 'static>(
    process: u32,
    ask: impl Fn(u32) -> T + Send + Sync + 'static,
) -> Option<T> {
    // In milliseconds since the first call.
    static ASK_AGAIN: AtomicU64 = AtomicU64::new(0);
    static BEGUN: OnceLock<Instant> = OnceLock::new();
    let begun = BEGUN.get_or_init(Instant::now);
    let now = || u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
    if now() < ASK_AGAIN.load(Ordering::Relaxed) {
        return None;
    }
    let answer = each_within(BRIEF, vec![process], ask).pop().flatten();
    if answer.is_none() {
        ASK_AGAIN.store(now().saturating_add(REST), Ordering::Relaxed);
    }
    answer
}

/// May processes of this user be asked what is asked in another way than by [`each`]?
pub(super) fn may_be_asked(user: Option<u32>) -> bool {
    lost().forgives(user, Instant::now())
}

/// One of them was asked so, and waited for in vain.
pub(super) fn was_silent(user: Option<u32>, took: Duration) {
    // However long this process itself stood still meanwhile.
    lost().add(user, took.min(MOST), Instant::now());
}

/// Nothing was said in time.
pub(super) fn silent() -> io::Error {
    io::Error::new(
        io::ErrorKind::TimedOut,
        "the kernel does not answer: it is in execve for long, or too many are",
    )
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::sync::mpsc::{Receiver, channel};

    /// Answers for all but these, until the other end is gone.
    fn stuck_on(stuck: Vec<u32>) -> (impl Fn(u32) -> u32 + Send + Sync + 'static, Sender<()>) {
        let (end, ends): (Sender<()>, Receiver<()>) = channel();
        let ends = Mutex::new(ends);
        let ask = move |process| {
            if stuck.contains(&process) {
                let _ = ends.lock().unwrap().recv();
            }
            process
        };
        (ask, end)
    }

    /// Each of many answers just in time, one after the other.
    #[test]
    fn who_answers_late_again_and_again_has_a_share_of_the_time() {
        const LATE: Duration = Duration::from_millis(190);
        let (begun, minute) = (Instant::now(), Duration::from_secs(60));
        let spent = |users: u32| {
            let (mut lost, mut now, mut spent) = (Lost::default(), begun, Duration::ZERO);
            while now < begun + minute {
                let mut each = (1..=users).map(Some);
                let Some(user) = each.find(|user| lost.forgives(*user, now)) else {
                    now += Duration::from_millis(10);
                    continue;
                };
                now += LATE;
                spent += LATE;
                lost.add(user, LATE, now);
            }
            assert!(lost.forgives(Some(0), now) && lost.is_some(now));
            assert!(users > 1 || lost.forgives(Some(users + 1), now));
            assert!(!lost.is_some(now + 4 * SHARE * minute));
            spent
        };
        assert!(spent(1) <= FORGIVEN_OF_ONE + minute / SHARE + LATE);
        // As many users as somebody has ids.
        assert!(spent(1_000) <= FORGIVEN + minute / SHARE + LATE);
    }

    #[test]
    fn who_does_not_answer_keeps_nobody_waiting_and_is_asked_again_once_he_has() {
        let base = 1 << 30; // Nobody has these ids.
        let (ask, end) = stuck_on(vec![base + 3, base + 500]);
        let all: Vec<u32> = (base..base + 1000).collect();
        let begun = Instant::now();
        let answers = each(all, ask);
        assert!(
            begun.elapsed() < Duration::from_secs(2),
            "{:?}",
            begun.elapsed()
        );
        let silent: Vec<usize> = (0..1000).filter(|at| answers[*at].is_none()).collect();
        assert_eq!(silent, [3, 500]);
        // Not asked at all while he is stuck, and at once.
        let begun = Instant::now();
        let silent = of(base + 3, |process| process).unwrap_err();
        assert_eq!(silent.kind(), io::ErrorKind::TimedOut);
        assert!(begun.elapsed() < DEADLINE);
        // Others are.
        assert_eq!(of(base + 4, |process| process).unwrap(), base + 4);
        drop(end);
        let until = Instant::now() + Duration::from_secs(10);
        while of(base + 3, |process| process).is_err() {
            assert!(Instant::now() < until, "still stuck");
        }
    }
}
