//! The CA for programs that are not governed: the same key and name, held to the hosts that the policy inspects.
//!
//! What is steered to the agent must be told why a host is refused, so governed programs trust the CA for any name. The
//! host's other programs, whose store `tollgate trust install` changes, have no use for that: to them the CA is
//! name-constrained (RFC 5280, section 4.2.1.10), and whoever steals its key cannot stand for their bank.
use super::{Authority, Error};
use rcgen::{CidrSubnet, GeneralSubtree, NameConstraints};
use std::net::IpAddr;
use tollgate_policy::{Coverage, Policy};

/// Where there is nothing to permit: a name that no host can have (RFC 6761).
const NOTHING: &str = "tollgate.invalid";

/// The names that `policy` inspects, as constraints have them: a wildcard is what it stands below.
pub fn inspected(policy: &Policy) -> Vec<String> {
    let apis = policy.apis().iter();
    let mut names: Vec<String> = apis
        .filter(|api| api.coverage == Coverage::Inspected)
        .flat_map(|api| &api.hosts)
        .map(|host| host.strip_prefix("*.").unwrap_or(host).to_owned())
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

impl Authority {
    /// The CA's certificate, good for `names` and what is below them, PEM.
    ///
    /// # Errors
    /// See [`Error`].
    pub fn constrained_pem(&self, names: &[String]) -> Result<String, Error> {
        let certificate = self.again(|params| {
            params.name_constraints = Some(constraints(names));
        })?;
        Ok(super::authority::pem(certificate.der()))
    }
}

fn constraints(names: &[String]) -> NameConstraints {
    let mut permitted: Vec<GeneralSubtree> = Vec::with_capacity(names.len());
    let (mut names_permitted, mut addresses_permitted) = (false, false);
    for name in names {
        let bare = name.trim_start_matches('[').trim_end_matches(']');
        permitted.push(match bare.parse::<IpAddr>() {
            Ok(address) => {
                addresses_permitted = true;
                let whole = if address.is_ipv4() { 32 } else { 128 };
                GeneralSubtree::IpAddress(CidrSubnet::from_addr_prefix(address, whole))
            }
            Err(_) => {
                names_permitted = true;
                GeneralSubtree::DnsName(name.clone())
            }
        });
    }
    // A kind of name that is not constrained at all is free.
    if !names_permitted {
        permitted.push(GeneralSubtree::DnsName(NOTHING.to_owned()));
    }
    let excluded = if addresses_permitted {
        Vec::new()
    } else {
        vec![
            GeneralSubtree::IpAddress(CidrSubnet::from_v4_prefix([0; 4], 0)),
            GeneralSubtree::IpAddress(CidrSubnet::from_v6_prefix([0; 16], 0)),
        ]
    };
    NameConstraints {
        permitted_subtrees: permitted,
        excluded_subtrees: excluded,
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::tls::authority::verifies;
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;

    fn root(authority: &Authority, names: &[&str]) -> CertificateDer<'static> {
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let pem = authority.constrained_pem(&names).unwrap();
        CertificateDer::from_pem_slice(pem.as_bytes()).unwrap()
    }

    #[test]
    fn it_holds_for_the_hosts_of_the_policy_and_no_other() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path()).unwrap();
        let names = root(&authority, &["api.example.com", "saas.example"]);
        for (host, good) in [
            ("api.example.com", true),
            ("tenant.saas.example", true),
            ("example.com", false),
            ("bank.example", false),
            ("192.0.2.7", false),
            ("[2001:db8::7]", false),
        ] {
            assert_eq!(verifies(&authority, &names, host), good, "{host}");
        }
        let address = root(&authority, &["192.0.2.7"]);
        for (host, good) in [
            ("192.0.2.7", true),
            ("192.0.2.8", false),
            ("[2001:db8::7]", false),
            ("a.example", false),
        ] {
            assert_eq!(verifies(&authority, &address, host), good, "{host}");
        }
        let nothing = root(&authority, &[]);
        assert!(!verifies(&authority, &nothing, "api.example.com"));
    }

    #[test]
    fn what_the_policy_inspects_is_what_is_named() {
        let text = "version: 1\nworkloads: { w: {} }\napis:\n  a: { hosts: [b.example, '*.a.example'] }\n  \
                    p: { sni: [pinned.example] }\nroles: { r: [{ api: a, allow: [{ route: GET /x }] }, { api: p }] }\n\
                    grants: [{ role: r, to: { workload: w } }]\n";
        let source = tollgate_policy::syntax::Source {
            name: "x".into(),
            text: text.into(),
        };
        let policy = tollgate_policy::compile(&[source]).unwrap().policy;
        assert_eq!(inspected(&policy), ["a.example", "b.example"]);
    }
}
