//! The response before a byte of it goes to the client: held to the rule's size, and, where the rule takes values out of it,
//! read whole and changed. What cannot be read without doubt is withheld.
use super::account::Tracker;
use super::body::{BodyError, Idle};
use super::change::{Change, Inflate, MASKED, Masking};
use super::charge::Charge;
use super::exchange::Exchange;
use super::forward::Responded;
use super::framed::{Framed, Kind};
use super::hold::{Full, Held};
use super::hop;
use super::refuse::Refusal;
use super::serve::Peer;
use super::worker::Worker;
use crate::audit::Verdict;
use crate::secrets::Masker;
use crate::upstream::Lease;
use bytes::Bytes;
use http::header::{self, HeaderName};
use http::response::Parts;
use http::{HeaderMap, HeaderValue, Method, StatusCode};
use http_body::{Body, Frame};
use hyper::body::Incoming;
use hyper::upgrade::OnUpgrade;
use std::future::poll_fn;
use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Poll;
use tollgate_policy::{Plan, Pointer, RedactError, Redacted, Redactor};

/// Bytes of a response at most that is read whole; a rule's `max` can only be less.
const MOST: u64 = 16 << 20;

/// What the rule says of the response.
pub(super) struct ResponseRules<'p> {
    /// Headers to drop.
    pub(super) strip: &'p [String],
    /// Bytes of the body at most.
    pub(super) max: Option<u64>,
    /// Takes values out of the body.
    pub(super) redact: Option<&'p Redactor>,
    /// Finds the credential that was put in.
    pub(super) mask: Option<Arc<Masker>>,
    /// A budget wants to know what it took.
    pub(super) metered: bool,
}

impl<'p> ResponseRules<'p> {
    pub(super) fn of(plan: &Plan<'p>, mask: Option<&Arc<Masker>>) -> Self {
        Self {
            strip: plan.response_strip,
            max: plan.response_max,
            redact: plan.response_redact,
            mask: mask.cloned(),
            metered: false,
        }
    }

    /// Asks for an answer in clear where it has to be read, and for a whole one where values are taken out of it. Returns the names of what was dropped.
    pub(super) fn ask_plainly(&self, headers: &mut HeaderMap) -> Vec<String> {
        if self.redact.is_none() && self.mask.is_none() && !self.metered {
            return Vec::new();
        }
        headers.insert(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        );
        // Of single messages: unless said, they are not compressed.
        for name in ["grpc-accept-encoding", "connect-accept-encoding"] {
            headers.remove(name);
        }
        if self.redact.is_none() {
            return Vec::new();
        }
        let ranges = [header::RANGE, header::IF_RANGE];
        let there = ranges.iter().filter(|name| headers.remove(*name).is_some());
        there.map(|name| name.as_str().to_owned()).collect()
    }
}

/// A response that may go to the client.
pub(super) struct Screened<'p> {
    pub(super) parts: Parts,
    pub(super) content: Content,
    pub(super) exchange: Rc<Exchange>,
    pub(super) rules: ResponseRules<'p>,
    /// A WebSocket was opened.
    pub(super) upgraded: Option<(OnUpgrade, usize)>,
    _made_here: (),
}

/// A response's body.
pub(super) enum Content {
    /// As it comes, the connection that it comes on, and what is done to it.
    Stream(Incoming, Lease, Option<Box<Change>>),
    /// Read whole.
    Whole(Bytes),
}

