//! Credentials: secrets, what is made of them, and where that may be sent.
use super::{Name, Reading, reference, secret_ref};
use crate::headers::{is_lower_token, may_be_injected};
use crate::model::{AwsKeys, CredentialForm, HeaderTemplate};
use crate::syntax::{Entry, Fields, Node, quote};

#[derive(Debug)]
pub(crate) struct Credential {
    /// Missing only where there is a fault.
    pub(crate) form: Option<CredentialForm>,
    pub(crate) to: Vec<Name>,
}

pub(super) fn credential(reading: &mut Reading<'_>, node: &Node) -> Credential {
    let mut credential = Credential {
        form: None,
        to: Vec::new(),
    };
    let Some(mut fields) = reading.decoder.fields(node, "the credential") else {
        return credential;
    };
    credential.form = match fields.take_entry("aws-sigv4") {
        Some(entry) => beside_aws(reading, &mut fields, entry),
        None => in_headers(reading, &mut fields),
    };
    let to = fields.require(reading.decoder, "to");
    fields.finish(reading.decoder);
    let to = to
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    credential
        .to
        .extend(to.iter().filter_map(|item| reference(reading, item)));
    credential
}

/// A secret in headers.
fn in_headers(reading: &mut Reading<'_>, fields: &mut Fields<'_>) -> Option<CredentialForm> {
    let secret = fields.require(reading.decoder, "secret");
    let header = fields.require(reading.decoder, "header");
    let secret = secret.and_then(|node| secret_ref(reading, node));
    let headers = header.map(|node| headers(reading, node));
    Some(CredentialForm::Headers {
        secret: secret?,
        headers: headers?,
    })
}

/// Keys to sign with; a credential is one thing or the other.
fn beside_aws(
    reading: &mut Reading<'_>,
    fields: &mut Fields<'_>,
    entry: &Entry,
) -> Option<CredentialForm> {
    for key in ["secret", "header"] {
        if let Some(other) = fields.take_entry(key) {
            let message = format!("`{key}` stands beside `aws-sigv4`");
            reading
                .decoder
                .error(other.key.span, message)
                .help("a credential is a `secret` in a `header`, or keys that `aws-sigv4` signs with: make two of it");
        }
    }
    aws(reading, &entry.value).map(CredentialForm::AwsSigV4)
}

fn aws(reading: &mut Reading<'_>, node: &Node) -> Option<AwsKeys> {
    let mut fields = reading.decoder.fields(node, "`aws-sigv4`")?;
    let access_key = fields.require(reading.decoder, "access_key");
    let secret_key = fields.require(reading.decoder, "secret_key");
    let session_token = fields.take("session_token");
    let [region, service] = ["region", "service"].map(|key| fields.take(key));
    fields.finish(reading.decoder);
    let access_key = access_key.and_then(|node| secret_ref(reading, node));
    let secret_key = secret_key.and_then(|node| secret_ref(reading, node));
    let session_token = session_token.and_then(|node| secret_ref(reading, node));
    let region = region.and_then(|node| scope(reading, node, "region"));
    let service = service.and_then(|node| scope(reading, node, "service"));
    Some(AwsKeys {
        access_key: access_key?,
        secret_key: secret_key?,
        session_token,
        region,
        service,
    })
}

/// A part of what a signature is for.
fn scope(reading: &mut Reading<'_>, node: &Node, what: &str) -> Option<String> {
    let text = reading.decoder.string(node)?;
    if is_scope(text) {
        return Some(text.to_owned());
    }
    reading
        .decoder
        .error(node.span, format!("{} is not a {what} of AWS", quote(text)))
        .help("1 to 63 small letters, digits or `-`, for example `eu-central-1` and `s3`");
    None
}

/// Whether a region or service can be called so.
pub(crate) fn is_scope(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'-';
    (1..=63).contains(&text.len()) && text.bytes().all(allowed)
}

fn headers(reading: &mut Reading<'_>, node: &Node) -> Vec<(String, HeaderTemplate)> {
    let entries = reading.decoder.mapping(node).unwrap_or_default();
    if entries.is_empty() && matches!(&node.value, crate::syntax::Value::Mapping(_)) {
        reading.decoder.error(node.span, "`header` names no header");
    }
    let mut headers: Vec<(String, HeaderTemplate)> = Vec::new();
    if super::too_many_headers(reading, node, entries.len()) {
        return headers;
    }
    for entry in entries {
        let name = entry.key.text.to_ascii_lowercase();
        let problem = if !is_lower_token(&name) {
            Some("is not a header's name")
        } else if !may_be_injected(&name) {
            Some("belongs to the connection or the message and cannot carry a credential")
        } else if headers.iter().any(|(known, _)| *known == name) {
            Some("is named twice (case makes no difference)")
        } else {
            None
        };
        if let Some(problem) = problem {
            reading
                .decoder
                .error(entry.key.span, format!("{} {problem}", quote(&name)));
        }
        if let Some(template) = template(reading, &entry.value) {
            headers.push((name, template));
        }
    }
    headers
}

/// A value with `{secret}` exactly once.
fn template(reading: &mut Reading<'_>, node: &Node) -> Option<HeaderTemplate> {
    let text = reading.decoder.string(node)?;
    let printable = text.bytes().all(|byte| matches!(byte, b' '..=b'~')) && text.trim() == text;
    let parts = text.split_once("{secret}");
    match parts {
        Some((before, after))
            if printable && !before.contains(['{', '}']) && !after.contains(['{', '}']) =>
        {
            Some(HeaderTemplate {
                before: before.into(),
                after: after.into(),
            })
        }
        _ => {
            reading
                .decoder
                .error(
                    node.span,
                    "the header's value must be printable ASCII with `{secret}` exactly once",
                )
                .help("for example \"Bearer {secret}\"");
            None
        }
    }
}
