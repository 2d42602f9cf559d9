//! Routes: methods and path templates.
mod cover;
mod index;

use crate::canonical::{Target, decode};
use crate::shape::{Pattern, integer, is_uuid};
use smallvec::SmallVec;
use std::borrow::Cow;
use std::sync::Arc;

pub(crate) use cover::{covers, meaning, meet, path_of};
pub(crate) use index::Index;

/// Segments of a template at most.
pub(crate) const MAX_SEGMENTS: usize = 64;

/// The methods of a route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Methods {
    /// `*`: for an allow all but CONNECT, TRACE and what is not in upper case; for a deny all.
    Any,
    These(SmallVec<[Box<str>; 2]>),
}

/// A path template.
#[derive(Debug, Clone)]
pub(crate) struct Template {
    pub(crate) segments: Vec<Segment>,
    /// The places of named segments, with their names.
    names: Vec<(usize, Box<str>)>,
}

/// One segment of a template, from the most to the least specific.
#[derive(Debug, Clone)]
pub(crate) enum Segment {
    /// This text, decoded. Empty only for a trailing slash.
    Literal(Box<str>),
    /// One segment of a kind.
    Kind(SegmentKind),
    /// Any one segment that is not empty.
    One,
    /// Any rest, also none. Only last.
    Rest,
}

/// What a constrained segment may be.
#[derive(Debug, Clone)]
pub(crate) enum SegmentKind {
    Int,
    Uuid,
    Pattern(Arc<Pattern>),
}

impl Methods {
    pub(crate) fn allow(&self, method: &str) -> bool {
        match self {
            // `get` is another method than `GET` to some servers, and the same to others.
            Self::Any => {
                !matches!(method, "CONNECT" | "TRACE")
                    && !method.bytes().any(|byte| byte.is_ascii_lowercase())
            }
            Self::These(methods) => methods.iter().any(|allowed| &**allowed == method),
        }
    }

    pub(crate) fn deny(&self, method: &str) -> bool {
        match self {
            Self::Any => true,
            Self::These(methods) => methods
                .iter()
                .any(|denied| denied.eq_ignore_ascii_case(method)),
        }
    }
}

impl SegmentKind {
    /// Whether a decoded segment is of this kind.
    fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Int => integer(segment).is_some(),
            Self::Uuid => is_uuid(segment),
            Self::Pattern(pattern) => !segment.is_empty() && pattern.matches(segment),
        }
    }

    /// Whether some server reads a decoded segment as one of this kind. Patterns are held as they are written.
    fn resembles(&self, segment: &str) -> bool {
        let text = segment.trim();
        match self {
            Self::Int => {
                let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
                !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit())
            }
            Self::Uuid => {
                let text = text.trim_matches(['{', '}', '(', ')']);
                let urn = text
                    .split_at_checked(9)
                    .filter(|(urn, _)| urn.eq_ignore_ascii_case("urn:uuid:"));
                let text = urn.map_or(text, |(_, rest)| rest);
                let digits = text.bytes().filter(|byte| *byte != b'-');
                text.len() <= 64
                    && digits.clone().count() == 32
                    && digits.into_iter().all(|byte| byte.is_ascii_hexdigit())
            }
            Self::Pattern(_) => false,
        }
    }

    /// Distinguishes kinds: the same text is the same kind.
    fn key(&self) -> (u8, &str) {
        match self {
            Self::Int => (0, ""),
            Self::Uuid => (1, ""),
            Self::Pattern(pattern) => (2, pattern.text()),
        }
    }
}

impl Segment {
    /// Whether it matches one decoded segment. [`Segment::Rest`] matches any.
    pub(crate) fn matches(&self, segment: &str) -> bool {
        match self {
            Self::Literal(text) => &**text == segment,
            Self::Kind(kind) => kind.matches(segment),
            Self::One => !segment.is_empty(),
            Self::Rest => true,
        }
    }

    fn rank(&self) -> u8 {
        match self {
            Self::Literal(_) => 0,
            Self::Kind(_) => 1,
            Self::One => 2,
            Self::Rest => 3,
        }
    }
}

impl Template {
    /// Any path.
    pub(crate) fn any() -> Self {
        Self {
            segments: vec![Segment::Rest],
            names: Vec::new(),
        }
    }

