//! Microseconds of the kernels that vectors are written by hand for, on one thread: `kernel_speed [REPEATS] [NAME]`, those alone that have NAME in what is shown.
//!
//! Products of one row are also measured with weights that come from memory, as in decoding: GB/s and billions of weights/s stand behind the time.
//! The shortest of all calls is shown, so that a busy machine is forgiven. For comparisons before and after a change, run both in turns.
#![allow(clippy::print_stdout, reason = "an example talks to a terminal")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use dunlin_kernels::{
    AttentionRow, Begin, CausalForward, CausalShape, Format, Heads, Isa, Matrix, PAGE, Pool, attention,
    causal_attention, causal_attention_backward, linear, page_len, weight_gradient,
};

const FORMATS: [Format; 14] = [
    Format::Q4_K,
    Format::Q6_K,
    Format::Q8_0,
    Format::Q4_1,
    Format::F16,
    Format::BF16,
    Format::F32,
    Format::Q5_K,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q3_K,
    Format::Q2_K,
    Format::IQ4_XS,
    Format::IQ4_NL,
];

/// Times each kernel, if it is asked for.
struct Bench {
    pool: Pool,
    repeats: usize,
    /// What a name has that is asked for.
    only: String,
}

impl Bench {
    fn time(&self, what: &str, call: impl FnMut()) {
        self.time_with(what, |_| String::new(), call);
    }

    /// With what follows from the seconds behind the time.
    fn time_with(&self, what: &str, more: impl Fn(f64) -> String, call: impl FnMut()) {
        if what.contains(&self.only) {
            let seconds = shortest(self.repeats, call).as_secs_f64();
            let isa = format!("{:?}", self.pool.isa());
            println!("{isa:<8} {what:<24} {:>9.1} {}", seconds * 1e6, more(seconds));
        }
    }
}

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

fn products(bench: &Bench) {
    let (n, k) = (1024, 1024);
    for format in FORMATS {
        let w = weights(format, n, k);
        for m in [1, 4, 64] {
            let (x, mut y) = (values(m * k), vec![0.0; m * n]);
            bench.time(&format!("{format:?} {m} rows"), || linear(&bench.pool, &w, &x, m, black_box(&mut y)));
        }
    }
}

/// One row, with more weights than the caches have room for.
fn products_from_memory(bench: &Bench) {
    let (n, k, count) = (4096, 4096, 6);
    for format in FORMATS {
        let what = format!("{format:?} from memory");
        if !what.contains(&bench.only) {
            continue;
        }
        let ws: Vec<Matrix> = (0..count).map(|_| weights(format, n, k)).collect();
        let (x, mut y) = (values(k), vec![0.0; n]);
        let rates = |seconds: f64| {
            let bytes = ws[0].bytes() * count;
            let weights = n * k * count;
            format!("{:>6.2} GB/s {:>6.2} G/s", bytes as f64 / seconds / 1e9, weights as f64 / seconds / 1e9)
        };
        bench.time_with(&what, rates, || {
            ws.iter().for_each(|w| linear(&bench.pool, w, &x, 1, black_box(&mut y)));
        });
    }
}

fn serving_attention(bench: &Bench) {
    let (heads, length) = (Heads::new(16, 4, 64), 512);
    let pages: Vec<Vec<f32>> = (0..length / PAGE).map(|_| values(page_len(4, 64))).collect();
    let pages: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
    let rows = [AttentionRow { pages: &pages, from: 0, len: length }];
    let (q, mut out) = (values(16 * 64), vec![0.0; 16 * 64]);
    bench.time("attention 512 positions", || attention(&bench.pool, &q, &rows, heads, black_box(&mut out)));
}

fn training(bench: &Bench) {
    let pool = &bench.pool;
    let shape = CausalShape { sequences: 1, length: 256, heads: 8, kv_heads: 4, head_dim: 64 };
    let (q, k, v) = (values(256 * 512), values(256 * 256), values(256 * 256));
    let (mut out, mut statistics) = (vec![0.0; q.len()], vec![0.0; shape.statistics_len()]);
    bench.time("causal forward", || {
        causal_attention(pool, &shape, [&q, &k, &v], black_box(&mut out), &mut statistics);
    });
    let dout = values(q.len());
    let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
    bench.time("causal backward", || {
        let forward = CausalForward { q: &q, k: &k, v: &v, out: &out, statistics: &statistics };
        let dq = black_box(&mut dq);
        causal_attention_backward(pool, &shape, &forward, &dout, [dq, &mut dk, &mut dv]);
    });
    let (x, dy, mut dw) = (values(256 * 512), values(256 * 512), vec![0.0; 512 * 512]);
    bench.time("weight gradient", || {
        weight_gradient(pool, &x, 256, &[&dy], &mut [black_box(&mut dw)], Begin::Here);
    });
}

fn main() {
    let mut args = std::env::args().skip(1);
    let repeats = args.next().and_then(|repeats| repeats.parse().ok()).unwrap_or(200);
    let only = args.next().unwrap_or_default();
    for isa in Isa::all().into_iter().filter(|isa| *isa != Isa::Scalar) {
        let bench = |repeats| Bench { pool: Pool::with_isa(1, isa), repeats, only: only.clone() };
        products(&bench(repeats));
        products_from_memory(&bench(repeats.div_ceil(20)));
        serving_attention(&bench(repeats));
        training(&bench(repeats.div_ceil(4)));
    }
}
