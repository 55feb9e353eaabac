//! exp, sin and cos from multiply, add, fused multiply-add and rounding only, so that every machine gives the same bits.

const LOG2_E: f32 = std::f32::consts::LOG2_E;
/// ln 2 in two parts: the first has few enough bits that `n * LN2_HIGH` is exact.
const LN2_HIGH: f32 = 355.0 / 512.0;
const LN2_LOW: f32 = -2.121_944_4e-4;
/// Below this `exp` gives 0: the result would not be a normal number.
pub(crate) const EXP_MIN: f32 = -87.33;
/// Above this the largest finite exponent is passed.
const EXP_MAX: f32 = 88.0;
/// Minimax polynomial of (e^r - 1 - r) / r^2 on |r| <= ln2 / 2, highest power first (Cephes expf).
pub(crate) const EXP_POLY: [f32; 6] =
    [1.987_569_1e-4, 1.398_199_9e-3, 8.333_452e-3, 4.166_579_6e-2, 1.666_666_5e-1, 0.5];

/// e^x: 0 below -87.33, relative error below 1e-7 up to 88, infinity above; NaN gives 0 (callers check their inputs).
#[must_use]
pub fn exp(x: f32) -> f32 {
    if x.is_nan() || x < EXP_MIN {
        return 0.0;
    }
    if x > EXP_MAX {
        return f32::INFINITY;
    }
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = EXP_POLY[0];
    for &c in &EXP_POLY[1..] {
        p = p.mul_add(r, c);
    }
    let e = p.mul_add(r * r, r) + 1.0;
    f32::from_bits((e.to_bits().cast_signed()).wrapping_add((n as i32) << 23).cast_unsigned())
}

/// [`exp`] without branches, bit for bit, for loops that the compiler vectorises.
#[inline(always)]
pub(crate) fn exp_lane(x: f32) -> f32 {
    /// 1.5 * 2^23: the low bits of the sum with it are the integer.
    const MAGIC: f32 = 12_582_912.0;
    let n = (x * LOG2_E).round_ties_even();
    let r = n.mul_add(-LN2_LOW, n.mul_add(-LN2_HIGH, x));
    let mut p = EXP_POLY[0];
    for &c in &EXP_POLY[1..] {
        p = p.mul_add(r, c);
    }
    let e = p.mul_add(r * r, r) + 1.0;
    let e = f32::from_bits(e.to_bits().wrapping_add((n + MAGIC).to_bits() << 23));
    let e = if x >= EXP_MIN { e } else { 0.0 };
    if x > EXP_MAX { f32::INFINITY } else { e }
}

/// Halves of 16 lanes joined onto each other, 8, 4, 2, 1: written without loops over widths, so that it vectorises.
#[inline(always)]
pub(crate) fn tree_16<T: Copy>(x: &[T; 16], join: impl Fn(T, T) -> T) -> T {
    tree_8(&std::array::from_fn(|i| join(x[i], x[i + 8])), join)
}

/// As [`tree_16`], of 8 lanes.
#[inline(always)]
pub(crate) fn tree_8<T: Copy>(x: &[T; 8], join: impl Fn(T, T) -> T) -> T {
    let x: [T; 4] = std::array::from_fn(|i| join(x[i], x[i + 4]));
    join(join(x[0], x[2]), join(x[1], x[3]))
}

/// As [`tree_16`], of 128 lanes.
#[inline(always)]
pub(crate) fn tree_128<T: Copy>(x: &[T; 128], join: impl Fn(T, T) -> T + Copy) -> T {
    let x: [T; 64] = std::array::from_fn(|i| join(x[i], x[i + 64]));
    tree_64(&x, join)
}

/// As [`tree_16`], of 64 lanes.
#[inline(always)]
pub(crate) fn tree_64<T: Copy>(x: &[T; 64], join: impl Fn(T, T) -> T + Copy) -> T {
    let x: [T; 32] = std::array::from_fn(|i| join(x[i], x[i + 32]));
    tree_16(&std::array::from_fn(|i| join(x[i], x[i + 16])), join)
}

/// The same of any power of two of lanes, in plain loops.
pub(crate) fn tree<T: Copy>(lanes: &[T], join: impl Fn(T, T) -> T) -> T {
    let mut lanes = lanes.to_vec();
    while lanes.len() > 1 {
        let half = lanes.len() / 2;
        for i in 0..half {
            lanes[i] = join(lanes[i], lanes[i + half]);
        }
        lanes.truncate(half);
    }
    lanes[0]
}

/// Constants of [`exp`] for vector code.
#[cfg(target_arch = "x86_64")]
pub(crate) const EXP_CONSTANTS: [f32; 4] = [LOG2_E, -LN2_HIGH, -LN2_LOW, EXP_MAX];

/// Natural logarithm of a positive normal number, relative error below 1e-6; f64 inside, no libm.
#[must_use]
pub fn ln(x: f32) -> f32 {
    let bits = f64::from(x).to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    // atanh series of ln((1+s)/(1-s)), s^2 < 0.03.
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (0..10).rev() {
        sum = sum * s2 + 2.0 / f64::from(2 * k + 1);
    }
    (sum * s + exponent as f64 * std::f64::consts::LN_2) as f32
}

