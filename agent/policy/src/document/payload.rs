//! The notation of rules for protocols that hide many operations behind one route.
use super::Reading;
use crate::payload::{
    Arguments, FieldPaths, Glob, Graphql, GrpcMethods, GrpcRoute, Listed, Llm, Mcp, Methods,
    OperationKind,
};
use crate::syntax::{Node, Value, nearest, quote};

#[cfg(test)]
pub(crate) mod tests;

/// Names of one list at most: more are a table, not a rule.
const MAX_NAMES: usize = 1_000;
/// Bytes of a name, path or URI at most.
const MAX_NAME: usize = 1_024;

/// The items of a list (empty where that says something), each a text of bounded length.
fn texts<'n>(
    reading: &mut Reading<'_>,
    node: &'n Node,
    empty: bool,
) -> Option<Vec<(&'n Node, &'n str)>> {
    let items = match empty {
        true => reading.decoder.list(node)?,
        false => reading.decoder.nonempty_list(node)?,
    };
    if items.len() > MAX_NAMES {
        let message = format!("more than {MAX_NAMES} names");
        reading.decoder.error(node.span, message);
        return None;
    }
    let mut texts: Vec<(&Node, &str)> = Vec::with_capacity(items.len());
    let mut good = true;
    for item in items {
        let Some(text) = reading.decoder.string(item) else {
            good = false;
            continue;
        };
        let problem = if text.is_empty() {
            Some("this is empty".to_owned())
        } else if text.len() > MAX_NAME {
            Some(format!("this is longer than {MAX_NAME} bytes"))
        } else if text.chars().any(char::is_control) {
            Some("this has a control character".to_owned())
        } else if texts.iter().any(|(_, known)| *known == text) {
            Some(format!("{} stands twice in the list", quote(text)))
        } else {
            None
        };
        match problem {
            Some(problem) => {
                reading.decoder.error(item.span, problem);
                good = false;
            }
            None => texts.push((item, text)),
        }
    }
    good.then_some(texts)
}

/// Names, of which a trailing `*` makes beginnings of names.
fn globs(reading: &mut Reading<'_>, node: &Node, empty: bool) -> Option<Vec<Glob>> {
    let texts = texts(reading, node, empty)?;
    let mut globs = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        match Glob::parse(text) {
            Some(glob) => globs.push(glob),
            None => {
                reading
                    .decoder
                    .error(
                        item.span,
                        format!("{} has a `*` that is not its last character", quote(text)),
                    )
                    .help("`*` stands for any rest, and only at the end");
                return None;
            }
        }
    }
    Some(globs)
}

/// `graphql: { query: [viewer, repository.issues], mutation: [addComment], depth: 8 }`.
pub(super) fn graphql(reading: &mut Reading<'_>, node: &Node) -> Option<Graphql> {
    let mut fields = reading.decoder.fields(node, "`graphql`")?;
    let lists = OperationKind::ALL.map(|kind| (kind, fields.take(kind.name())));
    let depth = fields.take("depth");
    let introspection = fields.take("introspection");
    let span = fields.span();
    fields.finish(reading.decoder);
    let mut paths = FieldPaths::default();
    let mut good = true;
    for (kind, list) in lists {
        if let Some(list) = list {
            good &= field_paths(reading, kind, list, &mut paths).is_some();
        }
    }
    let depth = match depth {
        Some(node) => reading.decoder.integer(node, 1..=Graphql::MAX_DEPTH)?,
        None => Graphql::DEFAULT_DEPTH,
    };
    let introspection = match introspection {
        Some(node) => reading.decoder.boolean(node)?,
        None => false,
    };
    if lists.iter().all(|(_, list)| list.is_none()) {
        if !introspection {
            reading
                .decoder
                .error(span, "`graphql` allows nothing")
                .help(
                    "name the fields that are allowed, e.g. `query: [viewer, repository.issues]`",
                );
            return None;
        }
        paths.open(OperationKind::Query);
    }
    good.then(|| Graphql::new(paths, depth, introspection))
}

