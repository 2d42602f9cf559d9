//! A second evaluator, written straight from the semantics: no index, no order, no cleverness.
use crate::body;
use crate::flaws::Flaw;
use crate::meaning::{CONDITIONS, Facts, PATTERNS, decoded, integer, is_uuid};
use crate::model::{
    Api, Entry, Grant, Item, Kind, Methods, Model, Place, RoleUse, Rule, Segment, Shape,
};
use crate::request::{Asked, Payload, What};
use std::cmp::Reverse;
use std::collections::HashMap;
use std::net::SocketAddr;

/// A rule as it is granted, with all its parameters filled in.
#[derive(Debug)]
pub(crate) struct Placed {
    pub(crate) label: String,
    pub(crate) line: u32,
    pub(crate) deny: bool,
    /// `None`: not a rule, but that one may connect.
    pub(crate) rule: Option<Rule>,
    pub(crate) entry: Entry,
}

/// A grant and all that its role comes to, included roles too.
#[derive(Debug)]
pub(crate) struct Granted<'m> {
    pub(crate) grant: &'m Grant,
    pub(crate) rules: Vec<Placed>,
    /// Whether a role was included.
    pub(crate) includes: bool,
}

pub(crate) struct Naive<'m> {
    pub(crate) model: &'m Model,
    pub(crate) granted: Vec<Granted<'m>>,
    /// What it does wrong, if anything.
    pub(crate) flaw: Option<Flaw>,
}

/// What the semantics say of a request. Where they leave something open, all that is right.
#[derive(Debug)]
pub(crate) struct Answer<'n> {
    pub(crate) allow: bool,
    pub(crate) observe: bool,
    /// The rule reported, and the plan with it: one of these; none where no rule decides.
    pub(crate) rules: Vec<&'n Placed>,
    pub(crate) codes: Vec<&'static str>,
    pub(crate) api: Option<String>,
}

impl<'m> Naive<'m> {
    pub(crate) fn new(model: &'m Model, lines: &HashMap<Place, u32>, flaw: Option<Flaw>) -> Self {
        let granted = model.grants.iter().map(|grant| {
            let (mut rules, mut known) = (Vec::new(), Vec::new());
            expand(model, lines, &grant.role, flaw, &mut rules, &mut known);
            Granted {
                grant,
                rules,
                includes: known.len() > 1,
            }
        });
        Self {
            model,
            granted: granted.collect(),
            flaw,
        }
    }

    pub(crate) fn has(&self, flaw: Flaw) -> bool {
        self.flaw == Some(flaw)
    }

