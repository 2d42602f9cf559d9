//! The control plane: signals, watches, the kernel's events and the admin socket, on one runtime of its own, so that a
//! slow disk or a slow query never delays a request.
use super::agent::{Agent, lock};
use super::error::Error;
use super::events::Recorder;
use super::start::Up;
use super::unseen::Unseen;
use super::{Lifetime, admin, budgets, dirs, mend, notify, watch};
use crate::kernel::since_boot;
use crate::pipeline::Plane;
use std::io::{Read, Write};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::net::UnixListener;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::Notify;

/// How long tasks that answer the admin socket may take to end when the agent stops.
const LINGER: Duration = Duration::from_secs(2);
/// How long a private agent waits for changes under way before it lifts its fence: longer than Vault may take.
const CHANGES: Duration = Duration::from_secs(30);
/// How often `systemctl status` is told how things are.
const STATUS: Duration = Duration::from_secs(10);
/// A worker that says nothing for this long does not answer: it has a word to say each second.
const SILENCE: Duration = Duration::from_secs(3);
/// A datagram is under way within this host for less than this.
const UNDER_WAY: Duration = Duration::from_secs(10);

/// Runs until told to stop, then stops in order.
pub(super) fn run(up: Up) -> Result<(), Error> {
    let agent = Arc::clone(&up.agent);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(Error::Threads)?;
    // Connections to issuers have tasks of their own.
    let local = tokio::task::LocalSet::new();
    let ended = local.block_on(&runtime, serve(up));
    drop(local);
    notify::stopping();
    runtime.shutdown_timeout(LINGER);
    let stopped = stop(agent, ended.is_ok());
    ended.and(stopped)
}

/// Everything the control plane does at the same time; ends when the agent is told to stop.
async fn serve(up: Up) -> Result<(), Error> {
    let Up { agent, admin } = up;
    let told = Told::listen(&agent)?;
    let admin = listening(admin)?;
    let unseen = Arc::new(Unseen::default());
    let mut recorder = Recorder::new(
        Arc::clone(&agent.seen),
        Arc::clone(&agent.shared),
        agent.namespaces.look(),
        Arc::clone(&unseen),
    );
    let mut take = |event| recorder.take(event);
    announce(&agent);
    tokio::select! {
        () = told.until_stop(Arc::clone(&agent)) => Ok(()),
        () = admin::server::serve(admin, Arc::clone(&agent)) => Err(Error::Ended("the admin socket is served no more")),
        () = agent.shared.fence.events(&mut take) => Err(Error::Ended("the kernel's events are read no more")),
        () = watch::cgroups(Arc::clone(&agent)) => Err(Error::Ended("cgroups are looked for no more")),
        () = watch::secrets(Arc::clone(&agent)) => Ok(()),
        () = watch::vault(Arc::clone(&agent)) => Ok(()),
        () = crate::identity::refresh(Arc::downgrade(&agent.shared)) => Ok(()),
        () = budgets::watch(Arc::clone(&agent)) => Err(Error::Ended("what is spent is looked at no more")),
        () = mend::watch(Arc::clone(&agent)) => Err(Error::Ended("the fence is looked after no more")),
        () = watch::unseen(Arc::clone(&agent), unseen) => Err(Error::Ended("executables are looked at no more")),
        what = heartbeat(Arc::clone(&agent)) => Err(Error::Ended(what)),
        () = forget_lost_queries(&agent) => Ok(()),
    }
}

fn listening(admin: std::os::unix::net::UnixListener) -> Result<UnixListener, Error> {
    let listening = admin
        .set_nonblocking(true)
        .and_then(|()| UnixListener::from_std(admin));
    let what = "the admin socket cannot be listened on";
    listening.map_err(|source| Error::Control { what, source })
}

fn announce(agent: &Agent) {
    notify::ready();
    tracing::info!(port = agent.port, mode = ?agent.config.mode, "ready");
    if matches!(agent.lifetime, Lifetime::Private { .. }) {
        let mut out = std::io::stdout();
        // Whoever waits for it sees the end of the pipe otherwise.
        let _ = out.write_all(b"ready\n").and_then(|()| out.flush());
    }
}

/// The ways an agent is told something from outside.
struct Told {
    term: Signal,
    int: Signal,
    hup: Signal,
    /// Ends with the standard input of a private agent.
    orphaned: Option<tokio::sync::oneshot::Receiver<()>>,
}

impl Told {
    fn listen(agent: &Agent) -> Result<Self, Error> {
        let orphaned = matches!(agent.lifetime, Lifetime::Private { .. })
            .then(end_of_input)
            .transpose()
            .map_err(Error::Threads)?;
        Ok(Self {
            term: listen_to(SignalKind::terminate())?,
            int: listen_to(SignalKind::interrupt())?,
            hup: listen_to(SignalKind::hangup())?,
            orphaned,
        })
    }

