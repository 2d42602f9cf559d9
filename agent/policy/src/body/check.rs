//! A JSON body held against declared fields, and what is cut out of it, in one pass and without a tree.
use super::json::{Fate, Kind, Reader};
use super::pointer::{Active, Followed, Pointers, escape};
use super::{BodyFault, BodySpec, Edited};
use crate::policy::Extra;
use crate::shape::{Field, LiteralKind, Shape, integer};
use crate::syntax::quote;
use smallvec::SmallVec;

/// Names of cut members that are told.
pub(super) const MAX_STRIPPED: usize = 64;
/// Bytes of each.
const MAX_NAME: usize = 128;

pub(super) fn json(spec: &BodySpec, body: &[u8]) -> Result<Option<Edited>, BodyFault> {
    let mut reader = Reader::new(body)?;
    let mut check = Check {
        extra: spec.extra,
        strip: &spec.strip,
        stripped: Stripped::default(),
    };
    let active = spec.strip.root();
    match &spec.fields {
        None => check.anything(&mut reader, &active, &Path::Root)?,
        Some(_) if reader.kind()? != Kind::Object => {
            return Err(BodyFault::Invalid("it is not a JSON object".into()));
        }
        Some(fields) => {
            let level = Level {
                fields,
                required: &spec.required,
            };
            check.declared(&mut reader, &level, &active, &Path::Root)?;
        }
    }
    let stripped = check.stripped;
    Ok(reader.end()?.map(|body| Edited {
        body,
        stripped: stripped.names(),
    }))
}

/// The fields declared at one level.
struct Level<'s> {
    fields: &'s [Field],
    required: &'s [usize],
}

struct Check<'s> {
    extra: Extra,
    strip: &'s Pointers,
    stripped: Stripped,
}

impl Check<'_> {
    /// An object with declared fields.
    fn declared(
        &mut self,
        reader: &mut Reader<'_>,
        level: &Level<'_>,
        active: &Active,
        path: &Path<'_>,
    ) -> Result<(), BodyFault> {
        let mut seen = Seen::default();
        reader.object(|reader, name| {
            let path = Path::Member(path, name);
            let active = match self.strip.member(active, name) {
                Followed::On(active) => active,
                Followed::Hit(pointer) => {
                    self.stripped.add(|| pointer.as_str().to_owned());
                    reader.skip()?;
                    return Ok(Fate::Cut);
                }
            };
            let Some((index, shape)) = find(level.fields, name) else {
                if self.extra == Extra::Deny {
                    return Err(BodyFault::Undeclared(path.name()));
                }
                self.stripped.add(|| path.pointer());
                reader.skip()?;
                return Ok(Fate::Cut);
            };
            if !level.required.is_empty() {
                seen.insert(index);
            }
            self.value(reader, shape, &active, &path)?;
            Ok(Fate::Keep)
        })?;
        let missing = level.required.iter().find(|index| !seen.contains(**index));
        match missing.and_then(|index| level.fields.get(*index)) {
            Some(field) => Err(BodyFault::Missing(path.with(&field.name))),
            None => Ok(()),
        }
    }

    /// A value of a declared shape.
    fn value(
        &mut self,
        reader: &mut Reader<'_>,
        shape: &Shape,
        active: &Active,
        path: &Path<'_>,
    ) -> Result<(), BodyFault> {
        let kind = reader.kind()?;
        let fits = match (shape, kind) {
            (Shape::Any, _) => return self.anything(reader, active, path),
            (Shape::Object(fields), Kind::Object) => {
                let level = Level {
                    fields,
                    required: &[],
                };
                return self.declared(reader, &level, active, path);
            }
            (Shape::List(item), Kind::Array) => {
                return self.elements(reader, Some(item), active, path);
            }
            (_, Kind::Object | Kind::Array) => false,
            (_, Kind::Text) => accepts_string(shape, &reader.string()?),
            (_, Kind::Number | Kind::Bool | Kind::Null) => {
                accepts_word(shape, kind, reader.word()?)
            }
        };
        if fits {
            return Ok(());
        }
        Err(BodyFault::Value {
            field: path.name(),
            expected: shape.to_string(),
        })
    }

    /// A value of which nothing is declared; there may be something to cut in it.
    fn anything(
        &mut self,
        reader: &mut Reader<'_>,
        active: &Active,
        path: &Path<'_>,
    ) -> Result<(), BodyFault> {
        match reader.kind()? {
            _ if active.is_empty() => Ok(reader.skip()?),
            Kind::Object => reader.object(|reader, name| match self.strip.member(active, name) {
                Followed::On(active) => {
                    self.anything(reader, &active, &Path::Member(path, name))?;
                    Ok(Fate::Keep)
                }
                Followed::Hit(pointer) => {
                    self.stripped.add(|| pointer.as_str().to_owned());
                    reader.skip()?;
                    Ok(Fate::Cut)
                }
            }),
            Kind::Array => self.elements(reader, None, active, path),
            _ => Ok(reader.skip()?),
        }
    }

    fn elements(
        &mut self,
        reader: &mut Reader<'_>,
        shape: Option<&Shape>,
        active: &Active,
        path: &Path<'_>,
    ) -> Result<(), BodyFault> {
        let path = Path::Element(path);
        let mut number = 0;
        reader.array(|reader| {
            let followed = self.strip.element(active, number);
            number += 1;
            match (followed, shape) {
                (Followed::Hit(pointer), _) => {
                    self.stripped.add(|| pointer.as_str().to_owned());
                    reader.skip()?;
                    return Ok(Fate::Cut);
                }
                (Followed::On(active), Some(shape)) => {
                    self.value(reader, shape, &active, &path)?;
                }
                (Followed::On(active), None) => self.anything(reader, &active, &path)?,
            }
            Ok(Fate::Keep)
        })
    }
}

