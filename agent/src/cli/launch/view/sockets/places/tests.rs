#![allow(clippy::unwrap_used)]

use super::super::super::mounts;
use super::*;
use crate::kernel::local::listening;
use std::fs::{create_dir, hard_link, remove_file, rename};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixListener;

fn own(folder: &Path) -> Vec<Local> {
    let mut all = listening().unwrap();
    all.retain(|socket| Path::new(OsStr::from_bytes(&socket.name)).starts_with(folder));
    all
}

fn called(found: &Found) -> Vec<&str> {
    let names = found
        .at
        .values()
        .map(|(_, name)| name.file_name().unwrap().to_str().unwrap());
    names.collect()
}

#[test]
fn only_what_is_a_socket() {
    let folder = tempfile::tempdir().unwrap();
    let places = Places::of_this_view(mounts().unwrap());
    let name = folder.path().join("socket");
    let _socket = UnixListener::bind(&name).unwrap();
    let by_a_process = Path::new("/proc/self/root").join(name.strip_prefix("/").unwrap());
    for (path, is_socket) in [
        (&*name, true),
        (Path::new("/usr"), false),
        (folder.path(), false),
        (Path::new("/proc/self/root"), false),
        (&by_a_process, false),
        (Path::new("/no such file"), false),
        (Path::new("relative"), false),
    ] {
        let looked = places.look(path).unwrap();
        assert_eq!(matches!(looked, Looked::Socket(_)), is_socket, "{path:?}");
    }
}

#[test]
fn a_file_is_found_by_the_names_that_it_has_now() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    create_dir(at("there")).unwrap();
    symlink("there", at("link")).unwrap();
    let _linked = UnixListener::bind(at("control.X")).unwrap();
    hard_link(at("control.X"), at("control")).unwrap();
    remove_file(at("control.X")).unwrap();
    let _moved = UnixListener::bind(at("moving")).unwrap();
    rename(at("moving"), at("moved")).unwrap();
    // Another's takes its name.
    let _other = UnixListener::bind(at("moving")).unwrap();
    let _two = UnixListener::bind(at("two")).unwrap();
    hard_link(at("two"), at("second")).unwrap();
    let _elsewhere = UnixListener::bind(at("link/s")).unwrap();
    hard_link(at("there/s"), at("hidden")).unwrap();
    let _removed = UnixListener::bind(at("removed")).unwrap();
    remove_file(at("removed")).unwrap();
    let mut found = Vec::new();
    let mut places = Places::of_this_view(mounts().unwrap());
    for socket in own(folder.path()) {
        let told = places.find(&socket).unwrap();
        assert!(!told.unreachable);
        let names = called(&told)
            .into_iter()
            .map(str::to_owned)
            .collect::<Vec<_>>();
        found.push((names.join("|"), told.lost));
    }
    found.sort();
    let wanted = [
        ("", true),
        ("control", false),
        ("moved", false),
        ("moving", false),
        ("s", true),
        ("second|two", false),
    ];
    assert_eq!(found, wanted.map(|(names, lost)| (names.to_owned(), lost)));
}

#[test]
fn a_directory_that_is_full_keeps_nobody_from_being_found() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    for directory in ["full", "other"] {
        create_dir(at(directory)).unwrap();
    }
    let moved = |directory: &str| {
        let name = at(directory).join("before");
        let socket = UnixListener::bind(&name).unwrap();
        rename(&name, at(directory).join("moved")).unwrap();
        socket
    };
    let _sockets = ["full", "other"].map(moved);
    for entry in 0..EACH + 100 {
        std::fs::File::create(at("full").join(entry.to_string())).unwrap();
    }
    let mut places = Places::of_this_view(mounts().unwrap());
    places.entries = EACH * 8;
    let mut sockets = own(folder.path());
    sockets.sort();
    let [full, other] = &sockets[..] else {
        panic!("{sockets:?}")
    };
    places.find(full).unwrap();
    assert!(places.entries > 0);
    assert_eq!(called(&places.find(other).unwrap()), ["moved"]);
}

/// Each link goes round and round, and then on to the next.
#[test]
fn names_that_lead_round_and_round_keep_nobody_waiting() {
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    create_dir(at("a")).unwrap();
    create_dir(at("there")).unwrap();
    symlink("there", at("link")).unwrap();
    let round = "a/../".repeat(800);
    for link in 0..38 {
        let next = match link {
            0 => "there".to_owned(),
            link => format!("{}", link - 1),
        };
        symlink(format!("{round}{next}"), at(&link.to_string())).unwrap();
    }
    let binds = |n: usize| UnixListener::bind(at(&format!("there/{n}"))).unwrap();
    let _sockets: Vec<UnixListener> = (0..100).map(binds).collect();
    let mut sockets = own(folder.path());
    for socket in &mut sockets {
        let name = Path::new(OsStr::from_bytes(&socket.name)).file_name();
        let name = at("37").join(name.unwrap());
        socket.name = name.into_os_string().into_vec();
    }
    let begun = std::time::Instant::now();
    let mut places = Places::of_this_view(mounts().unwrap());
    for socket in &sockets {
        let found = places.find(socket).unwrap();
        assert!(found.at.is_empty() && found.lost);
    }
    assert!(begun.elapsed() < std::time::Duration::from_secs(1));
    let by_link = || places.look(&at("link/1")).unwrap();
    assert!(matches!(by_link(), Looked::Socket(_)));
    // What is left is bounded; a name without links needs none of it.
    places.steps.set(1);
    assert!(matches!(by_link(), Looked::Unreachable));
    let plain = places.look(&at("there/1")).unwrap();
    assert!(matches!(plain, Looked::Socket(_)));
}

#[test]
fn what_the_kernel_does_not_know_at_once_is_asked_again() {
    let asked = |after: usize| {
        let mut times = 0;
        again(MANY, || {
            times += 1;
            (times == after).then_some(times).ok_or(Errno::AGAIN)
        })
    };
    assert_eq!([1, 5, MANY].map(asked), [1, 5, MANY].map(Ok));
    assert_eq!(asked(MANY + 1), Err(Errno::AGAIN));
    let (mut times, says) = (0, Errno::NOENT);
    let told = again(MANY, || {
        times += 1;
        Err::<(), _>(says)
    });
    assert_eq!((told, times), (Err(says), 1));
}

/// Anybody can have a view of the mounts in which any name is his own socket's.
#[test]
fn a_name_alone_covers_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let name = folder.path().join("socket");
    let _socket = UnixListener::bind(&name).unwrap();
    let mut places = Places::of_this_view(mounts().unwrap());
    let mut socket = own(folder.path()).pop().unwrap();
    assert_eq!(called(&places.find(&socket).unwrap()), ["socket"]);
    let (device, inode) = socket.file.unwrap();
    for (file, lost) in [((device, inode ^ 1), true), ((u32::MAX, inode), false)] {
        socket.file = Some(file);
        let found = places.find(&socket).unwrap();
        assert_eq!((found.at.len(), found.lost), (0, lost));
    }
    // Where the kernel tells no more than the name, that has to do.
    socket.file = None;
    assert_eq!(called(&places.find(&socket).unwrap()), ["socket"]);
    let own = rustix::process::getuid().as_raw();
    assert_eq!(places.owner_of(&socket).unwrap(), Some(own));
}
