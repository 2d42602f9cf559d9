//! A second evaluator, written straight from the semantics: no index, no order, no cleverness. It works
//! on a model of the policy, of which the document is printed.
use std::fmt::Write;

/// A role's rule.
#[derive(Debug, Clone)]
pub(super) struct Rule {
    pub(super) deny: bool,
    pub(super) methods: Vec<&'static str>,
    pub(super) segments: Vec<&'static str>,
    pub(super) query: Option<Vec<(&'static str, &'static str)>>,
    pub(super) strip: bool,
}

/// One role for each list of rules; a grant is a workload, a role and whether it is observed.
#[derive(Debug, Clone)]
pub(super) struct Model {
    pub(super) roles: Vec<Vec<(usize, Rule)>>,
    pub(super) grants: Vec<(usize, usize, bool)>,
}

pub(super) const WORKLOADS: [&str; 3] = ["w0", "w1", "w2"];
pub(super) const APIS: [(&str, &str); 3] =
    [("a0", "a.com"), ("a1", "\"*.b.com\""), ("a2", "x.b.com")];

/// A request; the host is one of a few.
#[derive(Debug, Clone)]
pub(super) struct Asked {
    pub(super) workload: usize,
    pub(super) host: &'static str,
    pub(super) method: &'static str,
    pub(super) path: String,
    pub(super) query: Vec<(&'static str, &'static str)>,
}

impl Model {
    pub(super) fn document(&self) -> String {
        let mut text = String::from("version: 1\nworkloads: { w0: {}, w1: {}, w2: {} }\napis:\n");
        for (name, host) in APIS {
            writeln!(text, "  {name}: {{ hosts: [{host}] }}").unwrap();
        }
        text.push_str("roles:\n  unused: [{ api: a0, deny: [{ route: '* /**' }] }]\n");
        for (number, rules) in self
            .roles
            .iter()
            .enumerate()
            .filter(|(_, rules)| !rules.is_empty())
        {
            writeln!(text, "  r{number}:").unwrap();
            for (api, rule) in rules {
                let effect = if rule.deny { "deny" } else { "allow" };
                let path = rule.segments.join("/");
                writeln!(
                    text,
                    "    - api: a{api}\n      {effect}:\n        - route: '{} /{path}'",
                    rule.methods.join("|")
                )
                .unwrap();
                if let (Some(query), false) = (&rule.query, rule.deny) {
                    let query: Vec<String> = query
                        .iter()
                        .map(|(name, shape)| format!("{name}: {shape}"))
                        .collect();
                    writeln!(text, "          query: {{ {} }}", query.join(", ")).unwrap();
                    writeln!(
                        text,
                        "          extra: {}",
                        if rule.strip { "strip" } else { "deny" }
                    )
                    .unwrap();
                }
            }
        }
        text.push_str("grants:\n  - { role: unused, to: { workload: w2 }, mode: observe }\n");
        for (workload, role, observe) in &self.grants {
            if self.roles.get(*role).is_some_and(|rules| !rules.is_empty()) {
                let mode = if *observe { "observe" } else { "enforce" };
                writeln!(
                    text,
                    "  - {{ role: r{role}, to: {{ workload: w{workload} }}, mode: {mode} }}"
                )
                .unwrap();
            }
        }
        text
    }

    /// Allowed; and whether a denial would only be observed.
    pub(super) fn decide(&self, asked: &Asked) -> (bool, bool) {
        let api = match asked.host {
            "a.com" => Some(0),
            "x.b.com" => Some(2),
            "y.b.com" => Some(1),
            _ => None,
        };
        let mut grants: Vec<(Vec<(usize, Rule)>, bool)> = self
            .grants
            .iter()
            .filter(|(workload, role, _)| {
                *workload == asked.workload && !self.roles[*role].is_empty()
            })
            .map(|(_, role, observe)| (self.roles[*role].clone(), *observe))
            .collect();
        if asked.workload == 2 {
            let all = Rule {
                deny: true,
                methods: vec!["*"],
                segments: vec!["**"],
                query: None,
                strip: false,
            };
            grants.push((vec![(0, all)], true));
        }
        let concerns = |rules: &[(usize, Rule)]| rules.iter().any(|(of, _)| Some(*of) == api);
        let mut concerned: Vec<bool> = grants
            .iter()
            .filter(|(rules, _)| concerns(rules))
            .map(|(_, observe)| *observe)
            .collect();
        if concerned.is_empty() {
            concerned = grants.iter().map(|(_, observe)| *observe).collect();
        }
        let observed = !concerned.is_empty() && concerned.iter().all(|observe| *observe);
        let rules: Vec<Rule> = grants
            .into_iter()
            .flat_map(|(rules, _)| rules)
            .filter(|(of, _)| Some(*of) == api)
            .map(|(_, rule)| rule)
            .collect();
        let denied = rules.iter().any(|rule| rule.deny && matches(rule, asked));
        let allowed = rules
            .iter()
            .any(|rule| !rule.deny && matches(rule, asked) && fits(rule, asked));
        (allowed && !denied, observed)
    }
}

fn matches(rule: &Rule, asked: &Asked) -> bool {
    let method = rule.methods.iter().any(|method| match *method {
        "*" => rule.deny || !["TRACE", "CONNECT"].contains(&asked.method),
        method => method == asked.method,
    });
    let (mut template, mut path) = (rule.segments.clone(), asked.path.as_str());
    if rule.deny {
        path = path.strip_suffix('/').unwrap_or(path);
        if template.last() == Some(&"") {
            template.pop();
        }
    }
    let path: Vec<&str> = path.split('/').skip(1).collect();
    method && path_matches(&template, &path, rule.deny)
}

fn path_matches(template: &[&str], path: &[&str], deny: bool) -> bool {
    match (template, path) {
        (["**"], _) | ([], []) => true,
        ([first, template @ ..], [segment, path @ ..]) => {
            let segment = segment.replace("%3A", ":");
            let one = match *first {
                "*" => !segment.is_empty(),
                "{n:int}" if deny && segment == "01" => true,
                "{n:int}" => segment
                    .parse::<i64>()
                    .is_ok_and(|value| value.to_string() == segment),
                "{p:[ab]+}" => !segment.is_empty() && segment.chars().all(|c| c == 'a' || c == 'b'),
                literal => literal.replace("%3A", ":") == segment,
            };
            one && path_matches(template, path, deny)
        }
        _ => false,
    }
}

fn fits(rule: &Rule, asked: &Asked) -> bool {
    let Some(declared) = &rule.query else {
        return true;
    };
    asked
        .query
        .iter()
        .enumerate()
        .all(|(index, (name, value))| {
            let Some((_, shape)) = declared.iter().find(|(declared, _)| declared == name) else {
                return rule.strip || *name == "api_key";
            };
            let twice = asked.query[..index]
                .iter()
                .any(|(earlier, _)| earlier == name);
            let good = match *shape {
                "int" | "[int]" => value
                    .parse::<i64>()
                    .is_ok_and(|number| number.to_string() == *value),
                "1..5" => value
                    .parse::<i64>()
                    .is_ok_and(|number| (1..=5).contains(&number)),
                "[x, y]" => *value == "x" || *value == "y",
                _ => true,
            };
            good && (!twice || *shape == "[int]")
        })
}
