//! Executables that are not what they seem to be: shown by an overlay, or run by an interpreter.
use crate::rules::{REFUSED, Scene, by_tool, connecting, copy, exec_within, state};
use crate::support::*;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use std::ffi::CString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use tollgate::kernel::Event;

/// A filesystem that is mounted there until this is dropped.
struct Mounted(PathBuf);

impl Mounted {
    fn at(point: PathBuf, kind: &str, options: Option<&str>) -> Self {
        let options = options.map(|text| CString::new(text).unwrap());
        std::fs::create_dir_all(&point).unwrap();
        let mounted = mount(kind, &point, kind, MountFlags::empty(), options.as_deref());
        mounted.unwrap_or_else(|error| panic!("{kind}: {error}"));
        Self(point)
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

/// An overlay has inodes of its own: by that the file it shows is another one than that below, as a copy is.
#[test]
fn what_an_overlay_shows_is_another_file() {
    let _module = Module::loaded("overlay");
    let folder = tempfile::tempdir().unwrap();
    let [below, empty] = ["below", "empty"].map(|name| folder.path().join(name));
    for layer in [&below, &empty] {
        std::fs::create_dir(layer).unwrap();
    }
    let tool = copy(&below, "tool");
    let mut scene = Scene::new(&by_tool());
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    let exec = |program: &Path| exec_within(&within, program, &scene);
    fence.know(&state(&tool), Some(3)).unwrap();
    let direct = exec(&tool);
    assert_eq!(scene.whose(&direct).as_deref(), Some("tools"));

    // Over the directory itself, so that even the path is the same.
    let layers = format!("lowerdir={}:{}", below.display(), empty.display());
    let overlay = Mounted::at(below.clone(), "overlay", Some(&layers));
    let lower = state(&tool).inode;
    assert_eq!(python_outside(&scene.script(&direct)), REFUSED);
    let mut shown = None;
    crate::refuse::events(fence, |events| {
        shown = events.iter().find_map(|event| match event {
            Event::Unseen { file, .. } if file.inode == lower => Some(*file),
            _ => None,
        });
        shown.is_some()
    });
    // Whatever the agent finds it to be, by what is in it or by where it lies.
    fence.know(&shown.unwrap(), None).unwrap();
    assert_eq!(scene.whose(&direct), None, "another file");
    fence.know(&shown.unwrap(), Some(3)).unwrap();
    assert_eq!(scene.whose(&direct).as_deref(), Some("tools"));
    drop(overlay);
    assert_ne!(state(&tool).device, shown.unwrap().device);
    assert_eq!(scene.whose(&direct).as_deref(), Some("tools"));
    scene.stand.lift();
    eventually("nobody steers it", || scene.whose(&direct).is_none());
}

/// A kind of file that the kernel has an interpreter run, by its name's end.
struct Interpreted {
    entry: PathBuf,
    _mounted: Mounted,
}

impl Interpreted {
    fn by(interpreter: &Path, end: &str, folder: &Path) -> Self {
        let mounted = Mounted::at(folder.join("binfmt"), "binfmt_misc", None);
        let kind = format!(":{end}:E::{end}::{}:", interpreter.display());
        std::fs::write(mounted.0.join("register"), kind).unwrap();
        Self {
            entry: mounted.0.join(end),
            _mounted: mounted,
        }
    }
}

impl Drop for Interpreted {
    fn drop(&mut self) {
        let _ = std::fs::write(&self.entry, "-1");
    }
}

/// As by `#!`: a file for which the kernel knows an interpreter is not what runs then, but that is.
#[test]
fn what_an_interpreter_is_registered_for_is_the_interpreter() {
    let _module = Module::loaded("binfmt_misc");
    let folder = tempfile::tempdir().unwrap();
    let (tool, same) = (copy(folder.path(), "tool"), copy(folder.path(), "same"));
    let mut scene = Scene::new(&by_tool());
    let fence = scene.stand.fence();
    let within = scene.of_tools();
    fence.know(&state(&tool), Some(3)).unwrap();
    let end = unique().replace("tollgate-test", "tg");
    let program = folder.path().join(format!("program.{end}"));
    std::fs::write(&program, connecting(&scene)).unwrap();
    std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
    let body = exec_within(&within, &program, &scene);

    let by_tool = Interpreted::by(&tool, &end, folder.path());
    assert_eq!(scene.whose(&body).as_deref(), Some("tools"));
    drop(by_tool);
    // Nor is it of its own class, then.
    fence.know(&state(&program), Some(3)).unwrap();
    let by_same = Interpreted::by(&same, &end, folder.path());
    assert_eq!(scene.whose(&body), None, "by another one");
    drop(by_same);
    let by_tool = Interpreted::by(&tool, &end, folder.path());
    assert_eq!(scene.whose(&body).as_deref(), Some("tools"));
    scene.stand.lift();
    eventually("nobody steers it", || scene.whose(&body).is_none());
    drop(by_tool);
}
