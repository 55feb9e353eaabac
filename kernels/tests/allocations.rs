//! No operation allocates what a call before it had: their buffers are the pool's.
#![allow(unsafe_code, reason = "an allocator that counts")]
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;

use dunlin_kernels::{
    AttentionRow, Begin, CausalForward, CausalShape, Format, GradientSums, Heads, Matrix, PAGE, Pool,
    attention, bias_gradient, causal_attention, causal_attention_backward, cross_entropy, embedding_gradient,
    geglu, gradient_sum, linear, linear_add, linear_many, linear_transposed, page_len, rms_norm,
    rms_norm_backward, swiglu, weight_gradient,
};
use support::{Random, file_bytes};

thread_local! {
    /// Allocations of this thread.
    static COUNT: Cell<usize> = const { Cell::new(0) };
}

struct Counting;

// SAFETY: all is left to the system's allocator.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        COUNT.set(COUNT.get() + 1);
        // SAFETY: promised.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        // SAFETY: promised.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

fn allocates_once(pool: &Pool, what: &str, call: &mut dyn FnMut()) {
    call();
    let before = COUNT.get();
    call();
    assert_eq!(COUNT.get() - before, 0, "allocations of {what} with {} threads", pool.threads());
}

#[test]
fn products_allocate_nothing_that_they_had() {
    let (n, k) = (48, 512);
    let mut random = Random(1);
    for pool in [1, 3].map(Pool::new) {
        let quantised = file_bytes(&mut random, Format::Q4_K, n, k);
        let quantised = Matrix::from_ggml(Format::Q4_K, n, k, &quantised).unwrap();
        let dense = Matrix::from_f32(n, k, &random.floats(n * k));
        for m in [1, 70] {
            let (x, dy) = (random.floats(m * k), random.floats(m * n));
            let (mut y, mut other, mut dx) = (vec![0.0; m * n], vec![0.0; m * n], vec![0.0; m * k]);
            let mut dw = vec![0.0; n * k];
            for w in [&quantised, &dense] {
                allocates_once(&pool, "linear", &mut || linear(&pool, w, &x, m, &mut y));
                allocates_once(&pool, "linear_add", &mut || linear_add(&pool, w, &x, m, &mut y));
                for add in [false, true] {
                    allocates_once(&pool, "linear_transposed", &mut || {
                        linear_transposed(&pool, w, &dy, m, &mut dx, add);
                    });
                }
            }
            allocates_once(&pool, "linear_many", &mut || {
                linear_many(&pool, &[&quantised, &dense], &x, m, &mut [&mut y, &mut other]);
            });
            allocates_once(&pool, "weight_gradient", &mut || {
                weight_gradient(&pool, &x, m, &[&dy], &mut [&mut dw], Begin::Here);
            });
            let mut gradient = vec![0.0; n];
            allocates_once(&pool, "bias_gradient", &mut || bias_gradient(&pool, &dy, &mut gradient));
        }
    }
}

#[test]
fn attention_allocates_nothing_that_it_had() {
    let mut random = Random(2);
    let shape = CausalShape { sequences: 2, length: 40, heads: 4, kv_heads: 2, head_dim: 16 };
    let (q, k, v) = (random.floats(80 * 64), random.floats(80 * 32), random.floats(80 * 32));
    let dout = random.floats(q.len());
    let pages: Vec<Vec<f32>> = (0..3).map(|_| random.floats(page_len(2, 16))).collect();
    let pages: Vec<&[f32]> = pages.iter().map(Vec::as_slice).collect();
    let rows = [AttentionRow { pages: &pages, from: 0, len: 2 * PAGE + 5 }];
    for pool in [1, 3].map(Pool::new) {
        let (mut out, mut statistics) = (vec![0.0; q.len()], vec![0.0; shape.statistics_len()]);
        let (mut dq, mut dk, mut dv) = (q.clone(), k.clone(), v.clone());
        allocates_once(&pool, "attention", &mut || {
            attention(&pool, &q[..64], &rows, Heads::new(4, 2, 16), &mut out[..64]);
        });
        allocates_once(&pool, "causal attention", &mut || {
            causal_attention(&pool, &shape, [&q, &k, &v], &mut out, &mut statistics);
        });
        allocates_once(&pool, "causal attention backwards", &mut || {
            let forward = CausalForward { q: &q, k: &k, v: &v, out: &out, statistics: &statistics };
            causal_attention_backward(&pool, &shape, &forward, &dout, [&mut dq, &mut dk, &mut dv]);
        });
    }
}

#[test]
fn the_rest_allocates_nothing_that_it_had() {
    let mut random = Random(3);
    let (m, n) = (300, 64);
    let (x, w, dy) = (random.floats(m * n), random.floats(n), random.floats(m * n));
    let tokens: Vec<u32> = (0..m as u32).map(|i| i % 7).collect();
    for pool in [1, 3].map(Pool::new) {
        let (mut y, mut dx, mut dw, mut losses) = (x.clone(), x.clone(), w.clone(), vec![0.0; m]);
        allocates_once(&pool, "rms_norm", &mut || rms_norm(&pool, &x, &w, 1e-5, m, &mut y));
        allocates_once(&pool, "rms_norm_backward", &mut || {
            rms_norm_backward(&pool, &x, &w, 1e-5, &dy, &mut dx, Some(&mut dw));
        });
        allocates_once(&pool, "swiglu", &mut || swiglu(&pool, &x, &dy, &mut y));
        allocates_once(&pool, "geglu", &mut || geglu(&pool, &x, &dy, &mut y));
        allocates_once(&pool, "cross_entropy", &mut || {
            cross_entropy(&pool, &mut y, &tokens, 1.0, &mut losses);
        });
        let (mut ids, mut rows) = (Vec::new(), Vec::new());
        allocates_once(&pool, "embedding_gradient", &mut || {
            embedding_gradient(&pool, &tokens, &dy, n, &mut ids, &mut rows);
        });
        let mut sums = GradientSums::new(m * n);
        allocates_once(&pool, "gradient sums", &mut || {
            sums.add(&pool, 0, &dy, gradient_sum::LIMIT_MAX).unwrap();
        });
    }
}
