//! In which form a client is told that its request does not pass: the one whose text its user gets to see.
//!
//! Many programs show nothing but the status line, so HTTP/1.1's reason phrase says why and names the decision too. HTTP/2 has
//! none, and programs that show an answer's fields find the same there.
use super::refuse::Refusal;
use bytes::Bytes;
use http::{HeaderMap, HeaderName, HeaderValue, Response, StatusCode, header};
use hyper::ext::ReasonPhrase;
use uuid::Uuid;

/// What a refusal is written in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Form {
    /// RFC 9457; also what nothing better is known for.
    Problem,
    /// The same for npm, which shows `error` if it is words.
    Npm,
    /// gRPC reads its own status, and neither HTTP's nor a body.
    Grpc,
    /// git prints a text/plain body, and no other.
    Text,
    /// For a person in front of a browser.
    Page,
    /// Clients of S3 read XML only, and call any other answer "Forbidden".
    S3,
}

/// The decision's id, for programs that log headers and no bodies.
const DECISION: HeaderName = HeaderName::from_static("x-tollgate-decision");
/// Why and what to do, for programs that show a failed answer's headers.
const REASON: HeaderName = HeaderName::from_static("x-tollgate-reason");
/// Characters of words in the status line or a header: far below what any client takes in a line.
const WORDS: usize = 512;

impl Form {
    /// By what the client says of itself; a wrong word of it makes its own reading worse, and nothing else.
    pub(super) fn of(headers: &HeaderMap) -> Self {
        let text = |name: HeaderName| headers.get(name).map_or(&b""[..], HeaderValue::as_bytes);
        let holds = |text: &[u8], part: &str| {
            let part = part.as_bytes();
            text.windows(part.len()).any(|window| window == part)
        };
        let (accept, credential) = (text(header::ACCEPT), text(header::AUTHORIZATION));
        let program = text(header::USER_AGENT);
        if text(header::CONTENT_TYPE).starts_with(b"application/grpc") {
            Self::Grpc
        } else if program.starts_with(b"git/") {
            Self::Text
        } else if program.starts_with(b"npm/") {
            Self::Npm
        } else if credential.starts_with(b"AWS4-") && holds(credential, "/s3/aws4_request") {
            Self::S3
        } else if accept.starts_with(b"text/html") && holds(accept, "application/xhtml+xml") {
            Self::Page
        } else {
            Self::Problem
        }
    }

    /// The refusal in this form; gRPC has its own.
    pub(super) fn write(self, refusal: &Refusal, id: Uuid) -> Response<Bytes> {
        let (kind, body) = match self {
            Self::Problem | Self::Npm | Self::Grpc => {
                ("application/problem+json", problem(refusal, id, self))
            }
            Self::Text => ("text/plain; charset=utf-8", text(refusal, id)),
            Self::Page => ("text/html; charset=utf-8", page(refusal, id)),
            Self::S3 => ("application/xml", s3(refusal, id)),
        };
        let mut response = Response::new(Bytes::from(body));
        *response.status_mut() = refusal.status;
        let phrase = format!(
            "{}: {} ({}; tollgate explain {id})",
            refusal.title(),
            on_the_line(&refusal.detail),
            refusal.code
        );
        if let Ok(phrase) = ReasonPhrase::try_from(phrase) {
            response.extensions_mut().insert(phrase);
        }
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static(kind));
        headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-store"));
        // Nobody guesses at a kind of which names out of the request could make more than text.
        headers.insert(
            header::X_CONTENT_TYPE_OPTIONS,
            HeaderValue::from_static("nosniff"),
        );
        if let Ok(id) = HeaderValue::from_str(&id.to_string()) {
            headers.insert(DECISION, id);
        }
        let told = format!(
            "{}; {} ({})",
            on_the_line(&refusal.detail),
            on_the_line(&refusal.hint),
            refusal.code
        );
        if let Ok(told) = HeaderValue::try_from(told) {
            headers.insert(REASON, told);
        }
        if self == Self::Page {
            let nothing = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'";
            headers.insert(
                header::CONTENT_SECURITY_POLICY,
                HeaderValue::from_static(nothing),
            );
        }
        if refusal.status == StatusCode::UNAUTHORIZED {
            // Asked for by RFC 9110, section 15.5.2.
            let challenge = HeaderValue::from_static("Bearer realm=\"tollgate\"");
            headers.insert(header::WWW_AUTHENTICATE, challenge);
        }
        if [
            StatusCode::SERVICE_UNAVAILABLE,
            StatusCode::TOO_MANY_REQUESTS,
        ]
        .contains(&refusal.status)
        {
            let seconds = refusal.retry_after.unwrap_or(1);
            headers.insert(header::RETRY_AFTER, HeaderValue::from(seconds));
        }
        response
    }
}

