//! Reading a file of cases: with the reader of policies, so that its faults are as good.
use super::call::Call;
use super::cases::{Case, CaseBody, Expect, Suite};
use crate::model::{Mode, Verdict};
use crate::shape::is_json_number;
use crate::syntax::{Decoder, Faults, Node, Source, Value, quote};

/// Cases in one file at most.
const MAX_CASES: usize = 10_000;
/// Results do not depend on the day: 2026-01-01.
const DEFAULT_NOW: i64 = 1_767_225_600;

pub(super) fn suite(source: &Source) -> Result<Suite, Faults> {
    let mut decoder = Decoder::new();
    let suite = decoder
        .parse(source)
        .and_then(|root| read(&mut decoder, &root));
    let faults = decoder.finish()?;
    // Without a fault there is a suite.
    suite.ok_or(faults)
}

fn read(decoder: &mut Decoder, root: &Node) -> Option<Suite> {
    let mut fields = decoder.fields(root, "the file of cases")?;
    let (policy, now) = (fields.take("policy"), fields.take("now"));
    let cases = fields.require(decoder, "cases");
    fields.finish(decoder);
    let policy = policy
        .and_then(|node| decoder.one_or_many(node))
        .unwrap_or_default()
        .iter()
        .filter_map(|node| relative(decoder, node))
        .collect();
    let now = match now {
        Some(node) => decoder.parsed(node, "a time such as `2026-06-01T00:00:00Z`", |text| {
            let time: jiff::Timestamp = text.parse().ok()?;
            Some(time.as_second())
        })?,
        None => DEFAULT_NOW,
    };
    let items = decoder.nonempty_list(cases?)?;
    if items.len() > MAX_CASES {
        decoder.error(
            root.span,
            format!("more than {MAX_CASES} cases in one file"),
        );
        return None;
    }
    let cases = items
        .iter()
        .filter_map(|item| case(decoder, item))
        .collect();
    Some(Suite { policy, now, cases })
}

/// A file beside this one or below: a file of cases reads nothing else.
fn relative(decoder: &mut Decoder, node: &Node) -> Option<String> {
    let text = decoder.string(node)?;
    let good = !text.is_empty()
        && text.len() <= 1_024
        && !text.starts_with('/')
        && !text.contains('\0')
        && text.split('/').all(|part| part != "..");
    if !good {
        decoder
            .error(
                node.span,
                format!("{} is no file beside this one", quote(text)),
            )
            .help("write a path relative to this file, without `..`; `--policy` takes any");
        return None;
    }
    Some(text.to_owned())
}

fn case(decoder: &mut Decoder, node: &Node) -> Option<Case> {
    let mut fields = decoder.fields(node, "the case")?;
    let (name, workload) = (fields.take("name"), fields.require(decoder, "workload"));
    let (identity, request) = (fields.take("identity"), fields.require(decoder, "request"));
    let headers = fields.take("headers");
    let bodies = ["body", "json", "file"].map(|key| fields.take_entry(key));
    let expect = fields.require(decoder, "expect");
    let at = decoder.location(node.span);
    fields.finish(decoder);
    let mut given = bodies.iter().flatten();
    if let (Some(_), Some(second)) = (given.next(), given.next()) {
        decoder.error(
            second.key.span,
            "a case has one of `body`, `json` and `file`",
        );
    }
    let mut headers = headers.map_or_else(Vec::new, |node| header_fields(decoder, node));
    let [body, json, file] = bodies.map(|entry| entry.map(|entry| &entry.value));
    let mut body = body
        .and_then(|node| decoder.string(node))
        .map(|text| CaseBody::Text(text.to_owned()));
    if let Some(node) = json {
        let mut text = String::new();
        write_json(decoder, node, &mut text);
        body = Some(CaseBody::Text(text));
        if !headers.iter().any(|(name, _)| name == "content-type") {
            headers.push(("content-type".into(), "application/json".into()));
        }
    }
    if let Some(node) = file {
        body = relative(decoder, node).map(CaseBody::File);
    }
    let call = request.and_then(|node| {
        let text = decoder.string(node)?;
        match Call::parse(text) {
            Ok(call) => Some(Call { headers, ..call }),
            Err(error) => {
                decoder.error(node.span, error.to_string());
                None
            }
        }
    });
    let name = match name {
        Some(node) => decoder.string(node)?.to_owned(),
        None => decoder.string(request?)?.to_owned(),
    };
    let identity = match identity {
        Some(node) => Some(decoder.string(node)?.to_owned()),
        None => None,
    };
    let workload = workload.and_then(|node| decoder.string(node))?.to_owned();
    Some(Case {
        name,
        at,
        workload,
        identity,
        call: call?,
        body: body.unwrap_or(CaseBody::None),
        expect: expect.and_then(|node| expectation(decoder, node))?,
    })
}

