//! A real bulk transfer of nobody's: from nginx to curl over loopback, each on a processor of its own, in MB/s. One transfer differs
//! from the next by a tenth, as the two happen to wait for each other: many are made by turns, with hooks and without.
use super::{Hooks, figure, quartiles};
use serde_json::Value;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// Bytes of one: in less than half a second what the two ends happen to do, as they wait for each other, is not evened out.
const BYTES: u64 = 1 << 30;
/// Bytes of one that nobody measures.
const WARM: u64 = 1 << 27;
/// What attaching and detaching leaves the kernel to do is done by then.
const SETTLED: Duration = Duration::from_millis(50);
/// Of both families, by loopback's addresses.
const PLACES: [&str; 2] = ["127.0.0.1:18089", "[::1]:18089"];

/// The nginx that sends.
pub(super) struct Transfer {
    nginx: Child,
    directory: PathBuf,
}

/// MB/s of transfers by turns, over each family.
pub(super) struct Moved {
    with: [Vec<f64>; 2],
    without: [Vec<f64>; 2],
}

impl Transfer {
    pub(super) fn start() -> Self {
        let directory = std::env::temp_dir().join(format!("tollgate-bench-{}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("make a directory");
        let at = directory.display();
        let file = std::fs::File::create(directory.join("bulk")).expect("make a file");
        file.set_len(BYTES).expect("a long file");
        let [four, six] = PLACES;
        let settings = format!(
            "daemon off; worker_processes 1; worker_cpu_affinity 01; pid {at}/pid; user root;\n\
             error_log {at}/errors; events {{ worker_connections 16; }}\n\
             http {{ access_log off; sendfile on; server {{ listen {four}; listen {six}; root {at}; }} }}\n"
        );
        std::fs::write(directory.join("nginx.conf"), settings).expect("write");
        let mut nginx = Command::new("nginx");
        nginx.arg("-p").arg(&directory).arg("-e");
        nginx.arg(directory.join("errors")).arg("-c");
        nginx.arg(directory.join("nginx.conf"));
        let nginx = nginx.spawn().expect("start nginx (package nginx-light)");
        let transfer = Self { nginx, directory };
        let serves = || PLACES.iter().all(|at| speed(at, WARM).is_some());
        let serves = harness::eventually(Duration::from_secs(10), || serves().then_some(()));
        assert!(serves.is_some(), "nginx does not serve");
        transfer
    }

    /// Transfers by turns, with `hooks` and without.
    pub(super) fn by_turns(&self, turns: usize, hooks: &mut Hooks) -> Moved {
        let mut moved = Moved {
            with: [const { Vec::new() }; 2],
            without: [const { Vec::new() }; 2],
        };
        let once = |to: &mut [Vec<f64>; 2]| {
            std::thread::sleep(SETTLED);
            speed(PLACES[0], WARM).expect("a whole transfer, which warms up");
            for (to, at) in to.iter_mut().zip(PLACES) {
                to.push(speed(at, BYTES).expect("a whole transfer"));
            }
        };
        for _ in 0..turns {
            hooks.attach();
            once(&mut moved.with);
            hooks.detach();
            once(&mut moved.without);
        }
        moved
    }
}

impl Drop for Transfer {
    fn drop(&mut self) {
        // Its worker ends with it, told so: killed, the master would leave the worker behind.
        let pid = i32::try_from(self.nginx.id()).ok();
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        }
        let _ = self.nginx.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Moved {
    /// How many times as long it takes with the programs as without, and MB/s of both: by a name for each family.
    pub(super) fn figures(&self, names: [&str; 2]) -> Vec<Value> {
        let each = names.iter().zip(&self.with).zip(&self.without);
        each.flat_map(|((name, with), without)| {
            [
                figure(name, compare(with, without)),
                figure(&format!("{name}_with"), quartiles(with.clone())),
                figure(&format!("{name}_without"), quartiles(without.clone())),
            ]
        })
        .collect()
    }
}

/// MB/s of a transfer of so many bytes; `None` if it failed.
fn speed(at: &str, bytes: u64) -> Option<f64> {
    let last = std::thread::available_parallelism().map_or(1, usize::from) - 1;
    let output = Command::new("taskset")
        .args(["-c", &last.to_string(), "curl", "--silent", "--fail"])
        .args([
            "--output",
            "/dev/null",
            "--write-out",
            "%{speed_download} %{size_download}",
        ])
        .args(["--range", &format!("0-{}", bytes - 1)])
        .arg(format!("http://{at}/bulk"))
        .stderr(Stdio::null())
        .output()
        .expect("start taskset and curl");
    let said = String::from_utf8_lossy(&output.stdout);
    let (speed, size) = said.split_once(' ')?;
    let whole = output.status.success() && size == bytes.to_string();
    let speed: f64 = speed.parse().ok()?;
    whole.then_some(speed / 1e6)
}

/// How many times as long with as without, by the mean of turns without the tenth at either end, and two standard errors of that
/// to either side.
fn compare(with: &[f64], without: &[f64]) -> [f64; 3] {
    let turns = with.iter().zip(without);
    let mut each: Vec<f64> = turns.map(|(with, without)| (without / with).ln()).collect();
    each.sort_by(f64::total_cmp);
    let ends = each.len() / 10;
    let each = &each[ends..each.len() - ends];
    let count = each.len() as f64;
    let mean = each.iter().sum::<f64>() / count;
    let variance = each.iter().map(|one| (one - mean).powi(2)).sum::<f64>() / (count - 1.0);
    // A normal distribution without its ends has less than half of its variance.
    let error = (variance * 2.0 / count).sqrt();
    [0.0, -2.0, 2.0].map(|errors| (mean + errors * error).exp())
}
