//! Every backward pass against central differences of the forward pass in f64, written out plainly here.
#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    reason = "a test may panic, and indexes several arrays"
)]

mod support;

use dunlin_kernels::causal::CausalForward;
use dunlin_kernels::{
    Begin, CausalShape, IGNORED, Matrix, Pool, RopeLayout, RopeScaling, RopeTable, bias_gradient,
    causal_attention, causal_attention_backward, cross_entropy, embedding_gradient, linear, linear_add,
    rms_norm, rms_norm_backward, rope_rows, swiglu, swiglu_backward, weight_gradient,
};
use support::Random;

const STEP: f64 = 1e-5;

/// Checks `got` against the central differences of `f` at `x`. Differences in f64 are right to 1e-9 or so; `got` is right to f32.
fn check(what: &str, x: &[f32], got: &[f32], f: &dyn Fn(&[f64]) -> f64) {
    let mut x: Vec<f64> = x.iter().map(|v| f64::from(*v)).collect();
    let want: Vec<f64> = (0..x.len())
        .map(|i| {
            let value = x[i];
            x[i] = value + STEP;
            let above = f(&x);
            x[i] = value - STEP;
            let below = f(&x);
            x[i] = value;
            (above - below) / (2.0 * STEP)
        })
        .collect();
    let size = want.iter().fold(0f64, |max, v| max.max(v.abs()));
    assert!(size > 1e-3, "{what}: no gradient to speak of");
    for (i, (got, want)) in got.iter().zip(&want).enumerate() {
        let error = (f64::from(*got) - want).abs();
        assert!(error < 3e-6 * size + 1e-8, "{what} {i}: {got} not {want}");
    }
}

fn wide(x: &[f32]) -> Vec<f64> {
    x.iter().map(|v| f64::from(*v)).collect()
}

fn weighed(y: &[f64], c: &[f32]) -> f64 {
    y.iter().zip(c).map(|(y, c)| y * f64::from(*c)).sum()
}

#[test]
fn linear_map() {
    let mut random = Random(1);
    let (m, n, k) = (9, 21, 13);
    let (x, w, dy) = (random.floats(m * k), random.floats(n * k), random.floats(m * n));
    let pool = Pool::new(2);
    let map = |x: &[f64], w: &[f64]| -> Vec<f64> {
        (0..m * n).map(|i| (0..k).map(|j| x[i / n * k + j] * w[i % n * k + j]).sum()).collect()
    };
    let (xs, ws) = (wide(&x), wide(&w));
    let mut transposed = Matrix::zeroed_f32(k, n);
    transposed.set_transposed(&pool, &w);
    let mut dx = vec![0.0; m * k];
    linear(&pool, &transposed, &dy, m, &mut dx);
    check("dx", &x, &dx, &|x| weighed(&map(x, &ws), &dy));
    let mut twice = dx.clone();
    linear_add(&pool, &transposed, &dy, m, &mut twice);
    assert!(twice.iter().zip(&dx).all(|(twice, once)| *twice == 2.0 * once));
    let mut dw = vec![f32::NAN; n * k];
    weight_gradient(&pool, &x, m, &[&dy], &mut [&mut dw], Begin::Here);
    check("dw", &w, &dw, &|w| weighed(&map(&xs, w), &dy));
    let mut db = vec![f32::NAN; n];
    bias_gradient(&pool, &dy, &mut db);
    let mut want = vec![0f64; n];
    dy.iter().enumerate().for_each(|(i, dy)| want[i % n] += f64::from(*dy));
    assert!(db.iter().zip(&want).all(|(got, want)| (f64::from(*got) - want).abs() < 1e-5));
}

