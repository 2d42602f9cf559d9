//! What holds whatever the policy.
use crate::chance::Chance;
use crate::generate::{self, grant, model};
use crate::model::{Grant, Item, Model, Rule, Segment};
use crate::naive::Naive;
use crate::request::{Asked, Seen, ask, explain, seen, seen_decision};
use crate::{compiled, source, witness};
use tollgate_policy::canonical::{Host, Target};
use tollgate_policy::{Policy, compile};

/// Policies that each law is tried on, and requests for each.
const POLICIES: usize = 300;
const REQUESTS: usize = 96;

/// Calls `law` with policies and requests made from them.
fn for_all(seed: u64, mut law: impl FnMut(&mut Chance, &Model, &Policy, &[Asked])) {
    let mut chance = Chance::new(seed);
    for _ in 0..POLICIES {
        let model = model(&mut chance);
        let printed = model.document();
        let policy = compiled(&printed.text);
        let naive = Naive::new(&model, &printed.lines, None);
        let requests = witness::requests(&mut chance, &naive, REQUESTS);
        law(&mut chance, &model, &policy, &requests);
    }
}

fn of(model: &Model) -> Policy {
    compiled(&model.document().text)
}

fn look(policy: &Policy, asked: &Asked) -> Option<Seen> {
    seen(&ask(policy, asked))
}

/// Connections that are to be inspected are not let in, nor shut out.
fn allowed(policy: &Policy, asked: &Asked) -> bool {
    look(policy, asked).is_none_or(|seen| seen.allow)
}

/// An entry that has rules, by chance: its role and place there.
fn some_entry(chance: &mut Chance, model: &Model) -> Option<(usize, usize)> {
    let mut places = Vec::new();
    for (role, items) in model.roles.iter().enumerate() {
        for (item, kind) in items.items.iter().enumerate() {
            if matches!(kind, Item::Entry(entry) if !entry.allow.is_empty() || !entry.deny.is_empty())
            {
                places.push((role, item));
            }
        }
    }
    (!places.is_empty()).then(|| *chance.pick(&places))
}

/// Another rule in an entry that is there.
fn with_rule(model: &Model, (role, item): (usize, usize), deny: bool, rule: Rule) -> Model {
    let mut more = model.clone();
    if let Item::Entry(entry) = &mut more.roles[role].items[item] {
        let list = if deny {
            &mut entry.deny
        } else {
            &mut entry.allow
        };
        list.push(rule);
    }
    more
}

fn rule(chance: &mut Chance, deny: bool) -> Rule {
    generate::rule(chance, deny)
}

/// Whether the role of a grant has a deny rule, also in a role that it includes.
fn denies(model: &Model, granted: &Grant) -> bool {
    let alone = Model {
        grants: vec![granted.clone()],
        ..model.clone()
    };
    let printed = alone.document();
    let naive = Naive::new(&alone, &printed.lines, None);
    naive
        .granted
        .iter()
        .any(|granted| granted.rules.iter().any(|rule| rule.deny))
}

#[test]
fn nothing_granted_is_nothing_allowed() {
    let nothing = compile(&[]).unwrap().policy;
    for_all(1, |_, model, _, requests| {
        let none = of(&Model {
            grants: Vec::new(),
            ..model.clone()
        });
        for asked in requests {
            for policy in [&none, &nothing] {
                let seen = look(policy, asked);
                assert!(
                    seen.is_none_or(|seen| !seen.allow && !seen.observe),
                    "{asked:?}"
                );
            }
        }
    });
}

#[test]
fn deny_wins() {
    let mut tried = 0;
    for_all(2, |_, model, policy, requests| {
        for asked in requests.iter().take(24) {
            let Some(seen) = look(policy, asked).filter(|seen| seen.allow) else {
                continue;
            };
            let (label, api) = (seen.rule.unwrap(), seen.plan.api.unwrap());
            if label.contains(" connect ") {
                continue;
            }
            let forbids = Rule {
                path: vec![Segment::Rest],
                ..generate::anything()
            };
            let more = with_entry(model, &api, forbids, asked);
            let seen = look(&of(&more), asked).unwrap();
            assert_eq!(seen.code.unwrap_or("denied_by_rule"), "denied_by_rule");
            assert!(!seen.allow, "{asked:?}\n{}", more.document().text);
            tried += 1;
        }
    });
    assert!(tried > 1_000, "{tried}");
}

