//! `body`: what an allow rule says of the body, as it is written.
use super::Reading;
use crate::body::{
    BodySpec, Pointer, Pointers, Redactor, Schema, SchemaFault, Token, element_number, json_number,
};
use crate::policy::Extra;
use crate::shape::Field;
use crate::syntax::{Decoder, Entry, Fields, Node, Scalar, Span, Value, nearest, quote};
use crate::websocket::Messages;
use serde_json::Value as Json;

/// Bytes of a body that is looked at, unless said.
const DEFAULT_BODY: usize = 64 << 10;
/// Bytes of a body that can be looked at.
const MAX_BODY: u64 = 16 << 20;

pub(super) fn body_spec(reading: &mut Reading<'_>, node: &Node) -> Option<BodySpec> {
    let mut keys = reading.decoder.fields(node, "`body`")?;
    let spec = body_keys(reading, &mut keys);
    keys.finish(reading.decoder);
    if matches!(&node.value, Value::Mapping(entries) if entries.is_empty()) {
        reading
            .decoder
            .error(node.span, "`body` says nothing")
            .help("write `fields`, `schema` or `max`; without `body`, any body passes");
    }
    spec
}

/// What is said of a body, or of a message.
fn body_keys(reading: &mut Reading<'_>, keys: &mut Fields<'_>) -> Option<BodySpec> {
    let declared = keys.take("fields");
    let required = keys.take("required");
    let extra = keys.take_entry("extra");
    let strip = keys.take("strip");
    let schema = keys.take("schema");
    let max = keys.take("max");
    if let (Some(extra), None) = (extra, declared) {
        reading
            .decoder
            .error(
                extra.key.span,
                "`extra` says what becomes of members that `fields` does not declare",
            )
            .help("add `fields`");
    }
    let extras = [("deny", Extra::Deny), ("strip", Extra::Strip)];
    let extra = extra.and_then(|entry| reading.decoder.word(&entry.value, &extras));
    let fields = declared.map(|node| super::shape::object(reading, node));
    let strip = strip.map(|node| strip_pointers(reading.decoder, node));
    let strip = strip.unwrap_or_default();
    let required = required.map(|node| required_fields(reading.decoder, node, declared, &strip));
    let required = places(fields.as_deref(), required.unwrap_or_default());
    let schema = match schema {
        Some(node) => Some(compile_schema(reading.decoder, node)?),
        None => None,
    };
    let max = match max {
        Some(node) => body_max(reading, node)?,
        None => DEFAULT_BODY,
    };
    Some(BodySpec {
        fields,
        required,
        extra: extra.unwrap_or(Extra::Deny),
        strip: Pointers::folding(&strip).unwrap_or_default(),
        schema,
        max,
    })
}

fn body_max(reading: &mut Reading<'_>, node: &Node) -> Option<usize> {
    let size = reading.decoder.byte_size(node)?;
    if size == 0 || size > MAX_BODY {
        reading.decoder.error(
            node.span,
            "a body that is looked at has between 1 byte and 16MiB",
        );
        return None;
    }
    usize::try_from(size).ok()
}

/// `true`, or what each message of the client must be like, without its condition.
pub(super) fn messages(reading: &mut Reading<'_>, node: &Node) -> Option<Messages> {
    let plain = |looked_at, binary, body| Messages {
        body,
        looked_at,
        binary,
        when: None,
    };
    if matches!(&node.value, Value::Scalar(_)) {
        if !reading.decoder.boolean(node)? {
            reading
                .decoder
                .error(node.span, "a rule without `websocket` opens none")
                .help("take it out");
            return None;
        }
        return Some(plain(false, true, any_body(false)));
    }
    let mut keys = reading.decoder.fields(node, "`websocket`")?;
    let looks = ["fields", "strip", "schema", "when"];
    let looked_at = looks.into_iter().any(|name| keys.has(name));
    keys.take("when");
    let binary = keys.take("binary");
    let body = body_keys(reading, &mut keys);
    keys.finish(reading.decoder);
    let wanted = binary.map(|node| reading.decoder.boolean(node));
    if let (Some(node), Some(Some(true)), true) = (binary, wanted, looked_at) {
        reading
            .decoder
            .error(node.span, "messages that are looked at are text")
            .help("take out `binary: true`, or what looks at them");
    }
    let binary = wanted.flatten().unwrap_or(!looked_at);
    Some(plain(looked_at, binary && !looked_at, body?))
}

