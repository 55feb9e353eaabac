//! docs/reference/command-line.md: both programs, as their parsers know them.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::fmt::Write as _;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};

const HEAD: &str = "\
# Command line

<!-- Made from the parsers of both programs: DUNLIN_UPDATE=1 cargo nextest run -p dunlin-cli reference. Edits here are lost. -->

`dunlin` is what people run by hand; on PATH as `kubectl-dunlin` it is `kubectl dunlin`, with the same commands. It starts the `dunlin-worker` that lies beside it, or else the
first one on PATH. `dunlin-worker` is what pods run: the operator starts it, and `dunlin local` and `dunlin local-train` do on one machine. What `doctor`, `status`, `drain`,
`top`, `support-bundle` and `plan NAME` say of a cluster: [kubectl.md](../kubectl.md).

Options may be given as `--peers 3` or `--peers=3`. Those of the log stand before or behind the command.
";

fn markdown() -> String {
    let mut out = HEAD.to_owned();
    for mut program in [crate::cli::Cli::command(), dunlin_worker::cli::WorkerCli::command()] {
        program.build();
        section(&mut out, &program, program.get_name(), 2);
    }
    out
}

fn section(out: &mut String, command: &Command, path: &str, depth: usize) {
    // Writing to a String cannot fail.
    let _ = write!(out, "\n{} {path}\n", "#".repeat(depth.min(4)));
    if let Some(about) = command.get_long_about().or_else(|| command.get_about()) {
        let _ = write!(out, "\n{}\n", sentence(&about.to_string()));
    }
    let (options, global): (Vec<&Arg>, Vec<&Arg>) =
        command.get_arguments().filter(|arg| is_told(arg)).partition(|arg| !arg.is_global_set());
    table(out, &options);
    // Of the program, said once.
    if depth == 2 {
        table(out, &global);
    }
    if let Some(after) = command.get_after_help() {
        let _ = write!(out, "\n```\n{after}\n```\n");
    }
    for inner in command.get_subcommands().filter(|inner| !inner.is_hide_set() && inner.get_name() != "help")
    {
        section(out, inner, &format!("{path} {}", inner.get_name()), depth + 1);
    }
}

fn is_told(arg: &Arg) -> bool {
    let help = matches!(
        arg.get_action(),
        ArgAction::Help | ArgAction::HelpShort | ArgAction::HelpLong | ArgAction::Version
    );
    !help && !arg.is_hide_set()
}

fn table(out: &mut String, options: &[&Arg]) {
    if options.is_empty() {
        return;
    }
    out.push_str("\n| option | default | what |\n|---|---|---|\n");
    for arg in options {
        let values = arg.get_possible_values();
        let names: Vec<&str> = values.iter().map(|value| value.get_name()).collect();
        let takes = arg.get_action().takes_values();
        let value = match arg.get_value_names() {
            Some([name, ..]) if takes && names.is_empty() => format!(" {name}"),
            _ if takes => format!(" {}", names.join("|")),
            _ => String::new(),
        };
        let name = match (arg.get_long(), arg.get_short()) {
            (Some(long), Some(short)) => format!("-{short}, --{long}{value}"),
            (Some(long), None) => format!("--{long}{value}"),
            (None, _) => value.trim().to_owned(),
        };
        let name = name.replace('|', "\\|");
        let defaults: Vec<_> = arg.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
        let default = match (defaults.is_empty() || !takes, arg.is_required_set()) {
            (false, _) if defaults.concat().is_empty() => String::new(),
            (false, _) => format!("`{}`", defaults.join(",")),
            (true, true) => "required".to_owned(),
            (true, false) => String::new(),
        };
        let help =
            arg.get_long_help().or_else(|| arg.get_help()).map(ToString::to_string).unwrap_or_default();
        let variable = arg.get_env().map(|name| format!(" Also by `{}`.", name.to_string_lossy()));
        let help = format!("{}{}", sentence(&help), variable.unwrap_or_default()).replace('|', "\\|");
        // Writing to a String cannot fail.
        let _ = writeln!(out, "| `{name}` | {default} | {help} |");
    }
}

/// Ended by a stop, which the parser takes from short ones.
fn sentence(text: &str) -> String {
    let text = text.split('\n').map(str::trim).collect::<Vec<_>>().join(" ");
    let text = text.trim();
    if text.is_empty() || text.ends_with(['.', '?', '!']) { text.to_owned() } else { format!("{text}.") }
}

#[test]
fn the_page_tells_what_the_parsers_know() {
    let page = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docs/reference/command-line.md");
    let made = markdown();
    if std::env::var_os("DUNLIN_UPDATE").is_some_and(|value| value == "1") {
        std::fs::write(&page, &made).unwrap();
    }
    let found = std::fs::read_to_string(&page).unwrap_or_default();
    let first = made.lines().zip(found.lines()).find(|(made, found)| made != found);
    assert!(
        made == found,
        "docs/reference/command-line.md is not what the parsers know, from {first:?} on; make it anew: DUNLIN_UPDATE=1 cargo nextest run -p dunlin-cli reference"
    );
}
