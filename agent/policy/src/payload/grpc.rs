//! gRPC: services and methods are a route's path; the messages are not looked at.
use crate::model::Headers;

/// The methods of one service that a rule allows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct GrpcRoute {
    /// With its package: `acme.v1.Ledger`.
    pub(crate) service: Box<str>,
    pub(crate) methods: GrpcMethods,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum GrpcMethods {
    Any,
    /// At least one, none twice.
    These(Vec<Box<str>>),
}

/// Whether a request says once that it is gRPC: `application/grpc`, also `+proto`, `+json`, …; not gRPC-Web.
pub(crate) fn is_grpc(headers: &dyn Headers) -> bool {
    let (mut count, mut grpc) = (0_u32, false);
    headers.each("content-type", &mut |value| {
        count = count.saturating_add(1);
        grpc = is_grpc_type(value);
    });
    grpc && count == 1
}

fn is_grpc_type(value: &[u8]) -> bool {
    const TYPE: &[u8] = b"application/grpc";
    let Some((start, suffix)) = value.split_at_checked(TYPE.len()) else {
        return false;
    };
    let token = |byte: &u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
    start.eq_ignore_ascii_case(TYPE)
        && match suffix {
            [] => true,
            [b'+', name @ ..] => !name.is_empty() && name.iter().all(token),
            _ => false,
        }
}
