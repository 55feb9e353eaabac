//! The rule of this crate: bits depend on the row and the weights alone. Everything here compares bits.
#![allow(
    clippy::unwrap_used,
    clippy::needless_range_loop,
    reason = "a test may panic, and indexes several arrays"
)]

mod support;

use dunlin_kernels::{
    AttentionRow, Format, Heads, Isa, Matrix, PAGE, Pool, attention, linear, linear_many, page_len, write_kv,
};
use support::{Random, bits, file_bytes, hash};

const CASES: &[(Format, usize, usize)] = &[
    (Format::F32, 40, 576),
    (Format::F32, 200, 300),
    (Format::F32, 16, 1),
    (Format::F16, 56, 576),
    (Format::BF16, 56, 576),
    (Format::Q8_0, 56, 576),
    (Format::Q8_0, 32, 1536),
    (Format::Q4_0, 40, 320),
    (Format::Q4_1, 56, 576),
    (Format::Q4_1, 32, 1536),
    (Format::Q4_K, 48, 512),
    (Format::Q6_K, 24, 256),
    (Format::Q6_K, 48, 768),
    (Format::Q5_0, 24, 256),
    (Format::Q5_0, 40, 320),
    (Format::Q5_1, 24, 256),
    (Format::Q5_1, 40, 320),
    (Format::Q2_K, 24, 256),
    (Format::Q2_K, 48, 768),
    (Format::Q3_K, 24, 256),
    (Format::Q3_K, 48, 768),
    (Format::Q5_K, 24, 256),
    (Format::Q5_K, 48, 768),
    (Format::IQ4_NL, 24, 256),
    (Format::IQ4_NL, 40, 320),
    (Format::IQ4_XS, 24, 256),
    (Format::IQ4_XS, 48, 768),
];

/// Rows with blocks that are all zero, denormal or huge.
fn odd_rows(random: &mut Random, m: usize, k: usize) -> Vec<f32> {
    let mut x = random.floats(m * k);
    for (i, row) in x.chunks_exact_mut(k).enumerate() {
        for v in row.iter_mut().skip(32).take(32) {
            *v = match i % 3 {
                0 => 0.0,
                1 => 1e-42,
                _ => *v * 1000.0,
            };
        }
    }
    x
}

#[test]
fn linear_bits_depend_on_nothing_but_row_and_weights() {
    const ROWS: usize = 64;
    let mut random = Random(7);
    for &(format, n, k) in CASES {
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        let x = odd_rows(&mut random, ROWS, k);
        let run = |pool: &Pool, x: &[f32], m: usize| {
            let mut y = vec![f32::NAN; m * n];
            linear(pool, &w, x, m, &mut y);
            y
        };
        let scalar = Pool::with_isa(1, Isa::Scalar);
        let alone: Vec<f32> = x.chunks_exact(k).flat_map(|row| run(&scalar, row, 1)).collect();
        for isa in Isa::all() {
            for threads in [1, 2, 3] {
                let pool = Pool::with_isa(threads, isa);
                for m in 1..=ROWS {
                    if isa == Isa::Scalar && m % 21 != 1 {
                        continue;
                    }
                    let got = run(&pool, &x[..m * k], m);
                    assert_eq!(
                        bits(&got),
                        bits(&alone[..m * n]),
                        "{format:?} {n}x{k} {isa:?} {threads} threads, {m} rows"
                    );
                    let got = run(&pool, &x[(ROWS - m) * k..], m);
                    assert_eq!(
                        bits(&got),
                        bits(&alone[(ROWS - m) * n..]),
                        "{format:?} {n}x{k} {isa:?}, last {m} rows"
                    );
                }
            }
        }
    }
}

/// Hashes of outputs of this version of the arithmetic; another value needs another `ARITHMETIC_VERSION`.
const HASHES: &[(Format, usize, usize, u64)] = &[
    (Format::F32, 40, 576, 0x6533_e60a_14e4_afc3),
    (Format::F32, 200, 300, 0xa6f7_f4c7_6640_feed),
    (Format::F16, 56, 576, 0xc2b5_1c83_ea26_495d),
    (Format::BF16, 56, 576, 0x7fd7_bd87_7a26_07c6),
    (Format::Q8_0, 56, 576, 0x9097_80f1_bf0e_2542),
    (Format::Q8_0, 32, 1536, 0x5515_56ea_5382_7b41),
    (Format::Q4_0, 40, 320, 0xde0f_d8b2_53c3_1a93),
    (Format::Q4_1, 56, 576, 0xabe6_8329_69a6_58b2),
    (Format::Q4_1, 32, 1536, 0xccc7_98d7_d5da_00bc),
    (Format::Q4_K, 48, 512, 0xf595_fce6_c349_3fdd),
    (Format::Q6_K, 24, 256, 0x26c0_33b3_1888_7e33),
    (Format::Q5_0, 24, 256, 0xadcd_8c0a_5bb1_ff95),
    (Format::Q5_1, 24, 256, 0x0498_b617_10fe_e406),
    (Format::Q2_K, 24, 256, 0x40ba_b083_e96c_fde2),
    (Format::Q3_K, 24, 256, 0x0f78_9fce_3deb_e8b1),
    (Format::Q5_K, 24, 256, 0x9f9d_8522_f458_f859),
    (Format::IQ4_NL, 24, 256, 0x96d2_c645_c2d0_d29b),
    (Format::IQ4_XS, 24, 256, 0xffb1_19c5_95df_2730),
];

