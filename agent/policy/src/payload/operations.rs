//! A GraphQL document (October 2021), reduced to what decides: operations, fields, fragments.
//!
//! The grammar is the library's; a document with any error is not taken. Text that two lexers could cut in two
//! ways is refused before.
use crate::syntax::quote;
use apollo_parser::cst::{self, CstNode};
use apollo_parser::{Parser, SyntaxKind};
use std::collections::HashMap;

/// Tokens of a document at most, blanks and comments among them.
const MAX_TOKENS: usize = 20_000;
/// Nesting of selection sets and values in the text at most: the parser calls itself for each.
const MAX_NESTING: usize = 128;

/// What kind of operation it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OperationKind {
    Query,
    Mutation,
    Subscription,
}

impl OperationKind {
    pub(crate) const ALL: [Self; 3] = [Self::Query, Self::Mutation, Self::Subscription];

    pub(crate) const fn name(self) -> &'static str {
        match self {
            Self::Query => "query",
            Self::Mutation => "mutation",
            Self::Subscription => "subscription",
        }
    }
}

#[derive(Debug)]
pub(super) struct Document {
    pub(super) operations: Vec<Operation>,
    pub(super) fragments: Vec<Fragment>,
}

#[derive(Debug)]
pub(super) struct Operation {
    pub(super) kind: OperationKind,
    pub(super) name: Option<Box<str>>,
    pub(super) set: Vec<Selection>,
}

#[derive(Debug)]
pub(super) struct Fragment {
    pub(super) name: Box<str>,
    pub(super) set: Vec<Selection>,
}

#[derive(Debug)]
pub(super) enum Selection {
    Field {
        name: Box<str>,
        aliased: bool,
        set: Option<Vec<Selection>>,
    },
    /// A named fragment, by its index.
    Spread(usize),
    Inline(Vec<Selection>),
}

type Read<T> = Result<T, String>;

/// Indices of fragments by name.
type Names = HashMap<Box<str>, usize>;

/// Reads a document; what is wrong with it, where it is none.
pub(super) fn read(text: &str) -> Read<Document> {
    refuse_ambiguous(text)?;
    let tree = Parser::new(text)
        .token_limit(MAX_TOKENS)
        .recursion_limit(MAX_NESTING)
        .parse();
    if let Some(error) = tree.errors().next() {
        return Err(match error.is_limit() {
            true => {
                format!("the document has more than {MAX_TOKENS} tokens or {MAX_NESTING} levels")
            }
            false => format!("the document is not GraphQL (byte {})", error.index()),
        });
    }
    let root = tree.document();
    refuse_lenient(&root)?;
    let (mut operations, mut fragments) = (Vec::new(), Vec::new());
    for definition in root.definitions() {
        match definition {
            cst::Definition::OperationDefinition(operation) => operations.push(operation),
            cst::Definition::FragmentDefinition(fragment) => fragments.push(fragment),
            _ => return Err("the document defines types".to_owned()),
        }
    }
    let mut names = Names::new();
    for (index, fragment) in fragments.iter().enumerate() {
        let name = fragment_name(fragment.fragment_name())?;
        if names.insert(name.clone(), index).is_some() {
            return Err(format!("the fragment {} is defined twice", quote(&name)));
        }
    }
    let document = Document {
        operations: operations
            .iter()
            .map(|operation| self::operation(operation, &names))
            .collect::<Read<_>>()?,
        fragments: fragments
            .iter()
            .map(|fragment| self::fragment(fragment, &names))
            .collect::<Read<_>>()?,
    };
    check_names(&document.operations)?;
    Ok(document)
}

/// Readers differ on where a comment ends: at a carriage return, at Unicode's line separators, or only at a
/// line feed. They differ on byte order marks and control characters too.
fn refuse_ambiguous(text: &str) -> Read<()> {
    let mut characters = text.chars().peekable();
    while let Some(character) = characters.next() {
        let good = match character {
            '\r' => characters.peek() == Some(&'\n'),
            '\t' | '\n' => true,
            '\u{feff}' | '\u{2028}' | '\u{2029}' => false,
            other => !other.is_control(),
        };
        if !good {
            let code = u32::from(character);
            return Err(format!(
                "the document has the character U+{code:04X}, which servers read differently"
            ));
        }
    }
    Ok(())
}

