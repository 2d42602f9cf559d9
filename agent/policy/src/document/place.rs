//! Where requests come from and where they go: workloads and apis.
use super::opening::{Openings, openings};
use super::selector::selector;
use super::{Reading, secret_ref};
use crate::budget::Meter;
use crate::canonical::Host;
use crate::model::{ClientCertificate, Coverage, Established, Scheme, SecretRef, Selector};
use crate::syntax::{Fields, Node, Span};
use ipnet::IpNet;
use std::net::IpAddr;

#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) selectors: Vec<(Selector, Span)>,
    pub(crate) openings: Openings,
    pub(crate) established: Established,
}

#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) hosts: Vec<(HostPattern, Span)>,
    pub(crate) port: u16,
    pub(crate) scheme: Scheme,
    pub(crate) ca: Option<SecretRef>,
    pub(crate) certificate: Option<ClientCertificate>,
    pub(crate) addresses: Vec<IpNet>,
    pub(crate) coverage: Coverage,
    pub(crate) tcp: Vec<((IpNet, u16), Span)>,
    pub(crate) meter: Option<Meter>,
}

/// A host of an api.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(crate) enum HostPattern {
    Exact(Host),
    /// `*.` and this: exactly one label before it.
    Below(Host),
}

impl std::fmt::Display for HostPattern {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Exact(host) => write!(f, "{host}"),
            Self::Below(host) => write!(f, "*.{host}"),
        }
    }
}

pub(super) fn workload(reading: &mut Reading<'_>, node: &Node) -> Workload {
    let mut selectors = Vec::new();
    let mut opened = Openings::default();
    let mut from_before = Established::default();
    if let Some(mut fields) = reading.decoder.fields(node, "the workload") {
        let matches = fields.take("match");
        opened = openings(reading, &mut fields);
        if let Some(node) = fields.take("established") {
            let words =
                [Established::Destroy, Established::Report].map(|word| (word.as_str(), word));
            from_before = reading.decoder.word(node, &words).unwrap_or_default();
        }
        fields.finish(reading.decoder);
        let items = matches
            .and_then(|node| reading.decoder.one_or_many(node))
            .unwrap_or_default();
        selectors.extend(
            items
                .iter()
                .filter_map(|item| Some((selector(reading, item)?, item.span))),
        );
    }
    Workload {
        selectors,
        openings: opened,
        established: from_before,
    }
}

/// Hosts, names that are only seen in the TLS hello, or addresses: one of the three.
pub(super) fn api(reading: &mut Reading<'_>, node: &Node) -> Api {
    let mut api = Api {
        hosts: Vec::new(),
        port: 443,
        scheme: Scheme::Https,
        ca: None,
        certificate: None,
        addresses: Vec::new(),
        coverage: Coverage::Inspected,
        tcp: Vec::new(),
        meter: None,
    };
    let Some(mut fields) = reading.decoder.fields(node, "the api") else {
        return api;
    };
    let [hosts, sni, tcp] = ["hosts", "sni", "tcp"].map(|key| fields.take_entry(key));
    let given: Vec<_> = [hosts, sni, tcp].into_iter().flatten().collect();
    match given.as_slice() {
        [_] => {}
        [] => {
            reading
                .decoder
                .error(fields.span(), "the api needs `hosts`")
                .help("or `sni` or `tcp`, where connections are not to be inspected");
        }
        [_, second, ..] => {
            reading
                .decoder
                .error(
                    second.key.span,
                    "an api has one of `hosts`, `sni` and `tcp`",
                )
                .help("make an api of each");
        }
    }
    if let Some(entry) = tcp {
        api.coverage = Coverage::Tcp;
        let items = reading
            .decoder
            .nonempty_list(&entry.value)
            .unwrap_or_default();
        let endpoints = items
            .iter()
            .filter_map(|item| Some((endpoint(reading, item)?, item.span)));
        api.tcp.extend(endpoints);
        let keys = ["port", "addresses", "tls", "scheme", "meter"];
        refuse_keys(reading, &mut fields, &keys, "tcp");
    } else if sni.is_some() {
        api.coverage = Coverage::Sni;
        refuse_keys(reading, &mut fields, &["tls", "scheme", "meter"], "sni");
    }
    rest_of_api(
        reading,
        &mut api,
        &mut fields,
        hosts.or(sni).map(|entry| &entry.value),
    );
    fields.finish(reading.decoder);
    api
}

fn rest_of_api(
    reading: &mut Reading<'_>,
    api: &mut Api,
    fields: &mut Fields<'_>,
    hosts: Option<&Node>,
) {
    let (port, tls) = (fields.take("port"), fields.take("tls"));
    let scheme = fields.take("scheme");
    let (addresses, meter) = (fields.take("addresses"), fields.take("meter"));
    let meters = [
        ("openai", Meter::OpenAi),
        ("anthropic", Meter::Anthropic),
        ("gemini", Meter::Gemini),
    ];
    api.meter = meter.and_then(|node| reading.decoder.word(node, &meters));
    let hosts = hosts
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    api.hosts.extend(
        hosts
            .iter()
            .filter_map(|item| Some((host_pattern(reading, item)?, item.span))),
    );
    if api.coverage == Coverage::Tcp {
        return;
    }
    let schemes = [("https", Scheme::Https), ("http", Scheme::Http)];
    if let Some(scheme) = scheme.and_then(|node| reading.decoder.word(node, &schemes)) {
        api.scheme = scheme;
    }
    if api.scheme == Scheme::Http {
        api.port = 80;
        if let Some(node) = tls {
            reading
                .decoder
                .error(node.span, "an api that is reached in clear has no `tls`")
                .help("take `tls` or `scheme: http` out");
        }
    }
    if let Some(port) = port.and_then(|node| reading.decoder.integer(node, 1..=u16::MAX)) {
        api.port = port;
    }
    if let Some(node) = tls.filter(|_| api.coverage == Coverage::Inspected) {
        (api.ca, api.certificate) = upstream_tls(reading, node);
    }
    let addresses = addresses
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    api.addresses.extend(
        addresses
            .iter()
            .filter_map(|item| address_range(reading, item)),
    );
}

