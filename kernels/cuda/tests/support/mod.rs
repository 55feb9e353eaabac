//! A device for tests, and their inputs.
#![allow(dead_code, reason = "each test uses a part")]

#[path = "../../../tests/support/mod.rs"]
mod of_kernels;

use std::sync::Once;

use dunlin_cuda::Gpu;
pub use of_kernels::{Random, file_bytes};

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

/// Fails at the first value with other bits. The bits of a computed NaN are not the same everywhere: one is like another.
#[track_caller]
pub fn assert_same(got: &[f32], want: &[f32], what: impl Fn() -> String) {
    assert_eq!(got.len(), want.len(), "{}", what());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        let is_same = got.to_bits() == want.to_bits() || got.is_nan() && want.is_nan();
        assert!(is_same, "{}: value {i} is {got:?}, not {want:?}", what());
    }
}
