//! Conditions on cgroups that stand beside others, and the bits by which the hooks know them. What the hooks go by is written one
//! after the other, also while policy changes or the agent does: so a bit keeps its meaning for as long as it is anywhere.
use super::selectors::{has_cgroup, has_process};
use crate::kernel::Bits;
use sha2::{Digest, Sha256};
use tollgate_policy::Selector;

/// Such conditions at most: the hooks have a bit for each.
pub(super) const CONDITIONS: usize = BITS as usize;
/// Those bits.
const BITS: u32 = 64;

/// Those of a policy.
#[derive(Debug, Default)]
pub(super) struct Conditions(Vec<Condition>);

/// A condition, as a selector that says nothing else.
#[derive(Debug)]
pub(super) struct Condition {
    selector: Selector,
    /// One number for what it says: see [`crate::kernel::Case::meaning`].
    pub(super) meaning: u32,
    /// `None`: it has none yet.
    pub(super) bit: Option<u32>,
}

impl Conditions {
    /// The place of a selector's condition; `None`: it has none, or no other beside it.
    pub(super) fn place(&mut self, selector: &Selector) -> Option<usize> {
        if !has_cgroup(selector) || !has_process(selector) {
            return None;
        }
        let part = Selector {
            cgroup: selector.cgroup.clone(),
            unit: selector.unit.clone(),
            container: selector.container.clone(),
            labels: selector.labels.clone(),
            ..Selector::default()
        };
        let known = self.0.iter().position(|known| known.selector == part);
        Some(known.unwrap_or_else(|| {
            self.0.push(Condition {
                meaning: meaning(&part),
                selector: part,
                bit: None,
            });
            self.0.len() - 1
        }))
    }

    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn at(&self, place: usize) -> Option<&Condition> {
        self.0.get(place)
    }

    /// Bits of those that hold.
    pub(super) fn that(&self, holds: impl Fn(&Selector) -> bool) -> u64 {
        let all = self.0.iter().filter(|one| holds(&one.selector));
        all.fold(0, |all, one| all | one.mask())
    }

    /// Bits of all.
    pub(super) fn bits(&self) -> u64 {
        self.that(|_| true)
    }

    /// Are there any without a bit?
    pub(super) fn lack_bits(&self) -> bool {
        self.0.iter().any(|one| one.bit.is_none())
    }

    /// What was given a bit by the policy before has that one.
    pub(super) fn take_over(&mut self, before: &Self) {
        for one in &mut self.0 {
            let mut known = before.0.iter();
            let known = known.find(|known| known.selector == one.selector);
            one.bit = known.and_then(|known| known.bit);
        }
    }

    /// Gives bits to those without: what the hooks' rules have for them, as an earlier agent gave it, or else one that is nowhere.
    pub(super) fn give_bits(&mut self, hooks: &Bits) {
        self.give(|one, bit| hooks.meanings.get(&bit) == Some(&one.meaning));
        self.give(|_, bit| hooks.carried & mask(bit) == 0);
    }

    fn give(&mut self, is_for: impl Fn(&Condition, u32) -> bool) {
        let mut given = self.bits();
        for one in self.0.iter_mut().filter(|one| one.bit.is_none()) {
            let first = one.meaning % BITS;
            let mut all = (0..BITS).map(|more| (first + more) % BITS);
            one.bit = all.find(|bit| given & mask(*bit) == 0 && is_for(one, *bit));
            given |= one.mask();
        }
    }
}

impl Condition {
    /// Its bit; none, if it has none.
    pub(super) fn mask(&self) -> u64 {
        self.bit.map(mask).unwrap_or_default()
    }
}

fn mask(bit: u32) -> u64 {
    1_u64.checked_shl(bit).unwrap_or_default()
}

fn meaning(condition: &Selector) -> u32 {
    let all = (
        &condition.cgroup,
        &condition.unit,
        &condition.container,
        &condition.labels,
    );
    let digest = Sha256::digest(format!("{all:?}"));
    let first = digest.iter().take(4);
    let number = first.fold(0_u32, |sum, byte| sum << 8 | u32::from(*byte));
    number.max(1) // 0 is what nobody has said.
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use std::collections::HashMap;

    fn conditions(numbers: std::ops::Range<u32>) -> Conditions {
        let mut all = Conditions::default();
        for number in numbers {
            let selector = Selector {
                user: Some("u".to_owned()),
                cgroup: Some(format!("/c{number}")),
                ..Selector::default()
            };
            assert!(all.place(&selector).is_some());
            assert_eq!(all.place(&selector), Some(all.0.len() - 1));
        }
        all
    }

    fn given(all: &Conditions) -> Vec<Option<u32>> {
        all.0.iter().map(|one| one.bit).collect()
    }

    #[test]
    fn a_bit_means_one_thing_as_long_as_it_is_anywhere() {
        let mut first = conditions(10..40);
        first.give_bits(&Bits::default());
        assert!(!first.lack_bits() && first.bits().count_ones() == 30);
        // Others before them change nothing, in this agent and, by what its rules say, in the next.
        let meanings: HashMap<u32, u32> = (first.0.iter())
            .map(|one| (one.bit.unwrap(), one.meaning))
            .collect();
        let hooks = Bits {
            carried: first.bits(),
            meanings,
        };
        let mut same = conditions(0..40);
        same.take_over(&first);
        same.give_bits(&hooks);
        let mut next = conditions(0..40);
        next.give_bits(&hooks);
        for one in [same, next] {
            assert_eq!(given(&one)[10..], given(&first)[..]);
            assert!(!one.lack_bits() && one.bits().count_ones() == 40);
        }
        // What nobody knows the meaning of is nobody's.
        let unknown = Bits {
            carried: first.bits(),
            ..Bits::default()
        };
        let mut others = conditions(100..150);
        others.give_bits(&unknown);
        assert_eq!(others.bits(), !first.bits());
        assert!(others.lack_bits());
        assert_eq!(others.0.iter().filter(|one| one.bit.is_none()).count(), 16);
        // Once it is nowhere, it is anybody's.
        let before = given(&others);
        let hooks = Bits {
            carried: others.bits(),
            ..Bits::default()
        };
        others.give_bits(&hooks);
        assert!(!others.lack_bits());
        let kept = |(before, now): (&Option<u32>, &Option<u32>)| before.is_none() || before == now;
        assert!(before.iter().zip(&given(&others)).all(kept));
    }
}
