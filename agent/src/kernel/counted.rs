//! What the hooks have counted of each workload, in this agent's maps or in those of another version.
use super::govern::UNSETTLED_NAME;
use super::{Counters, Fence, events::code, pins, sys, translate};
use aya::Pod;
use aya::maps::{HashMap, Map, MapData, MapError, PerCpuArray};
use std::collections::BTreeMap;
use std::io;
use std::path::Path;
use tollgate_common::event::{Reason, RefusalKey};
use tollgate_common::flow::Account;
use tollgate_common::recognise::UNSETTLED;
use tollgate_common::settings::Name;

/// The map by which it is told whether what was counted is counted still.
const ACCOUNTS: &str = "ACCOUNTS";

/// What a fence has counted.
#[derive(Debug)]
pub struct Counted {
    /// Which fence: no other one ever has this name, on this boot of the host or another.
    pub fence: String,
    /// What it has counted since it stands.
    pub accounts: Vec<WorkloadAccount>,
}

/// One workload's account.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct WorkloadAccount {
    /// The workload.
    pub workload: String,
    /// Connections steered.
    pub connections: u64,
    /// Refusals by reason.
    pub refusals: BTreeMap<String, u64>,
    /// Bytes and packets.
    #[serde(flatten)]
    pub counters: Counters,
}

/// The maps in which it is.
struct Counts<'a> {
    accounts: &'a PerCpuArray<MapData, Account>,
    refusals: &'a HashMap<MapData, RefusalKey, u64>,
}

impl Counts<'_> {
    /// The accounts of workloads by their numbers and names, in the order of those.
    fn of<'n>(&self, names: impl Iterator<Item = (u32, &'n str)>) -> Vec<WorkloadAccount> {
        let mut refusals = self.refusals();
        let mut accounts: Vec<WorkloadAccount> = names
            .map(|(id, name)| {
                let (connections, counters) = self.sum(id);
                WorkloadAccount {
                    workload: name.to_owned(),
                    connections,
                    refusals: refusals.remove(&id).unwrap_or_default(),
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

    /// By workload, and by reason.
    fn refusals(&self) -> BTreeMap<u32, BTreeMap<String, u64>> {
        let mut all: BTreeMap<u32, BTreeMap<String, u64>> = BTreeMap::new();
        for (key, count) in self.refusals.iter().filter_map(Result::ok) {
            let mut reasons = Reason::ALL.into_iter();
            if let Some(reason) = reasons.find(|&reason| reason as u32 == key.reason) {
                let of = all.entry(key.workload).or_default();
                of.insert(code(reason).to_owned(), count);
            }
        }
        all
    }

    /// A workload's account over all CPUs.
    fn sum(&self, workload: u32) -> (u64, Counters) {
        let mut sum = Account::default();
        if let Ok(values) = self.accounts.get(&workload, 0) {
            for account in values.iter() {
                sum.connections += account.connections;
                sum.traffic.bytes_out += account.traffic.bytes_out;
                sum.traffic.bytes_in += account.traffic.bytes_in;
                sum.traffic.packets_out += account.traffic.packets_out;
                sum.traffic.packets_in += account.traffic.packets_in;
            }
        }
        (sum.connections, translate::counters(&sum.traffic))
    }
}

impl WorkloadAccount {
    /// Was nothing counted?
    pub fn is_zero(&self) -> bool {
        self.connections == 0 && self.refusals.is_empty() && self.counters == Counters::default()
    }

    /// Adds what another fence has counted of the same workload.
    pub fn add(&mut self, other: &Self) {
        let add = |to: &mut u64, from: u64| *to = to.saturating_add(from);
        add(&mut self.connections, other.connections);
        for (reason, count) in &other.refusals {
            add(self.refusals.entry(reason.clone()).or_default(), *count);
        }
        let (own, theirs) = (&mut self.counters, &other.counters);
        add(&mut own.bytes_out, theirs.bytes_out);
        add(&mut own.bytes_in, theirs.bytes_in);
        add(&mut own.packets_out, theirs.packets_out);
        add(&mut own.packets_in, theirs.packets_in);
    }
}

impl Fence {
    /// Accounts of all workloads seen.
    pub fn accounts(&self) -> Vec<WorkloadAccount> {
        let counts = Counts {
            accounts: &self.maps.accounts,
            refusals: &self.maps.refusals,
        };
        let names = self.names.workloads.load();
        counts.of(names.iter().map(|(id, name)| (*id, &**name)))
    }

    /// Accounts of all workloads seen, and of which fence they are.
    ///
    /// # Errors
    /// The system's word: which fence it is cannot be told.
    pub fn counted(&self) -> io::Result<Counted> {
        let mut held = self.programs.maps.iter();
        let held = held.find(|map| map.name == ACCOUNTS);
        Ok(Counted {
            fence: named(held.ok_or(io::ErrorKind::NotFound)?.id())?,
            accounts: self.accounts(),
        })
    }
}

/// What the fence of another version has counted that stands at these pins. Layouts of what counts are rarely changed.
/// `None`: they were, or nothing stands there.
pub fn counted_by_another(pin_dir: &Path) -> Option<Counted> {
    let accounts: PerCpuArray<_, Account> =
        open::<u32, Account>(pin_dir, ACCOUNTS)?.try_into().ok()?;
    let refusals = open::<RefusalKey, u64>(pin_dir, "REFUSALS")?;
    let workloads: HashMap<_, u32, Name> =
        open::<u32, Name>(pin_dir, "WORKLOADS")?.try_into().ok()?;
    let counts = Counts {
        accounts: &accounts,
        refusals: &refusals.try_into().ok()?,
    };
    let named_all = workloads
        .iter()
        .collect::<Result<Vec<_>, MapError>>()
        .ok()?;
    let named_all = named_all.iter();
    let names: Vec<(u32, String)> = named_all
        .map(|(id, name)| (*id, translate::text(&name.0)))
        .chain([(UNSETTLED.into(), UNSETTLED_NAME.to_owned())])
        .collect();
    let map = sys::open_pin(&pins::map(pin_dir, ACCOUNTS));
    let id = map.and_then(sys::map_info).ok()?.id();
    Some(Counted {
        fence: named(id).ok()?,
        accounts: counts.of(names.iter().map(|(id, name)| (*id, name.as_str()))),
    })
}

/// A pinned map, if its entries have these sizes.
fn open<K: Pod, V: Pod>(pin_dir: &Path, name: &str) -> Option<Map> {
    let map = MapData::from_pin(pins::map(pin_dir, name)).ok()?;
    let info = map.info().ok()?;
    let sizes = (info.key_size() as usize, info.value_size() as usize);
    (sizes == (size_of::<K>(), size_of::<V>())).then(|| Map::from_map_data(map).ok())?
}

/// A fence by one of its maps: the kernel gives a number again only after the host has started anew, or four billion others.
fn named(map: u32) -> io::Result<String> {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    Ok(format!("{}/{map}", boot.trim()))
}
