#![allow(clippy::unwrap_used)]
use super::refused::Refusals;
use super::*;
use std::time::{Duration, Instant};

#[test]
fn a_name_that_is_refused_again_at_once_is_no_news() {
    let mut refusals = Refusals::default();
    let start = Instant::now();
    let mut news = |workload: &str, name: &str, milliseconds| {
        let at = start + Duration::from_millis(milliseconds);
        refusals.is_news_at(&workload.into(), name, at)
    };
    assert!(news("w", "a.example", 0));
    assert!(!news("w", "A.Example", 999));
    assert!(news("w", "b.example", 999));
    assert!(news("other", "a.example", 999));
    assert!(news("w", "a.example", 1000));
    assert!(!news("w", "a.example", 1001));
}

#[test]
fn no_end_of_names_is_recorded_for_a_while() {
    let mut refusals = Refusals::default();
    let start = Instant::now();
    let mut news = 0;
    for number in 0..10_000 {
        news += u32::from(refusals.is_news_at(&"w".into(), &number.to_string(), start));
    }
    assert_eq!(news, 500);
    assert!(
        refusals.is_news_at(&"other".into(), "a", start),
        "others are heard"
    );
}

#[test]
fn localhost_is_this_host() {
    let parse = |name: &str| Host::parse(name).unwrap();
    assert!(is_localhost(&parse("localhost")) && is_localhost(&parse("a.LOCALHOST.")));
    assert!(!is_localhost(&parse("notlocalhost")) && !is_localhost(&parse("localhost.example")));
    assert_eq!(loopback(Kind::A), [IpAddr::V4(Ipv4Addr::LOCALHOST)]);
    assert_eq!(loopback(Kind::Aaaa), [IpAddr::V6(Ipv6Addr::LOCALHOST)]);
    assert!(loopback(Kind::Other).is_empty());
}
