use super::*;
use serde_json::Map;

const NAMES: [&str; 7] = ["a", "b", "c", "*", "0", "~", "x/y"];

fn value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(json!(null)),
        Just(json!(1)),
        Just(json!(-2.5)),
        Just(json!("té\"\\\u{1}")),
        Just(json!(true)),
    ];
    leaf.prop_recursive(4, 40, 5, |inner| {
        prop_oneof![
            proptest::collection::vec(inner.clone(), 0..4).prop_map(Value::Array),
            proptest::collection::btree_map(prop::sample::select(&NAMES[..]), inner, 0..5)
                .prop_map(|members| members
                    .into_iter()
                    .map(|(k, v)| (k.to_owned(), v))
                    .collect())
                .prop_map(Value::Object),
        ]
    })
}

/// Writes a value with blanks, escapes and an order of members that the seed chooses.
struct Writer(u64);

impl Writer {
    fn next(&mut self, below: u64) -> u64 {
        self.0 = self
            .0
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1);
        (self.0 >> 33) % below
    }

    fn space(&mut self) -> &'static str {
        ["", "", "", " ", "\n", "\t "][usize::try_from(self.next(6)).unwrap()]
    }

    fn string(&mut self, text: &str) -> String {
        let plain = json!(text).to_string();
        match (self.next(3), text.chars().next()) {
            (0, Some(first)) if u32::from(first) < 0x80 => {
                let rest = json!(text[1..]).to_string();
                format!("\"\\u{:04x}{}", u32::from(first), &rest[1..])
            }
            _ => plain,
        }
    }

    fn write(&mut self, value: &Value) -> String {
        let text = match value {
            Value::Array(items) => {
                let items: Vec<String> = items.iter().map(|item| self.write(item)).collect();
                format!("[{}{}]", items.join(","), self.space())
            }
            Value::Object(members) => {
                let mut all: Vec<String> = Vec::new();
                for (name, value) in members {
                    let (name, value) = (self.string(name), self.write(value));
                    let member = format!("{}{name}{}:{value}", self.space(), self.space());
                    let at = self.next(u64::try_from(all.len()).unwrap() + 1);
                    all.insert(usize::try_from(at).unwrap(), member);
                }
                format!("{{{}{}}}", all.join(","), self.space())
            }
            Value::String(text) => self.string(text),
            other => other.to_string(),
        };
        format!("{}{text}{}", self.space(), self.space())
    }
}

fn pointers() -> impl Strategy<Value = Vec<Pointer>> {
    let token = prop::sample::select(&["a", "b", "c", "*", "*", "0", "~0", "x~1y"][..]);
    let tokens = proptest::collection::vec(token, 1..4);
    let pointer =
        tokens.prop_map(|tokens| Pointer::parse(&format!("/{}", tokens.join("/"))).unwrap());
    proptest::collection::vec(pointer, 0..5)
}

/// The pointers that go on below a member or an element, and whether one ends there.
fn step<'p>(pointers: &[&'p [Token]], name: &str, element: bool) -> (bool, Vec<&'p [Token]>) {
    let taken = |token: &Token| match token {
        Token::Every => true,
        Token::Name(token) => {
            **token == *name && (!element || name == "0" || !name.starts_with('0'))
        }
    };
    let below: Vec<&[Token]> = pointers
        .iter()
        .filter(|pointer| pointer.first().is_some_and(taken))
        .map(|pointer| &pointer[1..])
        .collect();
    (below.iter().any(|pointer| pointer.is_empty()), below)
}

/// Does something to the value at each pointer: `None` removes it.
fn apply(
    value: &Value,
    pointers: &[&[Token]],
    to: &mut dyn FnMut(&Value) -> Option<Value>,
) -> Value {
    let mut one = |name: &str, element: bool, value: &Value| match step(pointers, name, element) {
        (true, _) => to(value),
        (false, below) => Some(apply(value, &below, to)),
    };
    match value {
        Value::Array(items) => {
            let items = items.iter().enumerate();
            Value::Array(
                items
                    .filter_map(|(index, item)| one(&index.to_string(), true, item))
                    .collect(),
            )
        }
        Value::Object(members) => {
            let kept: Map<String, Value> = members
                .iter()
                .filter_map(|(name, value)| Some((name.clone(), one(name, false, value)?)))
                .collect();
            Value::Object(kept)
        }
        other => other.clone(),
    }
}

fn tokens(pointers: &[Pointer]) -> Vec<&[Token]> {
    pointers.iter().map(Pointer::tokens).collect()
}

/// Whether `part` is `whole` with bytes left out.
fn is_part(part: &str, whole: &str) -> bool {
    let mut whole = whole.bytes();
    part.bytes().all(|byte| whole.any(|other| other == byte))
}

