//! Generates text with a whole model in one process: `generate MODEL PROMPT [TOKENS] [THREADS]`.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::path::PathBuf;
use std::time::Instant;

use dunlin_kernels::Pool;
use dunlin_model::ModelFile;
use dunlin_model::generate::Whole;
use dunlin_protocol::SamplingParams;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, prompt, rest @ ..] = args.as_slice() else {
        return Err("usage: generate MODEL PROMPT [TOKENS] [THREADS]".into());
    };
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |v| v.parse());
    let (count, threads) = (number(0, 64)?, number(1, 1)?);
    let started = Instant::now();
    let file = ModelFile::open_path(&PathBuf::from(model))?;
    let tokenizer = file.tokenizer()?;
    println!("tokenizer after {:.3} s", started.elapsed().as_secs_f64());
    let mut whole = Whole::load(&file, Pool::new(threads), 4096)?;
    println!("loaded after {:.3} s", started.elapsed().as_secs_f64());
    let tokens = tokenizer.encode(prompt, true)?;
    let started = Instant::now();
    whole.forward(&tokens)?;
    println!("{} prompt tokens in {:.3} s", tokens.len(), started.elapsed().as_secs_f64());
    for _ in 0..3 {
        let started = Instant::now();
        let answer = whole.generate(&tokens, count, &SamplingParams::default(), &[])?;
        let seconds = started.elapsed().as_secs_f64();
        println!("{:.1} tokens/s: {}", answer.len() as f64 / seconds, tokenizer.decode(&answer));
    }
    Ok(())
}
