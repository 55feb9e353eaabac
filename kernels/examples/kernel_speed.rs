//! Microseconds of the kernels that vectors are written by hand for, on one thread: `kernel_speed [REPEATS]`.
//!
//! The shortest of all calls is shown, so that a busy machine is forgiven. For comparisons before and after a change, run both in turns.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use dunlin_kernels::{
    AttentionRow, Begin, CausalForward, CausalShape, Format, Heads, Isa, Matrix, PAGE, Pool, attention,
    causal_attention, causal_attention_backward, linear, page_len, weight_gradient,
};

const FORMATS: [Format; 8] = [
    Format::Q4_K,
    Format::Q6_K,
    Format::Q8_0,
    Format::Q4_1,
    Format::F16,
    Format::BF16,
    Format::F32,
    Format::Q5_K,
];

/// Values between -1 and 1.
fn values(count: usize) -> Vec<f32> {
    (0..count as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 8) as f32 / (1 << 23) as f32 - 1.0).collect()
}

fn weights(format: Format, n: usize, k: usize) -> Matrix {
    if format == Format::F32 {
        return Matrix::from_f32(n, k, &values(n * k));
    }
    // Without the upper bit of exponents, so that no scale is infinite.
    let bytes = n * format.row_bytes(k).expect("whole blocks");
    let bytes: Vec<u8> =
        (0..bytes as u32).map(|i| (i.wrapping_mul(2_654_435_761) >> 24) as u8 & 0x3b).collect();
    Matrix::from_ggml(format, n, k, &bytes).expect("sound weights")
}

fn shortest(repeats: usize, mut call: impl FnMut()) -> Duration {
    let time = |call: &mut dyn FnMut()| {
        let started = Instant::now();
        call();
        started.elapsed()
    };
    (0..repeats).map(|_| time(&mut call)).min().unwrap_or_default()
}

fn show(isa: Isa, what: &str, time: Duration) {
    println!("{:<8} {what:<24} {:>9.1}", format!("{isa:?}"), time.as_secs_f64() * 1e6);
}

fn products(pool: &Pool, repeats: usize) {
    let (n, k) = (1024, 1024);
    for format in FORMATS {
        let w = weights(format, n, k);
        for m in [1, 4, 64] {
            let (x, mut y) = (values(m * k), vec![0.0; m * n]);
            let time = shortest(repeats, || linear(pool, &w, &x, m, black_box(&mut y)));
            show(pool.isa(), &format!("{format:?} {m} rows"), time);
        }
    }
}

fn serving_attention(pool: &Pool, repeats: usize) {
    let (heads, length) = (Heads::new(16, 4, 64), 512);
    let pages: Vec<Vec<f32>> = (0..length / PAGE).map(|_| values(page_len(4, 64))).collect();
    let pages: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
    let rows = [AttentionRow { pages: &pages, from: 0, len: length }];
    let (q, mut out) = (values(16 * 64), vec![0.0; 16 * 64]);
    let time = shortest(repeats, || attention(pool, &q, &rows, heads, black_box(&mut out)));
    show(pool.isa(), "attention 512 positions", time);
}

fn training(pool: &Pool, repeats: usize) {
    let shape = CausalShape { sequences: 1, length: 256, heads: 8, kv_heads: 4, head_dim: 64 };
    let (q, k, v) = (values(256 * 512), values(256 * 256), values(256 * 256));
    let (mut out, mut statistics) = (vec![0.0; q.len()], vec![0.0; shape.statistics_len()]);
    let time = shortest(repeats, || {
        causal_attention(pool, &shape, [&q, &k, &v], black_box(&mut out), &mut statistics);
    });
    show(pool.isa(), "causal forward", time);
    let dout = values(q.len());
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    let time = shortest(repeats, || {
        let forward = CausalForward { q: &q, k: &k, v: &v, out: &out, statistics: &statistics };
        let dq = black_box(&mut dq);
        causal_attention_backward(pool, &shape, &forward, &dout, [dq, &mut dk, &mut dv]);
    });
    show(pool.isa(), "causal backward", time);
    let (x, dy, mut dw) = (values(256 * 512), values(256 * 512), vec![0.0; 512 * 512]);
    let time = shortest(repeats, || {
        weight_gradient(pool, &x, 256, &[&dy], &mut [black_box(&mut dw)], Begin::Here);
    });
    show(pool.isa(), "weight gradient", time);
}

fn main() {
    let repeats = std::env::args().nth(1).and_then(|repeats| repeats.parse().ok()).unwrap_or(200);
    for isa in Isa::all().into_iter().filter(|isa| *isa != Isa::Scalar) {
        let pool = Pool::with_isa(1, isa);
        products(&pool, repeats);
        serving_attention(&pool, repeats);
        training(&pool, repeats.div_ceil(4));
    }
}
