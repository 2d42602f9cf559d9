//! The local CA: made once, kept in the state directory, never shared; replaced by [`Authority::rotate`].
use super::Error;
use super::files::{self, Files};
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256,
};
use rustls::sign::{CertifiedKey, SigningKey};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer};
use sha2::{Digest, Sha256};
use std::path::Path;
use std::sync::Arc;
use time::{Duration, OffsetDateTime};
use tollgate_policy::canonical::Host;
use x509_parser::certificate::X509Certificate;
use zeroize::Zeroizing;

/// How long the CA is valid.
const CA_DAYS: i64 = 5 * 365;
/// How long a leaf is valid; see [`super::LeafCache`] for when it is renewed.
pub(super) const LEAF_HOURS: i64 = 24;
/// An overlap is at most this: more is no rotation.
const OVERLAP: std::time::Duration = std::time::Duration::from_secs(366 * 86_400);
/// Certificates start this much in the past, for clients whose clocks lag.
const BACKDATE: Duration = Duration::hours(1);

/// The local CA that issues leaves for governed clients.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: CertificateDer<'static>,
    /// The same certificate by the CA before this one, for programs that know only that, and until when.
    cross: Option<(CertificateDer<'static>, OffsetDateTime)>,
    pem: String,
    fingerprint: String,
    not_after: OffsetDateTime,
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
        let files = Files::of(state_dir);
        files.roll_forward()?;
        if !files.are_there()? {
            let (params, key) = fresh(&files)?;
            let certificate = params.self_signed(&key).map_err(|e| unmade(&files, &e))?;
            files.put(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))?;
        }
        load(&files)
    }

    /// Makes a new CA in place of the one in `state_dir`, whose key is gone then.
    ///
    /// The old one signs the new one's certificate first: for `overlap`, programs that started before and know only the
    /// old one go on trusting what the new one issues.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn rotate(&self, state_dir: &Path, overlap: std::time::Duration) -> Result<Self, Error> {
        let files = Files::of(state_dir);
        let failed = |e: rcgen::Error| unmade(&files, &e);
        let (mut params, key) = fresh(&files)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        let _ = std::fs::remove_file(&files.cross);
        if self.may_sign_a_ca() {
            params.not_after =
                (OffsetDateTime::now_utc() + overlap.min(OVERLAP)).min(self.not_after);
            let cross = params.signed_by(&key, &self.issuer).map_err(failed)?;
            files::write_new(&files.cross, cross.pem().as_bytes(), 0o644)?;
        }
        files.put(&certificate.pem(), &Zeroizing::new(key.serialize_pem()))?;
        load(&files)
    }

    /// Those made by versions before rotation sign leaves only.
    fn may_sign_a_ca(&self) -> bool {
        x509_parser::parse_x509_certificate(&self.certificate)
            .ok()
            .and_then(|(_, parsed)| {
                let constraints = parsed.basic_constraints().ok()??.value;
                Some(constraints.path_len_constraint != Some(0))
            })
            .unwrap_or(false)
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
        timestamp(self.not_after)
    }

    /// Until when programs that know only the CA before this one are served.
    pub fn overlap(&self) -> Option<jiff::Timestamp> {
        let (_, until) = self.cross.as_ref().filter(|(_, until)| still(*until))?;
        Some(timestamp(*until))
    }

    /// The system's roots and this CA: what a client's store is replaced by.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn roots(&self) -> Result<Vec<CertificateDer<'static>>, Error> {
        let mut roots = super::upstream::system_roots()?;
        roots.push(self.certificate.clone());
        Ok(roots)
    }

    /// Issues a leaf for `host`, valid from an hour ago for a day.
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
        params.not_after = now + Duration::hours(LEAF_HOURS);
        let leaf = params
            .signed_by(&self.leaf_key, &self.issuer)
            .map_err(issue)?;
        let above = match &self.cross {
            Some((cross, until)) if still(*until) => cross,
            _ => &self.certificate,
        };
        let chain = vec![leaf.der().clone(), above.clone()];
        Ok(CertifiedKey::new(chain, Arc::clone(&self.leaf_signer)))
    }

    /// The CA's certificate again, with the same key, name and end, and a change.
    pub(super) fn again(
        &self,
        change: impl FnOnce(&mut CertificateParams),
    ) -> Result<Certificate, Error> {
        let failed = |what: String| Error::Issue {
            host: "the CA itself".into(),
            what,
        };
        let (_, parsed) = x509_parser::parse_x509_certificate(&self.certificate)
            .map_err(|e| failed(e.to_string()))?;
        let mut params = ca_params(name_of(&parsed));
        params.not_after = self.not_after;
        change(&mut params);
        let certificate = params
            .self_signed(self.issuer.key())
            .map_err(|e| failed(e.to_string()))?;
        let same = x509_parser::parse_x509_certificate(certificate.der())
            .is_ok_and(|(_, made)| made.subject().as_raw() == parsed.subject().as_raw());
        match same {
            true => Ok(certificate),
            // Leaves would not chain to it.
            false => Err(failed("its name cannot be written again".into())),
        }
    }
}

