//! Places that are wider than they look, and ways around an inspected api that carries a credential.
use super::Whole;
use crate::document::{Api, HostPattern, Named};
use crate::model::Coverage;
use crate::policy::CredentialUse;
use crate::syntax::{Decoder, quote};
use ipnet::IpNet;
use std::collections::{BTreeMap, BTreeSet};

/// Pairs of apis that are compared at most.
const MAX_COMPARED: usize = 200_000;

pub(super) fn warn(decoder: &mut Decoder, whole: &Whole<'_>) {
    wildcards(decoder, whole);
    let carrying = carrying(whole);
    wide_ranges(decoder, whole);
    let mut compared = 0;
    for (number, api) in whole.document.apis.iter().enumerate() {
        if api.value.coverage == Coverage::Inspected {
            continue;
        }
        for (other, credential) in &carrying {
            compared += 1;
            if compared > MAX_COMPARED {
                return;
            }
            let Some(inspected) = whole.document.apis.get(*other) else {
                continue;
            };
            if let Some(span) = around(&api.value, &inspected.value) {
                let both = holder_of_both(whole, number, *other);
                tell(decoder, whole, span, (api, inspected, *credential), both);
            }
        }
    }
}

/// The apis that some role sends a credential to, and which one.
fn carrying(whole: &Whole<'_>) -> BTreeMap<usize, usize> {
    let mut carrying = BTreeMap::new();
    for place in whole.ruled.roles.iter().flatten() {
        let credential = place.allow.iter().find_map(|number| {
            let rule = whole.ruled.rules.get(usize::try_from(*number).ok()?)?;
            match whole
                .ruled
                .entries
                .get(usize::try_from(rule.entry).ok()?)?
                .credential
            {
                CredentialUse::Inject(credential) => Some(credential),
                CredentialUse::None | CredentialUse::Client => None,
            }
        });
        if let Some(credential) = credential {
            carrying.entry(place.api).or_insert(credential);
        }
    }
    carrying
}

/// Every name below a wildcard gets the credential.
fn wildcards(decoder: &mut Decoder, whole: &Whole<'_>) {
    // In order of their names.
    let apis = &whole.document.apis;
    for credential in &whole.document.credentials {
        for name in &credential.value.to {
            let place = apis.binary_search_by(|api| api.name.text.cmp(&name.text));
            let api = place.ok().and_then(|place| apis.get(place));
            let below = api
                .into_iter()
                .flat_map(|api| &api.value.hosts)
                .find_map(|(host, _)| {
                    matches!(host, HostPattern::Below(_)).then(|| host.to_string())
                });
            if let Some(below) = below {
                let credential = quote(&credential.name.text);
                decoder
                    .warning(name.span, format!("credential {credential} goes to every host of {}", quote(&below)))
                    .help("list the hosts that it is for, unless all names below are in the same hands");
            }
        }
    }
}

fn is_wide(range: &IpNet) -> bool {
    match range {
        IpNet::V4(range) => range.prefix_len() < 24,
        IpNet::V6(range) => range.prefix_len() < 64,
    }
}

/// Ranges that hold more than a subnet, and ports on which others are inspected.
fn wide_ranges(decoder: &mut Decoder, whole: &Whole<'_>) {
    let apis = &whole.document.apis;
    let inspected = apis
        .iter()
        .filter(|api| api.value.coverage == Coverage::Inspected);
    let ports: BTreeSet<u16> = inspected.map(|api| api.value.port).collect();
    for ((range, port), span) in apis.iter().flat_map(|api| &api.value.tcp) {
        if is_wide(range) {
            decoder
                .warning(
                    *span,
                    format!("`{range}` is a wide range for connections that are not inspected"),
                )
                .help("name the addresses that are needed: up to a /24, or a /64 of IPv6");
        } else if matches!(port, 80 | 443) && ports.contains(port) {
            decoder
                .warning(
                    *span,
                    format!("port {port} is inspected for other apis, and not for this one"),
                )
                .help("give the api `hosts` instead, if it speaks HTTP");
        }
    }
}

