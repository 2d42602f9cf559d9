//! Secrets in HashiCorp Vault or OpenBao: the key-value engine, over its HTTP API (`GET /v1/MOUNT/data/PATH`).
//!
//! Asked by the control plane alone; requests are served from what was read last.
use super::Error;
use super::sources;
use crate::config::{Kv, Vault};
use crate::tls::{CA_BYTES, Roots};
use crate::upstream::{Destination, Via, fetch};
use http::{HeaderMap, HeaderValue, StatusCode, Uri};
use ipnet::{Ipv4Net, Ipv6Net};
use serde::Deserialize;
use std::collections::{BTreeMap, HashMap};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tollgate_policy::SecretRef;
use zeroize::Zeroizing;

/// What references to it begin with.
pub(crate) const SOURCE: &str = "vault";

/// Bytes of a token at most.
const TOKEN_BYTES: usize = 16 * 1024;
/// One answer: no larger and no later.
const BOUNDS: fetch::Bounds = fetch::Bounds {
    bytes: CA_BYTES,
    patience: Duration::from_secs(5),
};
/// All answers together.
const PATIENCE: Duration = Duration::from_secs(20);

/// Values by `PATH#FIELD`, all read at one time.
#[derive(Default, PartialEq, Eq)]
pub struct Values(HashMap<String, Zeroizing<Vec<u8>>>);

impl std::fmt::Debug for Values {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Values({} hidden)", self.0.len())
    }
}

impl Values {
    pub(super) fn get(&self, key: &str) -> Option<&Zeroizing<Vec<u8>>> {
        self.0.get(key)
    }

    /// Has what `others` have besides.
    pub(crate) fn fill_in(&mut self, others: &Self) {
        for (key, value) in &others.0 {
            self.0.entry(key.clone()).or_insert_with(|| value.clone());
        }
    }
}

/// How the server is reached.
#[derive(Debug)]
pub(crate) struct Reach<'a> {
    /// Resolvers of its name.
    pub(crate) dns_servers: &'a [IpAddr],
    /// The agent's own addresses, never dialled.
    pub(crate) own: Arc<[SocketAddr]>,
}

/// Reads every one of `references`, and says why it could not read others. Blocks, for no longer than some [`PATIENCE`].
pub(crate) fn read(
    config: Option<&Vault>,
    reach: &Reach<'_>,
    references: &[&SecretRef],
) -> (Values, Vec<Error>) {
    let none = |faults| (Values::default(), faults);
    if references.is_empty() {
        return none(Vec::new());
    }
    let Some(config) = config else {
        let what = "the agent's configuration has no `vault:`, which says where to ask";
        return none(all(references, what));
    };
    let session = match Session::new(config, reach) {
        Ok(session) => session,
        Err(fault) => return none(vec![fault]),
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => return none(all(references, &error.to_string())),
    };
    // The connection has a task of its own.
    tokio::task::LocalSet::new().block_on(&runtime, session.read(references))
}

/// The same fault for each.
fn all(references: &[&SecretRef], what: &str) -> Vec<Error> {
    let fault = |reference: &&SecretRef| fault(reference, what);
    references.iter().map(fault).collect()
}

fn fault(reference: &SecretRef, what: &str) -> Error {
    Error::Vault {
        name: format!("secret {reference}"),
        what: what.to_owned(),
    }
}

/// Why a secret was not read.
enum Trouble {
    /// The server does not answer as one does: it need not be asked for others.
    Down(String),
    /// It is about this one.
    Refused(String),
}

/// One look at the server.
struct Session<'a> {
    config: &'a Vault,
    destination: Destination,
    servers: &'a [IpAddr],
    headers: HeaderMap,
}

impl<'a> Session<'a> {
    fn new(config: &'a Vault, reach: &Reach<'a>) -> Result<Self, Error> {
        Ok(Self {
            config,
            destination: Destination {
                host: config.address.host.clone(),
                port: config.address.port,
                // An administrator named it: it may be anywhere.
                allowed: vec![Ipv4Net::default().into(), Ipv6Net::default().into()],
                via: via(config)?,
                own: Arc::clone(&reach.own),
            },
            servers: reach.dns_servers,
            headers: headers(config)?,
        })
    }

