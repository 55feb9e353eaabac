//! What codecs lose, and how quick they are on one thread: `cargo run --release -p dunlin-train --example codec_error`.
#![allow(clippy::print_stdout, clippy::unwrap_used, reason = "a benchmark prints, and may panic")]

use std::time::Instant;

use dunlin_train::codec::Codec;

const COUNT: usize = 1 << 24;
/// Values that share a scale in the data with long tails, as those of a row of a weight matrix do.
const ROW: usize = 512;

fn uniform(z: &mut u64) -> f64 {
    *z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
    ((*z >> 11) as f64 + 0.5) / (1u64 << 53) as f64
}

/// Box and Muller's.
fn normal(z: &mut u64) -> f64 {
    (-2.0 * uniform(z).ln()).sqrt() * (std::f64::consts::TAU * uniform(z)).cos()
}

/// Of the size that gradients of a mean have.
fn normals(scale: f64) -> Vec<f32> {
    let mut z = 1;
    (0..COUNT).map(|_| (normal(&mut z) * scale) as f32).collect()
}

/// As gradients of layers are: Student's t with 3 degrees of freedom, so that some values are a hundred times the usual, and rows whose scales
/// differ by a factor of ten and more.
fn tails(scale: f64) -> Vec<f32> {
    let mut z = 2;
    let mut row = 1.0;
    let value = |i: usize| {
        if i.is_multiple_of(ROW) {
            row = normal(&mut z).exp();
        }
        let square: f64 = (0..3).map(|_| normal(&mut z).powi(2)).sum();
        (normal(&mut z) / (square / 3.0).sqrt() * row * scale) as f32
    };
    (0..COUNT).map(value).collect()
}

/// RMS of the error relative to that of the values.
fn error(values: &[f32], back: &[f32]) -> f64 {
    let lost: f64 = values.iter().zip(back).map(|(a, b)| (f64::from(*a) - f64::from(*b)).powi(2)).sum();
    (lost / values.iter().map(|v| f64::from(*v).powi(2)).sum::<f64>()).sqrt()
}

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
    let data = [
        ("normal", normals(1.0)),
        ("long tails", tails(1.0)),
        ("normal, 1e-6", normals(1e-6)),
        ("long tails, 1e-6", tails(1e-6)),
    ];
    println!("relative RMS error; speed in GB/s of f32, one thread, {COUNT} values in chunks of 32768");
    print!("| codec | bytes per value |");
    data.iter().for_each(|(name, _)| print!(" {name} |"));
    println!(" encode | decode |");
    for codec in [Codec::F32, Codec::F16, Codec::F16Scaled, Codec::Q8] {
        print!("| {codec:?} | {:.4} |", codec.bytes(COUNT) as f64 / COUNT as f64);
        let (mut bytes, mut back) = (Vec::new(), vec![0.0; COUNT]);
        for (_, values) in &data {
            bytes.clear();
            codec.encode(values, &mut bytes).unwrap();
            codec.decode_to(&bytes, &mut back).unwrap();
            print!(" {:.1e} |", error(values, &back));
        }
        // As averages do: chunks that fit the cache.
        let values = &data[0].1;
        let speed = |seconds: f64| 4.0 * COUNT as f64 / seconds / 1e9;
        let encode = fastest(|| {
            for chunk in values.chunks(1 << 15) {
                bytes.clear();
                codec.encode(chunk, &mut bytes).unwrap();
            }
        });
        let mut place = vec![0.0; 1 << 15];
        let decode = fastest(|| {
            for _ in 0..COUNT >> 15 {
                codec.decode_to(&bytes, &mut place).unwrap();
            }
        });
        println!(" {:.1} | {:.1} |", speed(encode), speed(decode));
    }
}
