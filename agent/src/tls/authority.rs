//! The local CA: made once, kept in the state directory, never shared.
use super::Error;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::fs;
use std::io::Write;
use std::os::unix::fs::{OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tollgate_policy::canonical::Host;
use zeroize::Zeroizing;

/// How long the CA is valid.
const CA_DAYS: i64 = 5 * 365;
/// How long a leaf is valid; see [`super::LeafCache`] for when it is renewed.
pub(super) const LEAF_DAYS: i64 = 7;
/// Certificates start this much in the past, for clients whose clocks lag.
const BACKDATE: Duration = Duration::hours(1);

/// The local CA that issues leaves for governed clients.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    pem: String,
    fingerprint: String,
    not_after: jiff::Timestamp,
    /// One key for all leaves of this process: a key per host would only cost time, since all live in the same memory.
    leaf_key: KeyPair,
    leaf_signer: Arc<dyn SigningKey>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Authority")
            .field("fingerprint", &self.fingerprint)
            .finish_non_exhaustive()
    }
}

impl Authority {
    /// Opens the CA in `state_dir` (`ca.pem`, `ca-key.pem` 0600), made on the first call: ECDSA P-256.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn open(state_dir: &Path) -> Result<Self, Error> {
        let certificate_path = state_dir.join("ca.pem");
        let key_path = state_dir.join("ca-key.pem");
        match (certificate_path.exists(), key_path.exists()) {
            (false, false) => create(&certificate_path, &key_path)?,
            (true, true) => {}
            (true, false) => return Err(half_missing(&certificate_path, &key_path)),
            (false, true) => return Err(half_missing(&key_path, &certificate_path)),
        }
        load(&certificate_path, &key_path)
    }

    /// The CA certificate, PEM.
    pub fn certificate_pem(&self) -> &str {
        &self.pem
    }

    /// SHA-256 of the certificate, hex.
    pub fn fingerprint(&self) -> &str {
        &self.fingerprint
    }

    /// When it expires.
    pub fn not_after(&self) -> jiff::Timestamp {
        self.not_after
    }

    /// The system's roots and this CA, PEM: for the variables that replace a client's store.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn bundle_pem(&self) -> Result<String, Error> {
        let mut bundle = String::new();
        for root in super::upstream::system_roots()? {
            bundle.push_str(&pem(&root));
        }
        bundle.push_str(&self.pem);
        Ok(bundle)
    }

    /// Issues a leaf for `host`, valid from an hour ago for a week.
    pub(super) fn leaf(&self, host: &Host) -> Result<CertifiedKey, Error> {
        let issue = |e: rcgen::Error| Error::Issue {
            host: host.as_str().into(),
            what: e.to_string(),
        };
        let name = host
            .as_str()
            .trim_start_matches('[')
            .trim_end_matches(']')
            .to_owned();
        let mut params = CertificateParams::new(vec![name]).map_err(issue)?;
        params.distinguished_name = DistinguishedName::new();
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        let now = OffsetDateTime::now_utc();
        params.not_before = now - BACKDATE;
        params.not_after = now + Duration::days(LEAF_DAYS);
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .map_err(issue)?;
        let chain = vec![leaf.der().clone(), self.certificate.clone()];
        Ok(CertifiedKey::new(chain, Arc::clone(&self.leaf_signer)))
    }
}

fn half_missing(present: &Path, missing: &Path) -> Error {
    Error::HalfMissing {
        present: present.display().to_string(),
        missing: missing.display().to_string(),
    }
}

fn create(certificate_path: &Path, key_path: &Path) -> Result<(), Error> {
    let invalid = |e: rcgen::Error| Error::Invalid {
        path: certificate_path.display().to_string(),
        what: e.to_string(),
    };
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(invalid)?;
    let mut params = CertificateParams::default();
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let serial = uuid::Uuid::new_v4().simple().to_string();
    let tag: String = serial.chars().take(8).collect();
    params.distinguished_name = DistinguishedName::new();
    params
        .distinguished_name
        .push(DnType::OrganizationName, "Tollgate");
    params
        .distinguished_name
        .push(DnType::CommonName, format!("Tollgate CA {host} {tag}"));
    // Path length 0: this CA signs leaves only.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(CA_DAYS);
    let certificate = params.self_signed(&key).map_err(invalid)?;
    // The key last: a crash between the two leaves no key without a certificate, and `open` says what is missing.
    write_new(certificate_path, certificate.pem().as_bytes(), 0o644)?;
    write_new(
        key_path,
        Zeroizing::new(key.serialize_pem()).as_bytes(),
        0o600,
    )
}

/// Writes a file that appears whole or not at all.
fn write_new(path: &Path, bytes: &[u8], mode: u32) -> Result<(), Error> {
    let io = |source| Error::Io {
        path: path.display().to_string(),
        source,
    };
    let partial = path.with_extension("new");
    let _ = fs::remove_file(&partial);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&partial)
        .map_err(io)?;
    // The umask may have narrowed the mode.
    file.set_permissions(fs::Permissions::from_mode(mode))
        .map_err(io)?;
    file.write_all(bytes).map_err(io)?;
    file.sync_all().map_err(io)?;
    fs::rename(&partial, path).map_err(io)
}