/// Holds the response to its rule, reading the body only where it has to be changed.
pub(super) async fn screen<'p>(
    worker: &Worker,
    peer: &Rc<Peer>,
    responded: Responded<'p>,
    tracker: &mut Tracker,
) -> Result<Screened<'p>, Refusal> {
    let Responded {
        parsed,
        response,
        lease,
        rules,
        generation,
        upgraded,
        ..
    } = responded;
    let (mut parts, body) = response.into_parts();
    let declared = body.size_hint().lower();
    if let Some(max) = rules.max.filter(|max| declared > *max) {
        return Err(too_large(max));
    }
    let empty = parsed.method == Method::HEAD || body.is_end_stream();
    if rules.metered {
        listen(&parts, tracker);
    }
    let exchange = Exchange::request(Rc::clone(peer), parsed, generation);
    let content = match rules.redact {
        _ if upgraded.is_some() => Content::Stream(body, lease, None),
        None if empty => Content::Stream(body, lease, None),
        Some(_) if empty => {
            forget_body(&mut parts.headers);
            Content::Stream(body, lease, None)
        }
        redact if redact.is_none() || framing(&parts).is_some() => {
            let change = change(&mut parts, redact, &rules)?;
            if rules.metered && parts.headers.contains_key(header::CONTENT_ENCODING) {
                tracker.charge().map(Charge::deaf);
            }
            Content::Stream(body, lease, change.map(Box::new))
        }
        None => Content::Stream(body, lease, None),
        Some(redact) => {
            let read = read(worker, &exchange, &parts, body, rules.max).await?;
            forget_body(&mut parts.headers);
            lease.give_back();
            Content::Whole(redacted(redact, read, rules.mask.as_deref(), tracker)?)
        }
    };
    Ok(Screened {
        parts,
        content,
        exchange,
        rules,
        upgraded,
        _made_here: (),
    })
}

/// The whole body, where values can be taken out of it. Out of nothing they can.
async fn read(
    worker: &Worker,
    exchange: &Rc<Exchange>,
    parts: &Parts,
    body: Incoming,
    max: Option<u64>,
) -> Result<Held, Refusal> {
    let max = max.map_or(MOST, |max| max.min(MOST));
    let Err(why) = readable(parts) else {
        return gather(worker, exchange, body, max).await;
    };
    let nothing = gather(worker, exchange, body, 0).await;
    nothing.map_err(|refusal| match refusal.verdict {
        Verdict::Limit => why,
        _ => refusal,
    })
}

/// The pieces that values are to be taken out of, where the body is made of such.
fn framing(parts: &Parts) -> Option<Kind> {
    let mut types = parts.headers.get_all(header::CONTENT_TYPE).iter();
    let media = types.next().and_then(|value| value.to_str().ok())?;
    let whole = parts.status != StatusCode::PARTIAL_CONTENT && types.next().is_none();
    Kind::of(media).filter(|_| whole)
}

/// What is done to a body on its way.
fn change(
    parts: &mut Parts,
    redact: Option<&Redactor>,
    rules: &ResponseRules<'_>,
) -> Result<Option<Change>, Refusal> {
    let mask = rules.mask.as_ref();
    let framed = match redact.zip(framing(parts)) {
        // Its own copy: a stream outlives the policy that it was allowed by.
        Some((redact, kind)) => match Redactor::new(redact.pointers()) {
            Ok(redactor) => Some(Framed::new(kind, redactor)),
            Err(error) => return Err(unreadable(&error.to_string())),
        },
        None => None,
    };
    let plain = framed.is_none() && mask.is_none();
    if plain && !rules.metered {
        return Ok(None);
    }
    let inflate = match inflate(parts) {
        // Only its count is wanted, and that can be done without.
        Err(_) if plain => return Ok(None),
        inflate => inflate?,
    };
    if plain && inflate.is_none() {
        return Ok(None);
    }
    if inflate.is_some() {
        parts.headers.remove(header::CONTENT_ENCODING);
    }
    if inflate.is_some() || framed.is_some() {
        forget_body(&mut parts.headers);
    }
    Ok(Some(Change {
        inflate,
        redact: framed,
        mask: mask.map(|masker| Masking::new(Arc::clone(masker))),
        heard: rules.metered.then(Vec::new),
    }))
}

