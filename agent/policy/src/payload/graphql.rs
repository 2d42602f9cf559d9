//! GraphQL over HTTP: which operations and fields a rule allows.
//!
//! Allowed are paths of field names from the root. Fragments are followed where they are spread, each once
//! per place that a path leads to, so that fragments within fragments cost no more than they are long.
use super::operations::{self, Document, OperationKind, Selection};
use super::{PayloadFault, unknown_member};
use crate::syntax::quote;
use serde_json::{Map, Value};
use std::collections::HashSet;

/// Fields of an operation at most, fragments counted each time they are spread.
const MAX_FIELDS: u64 = 10_000;
/// Aliases of an operation at most, likewise.
const MAX_ALIASES: u64 = 1_000;
/// Selection sets and fragments within each other at most.
const MAX_LEVELS: u32 = 192;
/// Selections looked at for one document at most.
const MAX_VISITS: u32 = 100_000;

/// What a rule says of GraphQL requests.
#[derive(Debug)]
pub(crate) struct Graphql {
    paths: FieldPaths,
    depth: u32,
    introspection: bool,
}

/// The allowed paths: a tree for each kind of operation, in one list of places.
#[derive(Debug, Default)]
pub(crate) struct FieldPaths {
    roots: [Option<Place>; 3],
    ways: Vec<Vec<(Box<str>, Place)>>,
}

/// A place in the tree of paths.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Place {
    /// Allowed, with all below.
    All,
    /// On the way to what is allowed: an index of [`FieldPaths::ways`].
    Way(usize),
}

/// What became of a path that was added.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Listed {
    New,
    /// It was allowed before.
    Covered,
    /// It allows more than paths that were added before.
    Covers,
}

impl FieldPaths {
    /// Allows operations of a kind, with no field yet.
    pub(crate) fn open(&mut self, kind: OperationKind) {
        let way = self.ways.len();
        if let Some(root @ None) = self.roots.get_mut(kind as usize) {
            *root = Some(Place::Way(way));
            self.ways.push(Vec::new());
        }
    }

    /// Allows every field of a kind of operation.
    pub(crate) fn open_all(&mut self, kind: OperationKind) {
        if let Some(root) = self.roots.get_mut(kind as usize) {
            *root = Some(Place::All);
        }
    }

    /// Allows a path of field names.
    pub(crate) fn add(&mut self, kind: OperationKind, path: &[&str]) -> Listed {
        self.open(kind);
        let mut place = self.root(kind);
        let mut rest = path;
        while let [name, tail @ ..] = rest {
            rest = tail;
            let Some(Place::Way(way)) = place else {
                return Listed::Covered;
            };
            let next = match tail {
                [] => Place::All,
                _ => Place::Way(self.ways.len()),
            };
            let Some(children) = self.ways.get_mut(way) else {
                return Listed::Covered;
            };
            match children.iter_mut().find(|(child, _)| **child == **name) {
                None => {
                    children.push(((*name).into(), next));
                    if let Place::Way(_) = next {
                        self.ways.push(Vec::new());
                    }
                    place = Some(next);
                }
                Some((_, known @ Place::Way(_))) if tail.is_empty() => {
                    *known = Place::All;
                    return Listed::Covers;
                }
                Some((_, known)) if tail.is_empty() && *known == Place::All => {
                    return Listed::Covered;
                }
                Some((_, known)) => place = Some(*known),
            }
        }
        Listed::New
    }

    fn root(&self, kind: OperationKind) -> Option<Place> {
        self.roots.get(kind as usize).copied().flatten()
    }

    fn children(&self, way: usize) -> &[(Box<str>, Place)] {
        self.ways.get(way).map_or(&[], Vec::as_slice)
    }
}

impl Graphql {
    /// Fields within each other, unless said.
    pub(crate) const DEFAULT_DEPTH: u32 = 16;
    /// Fields within each other that a rule can allow.
    pub(crate) const MAX_DEPTH: u32 = 64;
    /// Query parameters that servers take for the request itself, before or instead of the body.
    pub(crate) const PARAMETERS: [&'static str; 7] = [
        "doc_id",
        "documentId",
        "extensions",
        "id",
        "operationName",
        "query",
        "variables",
    ];

