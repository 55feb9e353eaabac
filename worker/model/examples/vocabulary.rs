//! Compares tokens with those that llama.cpp has beside the vocabularies of its tests, which come from transformers: `vocabulary FILE.gguf...`.
//!
//! Beside each file `FILE.gguf.inp` has texts, and `FILE.gguf.out` a line of tokens for each.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::path::Path;

use dunlin_model::{FileSource, Tokenizer, gguf};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut wrong = 0;
    for file in std::env::args().skip(1) {
        let header = gguf::read_header(&FileSource::open(Path::new(&file))?)?;
        let tokenizer = match Tokenizer::from_gguf(&header.values) {
            Ok(tokenizer) => tokenizer,
            Err(error) => {
                println!("{file}: refused: {error}");
                continue;
            }
        };
        let (Ok(texts), Ok(tokens)) =
            (std::fs::read_to_string(format!("{file}.inp")), std::fs::read_to_string(format!("{file}.out")))
        else {
            println!("{file}: read, and there is nothing to compare with");
            continue;
        };
        let texts: Vec<&str> = texts.split("\n__ggml_vocab_test__\n").collect();
        let before = wrong;
        for (text, line) in texts.iter().zip(tokens.lines()) {
            let want = line.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>()?;
            let got = tokenizer.encode(text, false)?;
            if got != want {
                wrong += 1;
                println!("{file}: {text:?}\n  is    {got:?}\n  not   {want:?}");
            }
        }
        println!("{file}: {} of {} texts otherwise", wrong - before, texts.len());
    }
    if wrong > 0 { Err(format!("{wrong} texts have other tokens").into()) } else { Ok(()) }
}
