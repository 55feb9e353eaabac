//! Tokens per second of forward, loss and backward of a whole Llama on random tokens:
//! `train_speed [THREADS] [SECONDS] [HIDDEN LAYERS HEADS KV_HEADS FFN VOCAB SEQUENCE MICROBATCH]`. The twin in PyTorch is e2e/torch/speed.py.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::collections::BTreeMap;
use std::time::Instant;

use dunlin_kernels::{GradientSums, Pool};
use dunlin_model::ModelConfig;
use dunlin_model::spec::{Attention, BlockSpec, Rotary};
use dunlin_model::training::{Grad, StageInput, StageModel, initialise};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let number = |i: usize, default: usize| args.get(i).map_or(Ok(default), |v| v.parse());
    let (threads, seconds) = (number(0, 1)?, number(1, 10)?);
    let (hidden, heads) = (number(2, 256)?, number(4, 4)?);
    let (sequence, microbatch) = (number(8, 256)?, number(9, 4)?);
    let attention = Attention::plain(heads, number(5, 4)?, hidden / heads);
    let config = ModelConfig {
        architecture: "llama".to_owned(),
        layers: u32::try_from(number(3, 8)?)?,
        hidden,
        vocab: number(7, 512)?,
        context_length: u32::try_from(sequence)?,
        tied: false,
        embedding_scale: None,
        block: BlockSpec::llama(1e-5, Rotary::plain(10_000.0), attention, number(6, 768)?),
        other_blocks: BTreeMap::new(),
    };
    config.validate("the arguments")?;
    let pool = Pool::new(threads);
    let mut model = StageModel::new(&config, 0..config.layers, true, true, sequence)?;
    let mut parameters = vec![0.0; model.layout().len()];
    initialise(model.layout(), &config, 1, &mut parameters);
    let started = Instant::now();
    model.set_parameters(&pool, &parameters)?;
    let packing = started.elapsed();
    let count = sequence * microbatch;
    let token = |i: usize| ((i as u64 * 2_654_435_761) >> 7) as u32 % config.vocab as u32;
    let tokens: Vec<u32> = (0..count).map(token).collect();
    let targets: Vec<u32> = (1..=count).map(token).collect();
    let grad = Grad::Targets { targets: &targets, scale: 1.0 / count as f32 };
    let mut sums = GradientSums::new(parameters.len());
    let mut step = || model.backward(&pool, StageInput::Tokens(&tokens), grad, Some(&mut sums), 256.0);
    let loss = step()?.loss.unwrap_or(f64::NAN) / count as f64;
    let mut best = f64::INFINITY;
    let (began, began_cpu, mut steps) = (Instant::now(), cpu_seconds(), 0);
    while began.elapsed().as_secs() < seconds as u64 {
        let started = Instant::now();
        step()?;
        best = best.min(started.elapsed().as_secs_f64());
        steps += 1;
    }
    let cpu = (cpu_seconds() - began_cpu) / f64::from(steps);
    // Two operations for each weight and token forward, four backward; attention, of which half the square is used, comes on top.
    let matrices = parameters.len() - config.vocab * hidden;
    let attention = config.layers as usize * sequence * config.q_width() * 2;
    let flops = 6.0 * count as f64 * (matrices as f64 + attention as f64 / 2.0);
    println!(
        "{{\"threads\": {threads}, \"parameters\": {}, \"loss\": {loss:.4}, \"tokens_per_second\": {:.1}, \"tokens_per_cpu_second\": {:.1}, \"gflops\": {:.1}, \"packing_ms\": {:.1}}}",
        parameters.len(),
        count as f64 / best,
        count as f64 / cpu,
        flops / best / 1e9,
        packing.as_secs_f64() * 1e3,
    );
    Ok(())
}

/// What this process has used, in steps of 10 ms (proc(5)): the same on a machine where others work, too.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    let after_name = stat.rsplit(") ").next().unwrap_or_default();
    after_name.split(' ').skip(11).take(2).filter_map(|ticks| ticks.parse::<f64>().ok()).sum::<f64>() / 100.0
}
