//! Names: which hosts a workload may look up, before it is known what it will send there.
use super::reason;
use crate::canonical::Host;
use crate::grants::{ApiGrants, Grants};
use crate::model::{Mode, Unnamed};
use crate::policy::Policy;

impl Policy {
    /// Whether `workload` may look up `host`: some rule that it has on an api with that host allows something to
    /// somebody, and has not expired. Who will call, on which port and in which mode, is decided when they do.
    ///
    /// # Errors
    /// It may not, and why.
    pub fn name(&self, workload: &str, host: &Host, now: i64) -> Result<(), Unnamed> {
        if let Some(reason) = &self.refusing {
            return Err(Unnamed {
                mode: Mode::Enforce,
                reason: reason.clone(),
            });
        }
        let grants = self.subjects.get(workload);
        let mut nearest = None;
        for (_, index) in self.hosts.find(host) {
            let granted = grants.and_then(|grants| grants.apis.get(&index));
            if granted.is_some_and(|granted| self.allows_something(granted, now)) {
                return Ok(());
            }
            // One that is granted and no longer holds says more than one that never was.
            if granted.is_some() || nearest.is_none() {
                nearest = Some((index, granted.is_some()));
            }
        }
        let api = nearest.and_then(|(index, granted)| Some((self.apis.get(index)?, granted)));
        let mode = grants.and_then(|grants: &Grants| grants.modes.lasting(now));
        Err(Unnamed {
            mode: mode.unwrap_or(Mode::Enforce),
            reason: reason::unnamed(workload, host, api),
        })
    }

    fn allows_something(&self, granted: &ApiGrants, now: i64) -> bool {
        let lasts = |rule: &u32| {
            let clauses = self.clauses(&granted.rules, *rule);
            clauses.iter().any(|clause| clause.lasts(now))
        };
        granted.modes.lasting(now).is_some() && granted.rules.allows.iter().any(lasts)
    }
}
