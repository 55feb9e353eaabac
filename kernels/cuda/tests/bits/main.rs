//! The rule of this crate: every kernel has the bits of the CPU's function of the same name.
//!
//! It runs on the emulated device; with `DUNLIN_GPU_TESTS=device` on the one of this machine.
#![allow(clippy::unwrap_used, reason = "a test may panic")]
#![allow(unsafe_code, reason = "tells kernels where pages are")]

#[path = "../support/mod.rs"]
mod support;

mod attention;
mod products;
mod rows;

use dunlin_cuda::{Gpu, Scratch};
use dunlin_kernels::Pool;

/// What a comparison needs.
struct Bench {
    gpu: Gpu,
    scratch: Scratch,
    pool: Pool,
}

impl Bench {
    fn new() -> Self {
        let gpu = support::gpu();
        let scratch = Scratch::new(&gpu).unwrap();
        Self { gpu, scratch, pool: Pool::new(1) }
    }
}

/// In which order threads run does not touch a bit.
#[test]
fn bits_are_the_same_in_every_order_of_threads() {
    for order in ["backward", "random", "turns"] {
        let output = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["several_maps_of_one_input", "short_sequences", "rows::"])
            .env("DUNLIN_EMULATED_ORDER", order)
            .output()
            .unwrap();
        let said = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && said.contains("8 passed"), "{order}: {said}");
    }
}
