//! What a client is told when its request does not pass (RFC 9457), and the same for the log.
use super::answer::Form;
use crate::audit::{ReasonRecord, Verdict};
use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};
use std::borrow::Cow;
use tollgate_policy::Reason;
use tollgate_policy::canonical::Ambiguity;
use uuid::Uuid;

/// A request that does not pass: why, for the client and for the log. Names may appear, values never.
#[derive(Debug)]
pub(super) struct Refusal {
    pub(super) status: StatusCode,
    pub(super) verdict: Verdict,
    pub(super) code: Cow<'static, str>,
    pub(super) detail: String,
    pub(super) hint: String,
    /// Seconds after which it is worth trying again, where that is known.
    pub(super) retry_after: Option<u64>,
}

impl Refusal {
    /// The policy does not allow it.
    pub(super) fn denied(reason: Reason) -> Self {
        let status = match reason.code {
            "identity_required" => StatusCode::UNAUTHORIZED,
            _ => StatusCode::FORBIDDEN,
        };
        Self {
            status,
            verdict: Verdict::Deny,
            code: reason.code.into(),
            detail: reason.detail,
            hint: reason.hint,
            retry_after: None,
        }
    }

    /// It could be read in two ways.
    pub(super) fn ambiguous(code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            status: StatusCode::BAD_REQUEST,
            verdict: Verdict::Deny,
            code: code.into(),
            detail: detail.into(),
            hint: "send the request in its plain form: it is refused because two servers could read it differently".into(),
            retry_after: None,
        }
    }

    /// It was sent on a connection for another host.
    pub(super) fn misdirected(detail: String) -> Self {
        Self {
            status: StatusCode::MISDIRECTED_REQUEST,
            verdict: Verdict::Deny,
            code: "misdirected".into(),
            detail,
            hint: "use one connection per host: server name (SNI), Host and :authority must be the same".into(),
            retry_after: None,
        }
    }

    /// Something failed that is nobody's permission.
    pub(super) fn failed(
        status: StatusCode,
        code: &'static str,
        detail: String,
        hint: String,
    ) -> Self {
        Self {
            status,
            verdict: Verdict::Error,
            code: code.into(),
            detail,
            hint,
            retry_after: None,
        }
    }

    /// No record could be kept of it.
    pub(super) fn unlogged() -> Self {
        Self::failed(
            StatusCode::SERVICE_UNAVAILABLE,
            "audit_unavailable",
            "decisions cannot be logged, so none are taken".into(),
            "free space in the agent's state directory; `tollgate status` shows what is wrong"
                .into(),
        )
    }

    /// For the log.
    pub(super) fn record(&self) -> ReasonRecord {
        ReasonRecord {
            code: self.code.clone(),
            detail: self.detail.clone(),
            hint: self.hint.clone(),
        }
    }

    /// In a word or two, by what came of the request.
    pub(super) fn title(&self) -> &'static str {
        match self.verdict {
            Verdict::Deny => "Refused by Tollgate",
            Verdict::Limit => "Tollgate limit reached",
            _ => "Tollgate could not complete the request",
        }
    }

    /// For the client, in the form that it shows.
    pub(super) fn response(&self, id: Uuid, form: Form) -> Response<Bytes> {
        match form {
            Form::Grpc => self.grpc(id),
            other => other.write(self, id),
        }
    }

    /// Trailers-only response (gRPC over HTTP/2, "Responses").
    fn grpc(&self, id: Uuid) -> Response<Bytes> {
        let status = match (self.verdict, self.status) {
            (Verdict::Limit, _) => "8",
            (Verdict::Deny, StatusCode::UNAUTHORIZED) => "16",
            (Verdict::Deny, StatusCode::BAD_REQUEST) => "3",
            (Verdict::Deny, _) => "7",
            (_, StatusCode::GATEWAY_TIMEOUT) => "4",
            _ => "14",
        };
        let mut response = Response::new(Bytes::new());
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/grpc"),
        );
        headers.insert("grpc-status", HeaderValue::from_static(status));
        // Percent-encoded per the gRPC specification: anything but visible ASCII, and `%` itself.
        let text = super::answer::sentence(self, id);
        let message: String = text
            .bytes()
            .map(|b| {
                if (0x20..0x7f).contains(&b) && b != b'%' {
                    char::from(b).to_string()
                } else {
                    format!("%{b:02X}")
                }
            })
            .collect();
        if let Ok(message) = HeaderValue::from_str(&message) {
            headers.insert("grpc-message", message);
        }
        response
    }
}

impl From<Ambiguity> for Refusal {
    fn from(ambiguity: Ambiguity) -> Self {
        Self::ambiguous(ambiguity.code, ambiguity.what)
    }
}

impl From<crate::upstream::Error> for Refusal {
    fn from(error: crate::upstream::Error) -> Self {
        use crate::upstream::Error as Upstream;
        let (status, verdict) = match &error {
            Upstream::Forbidden { .. } => (StatusCode::FORBIDDEN, Verdict::Deny),
            Upstream::Timeout { .. } => (StatusCode::GATEWAY_TIMEOUT, Verdict::Error),
            _ => (StatusCode::BAD_GATEWAY, Verdict::Error),
        };
        Self {
            status,
            verdict,
            code: error.code().into(),
            hint: error.hint(),
            detail: error.to_string(),
            retry_after: None,
        }
    }
}