/// Where a connection of the first api, which nobody looks into, could get to the second.
fn around(api: &Api, inspected: &Api) -> Option<crate::syntax::Span> {
    match api.coverage {
        Coverage::Inspected => None,
        Coverage::Tcp => {
            let endpoint = api
                .tcp
                .iter()
                .find(|((range, port), _)| *port == inspected.port && may_hold(range, inspected));
            endpoint.map(|(_, span)| *span)
        }
        Coverage::Sni if api.port == inspected.port => {
            let name = api.hosts.iter().find(|(host, _)| {
                let HostPattern::Below(suffix) = host else {
                    return false;
                };
                inspected.hosts.iter().any(|(other, _)| match other {
                    HostPattern::Exact(exact) => {
                        let parent = exact.as_str().split_once('.').map(|(_, parent)| parent);
                        parent == Some(suffix.as_str())
                    }
                    HostPattern::Below(_) => false,
                })
            });
            name.map(|(_, span)| *span)
        }
        Coverage::Sni => None,
    }
}

/// Whether hosts of the api may have an address in the range.
fn may_hold(range: &IpNet, api: &Api) -> bool {
    let overlaps = |other: &IpNet| range.contains(other) || other.contains(range);
    let literal = |host: &HostPattern| match host {
        HostPattern::Exact(host) => host.ip().is_some_and(|ip| range.contains(&ip)),
        HostPattern::Below(_) => false,
    };
    let named = api.hosts.iter().any(|(host, _)| match host {
        HostPattern::Exact(host) => host.ip().is_none(),
        HostPattern::Below(_) => true,
    });
    api.addresses.iter().any(overlaps)
        || api.hosts.iter().any(|(host, _)| literal(host))
        || (named && is_wide(range) && !is_private(range))
}

/// Whether the whole range is one that no public name should lead to.
fn is_private(range: &IpNet) -> bool {
    const PRIVATE: [&str; 8] = [
        "10.0.0.0/8",
        "172.16.0.0/12",
        "192.168.0.0/16",
        "127.0.0.0/8",
        "169.254.0.0/16",
        "100.64.0.0/10",
        "fc00::/7",
        "fe80::/10",
    ];
    let mut known = PRIVATE.iter().filter_map(|text| text.parse::<IpNet>().ok());
    known.any(|known| known.contains(range))
}

/// A workload that was granted both apis.
fn holder_of_both<'w>(whole: &Whole<'w>, one: usize, other: usize) -> Option<&'w str> {
    let has = |roles: &BTreeMap<usize, Vec<crate::grants::Clause>>, api: usize| {
        roles.keys().any(|role| {
            let places = whole.ruled.roles.get(*role);
            places
                .is_some_and(|places| places.binary_search_by_key(&api, |place| place.api).is_ok())
        })
    };
    let both = whole
        .granted
        .iter()
        .find(|(_, roles)| has(roles, one) && has(roles, other));
    let workload = whole.document.workloads.get(*both?.0)?;
    Some(&workload.name.text)
}

fn tell(
    decoder: &mut Decoder,
    whole: &Whole<'_>,
    span: crate::syntax::Span,
    (api, inspected, credential): (&Named<Api>, &Named<Api>, usize),
    both: Option<&str>,
) {
    let credential = whole.document.credentials.get(credential);
    let credential = credential.map_or(String::new(), |known| quote(&known.name.text));
    let message = format!(
        "api {} may lead to the hosts of api {} without inspection, where credential {credential} is used",
        quote(&api.name.text),
        quote(&inspected.name.text)
    );
    let help = match both {
        Some(workload) => format!(
            "workload {} is granted both: it could go around the rules; name other addresses or hosts",
            quote(workload)
        ),
        None => "nobody is granted both; name other addresses or hosts to keep it so".to_owned(),
    };
    decoder.warning(span, message).help(help);
}
