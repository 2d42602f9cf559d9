//! What `/proc/PID/status` says of processes, which never waits.
use super::super::missed::is_ended;
use super::of_process;
use std::io;

/// Has a process ended, be it that nobody has waited for it yet? What it made before that was not asked for by it.
pub fn has_ended(process: u32) -> bool {
    let lives = |text: &str| !text.contains("\nState:\tZ") && !text.contains("\nState:\tX");
    let lives = of_process(process, |at| match status(at) {
        Ok(text) => lives(&text?).then_some(()),
        Err(_) => Some(()), // Nobody can say now.
    });
    lives.is_none()
}

/// The real user of a process; kernel threads, which run no program, have none, nor has who is gone.
///
/// # Errors
/// Nobody can say now: descriptors or memory are short.
pub fn real_user(process: u32) -> io::Result<Option<u32>> {
    let of = |at: &str| {
        let text = status(at).transpose()?;
        let has_program = |text: &String| text.contains("\nVmSize:");
        text.map(|text| {
            Some(text)
                .filter(has_program)
                .and_then(|text| field(&text, "Uid:"))
        })
        .transpose()
    };
    of_process(process, of).transpose()
}

/// Its parent, if it is there.
///
/// # Errors
/// Nobody can say now: descriptors or memory are short.
pub(super) fn parent(process: u32) -> io::Result<Option<u32>> {
    let text = status(&format!("/proc/{process}"))?;
    Ok(text.and_then(|text| field(&text, "PPid:")))
}

/// The first number of a line.
fn field(status: &str, name: &str) -> Option<u32> {
    let line = status.lines().find_map(|line| line.strip_prefix(name))?;
    line.split_whitespace().next()?.parse().ok()
}

/// `None`: it is gone. Its name may be any bytes.
fn status(at: &str) -> io::Result<Option<String>> {
    match std::fs::read(format!("{at}/status")) {
        Ok(text) => Ok(Some(String::from_utf8_lossy(&text).into_owned())),
        Err(error) if is_ended(&error) => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// Any program may give itself one.
    #[test]
    fn who_has_a_name_that_is_no_text_is_somebody_all_the_same() {
        let (own, path) = (std::process::id(), "/proc/self/comm");
        let name = std::fs::read(path).unwrap();
        std::fs::write(path, b"n\xff").unwrap();
        let (user, ended) = (real_user(own), has_ended(own));
        std::fs::write(path, name).unwrap();
        assert_eq!(user.unwrap(), Some(rustix::process::getuid().as_raw()));
        assert!(!ended);
        assert_eq!(real_user(u32::MAX).unwrap(), None);
        assert!(has_ended(u32::MAX));
    }
}
