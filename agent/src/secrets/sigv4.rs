//! AWS Signature Version 4 in headers ("Create a signed AWS API request", IAM User Guide): what is signed is a canonical form
//! of the request as it is sent.
use aws_lc_rs::{digest, hmac};
use http::header::{self, HeaderName};
use http::{HeaderMap, HeaderValue};
use tollgate_policy::canonical::{Target, decode};
use zeroize::Zeroizing;

#[cfg(test)]
mod tests;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const AMZ_DATE: HeaderName = HeaderName::from_static("x-amz-date");
/// The header of a session token.
pub(crate) const SESSION: HeaderName = HeaderName::from_static("x-amz-security-token");
/// The header that names what is signed of the body.
pub(crate) const PAYLOAD: HeaderName = HeaderName::from_static("x-amz-content-sha256");

/// Keys that sign, and give nothing away but signatures.
pub(crate) struct Signer {
    access_key: String,
    /// `AWS4` and the secret key: what the chain of keys begins with.
    secret: Zeroizing<Vec<u8>>,
    session: Option<HeaderValue>,
}

/// What a request is signed for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Scope {
    /// For example `eu-central-1`.
    pub(crate) region: String,
    /// By its signing name, for example `s3`.
    pub(crate) service: String,
}

impl Scope {
    /// Whether it is S3 or of its kind: paths are encoded once there, and a body need not be hashed.
    pub(crate) fn is_s3(&self) -> bool {
        matches!(
            &*self.service,
            "s3" | "s3-object-lambda" | "s3-outposts" | "s3express"
        )
    }
}

/// A request as it is sent, but for what a signature adds to its headers.
pub(crate) struct Unsigned<'a> {
    pub(crate) method: &'a str,
    /// As `Host` or `:authority` has it.
    pub(crate) authority: &'a str,
    /// Path and query, canonical.
    pub(crate) target: Target<'a>,
    pub(crate) scope: &'a Scope,
    /// The hash of the body, or one of the words that stand for it.
    pub(crate) payload: HeaderValue,
    /// When it is signed, in seconds since 1970.
    pub(crate) now: i64,
}

/// A request that cannot be signed.
#[derive(Debug)]
pub(crate) struct Unsignable;

impl Signer {
    pub(super) fn new(access_key: String, secret: &[u8], session: Option<HeaderValue>) -> Self {
        let mut start = Zeroizing::new(Vec::with_capacity(secret.len() + 4));
        start.extend_from_slice(b"AWS4");
        start.extend_from_slice(secret);
        Self {
            access_key,
            secret: start,
            session,
        }
    }

    /// Puts the signature into `headers`, and what belongs to it; returns their names. No header that is signed may be changed after.
    pub(crate) fn sign(
        &self,
        headers: &mut HeaderMap,
        request: &Unsigned<'_>,
    ) -> Result<Vec<String>, Unsignable> {
        let time = jiff::Timestamp::from_second(request.now).map_err(|_| Unsignable)?;
        let time = time.strftime("%Y%m%dT%H%M%SZ").to_string();
        headers.remove(header::AUTHORIZATION);
        headers.insert(PAYLOAD, request.payload.clone());
        headers.insert(
            AMZ_DATE,
            HeaderValue::from_str(&time).map_err(|_| Unsignable)?,
        );
        headers.remove(SESSION);
        if let Some(session) = &self.session {
            headers.insert(SESSION, session.clone());
        }
        let signed = Signed::of(request.authority, headers);
        let double = !request.scope.is_s3();
        let text = canonical(
            (request.method, &request.target, double),
            &signed,
            request.payload.as_bytes(),
        );
        let value = self.authorization(&time, request.scope, &signed.names(), &text);
        let value = HeaderValue::from_str(&value).map_err(|_| Unsignable)?;
        headers.insert(header::AUTHORIZATION, value);
        let session = self.session.as_ref().map(|_| SESSION);
        let names = [header::AUTHORIZATION, PAYLOAD, AMZ_DATE].into_iter();
        Ok(names.chain(session).map(|name| name.to_string()).collect())
    }

