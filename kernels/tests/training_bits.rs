//! The rule of this crate in the backward direction: bits depend on the microbatch and the weights alone, not on threads or instructions; and
//! the forward pass of whole sequences has the bits of serving.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use dunlin_kernels::causal::CausalForward;
use dunlin_kernels::{
    AttentionRow, Begin, CausalShape, Format, Heads, IGNORED, Isa, Matrix, PAGE, Pool, RopeLayout,
    RopeScaling, RopeTable, attention, bias_gradient, causal_attention, causal_attention_backward,
    cross_entropy, embedding_gradient, geglu, linear, linear_add, linear_transposed, page_len, rms_norm,
    rms_norm_backward, rope_rows, swiglu, swiglu_backward, weight_gradient, write_kv,
};
use support::{Random, bits, file_bytes, hash};

fn all_pools() -> impl Iterator<Item = Pool> {
    Isa::all().into_iter().flat_map(|isa| [1, 2, 3].map(|threads| Pool::with_isa(threads, isa)))
}

/// Runs it with one thread of plain loops, and with all others; the bits are the same, and those of this version.
fn same_everywhere(what: &str, version: u64, run: &dyn Fn(&Pool) -> Vec<f32>) {
    let want = run(&Pool::with_isa(1, Isa::Scalar));
    assert!(want.iter().all(|v| v.is_finite()), "{what}");
    for pool in all_pools() {
        let got = run(&pool);
        assert_eq!(bits(&got), bits(&want), "{what}: {:?}, {} threads", pool.isa(), pool.threads());
    }
    assert_eq!(hash(&want), version, "{what}: 0x{:016x}", hash(&want));
}

#[test]
fn weight_gradients() {
    for (m, n, k, version) in [
        (1, 1, 1, 0x3a59_c55f_a2c1_fec7),
        (300, 21, 40, 0x0e1e_b534_8ca4_e135),
        (513, 7, 33, 0xb179_8b48_1c0d_4d03),
        (256, 64, 16, 0xb5cb_763c_c306_4c52),
    ] {
        let mut random = Random(11);
        let (x, a, b) = (random.floats(m * k), random.floats(m * n), random.floats(m * 2 * n));
        same_everywhere("weight gradient", version, &|pool| {
            let (mut da, mut db) = (vec![f32::NAN; n * k], vec![f32::NAN; 2 * n * k]);
            weight_gradient(pool, &x, m, &[&a, &b], &mut [&mut da, &mut db], Begin::Here);
            let mut parts = vec![f32::NAN; n * k];
            for start in (0..m).step_by(256) {
                let end = m.min(start + 256);
                let begin = if start == 0 { Begin::Here } else { Begin::Before };
                let (x, dy) = (&x[start * k..end * k], &a[start * n..end * n]);
                weight_gradient(pool, x, end - start, &[dy], &mut [&mut parts], begin);
            }
            assert_eq!(bits(&parts), bits(&da), "in parts of 256 tokens");
            let mut bias = vec![f32::NAN; n];
            bias_gradient(pool, &a, &mut bias);
            [da, db, bias].concat()
        });
    }
}

/// The definition of ARITHMETIC.md in plain loops.
#[test]
fn weight_gradients_are_those_of_the_definition() {
    let (m, n, k) = (600, 9, 20);
    let mut random = Random(12);
    let (x, dy) = (random.floats(m * k), random.floats(m * n));
    let mut dw = vec![f32::NAN; n * k];
    weight_gradient(&Pool::new(2), &x, m, &[&dy], &mut [&mut dw], Begin::Here);
    for i in 0..n {
        for j in 0..k {
            let chunk = |tokens: std::ops::Range<usize>| {
                tokens.fold(0f32, |acc, t| dy[t * n + i].mul_add(x[t * k + j], acc))
            };
            let want = chunk(0..256) + chunk(256..512) + chunk(512..600);
            assert_eq!(dw[i * k + j].to_bits(), want.to_bits());
        }
    }
}

#[test]
fn linear_maps_set_in_place() {
    let mut random = Random(13);
    for (n, k) in [(40, 576), (33, 17), (16, 8)] {
        let (w, x, before) = (random.floats(n * k), random.floats(5 * k), random.floats(5 * n));
        let want = Matrix::from_f32(n, k, &w);
        let transposed: Vec<f32> = (0..n * k).map(|i| w[i % n * k + i / n]).collect();
        for pool in all_pools() {
            let y = |matrix: &Matrix| {
                let mut y = vec![0.0; 5 * n];
                linear(&pool, matrix, &x, 5, &mut y);
                y
            };
            let (mut set, mut back) = (Matrix::zeroed_f32(n, k), Matrix::zeroed_f32(n, k));
            for _ in 0..2 {
                set.set(&pool, &w);
                back.set_transposed(&pool, &transposed);
            }
            assert_eq!(bits(&y(&set)), bits(&y(&want)), "{n}x{k}");
            assert_eq!(bits(&y(&back)), bits(&y(&want)), "{n}x{k}");
            let mut added = before.clone();
            linear_add(&pool, &set, &x, 5, &mut added);
            let sums: Vec<f32> = before.iter().zip(y(&want)).map(|(a, b)| a + b).collect();
            assert_eq!(bits(&added), bits(&sums));
        }
    }
}