/// The condition on each message, where there is one.
pub(super) fn message_condition(node: &Node) -> Option<&Node> {
    let Value::Mapping(entries) = &node.value else {
        return None;
    };
    let when = entries.iter().find(|entry| &*entry.key.text == "when");
    when.map(|entry| &entry.value)
}

/// The names under `required`, each declared and not cut out.
fn required_fields<'n>(
    decoder: &mut Decoder,
    node: &'n Node,
    declared: Option<&Node>,
    strip: &[Pointer],
) -> Vec<&'n str> {
    let declared: Vec<&str> = match declared.map(|node| &node.value) {
        Some(Value::Mapping(entries)) => entries.iter().map(|entry| &*entry.key.text).collect(),
        Some(_) => return Vec::new(),
        None => {
            decoder
                .error(node.span, "`required` names members of `fields`")
                .help("add `fields`, or say it in a `schema`");
            return Vec::new();
        }
    };
    let mut names: Vec<&str> = Vec::new();
    for item in decoder.nonempty_list(node).unwrap_or_default() {
        let Some(name) = decoder.string(item) else {
            continue;
        };
        let cuts = |pointer: &&Pointer| match pointer.tokens() {
            [Token::Every] => true,
            [Token::Name(cut)] => crate::fold::same(cut, name),
            _ => false,
        };
        if names.contains(&name) {
            decoder.error(
                item.span,
                format!("{} stands twice in the list", quote(name)),
            );
        } else if !declared.contains(&name) {
            let near = nearest(name, declared.iter().copied());
            let remark = decoder.error(
                item.span,
                format!("`fields` does not declare {}", quote(name)),
            );
            if let Some(near) = near {
                remark.help(format!("did you mean {}?", quote(near)));
            }
        } else if let Some(pointer) = strip.iter().find(cuts) {
            let message = format!(
                "{} is required, and cut out by {}",
                quote(name),
                quote(pointer.as_str())
            );
            decoder.error(item.span, message);
        }
        names.push(name);
    }
    names
}

/// Where the required names stand among the fields, which are in order.
fn places(fields: Option<&[Field]>, names: Vec<&str>) -> Vec<usize> {
    let fields = fields.unwrap_or_default();
    let place = |name: &str| {
        fields
            .binary_search_by(|field| (*field.name).cmp(name))
            .ok()
    };
    let mut places: Vec<usize> = names.into_iter().filter_map(place).collect();
    places.sort_unstable();
    places
}

/// The pointers under `strip`.
fn strip_pointers(decoder: &mut Decoder, node: &Node) -> Vec<Pointer> {
    let pointers = pointers(decoder, node);
    for (pointer, span) in &pointers {
        if let Some(Token::Name(last)) = pointer.tokens().last()
            && (element_number(last).is_some() || &**last == "-")
        {
            decoder
                .error(
                    *span,
                    "one element of a list cannot be cut out: the next would take its place",
                )
                .help("write `*` to cut out all elements");
        }
    }
    pointers.into_iter().map(|(pointer, _)| pointer).collect()
}

/// The pointers under `redact`.
pub(super) fn redactor(decoder: &mut Decoder, node: &Node) -> Option<Redactor> {
    let pointers: Vec<Pointer> = pointers(decoder, node)
        .into_iter()
        .map(|(pointer, _)| pointer)
        .collect();
    Redactor::new(&pointers).ok()
}