/// Notes keys that have no meaning for this kind of api.
fn refuse_keys(
    reading: &mut Reading<'_>,
    fields: &mut Fields<'_>,
    keys: &[&'static str],
    kind: &str,
) {
    for key in keys {
        if let Some(entry) = fields.take_entry(key) {
            reading.decoder.error(
                entry.key.span,
                format!("`{key}` means nothing for an api with `{kind}`"),
            );
        }
    }
}

/// `10.0.0.7:6379`, `10.1.0.0/16:5432` or `[2001:db8::1]:5432`.
fn endpoint(reading: &mut Reading<'_>, node: &Node) -> Option<(IpNet, u16)> {
    let parse = |text: &str| {
        let (address, port) = text.rsplit_once(':')?;
        let port = port
            .parse()
            .ok()
            .filter(|_| !port.starts_with(['0', '+']))?;
        let bare = address
            .strip_prefix('[')
            .and_then(|rest| rest.strip_suffix(']'));
        let range: IpNet = match (bare, address.contains(':')) {
            (Some(bare), _) if bare.contains(':') => parse_range(bare)?,
            (None, false) => parse_range(address)?,
            _ => return None,
        };
        Some((range, port))
    };
    let what =
        "an address and port such as `10.0.0.7:6379`, `10.1.0.0/16:5432` or `[2001:db8::1]:5432`";
    let (range, port) = reading.decoder.parsed(node, what, parse)?;
    exact_range(reading, node, range).map(|range| (range, port))
}

fn parse_range(text: &str) -> Option<IpNet> {
    text.parse::<IpNet>()
        .ok()
        .or_else(|| text.parse().ok().map(|ip: IpAddr| ip.into()))
}

/// How the upstream is known, and what is shown to it.
fn upstream_tls(
    reading: &mut Reading<'_>,
    node: &Node,
) -> (Option<SecretRef>, Option<ClientCertificate>) {
    let Some(mut fields) = reading.decoder.fields(node, "`tls`") else {
        return (None, None);
    };
    let [ca, cert, key] = ["ca", "cert", "key"].map(|name| fields.take(name));
    let span = fields.span();
    fields.finish(reading.decoder);
    if ca.or(cert).or(key).is_none() {
        reading
            .decoder
            .error(span, "`tls` says nothing")
            .help("give `ca`, or `cert` and `key`; without `tls`, the system's CAs are trusted");
    }
    if cert.is_some() != key.is_some() {
        reading
            .decoder
            .error(span, "a client certificate needs both `cert` and `key`")
            .help("e.g. `tls: { cert: \"file:client.pem\", key: \"file:client.key\" }`");
    }
    let mut read = |node: Option<&Node>| node.and_then(|node| secret_ref(reading, node));
    let (ca, chain, key) = (read(ca), read(cert), read(key));
    let certificate = chain.zip(key);
    (
        ca,
        certificate.map(|(chain, key)| ClientCertificate { chain, key }),
    )
}

/// A range such as `10.1.0.0/16`, or a single address.
fn address_range(reading: &mut Reading<'_>, node: &Node) -> Option<IpNet> {
    let what = "an address range such as `10.1.0.0/16`";
    let range = reading.decoder.parsed(node, what, parse_range)?;
    exact_range(reading, node, range)
}

fn exact_range(reading: &mut Reading<'_>, node: &Node, range: IpNet) -> Option<IpNet> {
    if let IpNet::V6(range) = range
        && range.addr().to_ipv4_mapped().is_some()
    {
        // Such an address is compared as the IPv4 address that it is.
        reading
            .decoder
            .error(node.span, "this is an IPv4 address written as an IPv6 one")
            .help("write it as IPv4: it is the same");
        return None;
    }
    if range.trunc() == range {
        return Some(range);
    }
    let message = format!(
        "the range has bits set behind its prefix; it would be `{}`",
        range.trunc()
    );
    reading.decoder.error(node.span, message);
    None
}

fn host_pattern(reading: &mut Reading<'_>, node: &Node) -> Option<HostPattern> {
    let text = reading.decoder.string(node)?;
    let (host, below) = match text.strip_prefix("*.") {
        Some(suffix) => (suffix, true),
        None => (text, false),
    };
    let remark = match Host::parse(host) {
        Ok(host) if !below => return Some(HostPattern::Exact(host)),
        Ok(host) if host.ip().is_some() => "an address has no names below it".to_owned(),
        Ok(host) if !host.as_str().contains('.') => {
            format!("`*.{host}` covers a whole top-level domain")
        }
        Ok(host) => return Some(HostPattern::Below(host)),
        Err(_) if host.contains('*') => {
            "`*` may only stand as the first label of a host".to_owned()
        }
        Err(_) if host.contains("://") || host.contains('/') => {
            "a host has no scheme and no path".to_owned()
        }
        Err(ambiguity) => ambiguity.what,
    };
    let help = "a host is a name such as `api.example.com` or `*.example.com`; the port goes under `port:`";
    reading.decoder.error(node.span, remark).help(help);
    None
}
