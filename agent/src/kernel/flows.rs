//! Flows and accounts, as the hooks keep them.
use super::{
    Counters, Fence, Flow, FlowAccount, WorkloadAccount,
    events::code,
    govern::UNSETTLED_NAME,
    translate::{address, counters, time},
};
use std::collections::{BTreeMap, HashSet};
use std::os::fd::{AsRawFd, BorrowedFd};
use tollgate_common::event::Reason;
use tollgate_common::flow::{Account, CLIENT_CLOSED, COMPLETE};
use tollgate_common::limits::MAX_FLOWS;

impl Fence {
    pub(super) fn flow_behind(&self, accepted: BorrowedFd<'_>) -> Option<Flow> {
        let carried = self.maps.agent_sockets.get(&accepted.as_raw_fd(), 0).ok()?;
        let connection = carried.connection;
        if connection.cookie == 0 {
            return None;
        }
        // The hooks keep this record for as long as the accepted socket is open.
        let record = self.maps.flows.get(&connection, 0).ok()?;
        let is_sound = record.connection == connection && record.state & COMPLETE != 0;
        is_sound.then(|| self.flow(&record))
    }

    pub(super) fn live_flows(&self) -> Vec<FlowAccount> {
        // A walk starts over where its place was just removed: bounded, and each flow once.
        let records = self.maps.flows.iter().take(2 * MAX_FLOWS as usize);
        let mut seen = HashSet::new();
        let live = records.filter_map(Result::ok).filter(|(key, record)| {
            record.connection == *key
                && record.state & (COMPLETE | CLIENT_CLOSED) == COMPLETE
                && seen.insert((key.cookie, key.opened))
        });
        live.filter_map(|(_, record)| {
            Some(FlowAccount {
                cookie: record.connection.cookie,
                workload: self.names.workload(record.owner.workload).to_string(),
                process: (*self.names.process(&self.root, &record.owner)).clone(),
                destination: address(&record.destination),
                opened: time(record.connection.opened).try_into().ok()?,
                counters: counters(&record.traffic),
            })
        })
        .collect()
    }

    pub(super) fn all_accounts(&self) -> Vec<WorkloadAccount> {
        let mut refusals: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
        for (key, count) in self.maps.refusals.iter().filter_map(Result::ok) {
            if let Some(reason) = Reason::ALL
                .into_iter()
                .find(|&reason| reason as u32 == key.reason)
            {
                refusals
                    .entry(key.workload)
                    .or_default()
                    .insert(code(reason).to_owned(), count);
            }
        }
        let workloads = self.names.workloads.load();
        let mut accounts: Vec<WorkloadAccount> = workloads
            .iter()
            .map(|(id, name)| {
                let (connections, counters) = self.sum(*id);
                WorkloadAccount {
                    workload: name.to_string(),
                    connections,
                    refusals: refusals.remove(id).unwrap_or_default(),
                    counters,
                }
            })
            .collect();
        // What nobody settled is listed where something came of it.
        accounts
            .retain(|account| account.workload != UNSETTLED_NAME || !account.refusals.is_empty());
        accounts.sort_by(|a, b| a.workload.cmp(&b.workload));
        accounts
    }

    /// A workload's account over all CPUs.
    fn sum(&self, workload: u32) -> (u64, Counters) {
        let mut sum = Account::default();
        if let Ok(values) = self.maps.accounts.get(&workload, 0) {
            for account in values.iter() {
                sum.connections += account.connections;
                sum.traffic.bytes_out += account.traffic.bytes_out;
                sum.traffic.bytes_in += account.traffic.bytes_in;
                sum.traffic.packets_out += account.traffic.packets_out;
                sum.traffic.packets_in += account.traffic.packets_in;
            }
        }
        (sum.connections, counters(&sum.traffic))
    }

    pub(super) fn count_lost(&self) -> u64 {
        self.maps
            .lost
            .get(&0, 0)
            .map_or(0, |values| values.iter().sum())
    }
}