    pub(crate) fn new(paths: FieldPaths, depth: u32, introspection: bool) -> Self {
        Self {
            paths,
            depth,
            introspection,
        }
    }

    pub(super) fn check(&self, body: &Value) -> Result<(), PayloadFault> {
        let document = operations::read(text(body)?)
            .map_err(|detail| invalid(detail, "send a document that follows the specification"))?;
        let measures = Measures::of(&document)?;
        for operation in &document.operations {
            let kind = operation.kind.name();
            let asked = match &operation.name {
                Some(name) => format!("{kind} {}", quote(name)),
                None => format!("a {kind} without a name"),
            };
            let Some(root) = self.paths.root(operation.kind) else {
                let allowed = OperationKind::ALL
                    .into_iter()
                    .filter(|kind| self.paths.root(*kind).is_some())
                    .map(OperationKind::name);
                return Err(PayloadFault::new(
                    "graphql_operation",
                    format!("{asked} is not allowed"),
                    format!(
                        "the rule allows operations of the kind {}",
                        super::some_of(allowed)
                    ),
                ));
            };
            self.check_depth(&asked, &measures, &operation.set)?;
            let mut walk = Walk {
                rule: self,
                document: &document,
                kind: operation.kind,
                root,
                seen: HashSet::new(),
                path: Vec::new(),
                visits: 0,
            };
            walk.set(&operation.set, root)?;
        }
        Ok(())
    }

    fn check_depth(
        &self,
        asked: &str,
        measures: &Measures<'_>,
        set: &[Selection],
    ) -> Result<(), PayloadFault> {
        let measure = measures.of_done(set);
        if measure.depth > self.depth {
            let detail = format!(
                "{asked} nests {} fields, and {} are allowed",
                measure.depth, self.depth
            );
            return Err(PayloadFault::new(
                "graphql_field",
                detail,
                "ask for less, or raise `depth` in the rule",
            ));
        }
        if measure.fields > MAX_FIELDS || measure.aliases > MAX_ALIASES {
            let detail = format!(
                "{asked} comes to more than {MAX_FIELDS} fields or {MAX_ALIASES} aliases with its fragments"
            );
            return Err(invalid(detail, "ask in several requests"));
        }
        Ok(())
    }
}

fn invalid(detail: impl Into<String>, hint: &str) -> PayloadFault {
    PayloadFault::new("graphql_invalid", detail, hint)
}

/// The document's text, from a body that is a GraphQL request and nothing besides.
fn text(body: &Value) -> Result<&str, PayloadFault> {
    const MEMBERS: [&str; 4] = ["extensions", "operationName", "query", "variables"];
    let Value::Object(request) = body else {
        let detail = match body {
            Value::Array(_) => "the body is a batch of operations",
            _ => "the body is not a GraphQL request",
        };
        return Err(invalid(
            detail,
            "send one operation as a JSON object with `query`",
        ));
    };
    if let Some(name) = unknown_member(request, &MEMBERS) {
        return Err(invalid(
            format!("the request has the member {}", quote(name)),
            "a request has `query`, `variables`, `operationName` and `extensions`",
        ));
    }
    if super::member(request, "operationName").is_some_and(|name| !name.is_string()) {
        return Err(invalid("`operationName` is not text", "leave it out"));
    }
    for name in ["variables", "extensions"] {
        if super::member(request, name).is_some_and(|value| !value.is_object()) {
            return Err(invalid(
                format!("`{name}` is not an object"),
                "leave it out",
            ));
        }
    }
    refuse_stored(request)?;
    match request.get("query") {
        Some(Value::String(text)) => Ok(text),
        _ => Err(invalid(
            "the request has no document in `query`",
            "send the document's text: what a server has stored under a name or hash cannot be looked at",
        )),
    }
}