    fn api_for(&self, host: &str, port: u16) -> Option<&'m Api> {
        let matching = |below: bool| {
            self.model.apis.iter().find(|api| {
                let (Kind::Hosts(hosts, on) | Kind::Sni(hosts, on)) = &api.kind else {
                    return false;
                };
                let fits = |pattern: &String| match pattern.strip_prefix("*.") {
                    None => !below && pattern == host,
                    Some(suffix) => {
                        let label = host.strip_suffix(suffix).and_then(|l| l.strip_suffix('.'));
                        let one = |label: &str| {
                            !label.is_empty()
                                && (!label.contains('.') || self.has(Flaw::WildcardTakesLabels))
                        };
                        below && label.is_some_and(one)
                    }
                };
                (*on == port || self.has(Flaw::PortIgnored)) && hosts.iter().any(fits)
            })
        };
        matching(false).or_else(|| matching(true))
    }

    fn api_at(&self, address: SocketAddr) -> Option<&'m Api> {
        let mut best: Option<(u8, &Api)> = None;
        for api in &self.model.apis {
            let Kind::Tcp(endpoints) = &api.kind else {
                continue;
            };
            for (range, bits, port) in endpoints {
                let covers = *port == address.port() && covers(*range, *bits, address.ip());
                if covers && best.is_none_or(|(longest, _)| *bits > longest) {
                    best = Some((*bits, api));
                }
            }
        }
        best.map(|(_, api)| api)
    }

    fn lasts(&self, grant: &Grant, asked: &Asked) -> bool {
        grant.until.is_none_or(|(_, last)| match self.flaw {
            Some(Flaw::UntilExclusive) => asked.now < last,
            Some(Flaw::UntilIgnored) => true,
            _ => asked.now <= last,
        })
    }

    /// Whether the grant holds for whoever asks, now.
    pub(crate) fn holds(&self, grant: &Grant, asked: &Asked) -> bool {
        let known = |identity: &&String| self.model.identities.contains(identity);
        let identity = asked.identity.as_ref().filter(known);
        let named = identity.is_some_and(|identity| grant.identities.contains(identity));
        let grouped = grant.groups.iter().any(|group| {
            let (_, members) = self
                .model
                .groups
                .iter()
                .find(|(name, _)| name == group)
                .unwrap();
            identity.is_some_and(|identity| members.contains(identity))
        });
        let who = match (grant.identities.is_empty(), grant.groups.is_empty()) {
            (false, false) if self.has(Flaw::GroupOrIdentity) => named || grouped,
            (by_name, by_group) => (by_name || named) && (by_group || grouped),
        };
        who && self.lasts(grant, asked)
    }

    pub(crate) fn answer(&self, asked: &Asked) -> Option<Answer<'_>> {
        let known = self.model.workloads.contains(&asked.workload);
        let fits = |granted: &&Granted<'_>| {
            let workloads = &granted.grant.workloads;
            known
                && (workloads.contains(&asked.workload)
                    || (workloads.is_empty() && !self.has(Flaw::AnyWorkloadIsNone)))
        };
        let grants: Vec<&Granted<'_>> = self.granted.iter().filter(fits).collect();
        // The mode is that of all grants, if any of them holds.
        let holding = |grants: &[&Granted<'_>]| -> Vec<bool> {
            let holds = |granted: &&&Granted<'_>| self.holds(granted.grant, asked);
            let any = grants.iter().any(|granted| holds(&granted));
            let counts = |granted: &&&Granted<'_>| match self.has(Flaw::ModeOfGrantsThatHold) {
                true => holds(granted),
                false => any,
            };
            let grants = grants.iter().filter(counts);
            grants.map(|granted| granted.grant.observe).collect()
        };
        let observe = |modes: &[bool]| {
            let all = modes.iter().all(|observe| *observe);
            let any = modes.iter().any(|observe| *observe);
            any && (all || self.has(Flaw::ObserveIfAny))
        };
        let denied = |observe, code, api: Option<&Api>| Answer {
            allow: false,
            observe,
            rules: Vec::new(),
            codes: vec![code],
            api: api.map(|api| api.name.clone()),
        };
        let everywhere = observe(&holding(&grants));
        let api = match asked.what {
            What::Request => self.api_for(&asked.host, asked.port),
            What::Name => Some(self.api_for(&asked.host, asked.port)?),
            What::Address(address) => Some(self.api_at(address)?),
        };
        let Some(api) = api else {
            return Some(denied(everywhere, "unknown_host", None));
        };
        if asked.what == What::Name && api.is_inspected() {
            return None;
        }
        let concerns =
            |granted: &&&Granted<'_>| granted.rules.iter().any(|rule| rule.entry.api == api.name);
        let concerned: Vec<&Granted<'_>> = grants.iter().filter(concerns).copied().collect();
        let holds = concerned
            .iter()
            .any(|granted| self.holds(granted.grant, asked));
        if !holds {
            if let What::Address(address) = asked.what
                && self.inspects(address.port())
            {
                return None;
            }
            if concerned.is_empty() {
                return Some(denied(everywhere, "no_grant", Some(api)));
            }
            let mut answer = denied(everywhere, "", Some(api));
            answer.codes = self.lack(&concerned, asked);
            return Some(answer);
        }
        let mode = observe(&holding(&concerned));
        if api.is_inspected() {
            return Some(self.of_rules(api, &concerned, mode, asked));
        }
        if asked.what == What::Request {
            return Some(denied(mode, "uninspected", Some(api)));
        }
        Some(self.connected(api, &concerned, mode, asked))
    }

    fn inspects(&self, port: u16) -> bool {
        self.model.apis.iter().any(|api| match &api.kind {
            Kind::Hosts(_, on) | Kind::Sni(_, on) => *on == port,
            Kind::Tcp(_) => false,
        })
    }

    fn connected<'n>(
        &self,
        api: &Api,
        concerned: &[&'n Granted<'_>],
        observe: bool,
        asked: &Asked,
    ) -> Answer<'n> {
        let held = concerned
            .iter()
            .filter(|granted| self.holds(granted.grant, asked));
        let rules = held.flat_map(|granted| &granted.rules);
        Answer {
            allow: true,
            observe,
            rules: rules.filter(|rule| rule.entry.api == api.name).collect(),
            codes: Vec::new(),
            api: Some(api.name.clone()),
        }
    }

    /// What could be said of grants of which none holds.
    fn lack(&self, grants: &[&Granted<'_>], asked: &Asked) -> Vec<&'static str> {
        let lasting = grants
            .iter()
            .filter(|granted| self.lasts(granted.grant, asked));
        if lasting.count() == 0 {
            return vec!["expired"];
        }
        match asked.identity {
            None => vec!["identity_required"],
            Some(_) => vec!["identity"],
        }
    }

    fn of_rules<'n>(
        &self,
        api: &Api,
        concerned: &[&'n Granted<'_>],
        observe: bool,
        asked: &Asked,
    ) -> Answer<'n> {
        let all: Vec<(&Granted<'_>, &'n Placed)> = concerned
            .iter()
            .flat_map(|granted| granted.rules.iter().map(move |rule| (*granted, rule)))
            .filter(|(_, rule)| rule.entry.api == api.name)
            .collect();
        let held = |label: &str| {
            let same = all.iter().filter(|(_, rule)| rule.label == label);
            same.map(|(granted, _)| *granted)
                .any(|granted| self.holds(granted.grant, asked))
        };
        let answer = |allow, rules, codes| Answer {
            allow,
            observe,
            rules,
            codes,
            api: Some(api.name.clone()),
        };
        let denying = |(granted, placed): &&(&Granted<'_>, &'n Placed)| {
            placed.deny && self.holds(granted.grant, asked) && self.denies(placed, asked)
        };
        let denying: Vec<&Placed> = all.iter().filter(denying).map(|(_, rule)| *rule).collect();
        if !denying.is_empty() && !self.has(Flaw::DenyLoses) {
            return answer(false, self.most_specific(denying), vec!["denied_by_rule"]);
        }
        let (mut taking, mut failures) = (Vec::new(), Vec::new());
        for (_, placed) in all.iter().filter(|(_, placed)| !placed.deny) {
            let rule = placed.rule.as_ref().unwrap();
            if !self.path_fits(&rule.path, &asked.path, false) {
                continue;
            }
            match self.check(placed, asked) {
                Ok(()) if held(&placed.label) => taking.push(*placed),
                Ok(()) => {
                    let same = all.iter().filter(|(_, rule)| rule.label == placed.label);
                    let grants: Vec<&Granted<'_>> = same.map(|(granted, _)| *granted).collect();
                    failures.push((5, self.lack(&grants, asked)));
                }
                Err(failure) => failures.push(failure),
            }
        }
        if taking.is_empty() {
            let furthest = failures.iter().map(|(stage, _)| *stage).max();
            let nearest = failures
                .into_iter()
                .filter(|(stage, _)| Some(*stage) == furthest);
            let mut codes: Vec<&'static str> = nearest.flat_map(|(_, codes)| codes).collect();
            if codes.is_empty() {
                codes.push("no_route");
            }
            return answer(false, Vec::new(), codes);
        }
        let best = self.most_specific(taking);
        if asked.https {
            return answer(true, best, Vec::new());
        }
        answer(false, best, vec!["cleartext"])
    }

    /// Text before constrained before plain before `**`, from the left; then what says more; then named
    /// methods before `*`.
    fn most_specific<'n>(&self, rules: Vec<&'n Placed>) -> Vec<&'n Placed> {
        let key = |placed: &&'n Placed| {
            let rule = placed.rule.as_ref().unwrap();
            let ranks: Vec<u8> = rule.path.iter().map(rank).collect();
            let any = matches!(rule.methods, Methods::Any);
            (ranks, Reverse(says(rule)), any)
        };
        let best = match self.has(Flaw::LeastSpecificReported) {
            true => rules.iter().map(key).max(),
            false => rules.iter().map(key).min(),
        };
        let best = best.unwrap();
        rules.into_iter().filter(|rule| key(rule) == best).collect()
    }

    fn denies(&self, placed: &Placed, asked: &Asked) -> bool {
        let rule = placed.rule.as_ref().unwrap();
        let method = match &rule.methods {
            Methods::Any => true,
            named => named_methods(named).iter().any(|method| {
                *method == asked.method
                    || (method.eq_ignore_ascii_case(&asked.method)
                        && !self.has(Flaw::DenyMindsCase))
            }),
        };
        let without_slash = |last_is_empty: bool, length: usize| {
            let drop = last_is_empty && !self.has(Flaw::DenyMindsTrailingSlash);
            length - usize::from(drop)
        };
        let ends = matches!(rule.path.last(), Some(Segment::Text(text)) if text.is_empty());
        let template = &rule.path[..without_slash(ends, rule.path.len())];
        let ends = asked.path.last().is_some_and(String::is_empty);
        let path = &asked.path[..without_slash(ends, asked.path.len())];
        method && self.path_fits(template, path, true) && self.condition_holds(rule, asked)
    }

    fn condition_holds(&self, rule: &Rule, asked: &Asked) -> bool {
        let Some(condition) = rule.when else {
            return true;
        };
        let json = match &asked.payload {
            Payload::Json(json) if body::media_of(asked) == Ok(true) => Some(json),
            _ => None,
        };
        (CONDITIONS[condition].means)(&Facts {
            asked,
            path: &captured(&rule.path, &asked.path),
            json,
        })
    }

    fn path_fits(&self, template: &[Segment], path: &[String], deny: bool) -> bool {
        let slash = self.has(Flaw::AllowIgnoresTrailingSlash);
        match (template, path) {
            ([Segment::Rest], _) | ([], []) => true,
            ([], [last]) if slash && last.is_empty() => true,
            ([first, template @ ..], [segment, path @ ..]) => {
                let fits = match first {
                    Segment::Text(text) if deny => {
                        decoded(text).to_lowercase() == segment.to_lowercase()
                    }
                    Segment::Text(text) => decoded(text) == *segment,
                    Segment::Star | Segment::Named(_) => !segment.is_empty(),
                    Segment::Int(_) if deny => {
                        let text = segment.trim();
                        let digits = text.strip_prefix(['+', '-']).unwrap_or(text);
                        !digits.is_empty() && digits.chars().all(|one| one.is_ascii_digit())
                    }
                    Segment::Int(_) => integer(segment).is_some(),
                    Segment::Uuid(_) if deny => {
                        let text = segment.trim().trim_matches(['{', '}', '(', ')']);
                        let digits = text.replace('-', "");
                        digits.len() == 32 && digits.chars().all(|one| one.is_ascii_hexdigit())
                    }
                    Segment::Uuid(_) => is_uuid(segment),
                    Segment::Pattern(_, number) => {
                        !segment.is_empty() && (PATTERNS[*number].means)(segment)
                    }
                    Segment::Rest => false,
                };
                fits && self.path_fits(template, path, deny)
            }
            _ => false,
        }
    }

    /// How far the rule gets, and what could be said of where it fails.
    fn check(&self, placed: &Placed, asked: &Asked) -> Result<(), (u8, Vec<&'static str>)> {
        let rule = placed.rule.as_ref().unwrap();
        let method = asked.method.as_str();
        let good = match &rule.methods {
            Methods::Any => {
                let tunnel = matches!(method, "CONNECT" | "TRACE");
                let lower = method.chars().any(|one| one.is_ascii_lowercase());
                (!tunnel || self.has(Flaw::StarAllowsTrace)) && !lower
            }
            named => named_methods(named).contains(&method),
        };
        if !good {
            return Err((1, vec!["method"]));
        }
        let query = self.query_faults(placed, rule, asked);
        if !query.is_empty() {
            return Err((2, query));
        }
        let headers = self.header_faults(rule, asked);
        if !headers.is_empty() {
            return Err((3, headers));
        }
        if let Some(declared) = &rule.body {
            let faults = body::faults(self, declared, asked);
            if !faults.is_empty() {
                return Err((4, faults));
            }
        }
        if !self.condition_holds(rule, asked) {
            return Err((4, vec!["condition"]));
        }
        Ok(())
    }
}

