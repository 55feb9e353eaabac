//! What a decoder block needs besides products and attention.

use dunlin_cuda::rows::{
    DeviceRope, NO_FLAW, add, add_bias, find_not_finite, flaw, gather_rows, geglu, rms_norm, rope, scale,
    swiglu,
};
use dunlin_cuda::{Gpu, GpuError, Slice, SliceMut};
use dunlin_kernels::{RopeLayout, RopeScaling, RopeTable};

use crate::Bench;
use crate::support::{Random, assert_same};

/// The values of a buffer that `run` has changed or written.
fn computed(
    gpu: &Gpu,
    begin: &[f32],
    run: impl FnOnce(SliceMut<'_, f32>) -> Result<(), GpuError>,
) -> Vec<f32> {
    let mut out = gpu.upload(begin).unwrap();
    run(out.all_mut()).unwrap();
    let mut got = vec![0.0; begin.len()];
    gpu.read(&out, &mut got).unwrap();
    got
}

#[test]
fn norms() {
    let Bench { gpu, pool, .. } = Bench::new();
    let mut random = Random(4);
    for (m, n) in [(1, 576), (5, 4096), (33, 100), (9, 128), (3, 7), (2, 1), (16, 8192)] {
        let (x, w) = (random.floats(m * n), random.floats(n));
        let mut want = vec![0.0; m * n];
        dunlin_kernels::rms_norm(&pool, &x, &w, 1e-5, m, &mut want);
        let (x, w) = (gpu.upload(&x).unwrap(), gpu.upload(&w).unwrap());
        let got =
            computed(&gpu, &vec![f32::NAN; m * n], |out| rms_norm(&gpu, x.all(), w.all(), 1e-5, m, out));
        assert_same(&got, &want, || format!("norm of {m} x {n}"));
    }
}

#[test]
fn rotary_embeddings() {
    let Bench { gpu, pool, .. } = Bench::new();
    let mut random = Random(5);
    for (heads, head_dim) in [(9, 64), (1, 2), (3, 128), (2, 256)] {
        let table = RopeTable::new(head_dim, 10_000.0, RopeScaling::Linear(2.0), 300);
        let on_device = DeviceRope::upload(&gpu, &table).unwrap();
        let positions: Vec<u32> = (0..23).map(|_| (random.next() % 300) as u32).collect();
        let places = gpu.upload(&positions).unwrap();
        for layout in [RopeLayout::Interleaved, RopeLayout::Halves] {
            let x = random.floats(positions.len() * heads * head_dim);
            let mut want = x.clone();
            dunlin_kernels::rope_rows(&pool, &table, layout, &mut want, &positions, false);
            let got = computed(&gpu, &x, |x| rope(&gpu, &on_device, layout, x, places.all()));
            assert_same(&got, &want, || format!("{layout:?}, {heads} heads of {head_dim}"));
        }
    }
}

#[test]
fn gated_activations() {
    type Kernel = fn(&Gpu, Slice<'_, f32>, Slice<'_, f32>, SliceMut<'_, f32>) -> Result<(), GpuError>;
    type Function = fn(&dunlin_kernels::Pool, &[f32], &[f32], &mut [f32]);
    let Bench { gpu, pool, .. } = Bench::new();
    let mut random = Random(6);
    let odd = [0.0, -0.0, 87.0, 88.5, -87.3, -87.34, -88.5, 100.0, -100.0, 1e-40, 3e38, -3e38];
    let odd = odd.into_iter().chain([f32::INFINITY, f32::NEG_INFINITY, f32::NAN]);
    let gate: Vec<f32> = odd.chain((0..20_000).map(|_| random.float() * 20.0)).collect();
    let up = random.floats(gate.len());
    let (on_device, up_on_device) = (gpu.upload(&gate).unwrap(), gpu.upload(&up).unwrap());
    let kinds: [(Kernel, Function); 2] = [(swiglu, dunlin_kernels::swiglu), (geglu, dunlin_kernels::geglu)];
    for (kernel, function) in kinds {
        let mut want = vec![0.0; gate.len()];
        function(&pool, &gate, &up, &mut want);
        let got = computed(&gpu, &vec![0.0; gate.len()], |out| {
            kernel(&gpu, on_device.all(), up_on_device.all(), out)
        });
        assert_same(&got, &want, || "a gated activation".into());
    }
}

#[test]
fn sums_and_products_of_values() {
    let Bench { gpu, pool, .. } = Bench::new();
    let mut random = Random(7);
    let (m, n) = (37, 100);
    let (y, x, bias) = (random.floats(m * n), random.floats(m * n), random.floats(n));
    let (x_on_device, bias_on_device) = (gpu.upload(&x).unwrap(), gpu.upload(&bias).unwrap());

    let mut want = y.clone();
    dunlin_kernels::add(&mut want, &x);
    assert_same(&computed(&gpu, &y, |y| add(&gpu, y, x_on_device.all())), &want, || "added".into());

    let mut want = y.clone();
    dunlin_kernels::add_bias(&pool, &mut want, &bias);
    let got = computed(&gpu, &y, |y| add_bias(&gpu, y, bias_on_device.all()));
    assert_same(&got, &want, || "with a bias".into());

    let want: Vec<f32> = y.iter().map(|y| y * 0.37).collect();
    assert_same(&computed(&gpu, &y, |y| scale(&gpu, y, 0.37)), &want, || "scaled".into());
}

#[test]
fn rows_are_gathered() {
    let gpu = Bench::new().gpu;
    let n = 300;
    let x = Random(8).floats(11 * n);
    let rows = [10, 0, 3, 3];
    let want: Vec<f32> = rows.iter().flat_map(|row| x[*row as usize * n..][..n].to_vec()).collect();
    let (x, rows) = (gpu.upload(&x).unwrap(), gpu.upload(&rows).unwrap());
    let got =
        computed(&gpu, &vec![f32::NAN; want.len()], |out| gather_rows(&gpu, x.all(), rows.all(), n, out));
    assert_same(&got, &want, || "gathered".into());
}

#[test]
fn the_first_flaw_is_found() {
    let gpu = Bench::new().gpu;
    let (m, n) = (70, 333);
    let clean = Random(9).floats(m * n);
    let mut found = gpu.upload(&[NO_FLAW]).unwrap();
    let mut look = |values: &[(usize, usize, f32)], code| {
        let mut x = clean.clone();
        values.iter().for_each(|(row, i, value)| x[row * n + i] = *value);
        let x = gpu.upload(&x).unwrap();
        find_not_finite(&gpu, x.all(), n, code, found.all_mut()).unwrap();
        let mut got = [0];
        gpu.read(&found, &mut got).unwrap();
        flaw(got[0])
    };
    assert_eq!(look(&[], 0), None);
    assert_eq!(look(&[(3, 0, f32::MAX), (4, 1, 1e-45)], 0), None, "large and small values are finite");
    assert_eq!(look(&[(69, 332, f32::NAN)], 1000), Some((1000, 69)));
    assert_eq!(look(&[(60, 3, f32::INFINITY), (41, 0, -f32::NAN)], 1000), Some((1000, 41)));
    assert_eq!(look(&[(0, 0, f32::NEG_INFINITY)], 1001), Some((1000, 41)), "later ones are not looked for");
    assert_eq!(look(&[(69, 0, f32::NEG_INFINITY)], 7), Some((7, 69)));
}
