//! Who calls, proven: tokens that were issued for this host, and JWTs that an issuer signed.
//!
//! A policy holds the public half of a token and nothing that could be used to call; the agent stores neither half.
mod jwt;
mod published;
mod token;

pub(crate) use jwt::Cache;
pub use published::Published;
pub(crate) use published::refresh;
pub(crate) use token::is_token;
pub use token::{Issued, REVOKED, Revoked, is_public_half, issue};

use crate::secrets;
use jwt::Issuer;
use std::collections::HashMap;
use std::sync::Arc;
use tollgate_policy::{Policy, Proof};

/// Everything that a policy's identities can be proven by. Part of a snapshot: read by all workers, changed by none.
#[derive(Debug, Default)]
pub struct Identities {
    /// Public half of a token → identity.
    tokens: HashMap<Box<str>, Arc<str>>,
    revoked: Revoked,
    /// `iss` → what its tokens may prove.
    issuers: HashMap<Box<str>, Issuer>,
}

/// Why what was shown proves nothing. Names may appear, never what was shown.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Unproven {
    /// It has the form of a token and is none of the policy's.
    #[error("the token is not one of an identity of the policy")]
    UnknownToken,
    /// It was one.
    #[error("the token was revoked")]
    Revoked,
    /// It is none, or its signature or claims do not hold.
    #[error("the JWT does not hold: {0}")]
    Jwt(&'static str),
    /// It is shown to the agent, and not an issuer's that the policy names.
    #[error("this is neither a token nor a JWT of an issuer that the policy names")]
    ForeignJwt,
    /// It is good, and no identity is described so.
    #[error("the JWT is good, and no identity of the policy asks for its audience and claims")]
    NoSuchClaims,
    /// Several identities are described so.
    #[error("the JWT proves {0} and {1} alike: let their `claims` tell them apart")]
    Several(Arc<str>, Arc<str>),
    /// It cannot be known now.
    #[error("the keys of {issuer} are not there: {why}")]
    NoKeys {
        /// Whose.
        issuer: Box<str>,
        /// What was tried.
        why: Arc<str>,
    },
}

impl Unproven {
    /// Stable code for records.
    pub(crate) fn code(&self) -> &'static str {
        match self {
            Self::UnknownToken | Self::NoSuchClaims | Self::ForeignJwt => "identity_unknown",
            Self::Revoked => "identity_revoked",
            Self::Jwt(_) | Self::Several(..) => "identity_invalid",
            Self::NoKeys { .. } => "identity_keys",
        }
    }
}

impl Identities {
    /// What the identities of `policy` are proven by, with what is not to be had: keys of their own are among the secrets. An
    /// identity without them is proven by nothing.
    pub(crate) fn load(
        policy: &Policy,
        sources: secrets::Sources<'_>,
        revoked: Revoked,
        published: &Published,
    ) -> (Self, secrets::Absent) {
        let (mut tokens, mut issuers, mut absent) = (HashMap::new(), HashMap::new(), Vec::new());
        for identity in policy.identities() {
            let name: Arc<str> = identity.name.as_str().into();
            match &identity.proof {
                Proof::Token(public) => {
                    tokens.insert(public.as_str().into(), name);
                }
                Proof::Jwt {
                    issuer,
                    audience,
                    claims,
                    keys,
                } => {
                    let asked = jwt::Asked::new(name, audience, claims);
                    let entry: &mut Issuer = issuers.entry(issuer.as_str().into()).or_default();
                    match keys {
                        None => entry.published(published.of(issuer), asked),
                        Some(file) => match sources
                            .public(file)
                            .and_then(|found| jwt::Keys::of_file(&found.place, &found.bytes))
                        {
                            Ok(keys) => entry.own(keys, asked),
                            Err(fault) => {
                                absent.push((format!("identity {}", identity.name), fault));
                            }
                        },
                    }
                }
            }
        }
        let identities = Self {
            tokens,
            revoked,
            issuers,
        };
        (identities, absent)
    }

    /// Whose token this is.
    pub(crate) fn of_token(&self, token: &str) -> Result<Arc<str>, Unproven> {
        // What is looked up is a digest: how long the look-up takes says nothing of a token.
        let public = token::public_half(token);
        if self.revoked.has(&public) {
            return Err(Unproven::Revoked);
        }
        let found = self.tokens.get(&*public);
        found.cloned().ok_or(Unproven::UnknownToken)
    }

    /// Whose JWT this is; `None`: its issuer is none of the policy's, so that it is not meant for the agent.
    pub(crate) fn of_jwt(&self, jwt: &str, cache: &Cache) -> Option<Result<Arc<str>, Unproven>> {
        if self.issuers.is_empty() {
            return None;
        }
        let issuer = jwt::issuer(jwt)?;
        let known = self.issuers.get(&*issuer)?;
        Some(known.prove(&issuer, jwt, cache))
    }

    /// Issuers whose published keys are needed.
    pub(crate) fn issuers_to_ask(&self) -> impl Iterator<Item = &str> {
        let published = self
            .issuers
            .iter()
            .filter(|(_, known)| known.is_published());
        published.map(|(issuer, _)| &**issuer)
    }
}
