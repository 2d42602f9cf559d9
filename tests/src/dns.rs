//! A DNS server (RFC 1035) that answers A and AAAA from a table, over UDP and TCP, and counts.
use crate::netns::Holder;
use anyhow::{Context as _, Result};
use std::collections::HashMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// What a name answers with.
#[derive(Debug, Clone)]
pub enum Answer {
    /// These addresses; none of the asked family is an empty answer.
    Addresses(Vec<IpAddr>),
    /// SERVFAIL.
    Failure,
    /// Nothing at all.
    Silence,
}

#[derive(Debug, Default)]
struct Table {
    names: Mutex<HashMap<String, Answer>>,
    queries: Mutex<HashMap<String, u64>>,
    total: AtomicU64,
    /// Seconds that answers say they may be kept.
    kept: AtomicU32,
    stop: AtomicBool,
}

/// The running server; dropping it stops it.
#[derive(Debug)]
pub struct Dns {
    table: Arc<Table>,
    threads: Vec<JoinHandle<()>>,
}

/// How soon the threads notice that they should end.
const TICK: Duration = Duration::from_millis(50);
/// Largest message taken over TCP: more than any query needs.
const LARGEST: usize = 4096;

impl Dns {
    /// Starts it on port 53 of `address` in the holder's network namespace.
    ///
    /// # Errors
    /// The port cannot be bound there.
    pub fn start(holder: &Holder, address: Ipv4Addr) -> Result<Self> {
        let table = Arc::new(Table::default());
        table.kept.store(1, Ordering::Relaxed);
        let (for_udp, for_tcp) = (table.clone(), table.clone());
        let threads = holder.enter(move || -> Result<Vec<JoinHandle<()>>> {
            let at = SocketAddr::from((address, 53));
            let udp = UdpSocket::bind(at).with_context(|| format!("DNS cannot bind {at}"))?;
            let tcp = TcpListener::bind(at).with_context(|| format!("DNS cannot bind {at}"))?;
            udp.set_read_timeout(Some(TICK))?;
            tcp.set_nonblocking(true)?;
            Ok(vec![
                std::thread::spawn(move || serve_udp(&udp, &for_udp)),
                std::thread::spawn(move || serve_tcp(&tcp, &for_tcp)),
            ])
        })??;
        Ok(Self { table, threads })
    }

    /// From now on `name` answers with this.
    pub fn set(&self, name: &str, answer: Answer) {
        let mut names = self
            .table
            .names
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        names.insert(name.to_ascii_lowercase(), answer);
    }

    /// From now on answers may be kept for so many seconds; one, until this is called.
    pub fn keep(&self, seconds: u32) {
        self.table.kept.store(seconds, Ordering::Relaxed);
    }

    /// Every name that was asked for so far, as it was asked for but in lower case, in order.
    pub fn asked(&self) -> Vec<String> {
        let queries = self
            .table
            .queries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let mut all: Vec<String> = queries.keys().cloned().collect();
        all.sort();
        all
    }

    /// Queries so far, for all names and types.
    pub fn queries(&self) -> u64 {
        self.table.total.load(Ordering::Relaxed)
    }

    /// Queries so far for one name.
    pub fn queries_for(&self, name: &str) -> u64 {
        let queries = self
            .table
            .queries
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        queries
            .get(&name.to_ascii_lowercase())
            .copied()
            .unwrap_or(0)
    }
}

