//! Where requests go, in both policies: a host or address, and the api that each has there.
use super::{Change, Kind, Side};
use crate::canonical::Host;
use crate::model::{Api, ClientCertificate, Coverage, Scheme};
use crate::policy::Policy;
use std::collections::BTreeMap;
use std::net::SocketAddr;

/// Hosts or addresses that each of the policies has in one api.
#[derive(Debug)]
pub(super) struct Place {
    /// How they are written: `https://api.github.com`.
    pub(super) names: Vec<String>,
    pub(super) sample: Sample,
    /// Number of the old policy's api.
    pub(super) old: Option<usize>,
    /// Number of the new policy's api.
    pub(super) new: Option<usize>,
}

/// One of them.
#[derive(Debug, Clone)]
pub(super) enum Sample {
    Name(Host, u16),
    Address(SocketAddr),
}

/// Every host and address of either policy, by the apis that have it.
pub(super) fn places(old: &Policy, new: &Policy) -> Vec<Place> {
    let mut by_name: BTreeMap<String, Sample> = BTreeMap::new();
    for api in old.apis.iter().chain(&new.apis) {
        by_name.extend(samples(api));
    }
    let mut grouped: BTreeMap<(Option<usize>, Option<usize>, bool), Place> = BTreeMap::new();
    // Written out before wildcards, so that the first sample is a host that somebody knows.
    let mut by_name: Vec<_> = by_name.into_iter().collect();
    by_name.sort_by_key(|(name, _)| name.contains('*'));
    for (name, sample) in by_name {
        let find = |policy: &Policy| match &sample {
            Sample::Name(host, port) => policy.api_index(host, *port),
            Sample::Address(address) => policy.tcp_index(*address),
        };
        let (old, new) = (find(old), find(new));
        let by_address = matches!(sample, Sample::Address(_));
        let place = grouped
            .entry((old, new, by_address))
            .or_insert_with(|| Place {
                names: Vec::new(),
                sample,
                old,
                new,
            });
        place.names.push(name);
    }
    grouped.into_values().collect()
}

fn samples(api: &Api) -> Vec<(String, Sample)> {
    let scheme = match api.coverage {
        Coverage::Inspected => "https://",
        Coverage::Sni | Coverage::Tcp => "connect ",
    };
    let port = match (api.coverage, api.port) {
        (Coverage::Inspected, 443) => String::new(),
        (_, port) => format!(":{port}"),
    };
    let named = api.hosts.iter().filter_map(|pattern| {
        let host = match pattern.strip_prefix("*.") {
            // One label; that somebody has a host of this name is not to be feared.
            Some(below) => format!("tollgate-diff.{below}"),
            None => pattern.clone(),
        };
        let sample = Sample::Name(Host::parse(&host).ok()?, api.port);
        Some((format!("{scheme}{pattern}{port}"), sample))
    });
    let by_address = api.tcp.iter().map(|(range, port)| {
        let sample = Sample::Address(SocketAddr::new(range.addr(), *port));
        (format!("connect {range}:{port}"), sample)
    });
    named.chain(by_address).collect()
}

/// How connections to a place are made, where that is not the same: addresses, CA.
pub(super) fn compare(old: &Policy, new: &Policy, place: &Place, changes: &mut Vec<Change>) {
    let (Some(old), Some(new)) = (
        place.old.and_then(|number| old.apis.get(number)),
        place.new.and_then(|number| new.apis.get(number)),
    ) else {
        return;
    };
    let ranges = |api: &Api| {
        let mut ranges: Vec<String> = api.addresses.iter().map(ToString::to_string).collect();
        ranges.sort_unstable();
        ranges.dedup();
        ranges
    };
    let (was, is) = (ranges(old), ranges(new));
    if was != is {
        let more = is.iter().any(|range| !was.contains(range));
        let fewer = was.iter().any(|range| !is.contains(range));
        let kind = match (more, fewer) {
            (true, false) => Kind::LetsIn,
            (false, true) => Kind::ShutsOut,
            _ => Kind::Both,
        };
        let says = |ranges: &[String]| match ranges.is_empty() {
            true => "public addresses only".to_owned(),
            false => format!("public addresses and {}", ranges.join(", ")),
        };
        changes.push(change(
            place,
            kind,
            "addresses",
            [says(&was), says(&is)],
            [old, new],
        ));
    }
    let ca = |api: &Api| {
        let own = api.ca.as_ref();
        own.map_or("the system's CAs".to_owned(), |ca| {
            format!("{}:{}", ca.source, ca.key)
        })
    };
    if ca(old) != ca(new) {
        changes.push(change(
            place,
            Kind::Changes,
            "trusted CA",
            [ca(old), ca(new)],
            [old, new],
        ));
    }
    let shown = |api: &Api| match &api.certificate {
        None => "none".to_owned(),
        Some(ClientCertificate { chain, key }) => format!(
            "{}:{} with {}:{}",
            chain.source, chain.key, key.source, key.key
        ),
    };
    if shown(old) != shown(new) {
        let says = [shown(old), shown(new)];
        changes.push(change(
            place,
            Kind::Changes,
            "client certificate",
            says,
            [old, new],
        ));
    }
    let scheme = |api: &Api| match api.scheme {
        Scheme::Https => "through TLS".to_owned(),
        Scheme::Http => "in clear".to_owned(),
    };
    if scheme(old) != scheme(new) {
        let says = [scheme(old), scheme(new)];
        changes.push(change(place, Kind::Changes, "reached", says, [old, new]));
    }
    let coverage = |api: &Api| {
        let told = match api.coverage {
            Coverage::Inspected => "every request is inspected",
            Coverage::Sni => "only the name in the TLS hello is seen",
            Coverage::Tcp => "only the address is seen",
        };
        told.to_owned()
    };
    if coverage(old) != coverage(new) {
        let says = [coverage(old), coverage(new)];
        changes.push(change(place, Kind::Changes, "inspection", says, [old, new]));
    }
}

fn change(place: &Place, kind: Kind, what: &str, says: [String; 2], apis: [&Api; 2]) -> Change {
    let ([old, new], [was, is]) = (says, apis);
    let side = |says: String, api: &Api| {
        vec![Side {
            says,
            at: Some(api.at.clone()),
        }]
    };
    Change {
        kind,
        workloads: Vec::new(),
        identities: Vec::new(),
        places: place.names.clone(),
        what: what.to_owned(),
        old: side(old, was),
        new: side(new, is),
        witnesses: Vec::new(),
    }
}
