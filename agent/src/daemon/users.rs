//! Users and groups from the local files: whom a command runs as, with what sudo says, and whom selectors name.
use anyhow::{Context, bail};
use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A user to become.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// In `/etc/passwd`, if it is there.
    pub name: Option<String>,
    /// Its number.
    pub uid: u32,
    /// Its own group's.
    pub gid: u32,
    /// All its groups', its own first.
    pub groups: Vec<u32>,
    /// Its home.
    pub home: Option<PathBuf>,
    /// Its shell.
    pub shell: Option<PathBuf>,
}

/// Where users come from.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Database {
    passwd: String,
    group: String,
    /// Users' numbers by their names: thousands of selectors are asked about for each process.
    uids: Arc<HashMap<String, u32>>,
}

impl Database {
    /// Of this host; of nobody where that cannot be read.
    pub fn open() -> Self {
        Self::read().unwrap_or_default()
    }

    /// Of this host.
    pub(super) fn read() -> std::io::Result<Self> {
        let (passwd, group) = texts(Path::new("/etc"), false)?;
        Ok(Self::of(passwd, group))
    }

    /// Of this host, now that it was so before. A list of users that is there no more says nothing: editors put another in its place.
    pub(super) fn again(&self) -> std::io::Result<Self> {
        let (passwd, group) = texts(Path::new("/etc"), !self.passwd.is_empty())?;
        let is_same = passwd == self.passwd && group == self.group;
        Ok(match is_same {
            true => self.clone(),
            false => Self::of(passwd, group),
        })
    }

    /// Of these texts.
    pub(super) fn of(passwd: impl Into<String>, group: impl Into<String>) -> Self {
        let (passwd, group) = (passwd.into(), group.into());
        let mut uids = HashMap::new();
        for line in passwd.lines().filter_map(Line::of) {
            // Who comes first has the name.
            uids.entry(line.name.to_owned()).or_insert(line.uid);
        }
        Self {
            passwd,
            group,
            uids: Arc::new(uids),
        }
    }

    /// The number of a user, given by name or number; `None`: no such name.
    pub(super) fn uid(&self, user: &str) -> Option<u32> {
        let known = self.uids.get(user).copied();
        known.or_else(|| user.parse().ok().filter(|uid| *uid != u32::MAX))
    }

    /// The user named by `--user`; else who called sudo; else root, who is the only one that can call.
    ///
    /// # Errors
    /// There is no such user.
    pub fn choose(&self, asked: Option<&str>, sudo: Option<(u32, u32)>) -> anyhow::Result<User> {
        match (asked, sudo) {
            (Some(asked), _) => self.named(asked),
            (None, Some((uid, gid))) if uid != 0 => {
                Ok(self.by_uid(uid).unwrap_or_else(|| Self::bare(uid, gid)))
            }
            (None, _) => Ok(self.by_uid(0).unwrap_or_else(|| Self::bare(0, 0))),
        }
    }

    fn named(&self, asked: &str) -> anyhow::Result<User> {
        if let Some(user) = self.by_name(asked) {
            return Ok(user);
        }
        let Ok(uid) = asked.parse::<u32>() else {
            bail!("no user {asked} in /etc/passwd: name another, or give its number");
        };
        if uid == u32::MAX {
            bail!("{uid} is no user id");
        }
        Ok(self.by_uid(uid).unwrap_or_else(|| Self::bare(uid, uid)))
    }

    fn bare(uid: u32, gid: u32) -> User {
        User {
            name: None,
            uid,
            gid,
            groups: vec![gid],
            home: None,
            shell: None,
        }
    }

    fn by_name(&self, name: &str) -> Option<User> {
        self.find(|line| line.name == name)
    }

    fn by_uid(&self, uid: u32) -> Option<User> {
        self.find(|line| line.uid == uid)
    }

    fn find(&self, is_it: impl Fn(&Line<'_>) -> bool) -> Option<User> {
        let line = self.passwd.lines().filter_map(Line::of).find(is_it)?;
        let memberships = self
            .group
            .lines()
            .filter_map(|one| membership(one, line.name));
        let others = memberships.filter(|gid| *gid != line.gid);
        Some(User {
            name: Some(line.name.to_owned()),
            uid: line.uid,
            gid: line.gid,
            groups: std::iter::once(line.gid).chain(others).collect(),
            home: line.home.map(PathBuf::from),
            shell: line.shell.map(PathBuf::from),
        })
    }
}

/// A line of `/etc/passwd`.
struct Line<'a> {
    name: &'a str,
    uid: u32,
    gid: u32,
    home: Option<&'a str>,
    shell: Option<&'a str>,
}