#[test]
fn hashes_are_those_of_this_version() {
    let mut others = Vec::new();
    for &(format, n, k, want) in HASHES {
        let mut random = Random(99);
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        let x = odd_rows(&mut random, 3, k);
        let mut y = vec![0.0; 3 * n];
        linear(&Pool::new(1), &w, &x, 3, &mut y);
        if hash(&y) != want {
            others.push(format!("{format:?} {n}x{k}: 0x{:016x}", hash(&y)));
        }
    }
    assert!(others.is_empty(), "other hashes: {others:#?}");
}

/// The largest sums that weights and inputs can make are exact with all instructions.
#[test]
fn sums_of_six_bits_hold_at_their_limits() {
    let (n, k) = (16, 512);
    for (bits, scale, weight) in [(0xff, 0x80, -128 * 31), (0, 0x80, -128 * -32), (0xff, 0x7f, 127 * 31)] {
        let mut block = vec![bits; 210];
        block[192..208].fill(scale);
        block[208..].copy_from_slice(&half::f16::ONE.to_le_bytes());
        let w = Matrix::from_ggml(Format::Q6_K, n, k, &block.repeat(n * k / 256)).unwrap();
        for x in [127.0, -127.0] {
            for isa in Isa::all() {
                for m in [1, 3, 8] {
                    let mut y = vec![0.0; m * n];
                    linear(&Pool::with_isa(1, isa), &w, &vec![x; m * k], m, &mut y);
                    let want = (weight * k as i32) as f32 * x;
                    assert!(y.iter().all(|y| *y == want), "{isa:?}, {m} rows: {y:?}, not {want}");
                }
            }
        }
    }
}

#[test]
fn several_maps_of_one_input_are_the_same_as_each_alone() {
    let mut random = Random(5);
    let (k, m) = (256, 5);
    let ws: Vec<Matrix> = [(Format::Q4_1, 48), (Format::F32, 33), (Format::Q8_0, 16)]
        .iter()
        .map(|&(format, n)| Matrix::from_ggml(format, n, k, &file_bytes(&mut random, format, n, k)).unwrap())
        .collect();
    let x = random.floats(m * k);
    let pool = Pool::new(2);
    let mut ys: Vec<Vec<f32>> = ws.iter().map(|w| vec![0.0; m * w.n()]).collect();
    let mut outs: Vec<&mut [f32]> = ys.iter_mut().map(Vec::as_mut_slice).collect();
    linear_many(&pool, &ws.iter().collect::<Vec<_>>(), &x, m, &mut outs);
    for (w, y) in ws.iter().zip(&ys) {
        let mut alone = vec![0.0; m * w.n()];
        linear(&pool, w, &x, m, &mut alone);
        assert_eq!(bits(&alone), bits(y));
    }
}

/// Pages of `len` positions; slots that were not written are NaN.
fn pages(k: &[f32], v: &[f32], len: usize, kv_heads: usize, hd: usize) -> Vec<Vec<f32>> {
    let width = kv_heads * hd;
    let mut pages = vec![vec![f32::NAN; page_len(kv_heads, hd)]; len.div_ceil(PAGE)];
    for t in 0..len {
        let (k, v) = (&k[t * width..][..width], &v[t * width..][..width]);
        write_kv(&mut pages[t / PAGE], t % PAGE, k, v, kv_heads, hd);
    }
    pages
}

#[test]
fn attention_of_a_prompt_is_that_of_each_position_alone() {
    for (heads, kv_heads, hd) in [(9, 3, 64), (4, 4, 8), (8, 1, 128), (5, 1, 24)] {
        attention_is_that_of_each_position_alone(Heads::new(heads, kv_heads, hd), usize::MAX);
    }
}

#[test]
fn attention_with_a_window_sees_nothing_before_it() {
    for (heads, window) in [(9, 16), (9, 1), (9, 23), (9, 76), (9, 77)] {
        let heads = Heads { scale: 0.25, ..Heads::new(heads, 3, 8) };
        attention_is_that_of_each_position_alone(heads, window);
    }
}

