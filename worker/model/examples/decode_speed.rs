//! Tokens per second of a whole model in one process, without a tokenizer: `decode_speed MODEL [TOKENS] [THREADS] [RUNS]`.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::path::PathBuf;
use std::time::Instant;

use dunlin_kernels::Pool;
use dunlin_model::ModelFile;
use dunlin_model::generate::Whole;
use dunlin_protocol::SamplingParams;

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let [model, rest @ ..] = args.as_slice() else {
        return Err("usage: decode_speed MODEL [TOKENS] [THREADS] [RUNS]".into());
    };
    let number = |i: usize, default: usize| rest.get(i).map_or(Ok(default), |v| v.parse());
    let (count, threads, runs) = (number(0, 64)?, number(1, 1)?, number(2, 3)?);
    let file = ModelFile::open_path(&PathBuf::from(model))?;
    let mut whole = Whole::load(&file, Pool::new(threads), count + 1)?;
    for _ in 0..runs {
        let started = Instant::now();
        let answer = whole.generate(&[1], count, &SamplingParams::default(), &[])?;
        println!("{:.2}", answer.len() as f64 / started.elapsed().as_secs_f64());
    }
    Ok(())
}
