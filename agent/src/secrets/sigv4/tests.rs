#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic
)]
use super::*;
use serde::Deserialize;

#[derive(Deserialize)]
struct Suite {
    vectors: Vec<Vector>,
}

#[derive(Deserialize)]
struct Vector {
    name: String,
    method: String,
    path: String,
    query: Option<String>,
    headers: Vec<(String, String)>,
    signed: String,
    payload: String,
    canonical: String,
    signature: String,
}

/// As the suite's pages have them.
fn signer() -> Signer {
    Signer::new(
        "AKIDEXAMPLE".to_owned(),
        b"wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY",
        None,
    )
}

fn scope(service: &str) -> Scope {
    Scope {
        region: "us-east-1".to_owned(),
        service: service.to_owned(),
    }
}

/// The headers of a vector, those of one name together.
fn signed(vector: &Vector) -> Signed<'_> {
    let mut all: Vec<(&str, Vec<&[u8]>)> = Vec::new();
    for (name, value) in &vector.headers {
        match all.iter_mut().find(|(known, _)| known == name) {
            Some((_, values)) => values.push(value.as_bytes()),
            None => all.push((name, vec![value.as_bytes()])),
        }
    }
    all.sort_unstable_by_key(|(name, _)| *name);
    Signed(all)
}

#[test]
fn the_vectors_of_aws_hold() {
    let suite: Suite = serde_json::from_str(include_str!("vectors.json")).unwrap();
    assert!(suite.vectors.len() >= 20);
    for vector in &suite.vectors {
        let name = &vector.name;
        let headers = signed(vector);
        let target = Target::canonical(&vector.path, vector.query.as_deref());
        let text = canonical(
            (&vector.method, &target, false),
            &headers,
            vector.payload.as_bytes(),
        );
        assert_eq!(
            String::from_utf8_lossy(&text),
            vector.canonical.as_str(),
            "{name}"
        );
        assert_eq!(headers.names(), vector.signed, "{name}");
        let value =
            signer().authorization("20150830T123600Z", &scope("service"), &vector.signed, &text);
        let (signed, signature) = (&vector.signed, &vector.signature);
        assert_eq!(
            value,
            format!(
                "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={signed}, Signature={signature}"
            ),
            "{name}"
        );
    }
}

/// "Signature Calculations for the Authorization Header", Amazon S3 API Reference: GET of an object.
#[test]
fn the_example_of_s3_holds() {
    let signer = Signer::new(
        "AKIAIOSFODNN7EXAMPLE".to_owned(),
        b"wJalrXUtnFEMI/K7MDENG/bPxRfiCYEXAMPLEKEY",
        None,
    );
    let empty = sha256(b"");
    let signed = Signed(vec![
        ("host", vec![b"examplebucket.s3.amazonaws.com"]),
        ("range", vec![b"bytes=0-9"]),
        ("x-amz-content-sha256", vec![empty.as_bytes()]),
        ("x-amz-date", vec![b"20130524T000000Z"]),
    ]);
    let target = Target::canonical("/test.txt", None);
    let text = canonical(("GET", &target, false), &signed, empty.as_bytes());
    let value = signer.authorization("20130524T000000Z", &scope("s3"), &signed.names(), &text);
    assert!(
        value.ends_with("f0e8bdb87c964420e857bd35b5d6ed310bd44f0170aba48dd91039c6036bdb41"),
        "{value}"
    );
}

#[test]
fn paths_are_encoded_once_for_s3_and_twice_for_others() {
    for (sent, once, twice) in [
        ("/a b", "/a%20b", "/a%20b"),
        ("/a%20b/c", "/a%20b/c", "/a%2520b/c"),
        ("/k+1=(2)@3", "/k%2B1%3D%282%29%403", "/k%2B1%3D%282%29%403"),
        ("/%C3%BC", "/%C3%BC", "/%25C3%25BC"),
        // AWS's vector `double-encode-path`.
        (
            "/test/@connections/JBDvjfGEIAMCERw%3D",
            "/test/%40connections/JBDvjfGEIAMCERw%3D",
            "/test/%40connections/JBDvjfGEIAMCERw%253D",
        ),
        ("/%E2%82%AC%2B~", "/%E2%82%AC%2B~", "/%25E2%2582%25AC%252B~"),
    ] {
        assert_eq!(canonical_path(sent, false), once, "{sent}");
        assert_eq!(canonical_path(sent, true), twice, "{sent}");
    }
}

#[test]
fn a_request_is_signed_whole() {
    let session = HeaderValue::from_static("session-token");
    let signer = Signer::new("AKID".to_owned(), b"secret", Some(session));
    let pairs = [
        ("authorization", "AWS4-HMAC-SHA256 Credential=theirs"),
        ("x-amz-date", "20200101T000000Z"),
        ("x-amz-security-token", "theirs"),
        ("x-amz-content-sha256", "theirs"),
        ("x-amz-meta-b", "two   words "),
        ("content-type", "text/plain"),
        ("user-agent", "x"),
    ];
    let pair = |(name, value): (&'static str, &'static str)| {
        (
            HeaderName::from_static(name),
            HeaderValue::from_static(value),
        )
    };
    let mut headers = HeaderMap::from_iter(pairs.map(pair));
    let scope = scope("s3");
    let unsigned = Unsigned {
        method: "PUT",
        authority: "s3.example:9000",
        target: Target::canonical("/b/k", Some("b=2&a=%20")),
        scope: &scope,
        payload: HeaderValue::from_static("UNSIGNED-PAYLOAD"),
        now: 1_440_938_160,
    };
    let names = signer.sign(&mut headers, &unsigned).unwrap();
    assert_eq!(
        names,
        [
            "authorization",
            "x-amz-content-sha256",
            "x-amz-date",
            "x-amz-security-token"
        ]
    );
    let value = |name: &str| headers.get(name).unwrap().to_str().unwrap();
    assert_eq!(value("x-amz-date"), "20150830T123600Z");
    assert_eq!(value("x-amz-security-token"), "session-token");
    assert_eq!(value("x-amz-content-sha256"), "UNSIGNED-PAYLOAD");
    let authorization = value("authorization");
    assert!(
        authorization.starts_with(
            "AWS4-HMAC-SHA256 Credential=AKID/20150830/us-east-1/s3/aws4_request, \
             SignedHeaders=content-type;host;x-amz-content-sha256;x-amz-date;x-amz-meta-b;x-amz-security-token, Signature="
        ),
        "{authorization}"
    );
    assert!(!authorization.contains("secret"));
    let text = canonical(
        ("PUT", &unsigned.target, false),
        &Signed::of("s3.example:9000", &headers),
        b"UNSIGNED-PAYLOAD",
    );
    let text = String::from_utf8(text.to_vec()).unwrap();
    assert!(
        text.starts_with("PUT\n/b/k\na=%20&b=2\ncontent-type:text/plain\nhost:s3.example:9000\n"),
        "{text}"
    );
    assert!(text.contains("\nx-amz-meta-b:two words\n"), "{text}");
}
