//! Budgets: what may be used up, by whom, and in what time; and what models cost.
use super::{Name, Reading};
use crate::budget::{Each, Limits, PICODOLLARS, Quota, Window};
use crate::payload::Glob;
use crate::syntax::{Node, Span, parse_byte_size, quote};

#[derive(Debug)]
pub(crate) struct Budget {
    /// Any of these; empty for any workload.
    pub(crate) workloads: Vec<Name>,
    /// Any of these; empty where the identity makes no difference.
    pub(crate) identities: Vec<Name>,
    /// A member of any of these; empty likewise.
    pub(crate) groups: Vec<Name>,
    pub(crate) each: Option<Each>,
    pub(crate) limits: Limits,
    /// Where the limit on bytes stands.
    pub(crate) bytes_at: Span,
}

/// What a model costs, in picodollars for a token.
#[derive(Debug)]
pub(crate) struct Price {
    /// Missing only where there is a fault.
    pub(crate) glob: Option<Glob>,
    pub(crate) input: u64,
    pub(crate) cached: u64,
    pub(crate) cache_write: u64,
    pub(crate) output: u64,
    pub(crate) max_output: Option<u64>,
}

/// Of a quota at most: what all sides can count without overflow.
const MOST: u64 = 1 << 60;
/// US dollars in a limit, or for a million tokens, at most.
const MOST_USD: u64 = 1_000_000;
/// Tokens of one answer at most.
const MOST_OUTPUT: u64 = 100_000_000;
/// Digits behind the point of an amount of dollars.
const DECIMALS: usize = 6;

pub(super) fn budget(reading: &mut Reading<'_>, node: &Node) -> Budget {
    let mut budget = Budget {
        workloads: Vec::new(),
        identities: Vec::new(),
        groups: Vec::new(),
        each: None,
        limits: Limits::default(),
        bytes_at: node.span,
    };
    let Some(mut fields) = reading.decoder.fields(node, "the budget") else {
        return budget;
    };
    let whom = fields.require(reading.decoder, "for");
    let each = fields.take("each");
    let limits = fields.require(reading.decoder, "limits");
    fields.finish(reading.decoder);
    if let Some(node) = whom {
        holders(reading, node, &mut budget);
    }
    let words = [("identity", Each::Identity), ("workload", Each::Workload)];
    budget.each = each.and_then(|node| reading.decoder.word(node, &words));
    if let Some(node) = limits {
        limits_of(reading, node, &mut budget);
    }
    budget
}

/// Workloads, identities and groups, as in a grant.
fn holders(reading: &mut Reading<'_>, node: &Node, budget: &mut Budget) {
    if let Some(named) = super::grant::whom(reading, node, "the budget's `for`") {
        [budget.workloads, budget.identities, budget.groups] = named;
    }
}

fn limits_of(reading: &mut Reading<'_>, node: &Node, budget: &mut Budget) {
    let Some(mut fields) = reading.decoder.fields(node, "`limits`") else {
        return;
    };
    let keys = ["bytes", "requests", "tokens", "usd"];
    let [bytes, requests, tokens, usd] = keys.map(|key| fields.take(key));
    let none = [bytes, requests, tokens, usd].iter().all(Option::is_none);
    let span = fields.span();
    fields.finish(reading.decoder);
    if none {
        reading
            .decoder
            .error(
                span,
                "`limits` needs one of `bytes`, `requests`, `tokens` and `usd`",
            )
            .help("for example `limits: { requests: 60/min }`");
    }
    budget.bytes_at = bytes.map_or(node.span, |node| node.span);
    budget.limits = Limits {
        bytes: bytes.and_then(|node| quota(reading, node, &BYTES)),
        requests: requests.and_then(|node| quota(reading, node, &REQUESTS)),
        tokens: tokens.and_then(|node| quota(reading, node, &TOKENS)),
        usd: usd.and_then(|node| quota(reading, node, &USD)),
    };
}

/// What is counted, and how an amount of it is written.
struct Unit {
    what: &'static str,
    read: fn(&str) -> Option<u64>,
    help: &'static str,
}

const BYTES: Unit = Unit {
    what: "no amount of bytes in a time",
    read: parse_byte_size,
    help: "write `1GiB/day`: an integer, `B`, `KiB`, `MiB`, `GiB` or `TiB`, and `/min`, `/hour` or `/day`",
};
const REQUESTS: Unit = Unit {
    what: "no number of requests in a time",
    read: count,
    help: "write `60/min`: an integer, also with `k` or `M`, and `/min`, `/hour` or `/day`",
};
const TOKENS: Unit = Unit {
    what: "no number of tokens in a time",
    read: count,
    help: "write `2M/day`: an integer, also with `k` or `M`, and `/min`, `/hour` or `/day`",
};
const USD: Unit = Unit {
    what: "no amount of US dollars in a time",
    read: dollars,
    help: "write `50/day` or `0.25/hour`: up to 1000000 dollars with up to six decimals, and `/min`, `/hour` or `/day`",
};