fn load(certificate_path: &Path, key_path: &Path) -> Result<Authority, Error> {
    let read = |path: &Path| {
        fs::read_to_string(path).map_err(|source| Error::Io {
            path: path.display().to_string(),
            source,
        })
    };
    let mode = fs::metadata(key_path)
        .map_err(|source| Error::Io {
            path: key_path.display().to_string(),
            source,
        })?
        .permissions()
        .mode()
        & 0o7777;
    if mode & 0o077 != 0 {
        return Err(Error::KeyExposed {
            path: key_path.display().to_string(),
            mode,
        });
    }
    let key_pem = Zeroizing::new(read(key_path)?);
    let pem = read(certificate_path)?;
    let invalid = |path: &Path, what: String| Error::Invalid {
        path: path.display().to_string(),
        what: format!(
            "{what}: restore it from a backup, or remove ca.pem and ca-key.pem to have a new CA made"
        ),
    };
    let key = KeyPair::from_pem(&key_pem)
        .map_err(|_| invalid(key_path, "not a private key in PEM".into()))?;
    let certificate = {
        use rustls_pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(pem.as_bytes())
            .map_err(|_| invalid(certificate_path, "not a certificate in PEM".into()))?
    };
    let not_after = expiry(&certificate, &key).map_err(|what| invalid(certificate_path, what))?;
    let issuer = Issuer::from_ca_cert_der(&certificate, key)
        .map_err(|e| invalid(certificate_path, e.to_string()))?;
    let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|e| invalid(key_path, e.to_string()))?;
    let leaf_der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let leaf_signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&leaf_der)
        .map_err(|e| invalid(key_path, e.to_string()))?;
    Ok(Authority {
        issuer,
        fingerprint: hex(&Sha256::digest(&certificate)),
        certificate,
        pem,
        not_after,
        leaf_key,
        leaf_signer,
    })
}

/// When the certificate ends; it must be in force now and belong to `key`.
fn expiry(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<jiff::Timestamp, String> {
    let (_, parsed) = x509_parser::parse_x509_certificate(certificate)
        .map_err(|_| "not an X.509 certificate".to_owned())?;
    if parsed.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return Err("the certificate and ca-key.pem do not belong together".into());
    }
    if !parsed.validity().is_valid() {
        return Err(format!(
            "the CA is not valid now (until {})",
            parsed.validity().not_after
        ));
    }
    jiff::Timestamp::from_second(parsed.validity().not_after.timestamp()).map_err(|e| e.to_string())
}

fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut out, byte| {
            let _ = write!(out, "{byte:02x}");
            out
        })
}

fn pem(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;

    #[test]
    fn made_once_then_opened() {
        let dir = tempfile::tempdir().unwrap();
        let first = Authority::open(dir.path()).unwrap();
        let second = Authority::open(dir.path()).unwrap();
        assert_eq!(first.fingerprint(), second.fingerprint());
        let mode = fs::metadata(dir.path().join("ca-key.pem"))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o777, 0o600);
    }

    #[test]
    fn refuses_a_key_others_can_read() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open(dir.path()).unwrap();
        let key = dir.path().join("ca-key.pem");
        fs::set_permissions(&key, fs::Permissions::from_mode(0o640)).unwrap();
        let error = Authority::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("readable by others"), "{error}");
        assert!(error.contains("chmod 0600"), "{error}");
    }

    #[test]
    fn refuses_halves_and_strangers() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open(dir.path()).unwrap();
        let other = tempfile::tempdir().unwrap();
        Authority::open(other.path()).unwrap();
        fs::copy(other.path().join("ca.pem"), dir.path().join("ca.pem")).unwrap();
        let error = Authority::open(dir.path()).unwrap_err().to_string();
        assert!(error.contains("do not belong together"), "{error}");
        fs::remove_file(dir.path().join("ca-key.pem")).unwrap();
        assert!(matches!(
            Authority::open(dir.path()),
            Err(Error::HalfMissing { .. })
        ));
    }

    #[test]
    fn leaf_chains_to_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let leaf = authority
            .leaf(&Host::parse("api.example.com").unwrap())
            .unwrap();
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.certificate.clone()).unwrap();
        let verifier = rustls::client::WebPkiServerVerifier::builder(Arc::new(roots))
            .build()
            .unwrap();
        let verify = |name: &'static str| {
            rustls::client::danger::ServerCertVerifier::verify_server_cert(
                &*verifier,
                leaf.cert.first().unwrap(),
                leaf.cert.get(1..).unwrap(),
                &name.try_into().unwrap(),
                &[],
                rustls_pki_types::UnixTime::now(),
            )
        };
        verify("api.example.com").unwrap();
        verify("other.example.com").unwrap_err();
    }
}
