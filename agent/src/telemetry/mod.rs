//! What the agent says of itself, on stderr. Decisions do not pass here: they are records (`audit`).
use std::io::{IsTerminal, Write as _};
use tracing_subscriber::EnvFilter;

/// Variable that selects what is logged, e.g. `debug` or `tollgate::pipeline=trace`; `RUST_LOG` works too.
pub const FILTER: &str = "TOLLGATE_LOG";
/// Variable that selects the form: `text` (the default) or `json`.
pub const FORMAT: &str = "TOLLGATE_LOG_FORMAT";

/// Starts logging at `default` unless a variable says otherwise. Later calls change nothing.
pub fn init(default: &'static str) {
    let chosen = std::env::var(FILTER).or_else(|_| std::env::var("RUST_LOG"));
    let filter = EnvFilter::try_new(chosen.as_deref().unwrap_or(default)).unwrap_or_else(|e| {
        let _ = writeln!(
            std::io::stderr(),
            "tollgate: {FILTER}: {e}: logging at `{default}`"
        );
        EnvFilter::new(default)
    });
    let colour = std::io::stderr().is_terminal()
        && std::env::var_os("NO_COLOR").is_none_or(|v| v.is_empty());
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        // It would complain with `eprintln!`, which panics when stderr is gone, and the log may go before the agent does.
        .log_internal_errors(false)
        .with_target(false);
    // Under systemd the journal has the time already.
    let journal = std::env::var_os("JOURNAL_STREAM").is_some();
    let _ = match (std::env::var(FORMAT).as_deref(), journal) {
        (Ok("json"), _) => builder.json().try_init(),
        (_, true) => builder.with_ansi(false).without_time().try_init(),
        (_, false) => builder.with_ansi(colour).try_init(),
    };
}