fn field_paths(
    reading: &mut Reading<'_>,
    kind: OperationKind,
    list: &Node,
    paths: &mut FieldPaths,
) -> Option<()> {
    let texts = texts(reading, list, false)?;
    if let Some((item, _)) = texts.iter().find(|(_, text)| *text == "*") {
        if texts.len() > 1 {
            reading.decoder.warning(
                item.span,
                format!(
                    "`*` allows every {}: the other fields say nothing more",
                    kind.name()
                ),
            );
        }
        paths.open_all(kind);
    }
    let mut good = true;
    for (item, text) in texts.iter().filter(|(_, text)| *text != "*") {
        let Some(path) = field_path(reading, item, text) else {
            good = false;
            continue;
        };
        let all = texts.iter().any(|(_, text)| *text == "*");
        let message = match paths.add(kind, &path) {
            Listed::Covered if !all => "is allowed already by a shorter path in the list",
            Listed::Covers => "allows more than longer paths that stand before it",
            Listed::New | Listed::Covered => continue,
        };
        let message = format!("{} {message}", quote(text));
        reading
            .decoder
            .warning(item.span, message)
            .help("a path allows its field and everything below: keep the one that is meant");
    }
    good.then_some(())
}

/// Names joined by dots, e.g. `repository.issues`.
fn field_path<'t>(reading: &mut Reading<'_>, item: &Node, text: &'t str) -> Option<Vec<&'t str>> {
    let path: Vec<&str> = text.split('.').collect();
    let most = usize::try_from(Graphql::MAX_DEPTH).unwrap_or(usize::MAX);
    let (problem, help) = if path.contains(&"*") {
        (
            "has a `*` within a path",
            "a path allows everything below its last field; `*` alone allows every field but introspection",
        )
    } else if !path.iter().all(|name| is_identifier(name)) {
        (
            "is not a path of field names",
            "write real names (not aliases) joined by dots, e.g. `repository.issues`",
        )
    } else if path.iter().any(|name| name.starts_with("__")) {
        (
            "belongs to the schema",
            "allow `__schema` and `__type` with `introspection: true`; `__typename` always passes",
        )
    } else if path.len() > most {
        ("is longer than fields can be nested", "the limit is 64")
    } else {
        return Some(path);
    };
    let message = format!("{} {problem}", quote(text));
    reading.decoder.error(item.span, message).help(help);
    None
}

/// A name of GraphQL or of Protocol Buffers.
fn is_identifier(text: &str) -> bool {
    text.starts_with(|first: char| first.is_ascii_alphabetic() || first == '_')
        && text
            .bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
}

/// `mcp: { methods: [initialize, notifications/*], tools: { search: { q: string }, get_issue: any } }`.
pub(super) fn mcp(reading: &mut Reading<'_>, node: &Node) -> Option<Mcp> {
    let mut fields = reading.decoder.fields(node, "`mcp`")?;
    let methods = fields.take("methods");
    let tools = fields.take("tools");
    let prompts = fields.take("prompts");
    let resources = fields.take("resources");
    let replies = fields.take("replies");
    let span = fields.span();
    fields.finish(reading.decoder);
    let declared = |key: &str| match key {
        "tools" => tools.is_some(),
        "prompts" => prompts.is_some(),
        _ => resources.is_some(),
    };
    if [methods, tools, prompts, resources, replies]
        .iter()
        .all(Option::is_none)
    {
        reading
            .decoder
            .error(span, "`mcp` allows nothing")
            .help("e.g. `methods: [initialize, notifications/*, tools/list]` and `tools: { search: { q: string } }`");
        return None;
    }
    // Each is read before any is given up, so that all faults are found.
    let methods = methods.map(|node| self::methods(reading, node, &declared));
    let tools = tools.map(|node| self::tools(reading, node));
    let prompts = prompts.map(|node| self::prompts(reading, node));
    let resources = resources.map(|node| self::resources(reading, node));
    let replies = replies.map(|node| reading.decoder.boolean(node));
    Some(Mcp {
        methods: or_default(methods)?,
        tools: or_default(tools)?,
        prompts: or_default(prompts)?,
        resources: or_default(resources)?,
        replies: or_default(replies)?,
    })
}

