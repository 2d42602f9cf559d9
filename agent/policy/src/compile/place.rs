//! Workloads and apis: what claims what.
use crate::document::{Api, HostPattern, Named, Workload};
use crate::model;
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

/// The same selector in two workloads would make it chance which of them a process is.
pub(super) fn check_selectors(decoder: &mut Decoder, workloads: &[Named<Workload>]) {
    let mut claimed: HashMap<String, Span> = HashMap::new();
    for workload in workloads {
        for (selector, span) in &workload.value.selectors {
            let key = format!("{selector:?}");
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
        ca: api.value.ca,
        addresses: api.value.addresses,
    };
    apis.into_iter().map(public).collect()
}