/// (sin x, cos x) for |x| below 2^31, absolute error below 1e-12: Taylor series on |r| <= pi/4 after reduction in f64.
#[must_use]
pub fn sin_cos(x: f64) -> (f64, f64) {
    /// pi/2 in three parts of 33 bits each, so that `n * PART` is exact for n < 2^20.
    const HALF_PI: [f64; 3] =
        [1.570_796_326_734_125_6, 6.077_100_506_303_966e-11, 2.022_266_248_795_950_7e-21];
    let n = (x * std::f64::consts::FRAC_2_PI).round_ties_even();
    let r = HALF_PI.iter().fold(x, |r, part| r - n * part);
    let r2 = r * r;
    let (mut sin, mut cos) = (0.0, 0.0);
    for k in (0..9).rev() {
        let k = f64::from(k);
        // Horner: each term is the one before times -r^2 / ((2k+2)(2k+3)) and -r^2 / ((2k+1)(2k+2)).
        sin = 1.0 - r2 / ((2.0 * k + 2.0) * (2.0 * k + 3.0)) * sin;
        cos = 1.0 - r2 / ((2.0 * k + 1.0) * (2.0 * k + 2.0)) * cos;
    }
    let sin = sin * r;
    match (n as i64).rem_euclid(4) {
        0 => (sin, cos),
        1 => (cos, -sin),
        2 => (-sin, -cos),
        _ => (-cos, sin),
    }
}

/// base^exponent for base > 0, in f64 without libm: exp(exponent ln base) by argument halving.
#[must_use]
pub fn powf(base: f64, exponent: f64) -> f64 {
    exp_f64(exponent * ln_f64(base))
}

/// Natural logarithm of a positive normal number, relative error below 1e-14.
#[must_use]
pub fn ln_f64(x: f64) -> f64 {
    let bits = x.to_bits();
    let mut exponent = ((bits >> 52) & 0x7ff) as i64 - 1023;
    let mut mantissa = f64::from_bits((bits & ((1 << 52) - 1)) | (1023 << 52));
    if mantissa > std::f64::consts::SQRT_2 {
        mantissa /= 2.0;
        exponent += 1;
    }
    let s = (mantissa - 1.0) / (mantissa + 1.0);
    let s2 = s * s;
    let mut sum = 0.0;
    for k in (0..16).rev() {
        sum = sum * s2 + 2.0 / f64::from(2 * k + 1);
    }
    sum * s + exponent as f64 * std::f64::consts::LN_2
}

fn exp_f64(x: f64) -> f64 {
    let n = (x * std::f64::consts::LOG2_E).round_ties_even();
    let r = x - n * std::f64::consts::LN_2;
    let mut sum = 1.0;
    for k in (1..18).rev() {
        sum = 1.0 + r / f64::from(k) * sum;
    }
    let bits = (sum.to_bits().cast_signed()).wrapping_add((n as i64) << 52);
    f64::from_bits(bits.cast_unsigned())
}

#[cfg(test)]
mod tests {
    use super::{exp, exp_lane, ln, powf, sin_cos};

    #[test]
    fn exp_is_close_to_the_true_value() {
        for i in -87_000..88_000 {
            let x = i as f32 / 1000.0;
            let want = f64::from(x).exp();
            assert!((f64::from(exp(x)) - want).abs() <= want * 1e-6, "exp({x}) = {} not {want}", exp(x));
        }
        assert_eq!(
            (exp(-88.0), exp(f32::NEG_INFINITY), exp(0.0), exp(100.0)),
            (0.0, 0.0, 1.0, f32::INFINITY)
        );
    }

    #[test]
    fn both_forms_of_exp_give_the_same_bits() {
        let odd = [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, 88.0, 88.1, -87.33, -87.34, -0.0, 1e-40];
        for x in (-100_000..100_000).map(|i| i as f32 / 997.0).chain(odd) {
            assert_eq!(exp(x).to_bits(), exp_lane(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn ln_is_close_to_the_true_value() {
        for i in 1..100_000 {
            let x = i as f32 / 317.0;
            assert!((f64::from(ln(x)) - f64::from(x).ln()).abs() < 1e-6 * (1.0 + f64::from(x).ln().abs()));
        }
    }

    #[test]
    fn sin_cos_and_powf_are_close_to_the_true_values() {
        for i in 0..20_000 {
            let x = f64::from(i) * 0.37;
            let (sin, cos) = sin_cos(x);
            assert!((sin - x.sin()).abs() < 1e-11 && (cos - x.cos()).abs() < 1e-11, "{x}: {sin} {cos}");
        }
        for i in 0..64 {
            let (got, want) = (powf(10_000.0, -f64::from(i) / 32.0), 10_000f64.powf(-f64::from(i) / 32.0));
            assert!((got - want).abs() < want * 1e-12, "{got} {want}");
        }
    }
}
