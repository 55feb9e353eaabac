//! Devices that are not there, are full or fail, and copies beside the computation.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod support;

use std::process::Command;

use dunlin_cuda::linear::linear;
use dunlin_cuda::rows::{add, scale};
use dunlin_cuda::{DeviceBuffer, DeviceMatrix, Gpu, GpuError, OpenError, Scratch};
use dunlin_kernels::{Format, Matrix, Pool};
use support::{Random, file_bytes, gpu};

/// Runs a test in a process of its own, with settings of the emulated device.
fn alone(test: &str, settings: &[(&str, &str)], body: fn()) {
    const ALONE: &str = "DUNLIN_TEST_ALONE";
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--nocapture"])
        .env(ALONE, "1")
        .envs(settings.iter().copied())
        .output()
        .unwrap();
    let has_run = String::from_utf8_lossy(&output.stdout).contains("1 passed");
    assert!(output.status.success() && has_run, "{}", String::from_utf8_lossy(&output.stderr));
}

fn values(gpu: &Gpu, buffer: &DeviceBuffer<f32>) -> Result<Vec<f32>, GpuError> {
    let mut values = vec![0.0; buffer.len()];
    gpu.read(buffer, &mut values)?;
    Ok(values)
}

#[test]
fn a_machine_without_a_driver_says_so() {
    alone("a_machine_without_a_driver_says_so", &[], || match Gpu::open(0) {
        Err(OpenError::NoDriver) => {}
        // This machine has one.
        Err(OpenError::Image { .. } | OpenError::NoDevice { .. }) | Ok(_) => {}
        Err(error) => panic!("{error}"),
    });
}

#[test]
fn the_emulated_device_is_not_taken_for_a_gpu() {
    alone("the_emulated_device_is_not_taken_for_a_gpu", &[("DUNLIN_EMULATED_GPU", "1")], || {
        dunlin_cuda_emulator::load();
        assert_eq!(Gpu::open(0).err(), Some(OpenError::Emulated));
        dunlin_cuda_emulator::allow();
        let gpu = Gpu::open(0).unwrap();
        let facts = gpu.facts();
        assert_eq!((facts.name.as_str(), facts.image.as_str()), ("emulated on the host", "emulated"));
        assert_eq!((facts.capability, facts.driver, facts.memory_bytes), ((9, 0), (13, 0), 1 << 30));
        assert_eq!(Gpu::open(1).err(), Some(OpenError::NoDevice { ordinal: 1, count: 1 }));
    });
}

#[test]
fn a_full_device_refuses_a_buffer_and_goes_on() {
    let settings = [("DUNLIN_EMULATED_MEMORY", "1000000")];
    alone("a_full_device_refuses_a_buffer_and_goes_on", &settings, || {
        let gpu = gpu();
        let mut x = gpu.upload(&vec![2.0f32; 150_000]).unwrap();
        assert_eq!(gpu.free_memory().unwrap(), 400_000);
        let error = gpu.buffer::<f32>(100_001).err().unwrap();
        assert!(error.is_out_of_memory(), "{error}");
        assert_eq!(error.to_string(), "allocating memory failed on the GPU: CUDA_ERROR_OUT_OF_MEMORY (2)");
        // What is there is computed with.
        scale(&gpu, x.all_mut(), 3.0).unwrap();
        assert_eq!(values(&gpu, &x).unwrap(), vec![6.0; 150_000]);
        // A buffer that grows gives back what it had first.
        x.ensure(250_000).unwrap();
        assert_eq!((x.len(), gpu.free_memory().unwrap()), (250_000, 0));
        assert!(x.ensure(250_001).unwrap_err().is_out_of_memory());
        assert!(x.is_empty());
        x.ensure(10).unwrap();
        drop(x);
        gpu.synchronize().unwrap();
        assert_eq!(gpu.free_memory().unwrap(), 1_000_000);
    });
}

#[test]
fn an_allocation_that_fails_is_the_only_one() {
    alone("an_allocation_that_fails_is_the_only_one", &[("DUNLIN_EMULATED_FAIL", "alloc:2")], || {
        let gpu = gpu();
        let results = [0; 3].map(|_| gpu.buffer::<f32>(16));
        assert_eq!(results.map(|result| result.is_ok()), [true, false, true]);
    });
}