impl<'a> Line<'a> {
    /// `name:password:uid:gid:comment:home:shell`
    fn of(line: &'a str) -> Option<Self> {
        let mut fields = line.split(':');
        let some = |field: Option<&'a str>| field.filter(|field| !field.is_empty());
        Some(Self {
            name: some(fields.next())?,
            uid: fields.nth(1)?.parse().ok()?,
            gid: fields.next()?.parse().ok()?,
            home: some(fields.nth(1)),
            shell: some(fields.next()),
        })
    }
}

/// Users and groups as a directory has them. `had`: there were users. A user's own words (`chfn`) may be of another encoding.
fn texts(directory: &Path, had: bool) -> std::io::Result<(String, String)> {
    let read = |name: &str, had: bool| match std::fs::read(directory.join(name)) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound && !had => Ok(String::new()),
        read => read.map(|bytes| String::from_utf8_lossy(&bytes).into_owned()),
    };
    Ok((read("passwd", had)?, read("group", false)?))
}

/// `name:password:gid:member,member`: the gid, if `user` is a member.
fn membership(line: &str, user: &str) -> Option<u32> {
    let mut fields = line.split(':');
    let gid = fields.nth(2)?.parse().ok()?;
    fields.next()?.split(',').any(|m| m == user).then_some(gid)
}

/// Who called sudo.
///
/// # Errors
/// What sudo left in the environment is damaged.
pub fn sudo_caller() -> anyhow::Result<Option<(u32, u32)>> {
    let number = |name: &str| -> anyhow::Result<Option<u32>> {
        let Some(text) = std::env::var_os(name) else {
            return Ok(None);
        };
        let text = text.to_string_lossy().into_owned();
        text.parse()
            .map(Some)
            .with_context(|| format!("{name}={text} is no number: unset it or use --user"))
    };
    Ok(number("SUDO_UID")?.zip(number("SUDO_GID")?))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn database() -> Database {
        Database::of(
            "root:x:0:0:root:/root:/bin/bash\nann:x:1000:1000::/home/ann:/bin/sh\nbroken\nx:x:y:z\nnobody:x:65534:65534::/nonexistent:\n",
            "root:x:0:\nann:x:1000:\ndev:x:50:bob,ann\nops:x:51:bob\n",
        )
    }

    #[test]
    fn a_list_that_is_away_for_a_moment_says_nothing() {
        let folder = tempfile::tempdir().unwrap();
        assert_eq!(texts(folder.path(), false).unwrap(), Default::default());
        std::fs::write(folder.path().join("passwd"), &database().passwd).unwrap();
        let (passwd, group) = texts(folder.path(), false).unwrap();
        assert_eq!(Database::of(passwd, group).uid("ann"), Some(1000));
        let odd = b"eve:x:7:7:\xe9v\xe9::\n".as_slice();
        std::fs::write(folder.path().join("passwd"), odd).unwrap();
        let (odd, _) = texts(folder.path(), true).unwrap();
        assert_eq!(
            Database::of(odd, "").uid("eve"),
            Some(7),
            "of another encoding"
        );
        std::fs::remove_file(folder.path().join("passwd")).unwrap();
        assert!(texts(folder.path(), true).is_err());
    }

    #[test]
    fn root_stays_root_unless_another_is_named() {
        let users = database();
        assert_eq!(users.choose(None, None).unwrap().home, Some("/root".into()));
        assert_eq!(users.choose(None, Some((0, 0))).unwrap().uid, 0);
        assert_eq!(users.choose(Some("nobody"), None).unwrap().uid, 65534);
        assert_eq!(
            Database::default().choose(None, None).unwrap(),
            Database::bare(0, 0)
        );
    }

    #[test]
    fn who_called_sudo_with_all_groups() {
        let ann = database().choose(None, Some((1000, 1000))).unwrap();
        assert_eq!(
            (ann.name.as_deref(), ann.uid, ann.groups),
            (Some("ann"), 1000, vec![1000, 50])
        );
        assert_eq!(ann.home, Some("/home/ann".into()));
    }

    #[test]
    fn numbers_and_strangers() {
        let users = database();
        assert_eq!(
            users.choose(Some("1000"), None).unwrap().name.as_deref(),
            Some("ann")
        );
        assert_eq!(
            users.choose(Some("4242"), None).unwrap(),
            Database::bare(4242, 4242)
        );
        assert_eq!(
            users.choose(None, Some((4242, 7))).unwrap(),
            Database::bare(4242, 7)
        );
        for wrong in ["eve", "", "-1", "4294967295"] {
            assert!(users.choose(Some(wrong), None).is_err(), "{wrong}");
        }
    }
}
