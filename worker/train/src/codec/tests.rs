use proptest::prelude::*;

use super::{BLOCK, Codec, CodecError, ErrorFeedback};

const ALL: [Codec; 3] = [Codec::F32, Codec::F16, Codec::Q8];

/// Roughly normal: sums of twelve uniform numbers.
fn normal(count: usize) -> Vec<f32> {
    let mut z = 1u64;
    let mut uniform = || {
        z = z.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (z >> 40) as f32 / 16_777_216.0
    };
    (0..count).map(|_| (0..12).map(|_| uniform()).sum::<f32>() - 6.0).collect()
}

fn through(codec: Codec, values: &[f32]) -> Vec<f32> {
    let (mut bytes, mut back) = (vec![7], vec![0.5]);
    codec.encode(values, &mut bytes).unwrap();
    assert_eq!(bytes.len(), 1 + codec.bytes(values.len()));
    codec.decode(&bytes[1..], values.len(), &mut back).unwrap();
    assert_eq!(back.remove(0), 0.5);
    back
}

/// RMS of the error, relative to that of the values.
fn error(values: &[f32], back: &[f32]) -> f64 {
    let squares = |values: &mut dyn Iterator<Item = f64>| values.map(|v| v * v).sum::<f64>();
    let lost = squares(&mut values.iter().zip(back).map(|(a, b)| f64::from(a - b)));
    (lost / squares(&mut values.iter().map(|v| f64::from(*v)))).sqrt()
}

#[test]
fn errors_are_as_documented() {
    let values = normal(1 << 18);
    assert_eq!(through(Codec::F32, &values), values);
    let half = error(&values, &through(Codec::F16, &values));
    let eight = error(&values, &through(Codec::Q8, &values));
    println!("relative RMS error: F16 {half:.3e}, Q8 {eight:.3e}");
    assert!((1.5e-4..2.2e-4).contains(&half), "{half}");
    assert!((5.0e-3..6.5e-3).contains(&eight), "{eight}");
}

#[test]
fn rounding_is_to_the_nearest_and_ties_go_to_even() {
    let mut block = vec![127.0, 0.5, 1.5, -2.5, -0.49, 126.5, -127.0, 3.0];
    assert_eq!(through(Codec::Q8, &block), [127.0, 0.0, 2.0, -2.0, 0.0, 126.0, -127.0, 3.0]);
    // A block has its own scale.
    block.resize(BLOCK, 0.0);
    block.push(1e-20);
    let back = through(Codec::Q8, &block);
    assert!((back[BLOCK] / 1e-20 - 1.0).abs() < 1e-6);
    assert_eq!(through(Codec::Q8, &[1e-38, -1e-40, 0.0, -0.0]), [0.0; 4]);
    assert!(through(Codec::Q8, &[1e38, -1e38]).iter().all(|v| v.is_finite()));
    assert!(Codec::Q8.encode(&[1.0, -1.01e38], &mut Vec::new()).is_err());
}

#[test]
fn what_is_not_finite_is_refused_on_both_sides() {
    for codec in ALL {
        for wrong in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut values = vec![1.0; 2000];
            values[1500] = wrong;
            let error = codec.encode(&values, &mut Vec::new()).unwrap_err();
            let expected = if codec == Codec::Q8 { 1500 / BLOCK * BLOCK } else { 1500 };
            assert_eq!(error, CodecError::Range { codec, index: expected });
        }
    }
    assert!(Codec::F16.encode(&[65_519.0], &mut Vec::new()).is_ok());
    assert!(Codec::F16.encode(&[65_520.0], &mut Vec::new()).is_err());
    let refused =
        |codec: Codec, bytes: &[u8], values| codec.decode(bytes, values, &mut Vec::new()).unwrap_err();
    assert_eq!(refused(Codec::F32, &f32::NAN.to_le_bytes(), 1), CodecError::Malformed(0));
    assert_eq!(refused(Codec::F16, &[0, 0, 0, 0x7c], 2), CodecError::Malformed(2));
    for scale in [f32::NAN, f32::INFINITY, f32::MAX, -1.0, -0.0, 1e-40] {
        let bytes = [&scale.to_le_bytes()[..], &[1]].concat();
        assert_eq!(refused(Codec::Q8, &bytes, 1), CodecError::Malformed(0), "{scale}");
    }
    assert_eq!(refused(Codec::Q8, &[0, 0, 0x80, 0x3f, 0x80], 1), CodecError::Malformed(0));
    for codec in ALL {
        assert!(matches!(refused(codec, &[0; 5], 2), CodecError::Length { found: 5, .. }));
        assert!(matches!(refused(codec, &[0; 8], usize::MAX), CodecError::Length { .. }));
    }
}

proptest! {
    #[test]
    fn hostile_bytes_are_refused_or_finite(bytes in proptest::collection::vec(any::<u8>(), 0..300), values in 0usize..300) {
        for codec in ALL {
            let mut out = Vec::new();
            if codec.decode(&bytes, values, &mut out).is_ok() {
                prop_assert_eq!(out.len(), values);
                prop_assert!(out.iter().all(|v| v.is_finite()));
            }
        }
    }

    #[test]
    fn no_value_is_off_by_more_than_half_a_code(values in proptest::collection::vec(-1e6f32..1e6, 0..300)) {
        let back = through(Codec::Q8, &values);
        for (block, back) in values.chunks(BLOCK).zip(back.chunks(BLOCK)) {
            let most = block.iter().fold(0f32, |most, v| most.max(v.abs()));
            for (a, b) in block.iter().zip(back) {
                prop_assert!((a - b).abs() <= most / 254.0 * 1.0001, "{} {} {}", a, b, most);
            }
        }
    }
}

#[test]
fn with_feedback_the_error_does_not_add_up() {
    // A gradient that hardly changes: its error is the same each time, and so adds up.
    let gradient = normal(1000);
    let steps = 50;
    let mut feedback = ErrorFeedback::new(Codec::Q8, 1010);
    let (mut with, mut without) = (vec![0.0; 1000], vec![0.0; 1000]);
    for _ in 0..steps {
        let (mut sent, mut bytes) = (gradient.clone(), Vec::new());
        feedback.encode(10, &mut sent, &mut bytes).unwrap();
        let mut received = Vec::new();
        Codec::Q8.decode(&bytes, 1000, &mut received).unwrap();
        assert_eq!(sent, received);
        with.iter_mut().zip(&sent).for_each(|(sum, v)| *sum += v);
        without.iter_mut().zip(through(Codec::Q8, &gradient)).for_each(|(sum, v)| *sum += v);
    }
    let wanted: Vec<f32> = gradient.iter().map(|v| v * steps as f32).collect();
    let (with, without) = (error(&wanted, &with), error(&wanted, &without));
    assert!(with * 20.0 < without, "{with} {without}");
    assert_eq!(feedback.residual()[..10], [0.0; 10]);

    let before = feedback.residual().to_vec();
    let mut bytes = vec![1];
    assert!(feedback.encode(0, &mut [1.0, f32::NAN], &mut bytes).is_err());
    assert!(feedback.encode(1009, &mut [1.0, 1.0], &mut bytes).is_err());
    assert_eq!((feedback.residual(), bytes), (&before[..], vec![1]));
}