/// With a role that forbids something on an api, granted to who asks.
fn with_entry(model: &Model, api: &str, forbids: Rule, asked: &Asked) -> Model {
    let mut more = model.clone();
    more.roles.push(crate::model::Role {
        name: "forbidding".to_owned(),
        parameters: Vec::new(),
        items: vec![Item::Entry(crate::model::Entry {
            api: api.to_owned(),
            credential: crate::model::Carries::None,
            allow: Vec::new(),
            deny: vec![forbids],
            response_strip: Vec::new(),
            response_max: None,
        })],
    });
    more.grants.push(Grant {
        role: crate::model::RoleUse {
            name: "forbidding".to_owned(),
            arguments: Vec::new(),
        },
        workloads: vec![asked.workload.clone()],
        identities: Vec::new(),
        groups: Vec::new(),
        observe: true,
        until: None,
    });
    more
}

#[test]
fn an_allow_never_shuts_out_and_a_deny_never_lets_in() {
    let mut changed = [0, 0];
    for_all(3, |chance, model, policy, requests| {
        let Some(place) = some_entry(chance, model) else {
            return;
        };
        let deny = chance.once_in(2);
        let rule = rule(chance, deny);
        let more = with_rule(model, place, deny, rule);
        let after = of(&more);
        // Requests that the new rule is about, too.
        let printed = more.document();
        let naive = Naive::new(&more, &printed.lines, None);
        let about = witness::requests(chance, &naive, REQUESTS);
        for asked in requests.iter().chain(&about) {
            let (was, is) = (allowed(policy, asked), allowed(&after, asked));
            assert!(if deny { was || !is } else { is || !was }, "{asked:?}");
            changed[usize::from(deny)] += u32::from(was != is);
        }
    });
    assert!(changed.iter().all(|count| *count > 50), "{changed:?}");
}

#[test]
fn a_grant_lets_in_unless_it_denies() {
    let mut changed = [0, 0];
    for_all(4, |chance, model, policy, requests| {
        let mut more = model.clone();
        let added = grant(chance, model);
        let may_deny = denies(model, &added);
        more.grants.push(added);
        let after = of(&more);
        let printed = more.document();
        let naive = Naive::new(&more, &printed.lines, None);
        let about = witness::requests(chance, &naive, REQUESTS);
        let mut fewer = model.clone();
        let removed = fewer.grants.remove(chance.below(model.grants.len()));
        let denied = denies(model, &removed);
        let before = of(&fewer);
        for asked in requests.iter().chain(&about) {
            let was = allowed(policy, asked);
            let (more, fewer) = (allowed(&after, asked), allowed(&before, asked));
            assert!(more || !was || may_deny, "{asked:?}\n{}", printed.text);
            assert!(was || !fewer || denied, "{asked:?}\n{}", printed.text);
            changed[0] += u32::from(was != more);
            changed[1] += u32::from(was != fewer);
        }
    });
    assert!(changed.iter().all(|count| *count > 500), "{changed:?}");
}

/// Order of sections, definitions, items, rules, grants and keys, and which file they stand in.
#[test]
fn neither_order_nor_files_matter() {
    for_all(5, |chance, model, policy, requests| {
        let mut turned = model.clone();
        chance.shuffle(&mut turned.workloads);
        chance.shuffle(&mut turned.identities);
        chance.shuffle(&mut turned.groups);
        chance.shuffle(&mut turned.apis);
        chance.shuffle(&mut turned.credentials);
        chance.shuffle(&mut turned.roles);
        chance.shuffle(&mut turned.grants);
        for role in &mut turned.roles {
            chance.shuffle(&mut role.parameters);
            chance.shuffle(&mut role.items);
            for item in &mut role.items {
                if let Item::Entry(entry) = item {
                    chance.shuffle(&mut entry.allow);
                    chance.shuffle(&mut entry.deny);
                }
            }
        }
        let mut order = chance.clone();
        let text = turned
            .document_in_order(&mut |keys| order.shuffle(keys))
            .text;
        let whole = compiled(&text);
        let mut files = split(&turned, chance, &mut order);
        chance.shuffle(&mut files);
        let merged = compile(&files)
            .unwrap_or_else(|faults| panic!("{faults}"))
            .policy;
        for asked in requests {
            let expected = look(policy, asked);
            assert_eq!(expected, look(&whole, asked), "{asked:?}\n{text}");
            assert_eq!(expected, look(&merged, asked), "{asked:?}\n{text}");
        }
    });
}

