//! The agent's side of the admin socket. Bounded in requests, bytes and time; it never touches the data plane.
use super::super::agent::{Agent, lock};
use super::super::cgroups;
use super::super::error::Error;
use super::super::explain;
use super::client::socket_path;
use super::wire::{
    DECISIONS, Envelope, Fault, FaultKind, Flow, KINDS, REQUEST_BYTES, Reply, Request, VERSION,
};
use crate::audit::{self, Filter};
use crate::kernel::has_peer_ended;
use std::collections::HashSet;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader, BufWriter};
use tokio::net::unix::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::Semaphore;
use tokio::time::timeout;

/// Connections served at one time; more wait in the backlog.
const CONNECTIONS: usize = 64;
/// For a caller to send its request.
const REQUEST: Duration = Duration::from_secs(5);
/// For a caller to take a reply.
const TAKE: Duration = Duration::from_secs(10);
/// Decisions sent where the caller gives no limit.
const DECISIONS_UNASKED: usize = 1_000;

type Out = BufWriter<OwnedWriteHalf>;
type Served = Result<Vec<Reply>, Fault>;

/// Binds the socket: 0600, in place of one that a dead agent left.
pub(in super::super) fn bind(
    runtime_dir: &Path,
) -> Result<std::os::unix::net::UnixListener, Error> {
    let path = socket_path(runtime_dir);
    let fail = |source| Error::Admin {
        path: path.display().to_string(),
        source,
    };
    // The runtime directory is locked: whoever made this socket is gone.
    match std::fs::remove_file(&path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(fail(e)),
        _ => {}
    }
    let listener = std::os::unix::net::UnixListener::bind(&path).map_err(fail)?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).map_err(fail)?;
    Ok(listener)
}

