//! What is measured: calls of one process, one after the other.
use rustix::time::{ClockId, clock_gettime};
use socket2::{Domain, SockAddr, Socket, Type};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::Duration;

/// Datagram sockets' connects in a batch, and batches.
const DATAGRAMS: (usize, usize) = (2_000, 20);
/// The same for connections.
const CONNECTIONS: (usize, usize) = (50, 30);
/// The same for sends.
const SENDS: (usize, usize) = (500, 30);
/// Bytes of a bulk transfer, and of each write.
const BULK: (usize, usize) = (1 << 30, 1 << 18);

/// Measures, and prints nanoseconds of CPU: of a datagram socket's connect, a connect, a send, and a bulk kilobyte.
pub(super) fn run(arguments: &[String]) {
    let target: SocketAddr = arguments[0].parse().expect("an address");
    let bulk = match arguments.get(1) {
        Some(_) => bulk(),
        None => 0.0,
    };
    let costs = [datagrams(), connections(target), sends(target), bulk];
    println!("{}", serde_json::to_string(&costs).expect("numbers"));
}

/// Accepts whoever comes and reads what they send, now and then.
pub(super) fn serve(listener: &TcpListener) {
    for stream in listener.incoming() {
        let Ok(mut stream) = stream else { continue };
        std::thread::spawn(move || {
            let mut read = vec![0; 1 << 20];
            while stream.read(&mut read).is_ok_and(|length| length > 0) {
                std::thread::sleep(Duration::from_millis(2));
            }
        });
    }
}

/// Nanoseconds that a clock of CPU time shows.
fn spent(clock: ClockId) -> f64 {
    let time = clock_gettime(clock);
    time.tv_sec as f64 * 1e9 + time.tv_nsec as f64
}

/// The median over batches of what one call costs.
fn median((count, batches): (usize, usize), mut batch: impl FnMut(usize) -> f64) -> f64 {
    let mut each: Vec<f64> = (0..batches).map(|_| batch(count) / count as f64).collect();
    each.sort_by(f64::total_cmp);
    each[each.len() / 2]
}

fn datagrams() -> f64 {
    let socket = Socket::new(Domain::IPV4, Type::DGRAM, None).expect("a socket");
    let to: SockAddr = "127.0.0.1:9"
        .parse::<SocketAddr>()
        .expect("an address")
        .into();
    median(DATAGRAMS, |count| {
        let before = spent(ClockId::ThreadCPUTime);
        for _ in 0..count {
            socket.connect(&to).expect("connect");
        }
        spent(ClockId::ThreadCPUTime) - before
    })
}

fn connections(target: SocketAddr) -> f64 {
    let to: SockAddr = target.into();
    median(CONNECTIONS, |count| {
        let sockets: Vec<Socket> = (0..count)
            .map(|_| {
                let socket = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
                // Gone at once when closed: its port does not wait.
                socket.set_linger(Some(Duration::ZERO)).expect("linger");
                socket
            })
            .collect();
        let before = spent(ClockId::ThreadCPUTime);
        for socket in &sockets {
            socket.connect(&to).expect("connect");
        }
        spent(ClockId::ThreadCPUTime) - before
    })
}

fn sends(target: SocketAddr) -> f64 {
    let mut stream = TcpStream::connect(target).expect("connect");
    stream.set_nodelay(true).expect("no delay");
    median(SENDS, |count| {
        // What the last batch sent is read meanwhile.
        std::thread::sleep(Duration::from_millis(8));
        let before = spent(ClockId::ThreadCPUTime);
        for _ in 0..count {
            stream.write_all(&[b'x'; 100]).expect("send");
        }
        spent(ClockId::ThreadCPUTime) - before
    })
}

/// A process's whole CPU time for a kilobyte from one of its threads to another.
fn bulk() -> f64 {
    let (size, chunk) = BULK;
    let listener = TcpListener::bind("127.0.0.1:0").expect("bind");
    let to = listener.local_addr().expect("bound");
    let sender = std::thread::spawn(move || {
        let mut stream = TcpStream::connect(to).expect("connect");
        let bytes = vec![b'x'; chunk];
        for _ in 0..size / chunk {
            stream.write_all(&bytes).expect("send");
        }
    });
    let (mut stream, _) = listener.accept().expect("accept");
    let before = spent(ClockId::ProcessCPUTime);
    let mut read = vec![0; chunk];
    while stream.read(&mut read).expect("read") > 0 {}
    let spent = spent(ClockId::ProcessCPUTime) - before;
    sender.join().expect("the sender");
    spent / (size as f64 / 1e3)
}