fn still(until: OffsetDateTime) -> bool {
    OffsetDateTime::now_utc() < until
}

fn timestamp(at: OffsetDateTime) -> jiff::Timestamp {
    jiff::Timestamp::from_second(at.unix_timestamp()).unwrap_or(jiff::Timestamp::MAX)
}

fn unmade(files: &Files, error: &rcgen::Error) -> Error {
    Error::Invalid {
        path: files.certificate.display().to_string(),
        what: error.to_string(),
    }
}

/// What a new CA is, and its key.
fn fresh(files: &Files) -> Result<(CertificateParams, KeyPair), Error> {
    let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256).map_err(|e| unmade(files, &e))?;
    let host = rustix::system::uname()
        .nodename()
        .to_string_lossy()
        .into_owned();
    let serial = uuid::Uuid::new_v4().simple().to_string();
    let tag: String = serial.chars().take(8).collect();
    let mut name = DistinguishedName::new();
    name.push(DnType::OrganizationName, "Tollgate");
    name.push(DnType::CommonName, format!("Tollgate CA {host} {tag}"));
    Ok((ca_params(name), key))
}

fn ca_params(name: DistinguishedName) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = name;
    // It signs leaves, and the CA that replaces it.
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(1));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params.use_authority_key_identifier_extension = true;
    let now = OffsetDateTime::now_utc();
    params.not_before = now - BACKDATE;
    params.not_after = now + Duration::days(CA_DAYS);
    params
}

fn name_of(parsed: &X509Certificate<'_>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    let subject = parsed.subject();
    for organization in subject.iter_organization().filter_map(|o| o.as_str().ok()) {
        name.push(DnType::OrganizationName, organization);
    }
    for common in subject.iter_common_name().filter_map(|c| c.as_str().ok()) {
        name.push(DnType::CommonName, common);
    }
    name
}

fn load(files: &Files) -> Result<Authority, Error> {
    let key_pem = files.read_key()?;
    let pem = files::read(&files.certificate)?;
    let invalid = |path: &Path, what: String| Error::Invalid {
        path: path.display().to_string(),
        what: format!(
            "{what}: restore it from a backup, or remove ca.pem and ca-key.pem to have a new CA made"
        ),
    };
    let key = KeyPair::from_pem(&key_pem)
        .map_err(|_| invalid(&files.key, "not a private key in PEM".into()))?;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes())
        .map_err(|_| invalid(&files.certificate, "not a certificate in PEM".into()))?;
    let not_after = expiry(&certificate, &key).map_err(|what| invalid(&files.certificate, what))?;
    let cross = cross(files, &key);
    let issuer = Issuer::from_ca_cert_der(&certificate, key)
        .map_err(|e| invalid(&files.certificate, e.to_string()))?;
    let leaf_key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)
        .map_err(|e| invalid(&files.key, e.to_string()))?;
    let leaf_der = PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(leaf_key.serialize_der()));
    let leaf_signer = rustls::crypto::aws_lc_rs::sign::any_ecdsa_type(&leaf_der)
        .map_err(|e| invalid(&files.key, e.to_string()))?;
    Ok(Authority {
        issuer,
        fingerprint: hex(&Sha256::digest(&certificate)),
        certificate,
        cross,
        pem,
        not_after,
        leaf_key,
        leaf_signer,
    })
}

