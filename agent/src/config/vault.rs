//! Where `vault:PATH#FIELD` secrets are.
use super::read::{absolute, duration};
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;
use tollgate_policy::canonical::Host;
use tollgate_policy::syntax::{Decoder, Node};

/// A server of HashiCorp Vault or OpenBao, and what it is asked with.
#[derive(Debug, Clone)]
pub struct Vault {
    /// Where it is.
    pub address: Address,
    /// Holds the token, read anew for every look: whoever renews it replaces the file.
    pub token_file: PathBuf,
    /// Where the key-value engine is mounted.
    pub mount: String,
    /// The engine's version.
    pub kv: Kv,
    /// The CA of the server, instead of the system's.
    pub ca: Option<PathBuf>,
    /// The namespace of the mount.
    pub namespace: Option<String>,
    /// How often values are read anew.
    pub refresh: Duration,
}

/// The version of a key-value engine: where its values are, and how they are wrapped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kv {
    /// Values without versions.
    V1,
    /// Values with versions, of which the newest is read.
    V2,
}

/// `https://host[:port]`, or `http://` and an address of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// Verified in the certificate.
    pub host: Host,
    /// TCP port.
    pub port: u16,
    /// In clear, which never leaves this host.
    pub clear: bool,
}

impl std::fmt::Display for Address {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let scheme = if self.clear { "http" } else { "https" };
        match self.host.ip() {
            Some(IpAddr::V6(ip)) => write!(f, "{scheme}://[{ip}]:{}", self.port),
            _ => write!(f, "{scheme}://{}:{}", self.host.as_str(), self.port),
        }
    }
}

const VERSIONS: [(&str, Kv); 2] = [("1", Kv::V1), ("2", Kv::V2)];
/// Bytes of a mount or namespace at most.
const LONGEST: usize = 128;

pub(super) fn vault(decoder: &mut Decoder, node: &Node) -> Option<Vault> {
    let mut fields = decoder.fields(node, "`vault`")?;
    let address = fields.require(decoder, "address");
    let token_file = fields.require(decoder, "token_file");
    let [mount, namespace] = ["mount", "namespace"].map(|key| fields.take(key));
    let [kv, ca, refresh] = ["kv", "ca", "refresh"].map(|key| fields.take(key));
    fields.finish(decoder);
    let address = address.and_then(|n| self::address(decoder, n));
    let token_file = token_file.and_then(|n| absolute(decoder, n));
    Some(Vault {
        mount: match mount {
            Some(node) => path(decoder, node)?,
            None => "secret".to_owned(),
        },
        namespace: namespace.and_then(|n| path(decoder, n)),
        kv: kv
            .and_then(|n| decoder.word(n, &VERSIONS))
            .unwrap_or(Kv::V2),
        ca: ca.and_then(|n| absolute(decoder, n)),
        refresh: refresh
            .and_then(|n| self::refresh(decoder, n))
            .unwrap_or(Duration::from_secs(60)),
        address: address?,
        token_file: token_file?,
    })
}

/// More often would be a burden to the server, less often would miss what is revoked.
fn refresh(decoder: &mut Decoder, node: &Node) -> Option<Duration> {
    let value = duration(decoder, node)?;
    if value < Duration::from_secs(1) {
        decoder.error(node.span, "expected a duration from 1s to 1d");
        return None;
    }
    Some(value)
}

/// A mount or namespace: nothing that would have to be escaped in a URL.
fn path(decoder: &mut Decoder, node: &Node) -> Option<String> {
    let text = decoder.string(node)?;
    let trimmed = text.trim_matches('/');
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let segment =
        |part: &str| !part.is_empty() && !part.starts_with('.') && part.bytes().all(allowed);
    if trimmed.len() > LONGEST || !trimmed.split('/').all(segment) {
        decoder
            .error(node.span, "this is not a path in Vault")
            .help("letters, digits, `.`, `_` or `-`, and `/` between segments, none of which begins with `.`");
        return None;
    }
    Some(trimmed.to_owned())
}

fn address(decoder: &mut Decoder, node: &Node) -> Option<Address> {
    let text = decoder.string(node)?;
    match parse(text) {
        Ok(address) => Some(address),
        Err(what) => {
            decoder
                .error(node.span, what)
                .help("for example `https://vault.example:8200`");
            None
        }
    }
}

fn parse(text: &str) -> Result<Address, &'static str> {
    let (clear, rest) = match (text.strip_prefix("https://"), text.strip_prefix("http://")) {
        (Some(rest), _) => (false, rest),
        (_, Some(rest)) => (true, rest),
        _ => return Err("the address does not begin with `https://`"),
    };
    let rest = rest.strip_suffix('/').unwrap_or(rest);
    if rest.contains('/') {
        return Err("the address has a path");
    }
    let Ok((host, port)) = Host::parse_authority(rest) else {
        return Err("the address has no host and port that can be read");
    };
    let here = host.ip().is_some_and(|ip| ip.is_loopback());
    if clear && !here {
        return Err(
            "the token and the secrets would go in clear: `http://` takes 127.0.0.1 and [::1] only",
        );
    }
    Ok(Address {
        port: port.unwrap_or(if clear { 80 } else { 443 }),
        host,
        clear,
    })
}
