//! Which headers and parameters carry what: credentials, framing, disguises.

/// Headers that belong to one connection or to the message's framing (RFC 9110, section 7.6.1); the
/// agent makes its own.
const CONNECTION: [&str; 13] = [
    "connection",
    "expect",
    "host",
    "http2-settings",
    "keep-alive",
    "proxy-authenticate",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
    "upgrade-insecure-requests",
    "via",
];

/// Headers by which a client could ask for another method, host or path than was decided on.
const OVERRIDES: [&str; 19] = [
    "forwarded",
    "x-forwarded-for",
    "x-forwarded-host",
    "x-forwarded-method",
    "x-forwarded-port",
    "x-forwarded-prefix",
    "x-forwarded-proto",
    "x-forwarded-server",
    "x-forwarded-uri",
    "x-host",
    "x-http-host-override",
    "x-http-method",
    "x-http-method-override",
    "x-method",
    "x-method-override",
    "x-original-method",
    "x-original-uri",
    "x-original-url",
    "x-rewrite-url",
];

/// Where a client shows the agent who it is.
const IDENTITY: &str = "tollgate-identity";

/// Words that, as a part of a header's name, tell that it carries a credential.
const CREDENTIAL_WORDS: [&str; 23] = [
    "apikey",
    "assertion",
    "auth",
    "authenticated",
    "authentication",
    "authorization",
    "bearer",
    "cookie",
    "cookie2",
    "credential",
    "credentials",
    "jwt",
    "key",
    "keys",
    "passwd",
    "password",
    "pat",
    "secret",
    "session",
    "sid",
    "signature",
    "token",
    "tokens",
];

/// Names with such a word that carry none.
///
/// A session of MCP is not who calls: the protocol forbids servers to take it for that.
const NO_CREDENTIALS: [&str; 4] = [
    "idempotency-key",
    "mcp-session-id",
    "sec-websocket-key",
    "x-idempotency-key",
];

/// Request headers that APIs need.
const NEEDED: [&str; 43] = [
    "accept",
    "accept-charset",
    "accept-encoding",
    "accept-language",
    "accept-ranges",
    "cache-control",
    "content-digest",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-md5",
    "content-range",
    "content-type",
    "date",
    "digest",
    "grpc-accept-encoding",
    "grpc-encoding",
    "grpc-timeout",
    "idempotency-key",
    "if-match",
    "if-modified-since",
    "if-none-match",
    "if-range",
    "if-unmodified-since",
    "last-event-id",
    "mcp-protocol-version",
    "notion-version",
    "pragma",
    "prefer",
    "priority",
    "range",
    "repr-digest",
    "request-id",
    "soapaction",
    "stripe-version",
    "traceparent",
    "tracestate",
    "user-agent",
    "x-correlation-id",
    "x-github-api-version",
    "x-idempotency-key",
    "x-request-id",
];

/// Beginnings of the names that large APIs use for their own request headers.
const NEEDED_PREFIXES: [&str; 5] = ["anthropic-", "openai-", "x-amz-", "x-goog-", "x-ms-"];

/// Words that tell, as a part of such a name, that a header names another resource than was decided on, to copy from
/// or to rename, or who else may have it.
const BEYOND: [&str; 3] = ["acl", "grant", "source"];

/// Query parameters that carry credentials, in lower case with `_` for `-`. A presigned URL's are one credential: what is left of it
/// would only contradict another.
const CREDENTIAL_PARAMETERS: [&str; 37] = [
    "access_key",
    "access_token",
    "api_key",
    "api_token",
    "apikey",
    "app_key",
    "app_secret",
    "appid_key",
    "auth",
    "auth_key",
    "auth_token",
    "authorization",
    "awsaccesskeyid",
    "client_secret",
    "id_token",
    "jwt",
    "key",
    "oauth_token",
    "passwd",
    "password",
    "private_token",
    "refresh_token",
    "secret",
    "session_token",
    "sessionid",
    "sig",
    "signature",
    "subscription_key",
    "token",
    "x_amz_algorithm",
    "x_amz_content_sha256",
    "x_amz_credential",
    "x_amz_date",
    "x_amz_expires",
    "x_amz_security_token",
    "x_amz_signature",
    "x_amz_signedheaders",
];

/// Query parameters that some servers take for the method.
const METHOD_PARAMETERS: [&str; 3] = ["_method", "x_http_method_override", "_http_method"];

