//! Tollgate's policy: the document a person writes, the compiler that finds every fault in it, and
//! the decision taken on each request.
//!
//! Pure by rule: no IO, no clock, no async. Everything a decision depends on is an argument.
//!
//! [`compile()`] turns documents into a [`Policy`]; [`Policy::decide`] takes a request in
//! [canonical form](canonical) and says whether it passes, and how it is forwarded.
//!
//! # Routes
//! `METHOD /path`: one method, several (`GET|HEAD`), or `*` for all but CONNECT and TRACE. Methods are
//! compared exactly. A path is made of segments:
//!
//! | written | means |
//! | --- | --- |
//! | `issues` | this text; compared decoded, so that `a:b` and `a%3Ab` are one |
//! | `{name}`, `*` | one segment that is not empty |
//! | `{name:int}`, `{name:uuid}` | one segment of that kind |
//! | `{name:[a-z]+}` | one segment that the expression matches whole |
//! | `**` | any rest, also none; only last: `/a/**` takes `/a`, `/a/` and `/a/b/c` |
//!
//! `/a`, `/a/` and `/A` are three paths to an allow rule and one to a deny rule, to which `07` is an `int` too.
//! Of the allow rules that hold, the most specific decides: segment by segment from the left, text before
//! constrained before plain before `**`; then the rule that says more of query, headers and body; then named
//! methods before `*`. A rule that does
//! not hold for its query or body gives way to the next. A deny rule wins over all.
//!
//! # Parameters and fields
//! | written | means |
//! | --- | --- |
//! | `string` | any text |
//! | `int` | an integer, e.g. `-3`, without leading zeros |
//! | `number` | a finite number |
//! | `bool` | `true` or `false` |
//! | `uuid` | a UUID |
//! | `any` | anything |
//! | `1..100` | an integer from 1 to 100 |
//! | `/[a-z]+/` | text that the expression matches whole |
//! | `[open, closed]` | exactly one of these values |
//! | `[string]` | one type in brackets: a list of such (a JSON array; a parameter that may be repeated) |
//! | `[[open, closed]]` | a list, each of it one of these values |
//! | `{ name: string }` | in a body: an object with these fields, at most |
//! | `[{ name: string }]` | in a body: a list of such objects |
//! | `{ type: int, required: true }` | in a query: a parameter that must be there |
//!
//! A quoted word in brackets is always a value: `["string"]` is the one value `string`, and a list of a
//! pattern that YAML wants quoted is written as a block (`- /[a-z]+/`). In a JSON body
//! an unquoted `1`, `true` or `null` in brackets is that number, boolean or null; quoted it is text.
//!
//! A rule with `query` denies a parameter that is not declared, or strips it with `extra: strip`. Without
//! `query`, any parameter passes. Parameters that carry credentials (`access_token`, `api_key`, …) are
//! stripped unless declared, or the entry says `credential: client`; those that some servers take for the
//! method (`_method`) are stripped unless declared.
//!
//! # Bodies
//! A rule with `body` takes strict JSON and strict forms, of at most `max` bytes. A missing body is denied.
//!
//! | written | means |
//! | --- | --- |
//! | `fields: { state: [open, closed] }` | an object with these fields at most, each as declared |
//! | `required: [state]` | which of the fields must be there; unless said, none |
//! | `extra: strip` | what `fields` does not declare is cut out, at every level, instead of denied |
//! | `strip: [/debug, /items/*/note]` | JSON pointers to what is cut out, declared or not; `*` is every element or member |
//! | `schema: { type: object }` | JSON Schema, draft 2020-12, held against what is sent; a keyword that would be ignored is a fault |
//! | `max: 16KiB` | 64 KiB unless said, 16 MiB at most |
//!
//! Strict JSON has no key twice, also not in another case, no byte order mark, no half surrogates, no number
//! beyond a double, and at most 64 levels; where `schema` looks at it, no integer beyond 64 bits. Nothing is rewritten: cut members go
//! with their comma, in any case of their names, and all else is sent byte for byte as it came.
#![forbid(unsafe_code)]

pub mod canonical;
pub mod syntax;

mod body;
mod budget;
mod compile;
#[cfg(test)]
mod corpora;
mod decide;
mod document;
mod fold;
#[cfg(any(test, feature = "fuzzing"))]
pub mod fuzzing;
mod grants;
mod headers;
mod meaning;
pub mod meter;
mod model;
mod payload;
mod policy;
mod route;
mod sample;
mod schema;
mod shape;
pub mod tools;
mod websocket;
mod when;
mod work;
pub use body::{JsonError, Pointer, RedactError, Redacted, Redactor, redact};
pub use budget::{Budget, Each, Limits, Meter, PICODOLLARS, Price, Quota, Window};
pub use compile::{Compiled, compile, compile_for};
pub use decide::{Ability, Who};
pub use model::*;
pub use policy::Policy;
pub use schema::SCHEMA;
pub use websocket::is_websocket;

#[cfg(test)]
mod tests;