/// With a stored document named beside the text, which of the two is run is the server's choice.
fn refuse_stored(request: &Map<String, Value>) -> Result<(), PayloadFault> {
    let extensions = request.get("extensions").and_then(Value::as_object);
    let stored = extensions.is_some_and(|map| map.contains_key("persistedQuery"));
    if stored {
        return Err(invalid(
            "`extensions.persistedQuery` names a stored document",
            "turn persisted queries off in the client",
        ));
    }
    Ok(())
}

/// How large a selection set is with all its fragments.
#[derive(Debug, Clone, Copy, Default)]
struct Measure {
    /// Fields within each other.
    depth: u32,
    /// Selection sets and fragments within each other.
    levels: u32,
    fields: u64,
    aliases: u64,
}

#[derive(Debug, Clone, Copy)]
enum Progress {
    New,
    /// Being measured: to come here again is a cycle.
    Open,
    Done(Measure),
}

/// The measures of all fragments, each taken once.
struct Measures<'d> {
    document: &'d Document,
    fragments: Vec<Progress>,
}

impl<'d> Measures<'d> {
    /// Measures what the operations reach; a cycle, an unused fragment or too much nesting is refused.
    fn of(document: &'d Document) -> Result<Self, PayloadFault> {
        let mut measures = Self {
            document,
            fragments: vec![Progress::New; document.fragments.len()],
        };
        for operation in &document.operations {
            measures.set(&operation.set, 0)?;
        }
        let unused = document
            .fragments
            .iter()
            .zip(&measures.fragments)
            .find(|(_, progress)| matches!(progress, Progress::New));
        if let Some((fragment, _)) = unused {
            let detail = format!("the fragment {} is not used", quote(&fragment.name));
            return Err(invalid(detail, "remove it"));
        }
        Ok(measures)
    }

    fn set(&mut self, set: &[Selection], level: u32) -> Result<Measure, PayloadFault> {
        let deep = || {
            invalid(
                format!("the document nests more than {MAX_LEVELS} selection sets and fragments"),
                "ask for less",
            )
        };
        if level >= MAX_LEVELS {
            return Err(deep());
        }
        let mut measure = Measure::default();
        for selection in set {
            let inner = match selection {
                Selection::Field { set, .. } => match set {
                    Some(set) => self.set(set, level + 1)?,
                    None => Measure::default(),
                },
                Selection::Inline(set) => self.set(set, level + 1)?,
                Selection::Spread(index) => self.fragment(*index, level)?,
            };
            measure.add(selection, inner);
        }
        if level + measure.levels > MAX_LEVELS {
            return Err(deep());
        }
        Ok(measure)
    }

    fn fragment(&mut self, index: usize, level: u32) -> Result<Measure, PayloadFault> {
        let (Some(progress), Some(fragment)) = (
            self.fragments.get_mut(index),
            self.document.fragments.get(index),
        ) else {
            return Err(invalid("a fragment is not defined", "define it"));
        };
        match *progress {
            Progress::Done(measure) => return Ok(measure),
            Progress::Open => {
                let detail = format!("the fragment {} contains itself", quote(&fragment.name));
                return Err(invalid(detail, "fragments may not form a cycle"));
            }
            Progress::New => *progress = Progress::Open,
        }
        let measure = self.set(&fragment.set, level + 1)?;
        if let Some(progress) = self.fragments.get_mut(index) {
            *progress = Progress::Done(measure);
        }
        Ok(measure)
    }

    /// The measure of a set whose fragments are all measured.
    fn of_done(&self, set: &[Selection]) -> Measure {
        let mut measure = Measure::default();
        for selection in set {
            let inner = match selection {
                Selection::Field { set: None, .. } => Measure::default(),
                Selection::Field { set: Some(set), .. } | Selection::Inline(set) => {
                    self.of_done(set)
                }
                Selection::Spread(index) => match self.fragments.get(*index) {
                    Some(Progress::Done(measure)) => *measure,
                    _ => Measure::default(),
                },
            };
            measure.add(selection, inner);
        }
        measure
    }
}

