//! Every operation, with every instruction set and number of threads, has the bits of its reference: plain loops written from ARITHMETIC.md.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use dunlin_kernels::{
    AttentionRow, Begin, CausalForward, CausalShape, Format, GradientSums, Heads, IGNORED, Isa, Matrix, PAGE,
    Pool, RopeLayout, RopeScaling, RopeTable, Stretch, activation, attention, bias_gradient, causal,
    causal_attention, causal_attention_backward, cross_entropy, embedding, embedding_gradient, geglu,
    gradient_sum, linear, linear_transposed, loss, norm, page_len, rms_norm, rms_norm_backward, rope,
    rope_rows, softmax, swiglu, swiglu_backward, weight_gradient, write_kv,
};
use support::{Random, bits, f16_scales, file_bytes};

fn pools() -> impl Iterator<Item = Pool> {
    Isa::all().into_iter().flat_map(|isa| [1, 2, 3].map(|threads| Pool::with_isa(threads, isa)))
}

fn same(pool: &Pool, what: &str, got: &[f32], want: &[f32]) {
    assert_eq!(got.len(), want.len(), "{what}");
    let differs = got.iter().zip(want).position(|(got, want)| got.to_bits() != want.to_bits());
    if let Some(i) = differs {
        panic!(
            "{what}, {:?}, {} threads: value {i} is {:e}, and {:e} by the reference",
            pool.isa(),
            pool.threads(),
            got[i],
            want[i]
        );
    }
}

/// Values with zeroes of both signs, tiny and large ones among them.
fn odd(random: &mut Random, count: usize) -> Vec<f32> {
    let mut x = random.floats(count);
    for (i, v) in x.iter_mut().enumerate() {
        match i % 37 {
            3 => *v = 0.0,
            5 => *v = -0.0,
            7 => *v *= 1e-30,
            11 => *v *= 1e3,
            13 => *v = 1e-42,
            _ => {}
        }
    }
    x
}

#[test]
fn products_of_every_format() {
    let mut random = Random(31);
    for (format, n, k) in [
        (Format::F32, 40, 300),
        (Format::F32, 17, 1),
        (Format::F16, 33, 576),
        (Format::BF16, 24, 320),
        (Format::Q8_0, 40, 288),
        (Format::Q8_0, 16, 1536),
        (Format::Q4_0, 40, 320),
        (Format::Q4_1, 24, 544),
        (Format::Q4_K, 24, 512),
        (Format::Q4_K, 17, 768),
        (Format::Q6_K, 17, 512),
        (Format::Q5_0, 40, 320),
        (Format::Q5_1, 24, 544),
        (Format::Q2_K, 24, 512),
        (Format::Q2_K, 17, 768),
        (Format::Q3_K, 24, 512),
        (Format::Q3_K, 17, 768),
        (Format::Q5_K, 24, 512),
        (Format::Q5_K, 17, 768),
        (Format::IQ4_NL, 40, 320),
        (Format::IQ4_XS, 24, 512),
        (Format::IQ4_XS, 17, 768),
    ] {
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        let mut x = odd(&mut random, 130 * k);
        // Whole blocks of nothing.
        x[..32.min(k)].fill(0.0);
        let want = linear::reference::linear(format, n, k, &bytes, &x, 130);
        for pool in pools() {
            for m in [1, 2, 5, 23, 64, 130] {
                let mut got = vec![f32::NAN; m * n];
                linear(&pool, &w, &x[..m * k], m, &mut got);
                same(&pool, &format!("{format:?} {n}x{k}, {m} rows"), &got, &want[..m * n]);
            }
        }
    }
}

const QUANTISED: [Format; 12] = [
    Format::Q8_0,
    Format::Q4_0,
    Format::Q4_1,
    Format::Q5_0,
    Format::Q5_1,
    Format::Q2_K,
    Format::Q3_K,
    Format::Q4_K,
    Format::Q5_K,
    Format::Q6_K,
    Format::IQ4_NL,
    Format::IQ4_XS,
];

