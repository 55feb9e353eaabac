//! What commands print: results on standard output, for a person or, on request, a program, who may stop reading at any line
//! (`dunlin local-train ... | head`); hints on standard error. Colours are for terminals, unless NO_COLOR is set.

use std::fmt::Display;
use std::io::{ErrorKind, IsTerminal, Write, stderr, stdout};
use std::ops::ControlFlow;

use anstream::AutoStream;
use anstyle::{AnsiColor, Style};
use clap::{Args, ValueEnum};

use crate::progress::apart;

/// Heads.
pub const STRONG: Style = Style::new().bold();
/// What is beside the point.
pub const FAINT: Style = Style::new().dimmed();
/// What works.
pub const GOOD: Style = AnsiColor::Green.on_default();
/// What somebody should look at.
pub const WARN: Style = AnsiColor::Yellow.on_default();

/// The form of a result.
#[derive(Args, Clone, Copy)]
pub struct OutputArgs {
    /// For a person, or one line of JSON.
    #[arg(long, short, value_enum, default_value = "text")]
    pub output: Output,
}

/// The form of a result.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// Words, tables, pictures.
    Text,
    /// One line of JSON.
    Json,
}

/// Text in a style, which [`line`] drops where no terminal is.
#[must_use]
pub fn painted(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
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

/// Columns, as wide as their widest cell; nothing behind the last one.
#[must_use]
pub fn table(rows: &[Vec<String>]) -> String {
    let width = |text: &str| anstream::adapter::strip_str(text).to_string().chars().count();
    let columns = rows.iter().map(Vec::len).max().unwrap_or(0);
    let widest: Vec<usize> = (0..columns)
        .map(|at| rows.iter().filter_map(|row| row.get(at)).map(|cell| width(cell)).max().unwrap_or(0))
        .collect();
    let padded = |row: &Vec<String>| {
        let mut line = String::new();
        for (at, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if at + 1 < row.len() {
                line.push_str(&" ".repeat(widest[at] - width(cell) + 2));
            }
        }
        line
    };
    rows.iter().map(padded).collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::{STRONG, painted, table};

    #[test]
    fn colours_take_no_room_in_a_table() {
        let rows = [vec![painted(STRONG, "A"), "B".to_owned()], vec!["four".to_owned(), "█░".to_owned()]];
        let text = anstream::adapter::strip_str(&table(&rows)).to_string();
        assert_eq!(text, "A     B\nfour  █░");
    }
}
