use proptest::prelude::*;

use super::f16::BLOCK as HALVES;
use super::q8::BLOCK;
use super::{Codec, CodecError};

const ALL: [Codec; 4] = [Codec::F32, Codec::F16, Codec::F16Scaled, Codec::Q8];

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
    let scaled = error(&values, &through(Codec::F16Scaled, &values));
    let eight = error(&values, &through(Codec::Q8, &values));
    println!("relative RMS error: F16 {half:.3e}, Q8 {eight:.3e}");
    assert!((1.5e-4..2.2e-4).contains(&half), "{half}");
    assert!((1.5e-4..2.2e-4).contains(&scaled), "{scaled}");
    assert!((5.0e-3..6.5e-3).contains(&eight), "{eight}");
}

#[test]
fn scaled_halves_have_the_same_error_however_small_or_large_values_are() {
    let values = normal(1 << 12);
    for scale in [1e-30, 1e-9, 1.0, 1e30] {
        let values: Vec<f32> = values.iter().map(|v| v * scale).collect();
        let lost = error(&values, &through(Codec::F16Scaled, &values));
        assert!((1.5e-4..2.2e-4).contains(&lost), "{scale} {lost}");
    }
    // A block has its own scale, and what is too small to be scaled is zero.
    let most = 2f32.powi(127).next_down();
    let mut values = vec![most; HALVES];
    values.extend([1e-20, -0.0]);
    let back = through(Codec::F16Scaled, &values);
    assert!((back[0] / most - 1.0).abs() < 1e-3 && (back[HALVES] / 1e-20 - 1.0).abs() < 1e-3);
    assert!(Codec::F16Scaled.encode(&[1.0, most.next_up()], &mut Vec::new()).is_err());
    assert_eq!(through(Codec::F16Scaled, &[1e-38, -1e-40, 0.0]), [0.0; 3]);
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
            let expected = match codec {
                Codec::F16Scaled => 1500 / HALVES * HALVES,
                Codec::Q8 => 1500 / BLOCK * BLOCK,
                _ => 1500,
            };
            assert_eq!(error, CodecError::Range { codec, index: expected });
        }
    }
    assert!(Codec::F16.encode(&[65_519.0], &mut Vec::new()).is_ok());
    assert!(Codec::F16.encode(&[65_520.0], &mut Vec::new()).is_err());
    let refused =
        |codec: Codec, bytes: &[u8], values| codec.decode(bytes, values, &mut Vec::new()).unwrap_err();
    assert_eq!(refused(Codec::F32, &f32::NAN.to_le_bytes(), 1), CodecError::Malformed(0));
    assert_eq!(refused(Codec::F16, &[0, 0, 0, 0x7c], 2), CodecError::Malformed(2));
    // Exponents that no block has, and a half that is infinite.
    for bytes in [[255, 0, 0], [3, 0, 0], [200, 0, 0x7c], [254, 0, 0]] {
        assert_eq!(refused(Codec::F16Scaled, &bytes, 1), CodecError::Malformed(0), "{bytes:?}");
    }
    for scale in [f32::NAN, f32::INFINITY, f32::MAX, -1.0, -0.0, 1e-40] {
        let bytes = [&scale.to_le_bytes()[..], &[1]].concat();
        assert_eq!(refused(Codec::Q8, &bytes, 1), CodecError::Malformed(0), "{scale}");
    }
    assert_eq!(refused(Codec::Q8, &[0, 0, 0x80, 0x3f, 0x80], 1), CodecError::Malformed(0));
    for codec in ALL {
        assert!(matches!(refused(codec, &[0; 7], 2), CodecError::Length { found: 7, .. }));
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