fn header_fields(decoder: &mut Decoder, node: &Node) -> Vec<(String, String)> {
    let entries = decoder.mapping(node).unwrap_or_default();
    let mut headers = Vec::new();
    for entry in entries {
        let name = entry.key.text.to_ascii_lowercase();
        if !crate::headers::is_lower_token(&name) {
            decoder.error(
                entry.key.span,
                format!("{} is not a header's name", quote(&name)),
            );
        }
        for value in decoder.one_or_many(&entry.value).unwrap_or_default() {
            if let Some(scalar) = decoder.scalar(value, "the header's value") {
                headers.push((name.clone(), scalar.text.to_string()));
            }
        }
    }
    headers
}

const VERDICTS: [(&str, Verdict); 2] = [("allow", Verdict::Allow), ("deny", Verdict::Deny)];

/// A word, or a mapping with more.
fn expectation(decoder: &mut Decoder, node: &Node) -> Option<Expect> {
    if !matches!(node.value, Value::Mapping(_)) {
        return Some(Expect {
            verdict: decoder.word(node, &VERDICTS)?,
            code: None,
            rule: None,
            mode: None,
            stripped: None,
            credential: None,
        });
    }
    let mut fields = decoder.fields(node, "the expectation")?;
    let verdict = fields.require(decoder, "verdict");
    let texts = ["code", "rule", "credential"].map(|key| fields.take(key));
    let (mode, stripped) = (fields.take("mode"), fields.take("stripped"));
    fields.finish(decoder);
    let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
    let verdict = verdict.and_then(|node| decoder.word(node, &VERDICTS));
    let mode = mode.and_then(|node| decoder.word(node, &modes));
    let [code, rule, credential] = texts.map(|node| {
        node.and_then(|node| decoder.string(node))
            .map(str::to_owned)
    });
    let stripped = stripped.and_then(|node| decoder.list(node)).map(|items| {
        let mut names: Vec<String> = items
            .iter()
            .filter_map(|item| decoder.string(item))
            .map(str::to_owned)
            .collect();
        names.sort_unstable();
        names
    });
    Some(Expect {
        verdict: verdict?,
        code,
        rule,
        mode,
        stripped,
        credential,
    })
}

/// Appends a node as JSON; what JSON would write in another way is a fault.
fn write_json(decoder: &mut Decoder, node: &Node, text: &mut String) {
    match &node.value {
        Value::Scalar(scalar) => match (scalar.kind(), &*scalar.text) {
            ("a string", string) => text.push_str(&serde_json::Value::from(string).to_string()),
            ("nothing", _) => text.push_str("null"),
            (_, "true" | "false") => text.push_str(&scalar.text),
            (_, number) if is_json_number(number) => text.push_str(number),
            (_, other) => {
                decoder
                    .error(node.span, format!("{} is no JSON value", quote(other)))
                    .help("write it as JSON does, or quote it if it is meant as text");
            }
        },
        Value::Sequence(items) => {
            text.push('[');
            for (index, item) in items.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                write_json(decoder, item, text);
            }
            text.push(']');
        }
        Value::Mapping(entries) => {
            text.push('{');
            for (index, entry) in entries.iter().enumerate() {
                text.push_str(if index > 0 { "," } else { "" });
                text.push_str(&serde_json::Value::from(&*entry.key.text).to_string());
                text.push(':');
                write_json(decoder, &entry.value, text);
            }
            text.push('}');
        }
    }
}