    async fn read(&self, references: &[&SecretRef]) -> (Values, Vec<Error>) {
        let mut by_path: BTreeMap<&str, Vec<(&str, &SecretRef)>> = BTreeMap::new();
        for reference in references {
            let (path, field) = reference.key.split_once('#').unwrap_or_default();
            by_path.entry(path).or_default().push((field, reference));
        }
        let (mut values, mut faults) = (Values::default(), Vec::new());
        let (began, mut down) = (Instant::now(), None::<String>);
        for (path, fields) in by_path {
            if began.elapsed() > PATIENCE {
                down.get_or_insert(format!("Vault takes longer than {PATIENCE:?} for all"));
            }
            let found = match &down {
                Some(what) => Err(Trouble::Down(what.clone())),
                None => self.secret(path).await,
            };
            let trouble = match found {
                Ok(found) => {
                    faults.extend(pick(found, &fields, &mut values));
                    continue;
                }
                Err(Trouble::Down(what)) => down.insert(what).clone(),
                Err(Trouble::Refused(what)) => what,
            };
            faults.extend(fields.iter().map(|(_, whole)| fault(whole, &trouble)));
        }
        (values, faults)
    }

    /// The fields of the secret at `path`.
    async fn secret(&self, path: &str) -> Result<Fields, Trouble> {
        let Vault {
            address, mount, kv, ..
        } = self.config;
        let url = match kv {
            Kv::V1 => format!("{address}/v1/{mount}/{path}"),
            Kv::V2 => format!("{address}/v1/{mount}/data/{path}"),
        };
        let uri: Uri = url
            .parse()
            .map_err(|_| Trouble::Refused(format!("{url} is no URL")))?;
        let asked = (&uri, self.headers.clone());
        let answer = fetch::get(&self.destination, self.servers, asked, BOUNDS).await;
        let (status, body) = answer.map_err(|what| Trouble::Down(format!("{address}: {what}")))?;
        if status != StatusCode::OK {
            return Err(refused(status, &url));
        }
        let fields = match kv {
            Kv::V1 => serde_json::from_slice::<Answer<Fields>>(&body).map(|answer| answer.data),
            Kv::V2 => serde_json::from_slice::<Answer<Answer<Fields>>>(&body)
                .map(|answer| answer.data.data),
        };
        // The parser's words could hold a part of the answer.
        fields.map_err(|_| {
            Trouble::Refused(format!(
                "{url} did not answer with a secret of this engine: see `kv` in the configuration's `vault:`"
            ))
        })
    }
}

/// `{"data": …}`, in which version 2 has another.
#[derive(Deserialize)]
struct Answer<T> {
    data: T,
}

type Fields = HashMap<String, Field>;

#[derive(Deserialize)]
#[serde(untagged)]
enum Field {
    Text(String),
    Other(serde::de::IgnoredAny),
}

/// Takes the fields that are asked for; returns what is wrong with others.
fn pick(mut found: Fields, asked: &[(&str, &SecretRef)], values: &mut Values) -> Vec<Error> {
    let mut faults = Vec::new();
    for (field, whole) in asked {
        match found.remove(*field) {
            Some(Field::Text(text)) => {
                let value = Zeroizing::new(text.into_bytes());
                values.0.insert(whole.key.clone(), value);
            }
            Some(Field::Other(_)) => faults.push(fault(whole, "that field is not text")),
            None if values.0.contains_key(&whole.key) => {}
            None => faults.push(fault(whole, "the secret has no such field")),
        }
    }
    faults
}

/// What a status means, as far as Vault says what it does.
fn refused(status: StatusCode, url: &str) -> Trouble {
    let what = match status.as_u16() {
        403 => {
            "the token may not read it, or is none any more: renew the token in `token_file`, or give it a policy that reads this path"
        }
        404 => "there is no such secret, or its newest version is deleted",
        400 => {
            "the request was not understood: see `mount`, `kv` and `namespace` in the configuration's `vault:`"
        }
        307 => "this server is a standby and names another: give the address of the active one",
        429 | 472 | 473 | 503 | 501 => "the server is sealed, a standby or not ready",
        _ => "the server did not answer with a secret",
    };
    let what = format!("{url} answered {}: {what}", status.as_u16());
    match status.is_server_error() || status == StatusCode::TOO_MANY_REQUESTS {
        true => Trouble::Down(what),
        false => Trouble::Refused(what),
    }
}

fn via(config: &Vault) -> Result<Via, Error> {
    if config.address.clear {
        return Ok(Via::Clear);
    }
    let roots = match &config.ca {
        None => Roots::System,
        Some(path) => Roots::Own {
            name: path.display().to_string(),
            pem: sources::read("CA of Vault", path, CA_BYTES, false)?.to_vec(),
        },
    };
    Ok(Via::Tls(roots.client(None)?))
}

