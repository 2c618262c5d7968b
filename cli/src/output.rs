//! What goes to people: standard output that survives a closed pipe, colour only where it is seen,
//! progress only where someone waits.

use indicatif::{ProgressBar, ProgressStyle};
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// Prints to standard output; a closed pipe comes back as an error that [`is_closed_pipe`] knows.
pub(crate) fn print(text: &str) -> anyhow::Result<()> {
    let mut out = io::stdout().lock();
    out.write_all(text.as_bytes())?;
    out.flush()?;
    Ok(())
}

/// Prints a line of JSON, or several.
pub(crate) fn print_json(value: &impl serde::Serialize) -> anyhow::Result<()> {
    print(&(serde_json::to_string_pretty(value)? + "\n"))
}

/// Whether the reader of our standard output has gone.
pub(crate) fn is_closed_pipe(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause
            .downcast_ref::<io::Error>()
            .is_some_and(|e| e.kind() == io::ErrorKind::BrokenPipe)
    }) && error.downcast_ref::<io::Error>().is_some()
}

/// An error message on standard error.
pub(crate) fn complain(text: &str) {
    let name = if colour_on(&io::stderr()) {
        "\x1b[1;31mnvmx:\x1b[0m"
    } else {
        "nvmx:"
    };
    let _ = writeln!(io::stderr(), "{name} {text}");
}

/// A message on standard error that is no error.
pub(crate) fn say(text: &str) {
    let _ = writeln!(io::stderr(), "nvmx: {text}");
}

/// Whether colour is seen there: a terminal, and NO_COLOR not set.
pub(crate) fn colour_on(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// Makes headings bold and findings red, if standard output is a terminal.
pub(crate) fn highlight(text: &str) -> String {
    if !colour_on(&io::stdout()) {
        return text.to_owned();
    }
    let mut out = String::with_capacity(text.len() + 64);
    for line in text.lines() {
        let style = if line.starts_with("  ! ") || line.starts_with("architectural") {
            "\x1b[1;31m"
        } else if !line.starts_with(' ') && !line.is_empty() {
            "\x1b[1m"
        } else {
            ""
        };
        out.push_str(style);
        out.push_str(line);
        out.push_str(if style.is_empty() { "" } else { "\x1b[0m" });
        out.push('\n');
    }
    out
}

/// A spinner on standard error if that is a terminal, else nothing.
pub(crate) fn spinner(text: impl Into<String>) -> ProgressBar {
    if !io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::new_spinner().with_message(text.into());
    if let Ok(style) = ProgressStyle::with_template("{spinner} {msg} ({elapsed})") {
        bar.set_style(style);
    }
    bar.enable_steady_tick(Duration::from_millis(120));
    bar
}

/// An error with its causes on one line; a cause that the text before it tells already is left out.
pub(crate) fn chain(error: &anyhow::Error) -> String {
    let mut text = String::new();
    for cause in error.chain().map(ToString::to_string) {
        if text.is_empty() {
            text = cause;
        } else if !text.contains(&cause) {
            text = format!("{text}: {cause}");
        }
    }
    text
}