/// All of it in one sentence or two.
pub(super) fn sentence(refusal: &Refusal, id: Uuid) -> String {
    format!(
        "{}: {}; {} ({}; tollgate explain {id})",
        refusal.title(),
        printable(&refusal.detail),
        printable(&refusal.hint),
        refusal.code
    )
}

/// What may stand in a status line and in a header: visible ASCII, and not much of it.
fn on_the_line(text: &str) -> String {
    let mut characters = text.chars();
    let shown = characters.by_ref().take(WORDS).map(|c| match c {
        ' '..='~' => c,
        _ => '?',
    });
    let mut line: String = shown.collect();
    if characters.next().is_some() {
        line.push_str("...");
    }
    line
}

/// Names out of a request are shown on terminals.
fn printable(text: &str) -> String {
    text.chars()
        .map(|c| if c.is_control() { '\u{fffd}' } else { c })
        .collect()
}

/// A problem as RFC 9457 has it, and the places where clients of JSON APIs look for words to show.
#[derive(serde::Serialize)]
struct Problem<'a> {
    r#type: String,
    title: &'static str,
    status: u16,
    detail: &'a str,
    hint: &'a str,
    code: &'a str,
    decision: Uuid,
    explain: String,
    /// AWS, GitHub and others.
    message: &'a str,
    error: Words<'a>,
}

#[derive(serde::Serialize)]
#[serde(untagged)]
enum Words<'a> {
    /// OpenAI, Google, Stripe and others.
    Inside {
        message: &'a str,
    },
    Plain(&'a str),
}

fn problem(refusal: &Refusal, id: Uuid, form: Form) -> String {
    let sentence = sentence(refusal, id);
    let problem = Problem {
        r#type: format!("urn:tollgate:{}", refusal.code),
        title: refusal.title(),
        status: refusal.status.as_u16(),
        detail: &refusal.detail,
        hint: &refusal.hint,
        code: &refusal.code,
        decision: id,
        explain: format!("tollgate explain {id}"),
        message: &sentence,
        error: match form {
            Form::Npm => Words::Plain(&sentence),
            _ => Words::Inside { message: &sentence },
        },
    };
    let mut text = serde_json::to_string(&problem).unwrap_or_default();
    text.push('\n');
    text
}

fn text(refusal: &Refusal, id: Uuid) -> String {
    format!(
        "{}: {}\n{}\ntollgate explain {id}\n",
        refusal.title(),
        printable(&refusal.detail),
        printable(&refusal.hint)
    )
}

fn page(refusal: &Refusal, id: Uuid) -> String {
    let (title, detail, hint) = (
        escaped(refusal.title()),
        escaped(&refusal.detail),
        escaped(&refusal.hint),
    );
    format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head><meta charset=\"utf-8\"><title>{title}</title>\n\
         <style>body {{ font: 1.1em/1.5 sans-serif; margin: 4em auto; max-width: 40em; padding: 0 1em }}</style></head>\n\
         <body>\n<h1>{title}</h1>\n<p>{detail}</p>\n<p>What to do: {hint}</p>\n\
         <p>More: <code>tollgate explain {id}</code></p>\n</body>\n</html>\n"
    )
}