    /// The names of its segments.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.names.iter().map(|(_, name)| &**name)
    }

    /// The named segments of a canonical path that matches, decoded.
    pub(crate) fn parameters<'a>(&'a self, path: &'a str) -> Vec<(&'a str, Cow<'a, str>)> {
        let mut parts = path.split('/').skip(1).enumerate();
        let mut value = |place: usize| parts.find(|(number, _)| *number == place);
        self.names
            .iter()
            .filter_map(|(place, name)| Some((&**name, decode(value(*place)?.1))))
            .collect()
    }

    /// How specific it is: the smaller, the more. Compared segment by segment from the left, literal
    /// before constrained before plain before `**`.
    pub(crate) fn ranks(&self) -> Vec<u8> {
        self.segments.iter().map(Segment::rank).collect()
    }

    /// Leading segments of a canonical path that match, for telling near misses apart.
    pub(crate) fn matched_prefix(&self, path: &str) -> usize {
        self.segments
            .iter()
            .zip(path.split('/').skip(1))
            .take_while(|(segment, text)| segment.matches(&decode(text)))
            .count()
    }

    /// Without the empty segment of a trailing slash, as deny rules are compared.
    pub(crate) fn without_trailing_slash(&self) -> &[Segment] {
        match self.segments.split_last() {
            Some((Segment::Literal(text), rest)) if text.is_empty() => rest,
            _ => &self.segments,
        }
    }

    /// Reads a template, or says what is wrong with it: message and help.
    pub(crate) fn parse(
        text: &str,
        pattern: &mut dyn FnMut(&str) -> Result<Arc<Pattern>, String>,
    ) -> Result<Self, Wrong> {
        let wrong = |message: &str| (message.to_owned(), None);
        let Some(rest) = text.strip_prefix('/') else {
            return Err((
                "the path of a route begins with `/`".to_owned(),
                Some("write `METHOD /path`, e.g. `GET /repos/{owner}/{repo}`".to_owned()),
            ));
        };
        let (mut segments, mut names) = (Vec::new(), Vec::new());
        for part in split_segments(rest) {
            if segments.len() >= MAX_SEGMENTS {
                return Err(wrong("the route has more than 64 segments"));
            }
            if matches!(segments.last(), Some(Segment::Rest)) {
                return Err(wrong("`**` may only stand last in a route"));
            }
            let (segment, name) = parse_segment(part, pattern)?;
            if let Some(name) = name {
                if names
                    .iter()
                    .any(|(_, known): &(usize, Box<str>)| **known == *name)
                {
                    return Err((format!("`{{{name}}}` stands twice in the route"), None));
                }
                names.push((segments.len(), name.into()));
            }
            segments.push(segment);
        }
        let empty =
            |segment: &Segment| matches!(segment, Segment::Literal(text) if text.is_empty());
        let inner = segments.split_last().map_or(&[][..], |(_, inner)| inner);
        if inner.iter().any(empty) {
            return Err(wrong("the route has an empty segment (`//`)"));
        }
        Ok(Self { segments, names })
    }
}

/// Splits at `/` outside braces.
fn split_segments(text: &str) -> Vec<&str> {
    let (mut depth, mut start, mut parts) = (0_usize, 0, Vec::new());
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'{' => depth = depth.saturating_add(1),
            b'}' => depth = depth.saturating_sub(1),
            b'/' if depth == 0 => {
                parts.push(text.get(start..index).unwrap_or(""));
                start = index + 1;
            }
            _ => {}
        }
    }
    parts.push(text.get(start..).unwrap_or(""));
    parts
}

/// What is wrong, and help.
type Wrong = (String, Option<String>);

/// A segment and its name.
fn parse_segment<'t>(
    part: &'t str,
    pattern: &mut dyn FnMut(&str) -> Result<Arc<Pattern>, String>,
) -> Result<(Segment, Option<&'t str>), Wrong> {
    match part {
        "*" => return Ok((Segment::One, None)),
        "**" => return Ok((Segment::Rest, None)),
        _ => {}
    }
    let inner = part
        .strip_prefix('{')
        .and_then(|rest| rest.strip_suffix('}'));
    let Some(inner) = inner else {
        return Ok((parse_literal(part)?, None));
    };
    let (name, kind) = match inner.split_once(':') {
        Some((name, kind)) => (name, Some(kind)),
        None => (inner, None),
    };
    let first = name.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_');
    if !first
        || !name
            .chars()
            .all(|character| character.is_ascii_alphanumeric() || character == '_')
    {
        let help = "write `{name}`, `{name:int}`, `{name:uuid}` or `{name:REGEX}`".to_owned();
        return Err((
            format!("{} is no segment name", crate::syntax::quote(name)),
            Some(help),
        ));
    }
    let segment = match kind {
        None => Segment::One,
        Some("int") => Segment::Kind(SegmentKind::Int),
        Some("uuid") => Segment::Kind(SegmentKind::Uuid),
        Some("") => return Err(("a pattern is missing after `:`".to_owned(), None)),
        Some(text) => Segment::Kind(SegmentKind::Pattern(
            pattern(text).map_err(|error| (error, None))?,
        )),
    };
    Ok((segment, Some(name)))
}

fn parse_literal(part: &str) -> Result<Segment, Wrong> {
    if part.contains(['{', '}', '*']) {
        return Err((
            format!(
                "the segment {} mixes text and wildcard",
                crate::syntax::quote(part)
            ),
            Some("a wildcard is a whole segment; use `{name:REGEX}` for a part of one".to_owned()),
        ));
    }
    if part.contains(['?', '#']) {
        return Err((
            "a route is a path, without query and fragment".to_owned(),
            Some("declare parameters under `query:`".to_owned()),
        ));
    }
    if matches!(part, "." | "..") {
        return Err(("a route has no dot segments".to_owned(), None));
    }
    let raw = format!("/{part}");
    let target = Target::parse(&raw).map_err(|ambiguity| (ambiguity.what, None))?;
    let canonical = target.path.strip_prefix('/').unwrap_or("");
    if canonical.is_empty() && !part.is_empty() {
        return Err(("a route has no dot segments".to_owned(), None));
    }
    Ok(Segment::Literal(decode(canonical).into()))
}
