//! Prints the CustomResourceDefinition, or with `--docs` its reference in Markdown. See `make crds`.

use std::io::Write;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let made = match arguments.iter().map(String::as_str).collect::<Vec<_>>()[..] {
        [] => dunlin_crds::generated::crd(),
        ["--docs"] => dunlin_crds::generated::docs(),
        _ => Err("usage: crdgen [--docs]".into()),
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
