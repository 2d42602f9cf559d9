//! Conditions on cgroups, which have bits: in what is known of cgroups, in paths, in rules, and in what was run before it was known.
//! Those are written one after the other, and hooks read them meanwhile. So a bit means one thing in all of them, and means another
//! only after it was nowhere.
use super::recognise::entries;
use super::{Error, Fence, govern::removed, maps::write};
use std::collections::HashMap;
use tollgate_common::recognise::{Subtree, Waiting};

/// `BPF_EXIST`
const EXIST: u64 = 2;

/// Bits of conditions that the hooks have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Bits {
    /// Those that are anywhere.
    pub carried: u64,
    /// What those of rules mean ([`super::Case::meaning`]), by the bit's number, where who wrote them has said it.
    pub meanings: HashMap<u32, u32>,
}

impl Fence {
    /// What bits the hooks have, be it from an earlier agent.
    pub fn bits(&self) -> Bits {
        let writers = self.maps.write();
        let mut found = Bits::default();
        for (case, rule) in entries(&writers.rules) {
            let Some(bit) = case.condition.checked_sub(1) else {
                continue;
            };
            found.carried |= 1_u64.checked_shl(bit).unwrap_or_default();
            let known = found.meanings.entry(bit).or_insert(rule.meaning);
            if *known != rule.meaning {
                *known = 0;
            }
        }
        found.meanings.retain(|_, meaning| *meaning != 0);
        // In the order in which hooks take them from one to the next.
        let steps = entries(&writers.steps).map(|(_, step)| step.conditions);
        found.carried |= steps.fold(0, |all, bits| all | bits);
        let cgroups = entries(&writers.governed).map(|(_, subtree)| subtree.conditions);
        found.carried |= cgroups.fold(0, |all, bits| all | bits);
        let waiting = entries(&writers.waiting).map(|(_, program)| program.conditions);
        found.carried |= waiting.fold(0, |all, bits| all | bits);
        found
    }

    /// Takes all other bits from cgroups and from what is waited for. No rule and no path must have them any more.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn keep_bits(&self, kept: u64) -> Result<(), Error> {
        let mut writers = self.maps.write();
        let stale = entries(&writers.governed).filter(|(_, old)| old.conditions & !kept != 0);
        let cgroups: Vec<(u64, Subtree)> = stale.collect();
        for (id, old) in &cgroups {
            let conditions = old.conditions & kept;
            let left = Subtree { conditions, ..*old };
            let done = match left == Subtree::default() {
                true => writers.governed.remove(id),
                false => writers.governed.insert(id, left, EXIST),
            };
            removed(done, "GOVERNED")?; // It may be gone.
        }
        let stale = entries(&writers.waiting).filter(|(_, old)| old.conditions & !kept != 0);
        let waiting: Vec<(u32, Waiting)> = stale.collect();
        for (number, old) in &waiting {
            let conditions = old.conditions & kept;
            let left = Waiting { conditions, ..*old };
            let told = writers.waiting.insert(number, left, EXIST);
            told.map_err(write("WAITING"))?;
        }
        if !cgroups.is_empty() {
            self.scope.ask_again();
        }
        Ok(())
    }
}
