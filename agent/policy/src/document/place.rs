//! Where requests come from and where they go: workloads and apis.
use super::{Reading, secret_ref, unsupported};
use crate::canonical::Host;
use crate::model::{SecretRef, Selector};
use crate::syntax::{Node, Span, quote};
use ipnet::IpNet;

#[derive(Debug)]
pub(crate) struct Workload {
    pub(crate) selectors: Vec<(Selector, Span)>,
}

#[derive(Debug)]
pub(crate) struct Api {
    pub(crate) hosts: Vec<(HostPattern, Span)>,
    pub(crate) port: u16,
    pub(crate) ca: Option<SecretRef>,
    pub(crate) addresses: Vec<IpNet>,
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
    if let Some(mut fields) = reading.decoder.fields(node, "the workload") {
        let matches = fields.take("match");
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
    Workload { selectors }
}

/// One alternative of `match`. In this version it has one condition.
fn selector(reading: &mut Reading<'_>, node: &Node) -> Option<Selector> {
    let mut fields = reading.decoder.fields(node, "the selector")?;
    let span = fields.span();
    let refused = unsupported(
        reading,
        &mut fields,
        &["user", "exe", "sha256", "container"],
    );
    let cgroup = fields.take_entry("cgroup");
    let unit = fields.take_entry("unit");
    fields.finish(reading.decoder);
    match (cgroup, unit) {
        (Some(entry), None) => cgroup_glob(reading, &entry.value),
        (None, Some(entry)) => unit_name(reading, &entry.value),
        (Some(_), Some(entry)) => {
            reading
                .decoder
                .unsupported(entry.key.span, "`cgroup` and `unit` in one selector");
            None
        }
        (None, None) => {
            if !refused {
                reading
                    .decoder
                    .error(span, "the selector needs `cgroup` or `unit`");
            }
            None
        }
    }
}

fn cgroup_glob(reading: &mut Reading<'_>, node: &Node) -> Option<Selector> {
    let text = reading.decoder.string(node)?;
    let path = text.strip_suffix('/').unwrap_or(text);
    let mut wrong = None;
    if text.len() > 4_096 || text.chars().any(char::is_control) {
        wrong = Some("the cgroup path is too long or has control characters");
    }
    match path.strip_prefix('/') {
        None => {
            wrong =
                Some("a cgroup path begins with `/`, the cgroup2 root, and names a group below it")
        }
        Some(rest) => {
            let segments: Vec<&str> = rest.split('/').collect();
            if segments
                .iter()
                .any(|segment| matches!(*segment, "" | "." | ".."))
            {
                wrong = Some("a cgroup path has no empty, `.` or `..` segment");
            }
            let inner = segments.split_last().map_or(&[][..], |(_, inner)| inner);
            if inner.contains(&"**") {
                wrong = Some("`**` may only stand last in a cgroup path");
            }
            let mixed = |segment: &&&str| segment.contains('*') && !matches!(**segment, "*" | "**");
            if segments.iter().find(mixed).is_some() {
                wrong = Some("`*` is a whole segment of a cgroup path");
            }
        }
    }
    if let Some(wrong) = wrong {
        reading
            .decoder
            .error(node.span, wrong)
            .help("for example `/system.slice/report-builder.service` or `/user.slice/**`");
        return None;
    }
    Some(Selector::Cgroup(path.into()))
}

fn unit_name(reading: &mut Reading<'_>, node: &Node) -> Option<Selector> {
    let text = reading.decoder.string(node)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b":-_.@\\".contains(&byte);
    let kinds = [".service", ".scope", ".slice", ".socket", ".mount", ".swap"];
    let named = kinds
        .iter()
        .any(|kind| text.strip_suffix(kind).is_some_and(|stem| !stem.is_empty()));
    if text.len() > 255 || !text.bytes().all(allowed) || !named {
        reading
            .decoder
            .error(
                node.span,
                format!(
                    "{} is not the name of a systemd unit with processes",
                    quote(text)
                ),
            )
            .help("write it in full, e.g. `report-builder.service`");
        return None;
    }
    Some(Selector::Unit(text.into()))
}

pub(super) fn api(reading: &mut Reading<'_>, node: &Node) -> Api {
    let mut api = Api {
        hosts: Vec::new(),
        port: 443,
        ca: None,
        addresses: Vec::new(),
    };
    let Some(mut fields) = reading.decoder.fields(node, "the api") else {
        return api;
    };
    let refused = unsupported(reading, &mut fields, &["tcp", "sni"]);
    unsupported(reading, &mut fields, &["meter"]);
    let hosts = match refused {
        true => fields.take("hosts"),
        false => fields.require(reading.decoder, "hosts"),
    };
    let port = fields.take("port");
    let tls = fields.take("tls");
    let addresses = fields.take("addresses");
    fields.finish(reading.decoder);
    let hosts = hosts
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    api.hosts.extend(
        hosts
            .iter()
            .filter_map(|item| Some((host_pattern(reading, item)?, item.span))),
    );
    if let Some(port) = port.and_then(|node| reading.decoder.integer(node, 1..=u16::MAX)) {
        api.port = port;
    }
    api.ca = tls.and_then(|node| tls_ca(reading, node));
    let addresses = addresses
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    api.addresses.extend(
        addresses
            .iter()
            .filter_map(|item| address_range(reading, item)),
    );
    api
}

fn tls_ca(reading: &mut Reading<'_>, node: &Node) -> Option<SecretRef> {
    let mut fields = reading.decoder.fields(node, "`tls`")?;
    let ca = fields.require(reading.decoder, "ca");
    fields.finish(reading.decoder);
    secret_ref(reading, ca?)
}

/// A range such as `10.1.0.0/16`, or a single address.
fn address_range(reading: &mut Reading<'_>, node: &Node) -> Option<IpNet> {
    let parse = |text: &str| {
        text.parse::<IpNet>()
            .ok()
            .or_else(|| text.parse().ok().map(|ip: std::net::IpAddr| ip.into()))
    };
    let range: IpNet =
        reading
            .decoder
            .parsed(node, "an address range such as `10.1.0.0/16`", parse)?;
    if range.trunc() != range {
        let message = format!(
            "the range has bits set behind its prefix; it would be `{}`",
            range.trunc()
        );
        reading.decoder.error(node.span, message);
        return None;
    }
    Some(range)
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
