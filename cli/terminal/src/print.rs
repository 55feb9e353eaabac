//! What commands print: results on standard output, for a person or, on request, a program, who may stop reading at any line
//! (`dunlin local-train ... | head`); hints on standard error. Colours are for terminals, unless NO_COLOR is set.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::ops::ControlFlow;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};
use serde::Serialize;

use crate::progress::apart;

/// Heads.
pub const STRONG: Style = Style::new().bold();
/// What is beside the point.
pub const FAINT: Style = Style::new().dimmed();
/// What works.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What somebody should look at.
pub const WARN: Style = AnsiColor::Yellow.on_default();
/// What somebody has to mend.
pub const BAD: Style = AnsiColor::Red.on_default();
/// Empties a terminal.
const CLEAR: &[u8] = b"\x1b[H\x1b[2J\x1b[3J";

/// The form of a result.
#[derive(Args, Clone, Copy, Debug, Default)]
pub struct OutputArgs {
    /// For a person, or one line of JSON.
    #[arg(long, short, value_enum, default_value_t)]
    pub output: Form,
}

/// The form of a result.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Form {
    /// Words, tables, pictures.
    #[default]
    Text,
    /// One line of JSON.
    Json,
}

impl OutputArgs {
    /// Prints a result in the form that was asked for. Who reads no longer has seen enough.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn print(&self, result: &impl Serialize, text: impl FnOnce() -> String) -> std::io::Result<()> {
        line(match self.output {
            Form::Json => serde_json::to_string(result)?,
            Form::Text => text(),
        })
        .map(drop)
    }

    /// The same in the place of what was printed before: text on a terminal. `Break` when nobody reads any longer.
    ///
    /// # Errors
    /// When it cannot be printed.
    pub fn reprint(
        &self,
        result: &impl Serialize,
        text: impl FnOnce() -> String,
    ) -> std::io::Result<ControlFlow<()>> {
        match self.output {
            Form::Json => line(serde_json::to_string(result)?),
            Form::Text => {
                if stdout().is_terminal() {
                    apart(|| stdout().lock().write_all(CLEAR))?;
                }
                line(text())
            }
        }
    }
}

/// Text in a style, which [`line`] drops where no terminal is.
#[must_use]
pub fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// The text alone, for a file.
#[must_use]
pub fn plain(text: &str) -> String {
    anstream::adapter::strip_str(text).to_string()
}

/// Prints a line; `Break` when nobody reads any longer, which is an orderly end.
///
/// # Errors
/// When it cannot be printed for another reason.
pub fn line(text: impl Display) -> std::io::Result<ControlFlow<()>> {
    let printed = apart(|| {
        let mut out = AutoStream::auto(stdout().lock());
        writeln!(out, "{text}").and_then(|()| out.flush())
    });
    match printed {
        Ok(()) => Ok(ControlFlow::Continue(())),
        Err(error) if error.kind() == ErrorKind::BrokenPipe => Ok(ControlFlow::Break(())),
        Err(error) => Err(error),
    }
}

/// Says something to a person at a terminal, and nothing to a program or a file.
pub fn hint(text: impl Display) {
    apart(|| {
        let mut out = stderr().lock();
        if out.is_terminal() {
            // A terminal that is gone needs no hint.
            let _ = writeln!(out, "\n{text}\n");
        }
    });
}

/// Says what goes on, beside the result.
pub fn note(text: impl Display) {
    apart(|| {
        // What comes later says whether the command went well.
        let _ = writeln!(AutoStream::auto(stderr().lock()), "{text}");
    });
}

/// Columns, as wide as their widest cell; nothing behind the last one.
#[must_use]
pub fn table<R: AsRef<[String]>>(rows: &[R]) -> String {
    let width = |text: &str| plain(text).chars().count();
    let columns = rows.iter().map(|row| row.as_ref().len()).max().unwrap_or(0);
    let widest: Vec<usize> = (0..columns)
        .map(|at| {
            rows.iter().filter_map(|row| row.as_ref().get(at)).map(|cell| width(cell)).max().unwrap_or(0)
        })
        .collect();
    let padded = |row: &R| {
        let mut line = String::new();
        for (cell, widest) in row.as_ref().iter().zip(&widest) {
            line.push_str(cell);
            line.push_str(&" ".repeat(widest - width(cell) + 2));
        }
        line.trim_end().to_owned()
    };
    rows.iter().map(padded).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{STRONG, painted, plain, table};

    #[test]
    fn colours_take_no_room_in_a_table() {
        let rows = [vec![painted(STRONG, "A"), "B".to_owned()], vec!["four".to_owned(), "█░".to_owned()]];
        assert_eq!(plain(&table(&rows)), "A     B\nfour  █░");
    }

    #[test]
    fn a_row_ends_where_its_text_ends() {
        let rows = [["PEER", "NODE"], ["a-long-name", "n1"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "PEER         NODE\na-long-name  n1\nb");
    }
}
