//! Servers of both families that only who is not governed reaches, and what came of asking them.
use crate::support::text;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener};
use std::process::Output;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// What comes of asking: there, by the agent, or by the kernel.
pub(crate) const REACHED: u32 = 204;
pub(crate) const GOVERNED: u32 = 403;
pub(crate) const REFUSED: u32 = 7;

pub(crate) struct Outside {
    pub(crate) addresses: [SocketAddr; 2],
    reached: Arc<AtomicUsize>,
}

impl Outside {
    pub(crate) fn new() -> Self {
        let reached = Arc::new(AtomicUsize::new(0));
        let addresses = ["127.0.0.1:0", "[::1]:0"].map(|at| {
            let server = TcpListener::bind(at).unwrap();
            let (address, count) = (server.local_addr().unwrap(), Arc::clone(&reached));
            std::thread::spawn(move || {
                for mut stream in server.incoming().filter_map(Result::ok) {
                    count.fetch_add(1, Ordering::SeqCst);
                    std::thread::spawn(move || {
                        let _ = stream.read(&mut [0; 1024]);
                        let _ = stream
                            .write_all(b"HTTP/1.1 204 No Content\r\nconnection: close\r\n\r\n");
                    });
                }
            });
            address
        });
        Self { addresses, reached }
    }

    /// A shell's script that has curl, or what runs it, ask both at once.
    pub(crate) fn ask(&self, curl: &str) -> String {
        let [four, six] = self.addresses;
        format!(
            "for at in {four} {six}; do {{
            said=$({curl} -sg -m 5 -o /dev/null -w '%{{http_code}}' http://$at/); echo $at $? $said; }} & done; wait"
        )
    }

    /// What came of it over IPv4 and IPv6: the status, or curl's own code.
    pub(crate) fn came(&self, output: &Output) -> [u32; 2] {
        let said = text(&output.stdout);
        let came = self.addresses.map(|at| {
            let mut lines = said.lines();
            let one = lines.find_map(|line| line.strip_prefix(&format!("{at} ")));
            let one = one.unwrap_or_else(|| panic!("{at}: {output:?}"));
            let (code, status) = one.split_once(' ').unwrap();
            let number = if code == "0" { status } else { code };
            number.parse().unwrap()
        });
        // Who is cut off after it got there has got there.
        let reached = self.reached.swap(0, Ordering::SeqCst);
        let said = came.iter().filter(|came| **came == REACHED).count();
        assert_eq!(reached, said, "{output:?}");
        came
    }
}
