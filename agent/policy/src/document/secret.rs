//! References to secrets and certificates: `file:NAME`, `vault:PATH#FIELD`.
use super::Reading;
use crate::model::SecretRef;
use crate::syntax::{Node, quote};

/// Bytes of a file's name, of a path or of a field at most.
const LONGEST: usize = 128;

/// A reference to a secret or certificate.
pub(super) fn secret_ref(reading: &mut Reading<'_>, node: &Node) -> Option<SecretRef> {
    let text = reading.decoder.string(node)?;
    let Some((source, key)) = text.split_once(':') else {
        let message = format!(
            "expected `file:NAME` or `vault:PATH#FIELD`, found {}",
            quote(text)
        );
        reading
            .decoder
            .error(node.span, message)
            .help("NAME is a file in the agent's secrets directory, PATH and FIELD are those of a secret in Vault");
        return None;
    };
    let (good, what, help) = match source {
        "file" => (
            is_file_name(key),
            "is not a secret's name",
            "a name is letters, digits, `.`, `_` or `-`, not beginning with `.`: a file, not a path",
        ),
        "vault" => (
            is_place_in_vault(key),
            "is not the place of a secret in Vault",
            "write PATH#FIELD, e.g. `vault:aws/reader#key`: letters, digits, `.`, `_` or `-`, in PATH with `/` between its segments, none of which begins with `.`",
        ),
        _ => {
            reading
                .decoder
                .error(
                    node.span,
                    format!("{} is no source of secrets", quote(source)),
                )
                .help("known sources: `file`, `vault`");
            return None;
        }
    };
    if !good {
        reading
            .decoder
            .error(node.span, format!("{} {what}", quote(key)))
            .help(help);
        return None;
    }
    Some(SecretRef {
        source: source.into(),
        key: key.into(),
    })
}

fn is_word(text: &str) -> bool {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    !text.is_empty() && text.len() <= LONGEST && text.bytes().all(allowed)
}

fn is_file_name(text: &str) -> bool {
    is_word(text) && !text.starts_with('.')
}

/// PATH below the mount, and FIELD: nothing that would have to be escaped in a URL, nothing that leads elsewhere.
fn is_place_in_vault(text: &str) -> bool {
    let Some((path, field)) = text.split_once('#') else {
        return false;
    };
    path.len() <= LONGEST && path.split('/').all(is_file_name) && is_word(field)
}
