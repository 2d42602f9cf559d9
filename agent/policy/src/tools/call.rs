//! A call in a person's words: `GET https://api.example.com/path?query`.
use crate::canonical::{Ambiguity, Host, Target};
use crate::model::{Body, Headers, Request, Scheme};

/// Why words are no call.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CallError {
    /// Not an absolute URL.
    #[error("{0}: not a URL: write it whole, e.g. https://api.example.com/path")]
    NotAUrl(String),
    /// The agent would answer 400.
    #[error("the agent refuses this with 400: {0}")]
    Ambiguous(#[from] Ambiguity),
    /// No method before the URL.
    #[error("{0}: write a method and a URL, e.g. GET https://api.example.com/path")]
    NoMethod(String),
}

/// A request's line and headers, owned.
#[derive(Debug, Clone)]
pub struct Call {
    /// Exact.
    pub method: String,
    /// How it would come.
    pub scheme: Scheme,
    /// Canonical host.
    pub host: Host,
    /// The scheme's port unless said.
    pub port: u16,
    /// Canonical target.
    pub target: Target<'static>,
    /// Names, in any case, and values.
    pub headers: Vec<(String, String)>,
}

impl Headers for Call {
    fn each(&self, name: &str, visit: &mut dyn FnMut(&[u8])) {
        let named = self.headers.iter();
        for (_, value) in named.filter(|(known, _)| known.eq_ignore_ascii_case(name)) {
            visit(value.as_bytes());
        }
    }
}

impl Call {
    /// Of a method and an absolute URL, without headers.
    ///
    /// # Errors
    /// No URL, or one that the agent would refuse as ambiguous.
    pub fn new(method: &str, url: &str) -> Result<Self, CallError> {
        let not = || CallError::NotAUrl(url.to_owned());
        let (scheme, rest) = url.split_once("://").ok_or_else(not)?;
        let (scheme, default_port) = match scheme.to_ascii_lowercase().as_str() {
            "https" => (Scheme::Https, 443),
            "http" => (Scheme::Http, 80),
            _ => return Err(not()),
        };
        let rest = rest.split('#').next().unwrap_or(rest);
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, target) = rest.split_at_checked(end).unwrap_or((rest, ""));
        let slash = if target.starts_with('/') { "" } else { "/" };
        let (host, port) = Host::parse_authority(authority)?;
        Ok(Self {
            method: method.to_owned(),
            scheme,
            host,
            port: port.unwrap_or(default_port),
            target: Target::parse(&format!("{slash}{target}"))?.into_owned(),
            headers: Vec::new(),
        })
    }

    /// Of `METHOD URL`.
    ///
    /// # Errors
    /// As [`Call::new`], and words that are not these two.
    pub fn parse(text: &str) -> Result<Self, CallError> {
        let mut words = text.split_ascii_whitespace();
        match (words.next(), words.next(), words.next()) {
            (Some(method), Some(url), None) if !method.contains("://") => Self::new(method, url),
            _ => Err(CallError::NoMethod(text.to_owned())),
        }
    }

    /// The request that it is, at a time.
    pub fn request<'a>(&'a self, body: Body<'a>, now: i64) -> Request<'a> {
        Request {
            scheme: self.scheme,
            host: &self.host,
            port: self.port,
            method: &self.method,
            target: &self.target,
            headers: self,
            body,
            now,
        }
    }
}
