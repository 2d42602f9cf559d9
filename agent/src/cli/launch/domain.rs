//! A Landlock domain of the command's own, where no hook holds it to the Unix sockets that policy names.
//!
//! Below `/proc/PID` (`root`, `cwd`, directories among its `fd`) lie the host's files as another process sees them, where no socket is
//! covered. The kernel shows them to whoever may read that process, as any of the same user may; Yama only looks at who attaches. Who is in a
//! domain may do neither with anybody outside of it.
//!
//! A domain has to restrict something: this one, that files are moved between directories, and allows it everywhere. What comes with any
//! domain that looks at files is that nobody in it mounts.
use anyhow::Context;
use landlock::{
    AccessFs, CompatLevel, Compatible, PathBeneath, PathFd, Ruleset, RulesetAttr,
    RulesetCreatedAttr,
};

/// Enters it, or tells that the kernel has none (Landlock's second version, Linux 5.19; a first one would let nobody move files).
pub(super) fn enter() -> anyhow::Result<()> {
    // They have no file that could be covered, and no domain before Landlock's sixth version looks at them.
    tell!(
        "tollgate: no hook is known to hold the command to Unix sockets: abstract ones (`ss -xl` lists them with an @) are not kept from it, \
         whether policy names them or not"
    );
    let ruleset = Ruleset::default().set_compatibility(CompatLevel::HardRequirement);
    let Ok(ruleset) = ruleset.handle_access(AccessFs::Refer) else {
        tell!(
            "tollgate: no hook is known to hold the command to Unix sockets, and the kernel has no Landlock: by way of other processes of its user \
             (/proc/PID/root) it can reach daemons that policy does not name; give it a user of its own (--user)"
        );
        return Ok(());
    };
    let root = PathFd::new("/").context("the root directory")?;
    let ruleset = ruleset.create()?;
    let ruleset = ruleset.add_rule(PathBeneath::new(root, AccessFs::Refer))?;
    ruleset.restrict_self()?;
    tell!(
        "tollgate: no hook is known to hold the command to Unix sockets: it is kept from its user's other processes by Landlock, which \
         does not let it mount anything either"
    );
    Ok(())
}
