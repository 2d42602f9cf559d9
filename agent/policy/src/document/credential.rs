//! Credentials: a secret, the headers it goes into, and where it may be sent.
use super::{Name, Reading, reference, secret_ref, unsupported};
use crate::headers::{is_lower_token, may_be_injected};
use crate::model::{HeaderTemplate, SecretRef};
use crate::syntax::{Node, quote};

#[derive(Debug)]
pub(crate) struct Credential {
    pub(crate) secret: Option<SecretRef>,
    pub(crate) headers: Vec<(String, HeaderTemplate)>,
    pub(crate) to: Vec<Name>,
}

pub(super) fn credential(reading: &mut Reading<'_>, node: &Node) -> Credential {
    let mut credential = Credential {
        secret: None,
        headers: Vec::new(),
        to: Vec::new(),
    };
    let Some(mut fields) = reading.decoder.fields(node, "the credential") else {
        return credential;
    };
    let refused = unsupported(reading, &mut fields, &["aws-sigv4"]);
    let (secret, header) = match refused {
        true => (fields.take("secret"), fields.take("header")),
        false => (
            fields.require(reading.decoder, "secret"),
            fields.require(reading.decoder, "header"),
        ),
    };
    let to = fields.require(reading.decoder, "to");
    fields.finish(reading.decoder);
    credential.secret = secret.and_then(|node| secret_ref(reading, node));
    if let Some(node) = header {
        credential.headers = headers(reading, node);
    }
    let to = to
        .and_then(|node| reading.decoder.nonempty_list(node))
        .unwrap_or_default();
    credential
        .to
        .extend(to.iter().filter_map(|item| reference(reading, item)));
    credential
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