/// All rules of a role and of those it includes, each role once.
fn expand(
    model: &Model,
    lines: &HashMap<Place, u32>,
    used: &RoleUse,
    flaw: Option<Flaw>,
    rules: &mut Vec<Placed>,
    known: &mut Vec<String>,
) {
    let name = used.to_string();
    if known.contains(&name) {
        return;
    }
    known.push(name.clone());
    let role = model
        .roles
        .iter()
        .find(|role| role.name == used.name)
        .unwrap();
    for (index, item) in role.items.iter().enumerate() {
        let line = |which| lines[&(role.name.clone(), index, which)];
        match item.filled(&used.arguments) {
            Item::Include(_) if flaw == Some(Flaw::InclusionIgnored) => {}
            Item::Include(included) => expand(model, lines, &included, flaw, rules, known),
            Item::Entry(entry) if entry.allow.is_empty() && entry.deny.is_empty() => {
                rules.push(Placed {
                    label: format!("role:{name} connect {}", entry.api),
                    line: line(None),
                    deny: false,
                    rule: None,
                    entry,
                });
            }
            Item::Entry(entry) => {
                for (deny, list) in [(false, &entry.allow), (true, &entry.deny)] {
                    rules.extend(list.iter().enumerate().map(|(number, rule)| Placed {
                        label: format!(
                            "role:{name} {} {}",
                            if deny { "deny" } else { "allow" },
                            rule.route()
                        ),
                        line: line(Some((deny, number))),
                        deny,
                        rule: Some(rule.clone()),
                        entry: entry.clone(),
                    }));
                }
            }
        }
    }
}