/// Serves the socket, for ever.
pub(in super::super) async fn serve(listener: UnixListener, agent: Arc<Agent>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else {
            return;
        };
        match listener.accept().await {
            Ok((stream, _)) => {
                let agent = Arc::clone(&agent);
                tokio::spawn(async move {
                    if let Err(e) = connection(stream, agent).await {
                        tracing::debug!("admin connection: {e}");
                    }
                    drop(place);
                });
            }
            Err(e) => {
                tracing::warn!("admin socket: {e}");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

/// Who asks.
#[derive(Debug, Clone, Copy)]
struct Caller {
    pid: Option<i32>,
}

async fn connection(stream: UnixStream, agent: Arc<Agent>) -> std::io::Result<()> {
    let credentials = stream.peer_cred()?;
    let caller = Caller {
        pid: credentials.pid(),
    };
    // Judged at once, by what its id says: who takes time to ask could end, and have another be given that.
    let (asked, uid) = (Arc::clone(&agent), credentials.uid());
    let admitted = tokio::task::spawn_blocking(move || admitted(&asked, uid, caller)).await;
    let admitted = admitted.unwrap_or_else(|_| Err(failed()));
    let admitted = match has_peer_ended(&stream) {
        Ok(false) => admitted,
        _ => Err(gone()),
    };
    let (read, write) = stream.into_split();
    let mut out = BufWriter::new(write);
    let mut input = BufReader::new(read);
    // Read before anything is refused: an answer to a caller who still writes would be lost to it.
    let request = read_request(&mut input, REQUEST).await;
    let request = match admitted.and(request) {
        Ok(request) => request,
        Err(fault) => return send(&mut out, &Reply::Fault(fault)).await,
    };
    if let Request::Decisions {
        filter,
        follow: true,
    } = request
    {
        return follow(&mut input, &mut out, &agent, filter).await;
    }
    // The disk, the kernel's maps and the compiler are slow: not on this thread.
    let served = tokio::task::spawn_blocking(move || serve_one(&agent, request, caller)).await;
    let replies = served.unwrap_or_else(|_| Err(failed()));
    match replies {
        Ok(replies) => {
            for reply in &replies {
                send(&mut out, reply).await?;
            }
            match replies.last().is_some_and(Reply::is_final) {
                true => Ok(()),
                false => send(&mut out, &Reply::End).await,
            }
        }
        Err(fault) => send(&mut out, &Reply::Fault(fault)).await,
    }
}

fn failed() -> Fault {
    fault(
        FaultKind::Failed,
        "the agent failed on this request: see its log",
    )
}

fn gone() -> Fault {
    fault(
        FaultKind::Forbidden,
        "the agent cannot tell who asks: the caller is gone or hidden",
    )
}

/// Root or the agent's own user, and nobody who is governed: no workload may speak for itself here. Blocks.
fn admitted(agent: &Agent, uid: u32, caller: Caller) -> Result<(), Fault> {
    if uid != 0 && uid != rustix::process::geteuid().as_raw() {
        return Err(fault(
            FaultKind::Forbidden,
            "only root may talk to the agent: run this with sudo",
        ));
    }
    let pid = caller.pid.and_then(|pid| u32::try_from(pid).ok());
    let known = pid.map(|pid| (pid, cgroups::of_process(pid).unwrap_or_default()));
    let Some((pid, above)) = known.filter(|(_, above)| !above.is_empty()) else {
        return Err(gone());
    };
    let fence = &agent.shared.fence;
    let mut above = above.iter().map(Path::new);
    if fence.workload_of(pid).is_some() || above.any(|cgroup| fence.is_governed(cgroup)) {
        return Err(fault(
            FaultKind::Forbidden,
            "a governed process may not talk to the agent: ask from outside",
        ));
    }
    Ok(())
}

/// Reads the one line of a request.
pub(super) async fn read_request<R: tokio::io::AsyncBufRead + Unpin>(
    input: &mut R,
    patience: Duration,
) -> Result<Request, Fault> {
    let mut line = Vec::new();
    let mut bounded = input.take(REQUEST_BYTES);
    match timeout(patience, bounded.read_until(b'\n', &mut line)).await {
        Err(_) => {
            let told = format!("no request within {patience:?}");
            return Err(fault(FaultKind::Usage, &told));
        }
        Ok(Err(e)) => {
            return Err(fault(
                FaultKind::Usage,
                &format!("request not readable: {e}"),
            ));
        }
        Ok(Ok(_)) if line.last() != Some(&b'\n') => {
            let told = format!("a request is one line of at most {REQUEST_BYTES} bytes");
            return Err(fault(FaultKind::Usage, &told));
        }
        Ok(Ok(_)) => {}
    }
    parse(&line)
}

fn parse(line: &[u8]) -> Result<Request, Fault> {
    /// Any version's envelope.
    #[derive(serde::Deserialize)]
    struct Versioned {
        v: u32,
    }
    let wrong = |e: serde_json::Error| fault(FaultKind::Usage, &format!("not a request: {e}"));
    let Versioned { v } = serde_json::from_slice(line).map_err(wrong)?;
    if v != VERSION {
        let told = format!(
            "this agent speaks version {VERSION} of the admin protocol, the caller {v}: restart the agent after an upgrade"
        );
        return Err(fault(FaultKind::Usage, &told));
    }
    let envelope: Envelope = serde_json::from_slice(line).map_err(wrong)?;
    Ok(envelope.request)
}

fn fault(kind: FaultKind, message: &str) -> Fault {
    Fault {
        kind,
        message: message.to_owned(),
    }
}

async fn send(out: &mut Out, reply: &Reply) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(reply)?;
    line.push(b'\n');
    let sent = async {
        out.write_all(&line).await?;
        out.flush().await
    };
    timeout(TAKE, sent)
        .await
        .unwrap_or_else(|_| Err(std::io::ErrorKind::TimedOut.into()))
}

/// Everything but following. Blocks.
fn serve_one(agent: &Agent, request: Request, caller: Caller) -> Served {
    match request {
        Request::Status => Ok(vec![Reply::Status(Box::new(agent.status()))]),
        Request::Flows => flows(agent),
        Request::Workloads => workloads(agent),
        Request::Accounts => Ok(accounts(agent)),
        Request::Usage => Ok(agent.usage().into_iter().map(Reply::Usage).collect()),
        Request::Decisions { filter, .. } => decisions(agent, filter, DECISIONS_UNASKED),
        Request::Tally { filter } => {
            let tallied = agent.log.tally(&filter, KINDS);
            let (counts, kinds) = tallied.map_err(|e| fault(FaultKind::Failed, &e.to_string()))?;
            let kinds = kinds.into_iter().map(Reply::Repeated);
            Ok(kinds.chain([Reply::Counts(counts)]).collect())
        }
        Request::Reload => agent.reload().map(|reply| vec![reply]),
        Request::Explain(question) => {
            let snapshot = agent.shared.live.load_full();
            let explained = explain::explain(&snapshot.policy, &question);
            let explained = explained.map_err(|e| fault(FaultKind::Usage, &e.to_string()))?;
            Ok(vec![Reply::Explained(Box::new(explained))])
        }
        Request::Enrol { workload } => {
            let snapshot = agent.shared.live.load_full();
            let mut enrolments = lock(&agent.enrolments);
            let workload = workload.as_deref();
            let run =
                enrolments.start_run(&snapshot.policy, workload, caller.pid, &agent.config)?;
            Ok(vec![Reply::Enrolled(run)])
        }
        Request::Release { cgroup_id } => {
            let left = lock(&agent.enrolments).end_run(cgroup_id)?;
            Ok(vec![Reply::Released { left }])
        }
        Request::Ca => match agent.ca() {
            Ok(ca) => Ok(vec![Reply::Ca(ca)]),
            Err(e) => Err(fault(FaultKind::Failed, &e.to_string())),
        },
        Request::RotateCa { overlap } => agent
            .rotate_ca(Duration::from_secs(overlap))
            .map(|reply| vec![reply]),
    }
}

fn workloads(agent: &Agent) -> Served {
    let fence = &agent.shared.fence;
    let processes = fence.governed_processes().map_err(|e| {
        fault(
            FaultKind::Failed,
            &format!("the governed processes cannot be listed: {e}"),
        )
    })?;
    let cgroups = fence.governed().into_iter().map(Reply::Workload);
    let earlier = agent.earlier().into_iter().map(Reply::Earlier);
    let enrolments = lock(&agent.enrolments);
    let recognised = processes
        .into_iter()
        .map(|process| Reply::Process(enrolments.recognised(process)));
    Ok(cgroups.chain(recognised).chain(earlier).collect())
}

/// Of workloads of policies before, which have a place in the kernel still, those that anything was counted of.
fn accounts(agent: &Agent) -> Vec<Reply> {
    let snapshot = agent.shared.live.load_full();
    let workloads = snapshot.policy.workloads().iter();
    let names: HashSet<&str> = workloads.map(|workload| &*workload.name).collect();
    let all = agent.counters.all(&agent.shared.fence).into_iter();
    let shown = all.filter(|one| names.contains(&*one.workload) || !one.is_zero());
    shown.map(Reply::Account).collect()
}

fn flows(agent: &Agent) -> Served {
    let ended = agent.seen.ended().into_iter();
    let live = agent.shared.fence.flows();
    let live = live.map_err(|e| fault(FaultKind::Failed, &e.to_string()))?;
    let all = ended.chain(live.into_iter().map(Flow::from));
    Ok(all.map(|flow| Reply::Flow(Box::new(flow))).collect())
}

/// The newest that match, oldest first.
fn decisions(agent: &Agent, mut filter: Filter, unasked: usize) -> Served {
    filter.limit = Some(filter.limit.unwrap_or(unasked).min(DECISIONS));
    let found = agent
        .log
        .query(&filter)
        .map_err(|e| fault(FaultKind::Failed, &e.to_string()))?;
    Ok(found.into_iter().rev().map(Reply::Decision).collect())
}

/// Sends the last decisions and then each new one, until the caller hangs up.
async fn follow(
    input: &mut BufReader<OwnedReadHalf>,
    out: &mut Out,
    agent: &Arc<Agent>,
    filter: Filter,
) -> std::io::Result<()> {
    // Subscribed before the query: a decision in between is seen twice, and left out here the second time.
    let mut feed = agent.log.subscribe();
    let (asked, wanted) = (Arc::clone(agent), filter.clone());
    let queried = tokio::task::spawn_blocking(move || decisions(&asked, wanted, 0)).await;
    let replies = match queried.unwrap_or_else(|_| {
        Err(fault(
            FaultKind::Failed,
            "the query failed: see the agent's log",
        ))
    }) {
        Ok(replies) => replies,
        Err(fault) => return send(out, &Reply::Fault(fault)).await,
    };
    let mut sent = HashSet::new();
    for reply in &replies {
        if let Reply::Decision(record) = reply {
            sent.insert(record.id);
        }
        send(out, reply).await?;
    }
    let mut hangup = [0];
    loop {
        let next = tokio::select! {
            next = feed.next() => next,
            _ = input.read(&mut hangup) => return Ok(()),
        };
        match next {
            None => return send(out, &Reply::End).await,
            Some(audit::Live::Missed(count)) => send(out, &Reply::Missed(count)).await?,
            Some(audit::Live::Record(record)) => {
                if filter.matches(&record) && !sent.remove(&record.id) {
                    send(out, &Reply::Decision(record)).await?;
                }
            }
        }
    }
}
