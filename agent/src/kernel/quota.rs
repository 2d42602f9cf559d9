//! Byte quotas: what the agent gives, what the hooks count.
use super::{
    Error, Fence,
    maps::{read, write},
};
use std::collections::HashMap;
use std::sync::Arc;
use std::time::{Duration, SystemTime};
use tollgate_common::quota::{Quota, Spent};
use tollgate_common::recognise::WORKLOAD_IDS;

/// What a workload is to have.
#[derive(Debug, Clone, Copy)]
pub struct Allowance<'a> {
    /// The workload.
    pub workload: &'a str,
    /// Bytes in each window.
    pub bytes: u64,
    /// Length of a window, in seconds; windows are counted from 1970.
    pub seconds: u64,
    /// What was spent before this kernel was booted, and in which window; taken where nothing is known of the workload.
    pub before: Option<(u64, u64)>,
}

/// What a workload has spent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Usage {
    /// The workload.
    pub workload: Arc<str>,
    /// Bytes in each window.
    pub bytes: u64,
    /// Length of a window, in seconds.
    pub seconds: u64,
    /// The window: whole lengths since 1970.
    pub window: u64,
    /// Bytes spent in it.
    pub spent: u64,
}

const NANOSECONDS: u64 = 1_000_000_000;

impl Fence {
    pub(super) fn replace_quotas(&self, allowances: &[Allowance<'_>]) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let mut wanted = HashMap::new();
        let ids = self.workload_ids(
            &mut writers,
            allowances.iter().map(|allowance| allowance.workload),
        )?;
        for allowance in allowances {
            if let Some(id) = ids.get(allowance.workload) {
                wanted.insert(*id, allowance);
            }
        }
        let (now, boot) = clocks();
        let names = self.names.workloads.load();
        for id in names.keys().filter(|id| **id < WORKLOAD_IDS) {
            let old = writers.quotas.get(id, 0).map_err(read("QUOTAS"))?;
            let new = wanted
                .get(id)
                .map_or_else(Quota::default, |allowance| quota(allowance, now, boot));
            if old.length == 0 && new.length == 0 {
                continue;
            }
            if old.length != new.length {
                // Nothing is counted while there is no quota, so that this is the hooks' only while there is one.
                let none = Quota::default();
                writers.quotas.set(*id, none, 0).map_err(write("QUOTAS"))?;
                let known = writers.spent.get(id, 0).map_err(read("SPENT"))?;
                let before = wanted.get(id).and_then(|allowance| allowance.before);
                let window = now.as_nanos().checked_div(new.length.into()).unwrap_or(0);
                let window = u64::try_from(window).unwrap_or(u64::MAX);
                let spent = first(known, old, (&new, window), before);
                writers.spent.set(*id, spent, 0).map_err(write("SPENT"))?;
            }
            // Windows begin where the wall clock says; it may have been set since.
            writers.quotas.set(*id, new, 0).map_err(write("QUOTAS"))?;
        }
        Ok(())
    }

    pub(super) fn all_usage(&self) -> Vec<Usage> {
        let (now, _) = clocks();
        let names = self.names.workloads.load();
        let mut all: Vec<Usage> = names
            .iter()
            .filter_map(|(id, workload)| {
                let quota = self.maps.quotas.get(id, 0).ok()?;
                let spent = self.maps.spent.get(id, 0).ok()?;
                let seconds = quota.length / NANOSECONDS;
                let window = now.as_secs().checked_div(seconds)?.max(spent.epoch);
                let is_now = spent.epoch == window;
                Some(Usage {
                    workload: Arc::clone(workload),
                    bytes: quota.limit,
                    seconds,
                    window,
                    spent: match is_now {
                        true => spent.total.saturating_sub(spent.base),
                        false => 0,
                    },
                })
            })
            .collect();
        all.sort_by(|one, other| one.workload.cmp(&other.workload));
        all
    }
}

/// What the hooks are told of an allowance. `now` is the wall clock, `boot` the same moment since boot.
fn quota(allowance: &Allowance<'_>, now: Duration, boot: Duration) -> Quota {
    let offset = now.saturating_sub(boot).as_nanos();
    Quota {
        limit: allowance.bytes,
        length: allowance.seconds.saturating_mul(NANOSECONDS),
        offset: u64::try_from(offset).unwrap_or(u64::MAX),
    }
}

/// What counting begins with when a workload is given a quota, or windows of another length; with the window that it is now.
fn first(
    known: Spent,
    old: Quota,
    (new, window): (&Quota, u64),
    before: Option<(u64, u64)>,
) -> Spent {
    let fresh = Spent {
        total: known.total,
        base: known.total,
        ..Spent::default()
    };
    match before {
        // Nothing was ever counted: this kernel is new, or this fence.
        Some((window, spent)) if known == Spent::default() && old.length == 0 => Spent {
            total: spent,
            base: 0,
            epoch: window,
            ..Spent::default()
        },
        _ if new.length == 0 => known,
        // Taken out and put in again: numbers of windows of another length are far from this one.
        _ if old.length == 0 && known.epoch == window => known,
        _ => fresh,
    }
}

/// The wall clock and the time since boot, of one moment.
fn clocks() -> (Duration, Duration) {
    let boot = rustix::time::clock_gettime(rustix::time::ClockId::Boottime);
    let boot = Duration::new(
        boot.tv_sec.unsigned_abs(),
        u32::try_from(boot.tv_nsec).unwrap_or(0),
    );
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH);
    (now.unwrap_or_default(), boot)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_spent_stays_so_where_a_quota_is_taken_out_and_put_in_again() {
        const DAY: u64 = 86_400 * NANOSECONDS;
        let of = |length| Quota {
            length,
            ..Quota::default()
        };
        let (none, day, hour) = (Quota::default(), of(DAY), of(DAY / 24));
        let (today, now) = (20_000, 480_007);
        let known = Spent {
            total: 100,
            base: 40,
            epoch: today,
            ..Spent::default()
        };
        let left = |spent: Spent| (spent.total - spent.base, spent.epoch);
        let before = Some((today, 7));
        for kept in [None, before] {
            let out = first(known, day, (&none, 0), kept);
            assert_eq!(left(first(out, none, (&day, today), kept)), (60, today));
            // Other windows count anew.
            assert_eq!(left(first(out, none, (&hour, now), kept)), (0, 0));
            assert_eq!(left(first(known, day, (&hour, now), kept)), (0, 0));
            assert_eq!(left(first(out, none, (&day, today + 1), kept)), (0, 0));
        }
        let nothing = Spent::default();
        assert_eq!(
            left(first(nothing, none, (&day, today), before)),
            (7, today)
        );
    }
}