fn stripping(pointers: &[Pointer]) -> BodySpec {
    BodySpec {
        strip: Pointers::new(pointers).unwrap(),
        ..spec("{ max: 1MiB }")
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1_000, ..ProptestConfig::default() })]

    #[test]
    fn what_is_cut_is_what_the_pointers_say(value in value(), seed: u64, pointers in pointers()) {
        // A document may not name an element to be cut.
        let numbered = |pointer: &Pointer| matches!(pointer.tokens().last(), Some(Token::Name(name)) if &**name == "0");
        let pointers: Vec<Pointer> = pointers.into_iter().filter(|pointer| !numbered(pointer)).collect();
        let body = Writer(seed).write(&value);
        let spec = stripping(&pointers);
        let (text, stripped) = sent(&spec, Media::Json, &body).unwrap();
        let expected = apply(&value, &tokens(&pointers), &mut |_| None);
        prop_assert_eq!(serde_json::from_str::<Value>(&text).unwrap(), expected.clone(), "{} {:?}", body, pointers);
        prop_assert_eq!(text == body, stripped.is_empty());
        prop_assert_eq!(expected == value, stripped.is_empty());
        prop_assert!(is_part(&text, &body));
        prop_assert_eq!(sent(&spec, Media::Json, &text), Ok((text, Vec::new())));
        prop_assert_eq!(tree(body.as_bytes()).unwrap(), value);
    }

    #[test]
    fn what_is_redacted_is_what_the_pointers_say(value in value(), seed: u64, pointers in pointers()) {
        let body = Writer(seed).write(&value);
        let redacted = redact(body.as_bytes(), &pointers).unwrap();
        let mut count = 0;
        let expected = apply(&value, &tokens(&pointers), &mut |value| {
            count += 1;
            Some(if value.is_string() { json!("[redacted]") } else { json!(null) })
        });
        prop_assert_eq!(redacted.count, count);
        prop_assert_eq!(redacted.body.is_some(), count > 0);
        let text = redacted.body.unwrap_or_else(|| body.clone().into_bytes());
        prop_assert_eq!(serde_json::from_slice::<Value>(&text).unwrap(), expected);
        let again = redact(&text, &pointers).unwrap();
        prop_assert_eq!(again.body.unwrap_or_else(|| text.clone()), text);
        prop_assert_eq!(again.count, count);
    }

    #[test]
    fn undeclared_members_are_cut(value in value(), seed: u64, pointers in pointers()) {
        let numbered = |pointer: &Pointer| matches!(pointer.tokens().last(), Some(Token::Name(name)) if &**name == "0");
        let pointers: Vec<Pointer> = pointers.into_iter().filter(|pointer| !numbered(pointer)).collect();
        let declared = "{ a: any, b: { a: any, b: { c: any } }, c: [{ a: any }], '*': any }";
        let strict = BodySpec {
            strip: Pointers::new(&pointers).unwrap(),
            ..spec(&format!("{{ fields: {declared} }}"))
        };
        let lax = BodySpec {
            strip: Pointers::new(&pointers).unwrap(),
            ..spec(&format!("{{ fields: {declared}, extra: strip }}"))
        };
        let body = Writer(seed).write(&value);
        if let Ok((text, _)) = sent(&lax, Media::Json, &body) {
            prop_assert!(is_part(&text, &body));
            // What is left has nothing undeclared, and is taken where it would be denied.
            prop_assert_eq!(sent(&lax, Media::Json, &text), Ok((text.clone(), Vec::new())));
            prop_assert_eq!(sent(&strict, Media::Json, &text), Ok((text, Vec::new())));
        }
        if let Ok(done) = sent(&strict, Media::Json, &body) {
            prop_assert_eq!(sent(&lax, Media::Json, &body), Ok(done));
        }
    }

    #[test]
    fn forms_are_cut_to_what_is_declared(body in "([abx]|%61|%6)?(=([0-9]|%3[0-9]|[+]|z)?)?(&([abx]|%62)?=?[0-9]?){0,6}") {
        let spec = spec("{ fields: { a: [any], b: int }, extra: strip, strip: [/y] }");
        if let Ok((text, _)) = sent(&spec, Media::Form, &body) {
            prop_assert!(is_part(&text, &body));
            prop_assert_eq!(sent(&spec, Media::Form, &text), Ok((text.clone(), Vec::new())));
            let mut left = spec.tree(Media::Form, body.as_bytes()).unwrap();
            left.as_object_mut().unwrap().retain(|name, _| name == "a" || name == "b");
            prop_assert_eq!(spec.tree(Media::Form, text.as_bytes()).unwrap(), left);
        }
    }

    #[test]
    fn any_bytes_are_taken_or_refused(bytes in any::<Vec<u8>>(), text in "[\\[\\]{},:\"\\\\au0 -]{0,32}", pointers in pointers()) {
        for body in [&bytes[..], text.as_bytes()] {
            let spec = stripping(&pointers);
            for media in [Media::Json, Media::Form] {
                let _ = spec.check(media, body);
                let _ = spec.tree(media, body);
            }
            let _ = redact(body, &pointers);
        }
    }

    #[test]
    fn any_text_is_a_pointer_or_none(text in "[/~01*a-]{0,12}|.{0,20}") {
        if let Ok(pointer) = Pointer::parse(&text) {
            prop_assert_eq!(pointer.to_string(), text);
        }
    }
}
