//! Windows, races, and what a restart finds.
#![allow(clippy::unwrap_used, clippy::indexing_slicing)]
use super::*;
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use tollgate_policy::Policy;
use tollgate_policy::syntax::Source;

const DAY: u64 = 86_400;
/// In the middle of a day, an hour and a minute.
const NOON: u64 = 20_000 * DAY + 43_230;

fn plain(budgets: &str) -> Policy {
    let text = format!("version: 1\nworkloads: {{ a: {{}}, b: {{}} }}\nbudgets:\n{budgets}\n");
    let name = "p.yaml".to_owned();
    tollgate_policy::compile(&[Source { name, text }])
        .map_err(|faults| faults.to_string())
        .unwrap()
        .policy
}

fn write(path: &Path, bytes: &[u8], _mode: u32) -> io::Result<()> {
    fs::write(path, bytes)
}

struct Place(tempfile::TempDir);

impl Place {
    fn new() -> Self {
        let place = Self(tempfile::tempdir().unwrap());
        for name in ["run", "state"] {
            fs::create_dir(place.0.path().join(name)).unwrap();
        }
        place
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        self.0.path().join(name).join("budgets.ledger")
    }

    fn open(&self, now: u64) -> Registry {
        let path = self.0.path();
        Registry::open(&path.join("run"), &path.join("state"), write, now).unwrap()
    }
}

const ONE: &str = "  one: { for: { workload: a }, limits: { requests: 10/min } }";

/// The one account of the policy [`ONE`].
fn account(registry: &Registry, now: u64) -> Arc<Account> {
    let table = registry.table(&plain(ONE), now).unwrap();
    let mut all = table.all();
    let line = all.next().unwrap();
    assert!(all.next().is_none());
    Arc::clone(&line.account)
}

#[test]
fn windows_begin_by_the_clock_and_only_move_forward() {
    let place = Place::new();
    let account = account(&place.open(NOON), NOON);
    let limit = Some(10);
    for _ in 0..10 {
        account.reserve(1, limit, NOON).unwrap().keep();
    }
    let short = account.reserve(1, limit, NOON + 29).unwrap_err();
    assert_eq!((short.left, short.until), (0, NOON + 30));
    assert!(
        account.reserve(0, limit, NOON).is_ok(),
        "what costs nothing passes"
    );
    account.reserve(1, limit, NOON + 30).unwrap().keep();
    assert_eq!(account.state(NOON + 30).1, 1);
    // The clock is set back by a minute: it is still the later window.
    account.reserve(9, limit, NOON).unwrap().keep();
    assert!(account.reserve(1, limit, NOON).is_err());
    assert_eq!(account.state(NOON + 90).1, 0);
}

#[test]
fn a_reservation_is_given_back_settled_or_spent_where_it_was_taken() {
    let place = Place::new();
    let account = account(&place.open(NOON), NOON);
    let spent = || account.state(NOON).1;
    drop(account.reserve(4, Some(10), NOON).unwrap());
    assert_eq!(spent(), 0);
    account.reserve(4, Some(10), NOON).unwrap().settle(1);
    assert_eq!(spent(), 1);
    account.reserve(4, Some(10), NOON).unwrap().settle(20);
    assert_eq!(spent(), 21, "in full, also where it is too much");
    assert!(account.reserve(1, Some(10), NOON).is_err());
    assert!(
        account.reserve(1, Some(100), NOON).is_ok(),
        "a higher limit"
    );
    let early = account.reserve(50, Some(100), NOON).unwrap();
    account.reserve(7, Some(100), NOON + 60).unwrap().keep();
    early.settle(60);
    assert_eq!(account.state(NOON + 60).1, 7, "another window");
    // Only counted: neither refused, nor beyond an integer.
    for _ in 0..100 {
        account.reserve(u64::MAX, None, NOON + 60).unwrap().keep();
    }
    drop(account.reserve(u64::MAX, None, NOON + 60).unwrap());
    assert_eq!(account.state(NOON + 60).1, 7 + 100 * (1 << 56));
}