/// The largest sums that weights and inputs can make are exact with all instructions.
#[test]
fn products_hold_at_their_limits() {
    let (n, k) = (16, 512);
    for format in QUANTISED {
        let (values, size) = format.block();
        for byte in [0x00, 0x0f, 0x7f, 0x80, 0xf0, 0xff] {
            // Scales are small and finite whatever the byte: a block is equal bytes but for them.
            let mut bytes = file_bytes(&mut Random(1), format, n, k);
            let kept = file_bytes(&mut Random(2), format, n, k);
            for (block, kept) in bytes.chunks_exact_mut(size).zip(kept.chunks_exact(size)) {
                block.fill(byte);
                for at in f16_scales(format) {
                    block[*at..at + 2].copy_from_slice(&kept[*at..at + 2]);
                }
            }
            for x in [127.0, -127.0] {
                let x = vec![x; 8 * k];
                let want = linear::reference::linear(format, n, k, &bytes, &x, 8);
                let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
                for pool in pools() {
                    for m in [1, 3, 8] {
                        let mut got = vec![f32::NAN; m * n];
                        linear(&pool, &w, &x[..m * k], m, &mut got);
                        same(&pool, &format!("{format:?} of {values} times {byte:#x}"), &got, &want[..m * n]);
                    }
                }
            }
        }
    }
}

/// Whole numbers are their own activations, so that products are those of the values of a row, but for the rounding of sums.
#[test]
fn products_with_whole_numbers_are_those_of_the_values() {
    let (n, k) = (21, 768);
    let mut random = Random(3);
    let mut x: Vec<f32> = (0..k).map(|_| (random.next() % 255) as f32 - 127.0).collect();
    x.iter_mut().step_by(32).for_each(|largest| *largest = 127.0);
    for format in QUANTISED {
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        let mut y = vec![f32::NAN; n];
        linear(&Pool::new(1), &w, &x, 1, &mut y);
        for (i, y) in y.iter().enumerate() {
            let mut row = vec![0.0; k];
            w.row(i, &mut row);
            let products = || row.iter().zip(&x).map(|(w, x)| f64::from(*w) * f64::from(*x));
            let (exact, size) = (products().sum::<f64>(), products().map(f64::abs).sum::<f64>());
            let error = (f64::from(*y) - exact).abs() / size;
            assert!(error < 1e-6, "{format:?}, output {i}: {y} is {exact}, off by {error:e} of its terms");
        }
    }
}

#[test]
fn what_is_not_finite_in_a_block_is_nowhere_finite() {
    let mut random = Random(32);
    for format in QUANTISED {
        let (n, k) = (16, 512);
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        for value in [f32::NAN, f32::INFINITY] {
            let mut x = random.floats(k);
            x[40] = value;
            let want = linear::reference::linear(format, n, k, &bytes, &x, 1);
            for pool in pools() {
                let mut got = vec![0.0; n];
                linear(&pool, &w, &x, 1, &mut got);
                assert!(got.iter().chain(&want).all(|y| y.is_nan()), "{format:?}: {got:?}, {want:?}");
            }
        }
    }
}

#[test]
fn gradients_of_maps() {
    let mut random = Random(33);
    for (m, n, k) in [(1, 1, 1), (300, 21, 40), (513, 300, 33)] {
        let (x, dy, w) = (odd(&mut random, m * k), odd(&mut random, m * n), random.floats(n * k));
        let weights = weight_gradient::reference::weight_gradient(&x, &dy, m);
        let biases = weight_gradient::reference::bias_gradient(&dy, n);
        let inputs = linear::reference::linear_transposed(&w, n, &dy);
        let w = Matrix::from_f32(n, k, &w);
        for pool in pools() {
            let (mut dw, mut db, mut dx) = (vec![f32::NAN; n * k], vec![f32::NAN; n], vec![f32::NAN; m * k]);
            weight_gradient(&pool, &x, m, &[&dy], &mut [&mut dw], Begin::Here);
            bias_gradient(&pool, &dy, &mut db);
            linear_transposed(&pool, &w, &dy, m, &mut dx, false);
            same(&pool, "weights", &dw, &weights);
            same(&pool, "biases", &db, &biases);
            same(&pool, "inputs", &dx, &inputs);
        }
    }
}

#[test]
fn norms() {
    let mut random = Random(34);
    for (m, n) in [(1, 1), (3, 37), (300, 100), (5, 576)] {
        let (x, dy, before) = (odd(&mut random, m * n), odd(&mut random, m * n), random.floats(m * n));
        let w = random.floats(n);
        let forward = norm::reference::rms_norm(&x, &w, 1e-5);
        let (dx_want, dw_want) = norm::reference::rms_norm_backward(&x, &w, 1e-5, &dy, &before);
        for pool in pools() {
            let (mut y, mut dx, mut dw) = (vec![f32::NAN; m * n], before.clone(), vec![f32::NAN; n]);
            rms_norm(&pool, &x, &w, 1e-5, m, &mut y);
            rms_norm_backward(&pool, &x, &w, 1e-5, &dy, &mut dx, Some(&mut dw));
            same(&pool, "rms norm", &y, &forward);
            same(&pool, "gradient of its input", &dx, &dx_want);
            same(&pool, "gradient of its weights", &dw, &dw_want);
        }
    }
}