    /// The value of `Authorization`.
    fn authorization(&self, time: &str, scope: &Scope, names: &str, canonical: &[u8]) -> String {
        let Scope { region, service } = scope;
        let day = time.get(..8).unwrap_or_default();
        let scope = format!("{day}/{region}/{service}/aws4_request");
        let text = format!("{ALGORITHM}\n{time}\n{scope}\n{}", sha256(canonical));
        let mut key = hmac::Key::new(hmac::HMAC_SHA256, &self.secret);
        for part in [day, region, service, "aws4_request"] {
            let tag = hmac::sign(&key, part.as_bytes());
            key = hmac::Key::new(hmac::HMAC_SHA256, tag.as_ref());
        }
        let signature = hex(hmac::sign(&key, text.as_bytes()).as_ref());
        format!(
            "{ALGORITHM} Credential={}/{scope}, SignedHeaders={names}, Signature={signature}",
            self.access_key
        )
    }
}

/// Headers that are signed, by name, and values one after the other.
struct Signed<'a>(Vec<(&'a str, Vec<&'a [u8]>)>);

impl<'a> Signed<'a> {
    /// `host`, `content-type` and all of AWS's own: what changes the meaning of a request, and nobody on the way rewrites.
    fn of(authority: &'a str, headers: &'a HeaderMap) -> Self {
        let mut all = vec![("host", vec![authority.as_bytes()])];
        for name in headers.keys() {
            if name == header::CONTENT_TYPE || name.as_str().starts_with("x-amz-") {
                let values = headers.get_all(name).iter().map(HeaderValue::as_bytes);
                all.push((name.as_str(), values.collect()));
            }
        }
        all.sort_unstable_by_key(|(name, _)| *name);
        Self(all)
    }

    fn names(&self) -> String {
        let names: Vec<&str> = self.0.iter().map(|(name, _)| *name).collect();
        names.join(";")
    }
}

/// The canonical request. It holds the session token.
fn canonical(
    (method, target, double): (&str, &Target<'_>, bool),
    headers: &Signed<'_>,
    payload: &[u8],
) -> Zeroizing<Vec<u8>> {
    let mut text = Zeroizing::new(Vec::with_capacity(1024));
    text.extend_from_slice(method.as_bytes());
    text.push(b'\n');
    text.extend_from_slice(canonical_path(&target.path, double).as_bytes());
    text.push(b'\n');
    text.extend_from_slice(canonical_query(target).as_bytes());
    text.push(b'\n');
    for (name, values) in &headers.0 {
        text.extend_from_slice(name.as_bytes());
        for (number, value) in values.iter().enumerate() {
            text.push(if number == 0 { b':' } else { b',' });
            push_trimmed(&mut text, value);
        }
        text.push(b'\n');
    }
    text.push(b'\n');
    text.extend_from_slice(headers.names().as_bytes());
    text.push(b'\n');
    text.extend_from_slice(payload);
    text
}

/// S3 encodes the decoded path; other services encode what is sent once more.
fn canonical_path(path: &str, double: bool) -> String {
    match double {
        true => encode(path, true),
        false => encode(&decode(path), true),
    }
}

fn canonical_query(target: &Target<'_>) -> String {
    let mut pairs: Vec<(String, String)> = target
        .pairs()
        .map(|pair| (encode(&pair.name, false), encode(&pair.value, false)))
        .collect();
    pairs.sort_unstable();
    let pairs: Vec<String> = pairs
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    pairs.join("&")
}

/// Everything but RFC 3986's unreserved characters as `%XX`.
fn encode(text: &str, slashes: bool) -> String {
    const DIGITS: &[u8; 16] = b"0123456789ABCDEF";
    let digit = |nibble: u8| {
        let digit = DIGITS.get(usize::from(nibble)).copied();
        char::from(digit.unwrap_or_default())
    };
    let mut encoded = String::with_capacity(text.len() + 16);
    for byte in text.bytes() {
        let plain = byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~');
        if plain || (slashes && byte == b'/') {
            encoded.push(char::from(byte));
        } else {
            encoded.extend(['%', digit(byte >> 4), digit(byte & 15)]);
        }
    }
    encoded
}

/// Without blanks around it, and one blank for each run of them.
fn push_trimmed(text: &mut Vec<u8>, value: &[u8]) {
    let words = value.split(u8::is_ascii_whitespace);
    for (number, word) in words.filter(|word| !word.is_empty()).enumerate() {
        if number > 0 {
            text.push(b' ');
        }
        text.extend_from_slice(word);
    }
}

/// SHA-256 in hex, as a body's hash is named.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(digest::digest(&digest::SHA256, bytes).as_ref())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a `String` does not fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}
