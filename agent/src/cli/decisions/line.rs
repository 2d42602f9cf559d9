//! A decision as a line for people.
use super::super::output::{self, Colour, Paint};
use crate::audit::{Coverage, Record, Verdict};

/// Decisions as lines under each other: time, verdict, workload, identity, process, method, host and route, status,
/// milliseconds, rule or reason. That last part ends with the terminal, where there is one of so many columns.
pub(in crate::cli) fn lines<'r>(
    records: impl IntoIterator<Item = &'r Record>,
    paint: Paint,
    terminal: Option<usize>,
) -> Vec<String> {
    let rows: Vec<Row> = records.into_iter().map(Row::of).collect();
    let mut columns = Columns::default();
    for row in &rows {
        columns.widen(row);
    }
    rows.iter()
        .map(|row| columns.line(row, paint, terminal))
        .collect()
}

/// Cells before the rule or reason.
const CELLS: usize = 9;
/// What is wider than this stands out of its column.
const WIDEST: usize = 48;
/// A rule or reason is not cut shorter than this, however narrow the terminal.
const SHORTEST: usize = 24;

/// What a line says, safe to print.
pub(super) struct Row {
    colour: Colour,
    cells: [String; CELLS],
    outcome: String,
}

impl Row {
    pub(super) fn of(record: &Record) -> Self {
        let (name, colour) = match record.verdict {
            Verdict::Allow => ("ALLOW", Colour::Green),
            Verdict::Deny => ("DENY", Colour::Red),
            Verdict::WouldDeny => ("WOULD-DENY", Colour::Yellow),
            Verdict::Limit => ("LIMIT", Colour::Red),
            Verdict::Error => ("ERROR", Colour::Yellow),
        };
        let or_dash = |text: Option<&str>| {
            text.filter(|t| !t.is_empty())
                .map_or("-".to_owned(), output::escape)
        };
        let process = record.process.as_ref().map(|p| {
            let name = p.exe.rsplit('/').next().unwrap_or_default();
            format!("{name}({})", p.pid)
        });
        let by_kernel = record.coverage == Coverage::Kernel;
        let place = record.place();
        let status = record.response.filter(|r| r.status != 0);
        let (whole, tenths) = (
            record.timing.total_us / 1000,
            record.timing.total_us % 1000 / 100,
        );
        let cells = [
            output::local(record.time),
            name.to_owned(),
            or_dash(record.workload.as_deref()),
            or_dash(record.identity.as_deref()),
            or_dash(process.as_deref()),
            or_dash(record.request.as_ref().map(|r| r.method.as_str())),
            or_dash(place.as_deref()),
            or_dash(status.map(|r| r.status.to_string()).as_deref()),
            // The kernel refuses on the spot.
            if by_kernel {
                "-".to_owned()
            } else {
                format!("{whole}.{tenths}ms")
            },
        ];
        Self {
            colour,
            cells,
            outcome: outcome(record),
        }
    }
}

/// Widths of the cells.
#[derive(Debug, Default)]
pub(super) struct Columns([usize; CELLS]);

impl Columns {
    /// For lines of which the next is not known yet: what is usual.
    pub(super) fn of_a_stream() -> Self {
        Self([8, 10, 8, 1, 14, 5, 32, 3, 7])
    }

    pub(super) fn widen(&mut self, row: &Row) {
        for (width, cell) in self.0.iter_mut().zip(&row.cells) {
            *width = (*width).max(cell.chars().count().min(WIDEST));
        }
    }

    pub(super) fn line(&self, row: &Row, paint: Paint, terminal: Option<usize>) -> String {
        let mut line = String::new();
        let mut shown = 0;
        for (i, (cell, width)) in row.cells.iter().zip(self.0).enumerate() {
            let padded = format!("{cell:<width$}");
            shown += padded.chars().count() + 1;
            line += &match i {
                0 => paint.paint(Colour::Dim, &padded),
                1 => paint.paint(row.colour, &padded),
                _ => padded,
            };
            line.push(' ');
        }
        let room = terminal.map(|t| t.saturating_sub(shown).max(SHORTEST));
        match room.filter(|room| row.outcome.chars().count() > *room) {
            Some(room) => {
                line.extend(row.outcome.chars().take(room.saturating_sub(1)));
                line.push('…');
            }
            None => line += &row.outcome,
        }
        line
    }
}

/// The rule that let it pass, or the reason that it did not.
fn outcome(record: &Record) -> String {
    match (&record.reason, &record.rule) {
        (Some(reason), _) => output::escape(&format!("{}: {}", reason.code, reason.detail)),
        (None, Some(rule)) => output::escape(rule),
        (None, None) => "-".to_owned(),
    }
}
