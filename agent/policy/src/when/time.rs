//! Times and durations as CEL writes them.
use super::functions::Part;
use jiff::tz::TimeZone;
use jiff::{SignedDuration, Timestamp};

/// The first and last second that CEL has: years 1 to 9999.
const SECONDS: std::ops::RangeInclusive<i64> = -62_135_596_800..=253_402_300_799;

/// An RFC 3339 time.
pub(super) fn timestamp(text: &str) -> Option<Timestamp> {
    let form = "dddd-dd-ddTdd:dd:dd";
    let (start, rest) = text.split_at_checked(form.len())?;
    let formed = start
        .bytes()
        .zip(form.bytes())
        .all(|(byte, form)| match form {
            b'd' => byte.is_ascii_digit(),
            other => byte.eq_ignore_ascii_case(&other),
        });
    // The second 60 would be taken for another one.
    if !formed || start.ends_with("60") || !is_zone(after_fraction(rest)?) {
        return None;
    }
    in_range(text.parse().ok()?)
}

fn after_fraction(rest: &str) -> Option<&str> {
    let Some(fraction) = rest.strip_prefix('.') else {
        return Some(rest);
    };
    let zone = fraction.trim_start_matches(|character: char| character.is_ascii_digit());
    let digits = fraction.len() - zone.len();
    (1..=9).contains(&digits).then_some(zone)
}

fn is_zone(text: &str) -> bool {
    match text.as_bytes() {
        [b'Z' | b'z'] => true,
        [b'+' | b'-', hour @ .., b':', tens, ones] => {
            hour.len() == 2 && hour.iter().chain([tens, ones]).all(u8::is_ascii_digit)
        }
        _ => false,
    }
}

/// Unix seconds as a time.
pub(super) fn from_seconds(seconds: i64) -> Option<Timestamp> {
    in_range(Timestamp::from_second(seconds).ok()?)
}

fn in_range(time: Timestamp) -> Option<Timestamp> {
    SECONDS.contains(&time.as_second()).then_some(time)
}

pub(super) fn add(time: Timestamp, span: SignedDuration) -> Option<Timestamp> {
    in_range(time.checked_add(span).ok()?)
}

/// A duration: `1h30m`, `-1.5s`, `100ms`.
pub(super) fn duration(text: &str) -> Option<SignedDuration> {
    let (negative, mut rest) = match text.strip_prefix('-') {
        Some(rest) => (true, rest),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    if rest == "0" {
        return Some(SignedDuration::ZERO);
    }
    let mut total: i128 = 0;
    loop {
        let (nanoseconds, tail) = piece(rest)?;
        total = total.checked_add(nanoseconds)?;
        rest = tail;
        if rest.is_empty() {
            break;
        }
    }
    let total = if negative { -total } else { total };
    let second = 1_000_000_000;
    let seconds = i64::try_from(total / second).ok()?;
    let rest = i32::try_from(total % second).ok()?;
    // As far apart as two times can be.
    (seconds.unsigned_abs() <= 315_576_000_000).then(|| SignedDuration::new(seconds, rest))
}

/// The nanoseconds of a number with its unit, and what comes behind them.
fn piece(text: &str) -> Option<(i128, &str)> {
    const UNITS: [(&str, i128); 7] = [
        ("ns", 1),
        ("us", 1_000),
        ("µs", 1_000),
        ("ms", 1_000_000),
        ("s", 1_000_000_000),
        ("m", 60_000_000_000),
        ("h", 3_600_000_000_000),
    ];
    let (whole, after) = digits(text);
    let (fraction, after) = match after.strip_prefix('.') {
        Some(after) => digits(after),
        None => ("", after),
    };
    // Numbers this long mean nothing, and overflow.
    if (whole.is_empty() && fraction.is_empty()) || whole.len() > 18 || fraction.len() > 18 {
        return None;
    }
    let (unit, rest) = UNITS
        .iter()
        .find_map(|(unit, size)| Some((*size, after.strip_prefix(unit)?)))?;
    let count: i128 = if whole.is_empty() {
        0
    } else {
        whole.parse().ok()?
    };
    let mut nanoseconds = count.checked_mul(unit)?;
    let mut size = unit;
    for digit in fraction.bytes() {
        size /= 10;
        nanoseconds = nanoseconds.checked_add(size.checked_mul(i128::from(digit - b'0'))?)?;
    }
    Some((nanoseconds, rest))
}

fn digits(text: &str) -> (&str, &str) {
    let end = text
        .find(|character: char| !character.is_ascii_digit())
        .unwrap_or(text.len());
    text.split_at_checked(end).unwrap_or((text, ""))
}

/// A part of a time, in UTC.
pub(super) fn part(time: Timestamp, part: Part) -> i64 {
    let civil = TimeZone::UTC.to_datetime(time);
    match part {
        Part::FullYear => i64::from(civil.year()),
        Part::Month => i64::from(civil.month()) - 1,
        Part::Date => i64::from(civil.day()),
        Part::DayOfMonth => i64::from(civil.day()) - 1,
        Part::DayOfWeek => i64::from(civil.weekday().to_sunday_zero_offset()),
        Part::DayOfYear => i64::from(civil.day_of_year()) - 1,
        Part::Hours => i64::from(civil.hour()),
        Part::Minutes => i64::from(civil.minute()),
        Part::Seconds => i64::from(civil.second()),
        Part::Milliseconds => i64::from(civil.millisecond()),
    }
}

/// A whole duration in a unit; milliseconds are those beyond the second. `None` for what a duration lacks.
pub(super) fn span_part(span: SignedDuration, part: Part) -> Option<i64> {
    match part {
        Part::Hours => Some(span.as_secs() / 3_600),
        Part::Minutes => Some(span.as_secs() / 60),
        Part::Seconds => Some(span.as_secs()),
        Part::Milliseconds => Some(i64::from(span.subsec_millis())),
        _ => None,
    }
}