/// A kernel or a copy that fails takes the device with it.
fn fails(gpu: &Gpu, result: Result<(), GpuError>, op: &str, name: &str, code: u32) {
    let error = result.unwrap_err();
    assert_eq!((error.op, error.name.as_str(), error.code), (op, name, code));
    assert!(!error.is_out_of_memory());
    assert_eq!(gpu.synchronize().unwrap_err().code, code);
    assert_eq!(gpu.buffer::<f32>(1).err().unwrap().code, code);
}

#[test]
fn a_kernel_that_fails_is_named() {
    alone("a_kernel_that_fails_is_named", &[("DUNLIN_EMULATED_FAIL", "launch:add:3")], || {
        let gpu = gpu();
        let (mut x, y) = (gpu.upload(&[1.0f32; 40]).unwrap(), gpu.upload(&[2.0f32; 40]).unwrap());
        for _ in 0..2 {
            add(&gpu, x.all_mut(), y.all()).unwrap();
            scale(&gpu, x.all_mut(), 1.0).unwrap();
        }
        assert_eq!(values(&gpu, &x).unwrap(), [5.0; 40]);
        let result = add(&gpu, x.all_mut(), y.all());
        fails(&gpu, result, "add", "CUDA_ERROR_LAUNCH_FAILED", 719);
    });
}

#[test]
fn a_copy_that_fails_is_an_error() {
    alone("a_copy_that_fails_is_an_error", &[("DUNLIN_EMULATED_FAIL", "copy:2")], || {
        let gpu = gpu();
        let mut x = gpu.upload(&[1.0f32; 40]).unwrap();
        let result = gpu.write(&mut x, &[3.0; 40]);
        fails(&gpu, result, "write", "CUDA_ERROR_ECC_UNCORRECTABLE", 214);
    });
}

const SLOW: [(&str, &str); 1] = [("DUNLIN_EMULATED_GBPS", "0.002")];

#[test]
fn weights_that_come_beside_the_computation_are_waited_for() {
    alone("weights_that_come_beside_the_computation_are_waited_for", &SLOW, || assert!(streamed(true)));
}

/// The test above can fail.
#[test]
fn a_wait_that_is_left_out_is_seen() {
    alone("a_wait_that_is_left_out_is_seen", &SLOW, || assert!(!streamed(false)));
}

/// Layers whose weights come into two slots in turn, while the layer before computes. Are all outputs those of the CPU?
fn streamed(waits: bool) -> bool {
    let (layers, n, k, m) = (6, 64, 512, 3);
    let gpu = gpu();
    let mut scratch = Scratch::new(&gpu).unwrap();
    let mut random = Random(20);
    let x = random.floats(m * k);
    let rows = gpu.upload(&x).unwrap();
    let matrices: Vec<Matrix> = (0..layers)
        .map(|_| Matrix::from_ggml(Format::Q8_0, n, k, &file_bytes(&mut random, Format::Q8_0, n, k)).unwrap())
        .collect();
    let pinned: Vec<_> = matrices
        .iter()
        .map(|matrix| {
            let mut pinned = gpu.pinned::<u8>(matrix.bytes()).unwrap();
            pinned.fill(matrix.as_bytes()).unwrap();
            pinned
        })
        .collect();
    let mut slots = [&matrices[0]; 2].map(|like| DeviceMatrix::like(&gpu, like).unwrap());
    let mut used = [gpu.computed().unwrap(), gpu.computed().unwrap()];
    let mut outs: Vec<_> = (0..layers).map(|_| gpu.buffer::<f32>(m * n).unwrap()).collect();
    for (layer, out) in outs.iter_mut().enumerate() {
        let slot = layer % 2;
        let copied = gpu.copy_beside(slots[slot].data_mut(), &pinned[layer], &used[slot]).unwrap();
        if waits {
            gpu.wait_for(&copied).unwrap();
        }
        linear(&gpu, &mut scratch, &[&slots[slot]], rows.all(), m, &mut [out.all_mut()]).unwrap();
        used[slot] = gpu.computed().unwrap();
    }
    gpu.synchronize().unwrap();
    matrices.iter().zip(&outs).all(|(matrix, out)| {
        let mut want = vec![0.0; m * n];
        dunlin_kernels::linear(&Pool::new(1), matrix, &x, m, &mut want);
        values(&gpu, out).unwrap() == want
    })
}