/// Each definition in one of three files by chance.
fn split(
    model: &Model,
    chance: &mut Chance,
    order: &mut Chance,
) -> Vec<tollgate_policy::syntax::Source> {
    let mut files = vec![Model::default(); 3];
    macro_rules! deal {
        ($($part:ident),*) => {$(
            for thing in &model.$part {
                files[chance.below(3)].$part.push(thing.clone());
            }
        )*};
    }
    deal!(
        workloads,
        identities,
        groups,
        apis,
        credentials,
        roles,
        grants
    );
    let printed = files.iter().enumerate().map(|(number, file)| {
        let text = file.document_in_order(&mut |keys| order.shuffle(keys)).text;
        source(&format!("{number}.yaml"), text)
    });
    printed.collect()
}

/// Names mean nothing. That they stay in order keeps the rule that is reported where two say the same.
#[test]
fn renaming_changes_names_only() {
    for_all(6, |_, model, policy, requests| {
        let after = of(&renamed(model));
        let mark = |name: &Option<String>| name.as_ref().map(|name| format!("n-{name}"));
        for asked in requests {
            let mut asked_after = asked.clone();
            if model.workloads.contains(&asked.workload) {
                asked_after.workload = format!("n-{}", asked.workload);
            }
            if asked
                .identity
                .as_ref()
                .is_some_and(|name| model.identities.contains(name))
            {
                asked_after.identity = mark(&asked.identity);
            }
            let (mut was, mut is) = (look(policy, asked), look(&after, &asked_after));
            for (seen, mark) in [(&mut was, true), (&mut is, false)] {
                let Some(seen) = seen else { continue };
                // Labels have names of roles and apis inside.
                seen.rule = seen.rule.as_ref().map(|label| label.replace("n-", ""));
                if mark {
                    for name in [&mut seen.plan.api, &mut seen.plan.credential] {
                        *name = name.as_ref().map(|name| format!("n-{name}"));
                    }
                }
            }
            assert_eq!(was, is, "{asked:?}");
        }
    });
}

fn renamed(model: &Model) -> Model {
    let mut model = model.clone();
    let mark = |name: &mut String| {
        // What a parameter gives is marked where it is given.
        if !name.starts_with("${") {
            *name = format!("n-{name}");
        }
    };
    let use_of = |used: &mut crate::model::RoleUse| {
        mark(&mut used.name);
        for (parameter, value) in &mut used.arguments {
            if parameter == "api" {
                mark(value);
            }
        }
    };
    model.workloads.iter_mut().for_each(mark);
    model.identities.iter_mut().for_each(mark);
    for (name, members) in &mut model.groups {
        mark(name);
        members.iter_mut().for_each(mark);
    }
    model.apis.iter_mut().for_each(|api| mark(&mut api.name));
    for credential in &mut model.credentials {
        mark(&mut credential.name);
        credential.to.iter_mut().for_each(mark);
    }
    for role in &mut model.roles {
        mark(&mut role.name);
        for item in &mut role.items {
            match item {
                Item::Include(used) => use_of(used),
                Item::Entry(entry) => {
                    mark(&mut entry.api);
                    if let crate::model::Carries::Injected(name) = &mut entry.credential {
                        mark(name);
                    }
                }
            }
        }
    }
    for grant in &mut model.grants {
        use_of(&mut grant.role);
        grant.workloads.iter_mut().for_each(mark);
        grant.identities.iter_mut().for_each(mark);
        grant.groups.iter_mut().for_each(mark);
    }
    model
}