/// What a key says: nothing where it is absent, `None` where it is wrong.
fn or_default<T: Default>(read: Option<Option<T>>) -> Option<T> {
    match read {
        None => Some(T::default()),
        Some(read) => read,
    }
}

fn methods(
    reading: &mut Reading<'_>,
    node: &Node,
    declared: &dyn Fn(&str) -> bool,
) -> Option<Methods> {
    let mut methods = Methods::default();
    let mut good = true;
    for (item, text) in texts(reading, node, false)? {
        let family = text.strip_suffix("/*");
        let allowed = |byte: u8| byte.is_ascii_alphanumeric() || b"_-./$".contains(&byte);
        if !family.unwrap_or(text).bytes().all(allowed) || family == Some("") {
            reading
                .decoder
                .error(item.span, format!("{} is not a method", quote(text)))
                .help("write a method such as `tools/list`, or a family such as `notifications/*`");
            good = false;
            continue;
        }
        warn_of_method(reading, item, text, declared);
        methods.0.push(match family {
            Some(_) => Glob::Prefix(text.trim_end_matches('*').into()),
            None => Glob::Exact(text.into()),
        });
    }
    good.then_some(methods)
}

/// Methods that say less, or more, than they seem to.
fn warn_of_method(
    reading: &mut Reading<'_>,
    item: &Node,
    text: &str,
    declared: &dyn Fn(&str) -> bool,
) {
    if let Some(key) = Methods::own_key(text) {
        let message = match declared(key) {
            true => format!(
                "{} allows any of them: `{key}` is without effect on it",
                quote(text)
            ),
            false => format!("{} allows any of the server's {key}", quote(text)),
        };
        let help = format!("remove it, and say in `{key}` which ones are allowed");
        reading.decoder.warning(item.span, message).help(help);
        return;
    }
    let family = text.strip_suffix('*');
    let reaches = |known: &&str| family.map_or(*known == text, |family| known.starts_with(family));
    let mut reached = Methods::KNOWN
        .iter()
        .filter(|known| reaches(known))
        .peekable();
    if reached.peek().is_none() {
        let near = nearest(text, Methods::KNOWN).map(|near| format!("did you mean `{near}`?"));
        let message = format!("{} is not a method of the protocol", quote(text));
        let help = near.unwrap_or_else(|| "it matches only a server that knows it".to_owned());
        reading.decoder.warning(item.span, message).help(help);
        return;
    }
    if let (Some(_), Some(own)) = (
        family,
        reached.find(|known| Methods::own_key(known).is_some()),
    ) {
        let key = Methods::own_key(own).unwrap_or_default();
        if !declared(key) {
            let message = format!("{} does not reach `{own}`", quote(text));
            let help = format!("say in `{key}` which ones are allowed");
            reading.decoder.warning(item.span, message).help(help);
        }
    }
}

