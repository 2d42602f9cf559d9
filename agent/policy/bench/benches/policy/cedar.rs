//! The same 1 000 rules for both. Cedar as its documentation recommends it: roles are parents of
//! principals, roles and apis stand in the policies' scopes, and policies, entities and requests are
//! validated against a schema (strict mode). The request's path is a context of segments, since Cedar's
//! `like` has no wildcard for one segment; only what both languages can say is used.
use cedar_policy::{
    Authorizer, Context, Decision, Entities, Entity, EntityUid, PolicySet, Request,
    RestrictedExpression, Schema, ValidationMode, Validator,
};
use std::collections::{HashMap, HashSet};
use std::fmt::Write as _;
use tollgate_policy::canonical::Target;
use tollgate_policy_bench::Call;

const APIS: usize = 50;
const RULES: usize = 20;
const WORKLOADS: usize = 20;
const ROLES: usize = 6;
const SEGMENTS: usize = 5;

const SCHEMA: &str = r#"
entity Role;
entity Api;
entity Workload in [Role];
action GET, POST, DELETE appliesTo {
    principal: [Workload],
    resource: [Api],
    context: {
        depth: Long, s0: String, s1: String, s2: String, s3: String, s4: String,
        parameters: Set<String>, state?: String,
    },
};
"#;

/// One rule of the model: `*` is any one segment.
struct Rule {
    deny: bool,
    method: &'static str,
    segments: Vec<String>,
    states: Option<[&'static str; 2]>,
}

/// What both sides are made from.
pub(crate) struct Model {
    /// By api.
    rules: Vec<Vec<Rule>>,
}

/// A call as each side takes it.
pub(crate) struct Both {
    pub(crate) ours: Call,
    pub(crate) api: usize,
    pub(crate) request: Request,
}

/// Cedar, ready to decide.
pub(crate) struct Cedar {
    authorizer: Authorizer,
    policies: PolicySet,
    entities: Entities,
    schema: Schema,
}

fn roles_of(workload: usize) -> HashSet<usize> {
    let role = |number: usize| (workload * 7 + number * 11) % APIS;
    (0..ROLES).map(role).collect()
}

impl Model {
    pub(crate) fn new() -> Self {
        let text = |parts: &[&str]| parts.iter().map(|part| (*part).to_owned()).collect();
        let rule = |number: usize| {
            let resource = format!("res{number}");
            let segments: Vec<String> = match number {
                0 => text(&["v1", "*", "payroll", "*"]),
                number if number % 2 == 0 => text(&["v1", "all", &resource, "list"]),
                _ => text(&["v1", "*", &resource, "*", "parts"]),
            };
            Rule {
                deny: number == 0,
                method: match number % 5 {
                    3 => "POST",
                    _ => "GET",
                },
                segments,
                states: (number > 0 && number.is_multiple_of(3)).then_some(["open", "closed"]),
            }
        };
        let api = |_| (0..RULES).map(rule).collect();
        Self {
            rules: (0..APIS).map(api).collect(),
        }
    }

    /// In our language.
    pub(crate) fn document(&self) -> String {
        let mut text = String::from("version: 1\nworkloads:\n");
        let mut add = |line: String| {
            text.push_str(&line);
            text.push('\n');
        };
        (0..WORKLOADS).for_each(|number| add(format!("  w{number}: {{}}")));
        add("apis:".to_owned());
        (0..APIS).for_each(|api| add(format!("  a{api}: {{ hosts: [api{api}.example] }}")));
        add("roles:".to_owned());
        for (api, rules) in self.rules.iter().enumerate() {
            add(format!("  r{api}:\n    - api: a{api}"));
            for deny in [false, true] {
                add(format!("      {}:", if deny { "deny" } else { "allow" }));
                for rule in rules.iter().filter(|rule| rule.deny == deny) {
                    add(format!(
                        "        - route: {} /{}",
                        rule.method,
                        rule.segments.join("/")
                    ));
                    if let Some(states) = rule.states {
                        add(format!(
                            "          query: {{ state: [{}] }}",
                            states.join(", ")
                        ));
                    }
                }
            }
        }
        add("grants:".to_owned());
        for workload in 0..WORKLOADS {
            for role in roles_of(workload) {
                add(format!(
                    "  - {{ role: r{role}, to: {{ workload: w{workload} }} }}"
                ));
            }
        }
        text
    }

