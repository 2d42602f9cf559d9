//! What a signature (AWS SigV4) is for, and what it says of the body: settled before the request is rewritten and signed.
//!
//! A client that signs does so with keys that are worth nothing. What its signature names is still the best word on region and
//! service; the signature itself is taken out with every other credential.
use super::authorize::Authorized;
use super::body::{BodyError, Counted, RequestBody};
use super::hold::Held;
use super::refuse::Refusal;
use super::worker::Worker;
use crate::audit::Verdict;
use crate::secrets::{PAYLOAD, SESSION, Scope, sha256};
use bytes::Bytes;
use http::header::HeaderName;
use http::{HeaderMap, HeaderValue, StatusCode, header};
use http_body::Body as _;
use tollgate_policy::{AwsKeys, CredentialForm, HeaderRules};

/// Bytes of a body at most that is read whole to be hashed.
const MOST: u64 = 16 << 20;
/// A body that S3 takes without a hash, over TLS.
const UNSIGNED: HeaderValue = HeaderValue::from_static("UNSIGNED-PAYLOAD");
/// A body in chunks without signatures, with a checksum behind them: it passes as it is.
const UNSIGNED_CHUNKS: &[u8] = b"STREAMING-UNSIGNED-PAYLOAD-TRAILER";

/// What is signed beside the request itself.
pub(super) struct Signing {
    pub(super) scope: Scope,
    pub(super) payload: HeaderValue,
    _made_here: (),
}

/// Settles it, reading the body only where it has to be hashed. `None`: nothing is signed.
pub(super) async fn prepare(
    worker: &Worker,
    authorized: &mut Authorized<'_>,
) -> Result<Option<Signing>, Refusal> {
    let form = authorized.plan.credential.map(|known| &known.form);
    let Some(CredentialForm::AwsSigV4(keys)) = form else {
        return Ok(None);
    };
    let parsed = &authorized.parsed;
    if let Some(name) = lost(&parsed.headers, &authorized.plan.headers) {
        return Err(unsaid(name));
    }
    let scope = scope(keys, &parsed.headers, parsed.host.as_str())?;
    let payload = payload(worker, authorized, &scope).await?;
    Ok(Some(Signing {
        scope,
        payload,
        _made_here: (),
    }))
}

/// A header of AWS that would be dropped though the rule does not say so. Its loss can turn a copy into an empty object, and no
/// signature of the client's keeps the service from that any more.
fn lost<'h>(headers: &'h HeaderMap, rules: &HeaderRules<'_>) -> Option<&'h str> {
    let mut names = headers.keys().map(HeaderName::as_str);
    names.find(|name| {
        let told = rules.strip.iter().any(|stripped| stripped == name);
        name.starts_with("x-amz-") && *name != SESSION && !told && !rules.passes(name)
    })
}

fn unsaid(name: &str) -> Refusal {
    Refusal {
        verdict: Verdict::Deny,
        ..Refusal::failed(
            StatusCode::FORBIDDEN,
            "sigv4_header",
            format!(
                "no rule lets the header {name} pass, and without it the request would mean something else"
            ),
            format!(
                "name `{name}` under the rule's `headers:`, in `allow` or, to drop it, in `strip`"
            ),
        )
    }
}

/// Region and service: the policy's word, else the client's, else what the host's name says.
fn scope(keys: &AwsKeys, headers: &HeaderMap, host: &str) -> Result<Scope, Refusal> {
    let (their_region, their_service) = claimed(headers).unzip();
    let (region, service) = of_host(host).unzip();
    let first = |all: [Option<&str>; 3]| all.into_iter().flatten().next().map(str::to_owned);
    let region = first([keys.region.as_deref(), their_region, region]);
    let service = first([keys.service.as_deref(), their_service, service]);
    match (region, service) {
        (Some(region), Some(service)) => Ok(Scope { region, service }),
        (None, _) => Err(nameless("region")),
        (_, None) => Err(nameless("service")),
    }
}

fn nameless(what: &str) -> Refusal {
    Refusal::failed(
        StatusCode::BAD_REQUEST,
        "sigv4_scope",
        format!(
            "the request has to be signed, and neither the policy nor the client's own signature nor the host names the {what}"
        ),
        format!(
            "add `{what}:` to the credential's `aws-sigv4:`, or have the client sign with any keys"
        ),
    )
}

/// Region and service of the client's own signature: `Credential=KEY/DATE/REGION/SERVICE/aws4_request`.
fn claimed(headers: &HeaderMap) -> Option<(&str, &str)> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().ok()?;
    let parts = value.strip_prefix("AWS4-HMAC-SHA256 ")?.split(',');
    let mut parts = parts.map(str::trim);
    let credential = parts.find_map(|part| part.strip_prefix("Credential="))?;
    let mut from_end = credential.rsplit('/');
    if from_end.next() != Some("aws4_request") {
        return None;
    }
    let (service, region) = (from_end.next()?, from_end.next()?);
    (is_word(service) && is_word(region)).then_some((region, service))
}