#[test]
fn activations() {
    let mut random = Random(35);
    let mut gate = odd(&mut random, 40_003);
    gate.extend([-100.0, 100.0, -87.0, 88.5]);
    let (up, dy) = (odd(&mut random, gate.len()), odd(&mut random, gate.len()));
    let forward = activation::reference::swiglu(&gate, &up);
    let gelu = activation::reference::geglu(&gate, &up);
    let backward = activation::reference::swiglu_backward(&gate, &up, &dy);
    for pool in pools() {
        let mut out = vec![f32::NAN; gate.len()];
        swiglu(&pool, &gate, &up, &mut out);
        same(&pool, "swiglu", &out, &forward);
        geglu(&pool, &gate, &up, &mut out);
        same(&pool, "geglu", &out, &gelu);
        let (mut dg, mut du, mut again) = (gate.clone(), up.clone(), dy.clone());
        swiglu_backward(&pool, &mut dg, &mut du, &mut again);
        for (got, want) in [dg, du, again].iter().zip(&backward) {
            same(&pool, "swiglu backwards", got, want);
        }
    }
    let logits = random.floats(1003);
    assert_eq!(
        bits(&softmax::weights(&logits, 2.5, 0.7)),
        bits(&softmax::reference::weights(&logits, 2.5, 0.7))
    );
}

#[test]
fn rotations() {
    let mut random = Random(36);
    let llama3 = RopeScaling::Llama3 {
        factor: 8.0,
        low_freq_factor: 1.0,
        high_freq_factor: 4.0,
        original_context: 64.0,
    };
    let divided = RopeScaling::Divided { by: (1..=12).map(f64::from).collect(), magnitude: 1.1 };
    let yarn = |truncate| RopeScaling::Yarn {
        factor: 8.0,
        beta_fast: 32.0,
        beta_slow: 1.0,
        original_context: 640.0,
        truncate,
        magnitude: 1.2,
    };
    let plain = [RopeScaling::None, RopeScaling::Linear(4.0), llama3, divided];
    let scaled = [yarn(true), yarn(false)];
    for scaling in plain.into_iter().chain(scaled) {
        let (head_dim, heads, m) = (24, 3, 200);
        let table = RopeTable::new(head_dim, 10_000.0, scaling.clone(), 5000);
        let positions: Vec<u32> = (0..m).map(|i| (i * 7919 % 5000) as u32).collect();
        let x = odd(&mut random, m * heads * head_dim);
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            for back in [false, true] {
                let rows = x.chunks(heads * head_dim).zip(&positions);
                let model = Stretch { head_dim, base: 10_000.0, scaling: &scaling };
                let want: Vec<f32> = rows
                    .flat_map(|(x, position)| rope::reference::rope(&model, layout, x, *position, back))
                    .collect();
                for pool in pools() {
                    let mut got = x.clone();
                    rope_rows(&pool, &table, layout, &mut got, &positions, back);
                    same(&pool, "rope", &got, &want);
                }
            }
        }
    }
}

#[test]
fn attention_over_pages() {
    for (heads, kv_heads, hd, len) in
        [(9, 3, 64, 77), (4, 4, 8, 33), (8, 1, 128, 16), (5, 1, 24, 600), (2, 2, 16, 1030)]
    {
        let mut random = Random(hd as u64);
        let width = kv_heads * hd;
        let (k, v) = (odd(&mut random, len * width), odd(&mut random, len * width));
        // Slots that were not written are NaN.
        let mut pages = vec![vec![f32::NAN; page_len(kv_heads, hd)]; len.div_ceil(PAGE)];
        for t in 0..len {
            write_kv(
                &mut pages[t / PAGE],
                t % PAGE,
                &k[t * width..][..width],
                &v[t * width..][..width],
                kv_heads,
                hd,
            );
        }
        let pages: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
        let lengths = [1, 15, 16, len / 2, len];
        // All before, a part of a page, a whole one, and itself alone.
        let windows = [usize::MAX, 21, 16, 1];
        let row = |len: usize, window| AttentionRow { pages: &pages, from: len.saturating_sub(window), len };
        let rows: Vec<AttentionRow<'_>> =
            lengths.iter().flat_map(|&len| windows.map(|window| row(len, window))).collect();
        let shape = Heads {
            scale: if hd == 8 { 0.3 } else { 1.0 / (hd as f32).sqrt() },
            ..Heads::new(heads, kv_heads, hd)
        };
        let q = odd(&mut random, rows.len() * heads * hd);
        let want = attention::reference::attention(&q, &rows, shape);
        for pool in pools() {
            let mut got = vec![f32::NAN; q.len()];
            attention(&pool, &q, &rows, shape, &mut got);
            same(&pool, "attention", &got, &want);
            // A row alone: threads divide its segments.
            let alone = rows.chunks(1).zip(q.chunks(heads * hd)).zip(got.chunks_mut(heads * hd));
            alone.for_each(|((row, q), got)| attention(&pool, q, row, shape, got));
            same(&pool, "attention of rows alone", &got, &want);
        }
    }
}

