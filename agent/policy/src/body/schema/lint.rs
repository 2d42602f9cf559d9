//! What must be true of a schema before it is compiled.
use super::SchemaFault;
use crate::body::pointer::escape;
use crate::syntax::{nearest, quote};
use serde_json::Value;
use std::collections::HashMap;

/// Schemas within a schema at most.
const MAX_SCHEMAS: usize = 2_048;
/// Bytes of names and texts at most.
const MAX_TEXT: usize = 64 << 10;
/// Bytes of a pointer into it at most.
const MAX_POINTER: usize = 1 << 10;
/// Schemas that one value may have to be held against, references followed.
const MAX_COST: usize = 10_000;
/// Steps from the root to the furthest schema, references followed.
const MAX_STEPS: usize = 128;
/// Steps that a schema that refers to itself may make without going on in the body. They are made again at
/// each of 64 levels.
const MAX_STEPS_AGAIN: usize = 8;
const MAX_PATTERNS: usize = 64;
const MAX_PATTERN: usize = 1 << 10;

/// What stands under a keyword.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Holds {
    /// Nothing to look into.
    Value,
    One,
    List,
    /// By name.
    Map,
    /// By name, for references only.
    Definitions,
}

/// Keywords: what they hold, and whether that is for parts of the value and not for the value itself.
const KEYWORDS: [(&str, Holds, bool); 50] = [
    ("$comment", Holds::Value, false),
    ("$defs", Holds::Definitions, false),
    ("$ref", Holds::Value, false),
    ("$schema", Holds::Value, false),
    ("additionalProperties", Holds::One, true),
    ("allOf", Holds::List, false),
    ("anyOf", Holds::List, false),
    ("const", Holds::Value, false),
    ("contains", Holds::One, true),
    ("default", Holds::Value, false),
    ("definitions", Holds::Definitions, false),
    ("dependentRequired", Holds::Value, false),
    ("dependentSchemas", Holds::Map, false),
    ("deprecated", Holds::Value, false),
    ("description", Holds::Value, false),
    ("else", Holds::One, false),
    ("enum", Holds::Value, false),
    ("examples", Holds::Value, false),
    ("exclusiveMaximum", Holds::Value, false),
    ("exclusiveMinimum", Holds::Value, false),
    ("format", Holds::Value, false),
    ("if", Holds::One, false),
    ("items", Holds::One, true),
    ("maxContains", Holds::Value, false),
    ("maxItems", Holds::Value, false),
    ("maxLength", Holds::Value, false),
    ("maxProperties", Holds::Value, false),
    ("maximum", Holds::Value, false),
    ("minContains", Holds::Value, false),
    ("minItems", Holds::Value, false),
    ("minLength", Holds::Value, false),
    ("minProperties", Holds::Value, false),
    ("minimum", Holds::Value, false),
    ("multipleOf", Holds::Value, false),
    ("not", Holds::One, false),
    ("oneOf", Holds::List, false),
    ("pattern", Holds::Value, false),
    ("patternProperties", Holds::Map, true),
    ("prefixItems", Holds::List, true),
    ("properties", Holds::Map, true),
    ("propertyNames", Holds::One, true),
    ("readOnly", Holds::Value, false),
    ("required", Holds::Value, false),
    ("then", Holds::One, false),
    ("title", Holds::Value, false),
    ("type", Holds::Value, false),
    ("unevaluatedItems", Holds::One, true),
    ("unevaluatedProperties", Holds::One, true),
    ("uniqueItems", Holds::Value, false),
    ("writeOnly", Holds::Value, false),
];

/// Formats that are checked, each in linear time.
const FORMATS: [&str; 12] = [
    "date",
    "date-time",
    "duration",
    "email",
    "hostname",
    "ipv4",
    "ipv6",
    "json-pointer",
    "time",
    "uri",
    "uri-reference",
    "uuid",
];

const TYPES: [&str; 7] = [
    "array", "boolean", "integer", "null", "number", "object", "string",
];