/// As the policy has them.
fn is_word(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

/// Region and service of a host of AWS: `SERVICE.REGION.amazonaws.com`, `BUCKET.s3.REGION.amazonaws.com`, and the services that
/// have one host for the world, which sign for us-east-1.
fn of_host(host: &str) -> Option<(&str, &str)> {
    let below = host
        .strip_suffix(".amazonaws.com")
        .or_else(|| host.strip_suffix(".amazonaws.com.cn"))?;
    let (before, last) = below.rsplit_once('.').unwrap_or(("", below));
    if let Some(region) = last.strip_prefix("s3-").filter(|region| is_region(region)) {
        return Some((region, "s3"));
    }
    if is_region(last) {
        let before = before.strip_suffix(".dualstack").unwrap_or(before);
        let service = before.rsplit('.').next().filter(|name| is_word(name))?;
        return Some((last, if service == "s3-fips" { "s3" } else { service }));
    }
    let global = before.is_empty() || last == "s3";
    (global && is_word(last) && !host.ends_with(".cn")).then_some(("us-east-1", last))
}

/// Such as `eu-central-1` and `us-gov-west-1`.
fn is_region(label: &str) -> bool {
    let mut parts = label.rsplit('-');
    let number = parts.next().unwrap_or_default();
    let words = |part: &str| !part.is_empty() && part.bytes().all(|b| b.is_ascii_lowercase());
    let named = parts.clone().count();
    matches!(number.len(), 1 | 2)
        && number.bytes().all(|byte| byte.is_ascii_digit())
        && (2..=3).contains(&named)
        && parts.all(words)
}

/// What is signed of the body: its hash where it is at hand or nothing else will do.
async fn payload(
    worker: &Worker,
    authorized: &mut Authorized<'_>,
    scope: &Scope,
) -> Result<HeaderValue, Refusal> {
    let claimed = authorized.parsed.headers.get(PAYLOAD).cloned();
    let s3 = scope.is_s3();
    if let Some(word) = claimed
        .as_ref()
        .filter(|word| word.as_bytes().starts_with(b"STREAMING-"))
    {
        return match word.as_bytes() == UNSIGNED_CHUNKS && s3 && !authorized.edited {
            true => Ok(word.clone()),
            false => Err(signed_chunks()),
        };
    }
    let body = std::mem::replace(&mut authorized.body, RequestBody::Empty);
    let (body, payload) = match body {
        RequestBody::Empty => (RequestBody::Empty, hash(&[])?),
        RequestBody::Read(bytes) => {
            let payload = hash(bytes.as_deref().unwrap_or_default())?;
            (RequestBody::Read(bytes), payload)
        }
        // The upstream holds the body against a hash that the client made.
        streamed if s3 => (streamed, claimed.filter(is_hash).unwrap_or(UNSIGNED)),
        streamed => {
            let bytes = whole(worker, streamed).await?;
            let payload = hash(&bytes)?;
            (RequestBody::Read(Some(bytes)), payload)
        }
    };
    authorized.body = body;
    Ok(payload)
}

fn hash(bytes: &[u8]) -> Result<HeaderValue, Refusal> {
    HeaderValue::from_maybe_shared(Bytes::from(sha256(bytes))).map_err(|_| nameless("hash"))
}

fn is_hash(value: &HeaderValue) -> bool {
    let digit = |byte: &u8| byte.is_ascii_digit() || matches!(byte, b'a'..=b'f');
    value.len() == 64 && value.as_bytes().iter().all(digit)
}

/// All of a body, within the room that held bodies have.
async fn whole(worker: &Worker, body: RequestBody) -> Result<Bytes, Refusal> {
    if body.size_hint().lower() > MOST {
        return Err(too_large());
    }
    let mut held = Held::new(&worker.shared.room);
    let (head, rest) = match body {
        RequestBody::Stream(rest) => (None, rest),
        RequestBody::Joined(head, rest) => (head, rest),
        _ => return Ok(Bytes::new()),
    };
    if let Some(head) = head {
        held.extend(&head).map_err(|_| full())?;
    }
    gather(&mut held, rest).await?;
    Ok(held.into_bytes())
}

async fn gather(held: &mut Held, mut rest: Counted) -> Result<(), Refusal> {
    while let Some(frame) = std::future::poll_fn(|cx| rest.poll_frame(cx)).await {
        let Ok(data) = frame.map_err(|error| unreadable(&error))?.into_data() else {
            continue;
        };
        if (held.len() + data.len()) as u64 > MOST {
            return Err(too_large());
        }
        held.extend(&data).map_err(|_| full())?;
    }
    Ok(())
}

fn signed_chunks() -> Refusal {
    Refusal::failed(
        StatusCode::BAD_REQUEST,
        "sigv4_chunks",
        "the body comes in chunks that the client signed with keys that are not the real ones: the service would refuse them".into(),
        "have the client send the body without signed chunks: over https, SDKs of today do unless told to sign payloads".into(),
    )
}

fn too_large() -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(
            StatusCode::PAYLOAD_TOO_LARGE,
            "sigv4_body",
            format!(
                "the body has to be hashed to sign the request, and is longer than {MOST} bytes"
            ),
            "send it in parts; only S3 takes a body that is not hashed".into(),
        )
    }
}

