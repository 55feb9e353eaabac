//! `crdgen KIND` prints the CustomResourceDefinition of a kind, `crdgen KIND --docs` its reference in Markdown. See `make crds`.

use std::io::Write;
use std::process::ExitCode;

use dunlin_crds::generated::{crd, docs, kind};

const USAGE: &str = "usage: crdgen inferenceswarm|trainingswarm [--docs]";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let made = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [name] => kind(name).ok_or_else(|| USAGE.into()).and_then(crd),
        [name, "--docs"] => kind(name).ok_or_else(|| USAGE.into()).and_then(docs),
        _ => Err(USAGE.into()),
    };
    let printed = made.and_then(|text| std::io::stdout().write_all(text.as_bytes()).map_err(Into::into));
    match printed {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("crdgen: {error}");
            ExitCode::FAILURE
        }
    }
}