/// Whether the schema refers to itself, or all that is wrong with it.
pub(super) fn lint(root: &Value) -> Result<bool, Vec<SchemaFault>> {
    let mut walk = Walk::default();
    walk.schema(root, &Path::Root);
    if walk.faults.is_empty() {
        // What was read last has not been counted yet.
        walk.bounded(&Path::Root);
    }
    if walk.faults.is_empty() {
        walk.resolve(root);
    }
    let mut recursive = false;
    if walk.faults.is_empty() {
        match measure(&walk.schemas) {
            Ok(found) => recursive = found,
            Err(message) => walk.faults.push(SchemaFault::at("", message)),
        }
    }
    match walk.faults.is_empty() {
        true => Ok(recursive),
        false => Err(walk.faults),
    }
}

enum Path<'p> {
    Root,
    In(&'p Path<'p>, &'p str),
}

impl Path<'_> {
    fn pointer(&self) -> String {
        match self {
            Path::Root => String::new(),
            Path::In(parent, name) => {
                let mut pointer = parent.pointer();
                pointer.push('/');
                escape(name, &mut pointer);
                pointer
            }
        }
    }

    fn length(&self) -> usize {
        match self {
            Path::Root => 0,
            Path::In(parent, name) => parent.length() + 1 + name.len(),
        }
    }
}

/// One schema of the schema.
#[derive(Default)]
struct Sub<'v> {
    /// Others that a value, or a part of it, is held against with this one.
    next: Vec<(usize, bool)>,
    reference: Option<(&'v str, String)>,
}

#[derive(Default)]
struct Walk<'v> {
    schemas: Vec<Sub<'v>>,
    /// Places in `schemas`, by address.
    known: HashMap<usize, usize>,
    faults: Vec<SchemaFault>,
    text: usize,
    patterns: usize,
}

fn address(value: &Value) -> usize {
    std::ptr::from_ref(value).addr()
}

impl<'v> Walk<'v> {
    fn fault(&mut self, path: &Path<'_>, message: String) -> Option<&mut SchemaFault> {
        self.faults.push(SchemaFault::at(path.pointer(), message));
        self.faults.last_mut()
    }

    /// Whether the walk can go on.
    fn bounded(&mut self, path: &Path<'_>) -> bool {
        let message = if path.length() > MAX_POINTER {
            "the names in the schema are too long"
        } else if self.schemas.len() > MAX_SCHEMAS {
            "the schema has more than 2048 schemas in it"
        } else if self.text > MAX_TEXT {
            "the schema is larger than 64 KiB"
        } else {
            return self.faults.len() < 20;
        };
        if self.faults.len() < 20 {
            self.fault(path, message.to_owned());
            self.text = usize::MAX;
        }
        false
    }

    /// Notes a schema and all in it. Its number.
    fn schema(&mut self, value: &'v Value, path: &Path<'_>) -> Option<usize> {
        if self.text == usize::MAX || !self.bounded(path) {
            return None;
        }
        let number = self.schemas.len();
        self.schemas.push(Sub::default());
        self.known.insert(address(value), number);
        let Value::Object(members) = value else {
            if !value.is_boolean() {
                self.fault(path, "a schema is a mapping, `true` or `false`".into());
            }
            return Some(number);
        };
        for (name, value) in members {
            self.text = self.text.saturating_add(name.len());
            let path = Path::In(path, name);
            let Ok(index) = KEYWORDS.binary_search_by(|(known, ..)| (*known).cmp(name)) else {
                self.unknown(name, &path);
                continue;
            };
            let Some((_, holds, part)) = KEYWORDS.get(index) else {
                continue;
            };
            self.keyword(number, name, value, &path);
            self.below(number, *holds, *part, value, &path);
        }
        Some(number)
    }

    fn unknown(&mut self, name: &str, path: &Path<'_>) {
        let near = nearest(name, KEYWORDS.iter().map(|(known, ..)| *known));
        let help = match (name, near) {
            ("$id" | "$anchor" | "$dynamicRef" | "$dynamicAnchor", _) => {
                "refer to a schema by its place: `$ref: \"#/$defs/name\"`".to_owned()
            }
            ("contentEncoding" | "contentMediaType" | "contentSchema", _) => {
                "what is inside a string is not looked into".to_owned()
            }
            ("dependencies", _) => "write `dependentRequired` or `dependentSchemas`".to_owned(),
            ("additionalItems", _) => "write `prefixItems` and `items`".to_owned(),
            (_, Some(near)) => format!("did you mean `{near}`?"),
            (_, None) => "keywords are those of JSON Schema, draft 2020-12".to_owned(),
        };
        let message = format!("the keyword {} would not be held", quote(name));
        if let Some(fault) = self.fault(path, message) {
            fault.key = true;
            fault.help = Some(help);
        }
    }

