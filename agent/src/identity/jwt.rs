//! JWTs (RFC 7519) signed with an issuer's private key: signature, issuer, audience, times, and what a policy asks of
//! further claims. Shared keys (HS256 …) prove nothing here: whoever can check one can make one.
use super::Unproven;
use super::published::Source;
use crate::secrets;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, JwkSet, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation};
use serde_json::{Map, Value};
use sha2::{Digest as _, Sha256};
use std::cell::RefCell;
use std::collections::HashMap;
use std::sync::Arc;

/// Bytes of a JWT at most; a request's head has no more room anyway.
const MAX_BYTES: usize = 16 << 10;
/// Keys of one issuer at most.
const MAX_KEYS: usize = 64;
/// Clocks may differ by so many seconds.
const LEEWAY: u64 = 30;
/// JWTs that a worker remembers at most.
const CACHED: usize = 1024;

/// What one identity asks of a JWT.
#[derive(Debug)]
pub(super) struct Asked {
    name: Arc<str>,
    audience: Box<str>,
    claims: Vec<(String, String)>,
}

impl Asked {
    pub(super) fn new(name: Arc<str>, audience: &str, claims: &[(String, String)]) -> Self {
        Self {
            name,
            audience: audience.into(),
            claims: claims.to_vec(),
        }
    }

    fn is_met(&self, claims: &Map<String, Value>) -> bool {
        let audience = match claims.get("aud") {
            Some(Value::String(one)) => **one == *self.audience,
            Some(Value::Array(many)) => {
                many.iter().any(|one| one.as_str() == Some(&*self.audience))
            }
            _ => false,
        };
        audience
            && self
                .claims
                .iter()
                .all(|(name, wanted)| match claims.get(name) {
                    Some(Value::String(text)) => text == wanted,
                    Some(Value::Number(number)) => *number.to_string() == **wanted,
                    Some(Value::Bool(bool)) => (if *bool { "true" } else { "false" }) == wanted,
                    _ => false,
                })
    }
}

/// An issuer, its keys, and the identities that its JWTs may prove.
#[derive(Debug, Default)]
pub(super) struct Issuer {
    groups: Vec<(KeySource, Vec<Asked>)>,
}

#[derive(Debug)]
enum KeySource {
    Own(Arc<Keys>),
    Published(Arc<Source>),
}

impl Issuer {
    pub(super) fn own(&mut self, keys: Keys, asked: Asked) {
        self.groups
            .push((KeySource::Own(Arc::new(keys)), vec![asked]));
    }

    pub(super) fn published(&mut self, source: Arc<Source>, asked: Asked) {
        let published =
            |(source, _): &&mut (KeySource, Vec<Asked>)| matches!(source, KeySource::Published(_));
        match self.groups.iter_mut().find(published) {
            Some((_, all)) => all.push(asked),
            None => self
                .groups
                .push((KeySource::Published(source), vec![asked])),
        }
    }

    pub(super) fn is_published(&self) -> bool {
        let mut sources = self.groups.iter();
        sources.any(|(source, _)| matches!(source, KeySource::Published(_)))
    }

    /// The one identity that `jwt` proves.
    pub(super) fn prove(
        &self,
        issuer: &str,
        jwt: &str,
        cache: &Cache,
    ) -> Result<Arc<str>, Unproven> {
        let (mut found, mut trouble): (Option<Arc<str>>, _) = (None, None);
        for (source, asked) in &self.groups {
            let claims = match source {
                KeySource::Own(keys) => cache.claims(keys, issuer, jwt),
                KeySource::Published(source) => source.keys().map_or_else(
                    || Err(source.unavailable(issuer)),
                    |keys| {
                        let claims = cache.claims(&keys, issuer, jwt);
                        if claims == Err(Unproven::Jwt(UNKNOWN_KEY)) {
                            source.ask();
                        }
                        claims
                    },
                ),
            };
            match claims {
                Err(error) => trouble = trouble.or(Some(error)),
                Ok(claims) => {
                    for asked in asked.iter().filter(|asked| asked.is_met(&claims)) {
                        match &found {
                            Some(other) => {
                                return Err(Unproven::Several(
                                    Arc::clone(other),
                                    Arc::clone(&asked.name),
                                ));
                            }
                            None => found = Some(Arc::clone(&asked.name)),
                        }
                    }
                }
            }
        }
        found.ok_or_else(|| trouble.unwrap_or(Unproven::NoSuchClaims))
    }
}

const UNKNOWN_KEY: &str = "it is signed with a key that its issuer does not have";

/// Verification keys by id.
pub(super) struct Keys {
    keys: Vec<(Option<String>, DecodingKey, Vec<Algorithm>)>,
    /// Tells one set from another in the cache.
    digest: [u8; 32],
}

impl std::fmt::Debug for Keys {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Keys({})", self.keys.len())
    }
}