/// From here on the answer is read for what it took.
fn listen(parts: &Parts, tracker: &mut Tracker) {
    let media = parts.headers.get(header::CONTENT_TYPE);
    let media = media
        .and_then(|value| value.to_str().ok())
        .unwrap_or_default();
    if let Some(charge) = tracker.charge() {
        charge.listen(media, is_undone(parts.status));
    }
}

/// Whether a failure says that nothing was done. Somebody in between who lost the upstream, or no longer waited, does not
/// know (408, 502, 504, 499 of nginx, 520 to 524 of Cloudflare).
fn is_undone(status: StatusCode) -> bool {
    let unknown = matches!(status.as_u16(), 408 | 499 | 502 | 504 | 520..=524);
    (status.is_client_error() || status.is_server_error()) && !unknown
}

/// How a body is read that is compressed though that was not asked for.
fn inflate(parts: &Parts) -> Result<Option<Inflate>, Refusal> {
    let codings = parts.headers.get_all(header::CONTENT_ENCODING).iter();
    let mut codings = codings.filter(|value| !value.as_bytes().eq_ignore_ascii_case(b"identity"));
    let (coding, more) = (codings.next(), codings.next());
    let Some(coding) = coding else {
        return Ok(None);
    };
    let known = Inflate::of(&coding.as_bytes().to_ascii_lowercase());
    match known.filter(|_| more.is_none() && parts.status != StatusCode::PARTIAL_CONTENT) {
        Some(inflate) => Ok(Some(inflate)),
        None => Err(Refusal::failed(
            StatusCode::BAD_GATEWAY,
            "response_unreadable",
            "the response is compressed in a way that is not read here, though that was not asked for: whether it holds the credential cannot be told".into(),
            "the request was done; its answer is withheld: have the API answer without `Content-Encoding`, or with gzip".into(),
        )),
    }
}

fn redacted(
    redact: &Redactor,
    mut read: Held,
    mask: Option<&Masker>,
    tracker: &mut Tracker,
) -> Result<Bytes, Refusal> {
    if let Some(charge) = tracker.charge() {
        charge.heard(read.as_ref());
        charge.close(true);
    }
    if read.len() == 0 {
        return Ok(Bytes::new());
    }
    match redact.redact(read.as_ref()) {
        Ok(Redacted { body: None, .. }) => {}
        Ok(Redacted {
            body: Some(new), ..
        }) => {
            read.replace(new).map_err(full)?;
            let pointers = redact.pointers().iter().map(Pointer::to_string);
            tracker.redacted(pointers);
        }
        Err(RedactError::Ambiguous(why)) => {
            return Err(unreadable(&format!("its body is not plain JSON: {why}")));
        }
        Err(other) => return Err(unreadable(&other.to_string())),
    }
    if let Some(masked) = mask.and_then(|mask| mask.mask(read.as_ref())) {
        read.replace(masked).map_err(full)?;
        tracker.redacted([MASKED.to_owned()]);
    }
    Ok(read.into_bytes())
}

/// What is true of the upstream's bytes only. Without a tag, no later answer is `304` for what was changed.
fn forget_body(headers: &mut HeaderMap) {
    const OF_BYTES: [HeaderName; 3] = [header::CONTENT_LENGTH, header::ETAG, header::ACCEPT_RANGES];
    for name in &OF_BYTES {
        headers.remove(name);
    }
    for name in hop::DIGESTS {
        headers.remove(name);
    }
    // S3's, each by the name of its function.
    let checksums = headers
        .keys()
        .filter(|name| name.as_str().starts_with("x-amz-checksum-"));
    for name in checksums.cloned().collect::<Vec<_>>() {
        headers.remove(name);
    }
}

