//! Which rules' templates match a path, without looking at each rule.
use super::{Segment, SegmentKind};
use crate::canonical::decode;
use smallvec::SmallVec;
use std::collections::HashMap;
use std::str::Split;

/// Numbers of the rules whose templates match, in no order.
pub(crate) type Matches = SmallVec<[u32; 32]>;

/// A tree over segments. A walk visits each of its nodes at most once, whatever the path.
#[derive(Debug)]
pub(crate) struct Index {
    nodes: Vec<Node>,
}

#[derive(Debug, Default)]
struct Node {
    literals: HashMap<Box<str>, u32>,
    kinds: Vec<(SegmentKind, u32)>,
    one: Option<u32>,
    /// Rules that end here.
    end: Vec<u32>,
    /// Rules that take any rest from here.
    rest: Vec<u32>,
}

impl Default for Index {
    fn default() -> Self {
        Self {
            nodes: vec![Node::default()],
        }
    }
}

impl Index {
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
            Segment::Literal(text) => *node.literals.entry(text.clone()).or_insert(next),
            Segment::Kind(kind) => {
                match node
                    .kinds
                    .iter()
                    .find(|(known, _)| known.key() == kind.key())
                {
                    Some((_, child)) => *child,
                    None => {
                        node.kinds.push((kind.clone(), next));
                        next
                    }
                }
            }
            Segment::One | Segment::Rest => *node.one.get_or_insert(next),
        };
        if child == next {
            self.nodes.push(Node::default());
        }
        usize::try_from(child).unwrap_or(usize::MAX)
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
        found.extend_from_slice(&node.rest);
        let Some((segment, narrow)) = narrow.split_first() else {
            found.extend_from_slice(&node.end);
            return;
        };
        if let Segment::Literal(text) = segment
            && let Some(child) = node.literals.get(text)
        {
            self.cover(*child, narrow, found);
        }
        for (kind, child) in &node.kinds {
            if Segment::Kind(kind.clone()).covers(segment) {
                self.cover(*child, narrow, found);
            }
        }
        if let (Some(child), true) = (node.one, Segment::One.covers(segment)) {
            self.cover(child, narrow, found);
        }
    }

    fn walk(&self, at: u32, mut segments: Split<'_, char>, found: &mut Matches) {
        let Some(node) = usize::try_from(at).ok().and_then(|at| self.nodes.get(at)) else {
            return;
        };
        found.extend_from_slice(&node.rest);
        let Some(segment) = segments.next() else {
            found.extend_from_slice(&node.end);
            return;
        };
        let segment = decode(segment);
        if let Some(child) = node.literals.get(&*segment) {
            self.walk(*child, segments.clone(), found);
        }
        for (kind, child) in &node.kinds {
            if kind.matches(&segment) {
                self.walk(*child, segments.clone(), found);
            }
        }
        if let (Some(child), false) = (node.one, segment.is_empty()) {
            self.walk(child, segments, found);
        }
    }
}
