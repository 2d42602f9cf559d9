//! A smaller policy and request on which both evaluators still differ.
use crate::agreement::compare;
use crate::model::{Carries, Headers, Item, Model, Rule};
use crate::naive::Naive;
use crate::request::{Asked, Payload};

/// Drops one part after the other, as long as there is still a difference.
pub(crate) fn shrunk(model: Model, asked: Asked) -> (Model, Asked) {
    let (mut model, mut asked) = (model, asked);
    loop {
        let smaller = models(&model)
            .into_iter()
            .find(|smaller| differ(smaller, &asked));
        if let Some(smaller) = smaller {
            model = smaller;
            continue;
        }
        let smaller = requests(&asked)
            .into_iter()
            .find(|smaller| differ(&model, smaller));
        match smaller {
            Some(smaller) => asked = smaller,
            None => return (model, asked),
        }
    }
}

fn differ(model: &Model, asked: &Asked) -> bool {
    let printed = model.document();
    let source = crate::source("p.yaml", printed.text);
    let Ok(compiled) = tollgate_policy::compile(&[source]) else {
        return false;
    };
    let naive = Naive::new(model, &printed.lines, None);
    compare(&naive, &compiled.policy, asked).is_err()
}

/// The list without each of its parts in turn.
fn without<T: Clone>(list: &[T]) -> Vec<Vec<T>> {
    (0..list.len())
        .map(|index| {
            let mut shorter = list.to_vec();
            shorter.remove(index);
            shorter
        })
        .collect()
}

fn models(model: &Model) -> Vec<Model> {
    let mut smaller = Vec::new();
    let mut with = |change: &dyn Fn(&mut Model)| {
        let mut copy = model.clone();
        change(&mut copy);
        smaller.push(copy);
    };
    for grants in without(&model.grants) {
        with(&|copy| copy.grants = grants.clone());
    }
    for roles in without(&model.roles) {
        with(&|copy| copy.roles = roles.clone());
    }
    for apis in without(&model.apis) {
        with(&|copy| copy.apis = apis.clone());
    }
    for groups in without(&model.groups) {
        with(&|copy| copy.groups = groups.clone());
    }
    for credentials in without(&model.credentials) {
        with(&|copy| copy.credentials = credentials.clone());
    }
    for (index, grant) in model.grants.iter().enumerate() {
        with(&|copy| copy.grants[index].observe = false);
        if grant.until.is_some() {
            with(&|copy| copy.grants[index].until = None);
        }
        with(&|copy| copy.grants[index].identities.clear());
        with(&|copy| copy.grants[index].groups.clear());
    }
    for (index, role) in model.roles.iter().enumerate() {
        for items in without(&role.items) {
            with(&|copy| copy.roles[index].items = items.clone());
        }
        for (number, item) in role.items.iter().enumerate() {
            for item in items(item) {
                with(&|copy| copy.roles[index].items[number] = item.clone());
            }
        }
    }
    // What is no smaller would be tried for ever.
    let length = |model: &Model| model.document().text.len();
    let before = length(model);
    smaller.retain(|copy| length(copy) < before);
    smaller
}

fn items(item: &Item) -> Vec<Item> {
    let Item::Entry(entry) = item else {
        return Vec::new();
    };
    let mut smaller = Vec::new();
    let mut with = |change: &dyn Fn(&mut crate::model::Entry)| {
        let mut copy = entry.clone();
        change(&mut copy);
        smaller.push(Item::Entry(copy));
    };
    with(&|copy| copy.credential = Carries::None);
    with(&|copy| {
        copy.response_strip.clear();
        copy.response_max = None;
    });
    for allow in without(&entry.allow) {
        with(&|copy| copy.allow = allow.clone());
    }
    for deny in without(&entry.deny) {
        with(&|copy| copy.deny = deny.clone());
    }
    for (index, rule) in entry.allow.iter().enumerate() {
        for rule in rules(rule) {
            with(&|copy| copy.allow[index] = rule.clone());
        }
    }
    smaller
}

fn rules(rule: &Rule) -> Vec<Rule> {
    let mut smaller = Vec::new();
    let mut with = |change: &dyn Fn(&mut Rule)| {
        let mut copy = rule.clone();
        change(&mut copy);
        smaller.push(copy);
    };
    with(&|copy| copy.query = None);
    with(&|copy| copy.strip = false);
    with(&|copy| copy.headers = Headers::default());
    with(&|copy| copy.body = None);
    with(&|copy| copy.when = None);
    for query in without(rule.query.as_deref().unwrap_or(&[])) {
        with(&|copy| copy.query = Some(query.clone()));
    }
    for require in without(&rule.headers.require) {
        with(&|copy| copy.headers.require = require.clone());
    }
    if let Some(body) = &rule.body {
        for fields in without(&body.fields) {
            with(&|copy| copy.body.as_mut().unwrap().fields = fields.clone());
        }
    }
    smaller
}

fn requests(asked: &Asked) -> Vec<Asked> {
    let mut smaller = Vec::new();
    for bit in (0..11).filter(|bit| asked.spelling & (1 << bit) != 0) {
        smaller.push(Asked {
            spelling: asked.spelling & !(1 << bit),
            ..asked.clone()
        });
    }
    for query in without(&asked.query) {
        smaller.push(Asked {
            query,
            ..asked.clone()
        });
    }
    for headers in without(&asked.headers) {
        smaller.push(Asked {
            headers,
            ..asked.clone()
        });
    }
    if !matches!(asked.payload, Payload::Absent) {
        smaller.push(Asked {
            payload: Payload::Absent,
            ..asked.clone()
        });
    }
    if asked.identity.is_some() {
        smaller.push(Asked {
            identity: None,
            ..asked.clone()
        });
    }
    smaller
}
