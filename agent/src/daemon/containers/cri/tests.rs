//! Answers as containerd 1.6 gives them, and such as nobody should.
use super::*;
use proptest::prelude::*;

/// As `ListContainers` of containerd answered, with another id.
const CONTAINER: &[u8] = b"\x0a\xa1\x02\x0a\x40aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa\x12\x40bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\x1a\x06\x0a\x04main\x22\x18\x0a\x16registry.example/app:3\x2aGsha256:60cb16d38627217353c2c506ccc9ecfac6e12d7da559896223878e32c2fe9a10\x30\x01\x38\xe0\xd7\x82\xf1\xfb\xd3\xe1\xf5\x18\x42\x24\x0a\x1cio.kubernetes.container.name\x12\x04main";
/// The same of `ListPodSandbox`.
const POD: &[u8] = b"\x0an\x0a\x40bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb\x12\x14\x0a\x05web-0\x12\x05uid-1\x1a\x04shop\x20\xda\xf2\xd2\xbf\xfb\xd3\xe1\xf5\x18\x2a\x0a\x0a\x03app\x12\x03web";

fn id(of: &str) -> String {
    of.repeat(64)
}

#[test]
fn answers_of_containerd_are_read() {
    let told = listed(CONTAINER, &id("a"), true).unwrap().unwrap();
    assert_eq!((&told.id, &told.pod), (&id("a"), &id("b")));
    assert_eq!(told.name.as_deref(), Some("main"));
    assert_eq!(
        told.labels.get("io.kubernetes.container.name").unwrap(),
        "main"
    );
    let images = images(
        told.images,
        vec![String::new(), "registry.example/app:3".to_owned()],
    );
    assert_eq!(images.first().unwrap(), "registry.example/app:3");
    assert_eq!(images.len(), 2, "{images:?}");
    let told = listed(POD, &id("b"), false).unwrap().unwrap();
    assert_eq!(told.labels.get("app").unwrap(), "web");
    assert_eq!(listed(&[], &id("b"), false).unwrap(), None);
}

#[test]
fn answers_for_another_are_refused() {
    assert!(listed(CONTAINER, &id("b"), true).is_err());
    assert!(listed(&[CONTAINER, CONTAINER].concat(), &id("a"), true).is_err());
    let status = |of: &str| {
        field(
            1,
            &[field(1, id(of).as_bytes()), field(8, &field(1, b"r/a"))].concat(),
        )
    };
    assert_eq!(status_of(&status("a"), &id("a")).unwrap(), ["r/a"]);
    assert!(status_of(&status("b"), &id("a")).is_err());
    assert!(status_of(&[], &id("a")).is_err());
}

#[test]
fn an_image_has_the_names_of_runtime_and_pod() {
    let mut spec = field(1, b"sha256:0");
    // Field 18, whose number takes two bytes.
    spec.extend([0x92, 0x01, 3]);
    spec.extend(b"r/a");
    assert_eq!(image(&spec).unwrap(), ["sha256:0", "r/a"]);
}

#[test]
fn a_status_is_needed() {
    let ended = |status: &'static str| {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", http::HeaderValue::from_static(status));
        is_there(&headers)
    };
    assert!(ended("0").unwrap());
    assert!(!ended("5").unwrap());
    for bad in ["", "00", "12", "14", "-1"] {
        assert!(ended(bad).is_err(), "{bad}");
    }
    assert!(is_there(&HeaderMap::new()).is_err());
}

#[test]
fn an_answer_is_one_message() {
    let good = Bytes::from_static(&[0, 0, 0, 0, 2, b'a', b'b']);
    assert_eq!(unframed(&good).unwrap(), "ab");
    for bad in [
        &[][..],
        &[0, 0, 0, 0],
        &[1, 0, 0, 0, 2, b'a', b'b'],
        &[0, 0, 0, 0, 1, b'a', b'b'],
        &[0, 0, 0, 0, 3, b'a', b'b'],
        &[0, 255, 255, 255, 255, b'a', b'b'],
        &[0, 0, 0, 0, 0, 0, 0, 0, 0, 0],
    ] {
        assert!(unframed(&Bytes::copy_from_slice(bad)).is_err(), "{bad:?}");
    }
}

proptest! {
    /// Cut or changed anywhere, an answer is another or none, and nothing else happens.
    #[test]
    fn damaged_answers_end(cut in 0..CONTAINER.len(), place in 0..CONTAINER.len(), byte in any::<u8>()) {
        let mut answer = CONTAINER.to_vec();
        if let Some(damaged) = answer.get_mut(place) {
            *damaged = byte;
        }
        for answer in [&answer[..], answer.get(..cut).unwrap_or_default()] {
            for of_containers in [true, false] {
                if let Ok(Some(told)) = listed(answer, &id("a"), of_containers) {
                    prop_assert_eq!(told.id, id("a"));
                }
            }
            let _ = status_of(answer, &id("a"));
        }
    }
}