    /// In Cedar's.
    fn policies(&self) -> String {
        let mut text = String::new();
        for (api, rules) in self.rules.iter().enumerate() {
            for rule in rules {
                let effect = if rule.deny { "forbid" } else { "permit" };
                let _ = write!(
                    text,
                    "{effect}(principal in Role::\"r{api}\", action == Action::\"{}\", \
                     resource == Api::\"a{api}\") when {{ context.depth == {}",
                    rule.method,
                    rule.segments.len()
                );
                for (number, segment) in rule.segments.iter().enumerate() {
                    let _ = match segment.as_str() {
                        "*" => write!(text, " && context.s{number} != \"\""),
                        literal => write!(text, " && context.s{number} == \"{literal}\""),
                    };
                }
                if let Some([one, other]) = rule.states {
                    let _ = write!(
                        text,
                        " && [\"state\"].containsAll(context.parameters) && \
                         (if context has state then [\"{one}\", \"{other}\"].contains(context.state) else true)"
                    );
                }
                text.push_str(" };\n");
            }
        }
        text
    }

    pub(crate) fn cedar(&self) -> Cedar {
        let (schema, _) = Schema::from_cedarschema_str(SCHEMA).expect("a schema");
        let policies: PolicySet = self.policies().parse().expect("policies");
        let found = Validator::new(schema.clone()).validate(&policies, ValidationMode::Strict);
        assert!(found.validation_passed(), "{found}");
        let roles = (0..APIS).map(|role| Entity::with_uid(uid("Role", &format!("r{role}"))));
        let apis = (0..APIS).map(|api| Entity::with_uid(uid("Api", &format!("a{api}"))));
        let workloads = (0..WORKLOADS).map(|workload| {
            let parents = roles_of(workload)
                .into_iter()
                .map(|role| uid("Role", &format!("r{role}")))
                .collect();
            let name = uid("Workload", &format!("w{workload}"));
            Entity::new_no_attrs(name, parents)
        });
        let all = roles.chain(apis).chain(workloads);
        Cedar {
            authorizer: Authorizer::new(),
            policies,
            entities: Entities::from_entities(all, Some(&schema)).expect("entities"),
            schema,
        }
    }

    /// Calls of which most are allowed, and some are denied or have no rule or no grant.
    pub(crate) fn calls(&self) -> Vec<Both> {
        let cedar = self.cedar();
        let made = |number: usize| {
            let workload = number % WORKLOADS;
            let mut granted: Vec<usize> = roles_of(workload).into_iter().collect();
            granted.sort_unstable();
            let api = match number % 11 {
                0 => number % APIS,
                _ => *granted.get(number % granted.len()).expect("a role"),
            };
            let rule = number % RULES;
            let rules = self.rules.get(api).expect("an api");
            let Rule {
                method,
                segments,
                states,
                ..
            } = rules.get(rule).expect("a rule");
            let segments: Vec<String> = segments
                .iter()
                .map(|segment| segment.replace('*', &format!("x{number}")))
                .collect();
            let query = match (states, number % 7) {
                (Some(_), 0) => "?state=all",
                (Some(_), 1) => "?other=1",
                (Some(_), _) => "?state=open",
                (None, _) => "",
            };
            let more = if number.is_multiple_of(13) {
                "/more"
            } else {
                ""
            };
            let raw = format!("/{}{more}{query}", segments.join("/"));
            let ours = Call::new(workload, api, method, raw);
            let request = cedar.request(&ours, &ours.target, api);
            Both { ours, api, request }
        };
        (0..512).map(made).collect()
    }
}

fn uid(kind: &str, name: &str) -> EntityUid {
    EntityUid::from_type_name_and_id(kind.parse().expect("a type"), name.parse().expect("a name"))
}

impl Cedar {
    /// The call as Cedar's request.
    pub(crate) fn request(&self, call: &Call, target: &Target<'_>, api: usize) -> Request {
        let text = |text: &str| RestrictedExpression::new_string(text.to_owned());
        let mut segments = target.path.split('/').skip(1);
        let depth = i64::try_from(segments.clone().count()).unwrap_or(i64::MAX);
        let mut context: HashMap<String, RestrictedExpression> = (0..SEGMENTS)
            .map(|number| (format!("s{number}"), text(segments.next().unwrap_or(""))))
            .collect();
        context.insert("depth".to_owned(), RestrictedExpression::new_long(depth));
        let names = target
            .pairs()
            .map(|pair| text(&pair.name))
            .collect::<Vec<_>>();
        context.insert(
            "parameters".to_owned(),
            RestrictedExpression::new_set(names),
        );
        if let Some(state) = target.pairs().find(|pair| pair.name == "state") {
            context.insert("state".to_owned(), text(&state.value));
        }
        Request::new(
            uid("Workload", &call.workload),
            uid("Action", call.method),
            uid("Api", &format!("a{api}")),
            Context::from_pairs(context).expect("a context"),
            Some(&self.schema),
        )
        .expect("a request")
    }

    /// Whether it allows.
    pub(crate) fn decide(&self, request: &Request) -> bool {
        let response = self
            .authorizer
            .is_authorized(request, &self.policies, &self.entities);
        debug_assert_eq!(response.diagnostics().errors().count(), 0);
        response.decision() == Decision::Allow
    }
}