    /// What is under a keyword and no schema.
    fn keyword(&mut self, number: usize, name: &str, value: &'v Value, path: &Path<'_>) {
        match (name, value) {
            ("$ref", Value::String(to)) => {
                if let Some(sub) = self.schemas.get_mut(number) {
                    sub.reference = Some((to, path.pointer()));
                }
            }
            ("$schema", Value::String(draft)) => {
                let draft = draft.strip_suffix('#').unwrap_or(draft);
                if draft != "https://json-schema.org/draft/2020-12/schema" {
                    self.fault(path, "schemas are those of draft 2020-12".into());
                }
            }
            ("pattern", Value::String(pattern)) => self.pattern(pattern, path),
            ("patternProperties", Value::Object(members)) => {
                for pattern in members.keys() {
                    self.pattern(pattern, path);
                }
            }
            ("format", Value::String(format)) if !FORMATS.contains(&format.as_str()) => {
                let list = FORMATS.map(|known| format!("`{known}`")).join(", ");
                let message = format!("the format {} would not be held", quote(format));
                if let Some(fault) = self.fault(path, message) {
                    fault.help = Some(format!("write a `pattern`, or one of {list}"));
                }
            }
            ("type", Value::String(one)) => self.type_name(one, path),
            ("type", Value::Array(types)) => {
                for one in types.iter().filter_map(Value::as_str) {
                    self.type_name(one, path);
                }
            }
            _ => {}
        }
        self.count_text(value);
    }

    fn type_name(&mut self, name: &str, path: &Path<'_>) {
        if TYPES.contains(&name) {
            return;
        }
        let list = TYPES.map(|known| format!("`{known}`")).join(", ");
        let near = nearest(name, TYPES).map(|near| format!("did you mean `{near}`? "));
        let message = format!("unknown type {}", quote(name));
        if let Some(fault) = self.fault(path, message) {
            let near = near.unwrap_or_default();
            fault.help = Some(format!("{near}types of a schema: {list}"));
        }
    }

    fn pattern(&mut self, pattern: &str, path: &Path<'_>) {
        self.patterns += 1;
        if pattern.len() > MAX_PATTERN {
            self.fault(path, "the pattern is longer than 1024 bytes".into());
        } else if self.patterns == MAX_PATTERNS + 1 {
            self.fault(path, "the schema has more than 64 patterns".into());
        }
    }

    /// Adds the text of what is not a schema. Under one more than text counts: each value costs.
    fn count_text(&mut self, value: &Value) {
        let cost = match value {
            Value::String(text) => text.len(),
            Value::Array(values) => values.len(),
            Value::Object(members) => members.keys().map(|name| name.len() + 1).sum(),
            _ => 1,
        };
        self.text = self.text.saturating_add(cost);
        match value {
            Value::Array(values) => values.iter().for_each(|value| self.count_text(value)),
            Value::Object(members) => members.values().for_each(|value| self.count_text(value)),
            _ => {}
        }
    }

    fn below(&mut self, of: usize, holds: Holds, part: bool, value: &'v Value, path: &Path<'_>) {
        let mut found = Vec::new();
        match (holds, value) {
            (Holds::One, one) => found.extend(self.schema(one, path)),
            (Holds::List, Value::Array(list)) => {
                for (index, one) in list.iter().enumerate() {
                    let name = index.to_string();
                    found.extend(self.schema(one, &Path::In(path, &name)));
                }
            }
            (Holds::Map, Value::Object(members)) => {
                for (name, one) in members {
                    found.extend(self.schema(one, &Path::In(path, name)));
                }
            }
            (Holds::Definitions, Value::Object(members)) => {
                for (name, one) in members {
                    self.schema(one, &Path::In(path, name));
                }
            }
            _ => {}
        }
        if let Some(sub) = self.schemas.get_mut(of) {
            sub.next.extend(found.into_iter().map(|next| (next, part)));
        }
    }

