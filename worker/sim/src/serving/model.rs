//! A model whose rows are hashes.

use dunlin_protocol::Windows;
use dunlin_swarm::{Layers, NumericsClass};

/// Layers of the model.
pub const LAYERS: u32 = 6;
/// Values of a row: 16 bits each, so that they are exact as f32.
pub const HIDDEN: usize = 4;

/// splitmix64's finaliser.
#[must_use]
pub fn mix(a: u64, b: u64) -> u64 {
    let mut z = a.wrapping_mul(0x9e37_79b9_7f4a_7c15).wrapping_add(b).wrapping_add(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

/// A row as it travels.
pub(super) fn to_row(hash: u64) -> [f32; HIDDEN] {
    std::array::from_fn(|i| (hash >> (16 * i) & 0xffff) as f32)
}

/// And back.
pub(super) fn from_row(row: &[f32]) -> u64 {
    row.iter().enumerate().fold(0, |hash, (i, v)| hash | (*v as u64) << (16 * i))
}

/// The row of a token in front of the first layer.
pub(super) fn embed(token: u32) -> u64 {
    mix(11, u64::from(token))
}

/// Positions that a row sees in a layer that slides, its own among them.
const WINDOW: u32 = 40;

/// The KV cache of one layer: a running hash over the inputs of all positions; or, in a layer that slides, the input of each.
pub(super) type Cache = Vec<u64>;

/// What the layers of a model keep of a sequence: every second one slides, or none does.
pub(super) fn windows(slides: bool) -> Windows {
    Windows::new((0..LAYERS).map(|layer| (slides && layer % 2 == 1).then_some(WINDOW)))
}

/// `weights` stands for the model's and the adapter's, and for the arithmetic.
fn layer(cache: &mut Cache, layer: u32, weights: u64, slides: bool, input: u64) -> u64 {
    let own = mix(weights, input);
    let seen = if slides && layer % 2 == 1 {
        cache.push(own);
        let from = cache.len().saturating_sub(WINDOW as usize);
        cache[from..].iter().fold(7, |seen, own| mix(seen, *own))
    } else {
        let seen = mix(cache.last().copied().unwrap_or(7), own);
        cache.push(seen);
        seen
    };
    mix(mix(seen, u64::from(layer)), input)
}

/// The model of a process.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReadModel {
    /// What it is read from: weights and tokens follow from that.
    pub source: String,
    /// What the process says of it to others; empty if it was not told.
    pub digest: String,
}

/// What rows are computed with.
#[derive(Clone, Copy)]
pub struct With<'a> {
    /// What the model is read from; empty where there is but one.
    pub model: &'a str,
    /// None: the model itself.
    pub adapter: Option<&'a str>,
    /// Which bits they are.
    pub arithmetic: NumericsClass,
    /// A few rows give a value that is not finite in one of the layers or behind the last one, whoever computes them.
    pub overflows: bool,
    /// Every second layer looks at a window only.
    pub slides: bool,
}

/// The layer in which rows overflow.
const OVERFLOWS_IN: u32 = 4;
/// One of so many rows does.
const OVERFLOWS_ONE_IN: u64 = 2000;

/// One row through `layers`, whose caches are `caches`; or the layer in which it overflows.
pub(super) fn through<'a>(
    caches: impl IntoIterator<Item = &'a mut Cache>,
    layers: Layers,
    with: With<'_>,
    mut row: u64,
) -> Result<u64, u32> {
    let bytes = with.model.bytes().chain(with.adapter.into_iter().flat_map(str::bytes));
    let first = u64::from(with.arithmetic.version() - 1);
    let weights = bytes.fold(first, |hash, byte| mix(hash, u64::from(byte)));
    for (cache, index) in caches.into_iter().zip(layers.iter()) {
        if with.overflows && index == OVERFLOWS_IN && mix(row, 97).is_multiple_of(OVERFLOWS_ONE_IN) {
            return Err(index);
        }
        row = layer(cache, index, weights, with.slides, row);
    }
    Ok(row)
}

/// The token after a row; or the number of layers, if a value is not finite behind them.
pub(super) fn token(row: u64, seed: u64, overflows: bool) -> Result<u32, u32> {
    if overflows && mix(row, 98).is_multiple_of(OVERFLOWS_ONE_IN) {
        return Err(LAYERS);
    }
    Ok((mix(row, seed) % 1000) as u32)
}

/// What a session must say: the tokens after `prompt` up to length `max_len`; and whether it fails behind them.
#[must_use]
pub fn expected(prompt: &[u32], max_len: usize, seed: u64, with: With<'_>) -> (Vec<u32>, bool) {
    let layers = Layers::new(0, LAYERS);
    let mut caches = vec![Cache::new(); layers.len() as usize];
    let mut tokens = prompt.to_vec();
    let mut at = 0;
    while tokens.len() < max_len {
        let mut row = 0;
        while at < tokens.len() {
            match through(&mut caches, layers, with, embed(tokens[at])) {
                Ok(last) => row = last,
                Err(_) => return (tokens.split_off(prompt.len()), true),
            }
            at += 1;
        }
        match token(row, seed, with.overflows) {
            Ok(token) => tokens.push(token),
            Err(_) => return (tokens.split_off(prompt.len()), true),
        }
    }
    (tokens.split_off(prompt.len()), false)
}
