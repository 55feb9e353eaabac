//! A device for tests, and their inputs.
#![allow(dead_code, reason = "each test uses a part")]

use std::sync::Once;

use dunlin_cuda::Gpu;
use dunlin_kernels::Format;
use half::{bf16, f16};

/// The emulated device, or that of this machine if `DUNLIN_GPU_TESTS` is `device`.
pub fn gpu() -> Gpu {
    static LOADED: Once = Once::new();
    LOADED.call_once(|| {
        if std::env::var_os("DUNLIN_GPU_TESTS").is_none_or(|value| value != "device") {
            dunlin_cuda_emulator::load();
            // Nobody looks at the environment before: every test begins here.
            dunlin_cuda_emulator::allow();
        }
    });
    Gpu::open(0).unwrap_or_else(|error| panic!("{error}"))
}

/// A small counter-based generator, for inputs only.
pub struct Random(pub u64);

impl Random {
    pub fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// Roughly normal.
    pub fn float(&mut self) -> f32 {
        (0..4).map(|_| (self.next() >> 40) as f32 / (1 << 24) as f32 - 0.5).sum::<f32>() * 1.7
    }

    pub fn floats(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.float()).collect()
    }
}

/// Fails at the first value with other bits. The bits of a computed NaN are not the same everywhere: one is like another.
#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: impl Fn() -> String) {
    assert_eq!(got.len(), want.len(), "{}", what());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(is_same, "{}: value {i} is {got:?}, not {want:?}", what());
    }
}

/// Random but valid file bytes of `n` rows of `k` values.
pub fn file_bytes(random: &mut Random, format: Format, n: usize, k: usize) -> Vec<u8> {
    let (values, bytes) = format.block();
    let mut out: Vec<u8> = match format {
        Format::F32 => return random.floats(n * k).iter().flat_map(|v| v.to_le_bytes()).collect(),
        Format::F16 => {
            return random.floats(n * k).iter().flat_map(|v| f16::from_f32(*v).to_le_bytes()).collect();
        }
        // So large that they cannot be held in f16.
        Format::BF16 => {
            let large = |v: &f32| bf16::from_f32(v * 1e6).to_le_bytes();
            return random.floats(n * k).iter().flat_map(large).collect();
        }
        _ => (0..n * k / values * bytes).map(|_| (random.next() >> 32) as u8).collect(),
    };
    for block in out.chunks_exact_mut(bytes) {
        let d = f16::from_f32(0.01 + 0.002 * random.float()).to_le_bytes();
        let m = f16::from_f32(0.02 * random.float()).to_le_bytes();
        for (at, value) in f16_scales(format).iter().zip([d, m]) {
            block[*at..at + 2].copy_from_slice(&value);
        }
    }
    out
}

/// Where the f16 scale of a quantised block is, and its f16 minimum if it has one.
fn f16_scales(format: Format) -> &'static [usize] {
    match format {
        Format::Q4_1 | Format::Q5_1 | Format::Q4_K | Format::Q5_K => &[0, 2],
        Format::Q2_K => &[80, 82],
        Format::Q3_K => &[108],
        Format::Q6_K => &[208],
        _ => &[0],
    }
}