fn attention_is_that_of_each_position_alone(shape: Heads, window: usize) {
    let Heads { heads, kv_heads, head_dim: hd, .. } = shape;
    let len = 77;
    let mut random = Random(hd as u64);
    let k = random.floats(len * kv_heads * hd);
    let v = random.floats(len * kv_heads * hd);
    let q = random.floats(len * heads * hd);
    let width = heads * hd;
    let scalar = Pool::with_isa(1, Isa::Scalar);
    let from = |t: usize| (t + 1).saturating_sub(window);
    let mut alone = Vec::new();
    for t in 0..len {
        // Only what is known at that position is written: later slots and pages do not exist, nor do those before the window.
        let mut own = pages(&k, &v, t + 1, kv_heads, hd);
        own[..from(t) / PAGE].iter_mut().for_each(Vec::clear);
        if let Some(page) = own.get_mut(from(t) / PAGE) {
            let slot = vec![f32::NAN; kv_heads * hd];
            (0..from(t) % PAGE).for_each(|at| write_kv(page, at, &slot, &slot, kv_heads, hd));
        }
        let own: Vec<&[f32]> = own.iter().map(Vec::as_slice).collect();
        let mut out = vec![0.0; width];
        let row = AttentionRow { pages: &own, from: from(t), len: t + 1 };
        attention(&scalar, &q[t * width..][..width], &[row], shape, &mut out);
        alone.extend(out);
    }
    let all = pages(&k, &v, len, kv_heads, hd);
    let all: Vec<&[f32]> = all.iter().map(Vec::as_slice).collect();
    let rows: Vec<AttentionRow<'_>> =
        (0..len).map(|t| AttentionRow { pages: &all, from: from(t), len: t + 1 }).collect();
    for isa in Isa::all() {
        for threads in [1, 2] {
            let mut out = vec![0.0; len * width];
            attention(&Pool::with_isa(threads, isa), &q, &rows, shape, &mut out);
            assert_eq!(bits(&out), bits(&alone), "{shape:?}, {isa:?}, {threads} threads");
        }
    }
    close_to_the_definition(&q, &k, &v, &alone, shape, from);
}

/// Softmax attention in f64.
fn close_to_the_definition(
    q: &[f32],
    k: &[f32],
    v: &[f32],
    got: &[f32],
    shape: Heads,
    from: impl Fn(usize) -> usize,
) {
    let Heads { heads, kv_heads, head_dim: hd, scale } = shape;
    let len = k.len() / (kv_heads * hd);
    for t in 0..len {
        for h in 0..heads {
            let kv = h / (heads / kv_heads);
            let q = &q[(t * heads + h) * hd..][..hd];
            let at = |x: &[f32], s: usize, d: usize| f64::from(x[(s * kv_heads + kv) * hd + d]);
            let seen = from(t)..=t;
            let scores: Vec<f64> = seen
                .clone()
                .map(|s| (0..hd).map(|d| f64::from(q[d]) * at(k, s, d)).sum::<f64>() * f64::from(scale))
                .collect();
            let max = scores.iter().copied().fold(f64::MIN, f64::max);
            let sum: f64 = scores.iter().map(|s| (s - max).exp()).sum();
            for d in 0..hd {
                let want: f64 =
                    seen.clone().zip(&scores).map(|(s, score)| (score - max).exp() / sum * at(v, s, d)).sum();
                let got = f64::from(got[(t * heads + h) * hd + d]);
                assert!((got - want).abs() < 5e-6, "position {t} head {h}: {got} not {want}");
            }
        }
    }
}

#[test]
fn linear_is_close_to_the_definition() {
    let mut random = Random(3);
    for &(format, n, k) in CASES {
        let bytes = file_bytes(&mut random, format, n, k);
        let w = Matrix::from_ggml(format, n, k, &bytes).unwrap();
        let x = random.floats(k);
        let mut y = vec![0.0; n];
        linear(&Pool::new(1), &w, &x, 1, &mut y);
        let mut row = vec![0.0; k];
        for i in 0..n {
            w.row(i, &mut row);
            let (mut want, mut size) = (0.0, 0.0);
            for (w, x) in row.iter().zip(&x) {
                want += f64::from(*w) * f64::from(*x);
                size += (f64::from(*w) * f64::from(*x)).abs();
            }
            // Quantised formats round activations to int8 as well.
            let tolerance =
                if matches!(format, Format::F32 | Format::F16 | Format::BF16) { 1e-6 } else { 8e-3 };
            let error = (f64::from(y[i]) - want).abs();
            assert!(error <= tolerance * size + 1e-9, "{format:?} output {i}: {} not {want}", y[i]);
        }
    }
}

/// An input that is not finite makes all outputs of its row so, whatever the weights, and those of no other row.
#[test]
fn what_is_not_finite_is_never_lost() {
    let mut random = Random(9);
    for &(format, n, k) in CASES {
        let w = Matrix::from_ggml(format, n, k, &file_bytes(&mut random, format, n, k)).unwrap();
        for isa in Isa::all() {
            let pool = Pool::with_isa(1, isa);
            for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
                let mut x = random.floats(3 * k);
                x[k + k / 2] = odd;
                let mut y = vec![0.0; 3 * n];
                linear(&pool, &w, &x, 3, &mut y);
                for (i, y) in y.iter().enumerate() {
                    assert_eq!(
                        y.is_finite(),
                        i / n != 1,
                        "{format:?} {n}x{k} {isa:?}: {odd} gives {y} at {i}"
                    );
                }
            }
        }
    }
}
