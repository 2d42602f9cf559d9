//! Trust for programs that read no PEM bundle: Java's PKCS #12, and the policy files of Chromium and its kin.
use rustls_pki_types::CertificateDer;
use yasna::models::ObjectIdentifier;
use yasna::{DERWriter, Tag, construct_der};

/// A trust store for Java: PKCS #12 (RFC 7292) without password, encryption or MAC, since it holds nothing secret. Java
/// trusts only entries that say what they are trusted for.
pub(crate) fn pkcs12(roots: &[CertificateDer<'_>]) -> Vec<u8> {
    let safe_contents = construct_der(|writer| {
        writer.write_sequence_of(|bags| {
            for (number, root) in roots.iter().enumerate() {
                bag(bags.next(), number, root);
            }
        });
    });
    let authenticated_safe = construct_der(|writer| {
        writer.write_sequence_of(|infos| data(infos.next(), &safe_contents));
    });
    construct_der(|writer| {
        writer.write_sequence(|pfx| {
            pfx.next().write_u8(3);
            data(pfx.next(), &authenticated_safe);
        });
    })
}

/// `id-data` (RFC 2315, section 8).
fn data(writer: DERWriter<'_>, content: &[u8]) {
    writer.write_sequence(|info| {
        oid(info.next(), &[1, 2, 840, 113_549, 1, 7, 1]);
        explicit(info.next(), |inner| inner.write_bytes(content));
    });
}

/// A certBag with an alias, and Oracle's attribute for "trusted, for anything".
fn bag(writer: DERWriter<'_>, number: usize, root: &CertificateDer<'_>) {
    writer.write_sequence(|bag| {
        oid(bag.next(), &[1, 2, 840, 113_549, 1, 12, 10, 1, 3]);
        explicit(bag.next(), |inner| {
            inner.write_sequence(|certificate| {
                oid(certificate.next(), &[1, 2, 840, 113_549, 1, 9, 22, 1]);
                explicit(certificate.next(), |inner| inner.write_bytes(root));
            });
        });
        bag.next().write_set_of(|attributes| {
            attributes.next().write_sequence(|name| {
                oid(name.next(), &[1, 2, 840, 113_549, 1, 9, 20]);
                let alias = format!("root-{number}");
                name.next()
                    .write_set_of(|values| values.next().write_bmp_string(&alias));
            });
            attributes.next().write_sequence(|trusted| {
                oid(trusted.next(), &[2, 16, 840, 1, 113_894, 746_875, 1, 1]);
                trusted
                    .next()
                    .write_set_of(|values| oid(values.next(), &[2, 5, 29, 37, 0]));
            });
        });
    });
}

fn oid(writer: DERWriter<'_>, numbers: &[u64]) {
    writer.write_oid(&ObjectIdentifier::from_slice(numbers));
}

fn explicit(writer: DERWriter<'_>, content: impl FnOnce(DERWriter<'_>)) {
    writer.write_tagged(Tag::context(0), content);
}

/// A policy of Chromium, Chrome and their kin that adds `certificate` (PEM) to what they trust servers by.
pub(crate) fn browser_policy(certificate: &str) -> String {
    let base64: String = certificate
        .lines()
        .filter(|line| !line.starts_with("-----"))
        .collect();
    format!("{{\"CACertificates\":[\"{base64}\"]}}\n")
}
