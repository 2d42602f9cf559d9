//! Evaluation: bounded, without panics, without copies of the body.
use super::Facts;
use super::effort::Effort;
use super::operate;
use super::time;
use super::tree::{Each, EachKind, Expr, Fact};
use super::value::{Evaluated, List, Map, Trouble, Value, equal};
use regex::Regex;
use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;
use std::rc::Rc;

/// Steps for each byte that a pattern reads, and for each look at a pattern.
const PATTERN_BYTE: usize = 4;
const PATTERN_LOOK: usize = 16;

pub(super) fn holds<'v>(root: &'v Expr, facts: &'v Facts<'v>) -> Evaluated<'v, bool> {
    let mut run = Run {
        facts,
        effort: Effort::new(),
        locals: Vec::new(),
        query: OnceCell::new(),
    };
    let held = run.truth(root);
    // No `||` hides that there was too much to do.
    if run.effort.is_exhausted() {
        return Err(Trouble::Effort);
    }
    held
}

struct Run<'v> {
    facts: &'v Facts<'v>,
    effort: Effort,
    locals: Vec<Value<'v>>,
    /// Made when it is first asked for.
    query: OnceCell<Map<'v>>,
}

impl<'v> Run<'v> {
    fn eval(&mut self, expr: &'v Expr) -> Evaluated<'v> {
        self.effort.take(1)?;
        match expr {
            Expr::Literal(literal) => Ok(Value::literal(literal)),
            Expr::Fact(fact) => self.fact(*fact),
            Expr::Parameter(name) => self.parameter(name),
            Expr::Header(name) => self.header(name)?.ok_or(Trouble::NoHeader(name)),
            Expr::HasHeader(name) => Ok(Value::Bool(self.header(name)?.is_some())),
            Expr::HasFact(fact) => Ok(Value::Bool(self.has_fact(*fact))),
            Expr::Local(slot) => Ok(self.locals.get(*slot).cloned().unwrap_or(Value::Null)),
            Expr::Field(of, name) => self.field(of, name)?.ok_or(Trouble::NoField(name)),
            Expr::HasField(of, name) => Ok(Value::Bool(self.field(of, name)?.is_some())),
            Expr::Index(of, index) => {
                let of = self.eval(of)?;
                let index = self.eval(index)?;
                operate::index(&of, &index, &self.effort)
            }
            Expr::List(items) => self.list(items),
            Expr::Map(entries) => self.map(entries),
            Expr::Not(operand) => Ok(Value::Bool(!self.truth(operand)?)),
            Expr::Negate(operand) => operate::negate(&self.eval(operand)?),
            Expr::Binary(operator, left, right) => {
                let left = self.eval(left)?;
                let right = self.eval(right)?;
                operate::binary(*operator, &left, &right, &self.effort)
            }
            Expr::And(terms) => self.any(terms, false),
            Expr::Or(terms) => self.any(terms, true),
            Expr::Choose(parts) => {
                let [condition, yes, no] = &**parts;
                let chosen = if self.truth(condition)? { yes } else { no };
                self.eval(chosen)
            }
            Expr::Call(function, arguments) => self.call(*function, arguments),
            Expr::Matches(text, pattern) => self.matches(text, pattern),
            Expr::Each(each) => self.each(each),
        }
    }

    fn truth(&mut self, expr: &'v Expr) -> Evaluated<'v, bool> {
        match self.eval(expr)? {
            Value::Bool(held) => Ok(held),
            _ => Err(Trouble::NotBool),
        }
    }

    /// `||` where `decisive` is true, `&&` where it is false: one decisive term outweighs any error.
    fn any(&mut self, terms: &'v [Expr], decisive: bool) -> Evaluated<'v> {
        let mut trouble = None;
        for term in terms {
            match self.truth(term) {
                Ok(held) if held == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                Err(found) => trouble = trouble.or(Some(found)),
            }
        }
        trouble.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    #[inline(never)]
    fn list(&mut self, items: &'v [Expr]) -> Evaluated<'v> {
        let mut values = Vec::with_capacity(items.len());
        for item in items {
            values.push(self.eval(item)?);
        }
        Ok(Value::list(values))
    }

    #[inline(never)]
    fn map(&mut self, entries: &'v [(Expr, Expr)]) -> Evaluated<'v> {
        let mut made: Vec<(Value<'v>, Value<'v>)> = Vec::with_capacity(entries.len());
        for (key, value) in entries {
            let key = self.eval(key)?;
            if !matches!(
                key,
                Value::Text(_) | Value::Bool(_) | Value::Int(_) | Value::Uint(_)
            ) {
                return Err(Trouble::Kind("{…}"));
            }
            for (other, _) in &made {
                if equal(other, &key, &self.effort)? {
                    return Err(Trouble::KeyTwice);
                }
            }
            let value = self.eval(value)?;
            made.push((key, value));
        }
        Ok(Value::Map(Map::Made(made.into())))
    }

    #[inline(never)]
    fn call(
        &mut self,
        function: super::functions::Function,
        arguments: &'v [Expr],
    ) -> Evaluated<'v> {
        let mut values = smallvec::SmallVec::<[Value<'v>; 2]>::new();
        for argument in arguments {
            values.push(self.eval(argument)?);
        }
        operate::call(function, &values, &self.effort)
    }

    #[inline(never)]
    fn matches(&mut self, text: &'v Expr, pattern: &'v Regex) -> Evaluated<'v> {
        let Value::Text(text) = self.eval(text)? else {
            return Err(Trouble::Kind("matches"));
        };
        let steps = text.len().saturating_mul(PATTERN_BYTE);
        self.effort.take(steps.saturating_add(PATTERN_LOOK))?;
        Ok(Value::Bool(pattern.is_match(&text)))
    }

    // What is known of the request.

    fn fact(&self, fact: Fact) -> Evaluated<'v> {
        let facts = self.facts;
        let body = |json: Option<&'v serde_json::Value>| {
            json.map(Value::json).ok_or(Trouble::NoFact(fact))
        };
        match fact {
            Fact::Method => Ok(Value::text(facts.method)),
            Fact::Scheme => Ok(Value::text(facts.scheme)),
            Fact::Host => Ok(Value::text(facts.host)),
            Fact::Port => Ok(Value::Int(i64::from(facts.port))),
            Fact::Path => Ok(Value::text(facts.path)),
            Fact::Query => self.query().map(Value::Map),
            Fact::Json => body(facts.json),
            Fact::Form => body(facts.form),
            Fact::Workload => Ok(Value::text(facts.workload)),
            Fact::Identity => Ok(facts.identity.map_or(Value::Null, Value::text)),
            Fact::Groups => Ok(Value::List(List::Names(facts.groups))),
            Fact::Now => time::from_seconds(facts.now)
                .map(Value::Time)
                .ok_or(Trouble::NoFact(fact)),
        }
    }

    fn has_fact(&self, fact: Fact) -> bool {
        match fact {
            Fact::Json => self.facts.json.is_some(),
            Fact::Form => self.facts.form.is_some(),
            Fact::Identity => self.facts.identity.is_some(),
            _ => true,
        }
    }

    fn parameter(&self, name: &'v str) -> Evaluated<'v> {
        self.facts
            .parameters
            .iter()
            .find(|(known, _)| *known == name)
            .map(|(_, value)| Value::text(value))
            .ok_or(Trouble::NoParameter(name))
    }

    /// The value of a header that is there once.
    fn header(&self, name: &'v str) -> Evaluated<'v, Option<Value<'v>>> {
        let mut found: Option<Result<String, std::str::Utf8Error>> = None;
        let mut count = 0_usize;
        self.facts.headers.each(name, &mut |value| {
            count += 1;
            if count == 1 {
                found = Some(std::str::from_utf8(value).map(str::to_owned));
            }
        });
        match found {
            _ if count > 1 => Err(Trouble::HeaderTwice(name)),
            None => Ok(None),
            Some(Ok(text)) => {
                self.effort.take_text(text.len())?;
                Ok(Some(Value::made(text)))
            }
            Some(Err(_)) => Err(Trouble::HeaderText(name)),
        }
    }

    fn query(&self) -> Evaluated<'v, Map<'v>> {
        if let Some(query) = self.query.get() {
            return Ok(query.clone());
        }
        let mut lists: BTreeMap<Cow<'v, str>, Vec<Value<'v>>> = BTreeMap::new();
        for pair in self.facts.query.pairs() {
            self.effort.take_text(pair.raw.len())?;
            let value = Value::Text(pair.value.into());
            lists.entry(pair.name).or_default().push(value);
        }
        let map = lists
            .into_iter()
            .map(|(name, values)| (name, Value::list(values)));
        let query = Map::Query(Rc::new(map.collect()));
        Ok(self.query.get_or_init(|| query).clone())
    }

    fn field(&mut self, of: &'v Expr, name: &'v str) -> Evaluated<'v, Option<Value<'v>>> {
        match self.eval(of)? {
            Value::Map(map) => Ok(map.field(name, &self.effort)?),
            _ => Err(Trouble::NoField(name)),
        }
    }

    // Loops.

    #[inline(never)]
    fn each(&mut self, each: &'v Each) -> Evaluated<'v> {
        let range = match self.eval(&each.range)? {
            Value::List(list) => list,
            Value::Map(map) => {
                self.effort.take(map.len())?;
                List::Made(map.keys().into())
            }
            _ => return Err(Trouble::Kind("a loop")),
        };
        match each.kind {
            EachKind::All => self.quantify(&range, &each.body, false),
            EachKind::Exists => self.quantify(&range, &each.body, true),
            EachKind::ExistsOne => {
                let mut count = 0_usize;
                for item in range.iter() {
                    count += usize::from(self.with(item, |run| run.truth(&each.body))?);
                }
                Ok(Value::Bool(count == 1))
            }
            EachKind::Filter | EachKind::Map => self.collect(&range, each),
        }
    }

    fn with<T>(&mut self, item: Value<'v>, inside: impl FnOnce(&mut Self) -> T) -> T {
        self.locals.push(item);
        let result = inside(self);
        self.locals.pop();
        result
    }

    /// As [`Run::any`], of every element.
    fn quantify(&mut self, range: &List<'v>, body: &'v Expr, decisive: bool) -> Evaluated<'v> {
        let mut trouble = None;
        for item in range.iter() {
            match self.with(item, |run| run.truth(body)) {
                Ok(held) if held == decisive => return Ok(Value::Bool(decisive)),
                Ok(_) => {}
                // Nothing later can outweigh this one.
                Err(Trouble::Effort) => return Err(Trouble::Effort),
                Err(found) => trouble = trouble.or(Some(found)),
            }
        }
        trouble.map_or(Ok(Value::Bool(!decisive)), Err)
    }

    fn collect(&mut self, range: &List<'v>, each: &'v Each) -> Evaluated<'v> {
        let mut made = Vec::new();
        for item in range.iter() {
            let kept = match (each.kind, &each.filter) {
                (EachKind::Filter, _) => {
                    let held = self.with(item.clone(), |run| run.truth(&each.body))?;
                    held.then_some(item)
                }
                (_, filter) => self.with(item, |run| {
                    let taken = match filter {
                        Some(filter) => run.truth(filter)?,
                        None => true,
                    };
                    taken.then(|| run.eval(&each.body)).transpose()
                })?,
            };
            if let Some(value) = kept {
                // An element takes more room than a piece of text.
                self.effort.take(4)?;
                made.push(value);
            }
        }
        Ok(Value::list(made))
    }
}
