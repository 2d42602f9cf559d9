//! Roles with their parameters filled in and their inclusions resolved.
use super::names::Names;
use crate::document::{Arguments, Entry, Named, Reading, RoleRef, Template, instantiate};
use crate::syntax::{Span, nearest, quote};
use std::collections::{BTreeSet, HashMap};

/// Roles with arguments, all told, at most.
const MAX_INSTANCES: usize = 10_000;
/// Nodes of roles that are read anew for other arguments, all told, at most.
const MAX_WEIGHT: usize = 500_000;
/// Inclusions one in the other at most.
const MAX_DEPTH: usize = 32;
/// Inclusions of all roles together, also indirect ones, at most.
const MAX_INCLUDED: usize = 1_000_000;
/// Keys and values of all roles together, read anew for each list of arguments, at most.
const MAX_FILLED: usize = 1_000_000;

/// A role as it is granted or included.
#[derive(Debug)]
pub(super) struct Instance {
    /// `repo-reader(repo: acme/app)`.
    pub(super) name: Box<str>,
    pub(super) entries: Vec<Entry>,
    /// It and all that it includes.
    pub(super) all: BTreeSet<usize>,
}

/// Makes instances as they are asked for, each once.
pub(super) struct Instances<'d> {
    roles: &'d [Named<Template<'d>>],
    made: Vec<Instance>,
    /// `None` where making it was a fault.
    known: HashMap<(usize, Arguments), Option<usize>>,
    /// Roles that are being made, the outermost first.
    making: Vec<usize>,
    included: usize,
    /// Of the roles with parameters that were made.
    weight: usize,
    /// Roles that were asked for at all, by number.
    used: BTreeSet<usize>,
}

impl<'d> Instances<'d> {
    /// Makes every role without parameters, so that its faults are found even if nobody has it.
    pub(super) fn new(
        reading: &mut Reading<'_>,
        names: &Names,
        roles: &'d [Named<Template<'d>>],
    ) -> Self {
        let mut instances = Self {
            roles,
            made: Vec::new(),
            known: HashMap::new(),
            making: Vec::new(),
            included: 0,
            weight: 0,
            used: BTreeSet::new(),
        };
        for (number, role) in roles.iter().enumerate() {
            let first = names.roles.number(&role.name.text) == Some(number);
            if role.value.parameters.is_empty() && first {
                instances.make(reading, names, number, role.name.span, Vec::new());
            }
        }
        instances
    }

    /// The instance that a grant names.
    pub(super) fn granted(
        &mut self,
        reading: &mut Reading<'_>,
        names: &Names,
        role: &RoleRef,
    ) -> Option<usize> {
        let instance = self.resolve(reading, names, role)?;
        self.used.insert(names.roles.number(&role.name.text)?);
        Some(instance)
    }

    /// Whether a grant names the role of this number, with whatever arguments.
    pub(super) fn is_used(&self, role: usize) -> bool {
        self.used.contains(&role)
    }

    pub(super) fn get(&self, instance: usize) -> Option<&Instance> {
        self.made.get(instance)
    }

    pub(super) fn into_made(self) -> Vec<Instance> {
        self.made
    }

    fn resolve(
        &mut self,
        reading: &mut Reading<'_>,
        names: &Names,
        role: &RoleRef,
    ) -> Option<usize> {
        let number = names.roles.resolve(reading.decoder, &role.name)?;
        let template = &self.roles.get(number)?.value;
        if !check_arguments(reading, template, role) {
            return None;
        }
        self.make(
            reading,
            names,
            number,
            role.name.span,
            role.arguments.clone(),
        )
    }

    fn make(
        &mut self,
        reading: &mut Reading<'_>,
        names: &Names,
        number: usize,
        span: Span,
        arguments: Arguments,
    ) -> Option<usize> {
        let key = (number, arguments);
        if let Some(known) = self.known.get(&key) {
            return *known;
        }
        if self.is_endless(reading, number, span) {
            return None;
        }
        let template = self.roles.get(number)?;
        if !template.value.parameters.is_empty() {
            self.weight += template.value.weight();
        }
        let role = instantiate(reading, &template.value, &key.1);
        self.making.push(number);
        let mut all = BTreeSet::new();
        for include in &role.includes {
            if let Some(instance) = self.resolve(reading, names, include) {
                // What is included by a role that is granted is granted too.
                self.used.extend(names.roles.number(&include.name.text));
                all.extend(
                    self.made
                        .get(instance)
                        .into_iter()
                        .flat_map(|made| &made.all),
                );
            }
        }
        self.making.pop();
        all.insert(self.made.len());
        self.included += all.len();
        let name = RoleRef {
            name: template.name.clone(),
            arguments: key.1.clone(),
        };
        let instance = self.made.len();
        self.made.push(Instance {
            name: name.to_string().into(),
            entries: role.entries,
            all,
        });
        self.known.insert(key, Some(instance));
        Some(instance)
    }

    /// Notes a role that includes itself, and what would grow without bound.
    fn is_endless(&mut self, reading: &mut Reading<'_>, number: usize, span: Span) -> bool {
        let name = |number: &usize| self.roles.get(*number).map_or("", |role| &role.name.text);
        if let Some(start) = self.making.iter().position(|outer| *outer == number) {
            let mut circle: Vec<&str> = self.making.iter().skip(start).map(name).collect();
            circle.push(name(&number));
            reading
                .decoder
                .error(span, "the role includes itself")
                .help(format!("the circle is {}", circle.join(" → ")));
            return true;
        }
        if self.making.len() >= MAX_DEPTH {
            reading
                .decoder
                .error(span, "roles include each other more than 32 levels deep");
            return true;
        }
        if self.made.len() >= MAX_INSTANCES
            || self.included >= MAX_INCLUDED
            || self.weight >= MAX_WEIGHT
        {
            reading
                .decoder
                .error(
                    span,
                    "the policy has too many roles with different arguments, or inclusions",
                )
                .help("more than 10000 roles, 1000000 inclusions or 500000 parts of roles with arguments are a policy that nobody can read");
            return true;
        }
        false
    }
}

/// Exactly the role's parameters, each once.
fn check_arguments(reading: &mut Reading<'_>, template: &Template<'_>, role: &RoleRef) -> bool {
    let name = quote(&role.name.text);
    let known = || template.parameters.iter().map(|parameter| &*parameter.text);
    let mut good = true;
    let mut last = None;
    for (argument, _) in &role.arguments {
        let twice = last == Some(argument);
        last = Some(argument);
        if known().any(|parameter| *parameter == **argument) && !twice {
            continue;
        }
        good = false;
        let message = if twice {
            format!("the argument {} stands twice", quote(argument))
        } else {
            format!("role {name} has no parameter {}", quote(argument))
        };
        let help = nearest(argument, known()).map(|near| format!("did you mean `{near}`?"));
        let remark = reading.decoder.error(role.name.span, message);
        if let (Some(help), false) = (help, twice) {
            remark.help(help);
        }
    }
    let given = |parameter: &str| role.arguments.iter().any(|(name, _)| **name == *parameter);
    for parameter in known().filter(|parameter| !given(parameter)) {
        good = false;
        reading
            .decoder
            .error(
                role.name.span,
                format!("role {name} needs the argument {}", quote(parameter)),
            )
            .help(format!(
                "write \"{}({parameter}: …)\"",
                role.name.text.escape_default()
            ));
    }
    good
}