#[test]
fn attention_of_whole_sequences() {
    for (sequences, length, heads, kv_heads, head_dim) in
        [(2, 75, 6, 2, 24), (1, 48, 2, 2, 64), (3, 7, 3, 1, 8), (1, 33, 1, 1, 128), (1, 530, 2, 1, 8)]
    {
        let shape = CausalShape { sequences, length, heads, kv_heads, head_dim };
        let mut random = Random(37);
        let rows = sequences * length;
        let (q, dout) =
            (odd(&mut random, rows * heads * head_dim), odd(&mut random, rows * heads * head_dim));
        let (k, v) =
            (odd(&mut random, rows * kv_heads * head_dim), odd(&mut random, rows * kv_heads * head_dim));
        let (out_want, statistics_want) = causal::reference::causal_attention(&shape, &q, &k, &v);
        let forward = CausalForward { q: &q, k: &k, v: &v, out: &out_want, statistics: &statistics_want };
        let backward = causal::reference::causal_attention_backward(&shape, &forward, &dout);
        for pool in pools() {
            let (mut out, mut statistics) = (vec![f32::NAN; q.len()], vec![f32::NAN; shape.statistics_len()]);
            causal_attention(&pool, &shape, [&q, &k, &v], &mut out, &mut statistics);
            same(&pool, "output", &out, &out_want);
            same(&pool, "statistics", &statistics, &statistics_want);
            let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
            causal_attention_backward(&pool, &shape, &forward, &dout, [&mut dq, &mut dk, &mut dv]);
            for (what, got, want) in
                [("queries", dq, &backward[0]), ("keys", dk, &backward[1]), ("values", dv, &backward[2])]
            {
                same(&pool, what, &got, want);
            }
        }
    }
}

#[test]
fn losses_and_embeddings() {
    let mut random = Random(38);
    let (m, vocab) = (70, 101);
    let logits: Vec<f32> = random.floats(m * vocab).iter().map(|v| v * 10.0).collect();
    let targets: Vec<u32> =
        (0..m as u32).map(|i| if i % 7 == 0 { IGNORED } else { i % vocab as u32 }).collect();
    let (gradients, losses) = loss::reference::cross_entropy(&logits, &targets, 0.01);
    let tokens: Vec<u32> = (0..m).map(|_| (random.next() % 20) as u32).collect();
    let dy = odd(&mut random, m * 33);
    let embedded = embedding::reference::embedding_gradient(&tokens, &dy, 33);
    for pool in pools() {
        let (mut got, mut got_losses) = (logits.clone(), vec![f64::NAN; m]);
        cross_entropy(&pool, &mut got, &targets, 0.01, &mut got_losses);
        same(&pool, "gradients of logits", &got, &gradients);
        assert_eq!(
            got_losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>(),
            losses.iter().map(|l| l.to_bits()).collect::<Vec<_>>()
        );
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        embedding_gradient(&pool, &tokens, &dy, 33, &mut ids, &mut rows);
        assert_eq!(ids, embedded.keys().copied().collect::<Vec<u32>>());
        same(&pool, "embedding", &rows, &embedded.values().flatten().copied().collect::<Vec<f32>>());
    }
}

#[test]
fn sums_of_gradients() {
    let mut random = Random(39);
    let mut large = odd(&mut random, 70_001);
    large.iter_mut().step_by(1000).for_each(|v| *v *= 1e2);
    let gradients = [odd(&mut random, 70_001), large, odd(&mut random, 70_001)];
    let want = gradient_sum::reference::sum(&gradients.iter().map(Vec::as_slice).collect::<Vec<_>>());
    for pool in pools() {
        let mut sums = GradientSums::new(70_001);
        for gradient in &gradients {
            sums.add(&pool, 0, gradient, gradient_sum::LIMIT_MAX).unwrap();
        }
        assert_eq!(sums.values(), want);
    }
}
