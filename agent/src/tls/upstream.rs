//! How upstreams are verified: the system's roots, or an api's own CA, never both.
use super::Error;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::CertificateDer;
use rustls_pki_types::pem::PemObject;
use std::sync::{Arc, OnceLock};

/// A CA file may be this long.
pub(crate) const CA_BYTES: usize = 1 << 20;

/// The cryptography of both sides.
pub(super) fn provider() -> Arc<CryptoProvider> {
    static PROVIDER: OnceLock<Arc<CryptoProvider>> = OnceLock::new();
    Arc::clone(PROVIDER.get_or_init(|| Arc::new(rustls::crypto::aws_lc_rs::default_provider())))
}

/// The certificates this host trusts.
pub(super) fn system_roots() -> Result<Vec<CertificateDer<'static>>, Error> {
    let found = rustls_native_certs::load_native_certs();
    if found.certs.is_empty() {
        let what = found
            .errors
            .first()
            .map(|e| format!(" ({e})"))
            .unwrap_or_default();
        return Err(Error::NoRoots { what });
    }
    Ok(found.certs)
}

/// The roots that an upstream's certificate must chain to.
#[derive(Debug)]
pub(crate) enum Roots {
    /// Those of the host.
    System,
    /// An api's own.
    Own {
        /// For messages.
        name: String,
        /// PEM.
        pem: Vec<u8>,
    },
}

impl Roots {
    /// The client configuration that trusts exactly these roots.
    pub(crate) fn client(&self) -> Result<Arc<ClientConfig>, Error> {
        let mut store = RootCertStore::empty();
        match self {
            Self::System => {
                store.add_parsable_certificates(system_roots()?);
            }
            Self::Own { name, pem } => {
                let invalid = |what: &str| Error::Invalid {
                    path: name.clone(),
                    what: what.to_owned(),
                };
                for certificate in CertificateDer::pem_slice_iter(pem) {
                    let certificate =
                        certificate.map_err(|_| invalid("not certificates in PEM"))?;
                    store
                        .add(certificate)
                        .map_err(|_| invalid("holds a certificate that cannot be a root"))?;
                }
                if store.is_empty() {
                    return Err(invalid("holds no certificate in PEM"));
                }
            }
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| Error::Invalid {
                path: "TLS".into(),
                what: e.to_string(),
            })?
            .with_root_certificates(store)
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