#[test]
fn normalisation() {
    let mut random = Random(2);
    let (m, n) = (5, 37);
    let (x, w, dy) = (random.floats(m * n), random.floats(n), random.floats(m * n));
    let norm = |x: &[f64], w: &[f64]| -> Vec<f64> {
        x.chunks(n)
            .flat_map(|row| {
                let scale = 1.0 / (row.iter().map(|v| v * v).sum::<f64>() / n as f64 + 1e-5).sqrt();
                row.iter().zip(w).map(move |(x, w)| x * scale * w).collect::<Vec<_>>()
            })
            .collect()
    };
    let pool = Pool::new(2);
    let before = random.floats(m * n);
    let (mut dx, mut dw) = (before.clone(), vec![f32::NAN; n]);
    rms_norm_backward(&pool, &x, &w, 1e-5, &dy, &mut dx, Some(&mut dw));
    let (xs, ws) = (wide(&x), wide(&w));
    let add = |x: &[f64]| weighed(&norm(x, &ws), &dy) + weighed(x, &before);
    check("dx, added to what was there", &x, &dx, &add);
    check("dw", &w, &dw, &|w| weighed(&norm(&xs, w), &dy));
    let mut y = vec![0.0; m * n];
    rms_norm(&pool, &x, &w, 1e-5, m, &mut y);
    assert!(y.iter().zip(norm(&xs, &ws)).all(|(y, want)| (f64::from(*y) - want).abs() < 1e-5));
}

#[test]
fn gated_activation() {
    let mut random = Random(3);
    let n = 100;
    let (gate, up, dy) = (random.floats(n), random.floats(n), random.floats(n));
    let pool = Pool::new(1);
    let value = |gate: &[f64], up: &[f64]| -> Vec<f64> {
        gate.iter().zip(up).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect()
    };
    let (mut dgate, mut dup, mut product) = (gate.clone(), up.clone(), dy.clone());
    swiglu_backward(&pool, &mut dgate, &mut dup, &mut product);
    let (gates, ups) = (wide(&gate), wide(&up));
    check("gate", &gate, &dgate, &|gate| weighed(&value(gate, &ups), &dy));
    check("up", &up, &dup, &|up| weighed(&value(&gates, up), &dy));
    let mut forward = vec![0.0; n];
    swiglu(&pool, &gate, &up, &mut forward);
    assert_eq!(forward, product, "the product comes back with the bits of the forward pass");
}

#[test]
fn rotation() {
    let mut random = Random(4);
    let (m, heads, hd) = (7, 2, 8);
    let table = RopeTable::new(hd, 10_000.0, RopeScaling::None, 64);
    let positions: Vec<u32> = (0..m as u32).map(|i| i * 9).collect();
    let pool = Pool::new(2);
    for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
        let (x, dy) = (random.floats(m * heads * hd), random.floats(m * heads * hd));
        let mut dx = dy.clone();
        rope_rows(&pool, &table, layout, &mut dx, &positions, true);
        check("rope", &x, &dx, &|x| {
            let mut sum = 0.0;
            for (i, head) in x.chunks(hd).enumerate() {
                for pair in 0..hd / 2 {
                    let (a, b) = match layout {
                        RopeLayout::Interleaved => (2 * pair, 2 * pair + 1),
                        RopeLayout::Halves => (pair, pair + hd / 2),
                    };
                    let angle =
                        f64::from(positions[i / heads]) * 10_000f64.powf(-2.0 * pair as f64 / hd as f64);
                    let dy = |j: usize| f64::from(dy[i * hd + j]);
                    sum += dy(a) * (head[a] * angle.cos() - head[b] * angle.sin());
                    sum += dy(b) * (head[a] * angle.sin() + head[b] * angle.cos());
                }
            }
            sum
        });
    }
}

/// Causal attention in f64.
fn attend(shape: &CausalShape, q: &[f64], k: &[f64], v: &[f64]) -> Vec<f64> {
    let CausalShape { sequences, length, heads, kv_heads, head_dim: hd } = *shape;
    let mut out = vec![0.0; q.len()];
    for row in 0..sequences * length {
        let first = row / length * length;
        for head in 0..heads {
            let kv = head / (heads / kv_heads);
            let q = &q[(row * heads + head) * hd..][..hd];
            let of = |x: &'_ [f64], s: usize, d: usize| x[((first + s) * kv_heads + kv) * hd + d];
            let scores: Vec<f64> = (0..=row - first)
                .map(|s| (0..hd).map(|d| q[d] * of(k, s, d)).sum::<f64>() / (hd as f64).sqrt())
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for (s, score) in scores.iter().enumerate() {
                for d in 0..hd {
                    out[(row * heads + head) * hd + d] += (score - max).exp() / sum * of(v, s, d);
                }
            }
        }
    }
    out
}