/// `1GiB/day`
fn quota(reading: &mut Reading<'_>, node: &Node, unit: &Unit) -> Option<Quota> {
    let text = reading.decoder.string(node)?;
    let windows = [
        ("min", Window::Minute),
        ("hour", Window::Hour),
        ("day", Window::Day),
    ];
    let read = text.split_once('/').and_then(|(amount, window)| {
        let amount = (unit.read)(amount).filter(|amount| (1..=MOST).contains(amount))?;
        let (_, window) = windows.into_iter().find(|(name, _)| *name == window)?;
        Some(Quota { amount, window })
    });
    if read.is_none() {
        reading
            .decoder
            .error(node.span, format!("{} is {}", quote(text), unit.what))
            .help(unit.help);
    }
    read
}

/// `60`, `500k`, `2M`.
fn count(text: &str) -> Option<u64> {
    let scales = [("k", 1_000), ("M", 1_000_000)];
    let (digits, scale) = scales
        .iter()
        .find_map(|(unit, scale)| Some((text.strip_suffix(unit)?, *scale)))
        .unwrap_or((text, 1));
    integer(digits)?.checked_mul(scale)
}

/// Digits without a zero before them.
fn integer(text: &str) -> Option<u64> {
    let canonical = text == "0" || !text.starts_with('0');
    let digits = text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse().ok().filter(|_| canonical && digits)
}

/// `50`, `0.25`: in picodollars.
fn dollars(text: &str) -> Option<u64> {
    let (whole, decimals) = text.split_once('.').unwrap_or((text, "0"));
    let whole = integer(whole)?;
    let length = decimals.len();
    let digits = decimals.bytes().all(|byte| byte.is_ascii_digit());
    if !digits || !(1..=DECIMALS).contains(&length) {
        return None;
    }
    let scale = 10_u64.checked_pow(u32::try_from(length).ok()?)?;
    let fraction = decimals.parse::<u64>().ok()? * (PICODOLLARS / scale);
    let amount = whole.checked_mul(PICODOLLARS)?.checked_add(fraction)?;
    (amount <= MOST_USD * PICODOLLARS).then_some(amount)
}

pub(super) fn price(reading: &mut Reading<'_>, (model, span): (&str, Span), node: &Node) -> Price {
    let glob = Glob::parse(model).filter(|_| is_model(model));
    if glob.is_none() {
        reading
            .decoder
            .error(span, format!("{} names no model", quote(model)))
            .help("a model as requests name it, up to 128 printable characters; `*` may stand at its end");
    }
    let mut price = Price {
        glob,
        input: 0,
        cached: 0,
        cache_write: 0,
        output: 0,
        max_output: None,
    };
    let Some(mut fields) = reading.decoder.fields(node, "the price") else {
        return price;
    };
    let input = fields.require(reading.decoder, "input");
    let output = fields.require(reading.decoder, "output");
    let [cached, write, most] = ["cached", "cache_write", "max_output"].map(|key| fields.take(key));
    fields.finish(reading.decoder);
    let mut read = |node: Option<&Node>| node.and_then(|node| per_token(reading, node));
    price.input = read(input).unwrap_or(0);
    price.output = read(output).unwrap_or(0);
    // Without a price of its own, what is cached costs what it would cost else.
    price.cached = read(cached).unwrap_or(price.input);
    price.cache_write = read(write).unwrap_or(price.input);
    price.max_output = most.and_then(|node| reading.decoder.integer(node, 1..=MOST_OUTPUT));
    price
}

fn is_model(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && text != "*"
        && text.bytes().all(|byte| byte.is_ascii_graphic())
}

/// US dollars for a million tokens, as picodollars for one.
fn per_token(reading: &mut Reading<'_>, node: &Node) -> Option<u64> {
    let text = &*reading
        .decoder
        .scalar(node, "US dollars for a million tokens")?
        .text;
    let read = dollars(text);
    if read.is_none() {
        reading
            .decoder
            .error(node.span, format!("{} is no price", quote(text)))
            .help("write US dollars for a million tokens, such as `2.50`, with up to six decimals");
    }
    read.map(|amount| amount / 1_000_000)
}
