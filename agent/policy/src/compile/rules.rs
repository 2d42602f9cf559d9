//! Roles become rules, in the order of how specific they are.
use super::instances::Instance;
use super::names::Names;
use crate::document::{self, Api, Credential, Name, Named};
use crate::model::{self, Coverage, Rule};
use crate::policy::{CredentialUse, Entry, HeaderSpec, RuleData};
use crate::route::{Methods, Template};
use crate::syntax::{Decoder, Span, quote};
use std::cell::OnceCell;
use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::fmt::Write;
use std::sync::Arc;

/// Which apis a credential may be sent to, and which headers it sets; by its number.
pub(super) struct Bindings(Vec<Binding>);

struct Binding {
    apis: BTreeSet<usize>,
    headers: Vec<String>,
}

/// All rules, and which of them each role has on which api.
pub(super) struct Ruled {
    pub(super) rules: Vec<RuleData>,
    /// Where each rule stands.
    pub(super) spans: Vec<Span>,
    pub(super) entries: Vec<Entry>,
    pub(super) roles: Vec<Vec<Placed>>,
}

/// The rules of a role on one api.
#[derive(Default)]
pub(super) struct Placed {
    pub(super) api: usize,
    pub(super) allow: Vec<u32>,
    pub(super) deny: Vec<u32>,
}

/// The word that stands for the client's own credential.
const CLIENT: &str = "client";

impl Bindings {
    pub(super) fn resolve(
        decoder: &mut Decoder,
        names: &Names,
        credentials: &[Named<Credential>],
        apis: &[Named<Api>],
    ) -> Self {
        let mut bindings = Vec::with_capacity(credentials.len());
        for credential in credentials {
            if &*credential.name.text == CLIENT {
                decoder
                    .error(
                        credential.name.span,
                        "`client` is not free as a credential's name",
                    )
                    .help("`credential: client` lets the client's own credential pass");
            }
            let to = &credential.value.to;
            let mut bound = |name| {
                let number = names.apis.resolve(decoder, name)?;
                refuse_uninspected(decoder, apis.get(number)?, name);
                refuse_in_clear(decoder, apis.get(number)?, name.span);
                Some(number)
            };
            let apis = to.iter().filter_map(&mut bound).collect();
            let form = credential.value.form.as_ref();
            let headers = form.map_or_else(Vec::new, model::CredentialForm::header_names);
            let headers = headers.into_iter().map(str::to_owned).collect();
            bindings.push(Binding { apis, headers });
        }
        Self(bindings)
    }
}

/// Nothing can be put into what is not seen.
fn refuse_uninspected(decoder: &mut Decoder, api: &Named<Api>, name: &Name) {
    if api.value.coverage != Coverage::Inspected {
        let message = format!(
            "api {} is not inspected: no credential can be put in there",
            quote(&name.text)
        );
        decoder
            .error(name.span, message)
            .help("give the api `hosts` instead, or take it out of `to:`");
    }
}

/// Whoever carries the packets could read it.
fn refuse_in_clear(decoder: &mut Decoder, api: &Named<Api>, span: Span) {
    if api.value.scheme == model::Scheme::Http {
        let message = format!(
            "api {} is reached in clear: no credential is sent there",
            quote(&api.name.text)
        );
        decoder
            .error(span, message)
            .help("take `scheme: http` out of the api, or do without a credential");
    }
}

pub(super) fn credentials(
    decoder: &Decoder,
    credentials: Vec<Named<Credential>>,
) -> Vec<model::Credential> {
    let public = |credential: Named<Credential>| {
        Some(model::Credential {
            at: decoder.location(credential.name.span),
            name: credential.name.text.into(),
            // Missing only where there is a fault.
            form: credential.value.form?,
        })
    };
    credentials.into_iter().filter_map(public).collect()
}

/// A rule with what its place among the others depends on.
struct Draft {
    order: Order,
    span: Span,
    role: usize,
    api: usize,
    deny: bool,
    data: RuleData,
}

/// Most specific first: segment by segment from the left, literal before constrained before plain before
/// `**`; then the rule that declares more of parameters and body; then named methods before `*`; then by
/// text. Rules of one role with the same route go by all else that they say: the order in which rules or
/// files stand changes nothing.
type Order = (Vec<u8>, Reverse<usize>, usize, Arc<str>, Arc<str>);