/// Where the reader stands: kept on the stack, and only written out for a fault.
enum Path<'p> {
    Root,
    Member(&'p Path<'p>, &'p str),
    Element(&'p Path<'p>),
}

impl Path<'_> {
    /// The names of the members that lead here, for a message.
    fn name(&self) -> String {
        let mut names = Vec::new();
        let mut at = self;
        loop {
            at = match at {
                Path::Root => break,
                Path::Element(parent) => parent,
                Path::Member(parent, name) => {
                    names.push(*name);
                    parent
                }
            };
        }
        names.reverse();
        quote(&names.join("."))
    }

    fn with(&self, name: &str) -> String {
        Path::Member(self, name).name()
    }

    fn pointer(&self) -> String {
        let mut pointer = match self {
            Path::Root => return String::new(),
            Path::Member(parent, _) | Path::Element(parent) => parent.pointer(),
        };
        pointer.push('/');
        match self {
            Path::Member(_, name) => {
                let kept = name
                    .char_indices()
                    .nth(MAX_NAME)
                    .map_or(*name, |(end, _)| name.get(..end).unwrap_or(""));
                escape(kept, &mut pointer);
            }
            _ => pointer.push('*'),
        }
        pointer
    }
}

/// The names of what was cut, as far as they are told.
#[derive(Debug, Default)]
pub(super) struct Stripped(Vec<String>);

impl Stripped {
    /// Adds a name. Many members may be cut for one, so that it is looked for before it is added.
    pub(super) fn add(&mut self, name: impl FnOnce() -> String) {
        if self.0.len() >= MAX_STRIPPED {
            return;
        }
        let mut name = name();
        if let Some((end, _)) = name.char_indices().nth(MAX_NAME) {
            name.truncate(end);
            name.push('…');
        }
        if !self.0.contains(&name) {
            self.0.push(name);
        }
    }

    pub(super) fn names(mut self) -> Vec<String> {
        self.0.sort_unstable();
        self.0
    }
}

/// Which of the fields of one object were there.
#[derive(Default)]
pub(super) struct Seen(SmallVec<[u64; 2]>);

impl Seen {
    /// Whether it is new.
    pub(super) fn insert(&mut self, index: usize) -> bool {
        let word = index / 64;
        if self.0.len() <= word {
            self.0.resize(word + 1, 0);
        }
        let new = !self.contains(index);
        if let Some(word) = self.0.get_mut(word) {
            *word |= 1 << (index % 64);
        }
        new
    }

    pub(super) fn contains(&self, index: usize) -> bool {
        let word = self.0.get(index / 64).copied().unwrap_or(0);
        word & (1 << (index % 64)) != 0
    }
}

/// A declared field: its place and shape.
pub(super) fn find<'f>(fields: &'f [Field], name: &str) -> Option<(usize, &'f Shape)> {
    let index = fields
        .binary_search_by(|field| (*field.name).cmp(name))
        .ok()?;
    fields.get(index).map(|field| (index, &field.shape))
}

fn accepts_string(shape: &Shape, text: &str) -> bool {
    match shape {
        Shape::Text | Shape::Pattern(_) | Shape::Uuid => shape.accepts_text(text),
        Shape::OneOf(literals) => literals
            .iter()
            .any(|literal| literal.kind == LiteralKind::Text && &*literal.text == text),
        _ => false,
    }
}

fn accepts_word(shape: &Shape, kind: Kind, word: &str) -> bool {
    match (shape, kind) {
        (Shape::Number, Kind::Number) | (Shape::Bool, Kind::Bool) => true,
        // `1.0` and `1e0` are integers to some readers and not to others.
        (Shape::Int, Kind::Number) => integer(word).is_some(),
        (Shape::Range(low, high), Kind::Number) => {
            integer(word).is_some_and(|value| (*low..=*high).contains(&value))
        }
        (Shape::OneOf(literals), _) => literals.iter().any(|literal| {
            let kinds = (literal.kind, kind);
            let same = matches!(
                kinds,
                (LiteralKind::Int, Kind::Number)
                    | (LiteralKind::Bool, Kind::Bool)
                    | (LiteralKind::Null, Kind::Null)
            );
            same && &*literal.text == word
        }),
        _ => false,
    }
}
