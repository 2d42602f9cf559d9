//! Connections that are not inspected: to be let connect is all there is to decide.
use super::{denial, lack, reason};
use crate::canonical::Host;
use crate::grants::{ApiGrants, Caller, Grants};
use crate::model::{Api, Connection, Coverage, Decision, Mode, Subject, Verdict};
use crate::policy::Policy;
use std::net::SocketAddr;

impl Policy {
    /// Decides on a connection that no request will be read from. `None` where it is to be inspected: no
    /// api without inspection covers it, or one that the subject has no grant on, while others are
    /// inspected on the same port.
    pub fn connect<'p>(
        &'p self,
        subject: &Subject<'_>,
        to: Connection<'_>,
        now: i64,
    ) -> Option<Decision<'p>> {
        let index = match to {
            Connection::Address(address) => self.tcp_index(address)?,
            Connection::Name(host, port) => self.sni_index(host, port)?,
        };
        let api = self.apis.get(index)?;
        if let Some(reason) = &self.refusing {
            return Some(denial(Some(api), Mode::Enforce, None, reason.clone()));
        }
        let caller = self.caller(subject, now);
        let grants = self.subjects.get(subject.workload);
        let granted = grants.and_then(|grants| grants.apis.get(&index));
        let mode = granted.and_then(|granted| granted.modes.mode(caller));
        if let (Some(granted), Some(mode)) = (granted, mode) {
            return Some(self.connected(api, granted, mode, caller));
        }
        if matches!(to, Connection::Address(address) if self.inspects_port(address.port())) {
            return None;
        }
        Some(not_connected(api, subject, grants, granted, caller))
    }

    fn connected<'p>(
        &'p self,
        api: &'p Api,
        granted: &'p ApiGrants,
        mode: Mode,
        caller: Caller,
    ) -> Decision<'p> {
        let had = |number: &&u32| self.has(&granted.rules, **number, caller);
        let rule = granted.rules.allows.iter().find(had);
        let rule = rule.and_then(|number| self.rule(*number));
        // Nothing of it is changed, as with an observed denial.
        Decision {
            verdict: Verdict::Allow,
            reason: None,
            ..denial(
                Some(api),
                mode,
                rule.map(|rule| &rule.public),
                reason::uninspected(api),
            )
        }
    }

    /// The api that is known by this address: the longest prefix where several are.
    pub(crate) fn tcp_index(&self, address: SocketAddr) -> Option<usize> {
        let ip = address.ip().to_canonical();
        let covering = |index: &usize| {
            let endpoints = &self.apis.get(*index)?.tcp;
            let fits = endpoints
                .iter()
                .filter(|(range, port)| *port == address.port() && range.contains(&ip));
            Some((fits.map(|(range, _)| range.prefix_len()).max()?, *index))
        };
        let longest = self.tcp.iter().filter_map(covering);
        longest
            .max_by_key(|(length, _)| *length)
            .map(|(_, index)| index)
    }

    fn sni_index(&self, host: &Host, port: u16) -> Option<usize> {
        let index = self.api_index(host, port)?;
        let api = self.apis.get(index)?;
        (api.coverage == Coverage::Sni).then_some(index)
    }

    fn inspects_port(&self, port: u16) -> bool {
        self.apis
            .iter()
            .any(|api| api.coverage != Coverage::Tcp && api.port == port)
    }
}

fn not_connected<'p>(
    api: &'p Api,
    subject: &Subject<'_>,
    grants: Option<&Grants>,
    granted: Option<&ApiGrants>,
    caller: Caller,
) -> Decision<'p> {
    let mode = grants.and_then(|grants| grants.modes.mode(caller));
    let reason = match granted {
        Some(granted) => {
            let lack = lack(granted.modes.clauses(), caller);
            reason::of_lack(lack, subject, &format!("api {}", api.name))
        }
        None => reason::no_grant(subject, Some(api), grants.is_some()),
    };
    denial(Some(api), mode.unwrap_or(Mode::Enforce), None, reason)
}
