//! Budgets: what a workload may use up, and in what time.
use super::{Name, Reading, reference};
use crate::model::{Quota, Window};
use crate::syntax::{Node, parse_byte_size, quote};

#[derive(Debug)]
pub(crate) struct Budget {
    /// Missing only where there is a fault.
    pub(crate) workload: Option<Name>,
    /// Likewise.
    pub(crate) bytes: Option<Quota>,
}

/// Bytes of a quota at most: what both sides can count without overflow.
const MOST: u64 = 1 << 60;

pub(super) fn budget(reading: &mut Reading<'_>, node: &Node) -> Budget {
    let mut budget = Budget {
        workload: None,
        bytes: None,
    };
    let Some(mut fields) = reading.decoder.fields(node, "the budget") else {
        return budget;
    };
    fields.unsupported(reading.decoder, "each");
    let whom = fields.require(reading.decoder, "for");
    let limits = fields.require(reading.decoder, "limits");
    fields.finish(reading.decoder);
    budget.workload = whom.and_then(|node| holder(reading, node));
    budget.bytes = limits.and_then(|node| limits_of(reading, node));
    budget
}

/// One workload: a budget is not shared.
fn holder(reading: &mut Reading<'_>, node: &Node) -> Option<Name> {
    let mut fields = reading.decoder.fields(node, "the budget's `for`")?;
    for key in ["identity", "group"] {
        fields.unsupported(reading.decoder, key);
    }
    let workload = fields.require(reading.decoder, "workload");
    fields.finish(reading.decoder);
    reference(reading, workload?)
}

fn limits_of(reading: &mut Reading<'_>, node: &Node) -> Option<Quota> {
    let mut fields = reading.decoder.fields(node, "`limits`")?;
    let mut other = false;
    for key in ["usd", "tokens", "requests"] {
        other |= fields.unsupported(reading.decoder, key);
    }
    let bytes = match other {
        true => fields.take("bytes"),
        false => fields.require(reading.decoder, "bytes"),
    };
    fields.finish(reading.decoder);
    quota(reading, bytes?)
}

/// `1GiB/day`
fn quota(reading: &mut Reading<'_>, node: &Node) -> Option<Quota> {
    let text = reading.decoder.string(node)?;
    let windows = [
        ("min", Window::Minute),
        ("hour", Window::Hour),
        ("day", Window::Day),
    ];
    let read = text.split_once('/').and_then(|(amount, window)| {
        let amount = parse_byte_size(amount).filter(|amount| (1..=MOST).contains(amount))?;
        let (_, window) = windows.into_iter().find(|(name, _)| *name == window)?;
        Some(Quota { amount, window })
    });
    if read.is_none() {
        reading
            .decoder
            .error(
                node.span,
                format!("{} is no amount of bytes in a time", quote(text)),
            )
            .help("write `1GiB/day`: an integer, `B`, `KiB`, `MiB`, `GiB` or `TiB`, and `/min`, `/hour` or `/day`");
    }
    read
}
