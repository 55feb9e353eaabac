//! Times codecs and optimizers: `cargo run --release -p dunlin-train --example speed`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may panic")]

use std::time::Instant;

use dunlin_kernels::Pool;
use dunlin_train::codec::Codec;
use dunlin_train::{Optimizer, TensorRange};

const COUNT: usize = 1 << 24;

/// Seconds of the fastest of five.
fn fastest(mut run: impl FnMut()) -> f64 {
    let once = |_| {
        let begin = Instant::now();
        run();
        begin.elapsed().as_secs_f64()
    };
    (0..5).map(once).fold(f64::INFINITY, f64::min)
}

fn main() {
    let values: Vec<f32> = (0..COUNT).map(|i| (i * 7919 % 10_007) as f32 / 5000.0 - 1.0).collect();
    let rate = |seconds: f64| COUNT as f64 / seconds / 1e6;
    for codec in [Codec::F32, Codec::F16, Codec::Q8] {
        let (mut bytes, mut back) = (Vec::new(), Vec::new());
        let encode = fastest(|| {
            bytes.clear();
            codec.encode(&values, &mut bytes).unwrap();
        });
        let decode = fastest(|| {
            back.clear();
            codec.decode(&bytes, COUNT, &mut back).unwrap();
        });
        println!("{codec:?}: encode {:.0}, decode {:.0} million values/s", rate(encode), rate(decode));
    }
    for threads in [1, 2] {
        let pool = Pool::new(threads);
        for kind in ["AdamW", "Lamb", "Sgd"] {
            let config = format!(r#"{{"kind": "{kind}", "learningRate": 1e-3, "momentum": 0.9}}"#);
            let config = serde_json::from_str(&config).unwrap();
            let tensors = vec![TensorRange { range: 0..COUNT, decay: true }];
            let mut optimizer = Optimizer::new(&config, tensors, COUNT).unwrap();
            let mut parameters = optimizer.checked(values.clone()).unwrap();
            let seconds = fastest(|| optimizer.step(&pool, 1e-3, 1.0, &mut parameters, &values).unwrap());
            println!("{kind}, {threads} threads: {:.0} million parameters/s", rate(seconds));
        }
    }
}
