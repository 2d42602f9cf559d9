//! Hosts, authorities and targets from any text.
use crate::canonical::{Host, MAX_PARAMETERS, MAX_TARGET, Pair, Target};
use std::borrow::Cow;

/// The first line is read as a host and as an authority, the rest as a target. What is taken is canonical
/// already when it is read again, and other spellings of it come to the same.
pub fn canonical(data: &[u8]) {
    let text = String::from_utf8_lossy(data);
    let (authority, target) = text.split_once('\n').unwrap_or(("", &text));
    if let Ok(host) = Host::parse(authority) {
        check_host(authority, &host);
    }
    if let Ok((host, port)) = Host::parse_authority(authority) {
        check_host(host.as_str(), &host);
        assert_ne!(port, Some(0));
        let again = match port {
            Some(port) => format!("{host}:{port}"),
            None => host.to_string(),
        };
        assert_eq!(Host::parse_authority(&again), Ok((host, port)));
    }
    if let Ok(target) = Target::parse(target) {
        check_target(&target);
        check_pairs(&target);
    }
}

fn check_host(raw: &str, host: &Host) {
    let text = host.as_str();
    assert!(text.len() <= 253 && !text.is_empty());
    assert_eq!(Host::parse(text).as_ref(), Ok(host), "{raw:?}");
    assert_eq!(
        Host::parse(&raw.to_ascii_uppercase()).as_ref(),
        Ok(host),
        "{raw:?}"
    );
    let plain = |byte: u8| {
        byte.is_ascii_lowercase() || byte.is_ascii_digit() || matches!(byte, b'-' | b'.')
    };
    assert!(
        text.bytes().all(plain) || host.ip().is_some_and(|ip| ip.is_ipv6()),
        "{raw:?}"
    );
}

fn check_target(target: &Target<'_>) {
    let text = target.to_string();
    if text.len() > MAX_TARGET {
        return; // Escaping made it longer than what is read again.
    }
    let again = Target::parse(&text);
    assert_eq!(again.as_ref(), Ok(target), "canonical is not canonical");
    if let Ok(again) = &again {
        assert!(matches!(again.path, Cow::Borrowed(_)) || again.path.contains('%'));
    }
    assert!(text.bytes().all(|byte| byte.is_ascii_graphic()), "{text}");
    assert!(target.path.starts_with('/') && !target.path.contains("//"));
    let dots = |segment: &str| matches!(segment, "." | "..");
    assert!(!target.path.split('/').any(dots), "{text}");
    assert!(!target.path.contains([';', '\\', '?', '#']), "{text}");
    assert_ne!(target.query.as_deref(), Some(""));

    let Some(escaped) = escape_unreserved(&target.path).filter(|path| path.len() <= MAX_TARGET)
    else {
        return;
    };
    let path = Target::parse(&escaped).map(|target| target.path.into_owned());
    assert_eq!(path.as_deref(), Ok(&*target.path), "{escaped}");
}

/// The same path with every unreserved character escaped, in lower case. `None` where an escaped `%`
/// stands in it: what follows that must not look like digits.
fn escape_unreserved(path: &str) -> Option<String> {
    let mut escaped = String::new();
    let mut rest = path;
    while let Some(first) = rest.chars().next() {
        if first == '%' {
            let (escape, tail) = rest.split_at_checked(3)?;
            if escape == "%25" {
                return None;
            }
            escaped.push_str(&escape.to_ascii_lowercase());
            rest = tail;
            continue;
        }
        if first.is_ascii_alphanumeric() || matches!(first, '-' | '.' | '_' | '~') {
            escaped.push_str(&format!("%{:02x}", u32::from(first)));
        } else {
            escaped.push(first);
        }
        rest = rest.get(first.len_utf8()..)?;
    }
    Some(escaped)
}

/// Written down again from their decoded names and values, the parameters are the same.
fn check_pairs(target: &Target<'_>) {
    let pairs: Vec<_> = target.pairs().collect();
    assert!(pairs.len() <= MAX_PARAMETERS);
    assert!(pairs.iter().all(|pair| !pair.name.is_empty()));
    let raw: Vec<&str> = pairs.iter().map(|pair| pair.raw).collect();
    let query = target.query.as_deref().unwrap_or("");
    assert_eq!(raw.join("&"), query, "pairs are not the query");

    let piece = |(name, value): (&str, &str)| format!("{}={}", escape(name), escape(value));
    let written: Vec<String> = pairs
        .iter()
        .map(|pair| piece((&pair.name, &pair.value)))
        .collect();
    let again = format!("/?{}", written.join("&"));
    if again.len() > MAX_TARGET {
        return;
    }
    let again = Target::parse(&again).map(|target| decoded(&target));
    assert_eq!(again, Ok(decoded(target)), "{query}");
}

fn decoded(target: &Target<'_>) -> Vec<(String, String)> {
    let owned = |pair: Pair<'_>| (pair.name.into_owned(), pair.value.into_owned());
    target.pairs().map(owned).collect()
}

fn escape(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02x}")).collect()
}