/// Whether it is whole, in clear, and JSON.
fn readable(parts: &Parts) -> Result<(), Refusal> {
    if parts.status == StatusCode::PARTIAL_CONTENT {
        return Err(unreadable("it is a part of a body only (206)"));
    }
    let plain = |value: &HeaderValue| value.as_bytes().eq_ignore_ascii_case(b"identity");
    if !parts
        .headers
        .get_all(header::CONTENT_ENCODING)
        .iter()
        .all(plain)
    {
        return Err(unreadable("it is compressed though that was not asked for"));
    }
    let mut types = parts.headers.get_all(header::CONTENT_TYPE).iter();
    let media = types.next().and_then(|value| value.to_str().ok());
    match (media, types.next()) {
        (Some(media), None) if is_json(media) => Ok(()),
        _ => Err(unreadable("it is not JSON in UTF-8")),
    }
}

/// `application/json` and what ends with `+json` (RFC 8259, RFC 6839), in UTF-8.
fn is_json(media: &str) -> bool {
    let mut parts = media.split(';').map(str::trim);
    let kind = parts.next().unwrap_or_default().to_ascii_lowercase();
    let json = kind == "application/json"
        || kind
            .split_once('/')
            .is_some_and(|(_, subtype)| subtype.ends_with("+json"));
    json && parts.all(|parameter| match parameter.split_once('=') {
        Some((name, value)) if name.eq_ignore_ascii_case("charset") => {
            value.trim_matches('"').eq_ignore_ascii_case("utf-8")
        }
        _ => true,
    })
}

/// At most `max` bytes. As with a body that is streamed, silence ends it, and so does a policy change.
async fn gather(
    worker: &Worker,
    exchange: &Rc<Exchange>,
    mut body: Incoming,
    max: u64,
) -> Result<Held, Refusal> {
    let declared = body.size_hint().lower();
    if declared > max {
        return Err(too_large(max));
    }
    let mut read = Held::new(&worker.shared.room);
    read.reserve(usize::try_from(declared).unwrap_or(usize::MAX))
        .map_err(full)?;
    let _listed = worker.exchanges.list(exchange);
    let mut idle = Idle::new(worker.shared.limits.response_idle);
    while let Some(frame) = next(&mut body, exchange, &mut idle).await? {
        if let Ok(data) = frame.into_data() {
            if (read.len() + data.len()) as u64 > max {
                return Err(too_large(max));
            }
            read.extend(&data).map_err(full)?;
        }
    }
    Ok(read)
}

async fn next(
    body: &mut Incoming,
    exchange: &Exchange,
    idle: &mut Idle,
) -> Result<Option<Frame<Bytes>>, Refusal> {
    poll_fn(|cx| {
        if exchange.revoked(cx.waker()) {
            return Poll::Ready(Err(revoked()));
        }
        match Pin::new(&mut *body).poll_frame(cx) {
            Poll::Ready(frame) => {
                idle.progress();
                Poll::Ready(frame.transpose().map_err(|error| cut(&error)))
            }
            Poll::Pending => idle.poll(cx).map(|()| Err(silent(idle.limit))),
        }
    })
    .await
}

fn too_large(max: u64) -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(
            StatusCode::BAD_GATEWAY,
            "response_too_large",
            BodyError::TooLarge(max).to_string(),
            "ask for less, or raise `max` under the rule's `response:`".into(),
        )
    }
}

fn full(Full: Full) -> Refusal {
    Refusal {
        verdict: Verdict::Limit,
        ..Refusal::failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "held_bytes",
            "values have to be taken out of the response, and too many such responses are under way to hold this one as well".into(),
            "the request was done; its answer is withheld: ask for less at a time, or raise `limits.held_bytes` in the configuration".into(),
        )
    }
}

fn unreadable(why: &str) -> Refusal {
    Refusal::failed(
        StatusCode::BAD_GATEWAY,
        "response_unreadable",
        format!("values have to be taken out of the response, and {why}"),
        "the request was done; its answer is withheld: have the API answer in JSON, or move the route to an entry without `redact`".into(),
    )
}

fn cut(error: &hyper::Error) -> Refusal {
    Refusal::failed(
        StatusCode::BAD_GATEWAY,
        "upstream_truncated",
        format!("the response broke off: {error}"),
        "try again; the upstream did not answer properly".into(),
    )
}