impl Drop for Dns {
    fn drop(&mut self) {
        self.table.stop.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn serve_udp(socket: &UdpSocket, table: &Table) {
    let mut buffer = [0; LARGEST];
    while !table.stop.load(Ordering::Relaxed) {
        if let Ok((length, from)) = socket.recv_from(&mut buffer)
            && let Some(reply) = buffer.get(..length).and_then(|query| table.reply(query))
        {
            let _ = socket.send_to(&reply, from);
        }
    }
}

fn serve_tcp(listener: &TcpListener, table: &Table) {
    while !table.stop.load(Ordering::Relaxed) {
        match listener.accept() {
            Ok((stream, _)) => {
                let _ = answer_tcp(stream, table);
            }
            Err(_) => std::thread::sleep(TICK),
        }
    }
}

/// One query per connection: two bytes of length before each message (RFC 1035 §4.2.2).
fn answer_tcp(mut stream: TcpStream, table: &Table) -> Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    let mut length = [0; 2];
    stream.read_exact(&mut length)?;
    let mut query = vec![0; usize::from(u16::from_be_bytes(length)).min(LARGEST)];
    stream.read_exact(&mut query)?;
    if let Some(reply) = table.reply(&query) {
        stream.write_all(&u16::try_from(reply.len())?.to_be_bytes())?;
        stream.write_all(&reply)?;
    }
    Ok(())
}

/// The first question of a query.
struct Question<'a> {
    name: String,
    kind: u16,
    /// As it stood on the wire.
    wire: &'a [u8],
}

impl<'a> Question<'a> {
    fn read(query: &'a [u8]) -> Option<Self> {
        let mut at = 12;
        let mut labels = Vec::new();
        loop {
            let length = usize::from(*query.get(at)?);
            at += 1;
            match length {
                0 => break,
                1..=63 => {
                    let label = query.get(at..at + length)?;
                    labels.push(String::from_utf8_lossy(label).to_ascii_lowercase());
                    at += length;
                }
                _ => return None,
            }
        }
        let kind = u16::from_be_bytes([*query.get(at)?, *query.get(at + 1)?]);
        Some(Self {
            name: labels.join("."),
            kind,
            wire: query.get(12..at + 4)?,
        })
    }
}

impl Table {
    /// The reply to a query; `None` to what is not one, and to names that are silent.
    fn reply(&self, query: &[u8]) -> Option<Vec<u8>> {
        let question = Question::read(query)?;
        self.total.fetch_add(1, Ordering::Relaxed);
        let mut queries = self.queries.lock().unwrap_or_else(PoisonError::into_inner);
        *queries.entry(question.name.clone()).or_default() += 1;
        drop(queries);

        let names = self.names.lock().unwrap_or_else(PoisonError::into_inner);
        let (code, addresses) = match names.get(&question.name) {
            Some(Answer::Addresses(addresses)) => (0, addresses.clone()),
            Some(Answer::Failure) => (2, Vec::new()),
            Some(Answer::Silence) => return None,
            None => (3, Vec::new()),
        };
        let records: Vec<u8> = addresses
            .iter()
            .filter_map(|a| record(question.kind, *a, self.kept.load(Ordering::Relaxed)))
            .flatten()
            .collect();
        let count =
            u16::try_from(records.len() / if question.kind == 28 { 28 } else { 16 }).ok()?;

        let mut reply = query.get(..2)?.to_vec();
        reply.extend([0x85, 0x80 | code]); // an authoritative answer, recursion available
        reply.extend([0, 1]);
        reply.extend(count.to_be_bytes());
        reply.extend([0; 4]);
        reply.extend(question.wire);
        reply.extend(records);
        Some(reply)
    }
}

/// One resource record with a pointer to the question's name: 16 bytes for A, 28 for AAAA.
fn record(kind: u16, address: IpAddr, kept: u32) -> Option<Vec<u8>> {
    let data = match (kind, address) {
        (1, IpAddr::V4(v4)) => v4.octets().to_vec(),
        (28, IpAddr::V6(v6)) => v6.octets().to_vec(),
        _ => return None,
    };
    let mut record = vec![0xC0, 12];
    record.extend(kind.to_be_bytes());
    record.extend([0, 1]); // class IN
    record.extend(kept.to_be_bytes());
    record.extend(u16::try_from(data.len()).ok()?.to_be_bytes());
    record.extend(data);
    Some(record)
}
