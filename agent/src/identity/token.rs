//! Tokens: a secret half that is shown once, and a public half that a policy may hold.
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use sha2::{Digest as _, Sha256};
use std::collections::HashSet;
use std::io;
use std::path::Path;
use zeroize::Zeroizing;

/// What a token begins with.
pub(crate) const SECRET: &str = "tgt_";
/// What its public half begins with.
const PUBLIC: &str = "tgi_";
/// Random bytes of a token.
const BYTES: usize = 32;
/// Characters of a token: 32 bytes in base64url (RFC 4648, section 5) without padding, and what it begins with.
const LENGTH: usize = 4 + 43;
/// The file of revoked public halves, one on a line, in the state directory.
pub const REVOKED: &str = "revoked-tokens";
/// Bytes of that file at most.
const REVOKED_BYTES: u64 = 4 << 20;

/// A new token.
pub struct Issued {
    /// For who calls; to be shown once and kept nowhere.
    pub secret: Zeroizing<String>,
    /// For the policy.
    pub public: String,
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Issued({})", self.public)
    }
}

/// Makes a token. `None`: the system gives no random bytes.
pub fn issue() -> Option<Issued> {
    let mut bytes = Zeroizing::new([0; BYTES]);
    let random = rustls::crypto::aws_lc_rs::default_provider().secure_random;
    random.fill(&mut *bytes).ok()?;
    let mut secret = Zeroizing::new(SECRET.to_owned());
    secret.reserve_exact(LENGTH);
    URL_SAFE_NO_PAD.encode_string(*bytes, &mut secret);
    Some(Issued {
        public: public_half(&secret).into(),
        secret,
    })
}

/// The public half of a token: the digest of the whole of it.
pub(super) fn public_half(secret: &str) -> Box<str> {
    let mut public = PUBLIC.to_owned();
    URL_SAFE_NO_PAD.encode_string(Sha256::digest(secret), &mut public);
    public.into()
}

/// Whether a text has a token's form. One that has is never sent on, whatever it is.
pub(crate) fn is_token(text: &[u8]) -> bool {
    text.starts_with(SECRET.as_bytes())
        && text.len() == LENGTH
        && text
            .iter()
            .all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'-'))
}

/// Whether a text has the form of a public half, to its last bit: of one that is cut no token is the other half.
pub fn is_public_half(text: &str) -> bool {
    let mut digest = [0; BYTES];
    let decoded = |half| URL_SAFE_NO_PAD.decode_slice(half, &mut digest);
    text.strip_prefix(PUBLIC).map(decoded) == Some(Ok(BYTES))
}

/// Public halves that are no longer taken.
#[derive(Debug, Default)]
pub struct Revoked(HashSet<Box<str>>);

impl Revoked {
    /// Reads the list; none is an empty one.
    ///
    /// # Errors
    /// It is there and cannot be read: then nothing is known of any token.
    pub fn read(path: &Path) -> io::Result<Self> {
        use std::io::Read as _;
        let file = match std::fs::File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Self::default()),
            file => file?,
        };
        let mut text = String::new();
        file.take(REVOKED_BYTES + 1).read_to_string(&mut text)?;
        if text.len() as u64 > REVOKED_BYTES {
            let what =
                format!("longer than {REVOKED_BYTES} bytes: remove tokens that no policy names");
            return Err(io::Error::other(what));
        }
        let lines = text.lines().map(str::trim);
        Ok(Self(
            lines
                .filter(|line| line.starts_with(PUBLIC))
                .map(Into::into)
                .collect(),
        ))
    }

    /// Whether it has a public half.
    pub fn has(&self, public: &str) -> bool {
        self.0.contains(public)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_known_by_its_public_half() {
        let (one, other) = (issue().unwrap(), issue().unwrap());
        assert!(is_token(one.secret.as_bytes()));
        assert_ne!(one.public, other.public);
        assert_eq!(*public_half(&one.secret), *one.public);
        assert!(one.public.starts_with("tgi_") && one.public.len() == 47);
        assert!(!format!("{one:?}").contains(&one.secret[4..]));
    }

    #[test]
    fn what_is_no_token() {
        let token = issue().unwrap().secret;
        for text in [
            "",
            "tgt_",
            &token[..46],
            &format!("{}x", *token),
            &token.to_uppercase(),
            &format!("{} ", &token[..46]),
            &token.replace("tgt_", "tgi_"),
        ] {
            assert!(!is_token(text.as_bytes()), "{text:?}");
        }
    }

    #[test]
    fn what_is_no_public_half() {
        let public = issue().unwrap().public;
        assert!(is_public_half(&public));
        for text in [
            "",
            "tgi_",
            "tgi_abc",
            &public[..46],
            &public[4..],
            &format!("{public}x"),
            &format!("{public}\n"),
            &format!("{}=", &public[..46]),
            // Bits that no digest has.
            &format!("{}B", &public[..46]),
            &public.replace("tgi_", "tgt_"),
        ] {
            assert!(!is_public_half(text), "{text:?}");
        }
    }

    #[test]
    fn a_list_that_cannot_be_read_is_no_empty_one() {
        let folder = tempfile::tempdir().unwrap();
        let list = folder.path().join(REVOKED);
        assert!(!Revoked::read(&list).unwrap().has("tgi_a"));
        std::fs::write(&list, "tgi_a\n# why\n\n tgi_b \n").unwrap();
        let read = Revoked::read(&list).unwrap();
        assert!(read.has("tgi_a") && read.has("tgi_b") && !read.has("# why"));
        std::fs::write(&list, [0xff, 0xfe]).unwrap();
        assert!(Revoked::read(&list).is_err());
        assert!(Revoked::read(folder.path()).is_err());
    }
}