fn pointers(decoder: &mut Decoder, node: &Node) -> Vec<(Pointer, Span)> {
    let items = decoder.nonempty_list(node).unwrap_or_default();
    if items.len() > Pointers::MOST {
        decoder.error(node.span, format!("more than {} pointers", Pointers::MOST));
        return Vec::new();
    }
    let mut pointers: Vec<(Pointer, Span)> = Vec::with_capacity(items.len());
    for item in items {
        let Some(text) = decoder.string(item) else {
            continue;
        };
        match Pointer::parse(text) {
            Err(message) => drop(decoder.error(item.span, message)),
            Ok(pointer) if pointers.iter().any(|(known, _)| *known == pointer) => {
                decoder.error(
                    item.span,
                    format!("{} stands twice in the list", quote(text)),
                );
            }
            Ok(pointer) => pointers.push((pointer, item.span)),
        }
    }
    pointers
}

fn compile_schema(decoder: &mut Decoder, node: &Node) -> Option<Schema> {
    let before = decoder.errors();
    let mut left = MAX_SCHEMA_NODES;
    let source = to_json(decoder, node, &mut left)?;
    if decoder.errors() > before {
        return None;
    }
    match Schema::compile(source) {
        Ok(schema) => Some(schema),
        Err(faults) => {
            for SchemaFault {
                pointer,
                key,
                message,
                help,
            } in faults
            {
                let remark = decoder.error(place_of(node, &pointer, key), message);
                if let Some(help) = help {
                    remark.help(help);
                }
            }
            None
        }
    }
}

/// Keys and values of a schema at most.
const MAX_SCHEMA_NODES: usize = 8_192;

/// What is written as JSON has it; a fault for what YAML and JSON could take differently.
fn to_json(decoder: &mut Decoder, node: &Node, left: &mut usize) -> Option<Json> {
    if *left == 0 {
        decoder.error(
            node.span,
            format!("the schema has more than {MAX_SCHEMA_NODES} values"),
        );
        return None;
    }
    *left -= 1;
    match &node.value {
        Value::Scalar(scalar) => {
            let value = scalar_to_json(scalar);
            if value.is_none() {
                let message = format!(
                    "{} is not a value that JSON writes like this",
                    quote(&scalar.text)
                );
                let remark = decoder.error(node.span, message);
                remark.help("quote it if it is meant as text");
            }
            value
        }
        Value::Sequence(items) => {
            let values = items.iter().map(|item| to_json(decoder, item, left));
            values.collect::<Option<Vec<Json>>>().map(Json::Array)
        }
        Value::Mapping(entries) => {
            let members = entries.iter().map(|Entry { key, value }| {
                Some((key.text.to_string(), to_json(decoder, value, left)?))
            });
            members.collect::<Option<_>>().map(Json::Object)
        }
    }
}

fn scalar_to_json(scalar: &Scalar) -> Option<Json> {
    let text = &*scalar.text;
    match (scalar.kind(), text) {
        ("a string", _) => Some(Json::String(text.to_owned())),
        ("nothing", "null") => Some(Json::Null),
        ("a boolean", "true") => Some(Json::Bool(true)),
        ("a boolean", "false") => Some(Json::Bool(false)),
        ("an integer" | "a number", _) => json_number(text).map(Json::Number),
        _ => None,
    }
}

/// Where a part of a schema stands, as near as it can be found.
fn place_of(node: &Node, pointer: &str, key: bool) -> Span {
    let (mut at, mut span) = (node, node.span);
    let tokens = pointer.split('/').skip(1);
    for token in tokens {
        let name = token.replace("~1", "/").replace("~0", "~");
        match &at.value {
            Value::Mapping(entries) => {
                let Some(entry) = entries.iter().find(|entry| *entry.key.text == *name) else {
                    break;
                };
                at = &entry.value;
                span = if key { entry.key.span } else { at.span };
            }
            Value::Sequence(items) => {
                let Some(item) = name.parse().ok().and_then(|index: usize| items.get(index)) else {
                    break;
                };
                at = item;
                span = at.span;
            }
            Value::Scalar(_) => break,
        }
    }
    span
}

/// Any JSON object or form: for rules that only look at it in another way. `payload` bodies, as prompts are,
/// are larger than most.
pub(super) fn any_body(payload: bool) -> BodySpec {
    BodySpec {
        fields: None,
        required: Vec::new(),
        extra: Extra::Deny,
        strip: Pointers::default(),
        schema: None,
        max: if payload { 1 << 20 } else { DEFAULT_BODY },
    }
}