/// As many rows as training has take another path than the few of serving: in groups that stay in a cache, some panels at a time.
#[test]
fn many_rows_have_the_bits_of_each_alone() {
    let mut random = Random(18);
    let scalar = Pool::with_isa(1, Isa::Scalar);
    for (m, n, k) in
        [(300, 72, 600), (256, 37, 256), (48, 56, 257), (23, 48, 300), (24, 48, 300), (120, 16, 1)]
    {
        let (w, x, before) = (random.floats(n * k), random.floats(m * k), random.floats(m * n));
        let w = Matrix::from_f32(n, k, &w);
        let mut want = vec![f32::NAN; m * n];
        for (x, y) in x.chunks_exact(k).zip(want.chunks_exact_mut(n)) {
            linear(&scalar, &w, x, 1, y);
        }
        let sums: Vec<f32> = before.iter().zip(&want).map(|(a, b)| a + b).collect();
        for pool in all_pools() {
            let (mut y, mut added) = (vec![f32::NAN; m * n], before.clone());
            linear(&pool, &w, &x, m, &mut y);
            linear_add(&pool, &w, &x, m, &mut added);
            assert_eq!(bits(&y), bits(&want), "{m} rows, {n}x{k}, {:?}", pool.isa());
            assert_eq!(bits(&added), bits(&sums), "{m} rows, {n}x{k}, {:?}", pool.isa());
        }
    }
}

#[test]
fn a_map_held_in_one_direction_has_the_bits_of_its_transpose() {
    let mut random = Random(17);
    for (format, n, k) in [
        (Format::F32, 600, 40),
        (Format::F32, 33, 17),
        (Format::F16, 256, 64),
        (Format::BF16, 300, 33),
        (Format::Q8_0, 300, 64),
        (Format::Q4_0, 40, 32),
        (Format::Q5_1, 40, 64),
        (Format::Q3_K, 24, 256),
    ] {
        let w = Matrix::from_ggml(format, n, k, &file_bytes(&mut random, format, n, k)).unwrap();
        let mut wide = vec![0.0; n * k];
        wide.chunks_exact_mut(k).enumerate().for_each(|(i, row)| w.row(i, row));
        let (dy, before) = (random.floats(5 * n), random.floats(5 * k));
        let mut turned = Matrix::zeroed_f32(k, n);
        turned.set_transposed(&Pool::new(1), &wide);
        for pool in all_pools() {
            for add in [false, true] {
                let (mut want, mut got) = (before.clone(), before.clone());
                if add {
                    linear_add(&pool, &turned, &dy, 5, &mut want);
                } else {
                    linear(&pool, &turned, &dy, 5, &mut want);
                }
                linear_transposed(&pool, &w, &dy, 5, &mut got, add);
                assert_eq!(bits(&got), bits(&want), "{format:?} {n}x{k}");
            }
        }
    }
}

#[test]
fn element_wise_operations() {
    let mut random = Random(14);
    let (m, n) = (300, 100);
    let (x, dy, w) = (random.floats(m * n), random.floats(m * n), random.floats(n));
    same_everywhere("rms norm", 0xf82a_1446_4384_5720, &|pool| {
        let (mut y, mut dx, mut dw) = (vec![0.0; m * n], dy.clone(), vec![0.0; n]);
        rms_norm(pool, &x, &w, 1e-6, m, &mut y);
        rms_norm_backward(pool, &x, &w, 1e-6, &dy, &mut dx, Some(&mut dw));
        let mut without = dy.clone();
        rms_norm_backward(pool, &x, &w, 1e-6, &dy, &mut without, None);
        assert_eq!(bits(&without), bits(&dx));
        [y, dx, dw].concat()
    });
    same_everywhere("swiglu", 0x4b7f_5cae_730e_bffb, &|pool| {
        let (mut gate, mut up, mut product) = (x.clone(), dy.clone(), dy.clone());
        gate.iter_mut().for_each(|v| *v *= 20.0);
        let mut y = vec![0.0; m * n];
        swiglu(pool, &gate, &up, &mut y);
        swiglu_backward(pool, &mut gate, &mut up, &mut product);
        [y, gate, up, product].concat()
    });
    same_everywhere("geglu", 0x9a58_5956_c181_d991, &|pool| {
        let gate: Vec<f32> = x.iter().map(|v| v * 20.0).collect();
        let mut y = vec![0.0; m * n];
        geglu(pool, &gate, &dy, &mut y);
        y
    });
    let table = RopeTable::new(20, 10_000.0, RopeScaling::None, m);
    let positions: Vec<u32> = (0..m as u32).rev().collect();
    same_everywhere("rope", 0x420d_35b8_0753_ab2f, &|pool| {
        [(RopeLayout::Halves, false), (RopeLayout::Interleaved, true)]
            .iter()
            .flat_map(|(layout, back)| {
                let mut x = x.clone();
                rope_rows(pool, &table, *layout, &mut x, &positions, *back);
                x
            })
            .collect()
    });
    let targets: Vec<u32> = (0..m as u32).map(|i| if i % 7 == 0 { IGNORED } else { i % n as u32 }).collect();
    same_everywhere("cross-entropy", 0x1b13_db98_5a0f_f321, &|pool| {
        let (mut logits, mut losses) = (x.clone(), vec![f64::NAN; m]);
        cross_entropy(pool, &mut logits, &targets, 0.01, &mut losses);
        logits.extend(losses.iter().map(|loss| *loss as f32));
        logits
    });
    let tokens: Vec<u32> = (0..m).map(|_| (random.next() % 40) as u32).collect();
    same_everywhere("embedding", 0xea86_a8e2_e4a8_4d1f, &|pool| {
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        embedding_gradient(pool, &tokens, &dy, n, &mut ids, &mut rows);
        rows
    });
}

