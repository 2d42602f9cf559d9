//! A policy as data: small enough to be made by chance, taken apart and printed.
//!
//! Everything refers to everything else by name, so that parts can be dropped, shuffled and renamed. A
//! text inside a role may hold `${name}`.
use crate::meaning::{CONDITIONS, PATTERNS};

#[derive(Debug, Clone, Default)]
pub(crate) struct Model {
    pub(crate) workloads: Vec<String>,
    pub(crate) identities: Vec<String>,
    pub(crate) groups: Vec<(String, Vec<String>)>,
    pub(crate) apis: Vec<Api>,
    pub(crate) credentials: Vec<Credential>,
    pub(crate) roles: Vec<Role>,
    pub(crate) grants: Vec<Grant>,
}

#[derive(Debug, Clone)]
pub(crate) struct Api {
    pub(crate) name: String,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone)]
pub(crate) enum Kind {
    /// Hosts as written, and the port.
    Hosts(Vec<String>, u16),
    Sni(Vec<String>, u16),
    /// First address of the range, bits of its prefix, port.
    Tcp(Vec<(std::net::IpAddr, u8, u16)>),
}

impl Api {
    pub(crate) fn is_inspected(&self) -> bool {
        matches!(self.kind, Kind::Hosts(..))
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Credential {
    pub(crate) name: String,
    pub(crate) header: String,
    pub(crate) to: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Role {
    pub(crate) name: String,
    pub(crate) parameters: Vec<String>,
    pub(crate) items: Vec<Item>,
}

#[derive(Debug, Clone)]
pub(crate) enum Item {
    Include(RoleUse),
    Entry(Entry),
}

/// A role with its arguments.
#[derive(Debug, Clone)]
pub(crate) struct RoleUse {
    pub(crate) name: String,
    pub(crate) arguments: Vec<(String, String)>,
}

impl std::fmt::Display for RoleUse {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let mut arguments = self.arguments.clone();
        arguments.sort();
        let arguments: Vec<String> = arguments
            .iter()
            .map(|(name, value)| format!("{name}: {value}"))
            .collect();
        match arguments.is_empty() {
            true => f.write_str(&self.name),
            false => write!(f, "{}({})", self.name, arguments.join(", ")),
        }
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Entry {
    pub(crate) api: String,
    pub(crate) credential: Carries,
    pub(crate) allow: Vec<Rule>,
    pub(crate) deny: Vec<Rule>,
    pub(crate) response_strip: Vec<String>,
    pub(crate) response_max: Option<u64>,
}

/// Whose credential goes along.
#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Carries {
    None,
    Client,
    Injected(String),
}

#[derive(Debug, Clone)]
pub(crate) struct Rule {
    pub(crate) methods: Methods,
    pub(crate) path: Vec<Segment>,
    pub(crate) query: Option<Vec<Parameter>>,
    pub(crate) strip: bool,
    pub(crate) headers: Headers,
    pub(crate) body: Option<Body>,
    /// Number of a condition.
    pub(crate) when: Option<usize>,
}

#[derive(Debug, Clone)]
pub(crate) enum Methods {
    Any,
    ReadOnly,
    These(Vec<String>),
}

#[derive(Debug, Clone)]
pub(crate) enum Segment {
    /// Empty only as the last: a trailing slash.
    Text(String),
    Star,
    Named(String),
    Int(String),
    Uuid(String),
    /// With the pattern's number.
    Pattern(String, usize),
    Rest,
}

#[derive(Debug, Clone)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) shape: Shape,
    pub(crate) required: bool,
}

#[derive(Debug, Clone, Default)]
pub(crate) struct Headers {
    pub(crate) allow: Vec<String>,
    pub(crate) require: Vec<(String, Shape)>,
    pub(crate) strip: Vec<String>,
}

#[derive(Debug, Clone)]
pub(crate) struct Body {
    pub(crate) fields: Vec<(String, Shape)>,
    pub(crate) max: Option<usize>,
}

#[derive(Debug, Clone)]
pub(crate) enum Shape {
    Any,
    Text,
    Int,
    Number,
    Bool,
    Uuid,
    Range(i64, i64),
    /// The pattern's number.
    Pattern(usize),
    OneOf(Vec<Literal>),
    List(Box<Shape>),
    Object(Vec<(String, Shape)>),
}

#[derive(Debug, Clone, PartialEq)]
pub(crate) enum Literal {
    Text(String),
    Int(i64),
    Bool(bool),
    Null,
}

#[derive(Debug, Clone)]
pub(crate) struct Grant {
    pub(crate) role: RoleUse,
    /// Empty: any workload.
    pub(crate) workloads: Vec<String>,
    pub(crate) identities: Vec<String>,
    pub(crate) groups: Vec<String>,
    pub(crate) observe: bool,
    /// As written, and the last second at which it holds.
    pub(crate) until: Option<(&'static str, i64)>,
}

/// Every text that may hold `${name}`, put through `fill`.
impl Item {
    pub(crate) fn filled(&self, arguments: &[(String, String)]) -> Self {
        let fill = |text: &String| {
            let mut text = text.clone();
            for (name, value) in arguments {
                text = text.replace(&format!("${{{name}}}"), value);
            }
            text
        };
        match self {
            Self::Include(role) => Self::Include(RoleUse {
                name: role.name.clone(),
                arguments: role
                    .arguments
                    .iter()
                    .map(|(name, value)| (name.clone(), fill(value)))
                    .collect(),
            }),
            Self::Entry(entry) => Self::Entry(Entry {
                api: fill(&entry.api),
                allow: entry.allow.iter().map(|rule| rule.filled(&fill)).collect(),
                deny: entry.deny.iter().map(|rule| rule.filled(&fill)).collect(),
                ..entry.clone()
            }),
        }
    }
}

type Fill<'f> = dyn Fn(&String) -> String + 'f;

impl Rule {
    fn filled(&self, fill: &Fill<'_>) -> Self {
        let mut rule = self.clone();
        rule.path = self
            .path
            .iter()
            .flat_map(|segment| match segment {
                // An argument with a slash is two segments.
                Segment::Text(text) => fill(text)
                    .split('/')
                    .map(|text| Segment::Text(text.to_owned()))
                    .collect(),
                other => vec![other.clone()],
            })
            .collect();
        let shapes = rule
            .query
            .iter_mut()
            .flatten()
            .map(|parameter| &mut parameter.shape);
        let shapes = shapes.chain(rule.headers.require.iter_mut().map(|(_, shape)| shape));
        let fields = rule.body.iter_mut().flat_map(|body| &mut body.fields);
        for shape in shapes.chain(fields.map(|(_, shape)| shape)) {
            shape.fill(fill);
        }
        rule
    }

    /// As it stands in a document, and in a rule's name.
    pub(crate) fn route(&self) -> String {
        let methods = match &self.methods {
            Methods::Any => "*".to_owned(),
            Methods::ReadOnly => "read-only".to_owned(),
            Methods::These(methods) => methods.join("|"),
        };
        let path: Vec<String> = self.path.iter().map(Segment::written).collect();
        format!("{methods} /{}", path.join("/"))
    }
}

impl Segment {
    fn written(&self) -> String {
        match self {
            Self::Text(text) => text.clone(),
            Self::Star => "*".to_owned(),
            Self::Named(name) => format!("{{{name}}}"),
            Self::Int(name) => format!("{{{name}:int}}"),
            Self::Uuid(name) => format!("{{{name}:uuid}}"),
            Self::Pattern(name, pattern) => format!("{{{name}:{}}}", PATTERNS[*pattern].text),
            Self::Rest => "**".to_owned(),
        }
    }
}

impl Shape {
    fn fill(&mut self, fill: &Fill<'_>) {
        match self {
            Self::OneOf(literals) => {
                for literal in literals {
                    if let Literal::Text(text) = literal {
                        *text = fill(text);
                    }
                }
            }
            Self::List(item) => item.fill(fill),
            Self::Object(fields) => fields.iter_mut().for_each(|(_, shape)| shape.fill(fill)),
            _ => {}
        }
    }

    pub(crate) fn written(&self) -> String {
        match self {
            Self::Any => "any".to_owned(),
            Self::Text => "string".to_owned(),
            Self::Int => "int".to_owned(),
            Self::Number => "number".to_owned(),
            Self::Bool => "bool".to_owned(),
            Self::Uuid => "uuid".to_owned(),
            Self::Range(low, high) => format!("{low}..{high}"),
            Self::Pattern(pattern) => quoted(&format!("/{}/", PATTERNS[*pattern].text)),
            Self::OneOf(literals) => {
                let literals: Vec<String> = literals.iter().map(Literal::written).collect();
                format!("[{}]", literals.join(", "))
            }
            // Quoted, it would be a value.
            Self::List(item) => match **item {
                Self::Pattern(pattern) => format!("[/{}/]", PATTERNS[pattern].text),
                _ => format!("[{}]", item.written()),
            },
            Self::Object(fields) => fields_written(fields),
        }
    }
}

fn fields_written(fields: &[(String, Shape)]) -> String {
    let fields: Vec<String> = fields
        .iter()
        .map(|(name, shape)| format!("{}: {}", quoted(name), shape.written()))
        .collect();
    format!("{{ {} }}", fields.join(", "))
}

impl Literal {
    fn written(&self) -> String {
        match self {
            Self::Text(text) => quoted(text),
            Self::Int(number) => number.to_string(),
            Self::Bool(value) => value.to_string(),
            Self::Null => "null".to_owned(),
        }
    }
}

pub(crate) fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

/// The line on which a rule or an uninspected entry stands: role, item, whether a deny rule, and its
/// number; for an entry without rules `None`.
pub(crate) type Place = (String, usize, Option<(bool, usize)>);

/// A document and where its rules stand.
#[derive(Debug, Default)]
pub(crate) struct Printed {
    pub(crate) text: String,
    pub(crate) lines: std::collections::HashMap<Place, u32>,
}

/// In which order the keys of a mapping are written.
pub(crate) type KeyOrder<'o> = &'o mut dyn FnMut(&mut Vec<String>);

impl Model {
    pub(crate) fn document(&self) -> Printed {
        self.document_in_order(&mut |_| {})
    }

    /// The document, with keys of mappings in the order that `order` makes.
    pub(crate) fn document_in_order(&self, order: KeyOrder<'_>) -> Printed {
        let mut printed = Printed {
            text: "version: 1\n".to_owned(),
            ..Printed::default()
        };
        let mut section = |title: &str, lines: Vec<String>| {
            if !lines.is_empty() {
                printed.text += &format!("{title}:\n");
                lines
                    .iter()
                    .for_each(|line| printed.text += &format!("  {line}\n"));
            }
        };
        let workloads = self.workloads.iter().map(|name| format!("{name}: {{}}"));
        section("workloads", workloads.collect());
        let identity = |name: &String| format!("{name}: {{ token: tgi_{name} }}");
        section("identities", self.identities.iter().map(identity).collect());
        let group = |(name, members): &(String, Vec<String>)| format!("{name}: {}", list(members));
        section("groups", self.groups.iter().map(group).collect());
        section(
            "apis",
            self.apis.iter().map(|api| api.written(order)).collect(),
        );
        let credentials = self.credentials.iter();
        section(
            "credentials",
            credentials.map(|one| one.written(order)).collect(),
        );
        let grants = self.grants.iter();
        section("grants", grants.map(|grant| grant.written(order)).collect());
        if !self.roles.is_empty() {
            printed.text += "roles:\n";
            for role in &self.roles {
                role.print(&mut printed, order);
            }
        }
        printed
    }
}

fn list(texts: &[String]) -> String {
    let texts: Vec<String> = texts.iter().map(|text| quoted(text)).collect();
    format!("[{}]", texts.join(", "))
}

fn mapping(mut entries: Vec<String>, order: KeyOrder<'_>) -> String {
    order(&mut entries);
    format!("{{ {} }}", entries.join(", "))
}

impl Api {
    fn written(&self, order: KeyOrder<'_>) -> String {
        let entries = match &self.kind {
            Kind::Hosts(hosts, port) => {
                vec![format!("hosts: {}", list(hosts)), format!("port: {port}")]
            }
            Kind::Sni(hosts, port) => {
                vec![format!("sni: {}", list(hosts)), format!("port: {port}")]
            }
            Kind::Tcp(endpoints) => {
                let endpoints: Vec<String> = endpoints
                    .iter()
                    .map(|(address, bits, port)| match address.is_ipv4() {
                        true => format!("{address}/{bits}:{port}"),
                        false => format!("[{address}/{bits}]:{port}"),
                    })
                    .collect();
                vec![format!("tcp: {}", list(&endpoints))]
            }
        };
        format!("{}: {}", self.name, mapping(entries, order))
    }
}

impl Credential {
    fn written(&self, order: KeyOrder<'_>) -> String {
        let entries = vec![
            "secret: \"file:s\"".to_owned(),
            format!("header: {{ {}: \"Key {{secret}}\" }}", self.header),
            format!("to: {}", list(&self.to)),
        ];
        format!("{}: {}", self.name, mapping(entries, order))
    }
}

impl Grant {
    fn written(&self, order: KeyOrder<'_>) -> String {
        let mut to = Vec::new();
        for (key, names) in [
            ("workload", &self.workloads),
            ("identity", &self.identities),
            ("group", &self.groups),
        ] {
            match names.as_slice() {
                [] => {}
                [name] => to.push(format!("{key}: {}", quoted(name))),
                names => to.push(format!("{key}: {}", list(names))),
            }
        }
        let mut entries = vec![
            format!("role: {}", quoted(&self.role.to_string())),
            format!("to: {}", mapping(to, order)),
        ];
        if self.observe {
            entries.push("mode: observe".to_owned());
        }
        if let Some((text, _)) = self.until {
            entries.push(format!("until: {text}"));
        }
        format!("- {}", mapping(entries, order))
    }
}

impl Role {
    fn print(&self, printed: &mut Printed, order: KeyOrder<'_>) {
        let key = match self.parameters.is_empty() {
            true => self.name.clone(),
            false => format!("{}({})", self.name, self.parameters.join(", ")),
        };
        printed.text += &format!("  {}:\n", quoted(&key));
        for (index, item) in self.items.iter().enumerate() {
            match item {
                Item::Include(role) => {
                    printed.text += &format!("    - include: {}\n", quoted(&role.to_string()));
                }
                Item::Entry(entry) => entry.print(printed, (&self.name, index), order),
            }
        }
    }
}

impl Entry {
    fn print(&self, printed: &mut Printed, of: (&str, usize), order: KeyOrder<'_>) {
        let line = |text: &str| u32::try_from(text.lines().count() + 1).unwrap();
        let place = |rule| (of.0.to_owned(), of.1, rule);
        printed.lines.insert(place(None), line(&printed.text));
        printed.text += &format!("    - api: {}\n", quoted(&self.api));
        match &self.credential {
            Carries::None => {}
            Carries::Client => printed.text += "      credential: client\n",
            Carries::Injected(name) => printed.text += &format!("      credential: {name}\n"),
        }
        let mut response = Vec::new();
        if !self.response_strip.is_empty() {
            response.push(format!("strip: {}", list(&self.response_strip)));
        }
        response.extend(self.response_max.map(|max| format!("max: {max}")));
        if !response.is_empty() {
            printed.text += &format!("      response: {}\n", mapping(response, order));
        }
        for (deny, key, rules) in [(false, "allow", &self.allow), (true, "deny", &self.deny)] {
            if rules.is_empty() {
                continue;
            }
            printed.text += &format!("      {key}:\n");
            for (index, rule) in rules.iter().enumerate() {
                let here = line(&printed.text);
                printed.lines.insert(place(Some((deny, index))), here);
                printed.text += &format!("        - {}\n", rule.written(deny, order));
            }
        }
    }
}

impl Rule {
    fn written(&self, deny: bool, order: KeyOrder<'_>) -> String {
        let mut entries = vec![format!("route: {}", quoted(&self.route()))];
        if let Some(condition) = self.when {
            entries.push(format!("when: {}", quoted(CONDITIONS[condition].text)));
        }
        if deny {
            return mapping(entries, order);
        }
        if let Some(parameters) = &self.query {
            let mut written: Vec<String> = parameters.iter().map(Parameter::written).collect();
            order(&mut written);
            entries.push(format!("query: {{ {} }}", written.join(", ")));
            if self.strip {
                entries.push("extra: strip".to_owned());
            }
        }
        let mut headers = Vec::new();
        if !self.headers.allow.is_empty() {
            headers.push(format!("allow: {}", list(&self.headers.allow)));
        }
        if !self.headers.require.is_empty() {
            headers.push(format!(
                "require: {}",
                fields_written(&self.headers.require)
            ));
        }
        if !self.headers.strip.is_empty() {
            headers.push(format!("strip: {}", list(&self.headers.strip)));
        }
        if !headers.is_empty() {
            entries.push(format!("headers: {}", mapping(headers, order)));
        }
        if let Some(body) = &self.body {
            let mut written = vec![format!("fields: {}", fields_written(&body.fields))];
            written.extend(body.max.map(|max| format!("max: {max}")));
            entries.push(format!("body: {}", mapping(written, order)));
        }
        mapping(entries, order)
    }
}

impl Parameter {
    fn written(&self) -> String {
        let (name, shape) = (quoted(&self.name), self.shape.written());
        match self.required {
            true => format!("{name}: {{ type: {shape}, required: true }}"),
            false => format!("{name}: {shape}"),
        }
    }
}
