//! Who calls: identities, and groups of them.
use super::{Name, Reading, reference, secret_ref};
use crate::model::Proof;
use crate::syntax::{Node, quote};

#[derive(Debug)]
pub(crate) struct Identity {
    /// Missing only where there is a fault.
    pub(crate) proof: Option<Proof>,
}

#[derive(Debug)]
pub(crate) struct Group {
    pub(crate) members: Vec<Name>,
}

/// Claims of one identity at most.
const MAX_CLAIMS: usize = 32;

pub(super) fn identity(reading: &mut Reading<'_>, node: &Node) -> Identity {
    Identity {
        proof: proof(reading, node),
    }
}

fn proof(reading: &mut Reading<'_>, node: &Node) -> Option<Proof> {
    let mut fields = reading.decoder.fields(node, "the identity")?;
    let (token, jwt) = (fields.take("token"), fields.take_entry("jwt"));
    let span = fields.span();
    fields.finish(reading.decoder);
    match (token, jwt) {
        (Some(node), None) => token_proof(reading, node),
        (None, Some(entry)) => jwt_proof(reading, &entry.value),
        (Some(_), Some(entry)) => {
            reading
                .decoder
                .error(
                    entry.key.span,
                    "an identity is proven by `token` or by `jwt`",
                )
                .help("make two identities, and a group of both");
            None
        }
        (None, None) => {
            reading
                .decoder
                .error(span, "the identity needs `token` or `jwt`");
            None
        }
    }
}

/// `tgi_` and the public half of a token.
fn token_proof(reading: &mut Reading<'_>, node: &Node) -> Option<Proof> {
    let text = reading.decoder.string(node)?;
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-');
    let good = text
        .strip_prefix("tgi_")
        .is_some_and(|half| !half.is_empty() && half.len() <= 128 && half.bytes().all(allowed));
    if good {
        return Some(Proof::Token(text.into()));
    }
    // Not shown: it may be the secret half.
    reading
        .decoder
        .error(node.span, "this is not the public half of a token")
        .help("it begins with `tgi_`; never write the secret half into a policy");
    None
}

fn jwt_proof(reading: &mut Reading<'_>, node: &Node) -> Option<Proof> {
    let mut fields = reading.decoder.fields(node, "`jwt`")?;
    let issuer = fields.require(reading.decoder, "issuer");
    let audience = fields.require(reading.decoder, "audience");
    let (claims, keys) = (fields.take("claims"), fields.take("keys"));
    fields.finish(reading.decoder);
    let issuer = issuer.and_then(|node| issuer_url(reading, node));
    let audience = audience.and_then(|node| bounded(reading, node, "an audience"));
    let keys = match keys {
        Some(node) => Some(secret_ref(reading, node)?),
        None => None,
    };
    let claims = match claims {
        Some(node) => claim_values(reading, node)?,
        None => Vec::new(),
    };
    Some(Proof::Jwt {
        issuer: issuer?,
        audience: audience?,
        claims,
        keys,
    })
}

/// Keys fetched in clear would be anybody's.
fn issuer_url(reading: &mut Reading<'_>, node: &Node) -> Option<String> {
    let text = bounded(reading, node, "an issuer")?;
    if text
        .strip_prefix("https://")
        .is_some_and(|rest| !rest.is_empty())
    {
        return Some(text);
    }
    reading
        .decoder
        .error(node.span, format!("{} is no issuer", quote(&text)))
        .help("write the `iss` of its tokens: a URL that begins with `https://`");
    None
}

fn bounded(reading: &mut Reading<'_>, node: &Node, what: &str) -> Option<String> {
    let text = reading.decoder.string(node)?;
    if text.is_empty() || text.len() > 512 || text.chars().any(char::is_control) {
        reading
            .decoder
            .error(node.span, format!("{what} has 1 to 512 characters"));
        return None;
    }
    Some(text.into())
}

fn claim_values(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<(String, String)>> {
    let entries = reading.decoder.mapping(node)?;
    if entries.len() > MAX_CLAIMS {
        reading
            .decoder
            .error(node.span, format!("more than {MAX_CLAIMS} claims"));
        return None;
    }
    let mut claims = Vec::with_capacity(entries.len());
    for entry in entries {
        if matches!(&*entry.key.text, "iss" | "aud" | "exp" | "nbf" | "iat") {
            let what = format!("the claim {} is checked anyway", quote(&entry.key.text));
            reading
                .decoder
                .error(entry.key.span, what)
                .help("`issuer` and `audience` say what `iss` and `aud` must be");
            continue;
        }
        let what = "the claim's one value";
        let Some(scalar) = reading.decoder.scalar(&entry.value, what) else {
            continue;
        };
        claims.push((entry.key.text.to_string(), scalar.text.to_string()));
    }
    claims.sort();
    Some(claims)
}

pub(super) fn group(reading: &mut Reading<'_>, node: &Node) -> Group {
    let items = reading.decoder.nonempty_list(node).unwrap_or_default();
    Group {
        members: items
            .iter()
            .filter_map(|item| reference(reading, item))
            .collect(),
    }
}
