//! Where text goes: standard output, in colours where it is a terminal.

use std::io::{self, IsTerminal, Write};
use std::process::ExitCode;

use serde::Serialize;

/// The code of a command that failed.
pub const FAILED: u8 = 1;
/// The code of a command that found something to mend.
pub const FOUND: u8 = 2;

/// Where text goes.
#[derive(Clone, Copy, Debug, Default)]
pub struct Output {
    colour: bool,
    terminal: bool,
}

/// A colour of a word.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Colour {
    /// All is well.
    Green,
    /// Worth a look.
    Yellow,
    /// To be mended.
    Red,
    /// Of less weight.
    Dim,
    /// Of more weight.
    Bold,
}

impl Output {
    /// Standard output as it is: colours on a terminal, unless NO_COLOR is set (<https://no-color.org>).
    #[must_use]
    pub fn detect() -> Self {
        let terminal = io::stdout().is_terminal();
        let wanted = std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty());
        Self { colour: terminal && wanted && std::env::var_os("TERM").is_none_or(|t| t != "dumb"), terminal }
    }

    /// `text` in `colour`, as far as there are colours.
    #[must_use]
    pub fn paint(&self, colour: Colour, text: &str) -> String {
        let code = match colour {
            _ if !self.colour => return text.to_owned(),
            Colour::Green => 32,
            Colour::Yellow => 33,
            Colour::Red => 31,
            Colour::Dim => 2,
            Colour::Bold => 1,
        };
        format!("\x1b[{code}m{text}\x1b[0m")
    }

    /// Prints `text` and ends the line. Who reads may stop reading.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn print(&self, text: &str) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match writeln!(out, "{text}").and_then(|()| out.flush()) {
            Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            done => done,
        }
    }

    /// The same in the place of what was printed before, where there is a terminal.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn reprint(&self, text: &str) -> io::Result<()> {
        let clear = if self.terminal { "\x1b[H\x1b[2J\x1b[3J" } else { "" };
        self.print(&format!("{clear}{text}"))
    }

    /// Prints `value` as JSON.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn json(&self, value: &impl Serialize) -> io::Result<()> {
        self.print(&serde_json::to_string_pretty(value)?)
    }

    /// What is done about an error that ends the command.
    #[must_use]
    pub fn failed(&self, error: &anyhow::Error) -> ExitCode {
        // Nobody is left to tell when this fails.
        let _ = writeln!(io::stderr(), "Error: {error:#}");
        ExitCode::from(FAILED)
    }

    /// A word about what goes on, beside the result.
    pub fn note(&self, text: &str) {
        // What comes later says whether the command went well.
        let _ = writeln!(io::stderr(), "{text}");
    }
}

/// `rows` as columns with two blanks between them; the last one ends where its text ends.
#[must_use]
pub fn table<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |i: usize| rows.iter().map(|row| row[i].chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..N).map(width).collect();
    let line = |row: &[String; N]| {
        let cells = row.iter().zip(&widths).map(|(cell, width)| format!("{cell:width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect::<Vec<_>>().join("\n")
}

/// `3 s`, `4 min`, `5 h`, `6 d`.
#[must_use]
pub fn span(seconds: i64) -> String {
    match seconds {
        ..120 => format!("{} s", seconds.max(0)),
        120..7200 => format!("{} min", seconds / 60),
        7200..172_800 => format!("{} h", seconds / 3600),
        _ => format!("{} d", seconds / 86_400),
    }
}

/// `1 peer`, `2 peers`.
#[must_use]
pub fn count(number: usize, noun: &str) -> String {
    format!("{number} {noun}{}", if number == 1 { "" } else { "s" })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_terminal_gets_no_colours() {
        assert_eq!(Output::default().paint(Colour::Red, "bad"), "bad");
        let coloured = Output { colour: true, terminal: true };
        assert_eq!(coloured.paint(Colour::Red, "bad"), "\x1b[31mbad\x1b[0m");
    }

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let rows = [["PEER", "NODE"], ["a-long-name", "n1"], ["b", ""]].map(|row| row.map(str::to_owned));
        assert_eq!(table(&rows), "PEER         NODE\na-long-name  n1\nb");
    }

    #[test]
    fn times_and_counts_are_told_in_words() {
        assert_eq!(
            [span(-4), span(119), span(120), span(7300), span(200_000)],
            ["0 s", "119 s", "2 min", "2 h", "2 d"]
        );
        assert_eq!([count(1, "peer"), count(0, "peer")], ["1 peer", "0 peers"]);
    }
}
