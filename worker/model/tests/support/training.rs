//! A small model to train, and the same in f64, written out plainly.

use std::collections::BTreeMap;

use dunlin_kernels::IGNORED;
use dunlin_model::ModelConfig;
use dunlin_model::spec::{Attention, BlockSpec, Rotary};
use dunlin_model::training::{ParameterLayout, initialise};

/// Tokens of a sequence: more than a page.
pub const LENGTH: usize = 19;

/// Three layers.
pub fn config(architecture: &str, tied: bool) -> ModelConfig {
    let kv_heads = if architecture == "llama" { 4 } else { 2 };
    let attention = Attention { bias: architecture == "qwen2", ..Attention::plain(4, kv_heads, 8) };
    ModelConfig {
        architecture: architecture.to_owned(),
        layers: 3,
        hidden: 20,
        vocab: 50,
        context_length: 64,
        tied,
        embedding_scale: None,
        block: BlockSpec::llama(1e-5, Rotary::plain(10_000.0), attention, 28),
        other_blocks: BTreeMap::new(),
    }
}

/// Values as in the middle of training: matrices ten times their first size, norms and biases not all the same.
pub fn parameters(config: &ModelConfig, layout: &ParameterLayout) -> Vec<f32> {
    let mut out = vec![0.0; layout.len()];
    initialise(layout, config, 42, &mut out);
    for tensor in layout.tensors() {
        for (i, value) in out[tensor.range()].iter_mut().enumerate() {
            let wave = (i as f32 * 0.7 + tensor.name.len() as f32).sin();
            *value = if tensor.decay { *value * 10.0 } else { *value + 0.3 * wave };
        }
    }
    out
}

/// Tokens and targets of some sequences.
pub fn microbatch(config: &ModelConfig, sequences: usize, seed: u64) -> (Vec<u32>, Vec<u32>) {
    let token = |i: u64| {
        let z = (i + seed * 1000).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        ((z ^ (z >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 40) as u32 % config.vocab as u32
    };
    let count = (sequences * LENGTH) as u64;
    ((0..count).map(token).collect(), (1..=count).map(token).collect())
}

pub fn wide(values: &[f32]) -> Vec<f64> {
    values.iter().map(|v| f64::from(*v)).collect()
}

/// The sum of the losses, in f64 throughout. The rows `prompt` stand before every sequence.
pub fn loss_f64(
    config: &ModelConfig,
    layout: &ParameterLayout,
    parameters: &[f64],
    prompt: &[f64],
    tokens: &[u32],
    targets: &[u32],
) -> f64 {
    let c = config;
    let get = |name: &str| layout.tensor(name).map(|tensor| &parameters[tensor.range()]);
    let embedding = get("model.embed_tokens.weight").unwrap();
    let head = if c.tied { embedding } else { get("lm_head.weight").unwrap() };
    let mut loss = 0.0;
    for (tokens, targets) in tokens.chunks(LENGTH).zip(targets.chunks(LENGTH)) {
        let embedded = tokens.iter().map(|t| &embedding[*t as usize * c.hidden..][..c.hidden]);
        let mut x: Vec<Vec<f64>> = prompt.chunks(c.hidden).chain(embedded).map(<[f64]>::to_vec).collect();
        for layer in 0..c.layers {
            let w = |role: &str| get(&format!("model.layers.{layer}.{role}"));
            block_f64(c, &w, &mut x);
        }
        let norm_weight = get("model.norm.weight").unwrap();
        for (x, target) in x.iter().skip(prompt.len() / c.hidden).zip(targets) {
            if *target == IGNORED {
                continue;
            }
            let logits = map(head, &norm(c, x, norm_weight));
            let max = logits.iter().copied().fold(f64::MIN, f64::max);
            loss += logits.iter().map(|l| (l - max).exp()).sum::<f64>().ln() + max - logits[*target as usize];
        }
    }
    loss
}

fn block_f64<'a>(c: &ModelConfig, w: &dyn Fn(&str) -> Option<&'a [f64]>, x: &mut [Vec<f64>]) {
    let Attention { heads, kv_heads, head_dim: hd, .. } = c.block.attention;
    let group = heads / kv_heads;
    let project = |name: &str, x: &[f64]| {
        let mut y = map(w(&format!("self_attn.{name}_proj.weight")).unwrap(), x);
        if let Some(bias) = w(&format!("self_attn.{name}_proj.bias")) {
            y.iter_mut().zip(bias).for_each(|(y, b)| *y += b);
        }
        y
    };
    let norms: Vec<Vec<f64>> = x.iter().map(|x| norm(c, x, w("input_layernorm.weight").unwrap())).collect();
    let turned = |name: &str| -> Vec<Vec<f64>> {
        norms.iter().enumerate().map(|(t, x)| turn(c, project(name, x), t)).collect()
    };
    let (q, k) = (turned("q"), turned("k"));
    let v: Vec<Vec<f64>> = norms.iter().map(|x| project("v", x)).collect();
    for (t, x) in x.iter_mut().enumerate() {
        let mut attended = vec![0.0; heads * hd];
        for head in 0..heads {
            let kv = head / group * hd;
            let scores: Vec<f64> = (0..=t)
                .map(|s| {
                    (0..hd).map(|d| q[t][head * hd + d] * k[s][kv + d]).sum::<f64>() / (hd as f64).sqrt()
                })
                .collect();
            let sum: f64 = scores.iter().map(|s| s.exp()).sum();
            for (s, score) in scores.iter().enumerate() {
                for d in 0..hd {
                    attended[head * hd + d] += score.exp() / sum * v[s][kv + d];
                }
            }
        }
        let out = map(w("self_attn.o_proj.weight").unwrap(), &attended);
        x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
        let y = norm(c, x, w("post_attention_layernorm.weight").unwrap());
        let (gate, up) =
            (map(w("mlp.gate_proj.weight").unwrap(), &y), map(w("mlp.up_proj.weight").unwrap(), &y));
        let inner: Vec<f64> = gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
        let out = map(w("mlp.down_proj.weight").unwrap(), &inner);
        x.iter_mut().zip(out).for_each(|(x, out)| *x += out);
    }
}

fn map(w: &[f64], x: &[f64]) -> Vec<f64> {
    w.chunks(x.len()).map(|row| row.iter().zip(x).map(|(w, x)| w * x).sum()).collect()
}

fn norm(c: &ModelConfig, x: &[f64], w: &[f64]) -> Vec<f64> {
    let mean = x.iter().map(|v| v * v).sum::<f64>() / x.len() as f64;
    x.iter().zip(w).map(|(x, w)| x / (mean + f64::from(c.block.norm.eps)).sqrt() * w).collect()
}

fn turn(c: &ModelConfig, mut x: Vec<f64>, position: usize) -> Vec<f64> {
    let head_dim = c.block.attention.head_dim;
    let half = head_dim / 2;
    for head in x.chunks_mut(head_dim) {
        for i in 0..half {
            let angle = position as f64 * c.block.rotary.base.powf(-2.0 * i as f64 / head_dim as f64);
            let (a, b) = (head[i], head[i + half]);
            head[i] = a * angle.cos() - b * angle.sin();
            head[i + half] = a * angle.sin() + b * angle.cos();
        }
    }
    x
}