fn silent(limit: std::time::Duration) -> Refusal {
    Refusal::failed(
        StatusCode::GATEWAY_TIMEOUT,
        "upstream_idle",
        BodyError::Idle(limit).to_string(),
        "try again; the upstream did not answer properly".into(),
    )
}

fn revoked() -> Refusal {
    Refusal {
        verdict: Verdict::Deny,
        ..Refusal::failed(
            StatusCode::FORBIDDEN,
            "revoked",
            BodyError::Revoked.to_string(),
            "the request was done; its answer is withheld".into(),
        )
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use http::Response;

    fn rules(redact: Option<&Redactor>) -> ResponseRules<'_> {
        ResponseRules {
            strip: &[],
            max: None,
            redact,
            mask: None,
            metered: false,
        }
    }

    #[test]
    fn only_what_is_redacted_is_asked_for_plainly() {
        let sent = || {
            let pairs = [
                ("accept-encoding", "gzip"),
                ("range", "bytes=0-9"),
                ("if-range", "x"),
            ];
            let typed = pairs.map(|(name, value)| {
                (
                    HeaderName::from_static(name),
                    HeaderValue::from_static(value),
                )
            });
            HeaderMap::from_iter(typed)
        };
        let email = Redactor::new(&[Pointer::parse("/email").unwrap()]).unwrap();
        let mut headers = sent();
        assert!(rules(None).ask_plainly(&mut headers).is_empty());
        assert_eq!(headers, sent());
        let dropped = rules(Some(&email)).ask_plainly(&mut headers);
        assert_eq!(dropped, ["range", "if-range"]);
        let plain = [(
            header::ACCEPT_ENCODING,
            HeaderValue::from_static("identity"),
        )];
        assert_eq!(headers, HeaderMap::from_iter(plain));
        let mut headers = sent();
        let masked = ResponseRules {
            mask: Some(Arc::new(Masker::for_test(b"long-enough"))),
            ..rules(None)
        };
        assert!(masked.ask_plainly(&mut headers).is_empty());
        assert_eq!(headers.get(header::ACCEPT_ENCODING).unwrap(), "identity");
        assert!(headers.contains_key(header::RANGE));
    }

    #[test]
    fn what_cannot_be_read_is_withheld() {
        let answer = |status: u16, headers: &[(&str, &str)]| {
            let mut response = Response::builder().status(status);
            for (name, value) in headers {
                response = response.header(*name, *value);
            }
            readable(&response.body(()).unwrap().into_parts().0)
        };
        let json = ("content-type", "application/json");
        assert!(answer(200, &[json]).is_ok());
        assert!(answer(404, &[json, ("content-encoding", "identity")]).is_ok());
        for (status, headers) in [
            (206, vec![json]),
            (200, vec![]),
            (200, vec![json, json]),
            (200, vec![("content-type", "text/html")]),
            (200, vec![json, ("content-encoding", "gzip")]),
            (
                200,
                vec![
                    json,
                    ("content-encoding", "identity"),
                    ("content-encoding", "br"),
                ],
            ),
        ] {
            let refusal = answer(status, &headers).unwrap_err();
            assert_eq!(refusal.status, StatusCode::BAD_GATEWAY);
            assert_eq!(refusal.code, "response_unreadable", "{headers:?}");
        }
    }

    #[test]
    fn json_is_known_by_its_type() {
        for media in [
            "application/json",
            "Application/JSON; charset=UTF-8",
            "application/vnd.api+json;charset=\"utf-8\"",
            "application/problem+json; profile=x",
        ] {
            assert!(is_json(media), "{media}");
        }
        for media in [
            "text/plain",
            "text/json",
            "application/json; charset=utf-16",
            "application/x-ndjson",
            "application/json-seq",
            "application/jsonx",
            "",
        ] {
            assert!(!is_json(media), "{media}");
        }
    }
}