#[test]
fn an_expired_grant_is_as_if_it_were_not_there() {
    let mut expired = 0;
    for_all(7, |_, model, policy, requests| {
        for asked in requests {
            let mut left = model.clone();
            let lasts = |grant: &Grant| grant.until.is_none_or(|(_, last)| asked.now <= last);
            left.grants.retain(lasts);
            if left.grants.len() == model.grants.len() {
                continue;
            }
            expired += 1;
            let after = of(&left);
            let (was, is) = (look(policy, asked), look(&after, asked));
            // The mode is that of all grants, also of one that ended: its end never lets pass what was refused.
            let observed = |seen: &Option<Seen>| seen.as_ref().is_some_and(|seen| seen.observe);
            assert!(observed(&is) || !observed(&was), "{asked:?}");
            let rest = |seen: Option<Seen>| {
                seen.map(|seen| Seen {
                    code: None,
                    observe: false,
                    ..seen
                })
            };
            assert_eq!(rest(was), rest(is), "{asked:?}");
        }
    });
    assert!(expired > 300, "{expired}");
}

#[test]
fn observing_changes_no_verdict() {
    for_all(8, |_, model, policy, requests| {
        let modes = [true, false].map(|observe| {
            let mut changed = model.clone();
            changed
                .grants
                .iter_mut()
                .for_each(|grant| grant.observe = observe);
            of(&changed)
        });
        for asked in requests {
            let blind = |policy| {
                look(policy, asked).map(|seen| Seen {
                    observe: false,
                    ..seen
                })
            };
            for changed in &modes {
                assert_eq!(blind(policy), blind(changed), "{asked:?}");
            }
            // Where all enforce, nothing is let pass.
            assert!(look(&modes[1], asked).is_none_or(|seen| !seen.observe));
        }
    });
}

#[test]
fn explanations_agree_with_decisions() {
    let mut near_misses = 0;
    for_all(9, |_, _, policy, requests| {
        for asked in requests {
            if asked.what != crate::request::What::Request {
                continue;
            }
            let read = Asked {
                spelling: asked.spelling & !(1 << 9),
                ..asked.clone()
            };
            let explanation = explain(policy, &read);
            let explained = seen_decision(&explanation.decision);
            assert_eq!(look(policy, &read), Some(explained.clone()), "{asked:?}");
            near_misses += explanation.near.len();
            let place = explanation
                .decision
                .rule
                .map(|rule| (&rule.label, &rule.at));
            for near in &explanation.near {
                assert_ne!(place, Some((&near.rule.label, &near.rule.at)), "{asked:?}");
                assert!(!near.failed.detail.is_empty() && !near.failed.hint.is_empty());
            }
            // Where no rule is reported, the first near miss is what the reason speaks of.
            if let (None, Some(first), Some(code)) =
                (place, explanation.near.first(), explained.code)
                && first.failed.code != "no_route"
                && !matches!(code, "expired" | "identity" | "identity_required")
            {
                assert_eq!(stage(first.failed.code), stage(code), "{asked:?}");
            }
        }
    });
    assert!(near_misses > 10_000, "{near_misses}");
}

/// How far a rule got.
fn stage(code: &str) -> u8 {
    match code {
        "no_route" => 0,
        "method" => 1,
        code if code.starts_with("query") => 2,
        code if code.starts_with("header") => 3,
        code if code.starts_with("body") => 4,
        _ => 5,
    }
}

#[test]
fn canonical_is_canonical() {
    let again = |raw: &str| {
        let Ok(target) = Target::parse(raw) else {
            return false;
        };
        let text = target.to_string();
        let twice = Target::parse(&text).unwrap_or_else(|error| panic!("{raw}: {text}: {error}"));
        assert_eq!(twice, target, "{raw}");
        true
    };
    for_all(10, |_, _, _, requests| {
        for asked in requests {
            assert!(again(&asked.target()), "{asked:?}");
            let host = Host::parse(&asked.host).unwrap();
            assert_eq!(Host::parse(host.as_str()).unwrap(), host);
        }
    });
    let mut chance = Chance::new(11);
    let parts = [
        "/", "/", "a", "b", ".", "..", "%2e", "%41", "%7e", "%3A", "?", "&", "=", "+", "%20",
        "%25", "é", "%C3%A9", "{", "\"", ":", "@", "%2B", "~", "*", "//", "%c3%a9", "'", "(", "!",
    ];
    let mut good = 0;
    for _ in 0..60_000 {
        let length = chance.below(10);
        let raw: String = (0..length).map(|_| chance.word(&parts)).collect();
        good += u32::from(again(&format!("/{raw}")));
    }
    assert!(good > 10_000, "{good}");
}
