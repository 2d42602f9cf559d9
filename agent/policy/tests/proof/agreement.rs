//! Both evaluators on a million pairs of policies and requests.
use crate::chance::Chance;
use crate::flaws;
use crate::model::Model;
use crate::naive::{Answer, Naive, Placed};
use crate::request::{Asked, Got, ask, seen_decision};
use crate::shrink::shrunk;
use crate::tally::Tally;
use crate::{compiled, generate, witness};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tollgate_policy::Policy;

const POLICIES: usize = 4_200;
const REQUESTS: usize = 256;
/// Half of the policies are the same in each run.
const SEED: u64 = 0x7011_6a7e;

/// What both said, if they said the same.
pub(crate) enum Agreed<'n> {
    Inspected,
    Decided(Answer<'n>, Option<&'n Placed>, Option<&'static str>),
}

/// Both answers, held against each other; an error says where they differ.
pub(crate) fn compare<'n>(
    naive: &'n Naive<'_>,
    policy: &Policy,
    asked: &Asked,
) -> Result<Agreed<'n>, String> {
    let got = ask(policy, asked);
    let answer = naive.answer(asked);
    let (decision, whole) = match &got {
        Got::Decided(decision) => (decision, true),
        Got::FromPart(decision) => (decision, false),
        Got::Inspected => {
            return match answer {
                None => Ok(Agreed::Inspected),
                Some(answer) => Err(format!("it is to be inspected, not {answer:?}")),
            };
        }
    };
    let Some(answer) = answer else {
        return Err(format!(
            "it is decided, and should be inspected: {decision:?}"
        ));
    };
    let seen = seen_decision(decision);
    let differs = |what: &str| Err(format!("{what}: {seen:?}\n  not {answer:?}"));
    if seen.allow != answer.allow {
        return differs("verdict");
    }
    let placed = match decision.rule {
        None if answer.rules.is_empty() => None,
        None => return differs("no rule is reported"),
        Some(rule) => {
            let same =
                |placed: &&&Placed| *placed.label == *rule.label && placed.line == rule.at.line;
            match answer.rules.iter().find(same) {
                Some(placed) => Some(*placed),
                None => return differs("rule"),
            }
        }
    };
    if seen.observe != naive.observed(&answer, placed) {
        return differs("mode");
    }
    if let (Some(code), true) = (seen.code, whole)
        && !answer.codes.contains(&code)
    {
        return differs("code");
    }
    let plan = naive.plan(&answer, placed, asked);
    if seen.plan != plan {
        return differs(&format!("plan should be {plan:?}"));
    }
    Ok(Agreed::Decided(answer, placed, seen.code.filter(|_| whole)))
}

/// Compares one policy on some requests.
fn run(model: &Model, chance: &mut Chance, tally: &mut Tally) {
    let printed = model.document();
    let policy = compiled(&printed.text);
    let naive = Naive::new(model, &printed.lines, None);
    for asked in witness::requests(chance, &naive, REQUESTS) {
        match compare(&naive, &policy, &asked) {
            Ok(agreed) => tally.count(&naive, &asked, &agreed),
            Err(_) => {
                let (model, asked) = shrunk(model.clone(), asked);
                let printed = model.document();
                let (policy, naive) = (
                    compiled(&printed.text),
                    Naive::new(&model, &printed.lines, None),
                );
                let difference = compare(&naive, &policy, &asked).err();
                panic!(
                    "{}\n{asked:?}\n{}",
                    printed.text,
                    difference.unwrap_or_default()
                );
            }
        }
    }
}

/// A seed for this run: given, or of the clock.
fn fresh_seed() -> u64 {
    let given = std::env::var("TOLLGATE_PROOF_SEED").ok();
    let clock = || {
        SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap()
            .subsec_nanos()
    };
    given.map_or_else(|| u64::from(clock()), |text| text.parse().unwrap())
}

#[test]
fn both_evaluators_agree_on_a_million_pairs() {
    let fresh = fresh_seed();
    println!("TOLLGATE_PROOF_SEED={fresh}");
    let start = Instant::now();
    let mut tally = Tally::default();
    for seed in [SEED, fresh] {
        let mut chance = Chance::new(seed);
        for _ in 0..POLICIES / 2 {
            let model = generate::model(&mut chance);
            run(&model, &mut chance, &mut tally);
        }
    }
    println!("{tally}in {:.1?}", start.elapsed());
    tally.check();
}

#[test]
fn a_wrong_evaluator_is_noticed() {
    const MOST: usize = 400;
    let mut chance = Chance::new(SEED);
    let mut left = flaws::ALL.to_vec();
    let mut pairs = 0;
    for _ in 0..MOST {
        let model = generate::model(&mut chance);
        let printed = model.document();
        let policy = compiled(&printed.text);
        let right = Naive::new(&model, &printed.lines, None);
        let requests = witness::requests(&mut chance, &right, REQUESTS);
        pairs += requests.len();
        let same = requests
            .iter()
            .all(|asked| compare(&right, &policy, asked).is_ok());
        assert!(same, "the right evaluator differs");
        left.retain(|flaw| {
            let wrong = Naive::new(&model, &printed.lines, Some(*flaw));
            let noticed = requests
                .iter()
                .any(|asked| compare(&wrong, &policy, asked).is_err());
            if noticed {
                println!("{flaw:?} is noticed within {pairs} pairs");
            }
            !noticed
        });
        if left.is_empty() {
            return;
        }
    }
    panic!("not noticed within {pairs} pairs: {left:?}");
}
