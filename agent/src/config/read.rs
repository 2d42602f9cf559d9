//! The configuration's wire form: keys are the field names of [`Config`], each optional.
use super::{AuditLimits, Config, ContainerEngine, Limits};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;
use tollgate_policy::Mode;
use tollgate_policy::syntax::{Decoder, Faults, Fields, Node, Source};

/// Waiting shorter than this would refuse honest clients, longer is waiting for ever.
const DURATIONS: RangeInclusive<Duration> =
    Duration::from_millis(10)..=Duration::from_secs(24 * 3600);
const WORDS: [(&str, Mode); 2] = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];

pub(super) fn parse(source: &Source) -> Result<Config, Faults> {
    let mut decoder = Decoder::new();
    let mut config = Config::default();
    if source
        .text
        .lines()
        .all(|line| line.trim().is_empty() || line.trim_start().starts_with('#'))
    {
        return Ok(config);
    }
    if let Some(root) = decoder.parse(source) {
        read_root(&mut decoder, &root, &mut config);
    }
    decoder.finish().map(|_| config)
}

fn read_root(decoder: &mut Decoder, root: &Node, config: &mut Config) {
    let Some(mut fields) = decoder.fields(root, "the configuration") else {
        return;
    };
    set(
        &mut config.port,
        fields
            .take("port")
            .and_then(|n| decoder.integer(n, 1..=65_535)),
    );
    set(
        &mut config.policy,
        fields.take("policy").and_then(|n| paths(decoder, n)),
    );
    for (key, field) in [
        ("secrets_dir", &mut config.secrets_dir),
        ("state_dir", &mut config.state_dir),
        ("runtime_dir", &mut config.runtime_dir),
        ("pin_dir", &mut config.pin_dir),
    ] {
        set(field, fields.take(key).and_then(|n| absolute(decoder, n)));
    }
    if let Some(node) = fields.take("vault") {
        config.vault = super::vault::vault(decoder, node);
    }
    if let Some(node) = fields.take("cgroup_root") {
        config.cgroup_root = absolute(decoder, node);
    }
    set(
        &mut config.container_engines,
        fields
            .take("container_engines")
            .and_then(|n| engines(decoder, n)),
    );
    set(
        &mut config.fence_check,
        fields
            .take("fence_check")
            .and_then(|n| duration(decoder, n)),
    );
    set(
        &mut config.mode,
        fields.take("mode").and_then(|n| decoder.word(n, &WORDS)),
    );
    if let Some(items) = fields
        .take("dns_servers")
        .and_then(|n| decoder.one_or_many(n))
    {
        config.dns_servers = items.iter().filter_map(|n| decoder.ip(n)).collect();
    }
    set(
        &mut config.workers,
        fields
            .take("workers")
            .and_then(|n| decoder.integer(n, 1..=1024)),
    );
    if let Some(node) = fields.take("limits") {
        read_limits(decoder, node, &mut config.limits);
    }
    set(
        &mut config.journal,
        fields.take("journal").and_then(|n| decoder.boolean(n)),
    );
    if let Some(node) = fields.take("audit") {
        read_audit(decoder, node, &mut config.audit);
    }
    fields.finish(decoder);
}

fn read_limits(decoder: &mut Decoder, node: &Node, limits: &mut Limits) {
    let Some(mut fields) = decoder.fields(node, "`limits`") else {
        return;
    };
    set(
        &mut limits.connections,
        fields
            .take("connections")
            .and_then(|n| decoder.integer(n, 1..=1 << 20)),
    );
    set(
        &mut limits.head_bytes,
        size(decoder, &mut fields, "head_bytes", 1 << 10..=1 << 20),
    );
    set(
        &mut limits.head_fields,
        fields
            .take("head_fields")
            .and_then(|n| decoder.integer(n, 8..=1000)),
    );
    let held = size(decoder, &mut fields, "held_bytes", 1 << 20..=1 << 40);
    set(
        &mut limits.held_bytes,
        held.and_then(|bytes| u64::try_from(bytes).ok()),
    );
    for (key, field) in [
        ("handshake", &mut limits.handshake),
        ("head", &mut limits.head),
        ("body_idle", &mut limits.body_idle),
        ("connect", &mut limits.connect),
        ("response_head", &mut limits.response_head),
        ("response_idle", &mut limits.response_idle),
        ("uninspected_idle", &mut limits.uninspected_idle),
        ("idle", &mut limits.idle),
        ("drain", &mut limits.drain),
    ] {
        set(field, fields.take(key).and_then(|n| duration(decoder, n)));
    }
    fields.finish(decoder);
}

fn read_audit(decoder: &mut Decoder, node: &Node, audit: &mut AuditLimits) {
    let Some(mut fields) = decoder.fields(node, "`audit`") else {
        return;
    };
    let bytes = size(decoder, &mut fields, "segment_bytes", 1 << 20..=1 << 32);
    set(
        &mut audit.segment_bytes,
        bytes.and_then(|b| u64::try_from(b).ok()),
    );
    set(
        &mut audit.segments,
        fields
            .take("segments")
            .and_then(|n| decoder.integer(n, 2..=100_000)),
    );
    fields.finish(decoder);
}

fn set<T>(field: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *field = value;
    }
}

fn paths(decoder: &mut Decoder, node: &Node) -> Option<Vec<PathBuf>> {
    let items = decoder.one_or_many(node)?;
    Some(items.iter().filter_map(|n| absolute(decoder, n)).collect())
}

fn engines(decoder: &mut Decoder, node: &Node) -> Option<Vec<ContainerEngine>> {
    let items = decoder.one_or_many(node)?;
    Some(items.iter().filter_map(|n| engine(decoder, n)).collect())
}

fn engine(decoder: &mut Decoder, node: &Node) -> Option<ContainerEngine> {
    let Some(path) = decoder.string(node)?.strip_prefix("cri:") else {
        return absolute(decoder, node).map(ContainerEngine::Path);
    };
    if !path.starts_with('/') {
        decoder
            .error(node.span, "expected an absolute path behind `cri:`")
            .help("for example `cri:/run/containerd/containerd.sock`");
        return None;
    }
    Some(ContainerEngine::Cri(path.into()))
}

/// The agent's working directory is nobody's business: only absolute paths mean one thing.
pub(super) fn absolute(decoder: &mut Decoder, node: &Node) -> Option<PathBuf> {
    let path = decoder.path(node)?;
    if !path.is_absolute() {
        decoder
            .error(node.span, "expected an absolute path")
            .help("start it with `/`");
        return None;
    }
    Some(path)
}

pub(super) fn duration(decoder: &mut Decoder, node: &Node) -> Option<Duration> {
    let value = decoder.duration(node)?;
    if !DURATIONS.contains(&value) {
        decoder.error(node.span, "expected a duration from 10ms to 1d");
        return None;
    }
    Some(value)
}

fn size(
    decoder: &mut Decoder,
    fields: &mut Fields<'_>,
    key: &'static str,
    range: RangeInclusive<usize>,
) -> Option<usize> {
    let node = fields.take(key)?;
    let value = decoder.byte_size(node)?;
    let fits = usize::try_from(value).ok().filter(|v| range.contains(v));
    if fits.is_none() {
        let (low, high) = (range.start() >> 10, range.end() >> 10);
        decoder.error(
            node.span,
            format!("expected a size from {low}KiB to {high}KiB"),
        );
    }
    fits
}