/// The cross-signed certificate, if there is one of this key that is still good. One of another key was left by a
/// rotation that was cut short.
fn cross(files: &Files, key: &KeyPair) -> Option<(CertificateDer<'static>, OffsetDateTime)> {
    let pem = files::read(&files.cross).ok()?;
    let certificate = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
    let until = expiry(&certificate, key).ok()?;
    Some((certificate, until))
}

/// When the certificate ends; it must be in force now and belong to `key`.
fn expiry(certificate: &CertificateDer<'_>, key: &KeyPair) -> Result<OffsetDateTime, String> {
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
    Ok(parsed.validity().not_after.to_datetime())
}

/// Whether the certificate is one of this key.
pub(super) fn belongs(pem: &str, key: &KeyPair) -> bool {
    CertificateDer::from_pem_slice(pem.as_bytes()).is_ok_and(|der| {
        x509_parser::parse_x509_certificate(&der).is_ok_and(|(_, parsed)| {
            parsed.public_key().subject_public_key.data.as_ref() == key.public_key_raw()
        })
    })
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

pub(super) fn pem(der: &CertificateDer<'_>) -> String {
    let config = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new("CERTIFICATE", der.to_vec()), config)
}

/// Whether a client that trusts `root` takes a leaf for `host`.
#[cfg(test)]
#[allow(clippy::unwrap_used)]
pub(super) fn verifies(authority: &Authority, root: &CertificateDer<'_>, host: &str) -> bool {
    let leaf = authority.leaf(&Host::parse(host).unwrap()).unwrap();
    let mut roots = rustls::RootCertStore::empty();
    roots.add(root.clone().into_owned()).unwrap();
    let verifier = rustls::client::WebPkiServerVerifier::builder_with_provider(
        Arc::new(roots),
        super::upstream::provider(),
    );
    let name = host.trim_matches(['[', ']']).to_owned();
    rustls::client::danger::ServerCertVerifier::verify_server_cert(
        &*verifier.build().unwrap(),
        leaf.cert.first().unwrap(),
        leaf.cert.get(1..).unwrap(),
        &name.try_into().unwrap(),
        &[],
        rustls_pki_types::UnixTime::now(),
    )
    .is_ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used, clippy::panic)]
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

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
        assert!(verifies(
            &authority,
            &authority.certificate,
            "api.example.com"
        ));
        let other = tempfile::tempdir().unwrap();
        let stranger = Authority::open(other.path()).unwrap();
        assert!(!verifies(
            &authority,
            &stranger.certificate,
            "api.example.com"
        ));
    }

    #[test]
    fn after_a_rotation_the_old_root_still_serves_until_the_overlap_ends() {
        let dir = tempfile::tempdir().unwrap();
        let old = Authority::open(dir.path()).unwrap();
        let week = std::time::Duration::from_secs(7 * 86_400);
        let new = old.rotate(dir.path(), week).unwrap();
        assert_ne!(new.fingerprint(), old.fingerprint());
        assert!(new.overlap().is_some());
        for root in [&old.certificate, &new.certificate] {
            assert!(verifies(&new, root, "api.example.com"));
        }
        let reopened = Authority::open(dir.path()).unwrap();
        assert_eq!(reopened.fingerprint(), new.fingerprint());
        assert_eq!(reopened.overlap(), new.overlap());
        let last = old.rotate(dir.path(), std::time::Duration::ZERO).unwrap();
        assert_eq!(last.overlap(), None);
        assert!(!verifies(&last, &old.certificate, "api.example.com"));
        assert!(verifies(&last, &last.certificate, "api.example.com"));
    }
}