#[test]
fn attention_of_whole_sequences() {
    let mut random = Random(5);
    for (sequences, length, heads, kv_heads, head_dim) in
        [(2, 19, 2, 1, 8), (1, 33, 3, 3, 16), (3, 1, 4, 2, 8)]
    {
        let shape = CausalShape { sequences, length, heads, kv_heads, head_dim };
        let rows = sequences * length;
        let q: Vec<f32> = random.floats(rows * heads * head_dim).iter().map(|v| v * 2.0).collect();
        let (k, v) = (random.floats(rows * kv_heads * head_dim), random.floats(rows * kv_heads * head_dim));
        let dout = random.floats(q.len());
        let pool = Pool::new(2);
        let (mut out, mut statistics) = (vec![f32::NAN; q.len()], vec![f32::NAN; shape.statistics_len()]);
        causal_attention(&pool, &shape, [&q, &k, &v], &mut out, &mut statistics);
        let (qs, ks, vs) = (wide(&q), wide(&k), wide(&v));
        for (got, want) in out.iter().zip(attend(&shape, &qs, &ks, &vs)) {
            assert!((f64::from(*got) - want).abs() < 2e-6, "{got} not {want}");
        }
        let (mut dq, mut dk, mut dv) =
            (vec![f32::NAN; q.len()], vec![f32::NAN; k.len()], vec![f32::NAN; k.len()]);
        let forward = CausalForward { q: &q, k: &k, v: &v, out: &out, statistics: &statistics };
        causal_attention_backward(&pool, &shape, &forward, &dout, [&mut dq, &mut dk, &mut dv]);
        if length > 1 {
            check("q", &q, &dq, &|q| weighed(&attend(&shape, q, &ks, &vs), &dout));
            check("k", &k, &dk, &|k| weighed(&attend(&shape, &qs, k, &vs), &dout));
        } else {
            assert!(dq.iter().chain(&dk).all(|v| v.abs() < 1e-6), "one position has no choice");
        }
        check("v", &v, &dv, &|v| weighed(&attend(&shape, &qs, &ks, v), &dout));
    }
}

#[test]
fn loss_of_next_tokens() {
    let mut random = Random(6);
    let (m, vocab, scale) = (6, 43, 0.25f32);
    let logits: Vec<f32> = random.floats(m * vocab).iter().map(|v| v * 3.0).collect();
    let targets = [3, 42, IGNORED, 0, 17, 17];
    let loss = |logits: &[f64]| -> f64 {
        logits
            .chunks(vocab)
            .zip(targets)
            .filter(|(_, target)| *target != IGNORED)
            .map(|(row, target)| row.iter().map(|v| v.exp()).sum::<f64>().ln() - row[target as usize])
            .sum()
    };
    let (mut gradient, mut losses) = (logits.clone(), [f64::NAN; 6]);
    cross_entropy(&Pool::new(2), &mut gradient, &targets, scale, &mut losses);
    check("logits", &logits, &gradient, &|logits| loss(logits) * f64::from(scale));
    let (got, want) = (losses.iter().sum::<f64>(), loss(&wide(&logits)));
    assert!((got - want).abs() < 1e-6 * want, "{got} not {want}");
    assert!(losses[2] == 0.0 && gradient[2 * vocab..3 * vocab].iter().all(|g| *g == 0.0));
}

#[test]
fn token_embedding() {
    let mut random = Random(7);
    let (vocab, width, tokens) = (9, 5, [4u32, 0, 4, 8, 0, 4]);
    let (table, dy) = (random.floats(vocab * width), random.floats(tokens.len() * width));
    let (mut ids, mut rows) = (vec![99], vec![f32::NAN; 3]);
    embedding_gradient(&Pool::new(2), &tokens, &dy, width, &mut ids, &mut rows);
    assert_eq!(ids, [0, 4, 8]);
    let mut dense = vec![0.0; vocab * width];
    for (id, row) in ids.iter().zip(rows.chunks(width)) {
        dense[*id as usize * width..][..width].copy_from_slice(row);
    }
    check("embedding", &table, &dense, &|table| {
        let y: Vec<f64> =
            tokens.iter().flat_map(|token| table[*token as usize * width..][..width].to_vec()).collect();
        weighed(&y, &dy)
    });
}
