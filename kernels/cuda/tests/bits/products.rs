//! Products with weights of every format.

use dunlin_cuda::DeviceMatrix;
use dunlin_cuda::linear::{Width, linear, linear_add};
use dunlin_kernels::{Format, Matrix};

use crate::Bench;
use crate::support::{Random, assert_same, file_bytes};

/// Rows with blocks that are all zero, denormal, huge or not finite.
fn odd_rows(random: &mut Random, m: usize, k: usize) -> Vec<f32> {
    let mut x = random.floats(m * k);
    for (row, x) in x.chunks_exact_mut(k).enumerate() {
        match row % 8 {
            1 => x[..32].fill(0.0),
            2 => x[k - 32..].fill(1e-42),
            3 => x[..32].iter_mut().for_each(|v| *v *= 1e37),
            5 => x[k / 2] = f32::NAN,
            6 => x[k - 1] = f32::NEG_INFINITY,
            _ => {}
        }
    }
    x
}

/// Compares products of a matrix with `m` rows: set by the kernels of one width, added by those of another. Returns how many outputs that was.
fn compare_products(bench: &mut Bench, w: &Matrix, x: &[f32], m: usize, widths: [Option<Width>; 2]) -> usize {
    let (n, k) = (w.n(), w.k());
    let Bench { gpu, scratch, pool } = bench;
    let on_device = DeviceMatrix::upload(gpu, w).unwrap();
    let x = &x[..m * k];
    let rows = gpu.upload(x).unwrap();
    let mut want = vec![0.0; m * n];
    let mut got = vec![0.0; m * n];
    let mut y = gpu.buffer::<f32>(m * n).unwrap();
    let what = |done, width| format!("{:?}, {n} x {k}, {m} rows {done} by {width:?}", w.format());

    scratch.set_width(widths[0]);
    linear(gpu, scratch, &[&on_device], rows.all(), m, &mut [y.all_mut()]).unwrap();
    gpu.read(&y, &mut got).unwrap();
    dunlin_kernels::linear(pool, w, x, m, &mut want);
    assert_same(&got, &want, || what("set", widths[0]));

    want.iter_mut().enumerate().for_each(|(i, y)| *y = i as f32 * 0.37 - 5.0);
    gpu.write(&mut y, &want).unwrap();
    scratch.set_width(widths[1]);
    linear_add(gpu, scratch, &[&on_device], rows.all(), m, &mut [y.all_mut()]).unwrap();
    gpu.read(&y, &mut got).unwrap();
    dunlin_kernels::linear_add(pool, w, x, m, &mut want);
    assert_same(&got, &want, || what("added", widths[1]));
    2 * m * n
}

/// Every format, size and number of rows; each kernel meets all of them in turn. Few outputs of many inputs, and many of few.
fn compare_all_products(formats: &[Format]) -> usize {
    const WIDTHS: [Option<Width>; 5] =
        [Some(Width::Eight), Some(Width::Sixteen), Some(Width::ThirtyTwo), Some(Width::Many), None];
    const ROWS: [usize; 10] = [1, 2, 7, 8, 9, 16, 31, 33, 64, 130];
    let sizes: [(usize, usize, &[usize]); 5] =
        [(40, 256, &ROWS), (17, 32, &ROWS), (24, 608, &ROWS), (72, 768, &ROWS), (16, 4096, &[1, 9, 33])];
    let mut bench = Bench::new();
    let mut random = Random(1);
    let mut compared = 0;
    for (f, format) in formats.iter().enumerate() {
        for (n, k, rows) in sizes {
            if !k.is_multiple_of(format.block().0) {
                continue;
            }
            let bytes = file_bytes(&mut random, *format, n, k);
            let w = Matrix::from_ggml(*format, n, k, &bytes).unwrap();
            let x = odd_rows(&mut random, 130, k);
            for (i, &m) in rows.iter().enumerate() {
                let widths = [WIDTHS[(i + f) % 5], WIDTHS[(2 * i + f + 3) % 5]];
                compared += compare_products(&mut bench, &w, &x, m, widths);
            }
        }
    }
    compared
}

#[test]
fn products_with_blocks_of_32() {
    let formats = [Format::Q8_0, Format::Q4_0, Format::Q4_1, Format::Q5_0, Format::Q5_1, Format::IQ4_NL];
    assert!(compare_all_products(&formats) > 500_000);
}

#[test]
fn products_with_blocks_of_256() {
    let formats = [Format::Q2_K, Format::Q3_K, Format::Q4_K, Format::Q5_K, Format::Q6_K, Format::IQ4_XS];
    assert!(compare_all_products(&formats) > 400_000);
}

#[test]
fn products_with_floats() {
    assert!(compare_all_products(&[Format::F32, Format::F16, Format::BF16]) > 250_000);
}

/// Rows that are no whole blocks: only weights that are floats have them.
#[test]
fn products_with_rows_of_any_length() {
    let mut bench = Bench::new();
    let mut random = Random(2);
    for (n, k) in [(33, 300), (1, 1), (70, 257), (5, 513)] {
        let w = Matrix::from_f32(n, k, &random.floats(n * k));
        let x = random.floats(130 * k);
        for m in [1, 8, 11, 130] {
            for widths in [[Some(Width::Eight), Some(Width::Many)], [Some(Width::Many), Some(Width::Eight)]] {
                compare_products(&mut bench, &w, &x, m, widths);
            }
        }
    }
}

/// Maps of one input, some of which want it quantised.
#[test]
fn several_maps_of_one_input() {
    let Bench { gpu, mut scratch, pool } = Bench::new();
    let mut random = Random(3);
    let (k, m) = (512, 19);
    let formats = [(Format::Q4_K, 48), (Format::F16, 33), (Format::Q8_0, 16), (Format::Q2_K, 7)];
    let ws = formats
        .map(|(format, n)| Matrix::from_ggml(format, n, k, &file_bytes(&mut random, format, n, k)).unwrap());
    let x = random.floats(m * k);
    let on_device = ws.each_ref().map(|w| DeviceMatrix::upload(&gpu, w).unwrap());
    let rows = gpu.upload(&x).unwrap();
    let mut ys = ws.each_ref().map(|w| gpu.buffer::<f32>(m * w.n()).unwrap());
    let mut outs = ys.each_mut().map(|y| y.all_mut());
    linear(&gpu, &mut scratch, &on_device.each_ref(), rows.all(), m, &mut outs).unwrap();
    for (w, y) in ws.iter().zip(&ys) {
        let (mut got, mut want) = (vec![0.0; m * w.n()], vec![0.0; m * w.n()]);
        gpu.read(y, &mut got).unwrap();
        dunlin_kernels::linear(&pool, w, &x, m, &mut want);
        assert_same(&got, &want, || format!("{:?}", w.format()));
    }
}