fn tools(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<(Box<str>, Arguments)>> {
    if let Value::Sequence(_) = node.value {
        reading
            .decoder
            .expected(node, "a mapping of tools to their arguments")
            .help(
                "e.g. `tools: { search: { q: string }, get_issue: any }`; `any` is any arguments",
            );
        return None;
    }
    let entries = reading.decoder.mapping(node)?;
    if entries.is_empty() {
        reading
            .decoder
            .error(node.span, "`tools` names no tool")
            .help("name at least one, or remove the key");
        return None;
    }
    if entries.len() > MAX_NAMES {
        let message = format!("more than {MAX_NAMES} names");
        reading.decoder.error(node.span, message);
        return None;
    }
    let mut tools = Vec::with_capacity(entries.len());
    let mut good = true;
    for entry in entries {
        let name = &entry.key.text;
        if name.is_empty()
            || name.len() > MAX_NAME
            || name.contains('*')
            || name.chars().any(char::is_control)
        {
            reading
                .decoder
                .error(
                    entry.key.span,
                    format!("{} is not a tool's name", quote(name)),
                )
                .help("tools are named one by one, exactly as the server lists them");
            good = false;
        }
        match arguments(reading, &entry.value) {
            Some(arguments) => tools.push((name.clone(), arguments)),
            None => good = false,
        }
    }
    good.then_some(tools)
}

fn arguments(reading: &mut Reading<'_>, node: &Node) -> Option<Arguments> {
    match &node.value {
        Value::Scalar(scalar) if &*scalar.text == "any" => Some(Arguments::Any),
        Value::Mapping(entries) => {
            let fields = super::shape::object(reading, node);
            // A field whose shape is wrong left a fault and is not among them.
            (fields.len() == entries.len()).then_some(Arguments::Fields(fields))
        }
        _ => {
            reading
                .decoder
                .expected(node, "the tool's arguments, or `any`")
                .help("e.g. `{ q: string, limit: 1..10 }`; `{}` is a call without arguments");
            None
        }
    }
}

fn prompts(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<Box<str>>> {
    let texts = texts(reading, node, false)?;
    if let Some((item, text)) = texts.iter().find(|(_, text)| text.contains('*')) {
        reading
            .decoder
            .error(item.span, format!("{} is not a prompt's name", quote(text)))
            .help("prompts are named one by one, exactly as the server lists them");
        return None;
    }
    Some(texts.into_iter().map(|(_, text)| text.into()).collect())
}

fn resources(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<Glob>> {
    let texts = texts(reading, node, false)?;
    let mut globs = Vec::with_capacity(texts.len());
    for (item, text) in texts {
        let glob = Glob::parse(text);
        let scheme = text.split_once(':').is_some_and(|(scheme, _)| {
            scheme.starts_with(|first: char| first.is_ascii_alphabetic())
                && scheme
                    .bytes()
                    .all(|byte| byte.is_ascii_alphanumeric() || b"+-.".contains(&byte))
        });
        let open_host = match &glob {
            Some(Glob::Prefix(prefix)) => prefix
                .split_once("://")
                .is_some_and(|(_, rest)| !rest.is_empty() && !rest.contains('/')),
            _ => false,
        };
        let problem = match (&glob, scheme) {
            (None, _) => Some((
                "has a `*` that is not its last character",
                "`*` stands for any rest, and only at the end",
            )),
            (_, false) => Some((
                "does not begin with a scheme",
                "write URIs as the server lists them, e.g. `file:///docs/*`",
            )),
            _ if open_host => Some((
                "ends within the host",
                "close the host with `/`, or other hosts match too: `https://docs.example/*`",
            )),
            _ => None,
        };
        match (problem, glob) {
            (None, Some(glob)) => globs.push(glob),
            (problem, _) => {
                let (problem, help) = problem.unwrap_or_default();
                let message = format!("{} {problem}", quote(text));
                reading.decoder.error(item.span, message).help(help);
                return None;
            }
        }
    }
    Some(globs)
}

/// `llm: { models: [gpt-4o-mini, "claude-3-*"], max_tokens: 4096, tools: [search] }`.
pub(super) fn llm(reading: &mut Reading<'_>, node: &Node) -> Option<Llm> {
    let mut fields = reading.decoder.fields(node, "`llm`")?;
    let models = fields.take("models");
    let max_tokens = fields.take("max_tokens");
    let choices = fields.take("choices");
    let tools = fields.take("tools");
    let stream = fields.take("stream");
    let span = fields.span();
    fields.finish(reading.decoder);
    if [models, max_tokens, choices, tools, stream]
        .iter()
        .all(Option::is_none)
    {
        reading
            .decoder
            .error(span, "`llm` says nothing")
            .help("e.g. `models: [gpt-4o-mini]`, `max_tokens: 4096`, `tools: []`");
        return None;
    }
    let models = models.map(|node| globs(reading, node, false));
    let max_tokens = max_tokens.map(|node| reading.decoder.integer(node, 1..=100_000_000_u64));
    let choices = choices.map(|node| reading.decoder.integer(node, 1..=1_000_u64));
    let tools = tools.map(|node| globs(reading, node, true));
    let stream = stream.map(|node| reading.decoder.boolean(node));
    Some(Llm {
        models: as_read(models)?,
        max_tokens: as_read(max_tokens)?,
        choices: as_read(choices)?,
        tools: as_read(tools)?,
        stream: as_read(stream)?,
    })
}

/// `Some(None)` where a key is absent, `None` where it is wrong.
#[expect(clippy::option_option, reason = "absent and wrong are two things")]
fn as_read<T>(read: Option<Option<T>>) -> Option<Option<T>> {
    match read {
        None => Some(None),
        Some(read) => read.map(Some),
    }
}

/// `grpc: acme.v1.Ledger/Get|List`, or a list of such.
pub(super) fn grpc(reading: &mut Reading<'_>, node: &Node) -> Option<Vec<GrpcRoute>> {
    let items = reading.decoder.one_or_many(node)?;
    if items.len() > MAX_NAMES {
        let message = format!("more than {MAX_NAMES} services");
        reading.decoder.error(node.span, message);
        return None;
    }
    let mut routes: Vec<GrpcRoute> = Vec::with_capacity(items.len());
    let mut good = true;
    for item in items {
        match grpc_route(reading, item) {
            Some(route) if routes.iter().any(|known| known.service == route.service) => {
                let message = format!("{} stands twice in the list", quote(&route.service));
                reading
                    .decoder
                    .error(item.span, message)
                    .help("join its methods with `|`");
                good = false;
            }
            Some(route) => routes.push(route),
            None => good = false,
        }
    }
    good.then_some(routes)
}

fn grpc_route(reading: &mut Reading<'_>, node: &Node) -> Option<GrpcRoute> {
    let text = reading.decoder.string(node)?;
    let help = "write `package.Service/Method`, `package.Service/Get|List` or `package.Service/*`";
    let mut refuse = |message: String, help: &str| {
        reading.decoder.error(node.span, message).help(help);
        None
    };
    if text.len() > 4_096 {
        return refuse("this is longer than 4096 bytes".to_owned(), help);
    }
    let Some((service, methods)) = text.split_once('/') else {
        if text.ends_with('*') {
            return refuse(
                format!("{} names no service", quote(text)),
                "name each service: a new one in the package is granted by nobody then; `[acme.v1.Ledger/*, acme.v1.Audit/*]`",
            );
        }
        return refuse(format!("{} names no method", quote(text)), help);
    };
    if service.is_empty() || !service.split('.').all(is_identifier) {
        return refuse(format!("{} is not a service's name", quote(service)), help);
    }
    if methods == "*" {
        return Some(GrpcRoute {
            service: service.into(),
            methods: GrpcMethods::Any,
        });
    }
    let mut these: Vec<Box<str>> = Vec::new();
    for method in methods.split('|') {
        if !is_identifier(method) {
            return refuse(format!("{} is not a method's name", quote(method)), help);
        }
        if these.iter().any(|known| **known == *method) {
            return refuse(format!("{} stands twice", quote(method)), help);
        }
        these.push(method.into());
    }
    Some(GrpcRoute {
        service: service.into(),
        methods: GrpcMethods::These(these),
    })
}