    /// Finds what the references refer to.
    fn resolve(&mut self, root: &Value) {
        let known = &self.known;
        for sub in &mut self.schemas {
            let Some((to, at)) = sub.reference.take() else {
                continue;
            };
            let place = to.strip_prefix('#').filter(|place| !place.contains('%'));
            let target = place.and_then(|place| root.pointer(place));
            match target.and_then(|target| known.get(&address(target))) {
                Some(next) => sub.next.push((*next, false)),
                None => {
                    let message = format!("{} is no schema within this one", quote(to));
                    let help = "references go to `#` or to a place below it: `#/$defs/name`";
                    self.faults.push(SchemaFault {
                        help: Some(help.into()),
                        ..SchemaFault::at(at, message)
                    });
                }
            }
        }
    }
}

/// What is known of a schema and all that it leads to.
#[derive(Clone, Copy)]
struct Measure {
    /// Schemas, each as often as there are ways to it.
    cost: usize,
    /// Of the longest way.
    steps: usize,
}

#[derive(Clone, Copy)]
enum Visit {
    Not,
    /// On the way to where the walk stands.
    Open,
    Done(Measure),
}

struct Measuring<'w, 'v> {
    schemas: &'w [Sub<'v>],
    visits: Vec<Visit>,
    /// Whether the ways into parts of the value are gone too.
    parts: bool,
    recursive: bool,
}

/// Whether schemas refer to themselves, or why holding a value against them could take long.
fn measure(schemas: &[Sub<'_>]) -> Result<bool, &'static str> {
    let on_one_value = Measuring::all(schemas, false)?;
    let on_all = Measuring::all(schemas, true)?;
    let most = |measuring: &Measuring<'_, '_>, of: fn(&Measure) -> usize| {
        let done = measuring.visits.iter().filter_map(|visit| match visit {
            Visit::Done(measure) => Some(of(measure)),
            _ => None,
        });
        done.max().unwrap_or(0)
    };
    if on_one_value.recursive {
        return Err("a schema refers to itself without going on in the body");
    }
    if most(&on_all, |measure| measure.cost) > MAX_COST {
        return Err("the schema has too many branches, with references followed");
    }
    if on_all.recursive && most(&on_one_value, |measure| measure.steps) > MAX_STEPS_AGAIN {
        return Err(
            "where a schema refers to itself, `allOf`, `$ref` and the like must not be nested so deep",
        );
    }
    Ok(on_all.recursive)
}

impl<'w, 'v> Measuring<'w, 'v> {
    fn all(schemas: &'w [Sub<'v>], parts: bool) -> Result<Self, &'static str> {
        let mut measuring = Self {
            schemas,
            visits: vec![Visit::Not; schemas.len()],
            parts,
            recursive: false,
        };
        for number in 0..schemas.len() {
            measuring.visit(number, 0)?;
        }
        Ok(measuring)
    }

    fn visit(&mut self, number: usize, depth: usize) -> Result<Measure, &'static str> {
        let mut measure = Measure { cost: 1, steps: 1 };
        match self.visits.get(number) {
            Some(Visit::Done(measure)) => return Ok(*measure),
            Some(Visit::Open) => {
                self.recursive = true;
                return Ok(measure);
            }
            _ => self.set(number, Visit::Open),
        }
        let next = self.schemas.get(number).map_or(&[][..], |sub| &sub.next);
        for (next, part) in next {
            if *part && !self.parts {
                continue;
            }
            if depth >= MAX_STEPS {
                return Err(TOO_DEEP);
            }
            let below = self.visit(*next, depth + 1)?;
            measure.cost = measure.cost.saturating_add(below.cost);
            measure.steps = measure.steps.max(below.steps + 1);
        }
        if depth + measure.steps > MAX_STEPS {
            return Err(TOO_DEEP);
        }
        self.set(number, Visit::Done(measure));
        Ok(measure)
    }

    fn set(&mut self, number: usize, visit: Visit) {
        if let Some(known) = self.visits.get_mut(number) {
            *known = visit;
        }
    }
}

const TOO_DEEP: &str = "the schema is nested too deep, with references followed";