#[test]
fn what_an_integer_has_no_room_for_is_not_given_back() {
    let place = Place::new();
    let account = account(&place.open(NOON), NOON);
    account.reserve(9, Some(10), NOON).unwrap().keep();
    // Observed calls that ask for no end of tokens share the account.
    let many: Vec<_> = (0..300)
        .map(|_| account.reserve(u64::MAX, None, NOON).unwrap())
        .collect();
    drop(many);
    assert_eq!(account.state(NOON).1, 9);
}

#[test]
fn bytes_take_what_is_left_and_no_more() {
    let place = Place::new();
    let account = account(&place.open(NOON), NOON);
    account.spend(6, Some(10), NOON).unwrap();
    assert!(account.spend(6, Some(10), NOON).is_err());
    assert_eq!(account.state(NOON).1, 10);
    assert!(account.open(10, NOON).is_err());
    assert!(account.open(10, NOON + 60).is_ok());
}

#[test]
fn many_at_once_never_get_more_than_there_is_and_all_is_written() {
    let place = Place::new();
    let registry = place.open(NOON);
    let account = account(&registry, NOON);
    let got: usize = std::thread::scope(|scope| {
        let run = || {
            let mut got = 0;
            for _ in 0..500 {
                if let Ok(taken) = account.reserve(3, Some(1000), NOON) {
                    got += 1;
                    taken.keep();
                }
                drop(account.reserve(1, Some(1000), NOON));
            }
            got
        };
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(run)).collect();
        threads
            .into_iter()
            .map(|thread| thread.join().unwrap())
            .sum()
    });
    let spent = account.state(NOON).1;
    assert_eq!(spent, got as u64 * 3);
    assert!((990..=1000).contains(&spent), "{spent}");
    // As after a kill: nothing was told to write.
    drop((account, registry));
    let after = self::account(&place.open(NOON), NOON);
    assert_eq!(after.state(NOON).1, spent);
}

#[test]
fn a_window_begins_once_for_all() {
    let place = Place::new();
    let account = account(&place.open(NOON), NOON);
    for minute in 1..200 {
        let now = NOON + minute * 60;
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| account.reserve(1, Some(10), now).unwrap().keep());
            }
        });
        assert_eq!(account.state(now).1, 4);
    }
}

#[test]
fn each_holder_has_its_own() {
    let place = Place::new();
    let registry = place.open(NOON);
    let budgets =
        "  all: { for: { workload: a }, limits: { requests: 10/min, tokens: 5/day, usd: 1/day } }
  own: { for: { workload: [a, b] }, each: workload, limits: { requests: 10/min } }
  who: { for: { workload: b }, each: identity, limits: { requests: 10/min, bytes: 1KiB/day } }";
    let policy = plain(budgets);
    let table = registry.table(&policy, NOON).unwrap();
    assert_eq!(table.all().count(), 3 + 2 + 2);
    let subject = |workload, identity| tollgate_policy::Subject { workload, identity };
    let (a, b) = (subject("a", None), subject("b", None));
    let names = |subject| -> Vec<String> {
        let fitting = policy.budgets_for(subject);
        fitting.map(|(_, budget)| budget.name.clone()).collect()
    };
    assert_eq!(names(a), ["all", "own"]);
    assert_eq!(names(b), ["own", "who"]);
    let of = |subject| {
        let (number, budget) = policy
            .budgets_for(subject)
            .find(|(_, b)| b.name == "own")
            .unwrap();
        let lines = table.of((number, budget), &subject).unwrap();
        Arc::clone(&lines.requests.as_ref().unwrap().account)
    };
    of(a).reserve(1, Some(10), NOON).unwrap().keep();
    assert_eq!((of(a).state(NOON).1, of(b).state(NOON).1), (1, 0));
    // Another policy with the same budget, and one without it in between: it goes on.
    registry.table(&plain(ONE), NOON).unwrap();
    let later = registry.table(&plain(budgets), NOON).unwrap();
    let spent: u64 = later.all().map(|line| line.account.state(NOON).1).sum();
    assert_eq!(spent, 1);
}