fn named_methods(methods: &Methods) -> Vec<&str> {
    match methods {
        Methods::Any => Vec::new(),
        Methods::ReadOnly => vec!["GET", "HEAD"],
        Methods::These(methods) => methods.iter().map(String::as_str).collect(),
    }
}

fn rank(segment: &Segment) -> u8 {
    match segment {
        Segment::Text(_) => 0,
        Segment::Int(_) | Segment::Uuid(_) | Segment::Pattern(..) => 1,
        Segment::Star | Segment::Named(_) => 2,
        Segment::Rest => 3,
    }
}

/// How much a rule says of query, headers and body: one each for `query`, each parameter that is not any
/// text, each required header, `body` and `when`.
fn says(rule: &Rule) -> usize {
    let narrows = |shape: &Shape| !matches!(shape, Shape::Any | Shape::Text);
    let query = rule.query.as_ref().map_or(0, |parameters| {
        1 + parameters.iter().filter(|one| narrows(&one.shape)).count()
    });
    query
        + rule.headers.require.len()
        + usize::from(rule.body.is_some())
        + usize::from(rule.when.is_some())
}

/// Segments of the path that the template names.
fn captured(template: &[Segment], path: &[String]) -> Vec<(String, String)> {
    let named = |(segment, text): (&Segment, &String)| match segment {
        Segment::Named(name)
        | Segment::Int(name)
        | Segment::Uuid(name)
        | Segment::Pattern(name, _) => Some((name.clone(), text.clone())),
        _ => None,
    };
    template.iter().zip(path).filter_map(named).collect()
}

fn covers(range: std::net::IpAddr, bits: u8, address: std::net::IpAddr) -> bool {
    let binary = |address: std::net::IpAddr| match address {
        std::net::IpAddr::V4(four) => format!("4{:032b}", four.to_bits()),
        std::net::IpAddr::V6(six) => format!("6{:0128b}", six.to_bits()),
    };
    let length = 1 + usize::from(bits);
    binary(range)[..length] == binary(address.to_canonical())[..length]
}