fn s3(refusal: &Refusal, id: Uuid) -> String {
    format!(
        "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n<Error><Code>RefusedByTollgate</Code><Message>{}</Message>\
         <RequestId>{id}</RequestId></Error>\n",
        escaped(&sentence(refusal, id))
    )
}

/// For HTML and XML, in text and in quotes.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in printable(text).chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            '\'' => out.push_str("&#39;"),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn refusal(detail: &str) -> Refusal {
        Refusal::ambiguous("target", detail)
    }

    fn form(headers: &[(&'static str, &'static str)]) -> Form {
        let pairs = headers.iter().map(|(name, value)| {
            (
                HeaderName::from_static(name),
                HeaderValue::from_static(value),
            )
        });
        Form::of(&pairs.collect())
    }

    #[test]
    fn each_client_is_known_by_what_it_sends() {
        let chromium = "text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8";
        let pip = "application/vnd.pypi.simple.v1+json, text/html; q=0.01";
        let s3 =
            "AWS4-HMAC-SHA256 Credential=AKIA/20260101/eu-central-1/s3/aws4_request, Signature=0";
        let sts =
            "AWS4-HMAC-SHA256 Credential=AKIA/20260101/us-east-1/sts/aws4_request, Signature=0";
        for (headers, expected) in [
            (vec![("accept", "*/*")], Form::Problem),
            (vec![("accept", pip)], Form::Problem),
            (
                vec![("accept", chromium), ("user-agent", "Mozilla/5.0")],
                Form::Page,
            ),
            (
                vec![("user-agent", "git/2.39.5"), ("accept", "*/*")],
                Form::Text,
            ),
            (vec![("user-agent", "npm/10.9.9 node/v20")], Form::Npm),
            (vec![("content-type", "application/grpc+proto")], Form::Grpc),
            (vec![("authorization", s3)], Form::S3),
            (vec![("authorization", sts)], Form::Problem),
        ] {
            assert_eq!(form(&headers), expected, "{headers:?}");
        }
    }

    #[test]
    fn what_the_client_named_is_shown_as_text() {
        let hostile = "<script>alert('\"&\")</script>\u{1b}[2J";
        for form in [Form::Text, Form::Page, Form::S3] {
            let response = form.write(&refusal(hostile), Uuid::nil());
            let body = String::from_utf8(response.body().to_vec()).unwrap();
            assert!(!body.contains('\u{1b}'), "{body}");
            assert_eq!(body.contains("<script>"), form == Form::Text, "{body}");
        }
        let json = Form::Problem.write(&refusal(hostile), Uuid::nil());
        let json: serde_json::Value = serde_json::from_slice(json.body()).unwrap();
        let message = json.get("message").unwrap().as_str().unwrap();
        assert!(!message.contains('\u{1b}'), "{message}");
    }

    #[test]
    fn the_status_line_and_a_header_say_why() {
        let id = Uuid::nil();
        let shown = |detail: &str| {
            let response = Form::Problem.write(&refusal(detail), id);
            let phrase = response.extensions().get::<ReasonPhrase>().unwrap();
            let told = response.headers().get(REASON).unwrap();
            (
                String::from_utf8(phrase.as_bytes().to_vec()).unwrap(),
                told.to_str().unwrap().to_owned(),
            )
        };
        let (phrase, told) = shown("no \u{1b}[2J\r\nSet-Cookie: \u{e9}");
        let safe = "no ?[2J??Set-Cookie: ?";
        assert_eq!(
            phrase,
            format!("Refused by Tollgate: {safe} (target; tollgate explain {id})")
        );
        assert!(told.starts_with(&format!("{safe}; send ")), "{told}");
        let (phrase, told) = shown(&"x".repeat(1 << 20));
        for line in [phrase, told] {
            assert!(line.len() < 2 * WORDS, "{}", line.len());
            assert!(line.contains(&format!("{}...", "x".repeat(WORDS))));
        }
    }
}