/// Resolves all roles.
pub(super) fn build(
    decoder: &mut Decoder,
    names: &Names,
    bindings: &Bindings,
    apis: &[Named<Api>],
    roles: Vec<Instance>,
) -> Ruled {
    let mut ruled = Ruled {
        rules: Vec::new(),
        spans: Vec::new(),
        entries: Vec::new(),
        roles: Vec::new(),
    };
    ruled.roles.resize_with(roles.len(), Vec::new);
    let mut drafts = Vec::new();
    for (number, role) in roles.into_iter().enumerate() {
        for entry in role.entries {
            let api = names.apis.resolve(decoder, &entry.api);
            let credential = credential_use(decoder, names, bindings, &entry, (apis, api));
            check_headers(decoder, bindings, credential, &entry);
            let Some((api, coverage)) =
                api.and_then(|api| Some((api, apis.get(api)?.value.coverage)))
            else {
                continue;
            };
            check_coverage(decoder, coverage, &entry);
            let of = u32::try_from(ruled.entries.len()).unwrap_or(u32::MAX);
            let connects = (coverage != Coverage::Inspected).then(|| {
                (
                    connect_rule(decoder, &role.name, &entry, of),
                    false,
                    entry.span,
                )
            });
            let allow = entry.allow.into_iter().map(|rule| (rule, false));
            let deny = entry.deny.into_iter().map(|rule| (rule, true));
            let rules = allow.chain(deny).map(|(rule, deny)| {
                let span = rule.span;
                (rule_data(decoder, &role.name, rule, of, deny), deny, span)
            });
            let draft = |(data, deny, span)| Draft {
                order: order(&data),
                span,
                role: number,
                api,
                deny,
                data,
            };
            drafts.extend(rules.chain(connects).map(draft));
            ruled.entries.push(Entry {
                credential,
                response_strip: strings(&entry.response.strip),
                response_redact: entry.response.redact,
                response_max: entry.response.max,
            });
        }
    }
    drafts.sort_by(|one, other| one.order.cmp(&other.order));
    // What else they say is worked out once for each, and only where it decides.
    let details: Vec<OnceCell<String>> = vec![OnceCell::new(); ruled.entries.len()];
    for same in drafts.chunk_by_mut(|one, other| one.order == other.order) {
        if same.len() > 1 {
            same.sort_by_cached_key(|draft| {
                let number = usize::try_from(draft.data.entry).ok();
                let entry = number.and_then(|number| {
                    let entry = ruled.entries.get(number)?;
                    let of_entry = || format!("{entry:?}");
                    Some(details.get(number)?.get_or_init(of_entry).as_str())
                });
                (entry, detail(&draft.data), draft.data.public.at.clone())
            });
        }
    }
    // To measure: they stay as long as the policy.
    ruled.rules.reserve_exact(drafts.len());
    for (number, draft) in drafts.into_iter().enumerate() {
        let number = u32::try_from(number).unwrap_or(u32::MAX);
        if let Some(role) = ruled.roles.get_mut(draft.role) {
            place(role, draft.api, draft.deny, number);
        }
        ruled.spans.push(draft.span);
        ruled.rules.push(draft.data);
    }
    ruled
}

fn strings(names: &[Name]) -> Vec<String> {
    names.iter().map(|name| name.text.to_string()).collect()
}

/// Rules are for requests that are seen; to be let connect is all that a role can give otherwise.
fn check_coverage(decoder: &mut Decoder, coverage: Coverage, entry: &document::Entry) {
    let api = quote(&entry.api.text);
    match (coverage, entry.inspects) {
        (Coverage::Inspected, _) if !entry.ruled => {
            decoder.error(entry.span, "the role's entry needs `allow` or `deny`");
        }
        (Coverage::Sni | Coverage::Tcp, Some(span)) => {
            decoder
                .error(
                    span,
                    format!("api {api} is not inspected: this cannot be held there"),
                )
                .help("an entry that has only `api:` lets connect; or give the api `hosts`");
        }
        _ => {}
    }
}

/// What stands for a connection that is not inspected.
fn connect_rule(decoder: &Decoder, role: &str, entry: &document::Entry, of: u32) -> RuleData {
    RuleData {
        public: Rule {
            label: format!("role:{role} connect {}", entry.api.text).into(),
            route: "connect".into(),
            at: decoder.location(entry.span),
        },
        methods: Methods::Any,
        template: Template::any(),
        query: None,
        headers: HeaderSpec::default(),
        body: None,
        payload: None,
        grpc: false,
        websocket: None,
        when: None,
        entry: of,
    }
}

fn place(role: &mut Vec<Placed>, api: usize, deny: bool, rule: u32) {
    let index = match role.binary_search_by_key(&api, |placed| placed.api) {
        Ok(index) => index,
        Err(index) => {
            role.insert(
                index,
                Placed {
                    api,
                    ..Placed::default()
                },
            );
            index
        }
    };
    if let Some(placed) = role.get_mut(index) {
        let list = if deny {
            &mut placed.deny
        } else {
            &mut placed.allow
        };
        list.push(rule);
    }
}

