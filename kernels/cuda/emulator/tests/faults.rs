//! What the emulated device finds: each fault of `faults.cu`, in a process of its own.
#![allow(clippy::unwrap_used, unsafe_code, reason = "a test may panic, and starts kernels")]

use std::os::unix::process::ExitStatusExt;
use std::process::{Command, Output};

use cudarc::driver::{CudaContext, LaunchConfig, PushKernelArg};
use cudarc::nvrtc::Ptx;

/// What a test's process does: it starts the kernel that this names, and says which values it left.
const KERNEL: &str = "DUNLIN_TEST_KERNEL";

#[test]
fn run_the_kernel_that_is_named() {
    let Ok(kernel) = std::env::var(KERNEL) else { return };
    dunlin_cuda_emulator::load();
    let context = CudaContext::new(0).unwrap();
    let stream = context.new_stream().unwrap();
    let module = context.load_module(Ptx::from_binary(vec![0])).unwrap();
    let function = module.load_function(&kernel).unwrap();
    let values: Vec<f32> = (0..64).map(|i| i as f32).collect();
    let mut buffer = stream.clone_htod(&values).unwrap();
    let shape = LaunchConfig { grid_dim: (1, 1, 1), block_dim: (64, 1, 1), shared_mem_bytes: 0 };
    // SAFETY: the argument is that of all of these kernels.
    unsafe { stream.launch_builder(&function).arg(&mut buffer).launch(shape) }.unwrap();
    println!("values {:?}", stream.clone_dtoh(&buffer).unwrap());
}

fn run(kernel: &str, order: &str) -> Output {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "run_the_kernel_that_is_named", "--nocapture"])
        .env(KERNEL, kernel)
        .env("DUNLIN_EMULATED_ORDER", order)
        .output()
        .unwrap()
}

fn is_reversed(output: &Output) -> bool {
    let reversed: Vec<f32> = (0..64).rev().map(|i| i as f32).collect();
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{output:?}");
    said.contains(&format!("values {reversed:?}"))
}

const ORDERS: [&str; 4] = ["forward", "backward", "random", "turns"];

#[test]
fn a_sound_kernel_has_the_same_result_in_every_order() {
    for order in ORDERS {
        assert!(is_reversed(&run("faultless", order)), "{order}");
    }
}

#[test]
fn a_missing_barrier_is_seen_in_every_order() {
    for order in ORDERS {
        assert!(!is_reversed(&run("fault_no_barrier", order)), "{order}");
    }
}

#[test]
fn threads_that_wait_for_nobody_end_the_process_with_a_message() {
    for (kernel, message) in [
        ("fault_ended_thread", "a barrier waits for threads that have ended"),
        ("fault_two_barriers", "threads of a block are at different barriers"),
        ("fault_ended_lane", "a collective waits for a lane that has ended"),
        ("fault_two_shuffles", "lanes of one mask are at different collectives"),
    ] {
        for order in ORDERS {
            let output = run(kernel, order);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(said.contains(message), "{kernel}, {order}: {output:?}");
            assert_eq!(output.status.signal(), Some(libc::SIGABRT), "{kernel}, {order}");
        }
    }
}

#[test]
fn memory_behind_a_buffer_cannot_be_read() {
    assert_eq!(run("fault_outside", "forward").status.signal(), Some(libc::SIGSEGV));
}