impl Measure {
    fn add(&mut self, selection: &Selection, inner: Self) {
        let (field, alias) = match selection {
            Selection::Field { aliased, .. } => (1, u64::from(*aliased)),
            Selection::Spread(_) | Selection::Inline(_) => (0, 0),
        };
        self.depth = self.depth.max(inner.depth.saturating_add(field));
        self.levels = self.levels.max(inner.levels.saturating_add(1));
        self.fields = self
            .fields
            .saturating_add(inner.fields)
            .saturating_add(u64::from(field));
        self.aliases = self
            .aliases
            .saturating_add(inner.aliases)
            .saturating_add(alias);
    }
}

/// One operation against the tree of paths. Nesting was measured, cycles are excluded.
struct Walk<'d> {
    rule: &'d Graphql,
    document: &'d Document,
    kind: OperationKind,
    root: Place,
    /// Fragments already found to be allowed, and where.
    seen: HashSet<(usize, Place)>,
    path: Vec<&'d str>,
    visits: u32,
}

impl<'d> Walk<'d> {
    fn set(&mut self, set: &'d [Selection], place: Place) -> Result<(), PayloadFault> {
        for selection in set {
            self.visits += 1;
            if self.visits > MAX_VISITS {
                return Err(invalid(
                    "the document takes too long to look at",
                    "ask for less",
                ));
            }
            match selection {
                Selection::Inline(set) => self.set(set, place)?,
                Selection::Spread(index) => {
                    let fragment = self.document.fragments.get(*index);
                    if let (Some(fragment), true) = (fragment, self.seen.insert((*index, place))) {
                        self.set(&fragment.set, place)?;
                    }
                }
                Selection::Field { name, set, .. } => {
                    self.path.push(name);
                    self.field(name, set.as_deref(), place)?;
                    self.path.pop();
                }
            }
        }
        Ok(())
    }

    fn field(
        &mut self,
        name: &'d str,
        set: Option<&'d [Selection]>,
        place: Place,
    ) -> Result<(), PayloadFault> {
        if name == "__typename" && set.is_none() {
            return Ok(());
        }
        let below = match place {
            _ if name.starts_with("__") => self.introspection(place)?,
            Place::All => Place::All,
            Place::Way(way) => {
                let children = self.rule.paths.children(way);
                match children.iter().find(|(child, _)| **child == *name) {
                    Some((_, below)) => *below,
                    None => return Err(self.denied(children)),
                }
            }
        };
        match (set, below) {
            (Some(set), below) => self.set(set, below),
            (None, Place::All) => Ok(()),
            (None, Place::Way(way)) => Err(self.denied(self.rule.paths.children(way))),
        }
    }

    /// Names that begin with `__` are the schema's. Where a type has a field of the root type (`query` in the
    /// result of a mutation), the schema is reached from there too.
    fn introspection(&self, place: Place) -> Result<Place, PayloadFault> {
        let at_root = self.kind == OperationKind::Query && place == self.root;
        if self.rule.introspection && (at_root || place == Place::All) {
            return Ok(Place::All);
        }
        Err(PayloadFault::new(
            "graphql_field",
            format!("{} asks for the schema", self.name()),
            "introspection is allowed by `introspection: true` in the rule",
        ))
    }

    fn name(&self) -> String {
        let path = self.path.iter().take(Graphql::MAX_DEPTH as usize);
        let path = path.copied().collect::<Vec<_>>().join(".");
        format!("{} {}", self.kind.name(), quote(&path))
    }

    fn denied(&self, children: &[(Box<str>, Place)]) -> PayloadFault {
        let names = super::some_of(children.iter().map(|(name, _)| &**name));
        PayloadFault::new(
            "graphql_field",
            format!("{} is not allowed", self.name()),
            format!("allowed there or below: {names}"),
        )
    }
}
