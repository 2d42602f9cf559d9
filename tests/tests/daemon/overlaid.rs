//! Executables as an overlay shows them: files of its own, with the content of those below.
use crate::outside::{GOVERNED, Outside, REACHED};
use crate::recognising::digest;
use crate::support::*;
use harness::eventually;
use harness::process::Ended;
use std::fs;
use std::io::BufReader;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::{Command, Stdio};

/// A view of the mounts in which an overlay of them stands over the tools.
struct View(Ended);

impl View {
    fn new(mounts: &str) -> Self {
        let mut command = Command::new("unshare");
        command.args([
            "-m",
            "sh",
            "-c",
            &format!("{mounts} && echo up && exec cat"),
        ]);
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut view = command.spawn().unwrap();
        let mut said = BufReader::new(view.stdout.take().unwrap());
        assert_eq!(line(&mut said), "up");
        Self(Ended(view))
    }

    /// What comes of it if this user asks by this program there.
    fn asked_by(&self, outside: &Outside, user: u32, program: &str) -> [u32; 2] {
        let mut command = Command::new("nsenter");
        command.args(["-m", "-t", &self.0.id().to_string(), "setpriv"]);
        command.args(["--reuid", &user.to_string(), "--clear-groups"]);
        command.args(["sh", "-c", &outside.ask(program)]);
        outside.came(&command.stdin(Stdio::null()).output().unwrap())
    }
}

struct Unmounted<'a>(&'a Path);

impl Drop for Unmounted<'_> {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

/// By `sha256` it is recognised wherever the overlay is seen; by `exe` where it stands over the path as the agent sees that.
#[test]
fn below_an_overlay_content_is_the_same_and_the_file_is_another() {
    let (mut place, outside) = (Place::new(), Outside::new());
    fs::set_permissions(&place.directory, fs::Permissions::from_mode(0o755)).unwrap();
    let [tools, empty] = ["tools", "empty"].map(|name| place.path(name));
    for layer in [&tools, &empty] {
        fs::create_dir(layer).unwrap();
    }
    let [named, content] = ["named", "content"].map(|name| {
        let to = tools.join(name);
        fs::copy("/usr/bin/curl", &to).unwrap();
        to
    });
    let mut bytes = fs::read(&content).unwrap();
    bytes.push(0); // Another content than the host's own curl.
    fs::write(&content, bytes).unwrap();
    let more = format!(
        "workloads:\n  named: {{ match: {{ exe: {} }} }}\n  content: {{ match: {{ user: 54323, sha256: {} }} }}\n",
        named.display(),
        digest(&content),
    );
    place.write_policy(&POLICY.replace("workloads:\n", &more));
    place.start();
    let [named, content] = [named, content].map(|path| path.display().to_string());
    let is_named = || (outside.asked_by(5, &named) == [GOVERNED; 2]).then_some(());
    assert!(eventually(START, is_named).is_some(), "not recognised");

    let (above, below) = (tools.display(), empty.display());
    let mounts = format!("mount -t overlay -o ro,lowerdir={above}:{below} overlay {above}");
    let view = View::new(&mounts);
    // Refused until the agent has looked, and nothing else.
    let becomes = |user, program: &str, wanted: u32, never: u32| {
        let done = eventually(START, || {
            let came = view.asked_by(&outside, user, program);
            assert!(!came.contains(&never), "{program} of {user}: {came:?}");
            (came == [wanted; 2]).then_some(())
        });
        assert!(done.is_some(), "{program} of {user} is not {wanted}");
    };
    becomes(54_323, &content, GOVERNED, REACHED);
    becomes(5, &named, REACHED, GOVERNED);
    assert_eq!(outside.asked_by(5, &named), [GOVERNED; 2]);

    // Where the agent sees it too, what lies at the path is what the overlay shows there.
    let mounted = Command::new("sh").args(["-c", &mounts]).status();
    let over = Unmounted(&tools);
    assert!(mounted.unwrap().success());
    assert!(eventually(START, is_named).is_some(), "not recognised");
    drop(over);
    assert_eq!(outside.asked_by(5, &named), [GOVERNED; 2]);
}
