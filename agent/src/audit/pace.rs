//! Which refusals are told, and when: each kind once in a minute, and no more in all than a reader and journald bear.
use super::record::Record;
use std::collections::HashMap;
use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Each kind of refusal is told once in this.
pub(super) const AGAIN: Duration = Duration::from_secs(60);
/// Kinds of one unit that are told one by one in [`AGAIN`]. Others are counted together: who tries everything crowds out
/// nobody else.
pub(super) const KINDS: usize = 32;
/// Units that are remembered; no host has as many.
pub(super) const UNITS: usize = 1024;
/// Told in a second at most, of all units; far below what journald takes of one service.
pub(super) const PER_SECOND: u32 = 50;
const SECOND: Duration = Duration::from_secs(1);

/// What is to be told.
#[derive(Debug, Clone)]
pub(super) struct Due {
    pub(super) last: Arc<Record>,
    /// Refusals since this was last told, this one included.
    pub(super) times: u64,
    /// They are of several kinds.
    pub(super) mixed: bool,
}

/// What was told of late. Bounded in memory.
#[derive(Debug)]
pub(super) struct Pace {
    units: HashMap<u64, Unit>,
    hashes: RandomState,
    /// The second in which is counted, and how many were told in it.
    second: Instant,
    told: u32,
    swept: Instant,
}

#[derive(Debug, Default)]
struct Unit {
    kinds: HashMap<u64, Kind>,
    /// What is beyond [`KINDS`].
    others: Option<Kind>,
}

#[derive(Debug)]
struct Kind {
    /// When it was last told; none where it could not be yet.
    told: Option<Instant>,
    untold: u64,
    last: Arc<Record>,
}

impl Pace {
    pub(super) fn new(now: Instant) -> Self {
        Self {
            units: HashMap::new(),
            hashes: RandomState::new(),
            second: now,
            told: 0,
            swept: now,
        }
    }

    /// Another refusal, of what is in `unit`: told at once, or when [`Self::sweep`] finds it due.
    ///
    /// # Errors
    /// It is not remembered: there are too many units.
    pub(super) fn refused(
        &mut self,
        unit: &str,
        record: &Arc<Record>,
        now: Instant,
    ) -> Result<Option<Due>, ()> {
        let room = self.has_room(now);
        let key = self.hashes.hash_one(unit);
        if self.units.len() >= UNITS && !self.units.contains_key(&key) {
            return Err(());
        }
        let mut hasher = self.hashes.build_hasher();
        record.hash_alike(&mut hasher);
        let alike = hasher.finish();
        let unit = self.units.entry(key).or_default();
        let new = |told| Kind {
            told,
            untold: 0,
            last: Arc::clone(record),
        };
        let mixed = unit.kinds.len() >= KINDS && !unit.kinds.contains_key(&alike);
        let kind = match mixed {
            true => unit.others.get_or_insert_with(|| new(Some(now))),
            false => unit.kinds.entry(alike).or_insert_with(|| new(None)),
        };
        kind.untold = kind.untold.saturating_add(1);
        kind.last = Arc::clone(record);
        let due = (kind.is_due(now) && room).then(|| kind.tell(now, mixed));
        self.told += u32::from(due.is_some());
        Ok(due)
    }

    /// What has become due, at most once a second; forgets what was not refused again.
    pub(super) fn sweep(&mut self, now: Instant) -> Vec<Due> {
        let mut due = Vec::new();
        if now.saturating_duration_since(self.swept) < SECOND {
            return due;
        }
        self.swept = now;
        self.has_room(now);
        let told = &mut self.told;
        // Whether it is to be kept.
        let mut look = |kind: &mut Kind, mixed| {
            let (is_due, untold) = (kind.is_due(now), kind.untold > 0);
            if is_due && untold && *told < PER_SECOND {
                *told += 1;
                due.push(kind.tell(now, mixed));
            }
            untold || !is_due
        };
        self.units.retain(|_, unit| {
            unit.kinds.retain(|_, kind| look(kind, false));
            if unit.others.as_mut().is_some_and(|kind| !look(kind, true)) {
                unit.others = None;
            }
            !unit.kinds.is_empty() || unit.others.is_some()
        });
        due
    }

    fn has_room(&mut self, now: Instant) -> bool {
        if now.saturating_duration_since(self.second) >= SECOND {
            (self.second, self.told) = (now, 0);
        }
        self.told < PER_SECOND
    }
}

impl Kind {
    fn is_due(&self, now: Instant) -> bool {
        self.told
            .is_none_or(|told| now.saturating_duration_since(told) >= AGAIN)
    }

    fn tell(&mut self, now: Instant, mixed: bool) -> Due {
        self.told = Some(now);
        Due {
            last: Arc::clone(&self.last),
            times: std::mem::take(&mut self.untold),
            mixed,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::tests::denied;
    use super::*;

    fn refusal(host: &str) -> Arc<Record> {
        Arc::new(denied(host))
    }

    #[test]
    fn the_same_is_told_once_in_a_minute_with_how_often() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let first = pace
            .refused("a.service", &refusal("x"), start)
            .unwrap()
            .unwrap();
        assert_eq!((first.times, first.mixed), (1, false));
        for second in 1..60 {
            let now = start + second * SECOND;
            let told = pace.refused("a.service", &refusal("x"), now).unwrap();
            assert!(told.is_none() && pace.sweep(now).is_empty(), "{second}");
        }
        let again = pace.sweep(start + AGAIN);
        assert_eq!(again.iter().map(|due| due.times).collect::<Vec<_>>(), [59]);
        // Of another unit, and of another host, it is news.
        for (unit, host) in [("b.service", "x"), ("a.service", "y")] {
            let told = pace.refused(unit, &refusal(host), start + AGAIN).unwrap();
            assert!(told.is_some(), "{unit} {host}");
        }
        // What is not refused again is forgotten.
        assert!(pace.sweep(start + 2 * AGAIN).is_empty());
        assert!(pace.units.is_empty());
    }

    #[test]
    fn who_tries_everything_crowds_out_nobody() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let (mut told, mut now) = (0, start);
        for number in 0..100_000 {
            if number % 1000 == 0 {
                now += Duration::from_millis(100);
            }
            let due = pace.refused("a.service", &refusal(&number.to_string()), now);
            told += usize::from(due.unwrap().is_some());
        }
        assert_eq!(told, KINDS);
        let other = pace.refused("b.service", &refusal("x"), now).unwrap();
        assert!(other.is_some());
        let due = pace.sweep(start + Duration::from_secs(61));
        let mixed: Vec<u64> = due.iter().filter(|d| d.mixed).map(|d| d.times).collect();
        assert_eq!(mixed, [100_000 - KINDS as u64]);
    }

    #[test]
    fn so_many_are_told_in_a_second_and_the_others_later() {
        let start = Instant::now();
        let mut pace = Pace::new(start);
        let units: Vec<String> = (0..2 * UNITS).map(|n| format!("{n}.service")).collect();
        let tried = units
            .iter()
            .map(|unit| pace.refused(unit, &refusal("x"), start));
        let tried: Vec<_> = tried.collect();
        let told = tried.iter().flatten().flatten().count();
        assert_eq!(told, PER_SECOND as usize);
        assert_eq!(tried.iter().filter(|tried| tried.is_err()).count(), UNITS);
        let later = (1..30).map(|second| pace.sweep(start + second * SECOND).len());
        let later: Vec<usize> = later.collect();
        assert!(
            later.iter().all(|told| *told <= PER_SECOND as usize),
            "{later:?}"
        );
        assert_eq!(told + later.iter().sum::<usize>(), UNITS);
    }
}
