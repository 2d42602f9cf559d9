//! Who calls, beside which program calls: a token or JWT that the client shows, verified and taken out.
//!
//! It is looked for in `tollgate-identity`, and, since most programs have a place for an API's key and for nothing else,
//! in every header that can hold a credential. What is a token of the agent never goes upstream, whatever the rule says.
use super::account::Tracker;
use super::parse::Parsed;
use super::refuse::Refusal;
use super::worker::Worker;
use crate::identity::{Unproven, is_token};
use crate::snapshot::Snapshot;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::StatusCode;
use http::header::{self, HeaderName, HeaderValue};
use std::sync::Arc;
use zeroize::Zeroizing;

/// Where proof may stand that is meant for the agent alone.
const OWN: HeaderName = HeaderName::from_static("tollgate-identity");

/// A request, and who was proven to make it.
pub(super) struct Identified {
    pub(super) parsed: Parsed,
    _made_here: (),
}

/// What a header holds that concerns the agent.
enum Shown {
    Token(Zeroizing<String>),
    Jwt(Zeroizing<String>),
}

/// Verifies what proof there is. Proof that does not hold is a refusal, also where none is needed.
pub(super) fn identify(
    worker: &Worker,
    snapshot: &Snapshot,
    mut parsed: Parsed,
    tracker: &mut Tracker,
) -> Result<Identified, Refusal> {
    let mut proven: Option<Arc<str>> = None;
    let mut taken: Vec<HeaderName> = Vec::new();
    for (name, value) in &parsed.headers {
        let Some(shown) = shown(name, value) else {
            continue;
        };
        let found = match &shown {
            Shown::Token(token) => snapshot.identities.of_token(token),
            Shown::Jwt(jwt) => match snapshot.identities.of_jwt(jwt, &worker.verified) {
                Some(found) => found,
                None if name == OWN => Err(Unproven::ForeignJwt),
                // Somebody else's, for the API.
                None => continue,
            },
        };
        let found = found.map_err(unproven)?;
        if proven.as_ref().is_some_and(|other| *other != found) {
            return Err(Refusal::ambiguous(
                "identity_ambiguous",
                "the request proves two identities",
            ));
        }
        proven = Some(found);
        taken.push(name.clone());
    }
    for name in &taken {
        parsed.headers.remove(name);
    }
    if let Some(identity) = &proven {
        let names = taken.iter().map(|name| name.as_str().to_owned());
        tracker.identified(Arc::clone(identity), names.collect());
    }
    parsed.identity = proven;
    Ok(Identified {
        parsed,
        _made_here: (),
    })
}

fn shown(name: &HeaderName, value: &HeaderValue) -> Option<Shown> {
    let value = value.as_bytes();
    if name == OWN {
        let text = Zeroizing::new(String::from_utf8_lossy(value).into_owned());
        return Some(if is_token(value) {
            Shown::Token(text)
        } else {
            Shown::Jwt(text)
        });
    }
    if is_token(value) {
        return owned(value).map(Shown::Token);
    }
    let (scheme, rest) = value.split_at_checked(value.iter().position(|byte| *byte == b' ')?)?;
    let rest = rest.trim_ascii();
    if is_token(rest) {
        return owned(rest).map(Shown::Token);
    }
    if name != header::AUTHORIZATION {
        return None;
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        return basic(rest).map(Shown::Token);
    }
    let is_jwt = scheme.eq_ignore_ascii_case(b"bearer") && rest.starts_with(b"eyJ");
    is_jwt.then(|| owned(rest)).flatten().map(Shown::Jwt)
}

fn owned(text: &[u8]) -> Option<Zeroizing<String>> {
    std::str::from_utf8(text)
        .ok()
        .map(|text| Zeroizing::new(text.to_owned()))
}

/// A token as user or password (RFC 7617), which is what git, pip and the like can send.
fn basic(encoded: &[u8]) -> Option<Zeroizing<String>> {
    let decoded = Zeroizing::new(STANDARD.decode(encoded).ok()?);
    let mut halves = decoded.splitn(2, |byte| *byte == b':');
    halves.find(|half| is_token(half)).and_then(owned)
}

fn unproven(why: Unproven) -> Refusal {
    let (status, hint) = match &why {
        Unproven::NoKeys { .. } => (
            StatusCode::SERVICE_UNAVAILABLE,
            "try again; `tollgate status` shows what the agent could not fetch",
        ),
        _ => (
            StatusCode::UNAUTHORIZED,
            "show a token of an identity of the policy (`tollgate token list`), or none",
        ),
    };
    let code = why.code();
    let mut refusal = Refusal::failed(status, code, why.to_string(), hint.to_owned());
    if status == StatusCode::UNAUTHORIZED {
        refusal.verdict = crate::audit::Verdict::Deny;
    }
    refusal
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn token_of(name: &'static str, value: &str) -> Option<bool> {
        let name = HeaderName::from_static(name);
        shown(&name, &HeaderValue::from_str(value).unwrap())
            .map(|shown| matches!(shown, Shown::Token(_)))
    }

    #[test]
    fn where_proof_is_found() {
        let token = crate::identity::issue().unwrap().secret;
        let encoded = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for (name, value) in [
            ("tollgate-identity", token.to_string()),
            ("authorization", format!("Bearer {}", *token)),
            ("authorization", format!("token  {}", *token)),
            (
                "authorization",
                encoded(&format!("{}:x-oauth-basic", *token)),
            ),
            ("authorization", encoded(&format!("alice:{}", *token))),
            ("x-api-key", token.to_string()),
        ] {
            assert_eq!(token_of(name, &value), Some(true), "{name}: {value}");
        }
        for (name, value) in [
            ("tollgate-identity", "x"),
            ("authorization", "Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln"),
        ] {
            assert_eq!(token_of(name, value), Some(false), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", "Bearer ghp_x".to_owned()),
            ("authorization", encoded("alice:secret")),
            ("authorization", "Basic ???".to_owned()),
            ("x-api-key", format!("{}x", *token)),
            ("x-jwt", "Bearer eyJhbGciOiJFUzI1NiJ9.e30.c2ln".to_owned()),
            ("accept", "*/*".to_owned()),
        ] {
            assert_eq!(token_of(name, &value), None, "{name}: {value}");
        }
    }
}