/// The library takes arguments and members without a value, as in `(a b: 1)`, and a string whose first
/// character ends the line; the grammar does not.
fn refuse_lenient(root: &cst::Document) -> Read<()> {
    for node in root.syntax().descendants() {
        let good = match node.kind() {
            SyntaxKind::ARGUMENT => {
                cst::Argument::cast(node).is_some_and(|argument| argument.value().is_some())
            }
            SyntaxKind::OBJECT_FIELD => {
                cst::ObjectField::cast(node).is_some_and(|field| field.value().is_some())
            }
            SyntaxKind::STRING_VALUE => node.first_token().is_some_and(|token| {
                let text = token.text();
                text.starts_with("\"\"\"") || !text.contains(['\n', '\r'])
            }),
            SyntaxKind::ERROR => false,
            _ => true,
        };
        if !good {
            return part(None);
        }
    }
    Ok(())
}

/// An operation without a name stands alone, and no name is given twice.
fn check_names(operations: &[Operation]) -> Read<()> {
    if operations.is_empty() {
        return Err("the document has no operation".to_owned());
    }
    let mut seen = std::collections::HashSet::new();
    for operation in operations {
        match &operation.name {
            None if operations.len() > 1 => {
                return Err("an operation without a name does not stand alone".to_owned());
            }
            Some(name) if !seen.insert(name) => {
                return Err(format!("the operation {} is defined twice", quote(name)));
            }
            _ => {}
        }
    }
    Ok(())
}

/// A part that the grammar promises. Its absence would be the library's fault, and is still no way through.
fn part<T>(part: Option<T>) -> Read<T> {
    part.ok_or_else(|| "the document is not GraphQL".to_owned())
}

fn name_text(name: Option<cst::Name>) -> Read<Box<str>> {
    let name = part(name)?.text();
    Ok(name.as_str().into())
}

fn fragment_name(name: Option<cst::FragmentName>) -> Read<Box<str>> {
    name_text(part(name)?.name())
}

fn operation(operation: &cst::OperationDefinition, names: &Names) -> Read<Operation> {
    let kind = match operation.operation_type() {
        None => OperationKind::Query,
        Some(kind) if kind.query_token().is_some() => OperationKind::Query,
        Some(kind) if kind.mutation_token().is_some() => OperationKind::Mutation,
        Some(kind) if kind.subscription_token().is_some() => OperationKind::Subscription,
        Some(_) => return part(None),
    };
    let name = match operation.name() {
        Some(name) => Some(name_text(Some(name))?),
        None => None,
    };
    let set = selections(&part(operation.selection_set())?, names)?;
    Ok(Operation { kind, name, set })
}

fn fragment(fragment: &cst::FragmentDefinition, names: &Names) -> Read<Fragment> {
    Ok(Fragment {
        name: fragment_name(fragment.fragment_name())?,
        set: selections(&part(fragment.selection_set())?, names)?,
    })
}

/// Not deeper than the parser let it be.
fn selections(set: &cst::SelectionSet, names: &Names) -> Read<Vec<Selection>> {
    set.selections()
        .map(|selection| match selection {
            cst::Selection::Field(field) => Ok(Selection::Field {
                name: name_text(field.name())?,
                aliased: field.alias().is_some(),
                set: match field.selection_set() {
                    Some(set) => Some(selections(&set, names)?),
                    None => None,
                },
            }),
            cst::Selection::FragmentSpread(spread) => {
                let name = fragment_name(spread.fragment_name())?;
                let index = names.get(&name);
                let unknown = || format!("the fragment {} is not defined", quote(&name));
                Ok(Selection::Spread(*index.ok_or_else(unknown)?))
            }
            cst::Selection::InlineFragment(inline) => Ok(Selection::Inline(selections(
                &part(inline.selection_set())?,
                names,
            )?)),
        })
        .collect()
}