fn headers(config: &Vault) -> Result<HeaderMap, Error> {
    let name = "token for Vault";
    let path = &config.token_file;
    let token = sources::read(name, path, TOKEN_BYTES, true)?;
    let unusable = |what: &str| Error::Unusable {
        name: name.to_owned(),
        path: path.display().to_string(),
        what: what.to_owned(),
    };
    let token = token.trim_ascii_end();
    if token.is_empty() {
        return Err(unusable("is empty"));
    }
    let mut value =
        HeaderValue::from_bytes(token).map_err(|_| unusable("cannot stand in a header"))?;
    value.set_sensitive(true);
    let mut headers = HeaderMap::new();
    headers.insert("x-vault-token", value);
    // Vault's own agents, which pass requests on, take none without it: nobody is made to ask by a mere URL.
    headers.insert("x-vault-request", HeaderValue::from_static("true"));
    if let Some(namespace) = &config.namespace {
        let namespace = HeaderValue::from_str(namespace).map_err(|_| unusable("cannot be sent"))?;
        headers.insert("x-vault-namespace", namespace);
    }
    Ok(headers)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn reference(key: &str) -> SecretRef {
        SecretRef {
            source: SOURCE.into(),
            key: key.into(),
        }
    }

    #[test]
    fn fields_are_text_and_are_there() {
        let answer = r#"{"request_id":"x","data":{"data":{"id":"AKIA1","n":7,"o":{"a":["deep"]}},"metadata":{"version":3}}}"#;
        let answer: Answer<Answer<Fields>> = serde_json::from_str(answer).unwrap();
        let references = ["aws#id", "aws#n", "aws#gone", "aws#o"].map(reference);
        let asked: Vec<_> = references
            .iter()
            .map(|whole| (whole.key.split_once('#').unwrap().1, whole))
            .collect();
        let mut values = Values::default();
        let faults = pick(answer.data.data, &asked, &mut values);
        assert_eq!(values.get("aws#id").unwrap().as_slice(), b"AKIA1");
        let told: Vec<String> = faults.iter().map(ToString::to_string).collect();
        assert_eq!(
            told,
            [
                "secret vault:aws#n: that field is not text",
                "secret vault:aws#gone: the secret has no such field",
                "secret vault:aws#o: that field is not text",
            ]
        );
        assert_eq!(format!("{values:?}"), "Values(1 hidden)");
    }

    #[test]
    fn version_one_has_no_second_wrapping() {
        let answer = r#"{"lease_duration":2764800,"data":{"id":"AKIA1"}}"#;
        let flat: Answer<Fields> = serde_json::from_str(answer).unwrap();
        assert!(matches!(&flat.data["id"], Field::Text(id) if id == "AKIA1"));
        assert!(serde_json::from_str::<Answer<Answer<Fields>>>(answer).is_err());
    }

    #[test]
    fn without_a_server_each_secret_is_a_fault() {
        let here = [reference("a#b"), reference("c#d")];
        let reach = Reach {
            dns_servers: &[],
            own: Arc::new([]),
        };
        let (_, faults) = read(None, &reach, &[&here[0], &here[1]]);
        assert_eq!(faults.len(), 2);
        assert!(faults[0].to_string().contains("vault:a#b"), "{}", faults[0]);
        assert!(read(None, &reach, &[]).1.is_empty());
    }

    #[test]
    fn a_server_that_is_not_there_is_told_of_at_once() {
        use std::os::unix::fs::PermissionsExt as _;
        let folder = tempfile::tempdir().unwrap();
        let token_file = folder.path().join("token");
        std::fs::write(&token_file, "t").unwrap();
        std::fs::set_permissions(&token_file, std::fs::Permissions::from_mode(0o600)).unwrap();
        // Bound and not listened on: whoever connects is refused.
        let socket =
            socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        let here: SocketAddr = "127.0.0.1:0".parse().unwrap();
        socket.bind(&here.into()).unwrap();
        let port = socket.local_addr().unwrap().as_socket().unwrap().port();
        for clear in [true, false] {
            let config = Vault {
                address: crate::config::Address {
                    host: tollgate_policy::canonical::Host::parse("127.0.0.1").unwrap(),
                    port,
                    clear,
                },
                token_file: token_file.clone(),
                mount: "secret".into(),
                kv: Kv::V2,
                ca: None,
                namespace: None,
                refresh: Duration::from_secs(60),
            };
            let reach = Reach {
                dns_servers: &[],
                own: Arc::new([]),
            };
            let began = Instant::now();
            let (_, faults) = read(Some(&config), &reach, &[&reference("a#b")]);
            let told = faults[0].to_string();
            assert!(
                told.contains("vault:a#b") && told.contains("no connection"),
                "{told}"
            );
            assert!(began.elapsed() < Duration::from_secs(4), "{told}");
        }
    }
}
