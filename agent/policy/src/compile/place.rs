//! Workloads and apis: what claims what.
use crate::document::{Api, HostPattern, Identity, Named, Workload};
use crate::model::{self, Coverage};
use crate::policy::Hosts;
use crate::syntax::{Decoder, Span, quote};
use std::collections::HashMap;

/// The table of hosts; a host and port claimed by two apis is a fault.
pub(super) fn hosts(decoder: &mut Decoder, apis: &[Named<Api>]) -> Hosts {
    let mut hosts = Hosts::default();
    let mut claimed: HashMap<(&HostPattern, u16), (Span, &str)> = HashMap::new();
    for (number, api) in apis.iter().enumerate() {
        let port = api.value.port;
        for (pattern, span) in &api.value.hosts {
            if let Some((first, name)) = claimed.get(&(pattern, port)) {
                let place = decoder.location((*first).min(*span));
                let host = quote(&pattern.to_string());
                let message = if *name == &*api.name.text {
                    format!("{host} stands twice in the api")
                } else {
                    format!(
                        "{host} on port {port} belongs to two apis, {} and {}",
                        quote(name),
                        quote(&api.name.text)
                    )
                };
                decoder.error((*first).max(*span), message).help(format!(
                    "the other stands at {place}; a host and port is one api's"
                ));
                continue;
            }
            claimed.insert((pattern, port), (*span, &api.name.text));
            let (table, host) = match pattern {
                HostPattern::Exact(host) => (&mut hosts.exact, host),
                HostPattern::Below(host) => (&mut hosts.wildcard, host),
            };
            table
                .entry(host.as_str().into())
                .or_default()
                .push((port, number));
        }
    }
    hosts
}

/// The numbers of the apis that are known by address; the same address range and port twice is a fault.
pub(super) fn tcp(decoder: &mut Decoder, apis: &[Named<Api>]) -> Vec<usize> {
    let mut claimed: HashMap<(ipnet::IpNet, u16), Span> = HashMap::new();
    for (endpoint, span) in apis.iter().flat_map(|api| &api.value.tcp) {
        match claimed.get(endpoint) {
            Some(first) => {
                let place = decoder.location((*first).min(*span));
                decoder
                    .error(
                        (*first).max(*span),
                        format!("`{}:{}` stands twice", endpoint.0, endpoint.1),
                    )
                    .help(format!(
                        "the other stands at {place}; an address and port is one api's"
                    ));
            }
            None => {
                claimed.insert(*endpoint, *span);
            }
        }
    }
    let uninspected = |(number, api): (usize, &Named<Api>)| {
        (api.value.coverage == Coverage::Tcp).then_some(number)
    };
    apis.iter().enumerate().filter_map(uninspected).collect()
}

/// The same proof for two identities would make it chance which of them calls.
pub(super) fn check_proofs(decoder: &mut Decoder, identities: &[Named<Identity>]) {
    let mut claimed: HashMap<&model::Proof, Span> = HashMap::new();
    for identity in identities {
        let Some(proof) = &identity.value.proof else {
            continue;
        };
        let span = identity.name.span;
        match claimed.get(proof) {
            Some(first) => {
                let place = decoder.location((*first).min(span));
                decoder
                    .error((*first).max(span), "two identities are proven by the same")
                    .help(format!("the other stands at {place}"));
            }
            None => {
                claimed.insert(proof, span);
            }
        }
    }
}

pub(super) fn identities(
    decoder: &Decoder,
    identities: Vec<Named<Identity>>,
) -> Vec<model::Identity> {
    let public = |identity: Named<Identity>| {
        Some(model::Identity {
            at: decoder.location(identity.name.span),
            name: identity.name.text.into(),
            // Missing only where there is a fault.
            proof: identity.value.proof?,
        })
    };
    identities.into_iter().filter_map(public).collect()
}

/// The same selector in two workloads would make it chance which of them a process is.
pub(super) fn check_selectors(decoder: &mut Decoder, workloads: &[Named<Workload>]) {
    let mut claimed: HashMap<model::Selector, Span> = HashMap::new();
    for workload in workloads {
        for (selector, span) in &workload.value.selectors {
            let mut key = selector.clone();
            key.at = crate::syntax::Location::default();
            if let Some(first) = claimed.get(&key) {
                let place = decoder.location((*first).min(*span));
                decoder
                    .error(
                        (*first).max(*span),
                        "two workloads are recognised by the same selector",
                    )
                    .help(format!("the other stands at {place}"));
                continue;
            }
            claimed.insert(key, *span);
        }
    }
}

pub(super) fn workloads(
    decoder: &Decoder,
    workloads: Vec<Named<Workload>>,
) -> Vec<model::Workload> {
    let public = |workload: Named<Workload>| model::Workload {
        at: decoder.location(workload.name.span),
        name: workload.name.text.into(),
        selectors: workload
            .value
            .selectors
            .into_iter()
            .map(|(selector, _)| selector)
            .collect(),
        listen: workload.value.openings.listen,
        unix: workload.value.openings.unix,
        established: workload.value.established,
    };
    workloads.into_iter().map(public).collect()
}

pub(super) fn apis(decoder: &Decoder, apis: Vec<Named<Api>>) -> Vec<model::Api> {
    let public = |api: Named<Api>| model::Api {
        at: decoder.location(api.name.span),
        name: api.name.text.into(),
        hosts: api
            .value
            .hosts
            .iter()
            .map(|(pattern, _)| pattern.to_string())
            .collect(),
        port: api.value.port,
        scheme: api.value.scheme,
        ca: api.value.ca,
        certificate: api.value.certificate,
        addresses: api.value.addresses,
        coverage: api.value.coverage,
        tcp: api
            .value
            .tcp
            .into_iter()
            .map(|(endpoint, _)| endpoint)
            .collect(),
        meter: api.value.meter,
    };
    apis.into_iter().map(public).collect()
}

/// The numbers of identities by their names.
pub(super) fn numbers(identities: &[model::Identity]) -> HashMap<Box<str>, u32> {
    let numbered = identities.iter().zip(0..);
    numbered
        .map(|(identity, number)| (identity.name.as_str().into(), number))
        .collect()
}
