//! How upstreams are verified: the system's roots, or an api's own CA, never both.
use super::Error;
use rustls::crypto::CryptoProvider;
use rustls::{ClientConfig, RootCertStore};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
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

/// What the agent shows to upstreams that ask for a certificate.
pub(crate) struct Identity<'a> {
    /// For messages: the certificates, and the key.
    pub(crate) names: [String; 2],
    /// PEM.
    pub(crate) chain: &'a [u8],
    /// PEM.
    pub(crate) key: &'a [u8],
}

impl Identity<'_> {
    fn parse(&self) -> Result<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>), Error> {
        let [chain, key] = &self.names;
        let invalid = |path: &str, what: &str| Error::Invalid {
            path: path.to_owned(),
            what: what.to_owned(),
        };
        let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(self.chain).collect();
        let certificates = certificates.unwrap_or_default();
        if certificates.is_empty() {
            return Err(invalid(chain, "holds no certificate in PEM"));
        }
        let key = PrivateKeyDer::from_pem_slice(self.key)
            .map_err(|_| invalid(key, "holds no private key in PEM"))?;
        Ok((certificates, key))
    }
}

impl Roots {
    /// The client configuration that trusts exactly these roots, and shows `identity` where it is asked for.
    pub(crate) fn client(
        &self,
        identity: Option<Identity<'_>>,
    ) -> Result<Arc<ClientConfig>, Error> {
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
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(|e| Error::Invalid {
                path: "TLS".into(),
                what: e.to_string(),
            })?
            .with_root_certificates(store);
        let mut config = match identity {
            None => builder.with_no_client_auth(),
            Some(identity) => {
                let (chain, key) = identity.parse()?;
                builder
                    .with_client_auth_cert(chain, key)
                    .map_err(|e| Error::Invalid {
                        path: identity.names.join(" and "),
                        what: format!("do not belong together, or cannot be used ({e})"),
                    })?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(Arc::new(config))
    }
}
