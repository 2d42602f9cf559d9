//! Credentials as the agent gets them: where their secrets are, and what is made of them.
use crate::syntax::Location;

/// A reference to a secret: `file:github-bot` is source `file`, key `github-bot`; `vault:aws#id` is source `vault`, key `aws#id`.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct SecretRef {
    /// The source's kind.
    pub source: String,
    /// What to ask it for.
    pub key: String,
}

impl std::fmt::Display for SecretRef {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}:{}", self.source, self.key)
    }
}

/// What is put into requests, and where it comes from. An api takes it only if it is bound to it.
#[derive(Debug)]
pub struct Credential {
    /// Its name in the policy.
    pub name: String,
    /// How it goes into a request.
    pub form: CredentialForm,
    /// Where it is defined.
    pub at: Location,
}

/// How a credential goes into a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum CredentialForm {
    /// A secret in headers.
    Headers {
        /// Where the secret is.
        secret: SecretRef,
        /// Headers to set: name (lower-case) and value with `{secret}` exactly once.
        headers: Vec<(String, HeaderTemplate)>,
    },
    /// Keys that the request is signed with (AWS Signature Version 4).
    AwsSigV4(AwsKeys),
}

/// A header value around a secret.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderTemplate {
    /// What stands before `{secret}`.
    pub before: String,
    /// What stands after it.
    pub after: String,
}

/// Where the parts of an AWS credential are, and what it signs for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AwsKeys {
    /// The access key's id, which is no secret by itself.
    pub access_key: SecretRef,
    /// The secret key.
    pub secret_key: SecretRef,
    /// The session token of temporary keys.
    pub session_token: Option<SecretRef>,
    /// The region to sign for; unless said, the one that the client or the host names.
    pub region: Option<String>,
    /// The service to sign for; unless said, the one that the client or the host names.
    pub service: Option<String>,
}

/// Headers that a signature sets.
const SIGNED: [&str; 3] = ["authorization", "x-amz-content-sha256", "x-amz-date"];
/// And the one that temporary keys add.
const SESSION: &str = "x-amz-security-token";

impl CredentialForm {
    /// Names of the headers that it sets, lower-case.
    pub fn header_names(&self) -> Vec<&str> {
        match self {
            Self::Headers { headers, .. } => headers.iter().map(|(name, _)| &**name).collect(),
            Self::AwsSigV4(keys) => {
                let session = keys.session_token.as_ref().map(|_| SESSION);
                SIGNED.into_iter().chain(session).collect()
            }
        }
    }

    /// The secrets that it is made of.
    pub fn secrets(&self) -> Vec<&SecretRef> {
        match self {
            Self::Headers { secret, .. } => vec![secret],
            Self::AwsSigV4(keys) => [&keys.access_key, &keys.secret_key]
                .into_iter()
                .chain(&keys.session_token)
                .collect(),
        }
    }
}
