//! `random-model`: a random Llama for tests and benchmarks.

use std::path::PathBuf;

use clap::Args;
use dunlin_model::random_model::{RandomModelSpec, write_telling};
use dunlin_terminal::progress::Progress;

/// Shape of a random model.
#[derive(Args, Clone)]
pub struct RandomModelArgs {
    /// Decoder blocks.
    #[arg(long, default_value_t = 8)]
    pub layers: u32,
    /// Width of a row.
    #[arg(long, default_value_t = 512)]
    pub hidden: usize,
    /// Query heads.
    #[arg(long, default_value_t = 8)]
    pub heads: usize,
    /// Key and value heads.
    #[arg(long, default_value_t = 8)]
    pub kv_heads: usize,
    /// Width of the feed-forward part.
    #[arg(long, default_value_t = 1376)]
    pub ffn: usize,
    /// Tokens.
    #[arg(long, default_value_t = 8000)]
    pub vocab: usize,
    /// Seeds the weights.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Folder to write.
    #[arg(long)]
    pub out: PathBuf,
}

/// Writes the model.
///
/// # Errors
/// When the shape makes no sense or a file cannot be written.
pub fn run(args: &RandomModelArgs) -> anyhow::Result<()> {
    let RandomModelArgs { layers, hidden, heads, kv_heads, ffn, vocab, seed, .. } = *args;
    let spec = RandomModelSpec { layers, hidden, heads, kv_heads, ffn, vocab, seed };
    let mut progress = None;
    let mut told = |written, all| {
        progress.get_or_insert_with(|| Progress::of_bytes(all, "writes weights")).done(written);
    };
    Ok(write_telling(&args.out, &spec, &mut told)?)
}
