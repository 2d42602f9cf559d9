//! Templates held against each other: whether one takes all that another does, and what both take.
use super::{Segment, SegmentKind};
use crate::canonical::Target;
use crate::sample;
use std::fmt::Write;

impl Segment {
    /// Whether it matches every segment that `narrow` matches. Two patterns are only compared by their text.
    pub(super) fn covers(&self, narrow: &Self) -> bool {
        match (self, narrow) {
            (Self::Rest, _) => true,
            (_, Self::Rest) => false,
            (wide, Self::Literal(text)) => wide.matches(text),
            (Self::One, _) => true,
            (Self::Kind(wide), Self::Kind(narrow)) => wide.key() == narrow.key(),
            _ => false,
        }
    }

    /// Whether any segment of a canonical path matches it.
    pub(crate) fn is_possible(&self) -> bool {
        match self {
            Self::Kind(SegmentKind::Pattern(pattern)) => sample::is_segment(pattern.text()),
            _ => true,
        }
    }

    /// A decoded segment that it matches; `filler` where anything goes.
    fn sample(&self, filler: &str) -> Option<String> {
        let text = match self {
            Self::Literal(text) => text.to_string(),
            Self::Kind(SegmentKind::Int) => "7".to_owned(),
            Self::Kind(SegmentKind::Uuid) => sample::UUID.to_owned(),
            Self::Kind(SegmentKind::Pattern(pattern)) => sample::of_pattern(pattern)?,
            Self::One | Self::Rest => filler.to_owned(),
        };
        self.matches(&text).then_some(text)
    }

    fn meet(&self, other: &Self) -> Option<Self> {
        if self.covers(other) {
            return Some(other.clone());
        }
        if other.covers(self) {
            return Some(self.clone());
        }
        let shared = |one: &Self, other: &Self| one.sample("x").filter(|text| other.matches(text));
        let text = shared(self, other).or_else(|| shared(other, self))?;
        Some(Self::Literal(text.into()))
    }
}

/// Whether `wide` takes every path that `narrow` takes.
pub(crate) fn covers(wide: &[Segment], narrow: &[Segment]) -> bool {
    match (wide.split_first(), narrow.split_first()) {
        (Some((Segment::Rest, _)), _) | (None, None) => true,
        (Some((one, wide)), Some((other, narrow))) => one.covers(other) && covers(wide, narrow),
        _ => false,
    }
}

/// A template of which both take every path; `None` where none was found.
pub(crate) fn meet(one: &[Segment], other: &[Segment]) -> Option<Vec<Segment>> {
    let mut met = Vec::with_capacity(one.len().max(other.len()));
    let (mut one, mut other) = (one, other);
    loop {
        match (one.split_first(), other.split_first()) {
            (Some((Segment::Rest, _)), _) => {
                met.extend_from_slice(other);
                return Some(met);
            }
            (_, Some((Segment::Rest, _))) => {
                met.extend_from_slice(one);
                return Some(met);
            }
            (Some((left, one_rest)), Some((right, other_rest))) => {
                met.push(left.meet(right)?);
                (one, other) = (one_rest, other_rest);
            }
            (None, None) => return Some(met),
            _ => return None,
        }
    }
}

/// A canonical path that a template takes; `filler` where anything goes. Where any rest goes, one more segment.
pub(crate) fn path_of(segments: &[Segment], filler: &str) -> Option<String> {
    let mut path = String::new();
    for segment in segments {
        path.push('/');
        sample::escape(&segment.sample(filler)?, &mut path);
    }
    if path.is_empty() {
        path.push('/');
    }
    let target = Target::parse(&path).ok()?;
    Some(target.path.into_owned())
}

/// A template by what it takes; the names of its places do not matter.
pub(crate) fn meaning(segments: &[Segment]) -> String {
    let mut text = String::new();
    for segment in segments {
        text.push('/');
        match segment {
            Segment::Literal(literal) => sample::escape(literal, &mut text),
            Segment::Kind(SegmentKind::Int) => text.push_str("{:int}"),
            Segment::Kind(SegmentKind::Uuid) => text.push_str("{:uuid}"),
            Segment::Kind(SegmentKind::Pattern(pattern)) => {
                let _ = write!(text, "{{:{}}}", pattern.text());
            }
            Segment::One => text.push('*'),
            Segment::Rest => text.push_str("**"),
        }
    }
    text
}