/// Whose credential an entry's requests carry; one that is not bound to the api is a fault.
fn credential_use(
    decoder: &mut Decoder,
    names: &Names,
    bindings: &Bindings,
    entry: &document::Entry,
    (apis, api): (&[Named<Api>], Option<usize>),
) -> CredentialUse {
    let Some(name) = &entry.credential else {
        return CredentialUse::None;
    };
    if &*name.text == CLIENT {
        if let Some(api) = api.and_then(|api| apis.get(api)) {
            refuse_in_clear(decoder, api, name.span);
        }
        return CredentialUse::Client;
    }
    let Some(number) = names.credentials.resolve(decoder, name) else {
        return CredentialUse::None;
    };
    let bound = |api: usize| {
        bindings
            .0
            .get(number)
            .is_some_and(|binding| binding.apis.contains(&api))
    };
    if api.is_some_and(|api| !bound(api)) {
        let place = names
            .credentials
            .span(&name.text)
            .map(|span| decoder.location(span).to_string());
        let api = quote(&entry.api.text);
        decoder
            .error(
                name.span,
                format!("credential {} is not bound to api {api}", quote(&name.text)),
            )
            .help(format!(
                "add {api} to its `to:` at {}",
                place.unwrap_or_default()
            ));
    }
    CredentialUse::Inject(number)
}

/// A header that the credential sets is not the client's to fill.
fn check_headers(
    decoder: &mut Decoder,
    bindings: &Bindings,
    credential: CredentialUse,
    entry: &document::Entry,
) {
    let CredentialUse::Inject(number) = credential else {
        return;
    };
    let Some(binding) = bindings.0.get(number) else {
        return;
    };
    let headers = entry.allow.iter().map(|rule| &rule.headers);
    let passing = headers.flat_map(|headers| {
        let required = headers.require.iter().map(|(name, _)| name);
        headers.allow.iter().chain(required)
    });
    for name in passing {
        if binding.headers.iter().any(|header| **header == *name.text) {
            let message = format!(
                "the header {} is set by the rule's credential",
                quote(&name.text)
            );
            decoder.error(name.span, message);
        }
    }
}

fn rule_data(
    decoder: &Decoder,
    role: &str,
    rule: document::Rule,
    entry: u32,
    deny: bool,
) -> RuleData {
    let effect = if deny { "deny" } else { "allow" };
    let public = Rule {
        label: format!("role:{role} {effect} {}", rule.route).into(),
        route: (&*rule.route).into(),
        at: decoder.location(rule.span),
    };
    RuleData {
        public,
        methods: rule.methods,
        template: rule.template,
        query: rule.query,
        headers: header_spec(rule.headers),
        body: rule.body,
        payload: rule.payload,
        grpc: rule.grpc,
        websocket: rule.websocket,
        when: rule.when,
        entry,
    }
}

fn header_spec(headers: document::Headers) -> HeaderSpec {
    let required = headers.require.iter().map(|(name, _)| name);
    let mut allow: Vec<String> = headers
        .allow
        .iter()
        .chain(required)
        .map(|name| name.text.to_string())
        .collect();
    allow.sort_unstable();
    allow.dedup();
    let mut require: Vec<_> = headers
        .require
        .into_iter()
        .map(|(name, shape)| (name.text.to_string(), shape))
        .collect();
    require.sort_by(|(one, _), (other, _)| one.cmp(other));
    HeaderSpec {
        allow,
        require,
        strip: strings(&headers.strip),
    }
}

fn order(rule: &RuleData) -> Order {
    let parameters = rule.query.as_ref().map_or(0, |query| {
        let constrained = |shape: &crate::shape::Shape| usize::from(shape.is_constraint());
        1 + query
            .parameters
            .iter()
            .map(|parameter| constrained(&parameter.shape))
            .sum::<usize>()
    });
    let of_body = [
        rule.body.is_some(),
        rule.payload.is_some(),
        rule.when.is_some(),
        rule.websocket.is_some(),
    ];
    let of_body = of_body.into_iter().filter(|said| *said).count();
    let methods = match &rule.methods {
        Methods::These(methods) => methods.len(),
        Methods::Any => usize::MAX,
    };
    (
        rule.template.ranks(),
        Reverse(parameters + rule.headers.require.len() + of_body),
        methods,
        rule.public.route.clone(),
        rule.public.label.clone(),
    )
}

/// Everything else that a rule says, but for what its entry does.
fn detail(rule: &RuleData) -> String {
    // Of a rule that says nothing else: there are many of those, and growing to it is what costs.
    let mut text = String::with_capacity(128);
    // Never fails: it is memory.
    let _ = write!(
        text,
        "{:?} {:?} {:?} {:?} {:?} {:?} {:?}",
        rule.query, rule.headers, rule.body, rule.payload, rule.grpc, rule.websocket, rule.when
    );
    text
}