fn full() -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "held_bytes",
            "the body has to be hashed to sign the request, and too many bodies are held to hold this one as well".into(),
            "try again, or raise `limits.held_bytes` in the configuration".into(),
        )
    }
}

fn unreadable(error: &BodyError) -> Refusal {
    Refusal::failed(
        StatusCode::BAD_REQUEST,
        "client_body",
        format!("the request's body could not be read: {error}"),
        "send the whole body".into(),
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn hosts_name_region_and_service() {
        for (host, expected) in [
            ("s3.amazonaws.com", Some(("us-east-1", "s3"))),
            ("reports.s3.amazonaws.com", Some(("us-east-1", "s3"))),
            ("a.b.s3.eu-west-1.amazonaws.com", Some(("eu-west-1", "s3"))),
            (
                "s3.dualstack.eu-west-1.amazonaws.com",
                Some(("eu-west-1", "s3")),
            ),
            (
                "b.s3-fips.us-gov-west-1.amazonaws.com",
                Some(("us-gov-west-1", "s3")),
            ),
            ("b.s3-us-west-2.amazonaws.com", Some(("us-west-2", "s3"))),
            ("sts.amazonaws.com", Some(("us-east-1", "sts"))),
            (
                "sqs.ap-southeast-2.amazonaws.com",
                Some(("ap-southeast-2", "sqs")),
            ),
            (
                "x.execute-api.eu-central-1.amazonaws.com",
                Some(("eu-central-1", "execute-api")),
            ),
            ("s3.cn-north-1.amazonaws.com.cn", Some(("cn-north-1", "s3"))),
            ("iam.amazonaws.com.cn", None),
            ("b.vpce-1.s3.eu-west-1.vpce.amazonaws.com", None),
            ("amazonaws.com", None),
            ("s3.eu-west-1.amazonaws.com.evil.example", None),
            ("minio.example", None),
        ] {
            assert_eq!(of_host(host), expected, "{host}");
        }
    }

    #[test]
    fn a_signature_names_region_and_service() {
        let of = |value: &str| {
            let headers = HeaderMap::from_iter([(
                header::AUTHORIZATION,
                HeaderValue::from_str(value).unwrap(),
            )]);
            claimed(&headers).map(|(region, service)| format!("{region} {service}"))
        };
        let signed = |scope: &str| {
            of(&format!(
                "AWS4-HMAC-SHA256 Credential={scope}, SignedHeaders=host, Signature=0"
            ))
        };
        let expected = Some("eu-west-1 s3".to_owned());
        assert_eq!(signed("AKIA/20260101/eu-west-1/s3/aws4_request"), expected);
        assert_eq!(signed("a/b/20260101/eu-west-1/s3/aws4_request"), expected);
        for scope in [
            "AKIA/20260101/eu-west-1/s3",
            "AKIA/20260101/EU/s3/aws4_request",
            "AKIA/20260101//s3/aws4_request",
            "s3/aws4_request",
            "",
        ] {
            assert_eq!(signed(scope), None, "{scope}");
        }
        assert_eq!(of("Bearer Credential=A/2/eu-west-1/s3/aws4_request"), None);
        let long = "a".repeat(64);
        assert_eq!(
            signed(&format!("AKIA/20260101/{long}/s3/aws4_request")),
            None
        );
    }

    #[test]
    fn the_policy_comes_first_and_each_part_by_itself() {
        let reference = tollgate_policy::SecretRef {
            source: "file".into(),
            key: "x".into(),
        };
        let keys = |region: Option<&str>, service: Option<&str>| AwsKeys {
            access_key: reference.clone(),
            secret_key: reference.clone(),
            session_token: None,
            region: region.map(str::to_owned),
            service: service.map(str::to_owned),
        };
        let value = HeaderValue::from_static(
            "AWS4-HMAC-SHA256 Credential=A/1/eu-west-1/bedrock/aws4_request",
        );
        let signed = HeaderMap::from_iter([(header::AUTHORIZATION, value)]);
        let host = "bedrock-runtime.us-east-1.amazonaws.com";
        let told = |keys: AwsKeys, headers: &HeaderMap, host: &str| {
            scope(&keys, headers, host)
                .map(|scope| format!("{} {}", scope.region, scope.service))
                .map_err(|refusal| refusal.detail)
        };
        assert_eq!(
            told(keys(None, None), &signed, host).unwrap(),
            "eu-west-1 bedrock"
        );
        assert_eq!(
            told(keys(Some("us-east-1"), None), &signed, host).unwrap(),
            "us-east-1 bedrock"
        );
        assert_eq!(
            told(keys(None, Some("x")), &HeaderMap::new(), host).unwrap(),
            "us-east-1 x"
        );
        let refused = told(keys(None, Some("s3")), &HeaderMap::new(), "minio.example").unwrap_err();
        assert!(refused.contains("the region"), "{refused}");
        let refused = told(keys(Some("r"), None), &HeaderMap::new(), "minio.example").unwrap_err();
        assert!(refused.contains("the service"), "{refused}");
    }
}
