//! What a message says of its own connection, which ends at the agent (RFC 9110, section 7.6.1), or of its own bytes.
use http::HeaderMap;
use http::header::{self, HeaderName};
use smallvec::SmallVec;

/// Headers that are true of one body only, byte for byte.
pub(super) const DIGESTS: [&str; 4] = ["content-digest", "content-md5", "digest", "repr-digest"];

/// The fields that `Connection` names: they are of this hop only, whatever they are called.
pub(super) fn listed(headers: &HeaderMap) -> SmallVec<[HeaderName; 8]> {
    headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|value| value.to_str().unwrap_or_default().split(','))
        .filter_map(|name| HeaderName::from_bytes(name.trim().as_bytes()).ok())
        .collect()
}