    async fn until_stop(mut self, agent: Arc<Agent>) {
        let orphaned = async {
            match self.orphaned {
                Some(end) => drop(end.await),
                None => std::future::pending().await,
            }
            runs_over(&agent).await;
        };
        let asked = Notify::new();
        let reloads = one_after_the_other(&asked, || {
            let reloading = Arc::clone(&agent);
            // The outcome is logged and in `status`.
            move || drop(reloading.reload())
        });
        tokio::pin!(orphaned, reloads);
        loop {
            // To stop waits for no reload: one may wait for Vault.
            tokio::select! {
                _ = self.term.recv() => return,
                _ = self.int.recv() => return,
                () = &mut orphaned => return,
                () = &mut reloads => return,
                _ = self.hup.recv() => asked.notify_one(),
            }
        }
    }
}

fn listen_to(kind: SignalKind) -> Result<Signal, Error> {
    let what = "signals cannot be listened for";
    signal(kind).map_err(|source| Error::Control { what, source })
}

/// Does each `work` that is asked for on a thread of its own, for ever. However often it is asked for while one is under way,
/// there is one more after it.
async fn one_after_the_other<W: FnOnce() + Send + 'static>(asked: &Notify, work: impl Fn() -> W) {
    loop {
        asked.notified().await;
        // What was in force stays, as with one that an administrator asks for.
        if let Err(e) = tokio::task::spawn_blocking(work()).await {
            tracing::error!("a reload failed: {e}");
        }
    }
}

fn end_of_input() -> std::io::Result<tokio::sync::oneshot::Receiver<()>> {
    let (ended, end) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("input".to_owned())
        .spawn(move || {
            let mut byte = [0];
            while std::io::stdin().read(&mut byte).is_ok_and(|n| n > 0) {}
            let _ = ended.send(());
        })?;
    Ok(end)
}

/// Waits until every run has ended.
async fn runs_over(agent: &Agent) {
    while lock(&agent.enrolments).end_runs() > 0 {
        tokio::time::sleep(Duration::from_millis(200)).await;
    }
}

/// Tells the service manager how things are, and that they are, while every thread of the data plane answers. Ends when
/// a thread is no more that the agent cannot do without, and says which.
async fn heartbeat(agent: Arc<Agent>) -> &'static str {
    let watchdog = notify::watchdog_interval();
    let period = watchdog.map_or(STATUS, |limit| (limit / 3).min(STATUS));
    let mut ticks = tokio::time::interval(period);
    let mut pulse = Pulse::default();
    loop {
        ticks.tick().await;
        if let Some(what) = agent.ended() {
            return what;
        }
        let Some(beats) = lock(&agent.plane).as_ref().map(Plane::beats) else {
            continue;
        };
        if !pulse.felt(&beats, Instant::now(), (period * 2).max(SILENCE)) {
            tracing::error!("a thread of the data plane does not answer");
        } else if watchdog.is_some() {
            notify::watchdog();
        }
        // All that is governed is counted for it, which takes long where that is much: not on this thread.
        let telling = Arc::clone(&agent);
        drop(tokio::task::spawn_blocking(move || {
            notify::status(&describe(&telling));
        }));
    }
}

/// Makes room for queries whose datagrams were lost on their way to a worker.
async fn forget_lost_queries(agent: &Agent) {
    let mut ticks = tokio::time::interval(UNDER_WAY);
    loop {
        ticks.tick().await;
        let read = lock(&agent.plane).as_ref().map(Plane::names_read_up_to);
        let under_way = u64::try_from(UNDER_WAY.as_nanos()).unwrap_or(u64::MAX);
        let lost = read
            .unwrap_or(0)
            .min(since_boot())
            .saturating_sub(under_way);
        agent.shared.fence.forget_queries(lost);
    }
}

/// The workers' counters, and when each was last seen to go up.
#[derive(Debug, Default)]
struct Pulse(Vec<(u64, Option<Instant>)>);

impl Pulse {
    /// Whether every counter was seen to go up less than `patience` ago.
    fn felt(&mut self, beats: &[u64], now: Instant, patience: Duration) -> bool {
        self.0.resize(beats.len(), (u64::MAX, None));
        for (seen, beat) in self.0.iter_mut().zip(beats) {
            if seen.0 != *beat {
                *seen = (*beat, Some(now));
            }
        }
        self.0
            .iter()
            .all(|(_, at)| at.is_some_and(|at| now.saturating_duration_since(at) < patience))
    }
}

