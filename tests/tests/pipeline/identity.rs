//! Who calls, proven on real traffic: tokens in every place where a program can put one, revoked ones, and JWTs with keys
//! from a file and from their issuer.
use super::*;
use base64::Engine as _;
use base64::engine::general_purpose::{STANDARD, URL_SAFE_NO_PAD};
use jsonwebtoken::{Algorithm, EncodingKey, Header};

const ISSUER: Ipv4Addr = Ipv4Addr::new(93, 184, 216, 43);

const IDENTITIES: &str = r#"
version: 1
workloads: { probe: {} }
identities:
  alice: { token: ALICE }
  bob: { token: BOB }
  ci-main: { jwt: { issuer: https://ci.example, audience: tollgate, claims: { repo: acme/app }, keys: "file:ci-keys.json" } }
  robot: { jwt: { issuer: https://issuer.example, audience: tollgate, claims: { role: robot } } }
groups: { people: [alice, ci-main, robot] }
apis:
  odd: { hosts: [odd.example], tls: { ca: "file:server-ca.pem" } }
credentials:
  bot: { secret: "file:orders-bot", header: { authorization: "Bearer {secret}" }, to: [odd] }
roles:
  personal:
    - api: odd
      credential: bot
      allow: [{ route: GET /plain }]
  own-key:
    - api: odd
      credential: client
      allow: [{ route: GET /small }]
grants:
  - { role: personal, to: { workload: probe, group: people } }
  - { role: own-key, to: { workload: probe } }
"#;

/// A token and its public half, as the verb prints them.
pub(super) fn issue(lab_program: &Path) -> (String, String) {
    let made = std::process::Command::new(lab_program)
        .args(["token", "issue", "someone", "-o", "json"])
        .output()
        .unwrap();
    let made: Value = serde_json::from_slice(&made.stdout).unwrap();
    let text = |name: &str| made[name].as_str().unwrap().to_owned();
    (text("token"), text("public"))
}

/// A key of an issuer: to sign with, and as a JWK.
struct Signer {
    key: rcgen::KeyPair,
    kid: &'static str,
}

impl Signer {
    fn new(kid: &'static str) -> Self {
        Self {
            key: rcgen::KeyPair::generate().unwrap(),
            kid,
        }
    }

    fn jwks(&self) -> String {
        let point = self.key.public_key_raw();
        let part = |range: std::ops::Range<usize>| URL_SAFE_NO_PAD.encode(&point[range]);
        json!({"keys": [{"kty": "EC", "crv": "P-256", "use": "sig", "kid": self.kid, "x": part(1..33), "y": part(33..65)}]})
            .to_string()
    }

    fn sign(&self, claims: Value) -> String {
        let mut header = Header::new(Algorithm::ES256);
        header.kid = Some(self.kid.to_owned());
        let key = EncodingKey::from_ec_der(&self.key.serialize_der());
        jsonwebtoken::encode(&header, &claims, &key).unwrap()
    }
}

fn in_seconds(seconds: i64) -> i64 {
    jiff::Timestamp::now().as_second() + seconds
}

fn ci_claims() -> Value {
    json!({"iss": "https://ci.example", "aud": ["other", "tollgate"], "exp": in_seconds(300), "repo": "acme/app"})
}

impl Lab {
    /// Asks with these headers: the status, the answer, the identity on record and the code of the refusal.
    fn shows(&mut self, path: &str, headers: &str) -> (u16, String, Value) {
        let before = self.records(|_| true);
        let (status, data, _) = self.exchange(&request(&format!("GET {path} HTTP/1.1"), headers));
        let record = eventually(Duration::from_secs(5), || {
            let mut all = self.agent.decisions(&self.world).unwrap();
            (all.len() > before).then(|| all.pop().unwrap())
        });
        (status, data, record.unwrap())
    }
}

fn lab(alice: &str, bob: &str, keys: &Signer) -> Lab {
    let policy = IDENTITIES.replace("ALICE", alice).replace("BOB", bob);
    // The keys' file must be there before the policy that names it.
    let lab = Lab::new();
    lab.agent
        .write_secret("ci-keys.json", &keys.jwks())
        .unwrap();
    lab.reload(&policy);
    lab
}

#[test]
fn a_token_proves_an_identity_wherever_it_is_shown_and_goes_nowhere_else() {
    let program = harness::agent::program().unwrap();
    let (alice, public) = issue(&program);
    let (bob, bobs) = issue(&program);
    let mut lab = lab(&public, &bobs, &Signer::new("one"));
    let basic = STANDARD.encode(format!("alice:{alice}"));
    for place in [
        format!("tollgate-identity: {alice}\r\n"),
        format!("authorization: Bearer {alice}\r\n"),
        format!("authorization: Basic {basic}\r\n"),
        format!("x-api-key: {alice}\r\n"),
        format!("tollgate-identity: {alice}\r\nprivate-token: {alice}\r\n"),
    ] {
        let (status, data, record) = lab.shows("/plain", &place);
        assert_eq!(status, 200, "{place}: {data}");
        assert!(!data.contains(&alice) && !data.contains(&basic), "{data}");
        let echo = echoed(&data);
        // The credential was put in, and its echo is overwritten.
        assert_eq!(
            header(&echo, "authorization"),
            Some("Bearer ********************")
        );
        assert_eq!(record["identity"], "alice", "{record}");
        assert!(!record.to_string().contains(&alice), "{record}");
    }
    // Where the client's own credentials pass, the agent's token does not.
    let (status, data, record) = lab.shows(
        "/small",
        &format!("x-api-key: {alice}\r\nauthorization: Bearer own\r\n"),
    );
    assert_eq!(
        (status, &record["identity"]),
        (200, &json!("alice")),
        "{data}"
    );
    assert!(!data.contains(&alice), "{data}");
    for (headers, status, code) in [
        (String::new(), 401, "identity_required"),
        (format!("authorization: Bearer {bob}\r\n"), 403, "identity"),
        (
            format!("authorization: Bearer {}\r\n", issue(&program).0),
            401,
            "identity_unknown",
        ),
        (
            format!("tollgate-identity: {}\r\n", &alice[..40]),
            401,
            "identity_unknown",
        ),
        (
            format!("tollgate-identity: {alice}\r\nx-api-key: {bob}\r\n"),
            400,
            "identity_ambiguous",
        ),
    ] {
        let (found, data, record) = lab.shows("/plain", &headers);
        assert_eq!(
            (found, &record["reason"]["code"]),
            (status, &json!(code)),
            "{headers}: {data}"
        );
        assert_eq!(
            status == 401,
            data.to_lowercase().contains("www-authenticate: bearer"),
            "{data}"
        );
        assert!(!data.contains(&alice) && !data.contains(&bob), "{data}");
    }
    // Revoked: no later than a second after, and without a word to the agent.
    let revoked = lab
        .agent
        .output(&lab.world, "token", &["revoke", &public])
        .unwrap();
    assert!(revoked.status.success(), "{revoked:?}");
    let over = eventually(Duration::from_secs(3), || {
        let (status, _, record) = lab.shows("/plain", &format!("x-api-key: {alice}\r\n"));
        (status == 401).then_some(record)
    });
    assert_eq!(over.unwrap()["reason"]["code"], "identity_revoked");
    let listed = lab.agent.output(&lab.world, "token", &["list"]).unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let line = |name: &str| {
        listed
            .lines()
            .find(|line| line.starts_with(name))
            .unwrap()
            .to_owned()
    };
    assert!(
        line("alice").contains("revoked") && line("bob").contains("taken"),
        "{listed}"
    );
}

#[test]
fn a_jwt_proves_an_identity_if_all_of_it_holds() {
    let (signer, stranger) = (Signer::new("one"), Signer::new("one"));
    let (_, unused) = issue(&harness::agent::program().unwrap());
    let mut lab = lab(&unused, &format!("{unused}x"), &signer);
    let with = |change: &dyn Fn(&mut Value)| {
        let mut claims = ci_claims();
        change(&mut claims);
        signer.sign(claims)
    };
    let good = signer.sign(ci_claims());
    for place in ["authorization: Bearer ", "tollgate-identity: "] {
        let (status, data, record) = lab.shows("/plain", &format!("{place}{good}\r\n"));
        assert_eq!(
            (status, &record["identity"]),
            (200, &json!("ci-main")),
            "{place}: {data}"
        );
        assert!(!data.contains(&good) && !record.to_string().contains(&good));
    }
    let plain = |header: &Value, claims: &Value| {
        let part = |value: &Value| URL_SAFE_NO_PAD.encode(value.to_string());
        format!("{}.{}.", part(header), part(claims))
    };
    let shared = {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("one".to_owned());
        let key = EncodingKey::from_secret(signer.jwks().as_bytes());
        jsonwebtoken::encode(&header, &ci_claims(), &key).unwrap()
    };
    for (jwt, code) in [
        (stranger.sign(ci_claims()), "identity_invalid"),
        (shared, "identity_invalid"),
        (
            plain(&json!({"alg": "none"}), &ci_claims()),
            "identity_invalid",
        ),
        (
            with(&|claims| claims["exp"] = in_seconds(-60).into()),
            "identity_invalid",
        ),
        (
            with(&|claims| claims["nbf"] = in_seconds(120).into()),
            "identity_invalid",
        ),
        (
            with(&|claims| drop(claims.as_object_mut().unwrap().remove("exp"))),
            "identity_invalid",
        ),
        (
            with(&|claims| claims["aud"] = "other".into()),
            "identity_unknown",
        ),
        (
            with(&|claims| claims["repo"] = "acme/other".into()),
            "identity_unknown",
        ),
        (
            with(&|claims| claims["repo"] = json!(["acme/app"])),
            "identity_unknown",
        ),
    ] {
        let (status, data, record) =
            lab.shows("/plain", &format!("authorization: Bearer {jwt}\r\n"));
        assert_eq!(
            (status, &record["reason"]["code"]),
            (401, &json!(code)),
            "{jwt}: {data}"
        );
    }
    // Another issuer's is for the API: it proves nothing, and is taken out like any credential of the client's.
    let foreign = with(&|claims| claims["iss"] = "https://elsewhere.example".into());
    let (status, _, record) = lab.shows("/plain", &format!("authorization: Bearer {foreign}\r\n"));
    assert_eq!(
        (status, &record["reason"]["code"]),
        (401, &json!("identity_required"))
    );
    // New keys in the file are taken up, old ones no longer.
    lab.agent
        .write_secret("ci-keys.json", &Signer::new("two").jwks())
        .unwrap();
    let over = eventually(Duration::from_secs(3), || {
        (lab.shows("/plain", &format!("authorization: Bearer {good}\r\n"))
            .0
            == 401)
            .then_some(())
    });
    over.expect("a key that was taken back still proves");
}

#[test]
fn an_issuers_published_keys_are_fetched_and_its_new_ones_too() {
    let (signer, next) = (Signer::new("one"), Signer::new("two"));
    let (_, unused) = issue(&harness::agent::program().unwrap());
    let mut lab = lab(&unused, &format!("{unused}x"), &Signer::new("ci"));
    let claims = || json!({"iss": "https://issuer.example", "aud": "tollgate", "exp": in_seconds(300), "role": "robot"});
    let bearer = |signer: &Signer| format!("authorization: Bearer {}\r\n", signer.sign(claims()));
    // Nobody is there: it cannot be known.
    let (status, data, record) = lab.shows("/plain", &bearer(&signer));
    assert_eq!(
        (status, &record["reason"]["code"]),
        (503, &json!("identity_keys")),
        "{data}"
    );

    let served = lab.world.directory().join("issuer");
    std::fs::create_dir_all(served.join(".well-known")).unwrap();
    let discovery =
        json!({"issuer": "https://issuer.example", "jwks_uri": "https://issuer.example/keys.json"});
    std::fs::write(
        served.join(".well-known/openid-configuration"),
        discovery.to_string(),
    )
    .unwrap();
    std::fs::write(served.join("keys.json"), signer.jwks()).unwrap();
    let world = &lab.world;
    world
        .dns
        .set("issuer.example", Answer::Addresses(vec![ISSUER.into()]));
    world
        .servers
        .script(&format!("ip addr replace {ISSUER}/32 dev lo"))
        .unwrap();
    let files = world
        .ca
        .issue(&["issuer.example"], world.directory())
        .unwrap();
    let mut command = world.servers.command(venv().join("bin/python3"));
    command
        .arg("-u")
        .arg(repository().join("tests/servers/issuer.py"))
        .args([&ISSUER.to_string(), "443"])
        .args([&files.certificate, &files.key, &served]);
    let mut issuer = Running::start(command).unwrap();
    assert_eq!(issuer.line(Duration::from_secs(10)).unwrap(), "ready");
    // The issuer is verified by the host's own roots.
    let roots = world.ca_file();
    world
        .clients
        .script(&format!(
            "mount --bind {} /etc/ssl/certs/ca-certificates.crt",
            roots.display()
        ))
        .unwrap();
    lab.agent.stop().unwrap();
    lab.agent.start(&lab.world).unwrap();
    let proven = |lab: &mut Lab, headers: &str, what: &str| {
        let is_proven = |lab: &mut Lab| lab.shows("/plain", headers).0 == 200;
        let proven = eventually(Duration::from_secs(20), || is_proven(lab).then_some(()));
        proven.unwrap_or_else(|| panic!("{what}: {}", lab.agent.log()));
    };
    proven(&mut lab, &bearer(&signer), "not fetched");
    // A key that is not known is asked for; the old one is no longer published.
    std::fs::write(served.join("keys.json"), next.jwks()).unwrap();
    proven(&mut lab, &bearer(&next), "not fetched anew");
    assert_eq!(lab.shows("/plain", &bearer(&signer)).0, 401);
}