#[test]
fn a_reboot_finds_the_copy_and_a_restart_the_ledger() {
    let place = Place::new();
    let registry = place.open(NOON);
    let first = account(&registry, NOON);
    first.reserve(4, Some(10), NOON).unwrap().keep();
    registry.copy(NOON);
    let open = first.reserve(3, Some(10), NOON).unwrap();
    registry.copy(NOON);
    open.settle(1);
    drop((first, registry));
    let spent = |now| account(&place.open(now), now).state(now).1;
    assert_eq!(spent(NOON), 5, "the ledger is the newer");
    fs::remove_file(place.file("run")).unwrap();
    assert_eq!(spent(NOON), 7, "the copy is all there is");
    assert_eq!(spent(NOON + 60), 0, "another window");
}

#[test]
fn what_cannot_be_read_counts_as_spent_until_the_window_ends() {
    let place = Place::new();
    let registry = place.open(NOON);
    account(&registry, NOON)
        .reserve(4, Some(10), NOON)
        .unwrap()
        .keep();
    drop(registry);
    let whole = fs::read(place.file("run")).unwrap();
    assert_eq!(whole.len(), 128);
    for place_of in [70, 90, 100, 119, 127] {
        let mut torn = whole.clone();
        torn[place_of] ^= 1;
        fs::write(place.file("run"), torn).unwrap();
        let again = account(&place.open(NOON), NOON);
        assert!(again.reserve(1, Some(10), NOON).is_err(), "{place_of}");
        assert!(again.reserve(1, Some(10), NOON + 60).is_ok());
    }
    for bad in [&b""[..], b"something else", &whole[..100]] {
        fs::write(place.file("run"), bad).unwrap();
        assert!(
            account(&place.open(NOON), NOON)
                .reserve(1, Some(10), NOON)
                .is_err()
        );
    }
    // The copy says it.
    fs::write(place.file("run"), &whole[..100]).unwrap();
    fs::write(place.file("state"), &whole).unwrap();
    assert_eq!(account(&place.open(NOON), NOON).state(NOON).1, 4);
    // Nothing there at all is nothing that was spent.
    for name in ["run", "state"] {
        fs::remove_file(place.file(name)).unwrap();
    }
    assert_eq!(account(&place.open(NOON), NOON).state(NOON).1, 0);
}

#[test]
fn slots_are_used_again_once_nobody_has_them() {
    let place = Place::new();
    let registry = place.open(NOON);
    let budget = |name: &str| {
        plain(&format!(
            "  {name}: {{ for: {{ workload: a }}, limits: {{ requests: 10/min }} }}"
        ))
    };
    for minute in 0..50 {
        let now = NOON + minute * 60;
        let table = registry.table(&budget(&format!("b{minute}")), now).unwrap();
        let line = table.all().next().unwrap();
        line.account.reserve(1, Some(10), now).unwrap().keep();
    }
    let length = fs::metadata(place.file("run")).unwrap().len();
    assert!(length <= 4 * 64, "{length}");
}

#[test]
fn money_in_decimals() {
    for (amount, text) in [
        (0, "0"),
        (PICODOLLARS, "1"),
        (PICODOLLARS / 4, "0.25"),
        (1, "0.000000000001"),
        (50 * PICODOLLARS + 10, "50.00000000001"),
    ] {
        assert_eq!(dollars(amount), text);
    }
}

#[test]
fn a_copy_that_cannot_be_written_is_told() {
    let place = Place::new();
    let registry = place.open(NOON);
    let one = account(&registry, NOON);
    one.reserve(3, Some(10), NOON).unwrap().keep();
    fs::create_dir(place.file("state")).unwrap();
    assert!(!registry.is_failing());
    for _ in 0..2 {
        registry.copy(NOON);
        assert!(registry.is_failing());
    }
    fs::remove_dir(place.file("state")).unwrap();
    registry.copy(NOON);
    assert!(!registry.is_failing() && place.file("state").exists());
}