/// Whether a header's name (lower-case) is one that never goes upstream as the client sent it.
pub(crate) fn never_passes(name: &str) -> bool {
    // `x_auth` and `x-auth` are one variable to CGI-like servers: no name with `_` passes.
    name.contains('_')
        || name.is_empty()
        || CONNECTION.binary_search(&name).is_ok()
        || OVERRIDES.binary_search(&name).is_ok()
        || name == IDENTITY
        || name.starts_with("proxy-") && name != "proxy-authorization"
}

/// Whether a header (lower-case) is a slot for a credential.
pub(crate) fn is_credential_header(name: &str) -> bool {
    !NO_CREDENTIALS.contains(&name)
        && name
            .split('-')
            .any(|word| CREDENTIAL_WORDS.binary_search(&word).is_ok())
}

/// Whether a header (lower-case) is on the default allow-list.
pub(crate) fn is_needed(name: &str) -> bool {
    let beyond = || name.split('-').any(|word| BEYOND.contains(&word));
    NEEDED.binary_search(&name).is_ok()
        || NEEDED_PREFIXES
            .iter()
            .any(|prefix| name.starts_with(prefix))
            && !beyond()
}

/// Whether a credential may be injected into this header (lower-case).
pub(crate) fn may_be_injected(name: &str) -> bool {
    let connection =
        CONNECTION.binary_search(&name).is_ok() || name.starts_with("proxy-") || name == IDENTITY;
    !connection && OVERRIDES.binary_search(&name).is_err() && !name.starts_with("content-")
}

/// What an undeclared query parameter is taken for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ParameterKind {
    Plain,
    Credential,
    Method,
}

/// Tells by its decoded name. PHP takes `.` and a blank for `_`, drops blanks before a name, and makes a list of
/// what ends in brackets.
pub(crate) fn parameter_kind(name: &str) -> ParameterKind {
    let name = name.trim_start_matches(' ');
    let name = name.split_once('[').map_or(name, |(name, _)| name);
    // Longer than any of the names; also bounds the work.
    const LONGEST: usize = 24;
    if name.len() > LONGEST {
        return ParameterKind::Plain;
    }
    let same = |known: &&str| {
        let fold = |byte: u8| match byte {
            b'-' | b'.' | b' ' => b'_',
            other => other.to_ascii_lowercase(),
        };
        known.len() == name.len() && name.bytes().map(fold).eq(known.bytes())
    };
    if CREDENTIAL_PARAMETERS.iter().any(&same) {
        ParameterKind::Credential
    } else if METHOD_PARAMETERS.iter().any(same) {
        ParameterKind::Method
    } else {
        ParameterKind::Plain
    }
}

/// Whether this is a header's name (RFC 9110, section 5.6.2) in lower case.
pub(crate) fn is_lower_token(name: &str) -> bool {
    let token = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"!#$%&'*+-.^_`|~".contains(&byte)
    };
    !name.is_empty() && name.len() <= 128 && name.bytes().all(token)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tables_that_are_searched_are_sorted() {
        assert!(CONNECTION.is_sorted());
        assert!(OVERRIDES.is_sorted());
        assert!(CREDENTIAL_WORDS.is_sorted());
        assert!(NEEDED.is_sorted());
        assert!(CREDENTIAL_PARAMETERS.is_sorted());
    }

    #[test]
    fn credentials_are_known_by_name() {
        for name in [
            "authorization",
            "proxy-authorization",
            "cookie",
            "x-api-key",
            "api-key",
            "x-goog-api-key",
            "x-auth-token",
            "private-token",
            "x-amz-security-token",
            "ocp-apim-subscription-key",
            "x-vault-token",
            "x-goog-iap-jwt-assertion",
            "x-csrf-token",
            "x-goog-authenticated-user-id",
        ] {
            assert!(is_credential_header(name), "{name}");
        }
        for name in [
            "idempotency-key",
            "content-type",
            "x-request-id",
            "x-amz-date",
            "openai-organization",
        ] {
            assert!(!is_credential_header(name), "{name}");
        }
        for name in [
            "access_token",
            "API-Key",
            "apikey",
            "X-Amz-Signature",
            "key",
        ] {
            assert_eq!(parameter_kind(name), ParameterKind::Credential, "{name}");
        }
        for name in ["page_token", "next_token", "keys", "keyword", "state"] {
            assert_eq!(parameter_kind(name), ParameterKind::Plain, "{name}");
        }
        assert_eq!(parameter_kind("_Method"), ParameterKind::Method);
    }
}
