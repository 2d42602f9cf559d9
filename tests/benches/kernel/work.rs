//! What is measured: calls of one thread on one processor, one after the other. The same thread is also who is called, by
//! turns: on loopback its calls do the work of both ends, and nobody who waits has to be woken.
use rustix::thread::{CpuSet, sched_setaffinity};
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::time::Duration;

/// Calls in a batch, and batches: of datagram sockets' connects.
const DATAGRAMS: (usize, usize) = (1_000, 100);
/// The same for connections.
const CONNECTIONS: (usize, usize) = (1, 12_000);
/// The same for sends. What a batch sends is read after it, and fits the buffers.
const SENDS: (usize, usize) = (50, 1_000);
/// The same for writes of a bulk transfer, each read before the next.
const WRITES: (usize, usize) = (8, 500);
/// Bytes of such a write.
const BULK: usize = 1 << 17;

/// Measures bulk transfers over one connection, once for each line that it is told: nanoseconds of CPU for a kilobyte. What a process
/// has of memory and caches differs more from the next one's than what is measured.
pub(super) fn bulk() {
    alone_on_the_last();
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let target = listener.local_addr().expect("bound");
    let mut both = Pair::new(&listener, target);
    both.bulk();
    for _ in std::io::stdin().lines() {
        println!("{}", both.bulk());
    }
}

/// Measures, and prints nanoseconds of CPU of a call of each kind. What it connects to leads to the listener that it has for
/// its standard input.
pub(super) fn run(arguments: &[String]) {
    let target: SocketAddr = arguments[0].parse().expect("an address");
    alone_on_the_last();
    let listener = std::io::stdin()
        .as_fd()
        .try_clone_to_owned()
        .expect("a listener");
    let listener = TcpListener::from(listener);
    let [socket, connect, close] = connections(&listener, target);
    let mut pair = Pair::new(&listener, target);
    let costs = [datagrams(target), socket, connect, close, pair.sends()];
    println!("{}", serde_json::to_string(&costs).expect("numbers"));
}

/// Keeps this thread on the last processor: the first has the interrupts, mostly.
fn alone_on_the_last() {
    let mut set = CpuSet::new();
    set.set(std::thread::available_parallelism().map_or(1, usize::from) - 1);
    sched_setaffinity(None, &set).expect("pin to a processor");
}

/// Nanoseconds of CPU that this thread has had.
fn spent() -> f64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// What `work` takes, nanoseconds.
fn timed(work: impl FnOnce()) -> f64 {
    let before = spent();
    work();
    spent() - before
}

/// Of all batches' costs, the one that a quarter is below: what disturbs only ever adds.
fn usual(mut each: Vec<f64>) -> f64 {
    each.sort_by(f64::total_cmp);
    each[each.len() / 4]
}

/// To loopback, of the same family as `target`.
fn datagrams(target: SocketAddr) -> f64 {
    let socket = Socket::new(Domain::for_address(target), Type::DGRAM, None).expect("a socket");
    let loopback: IpAddr = match target.is_ipv4() {
        true => Ipv4Addr::LOCALHOST.into(),
        false => Ipv6Addr::LOCALHOST.into(),
    };
    let to: SockAddr = SocketAddr::new(loopback, 9).into();
    let (count, batches) = DATAGRAMS;
    let batch = || {
        let all = timed(|| (0..count).for_each(|_| socket.connect(&to).expect("connect")));
        all / count as f64
    };
    usual((0..batches).map(|_| batch()).collect())
}

/// What making a socket costs, connecting it, and closing it.
fn connections(listener: &TcpListener, target: SocketAddr) -> [f64; 3] {
    let to: SockAddr = target.into();
    let (count, batches) = CONNECTIONS;
    let mut costs = [const { Vec::new() }; 3];
    for _ in 0..batches {
        let mut sockets = Vec::with_capacity(count);
        let made = timed(|| {
            let new =
                || Socket::new(Domain::for_address(target), Type::STREAM, None).expect("a socket");
            sockets.extend((0..count).map(|_| new()));
        });
        for socket in &sockets {
            // Gone at once when closed: its port does not wait.
            socket.set_linger(Some(Duration::ZERO)).expect("linger");
        }
        let connect = |socket: &Socket| socket.connect(&to).expect("connect");
        let connected = timed(|| sockets.iter().for_each(connect));
        let accept = || listener.accept().expect("accept");
        let accepted: Vec<_> = (0..count).map(|_| accept()).collect();
        let closed = timed(|| drop(sockets));
        drop(accepted);
        for (costs, all) in costs.iter_mut().zip([made, connected, closed]) {
            costs.push(all / count as f64);
        }
    }
    costs.map(usual)
}

/// A connection's two ends.
struct Pair {
    near: TcpStream,
    far: TcpStream,
    read: Vec<u8>,
}

impl Pair {
    fn new(listener: &TcpListener, target: SocketAddr) -> Self {
        let near = TcpStream::connect(target).expect("connect");
        let (far, _) = listener.accept().expect("accept");
        near.set_nodelay(true).expect("no delay");
        let read = vec![0; BULK];
        Self { near, far, read }
    }

    fn sends(&mut self) -> f64 {
        let (count, batches) = SENDS;
        let mut batch = || {
            let mut send = || self.near.write_all(&[b'x'; 100]).expect("send");
            let all = timed(|| (0..count).for_each(|_| send()));
            let sent = &mut self.read[..count * 100];
            self.far.read_exact(sent).expect("read");
            all / count as f64
        };
        usual((0..batches).map(|_| batch()).collect())
    }

    /// For a kilobyte, written and read.
    fn bulk(&mut self) -> f64 {
        let (count, batches) = WRITES;
        let bytes = vec![b'x'; BULK];
        for end in [&self.near, &self.far] {
            let end = socket2::SockRef::from(end);
            end.set_send_buffer_size(4 * BULK).expect("a large buffer");
            end.set_recv_buffer_size(4 * BULK).expect("a large buffer");
        }
        let mut turn = || {
            self.near.write_all(&bytes).expect("write");
            self.far.read_exact(&mut self.read).expect("read");
        };
        let mut batch = || {
            let all = timed(|| (0..count).for_each(|_| turn()));
            all / (count * BULK) as f64 * 1e3
        };
        usual((0..batches).map(|_| batch()).collect())
    }
}
