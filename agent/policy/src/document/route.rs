//! Routes as they are written: methods, a blank, and a path.
use super::Reading;
use crate::route::{Methods, Template};
use crate::syntax::{Decoder, Node, Span, quote};

/// The route of a rule.
#[derive(Debug, Clone)]
pub(super) struct Route {
    pub(super) text: Box<str>,
    pub(super) span: Span,
    pub(super) methods: Methods,
    pub(super) template: Template,
}

/// `METHOD /path`, `GET|HEAD /path`, `* /path`.
pub(super) fn parse(reading: &mut Reading<'_>, node: &Node) -> Option<Route> {
    let text = reading.decoder.string(node)?;
    of_text(reading, node.span, text)
}

/// The route that a text is, which stands at `span`.
pub(super) fn of_text(reading: &mut Reading<'_>, span: Span, text: &str) -> Option<Route> {
    let help = "write `METHOD /path`, e.g. `GET /repos/{owner}/{repo}` or `GET|HEAD /v1/**`";
    if text.len() > 4_096 {
        reading
            .decoder
            .error(span, "the route is longer than 4096 bytes");
        return None;
    }
    let Some((methods, path)) = text.split_once(' ') else {
        reading
            .decoder
            .error(span, "the route needs a method and a path")
            .help(help);
        return None;
    };
    let patterns = &mut *reading.patterns;
    let template = Template::parse(path.trim_start(), &mut |text| patterns.get(text));
    let template = match template {
        Ok(template) => Some(template),
        Err((message, suggestion)) => {
            let remark = reading.decoder.error(span, message);
            if let Some(suggestion) = suggestion {
                remark.help(suggestion);
            }
            None
        }
    };
    let methods = parse_methods(reading, span, methods);
    Some(Route {
        text: text.into(),
        span,
        methods: methods?,
        template: template?,
    })
}

fn parse_methods(reading: &mut Reading<'_>, span: Span, text: &str) -> Option<Methods> {
    if text == "*" {
        return Some(Methods::Any);
    }
    if text == "read-only" {
        return Some(Methods::These(
            ["GET", "HEAD"].into_iter().map(Into::into).collect(),
        ));
    }
    let mut methods = smallvec::SmallVec::new();
    for method in text.split('|') {
        let allowed =
            |byte: u8| byte.is_ascii_uppercase() || byte.is_ascii_digit() || b"-_".contains(&byte);
        let named = method.starts_with(|first: char| first.is_ascii_uppercase());
        if !named || method.len() > 32 || !method.bytes().all(allowed) {
            let upper = method.to_ascii_uppercase();
            let remark = reading
                .decoder
                .error(span, format!("{} is not a method", quote(method)));
            if upper != method && upper.bytes().all(allowed) {
                remark.help(format!(
                    "methods are compared exactly: write {}",
                    quote(&upper)
                ));
            } else {
                remark.help(
                    "write `GET`, `GET|HEAD`, `read-only` (which is `GET|HEAD`), or `*` for all",
                );
            }
            return None;
        }
        let method: Box<str> = method.into();
        if methods.contains(&method) {
            reading.decoder.error(
                span,
                format!("{} stands twice in the route", quote(&method)),
            );
            return None;
        }
        methods.push(method);
    }
    Some(Methods::These(methods))
}

/// CONNECT makes a tunnel that nobody looks into, TRACE returns the request with its credential.
pub(super) fn refuse_tunnels(decoder: &mut Decoder, route: &Route) {
    let Methods::These(methods) = &route.methods else {
        return;
    };
    for method in methods {
        if matches!(&**method, "CONNECT" | "TRACE") {
            decoder.error(route.span, format!("{} cannot be allowed", quote(method)));
        }
    }
}