impl Keys {
    /// From a JWK set (RFC 7517, section 5). Keys of other kinds are passed over.
    pub(super) fn of_set(json: &[u8]) -> Result<Self, &'static str> {
        let set: JwkSet =
            serde_json::from_slice(json).map_err(|_| "it is not a JWK set (RFC 7517)")?;
        if set.keys.len() > MAX_KEYS {
            return Err("it has more than 64 keys");
        }
        let keys: Vec<_> = set.keys.iter().filter_map(usable).collect();
        if keys.is_empty() {
            return Err("it has no RSA, EC or Ed25519 key for signatures");
        }
        Ok(Self {
            keys,
            digest: Sha256::digest(json).into(),
        })
    }

    /// From a file that an administrator wrote.
    pub(super) fn of_file(place: &str, json: &[u8]) -> Result<Self, secrets::Error> {
        Self::of_set(json).map_err(|what| secrets::Error::Unusable {
            name: "keys".into(),
            path: place.to_owned(),
            what: format!("cannot be used: {what}"),
        })
    }

    fn verify(&self, issuer: &str, jwt: &str) -> Result<Map<String, Value>, Unproven> {
        let bad = Unproven::Jwt;
        let header = jsonwebtoken::decode_header(jwt).map_err(|_| bad("it cannot be read"))?;
        // None is understood here (RFC 7515, section 4.1.11).
        if header.crit.is_some() {
            return Err(bad("it asks for an extension that is not understood"));
        }
        let named = |kid: &Option<String>| header.kid.is_none() || *kid == header.kid;
        let mut candidates = self
            .keys
            .iter()
            .filter(|(kid, _, algorithms)| named(kid) && algorithms.contains(&header.alg))
            .peekable();
        if candidates.peek().is_none() {
            return Err(bad(UNKNOWN_KEY));
        }
        let mut last = bad(UNKNOWN_KEY);
        for (_, key, algorithms) in candidates {
            match jsonwebtoken::decode::<Map<String, Value>>(jwt, key, &rules(issuer, algorithms)) {
                Ok(good) => return Ok(good.claims),
                Err(error) => last = bad(said(error.kind())),
            }
        }
        Err(last)
    }
}

fn usable(jwk: &jsonwebtoken::jwk::Jwk) -> Option<(Option<String>, DecodingKey, Vec<Algorithm>)> {
    let common = &jwk.common;
    let signs = common
        .public_key_use
        .as_ref()
        .is_none_or(|of| *of == PublicKeyUse::Signature)
        && common
            .key_operations
            .as_ref()
            .is_none_or(|of| of.contains(&KeyOperations::Verify));
    if !signs || matches!(jwk.algorithm, AlgorithmParameters::OctetKey(_)) {
        return None;
    }
    let key = DecodingKey::from_jwk(jwk).ok()?;
    let algorithms = match &common.key_algorithm {
        Some(only) => vec![only.to_string().parse().ok()?],
        None => key.family().algorithms().to_vec(),
    };
    let asymmetric = !algorithms
        .iter()
        .any(|one| matches!(one, Algorithm::HS256 | Algorithm::HS384 | Algorithm::HS512));
    asymmetric.then_some((common.key_id.clone(), key, algorithms))
}

fn rules(issuer: &str, algorithms: &[Algorithm]) -> Validation {
    let mut rules = Validation {
        algorithms: algorithms.to_vec(),
        leeway: LEEWAY,
        validate_nbf: true,
        // Each identity has an audience of its own: held with the other claims.
        validate_aud: false,
        ..Validation::default()
    };
    rules.set_issuer(&[issuer]);
    rules.set_required_spec_claims(&["exp", "iss", "aud"]);
    rules
}

fn said(kind: &ErrorKind) -> &'static str {
    match kind {
        ErrorKind::InvalidSignature => "its signature is not its issuer's",
        ErrorKind::ExpiredSignature => "it has expired",
        ErrorKind::ImmatureSignature => "it is not valid yet",
        ErrorKind::InvalidIssuer => "its issuer is another",
        ErrorKind::MissingRequiredClaim(_) => "it lacks one of `exp`, `iss` and `aud`",
        _ => "it cannot be verified",
    }
}

/// What `iss` says, before anything is verified: only to find out whose keys to verify with.
pub(super) fn issuer(jwt: &str) -> Option<Box<str>> {
    #[derive(serde::Deserialize)]
    struct Claims {
        iss: Box<str>,
    }
    if jwt.len() > MAX_BYTES || jwt.bytes().filter(|byte| *byte == b'.').count() != 2 {
        return None;
    }
    let claims: Claims = jsonwebtoken::dangerous::insecure_decode_claims(jwt).ok()?;
    Some(claims.iss)
}

/// What a worker verified lately: a client shows one JWT with each of its requests.
#[derive(Default)]
pub(crate) struct Cache(RefCell<HashMap<[u8; 32], Verified>>);

struct Verified {
    claims: Arc<Map<String, Value>>,
    /// Seconds since 1970.
    expires: u64,
}

impl Cache {
    fn claims(
        &self,
        keys: &Keys,
        issuer: &str,
        jwt: &str,
    ) -> Result<Arc<Map<String, Value>>, Unproven> {
        let mut hash = Sha256::new();
        hash.update(keys.digest);
        hash.update(issuer.len().to_le_bytes());
        hash.update(issuer);
        hash.update(jwt);
        let key: [u8; 32] = hash.finalize().into();
        let now = jsonwebtoken::get_current_timestamp();
        if let Some(known) = self.0.borrow().get(&key) {
            return if known.expires > now {
                Ok(Arc::clone(&known.claims))
            } else {
                Err(Unproven::Jwt(said(&ErrorKind::ExpiredSignature)))
            };
        }
        let claims = Arc::new(keys.verify(issuer, jwt)?);
        let expires = claims.get("exp").and_then(Value::as_f64).unwrap_or(0.0) as u64;
        let mut known = self.0.borrow_mut();
        if known.len() >= CACHED {
            known.clear();
        }
        known.insert(
            key,
            Verified {
                claims: Arc::clone(&claims),
                expires: expires.saturating_add(LEEWAY),
            },
        );
        Ok(claims)
    }
}