const SHAPES: [(CausalShape, u64); 5] = [
    (CausalShape { sequences: 2, length: 75, heads: 6, kv_heads: 2, head_dim: 24 }, 0xe283_6917_358c_a4e7),
    (CausalShape { sequences: 1, length: 48, heads: 2, kv_heads: 2, head_dim: 64 }, 0x3134_4401_706a_62cc),
    (CausalShape { sequences: 3, length: 7, heads: 3, kv_heads: 1, head_dim: 8 }, 0xaee0_b25d_5293_4eed),
    (CausalShape { sequences: 1, length: 33, heads: 1, kv_heads: 1, head_dim: 128 }, 0x7de3_b0cb_660b_a1b5),
    // Three segments, the last one of some pages and a part of one.
    (CausalShape { sequences: 1, length: 600, heads: 2, kv_heads: 1, head_dim: 16 }, 0xbade_a431_02f7_bbea),
];

fn inputs(shape: &CausalShape) -> [Vec<f32>; 4] {
    let mut random = Random(15);
    let rows = shape.sequences * shape.length;
    let (q, kv) = (rows * shape.heads * shape.head_dim, rows * shape.kv_heads * shape.head_dim);
    // Sharp, so that the maximum moves; and with the same key twice.
    let sharp = |x: Vec<f32>| x.iter().map(|v| v * 3.0).collect::<Vec<f32>>();
    let (q, mut k) = (sharp(random.floats(q)), random.floats(kv));
    let width = shape.kv_heads * shape.head_dim;
    k.copy_within(0..width, 3 * width);
    [q.clone(), k, random.floats(kv), random.floats(q.len())]
}

#[test]
fn causal_attention_in_both_directions() {
    for (shape, version) in &SHAPES {
        let [q, k, v, dout] = inputs(shape);
        same_everywhere("causal attention", *version, &|pool| {
            let (mut out, mut statistics) = (vec![0.0; q.len()], vec![0.0; shape.statistics_len()]);
            causal_attention(pool, shape, [&q, &k, &v], &mut out, &mut statistics);
            let forward = CausalForward { q: &q, k: &k, v: &v, out: &out, statistics: &statistics };
            let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
            causal_attention_backward(pool, shape, &forward, &dout, [&mut dq, &mut dk, &mut dv]);
            [out, statistics, dq, dk, dv].concat()
        });
    }
}

#[test]
fn causal_attention_has_the_bits_of_attention_over_pages() {
    for (shape, _) in &SHAPES {
        let [q, k, v, _] = inputs(shape);
        let CausalShape { sequences, length, heads, kv_heads, head_dim } = *shape;
        let kv_width = kv_heads * head_dim;
        let pages: Vec<Vec<Vec<f32>>> = (0..sequences)
            .map(|sequence| {
                let mut pages = vec![vec![f32::NAN; page_len(kv_heads, head_dim)]; length.div_ceil(PAGE)];
                for t in 0..length {
                    let at = (sequence * length + t) * kv_width;
                    let (k, v) = (&k[at..at + kv_width], &v[at..at + kv_width]);
                    write_kv(&mut pages[t / PAGE], t % PAGE, k, v, kv_heads, head_dim);
                }
                pages
            })
            .collect();
        let pages: Vec<Vec<&[f32]>> =
            pages.iter().map(|pages| pages.iter().map(Vec::as_slice).collect()).collect();
        let rows: Vec<AttentionRow<'_>> = (0..sequences * length)
            .map(|row| AttentionRow { pages: &pages[row / length], from: 0, len: row % length + 1 })
            .collect();
        let mut want = vec![0.0; q.len()];
        attention(&Pool::new(1), &q, &rows, Heads::new(heads, kv_heads, head_dim), &mut want);
        for pool in all_pools() {
            let (mut out, mut statistics) = (vec![0.0; q.len()], vec![0.0; shape.statistics_len()]);
            causal_attention(&pool, shape, [&q, &k, &v], &mut out, &mut statistics);
            assert_eq!(bits(&out), bits(&want), "{shape:?} {:?}", pool.isa());
        }
    }
}
