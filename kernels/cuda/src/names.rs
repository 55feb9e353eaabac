//! Names of the kernels in `device/`.

use dunlin_kernels::Packing;

/// Kernels that are no products.
const OTHERS: [&str; 13] = [
    "quantise",
    "rms_norm",
    "rope",
    "write_kv",
    "attention",
    "attention_merge",
    "swiglu",
    "geglu",
    "add",
    "add_bias",
    "scale",
    "gather_rows",
    "find_not_finite",
];

const PACKINGS: [Packing; 13] = [
    Packing::F32,
    Packing::F16,
    Packing::Bf16,
    Packing::Q8,
    Packing::Q4,
    Packing::Q5,
    Packing::Iq4,
    Packing::Q2K,
    Packing::Q3K,
    Packing::Q4K,
    Packing::Q5K,
    Packing::Q6K,
    Packing::Iq4Xs,
];

/// How many rows a kernel for products is made for: it computes any number.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Width {
    /// Up to 8.
    Eight,
    /// Up to 16.
    Sixteen,
    /// Up to 32.
    ThirtyTwo,
    /// More.
    Many,
}

/// The names of the kernels with quantised weights, from the narrowest on.
macro_rules! quantised {
    ($name:literal) => {
        [concat!($name, "_8"), concat!($name, "_16"), concat!($name, "_32"), concat!($name, "_many")]
    };
}

/// The same with weights that are floats: one for few rows, which are 8 at a time.
macro_rules! dense {
    ($name:literal) => {
        [concat!($name, "_8"), concat!($name, "_8"), concat!($name, "_8"), concat!($name, "_many")]
    };
}

fn products(packing: Packing) -> [&'static str; 4] {
    match packing {
        Packing::F32 => dense!("linear_f32"),
        Packing::F16 => dense!("linear_f16"),
        Packing::Bf16 => dense!("linear_bf16"),
        Packing::Q8 => quantised!("linear_q8"),
        Packing::Q4 => quantised!("linear_q4"),
        Packing::Q5 => quantised!("linear_q5"),
        Packing::Iq4 => quantised!("linear_iq4"),
        Packing::Q2K => quantised!("linear_q2k"),
        Packing::Q3K => quantised!("linear_q3k"),
        Packing::Q4K => quantised!("linear_q4k"),
        Packing::Q5K => quantised!("linear_q5k"),
        Packing::Q6K => quantised!("linear_q6k"),
        Packing::Iq4Xs => quantised!("linear_iq4xs"),
    }
}

/// The kernel for products with such weights.
pub(crate) fn product(packing: Packing, width: Width) -> &'static str {
    products(packing)[width as usize]
}

/// All of them, some more than once.
pub(crate) fn all() -> impl Iterator<Item = &'static str> {
    OTHERS.into_iter().chain(PACKINGS.into_iter().flat_map(products))
}
