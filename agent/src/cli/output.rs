//! What all verbs print: tables, JSON, colour, and text that cannot command the terminal.
use crate::kernel::Counters;
use serde::Serialize;
use std::io::{self, IsTerminal, Write};

/// The form of a listing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::ValueEnum)]
pub(super) enum Format {
    /// For people.
    #[default]
    Table,
    /// One JSON document.
    Json,
    /// One JSON document a line.
    Jsonl,
}

/// `-o` of the verbs that list.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
pub(super) struct Form {
    /// Form of the output; times are local in tables and RFC 3339 UTC in JSON
    #[arg(
        short = 'o',
        long = "output",
        value_enum,
        default_value_t,
        value_name = "FORM"
    )]
    pub(super) format: Format,
}

/// Shows control and direction-changing characters instead of sending them to the terminal.
pub(super) fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        if is_unsafe(c) {
            safe.extend(c.escape_default())
        } else {
            safe.push(c)
        }
    }
    safe
}

/// As [`escape`], for text of several lines.
pub(super) fn escape_lines(text: &str) -> String {
    text.split('\n').map(escape).collect::<Vec<_>>().join("\n")
}

fn is_unsafe(c: char) -> bool {
    let directions = matches!(c, '\u{200e}' | '\u{200f}' | '\u{061c}' | '\u{2028}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    c.is_control() || directions || c == '\u{feff}'
}

/// Colours that say something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Colour {
    /// Passed, good.
    Green,
    /// Refused, bad.
    Red,
    /// Worth a look.
    Yellow,
    /// Beside the point.
    Dim,
}

/// Colours text, or not: `NO_COLOR` and what is no terminal mean not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Paint(bool);

impl Paint {
    pub(super) fn stdout() -> Self {
        Self(wanted() && io::stdout().is_terminal())
    }

    pub(super) fn stderr() -> Self {
        Self(wanted() && io::stderr().is_terminal())
    }

    #[cfg(test)]
    pub(super) fn never() -> Self {
        Self(false)
    }

    /// `text`, which must be safe to print, in `colour`.
    pub(super) fn paint(self, colour: Colour, text: &str) -> String {
        let code = match colour {
            Colour::Green => 32,
            Colour::Red => 31,
            Colour::Yellow => 33,
            Colour::Dim => 2,
        };
        if self.0 {
            format!("\x1b[{code}m{text}\x1b[0m")
        } else {
            text.to_owned()
        }
    }
}

/// Columns of the terminal that stdout is; `None` if it is none.
pub(super) fn width_of_stdout() -> Option<usize> {
    width(io::stdout())
}

fn width(stream: impl std::os::fd::AsFd) -> Option<usize> {
    // One that was never told its size says 0.
    let size = rustix::termios::tcgetwinsize(stream).ok()?;
    Some(size.ws_col.into()).filter(|width| *width > 0)
}

fn wanted() -> bool {
    std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty())
        && std::env::var_os("TERM").is_none_or(|t| t != "dumb")
}

/// Rows under a header, columns as wide as their widest cell. Cells are escaped here.
#[derive(Debug)]
pub(super) struct Table {
    rows: Vec<Vec<String>>,
}

impl Table {
    pub(super) fn new(header: &[&str]) -> Self {
        Self {
            rows: vec![header.iter().map(|h| (*h).to_owned()).collect()],
        }
    }

    pub(super) fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.rows.push(cells.iter().map(|c| escape(c)).collect());
    }

    pub(super) fn print(&self) -> io::Result<()> {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or_default();
        let width = |i: usize| {
            self.rows
                .iter()
                .filter_map(|r| r.get(i))
                .map(|c| c.chars().count())
                .max()
        };
        let widths: Vec<usize> = (0..columns).map(|i| width(i).unwrap_or_default()).collect();
        let mut out = io::stdout().lock();
        for row in &self.rows {
            let cells = row
                .iter()
                .zip(&widths)
                .map(|(cell, width)| format!("{cell:<width$}"));
            writeln!(out, "{}", cells.collect::<Vec<_>>().join("  ").trim_end())?;
        }
        out.flush()
    }
}

/// Prints `items` as JSON in the form asked for.
pub(super) fn print_json<T: Serialize>(format: Format, items: &[T]) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    if format == Format::Jsonl {
        for item in items {
            writeln!(out, "{}", serde_json::to_string(item)?)?;
        }
    } else {
        writeln!(out, "{}", serde_json::to_string_pretty(items)?)?;
    }
    out.flush()?;
    Ok(())
}

/// Prints one item as JSON, on one line for `jsonl`.
pub(super) fn print_json_one<T: Serialize>(format: Format, item: &T) -> anyhow::Result<()> {
    let text = match format {
        Format::Jsonl => serde_json::to_string(item)?,
        _ => serde_json::to_string_pretty(item)?,
    };
    let mut out = io::stdout().lock();
    writeln!(out, "{text}")?;
    out.flush()?;
    Ok(())
}

/// A moment for people: local time of day, with the date where it was not today.
pub(super) fn local(time: jiff::Timestamp) -> String {
    let zone = jiff::tz::TimeZone::system();
    let then = time.to_zoned_datetime(zone.clone());
    let today = jiff::Timestamp::now().to_zoned_datetime(zone);
    let form = if then.date() == today.date() {
        "%H:%M:%S"
    } else {
        "%Y-%m-%d %H:%M:%S"
    };
    then.strftime(form).to_string()
}

/// Bytes for people.
pub(super) fn bytes(count: u64) -> String {
    const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];
    match UNITS.iter().find(|(_, shift)| count >> shift > 0) {
        // One digit behind the point, in integers.
        Some((unit, shift)) => {
            let tenths = (count >> (shift - 10)).saturating_mul(10) >> 10;
            format!("{}.{} {unit}", tenths / 10, tenths % 10)
        }
        None => format!("{count} B"),
    }
}

/// Packets for people: sent, and received.
pub(super) fn packets(counters: &Counters) -> String {
    format!("{}/{}", counters.packets_out, counters.packets_in)
}

/// Whether the reader of our output has gone, which is its good right.
pub(super) fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|e| e.downcast_ref::<io::Error>())
        .any(|e| e.kind() == io::ErrorKind::BrokenPipe)
}
