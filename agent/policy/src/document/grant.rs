//! Grants: which role is given to whom, and until when.
use super::{Name, Reading, RoleRef, reference, role_ref};
use crate::model::Mode;
use crate::syntax::{Node, quote};

/// A role given to whoever fits.
#[derive(Debug)]
pub(crate) struct Grant {
    pub(crate) role: RoleRef,
    /// Any of these; empty for any workload.
    pub(crate) workloads: Vec<Name>,
    /// Any of these; empty where the identity does not matter.
    pub(crate) identities: Vec<Name>,
    /// A member of any of these; empty likewise.
    pub(crate) groups: Vec<Name>,
    pub(crate) mode: Mode,
    /// The last second at which it holds.
    pub(crate) until: Option<i64>,
}

pub(super) fn grant(reading: &mut Reading<'_>, node: &Node) -> Option<Grant> {
    let mut fields = reading.decoder.fields(node, "the grant")?;
    let role = fields.require(reading.decoder, "role");
    let to = fields.require(reading.decoder, "to");
    let (mode, until) = (fields.take("mode"), fields.take("until"));
    fields.finish(reading.decoder);
    let modes = [("enforce", Mode::Enforce), ("observe", Mode::Observe)];
    let role = role.and_then(|node| role_ref(reading, node));
    let to = to.and_then(|node| whom(reading, node, "the grantee"));
    let mode = match mode {
        Some(node) => reading.decoder.word(node, &modes),
        None => Some(Mode::Enforce),
    };
    let until = match until {
        Some(node) => Some(expiry(reading, node)?),
        None => None,
    };
    let [workloads, identities, groups] = to?;
    Some(Grant {
        role: role?,
        workloads,
        identities,
        groups,
        mode: mode?,
        until,
    })
}

/// Workloads, identities and groups; a list is any of them, and every kind that is there must fit.
pub(super) fn whom(
    reading: &mut Reading<'_>,
    node: &Node,
    what: &'static str,
) -> Option<[Vec<Name>; 3]> {
    let mut fields = reading.decoder.fields(node, what)?;
    let given = ["workload", "identity", "group"].map(|key| fields.take(key));
    let span = fields.span();
    fields.finish(reading.decoder);
    if given.iter().all(Option::is_none) {
        reading
            .decoder
            .error(
                span,
                format!("{what} needs `workload`, `identity` or `group`"),
            )
            .help("for example `workload: report-builder`");
        return None;
    }
    Some(given.map(|node| {
        let items = node
            .and_then(|node| reading.decoder.one_or_many(node))
            .unwrap_or_default();
        items
            .iter()
            .filter_map(|item| reference(reading, item))
            .collect()
    }))
}

/// A date, through its end in UTC, or a time as in RFC 3339.
fn expiry(reading: &mut Reading<'_>, node: &Node) -> Option<i64> {
    let text = &*reading.decoder.scalar(node, "a date or time")?.text;
    let parsed = last_second(text);
    if parsed.is_none() {
        reading
            .decoder
            .error(
                node.span,
                format!("{} is neither a date nor a time", quote(text)),
            )
            .help(
                "write `2026-12-31` (through the end of that day, UTC) or `2026-12-31T18:00:00Z`",
            );
    }
    parsed
}

/// Of a date `2026-12-31`, or the second of a time such as `2026-12-31T18:00:00Z`; since 1970, UTC.
fn last_second(text: &str) -> Option<i64> {
    // The library also takes other notations of ISO 8601, which fewer people read.
    let dashed = |text: &str| text.len() == 10 && text.as_bytes().get(4) == Some(&b'-');
    if dashed(text) {
        let date: jiff::civil::Date = text.parse().ok()?;
        let next = date.tomorrow().ok()?.at(0, 0, 0, 0);
        let next = jiff::tz::TimeZone::UTC.to_timestamp(next).ok()?;
        return Some(next.as_second() - 1);
    }
    let (date, rest) = text.split_once('T')?;
    if !dashed(date) || rest.contains('[') || rest.contains('.') {
        return None;
    }
    text.parse::<jiff::Timestamp>()
        .ok()
        .map(jiff::Timestamp::as_second)
}

#[cfg(test)]
mod tests {
    use super::last_second;

    #[test]
    fn dates_and_times() {
        let cases = [
            ("1970-01-01", Some(86_399)),
            ("2026-12-31", Some(1_798_761_599)),
            ("2000-02-29", Some(951_868_799)),
            ("2026-12-31T18:00:00Z", Some(1_798_740_000)),
            ("2026-12-31T18:00:00+02:00", Some(1_798_732_800)),
            ("2026-12-31T18:00:00-00:30", Some(1_798_741_800)),
            ("2025-02-29", None),
            ("1900-02-29", None),
            ("9999-12-31", None),
            ("2026-13-01", None),
            ("2026-1-1", None),
            ("20261231", None),
            ("2026-12-31 18:00:00Z", None),
            ("2026-12-31T18:00:00", None),
            ("2026-12-31T18:00:00.5Z", None),
            ("2026-12-31T18:00:00+01:00[Europe/Zurich]", None),
            ("+026-12-31", None),
            ("ö026-12-3", None),
            ("tomorrow", None),
        ];
        for (text, seconds) in cases {
            assert_eq!(last_second(text), seconds, "{text}");
        }
    }
}
