//! What small words of the language mean, written out by hand.
use crate::request::{Asked, Json};

/// A pattern, what it matches, and texts that it does.
pub(crate) struct Pattern {
    pub(crate) text: &'static str,
    pub(crate) means: fn(&str) -> bool,
    pub(crate) like: &'static [&'static str],
}

pub(crate) const PATTERNS: [Pattern; 4] = [
    Pattern {
        text: "[ab]+",
        means: |text| !text.is_empty() && text.chars().all(|one| one == 'a' || one == 'b'),
        like: &["a", "b", "ab", "ba"],
    },
    Pattern {
        text: "v[0-9]{1,2}",
        means: |text| {
            let digits = text.strip_prefix('v').unwrap_or("");
            (1..=2).contains(&digits.len()) && digits.chars().all(|one| one.is_ascii_digit())
        },
        like: &["v1", "v12"],
    },
    // Alternatives are held as a whole, not each to one end.
    Pattern {
        text: "open|x.*",
        means: |text| text == "open" || text.starts_with('x'),
        like: &["open", "x", "x-1"],
    },
    // Also matches nothing, which a segment never is.
    Pattern {
        text: "(ab)*",
        means: |text| text.replace("ab", "").is_empty(),
        like: &["ab", "abab"],
    },
];

/// A text for numbers: whether JSON has it, and which integer it is, if one.
pub(crate) const NUMBERS: [(&str, bool, Option<i64>); 12] = [
    ("1", true, Some(1)),
    ("3", true, Some(3)),
    ("9", true, Some(9)),
    ("0", true, Some(0)),
    ("-4", true, Some(-4)),
    ("9223372036854775807", true, Some(i64::MAX)),
    ("9223372036854775808", true, None),
    ("1.0", true, None),
    ("1e0", true, None),
    ("-0", true, None),
    ("007", false, None),
    ("1e999", false, None),
];

/// Which integer a text is.
pub(crate) fn integer(text: &str) -> Option<i64> {
    let number = text.parse::<i64>().ok()?;
    (number.to_string() == text).then_some(number)
}

/// A text of a route, without the escapes that are used in routes here.
pub(crate) fn decoded(text: &str) -> String {
    text.replace("%3A", ":").replace("%C3%A9", "é")
}

/// Whether JSON has this number, and it is finite.
pub(crate) fn is_number(text: &str) -> bool {
    if let Some((_, valid, _)) = NUMBERS.iter().find(|(known, _, _)| *known == text) {
        return *valid;
    }
    integer(text).is_some()
}

pub(crate) const UUID: &str = "3fa85f64-5717-4562-b3fc-2c963f66afa6";

pub(crate) fn is_uuid(text: &str) -> bool {
    text == UUID || text == UUID.to_uppercase()
}

/// Values of `content-type`, and whether they are JSON (`true`), a form (`false`) or neither.
pub(crate) const MEDIA: [(&str, Option<bool>); 7] = [
    ("application/json", Some(true)),
    ("Application/JSON; Charset=UTF-8", Some(true)),
    ("application/x-www-form-urlencoded", Some(false)),
    (
        "application/x-www-form-urlencoded;charset=utf-8",
        Some(false),
    ),
    ("text/plain", None),
    ("application/json;charset=latin1", None),
    ("application/json, text/plain", None),
];

pub(crate) fn media(value: &str) -> Option<bool> {
    MEDIA.iter().find(|(known, _)| *known == value)?.1
}

/// What becomes of a request's header.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Header {
    /// Passes by default.
    Needed,
    /// Passes only if allowed.
    Other,
    /// Passes only if the client's own credentials do.
    Credential,
    Never,
}

pub(crate) const HEADERS: [(&str, Header); 20] = [
    ("accept", Header::Needed),
    ("content-type", Header::Needed),
    ("content-encoding", Header::Needed),
    ("user-agent", Header::Needed),
    ("if-match", Header::Needed),
    ("idempotency-key", Header::Needed),
    ("x-amz-date", Header::Needed),
    ("x-tenant", Header::Other),
    ("x-custom", Header::Other),
    ("x-magic", Header::Other),
    ("authorization", Header::Credential),
    ("cookie", Header::Credential),
    ("x-api-key", Header::Credential),
    ("x-session-token", Header::Credential),
    ("host", Header::Never),
    ("connection", Header::Never),
    ("x-forwarded-for", Header::Never),
    ("x-http-method-override", Header::Never),
    ("x_tenant", Header::Never),
    ("proxy-connection", Header::Never),
];

/// What an undeclared parameter is: carrying a credential, or taken for the method by some servers.
pub(crate) fn is_credential_parameter(name: &str) -> bool {
    matches!(name, "api_key" | "API-Key" | "access_token")
}

pub(crate) fn is_method_parameter(name: &str) -> bool {
    name == "_method"
}

/// What a condition sees of a request.
#[allow(dead_code)] // Read by conditions, as soon as there are some.
pub(crate) struct Facts<'a> {
    pub(crate) asked: &'a Asked,
    /// Segments of the path that have a name.
    pub(crate) path: &'a [(String, String)],
    /// The body, where it is JSON and was read.
    pub(crate) json: Option<&'a Json>,
}

/// An expression for `when`, and what it means.
pub(crate) struct Condition {
    pub(crate) text: &'static str,
    /// Whether it may stand in a deny rule too: it looks at no body.
    pub(crate) deny: bool,
    pub(crate) means: fn(&Facts<'_>) -> bool,
}

/// Filled as the language grows; a model without them has no `when`.
pub(crate) const CONDITIONS: &[Condition] = &[];