fn describe(agent: &Agent) -> String {
    let snapshot = agent.shared.live.load();
    let hash: String = snapshot.stamp.hash.chars().take(12).collect();
    let governed = agent.shared.fence.count_governed();
    let health = match (agent.shared.sink.healthy(), snapshot.policy.refusing()) {
        (true, None) => "",
        (true, Some(_)) => "; REFUSING ALL: the policy cannot be taken up, see `tollgate status`",
        (false, _) => "; REFUSING ALL: decisions cannot be written",
    };
    format!("policy {hash}; {governed} cgroups governed{health}")
}

/// Stops in order: no new connections, requests under way finish, decisions reach the disk. What is governed stays
/// fenced in, unless the agent was private and its run is over: whoever may send it a signal opens nothing by that.
///
/// Where a part of it has ended that must live nobody is waited for: as long nothing would look after the fence, nor start another agent.
fn stop(agent: Arc<Agent>, in_order: bool) -> Result<(), Error> {
    agent.namespaces.stop();
    let plane = lock(&agent.plane).take();
    // To drain may take a day, and whoever stops the agent may not wait for so long.
    agent.write_down();
    if let Some(plane) = plane.filter(|_| in_order) {
        notify::draining(agent.config.limits.drain);
        plane.drain();
    }
    agent.write_down();
    let stats = agent.log.close();
    if stats.queued > 0 || stats.dropped > 0 {
        tracing::error!(
            queued = stats.queued,
            dropped = stats.dropped,
            "decisions were lost"
        );
    }
    let _ = std::fs::remove_file(admin::client::socket_path(&agent.config.runtime_dir));
    match agent.lifetime.clone() {
        Lifetime::Service => tracing::info!("stopped; what is governed stays fenced in"),
        Lifetime::Private { directory } => {
            // Only where it is known that nobody is left: who is would be free.
            let left = lock(&agent.enrolments).end_runs();
            if left > 0 {
                let pins = agent.config.pin_dir.display().to_string();
                return Err(Error::Left { left, pins });
            }
            lift(agent);
            dirs::remove_private(&directory);
        }
    }
    Ok(())
}

/// Takes the fence down. Nothing may use it any more: if something does, it stays, which refuses and never opens.
fn lift(agent: Arc<Agent>) {
    let deadline = Instant::now() + CHANGES;
    while Arc::strong_count(&agent) > 1 && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(20));
    }
    let Some(agent) = Arc::into_inner(agent) else {
        return tracing::error!("the agent is still in use: its fence stays");
    };
    let Agent {
        shared, enrolments, ..
    } = agent;
    drop(enrolments);
    let fence = Arc::into_inner(shared).and_then(|shared| Arc::into_inner(shared.fence));
    match fence.map(crate::kernel::Fence::lift) {
        Some(Ok(())) => tracing::info!("stopped; the fence is lifted"),
        Some(Err(e)) => tracing::error!("the fence could not be lifted: {e}"),
        None => tracing::error!("the fence is still in use: it stays"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[tokio::test]
    async fn what_is_asked_for_while_it_is_done_is_done_once_more() {
        let (asked, done) = (Notify::new(), Arc::new(AtomicUsize::new(0)));
        let (finish, may_finish) = std::sync::mpsc::channel();
        let may_finish = Arc::new(std::sync::Mutex::new(may_finish));
        let works = one_after_the_other(&asked, || {
            let (done, may_finish) = (Arc::clone(&done), Arc::clone(&may_finish));
            move || {
                let _ = lock(&may_finish).recv();
                done.fetch_add(1, Ordering::SeqCst);
            }
        });
        let ask = async {
            let pause = || tokio::time::sleep(Duration::from_millis(50));
            asked.notify_one();
            // Under way, and whoever asked goes on.
            pause().await;
            for _ in 0..3 {
                asked.notify_one();
            }
            for expected in [1, 2, 2] {
                let _ = finish.send(());
                pause().await;
                let until = Instant::now() + Duration::from_secs(10);
                while done.load(Ordering::SeqCst) < expected && Instant::now() < until {
                    pause().await;
                }
                assert_eq!(done.load(Ordering::SeqCst), expected);
            }
        };
        tokio::select! {
            () = works => {}
            () = ask => {}
        }
    }

    #[test]
    fn one_silent_worker_is_noticed() {
        let (start, patience) = (Instant::now(), Duration::from_secs(3));
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut pulse = Pulse::default();
        assert!(pulse.felt(&[0, 0], at(0), patience));
        assert!(pulse.felt(&[1, 1], at(1), patience));
        assert!(pulse.felt(&[2, 1], at(2), patience));
        assert!(!pulse.felt(&[4, 1], at(4), patience));
        assert!(pulse.felt(&[5, 2], at(5), patience));
    }
}
