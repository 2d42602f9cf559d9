//! Which rules' templates match a path, without looking at each rule.
use super::{Segment, SegmentKind};
use crate::canonical::decode;
use crate::fold::{fold, folded};
use smallvec::SmallVec;
use std::collections::HashMap;
use std::num::NonZeroU32;
use std::str::Split;

/// Numbers of the rules whose templates match, in no order.
pub(crate) type Matches = SmallVec<[u32; 32]>;

/// A tree over segments. A walk visits each of its nodes at most once, whatever the path.
#[derive(Debug)]
pub(crate) struct Index {
    nodes: Vec<Node>,
    /// Whether a segment is matched as a lenient server reads it, for deny rules.
    loose: bool,
}

/// Most nodes have one child or end one rule: only the others carry more than a few words.
#[derive(Debug, Default)]
struct Node {
    literals: Literals,
    kinds: Kinds,
    one: Option<NonZeroU32>,
    /// Rules that end here.
    end: Rules,
    /// Rules that take any rest from here.
    rest: Rules,
}

/// Children by literal segment.
#[derive(Debug, Default)]
#[expect(
    clippy::box_collection,
    reason = "few nodes have many: the others stay small"
)]
enum Literals {
    #[default]
    None,
    One(Box<str>, u32),
    Many(Box<HashMap<Box<str>, u32>>),
}

/// Children by kind of segment.
#[derive(Debug, Default)]
struct Kinds(Box<[(SegmentKind, u32)]>);

#[derive(Debug, Default)]
#[expect(
    clippy::box_collection,
    reason = "few nodes have many: the others stay small"
)]
enum Rules {
    #[default]
    None,
    One(u32),
    Many(Box<Vec<u32>>),
}

impl Literals {
    fn child(&self, segment: &str) -> Option<u32> {
        match self {
            Self::None => None,
            Self::One(text, child) => (**text == *segment).then_some(*child),
            Self::Many(children) => children.get(segment).copied(),
        }
    }

    /// The child behind `text`; `next` where there was none.
    fn child_or(&mut self, text: &str, next: u32) -> u32 {
        if let Some(child) = self.child(text) {
            return child;
        }
        *self = match std::mem::take(self) {
            Self::None => Self::One(text.into(), next),
            Self::One(other, child) => {
                Self::Many(Box::new([(other, child), (text.into(), next)].into()))
            }
            Self::Many(mut children) => {
                children.insert(text.into(), next);
                Self::Many(children)
            }
        };
        next
    }
}

impl Kinds {
    /// The child behind `kind`; `next` where there was none.
    fn child_or(&mut self, kind: &SegmentKind, next: u32) -> u32 {
        let same = |(known, _): &&(SegmentKind, u32)| known.key() == kind.key();
        if let Some((_, child)) = self.0.iter().find(same) {
            return *child;
        }
        let mut kinds = std::mem::take(&mut self.0).into_vec();
        kinds.push((kind.clone(), next));
        self.0 = kinds.into_boxed_slice();
        next
    }
}

impl Rules {
    fn push(&mut self, rule: u32) {
        *self = match std::mem::take(self) {
            Self::None => Self::One(rule),
            Self::One(first) => Self::Many(Box::new(vec![first, rule])),
            Self::Many(mut rules) => {
                rules.push(rule);
                Self::Many(rules)
            }
        };
    }

    fn as_slice(&self) -> &[u32] {
        match self {
            Self::None => &[],
            Self::One(rule) => std::slice::from_ref(rule),
            Self::Many(rules) => rules,
        }
    }
}

impl Default for Index {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
            loose: false,
        }
    }
}

impl Index {
    /// One that matches all that some server could take for what a template says.
    pub(crate) fn loose() -> Self {
        Self {
            loose: true,
            ..Self::default()
        }
    }

    /// Adds rule `rule` with its template.
    pub(crate) fn insert(&mut self, segments: &[Segment], rule: u32) {
        let mut at = 0;
        for segment in segments {
            if matches!(segment, Segment::Rest) {
                if let Some(node) = self.nodes.get_mut(at) {
                    node.rest.push(rule);
                }
                return;
            }
            at = self.child(at, segment);
        }
        if let Some(node) = self.nodes.get_mut(at) {
            node.end.push(rule);
        }
    }

    /// The node behind `segment`, made where there is none.
    fn child(&mut self, at: usize, segment: &Segment) -> usize {
        let next = u32::try_from(self.nodes.len()).unwrap_or(u32::MAX);
        let Some(node) = self.nodes.get_mut(at) else {
            return at;
        };
        let child = match segment {
            Segment::Literal(text) if self.loose => node.literals.child_or(&fold(text), next),
            Segment::Literal(text) => node.literals.child_or(text, next),
            Segment::Kind(kind) => node.kinds.child_or(kind, next),
            // The root is nobody's child.
            Segment::One | Segment::Rest => match (node.one, NonZeroU32::new(next)) {
                (Some(child), _) => child.get(),
                (None, one) => {
                    node.one = one;
                    next
                }
            },
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        usize::try_from(child).unwrap_or(usize::MAX)
    }

    /// Gives back what growing took too much.
    pub(crate) fn shrink(&mut self) {
        self.nodes.shrink_to_fit();
    }

    /// Rules whose templates match a canonical path.
    pub(crate) fn matches(&self, path: &str) -> Matches {
        let mut found = Matches::new();
        // Behind the leading slash; a canonical path always has one.
        let mut segments = path.split('/');
        segments.next();
        self.walk(0, segments, &mut found);
        found
    }

    /// Rules whose templates take every path that a template takes, as far as that can be told segment by segment.
    pub(crate) fn covering(&self, narrow: &[Segment]) -> Matches {
        let mut found = Matches::new();
        self.cover(0, narrow, &mut found);
        found
    }

    fn cover(&self, at: u32, narrow: &[Segment], found: &mut Matches) {
        let Some(node) = usize::try_from(at).ok().and_then(|at| self.nodes.get(at)) else {
            return;
        };
        found.extend_from_slice(node.rest.as_slice());
        let Some((segment, narrow)) = narrow.split_first() else {
            found.extend_from_slice(node.end.as_slice());
            return;
        };
        if let Segment::Literal(text) = segment
            && let Some(child) = node.literals.child(text)
        {
            self.cover(child, narrow, found);
        }
        for (kind, child) in &node.kinds.0 {
            if Segment::Kind(kind.clone()).covers(segment) {
                self.cover(*child, narrow, found);
            }
        }
        if let (Some(child), true) = (node.one, Segment::One.covers(segment)) {
            self.cover(child.get(), narrow, found);
        }
    }

    fn walk(&self, at: u32, mut segments: Split<'_, char>, found: &mut Matches) {
        let Some(node) = usize::try_from(at).ok().and_then(|at| self.nodes.get(at)) else {
            return;
        };
        found.extend_from_slice(node.rest.as_slice());
        let Some(segment) = segments.next() else {
            found.extend_from_slice(node.end.as_slice());
            return;
        };
        let segment = decode(segment);
        let literal = match self.loose && !matches!(node.literals, Literals::None) {
            true => folded(&segment, |text| node.literals.child(text)),
            false => node.literals.child(&segment),
        };
        if let Some(child) = literal {
            self.walk(child, segments.clone(), found);
        }
        for (kind, child) in &node.kinds.0 {
            if kind.matches(&segment) || (self.loose && kind.resembles(&segment)) {
                self.walk(*child, segments.clone(), found);
            }
        }
        if let (Some(child), false) = (node.one, segment.is_empty()) {
            self.walk(child.get(), segments, found);
        }
    }
}
